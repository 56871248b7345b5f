"""Channel pruning through the whole stack: client, socket, server, child, engine, files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import modelpress
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import json_format
from modelpress.v1 import rewrite_plan_pb2
from onnx import numpy_helper
from safetensors.torch import save_file

from tests.e2e.server_process import SOURCE_DIR, ServerProcess, run_cli

if TYPE_CHECKING:
    from pathlib import Path

Array: TypeAlias = np.ndarray[Any, Any]

GOLDEN = SOURCE_DIR / "tests" / "golden" / "prune" / "chain"
KEPT: dict[str, dict[str, Any]] = json.loads((GOLDEN / "kept_channels.json").read_text())


def weights_of(model: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}


def expect_pruned(model: Path) -> None:
    """The weights are the reference's bit for bit, and the outputs within the tolerance for another runtime."""
    actual, expected = weights_of(model), weights_of(GOLDEN / "pruned.onnx")
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert actual[name].tobytes() == want.tobytes(), name
    io = np.load(GOLDEN / "io.npz")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": io["in/input"]})
    assert np.allclose(output, io["pruned/output"], atol=1e-5, rtol=1e-4)


def expect_plan(file: Path) -> None:
    """The cuts of each module, one after the other, leave the reference's channels."""
    plan = json_format.Parse(file.read_text(), rewrite_plan_pb2.RewritePlan())
    assert not plan.layers
    kept: dict[tuple[str, str, int], Array] = {}
    attributes: dict[str, dict[str, int]] = {}
    for cut in plan.cuts:
        assert cut.type == KEPT[cut.module]["type"]
        attributes.setdefault(cut.module, {}).update(cut.attributes)
        for tensor in cut.tensors:
            key = (cut.module, tensor.name, tensor.axis)
            indices = np.array(tensor.kept)
            kept[key] = kept[key][indices] if key in kept else indices
    for module, want in KEPT.items():
        if want["type"] == "BatchNorm2d":
            for name in ("weight", "bias", "running_mean", "running_var"):
                assert list(kept[module, name, 0]) == want["kept"]
            assert attributes[module] == {"num_features": len(want["kept"])}
            continue
        for axis, (side, channels) in enumerate((("kept_out", "out_channels"), ("kept_in", "in_channels"))):
            if len(want[side]) < want[channels]:
                assert list(kept[module, "weight", axis]) == want[side]
                name = channels if want["type"] == "Conv2d" else channels.replace("channels", "features")
                assert attributes[module][name] == len(want[side])


def cli(server: ServerProcess, *arguments: Any) -> list[str]:
    done = run_cli(server.target, *arguments)
    assert done.returncode == 0, done.stderr
    lines: list[str] = done.stdout.splitlines()
    return lines


def test_create_restore_save_through_the_cli(server: ServerProcess, tmp_path: Path) -> None:
    common = (f"--model={GOLDEN / 'model.onnx'}", f"--config_defination={GOLDEN / 'prune.cfg'}")
    record, prefix = tmp_path / "r" / "record.txt", tmp_path / "out" / "m"
    written = cli(server, "create_prune_retrain_model", *common, f"--record_file={record}", f"--save_path={prefix}")
    assert written == [
        str(record),
        f"{prefix}_rewrite_plan.json",
        f"{prefix}_pruned_model.onnx",
        f"{prefix}_report.json",
    ]
    assert record.read_bytes() == (GOLDEN / "record.txt").read_bytes()
    expect_pruned(tmp_path / "out" / "m_pruned_model.onnx")
    expect_plan(tmp_path / "out" / "m_rewrite_plan.json")

    again = tmp_path / "again"
    cli(server, "restore_prune_retrain_model", *common, f"--record_file={record}", f"--save_path={again}/")
    assert sorted(path.name for path in again.iterdir()) == ["pruned_model.onnx", "report.json", "rewrite_plan.json"]
    expect_pruned(again / "pruned_model.onnx")
    expect_plan(again / "rewrite_plan.json")
    assert record.read_bytes() == (GOLDEN / "record.txt").read_bytes()  # only read

    exported = f"--model={GOLDEN / 'deploy.onnx'}"
    checked = f"--record_file={record}"
    cli(server, "save_prune_retrain_model", exported, checked, f"--save_path={tmp_path}/saved/m")
    for suffix in ("deploy_model", "fake_quant_model"):
        assert (tmp_path / "saved" / f"m_{suffix}.onnx").read_bytes() == (GOLDEN / "deploy.onnx").read_bytes()


def test_a_model_that_is_not_pruned_as_its_record_says(server: ServerProcess, tmp_path: Path) -> None:
    arguments = (f"--model={GOLDEN / 'model.onnx'}", f"--record_file={GOLDEN / 'record.txt'}")
    done = run_cli(server.target, "save_prune_retrain_model", *arguments, f"--save_path={tmp_path}/m")
    assert done.returncode == 65
    assert "[PRUNE_FAILED]" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_search_with_an_override_file_through_the_cli(server: ServerProcess, tmp_path: Path) -> None:
    """The configuration names its override file from the working directory."""
    golden = GOLDEN.parent / "amc_override"
    state = json.loads((golden / "search_state.json").read_text())
    # The reference's sum over a record's producers, given to the first of them.
    sensitivities = {layer: torch.zeros(costs["cout"]) for layer, costs in state["layers"].items()}
    for record in state["records"]:
        sensitivities[record["producers"][0]] = torch.tensor(record["sensitivity"])
    save_file(sensitivities, tmp_path / "s.safetensors")
    done = run_cli(
        server.target,
        "auto_channel_prune_search",
        "--model=model.onnx",
        "--config=amc.cfg",
        f"--sensitivities={tmp_path / 's.safetensors'}",
        f"--output_cfg={tmp_path / 'found.cfg'}",
        "--reference_defects",
        cwd=golden,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found.cfg").read_bytes() == (golden / "output.cfg").read_bytes()

    # In a workspace the path in the configuration means nothing.
    with modelpress.Client(server.target) as client:
        workspace = client.create_workspace().name
        for file in (golden / "model.onnx", golden / "amc.cfg", tmp_path / "s.safetensors"):
            client.upload_file(workspace, f"in/{file.name}", file)
        search = client.auto_channel_prune_search(
            workspace, "in/model.onnx", "in/amc.cfg", "in/s.safetensors", "found.cfg"
        )
        with pytest.raises(modelpress.NotFound, match=r"names 'override\.cfg' as override_prune_cfg"):
            search.result()


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_checkpoint_is_restored_through_python(server: ServerProcess, tmp_path: Path, form: str) -> None:
    """The trained weights take the place of the model's."""
    trained = {name: torch.from_numpy(array * 2) for name, array in weights_of(GOLDEN / "pruned.onnx").items()}
    trained["bn1.num_batches_tracked"] = torch.tensor(7)  # of a module, not of a model
    checkpoint = tmp_path / f"checkpoint.{form}"
    if form == "pth":
        torch.save({"epoch": 3, "net": trained}, checkpoint)
    else:
        save_file({f"net.{name}": tensor for name, tensor in trained.items()}, checkpoint)
    with modelpress.Client(server.target) as client:
        created = client.create_prune_retrain_model_files(
            GOLDEN / "model.onnx", GOLDEN / "prune.cfg", tmp_path / "record.txt", f"{tmp_path}/m", plan_only=True
        )
        assert created.pruned_model is None
        assert created.record_file is not None
        assert created.record_file.read_bytes() == (GOLDEN / "record.txt").read_bytes()
        expect_plan(created.rewrite_plan)
        restored = client.restore_prune_retrain_model_files(
            GOLDEN / "model.onnx",
            created.record_file,
            GOLDEN / "prune.cfg",
            f"{tmp_path}/n",
            weights=checkpoint,
            state_dict_name="net",
        )
        assert restored.pruned_model is not None
        for name, array in weights_of(restored.pruned_model).items():
            assert np.array_equal(array, trained[name].numpy()), name

        # The weights of the model before it was pruned.
        unpruned = {name: torch.tensor(array) for name, array in weights_of(GOLDEN / "model.onnx").items()}
        save_file(unpruned, tmp_path / "unpruned.safetensors")
        with pytest.raises(modelpress.InvalidArgument) as caught:
            client.restore_prune_retrain_model_files(
                GOLDEN / "model.onnx",
                created.record_file,
                GOLDEN / "prune.cfg",
                f"{tmp_path}/o",
                weights=tmp_path / "unpruned.safetensors",
            )
        assert caught.value.reason == "WEIGHTS_INVALID"
        assert not (tmp_path / "o_report.json").exists()
