"""The golden configurations through the whole stack; who is to blame for the bad ones is the engine tests' business."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.server_process import SOURCE_DIR, ServerProcess, run_cli

if TYPE_CHECKING:
    from pathlib import Path

GOLDEN = SOURCE_DIR / "tests" / "golden" / "config"
INVALID_INPUT = 65  # the command's exit code
# Arguments of a type that the command line cannot carry; what the reference crashes on and modelpress reads.
SKIPPED = {"bad_args_type", "bad_json_no_act"}


def cases(*kinds: str) -> list[str]:
    found = sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))
    return [name for name in found if case_of(name)["kind"] in kinds and name not in SKIPPED]


def case_of(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((GOLDEN / name / "case.json").read_text())
    return case


def model_of(name: str) -> str:
    return f"--model={GOLDEN / name / case_of(name)['model']}"


def flags(name: str) -> list[str]:
    """What asks for the configuration of a case: its .cfg, or its arguments."""
    kv_cache = ["--kv_cache"] if case_of(name)["kind"] == "kv_cache" else []
    if (GOLDEN / name / "in.cfg").exists():
        return [*kv_cache, f"--config_definition={GOLDEN / name / 'in.cfg'}"]
    arguments: dict[str, Any] = json.loads((GOLDEN / name / "args.json").read_text())
    if kv_cache:
        return [*kv_cache, *(f"--kv_cache_layers={x}" for x in arguments["quant_layers"]["kv_cache_quant_layers"])]
    result = [f"--skip_layers={layer}" for layer in arguments.get("skip_layers", [])]
    if "batch_num" in arguments:
        result.append(f"--batch_num={arguments['batch_num']}")
    if not arguments.get("activation_offset", True):
        result.append("--no-activation_offset")
    return result


@pytest.mark.parametrize("name", cases("ptq", "ptq-args", "kv_cache"))
def test_generated(name: str, server: ServerProcess, tmp_path: Path) -> None:
    made = tmp_path / "config.json"
    done = run_cli(
        server.target,
        "create_quant_config",
        f"--config_file={made}",
        model_of(name),
        *flags(name),
        "--reference_defects",
        "--output=json",
    )
    if case_of(name)["result"] == "success":
        assert done.returncode == 0, done.stderr
        assert made.read_bytes() == (GOLDEN / name / "config.json").read_bytes()
    else:
        expect_refused(done.returncode, done.stdout)
        assert not made.exists()


@pytest.mark.parametrize("name", cases("ptq-json"))
def test_read(name: str, server: ServerProcess, tmp_path: Path) -> None:
    done = run_cli(
        server.target,
        "quantize_model",
        f"--config_file={GOLDEN / name / 'config.json'}",
        f"--modified_onnx_file={tmp_path / 'modified.onnx'}",
        f"--record_file={tmp_path / 'record.txt'}",
        model_of(name),
        "--validate_only",
        "--reference_defects",
        "--output=json",
    )
    if case_of(name)["result"] == "success":
        assert done.returncode == 0, done.stderr
    else:
        expect_refused(done.returncode, done.stdout)
    assert not any(tmp_path.iterdir())


def expect_refused(returncode: int, stdout: str) -> None:
    assert returncode == INVALID_INPUT
    error = json.loads(stdout)["error"]
    assert error["code"] == "INVALID_ARGUMENT"
    assert error["reason"].startswith("CONFIG_"), error
