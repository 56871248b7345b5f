"""The drop-in functions of modelpress.torch against a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import modelpress.torch as amct
import onnxruntime
import torch

from tests.e2e.server_process import GOLDEN_SAVE

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.e2e.server_process import ServerProcess


def test_save_model(server: ServerProcess, tmp_path: Path) -> None:
    case = GOLDEN_SAVE / "conv2d_bn_relu_linear"
    amct.connect(server.target)
    amct.save_model(
        modfied_onnx_file=str(case / "modified.onnx"),
        record_file=str(case / "record.txt"),
        save_path=str(tmp_path / "results" / "model"),
    )
    for name in ("deploy", "fake_quant"):
        written = tmp_path / "results" / f"model_{name}_model.onnx"
        assert written.read_bytes() == (case / f"{name}.onnx").read_bytes()


def test_save_prune_retrain_model(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).train()
    amct.connect(server.target)
    x = torch.randn(2, 3, 8, 8)
    amct.save_prune_retrain_model(
        model, "./results/model", x, input_names=["x"], output_names=["y"], dynamic_axes={"x": [0], "y": {0: "batch"}}
    )
    assert model.training
    files = [tmp_path / "results" / f"model_{name}_model.onnx" for name in ("deploy", "fake_quant")]
    assert files[0].read_bytes() == files[1].read_bytes()
    session = onnxruntime.InferenceSession(str(files[1]), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x[:1].numpy()})
    model.eval()
    assert torch.allclose(torch.from_numpy(y), model(x[:1]), atol=1e-5)
