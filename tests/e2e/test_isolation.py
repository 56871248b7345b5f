"""Isolated engine processes do the same as others do, and a server says what it cannot isolate."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.server_process import BIN_DIR, SOURCE_DIR, ServerProcess, run_cli

if TYPE_CHECKING:
    from pathlib import Path

GOLDEN = SOURCE_DIR / "tests" / "golden" / "ptq" / "conv_bn_relu"


def quantize(folder: Path, *flags: str) -> dict[str, bytes]:
    """Quantizes, calibrates and saves a model on a server of its own; what was written, by name."""
    folder.mkdir()
    out = folder / "out"
    common = (f"--config_file={GOLDEN / 'config.json'}", f"--record_file={out / 'record.txt'}")
    model, data = f"--model={GOLDEN / 'model.onnx'}", GOLDEN / "calib.npz"
    modified = f"--modfied_onnx_file={out / 'modified.onnx'}"
    with ServerProcess(folder, *flags) as server:
        for arguments in (
            ("quantize_model", *common, model, modified, f"--input_data={data}"),
            ("calibrate", *common, model, modified, f"--calibration-data={data}"),
            ("save_model", modified, common[1], f"--save_path={out / 'x'}"),
        ):
            done = run_cli(server.target, *arguments)
            assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".onnx", ".txt")}


def test_the_same_bytes_with_and_without(tmp_path: Path) -> None:
    free = quantize(tmp_path / "off", "--isolation=off")
    assert {"record.txt", "modified.onnx", "x_deploy_model.onnx", "x_fake_quant_model.onnx"} <= free.keys()
    assert quantize(tmp_path / "on", "--isolation=best_effort") == free
    log = (tmp_path / "on" / "server.log").read_text()
    if "isolation of engine processes: no " not in log.replace("no own_user: the server is not root", ""):
        assert quantize(tmp_path / "require", "--isolation=require") == free


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_root_server_without_a_user_for_the_engine(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--child_user=root") as server:
        assert "isolation of engine processes: no own_user: the engine runs as root" in server.log()
    refused = subprocess.run(
        [BIN_DIR / "modelpressd", "serve", f"--data_dir={tmp_path}", "--isolation=require", "--child_user=root"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert refused.returncode == 1
    assert "engine processes lack own_user" in refused.stderr


@pytest.mark.parametrize("flag", ["--isolation=some", "--child_user=no-such-user"])
def test_wrong_flags(flag: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN_DIR / "modelpressd", "serve", f"--data_dir={tmp_path}", flag],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 64
    assert flag.partition("=")[0] in done.stderr
