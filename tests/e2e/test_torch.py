"""The drop-in functions of modelpress.torch against a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import modelpress.torch as amct
import onnxruntime
import torch

from tests.e2e.server_process import GOLDEN_SAVE

if TYPE_CHECKING:
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


class Net(torch.nn.Module):
    """Convolutions with batch norms, a reused activation, a shared weight and a recurrent layer."""

    def __init__(self, *, recurrent: bool = False) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        self.blocks = torch.nn.ModuleList([torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)])
        self.fc = torch.nn.Linear(8, 8)
        self.tied = torch.nn.Linear(8, 8)
        self.tied.weight = self.fc.weight
        self.head = torch.nn.Linear(8, 4)
        self.rnn = torch.nn.LSTM(8, 8, batch_first=True) if recurrent else None

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None, c: torch.Tensor | None = None) -> torch.Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = torch.relu(block(y))
        y = self.tied(torch.relu(self.fc(y.flatten(2).transpose(1, 2))))
        if self.rnn is not None:
            y = self.rnn(y, (h, c))[0]
        z: torch.Tensor = self.head(y.mean(1))
        return z


LAYERS = ["blocks.0", "blocks.1", "head", "stem.0"]  # sharers of a weight are left alone


def quantize(folder: Path, net: Net, example: Any, batches: list[Any], **names: Any) -> None:
    """The documented flow."""
    config, modified, record = (str(folder / "out" / name) for name in ("config.json", "modified.onnx", "record.txt"))
    amct.create_quant_config(config, net, example, batch_num=len(batches))
    model = amct.quantize_model(config, modified, record, net, example, **names)
    assert "scale_d" not in Path(record).read_text()
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(*batch)
    amct.save_model(modified, record, f"{folder}/out/net")


def test_post_training_quantization(server: ServerProcess, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = Net()
    for _ in range(3):
        net(torch.randn(8, 3, 8, 8))  # gives the batch norm its statistics
    net.eval()
    amct.connect(server.target)
    batches = [(torch.randn(4, 3, 8, 8),), (torch.randn(6, 3, 8, 8),)]
    axes = {"input": {0: "batch"}, "output": {0: "batch"}}
    quantize(
        tmp_path,
        net,
        torch.randn(1, 3, 8, 8),
        batches,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes=axes,
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert sorted(name for name, layer in config.items() if isinstance(layer, dict)) == LAYERS
    record = (tmp_path / "out" / "record.txt").read_text()
    assert re.findall(r'key: "(.*)"', record) == ["stem.0", "blocks.0", "blocks.1", "head"]  # as registered
    assert record.count("scale_d") == len(LAYERS)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out" / "net_fake_quant_model.onnx"), providers=["CPUExecutionProvider"]
    )
    x = torch.randn(5, 3, 8, 8)
    (y,) = session.run(["output"], {"input": x.numpy()})
    expected = net(x).detach()
    assert torch.nn.functional.mse_loss(torch.from_numpy(y), expected) < 0.01 * expected.var()

    # Without dynamic axes the model takes one size, and calibration still takes any: the same factors.
    quantize(tmp_path / "fixed", net, torch.randn(1, 3, 8, 8), batches)
    assert (tmp_path / "fixed" / "out" / "record.txt").read_text() == record


def test_recurrent_layers(server: ServerProcess, tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = Net(recurrent=True).eval()
    amct.connect(server.target)
    state = torch.zeros(1, 2, 8)
    example = (torch.randn(2, 3, 8, 8), state, state)
    quantize(tmp_path, net, example, [(torch.randn(2, 3, 8, 8), state, state)])
    record = (tmp_path / "out" / "record.txt").read_text()
    assert re.findall(r'key: "(.*)"', record) == ["stem.0", "blocks.0", "blocks.1", "head", "rnn"]
    assert record.count("scale_h") == 1


def test_a_balanced_and_a_learned_layer(server: ServerProcess, tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = Net().eval()
    amct.connect(server.target)
    (tmp_path / "simple.cfg").write_text(
        """
        override_layer_configs { layer_name: "blocks.0" calibration_config { ada_quantize { num_iteration: 5 } } }
        override_layer_configs { layer_name: "head" calibration_config { arq_quantize {} dmq_balancer {} } }
        """
    )
    config, record = str(tmp_path / "c.json"), str(tmp_path / "r.txt")
    x = torch.randn(2, 3, 8, 8)
    amct.create_quant_config(config, net, x, config_defination=str(tmp_path / "simple.cfg"))
    amct.quantize_preprocess(config, record, net, x)(x)
    assert "tensor_balance_factor" in Path(record).read_text()
    model = amct.quantize_model(config, str(tmp_path / "m.onnx"), record, net, x)
    model(x)
    text = Path(record).read_text()
    assert text.count("scale_d") == len(LAYERS)
    assert "tensor_balance_factor" in text
