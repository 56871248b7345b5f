"""Quantization-aware training, alone and after pruning, through the whole stack: all but the training itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import modelpress
import pytest
from google.protobuf import json_format
from modelpress.v1 import rewrite_plan_pb2

from tests.e2e.server_process import SOURCE_DIR, ServerProcess, run_cli

if TYPE_CHECKING:
    from pathlib import Path

GOLDEN = SOURCE_DIR / "tests" / "golden" / "qat"


def plan_of(file: Path) -> Any:
    return json_format.Parse(file.read_text(), rewrite_plan_pb2.RewritePlan())


def expect_saved(folder: Path, prefix: str, golden: Path) -> None:
    for suffix in ("deploy", "fake_quant"):
        assert (folder / f"{prefix}{suffix}_model.onnx").read_bytes() == (golden / f"{suffix}.onnx").read_bytes()


def test_quantization_aware_training_through_the_cli(server: ServerProcess, tmp_path: Path) -> None:
    golden = GOLDEN / "q01_share_bn"
    config, record, plan = tmp_path / "c.json", tmp_path / "r.txt", tmp_path / "out" / "m_rewrite_plan.json"

    def cli(*arguments: Any, expect: int = 0) -> str:
        done = run_cli(server.target, *arguments, f"--config_file={config}")
        assert done.returncode == expect, done.stderr
        return done.stderr

    model = f"--model={golden / 'create.onnx'}"
    cli("create_quant_retrain_config", model)
    assert json.loads(config.read_text()) == json.loads((golden / "config.json").read_text())
    for command in ("create_quant_retrain_model", "restore_quant_retrain_model"):
        record.write_text("of an earlier run")
        cli(command, model, f"--record_file={record}", f"--save_path={tmp_path}/out/m")
        assert record.read_bytes() == b""
        layers = set(json.loads(config.read_text())) - {"version", "batch_num"}
        assert {layer.module for layer in plan_of(plan).layers} == layers

    save = (
        "save_quant_retrain_model",
        f"--model={golden / 'strip.onnx'}",
        f"--record_file={golden / 'record.txt'}",
        "--input_names=input",
        "--output_names=output",
        "--dynamic_axes=input:0=batch",
        "--dynamic_axes=output:0=batch",
        f"--rewrite_plan={plan}",
        f"--save_path={tmp_path}/saved/",
    )
    cli(*save)
    expect_saved(tmp_path / "saved", "", golden)

    changed = json.loads(config.read_text()) | {"batch_num": 7}
    config.write_text(json.dumps(changed))
    assert "CONFIG_CHANGED" in cli(*save, expect=65)


def test_compressed_training_through_python(server: ServerProcess, tmp_path: Path) -> None:
    golden = GOLDEN / "c01_filter_prune_quant"
    with modelpress.Client(server.target) as client:
        created = client.create_compressed_retrain_model_files(
            golden / "create.onnx", golden / "quant.cfg", tmp_path / "r.txt", f"{tmp_path}/m"
        )
        assert created.record_file is not None
        assert created.record_file.read_bytes() == (golden / "record_create.txt").read_bytes()
        plan = plan_of(created.rewrite_plan)
        assert plan.cuts
        assert plan.layers
        restored = client.restore_compressed_retrain_model_files(
            golden / "create.onnx", created.record_file, golden / "quant.cfg", f"{tmp_path}/n", plan_only=True
        )
        assert restored.pruned_model is None
        assert plan_of(restored.rewrite_plan) == plan

        save = json.loads((golden / "case.json").read_text())["flow"]["save"]
        client.save_compressed_retrain_model_files(
            golden / "strip.onnx",
            golden / "record.txt",
            f"{tmp_path}/m",
            input_names=save["input_names"],
            output_names=save["output_names"],
            dynamic_axes={
                name: {int(axis): label for axis, label in axes.items()} for name, axes in save["dynamic_axes"].items()
            },
        )
        expect_saved(tmp_path, "m_", golden)
        with pytest.raises(modelpress.InvalidArgument, match=r"RECORD_"):
            client.save_compressed_retrain_model_files(golden / "strip.onnx", created.rewrite_plan, f"{tmp_path}/x")
