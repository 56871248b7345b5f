"""The documented functions on local paths and modules."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import modelpress.torch as amct
import onnx
import pytest
import torch
from protocol_server import ProtocolServer
from torch import nn

GOLDEN = Path(os.environ["MODELPRESS_SOURCE_DIR"]) / "tests" / "golden" / "save"


class Net(nn.Module):
    """The module of golden case prune_plain, with other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(torch.relu(self.bn1(self.conv1(x))).mean((2, 3)))
        return y


@pytest.fixture
def session(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch) -> amct.Session:
    monkeypatch.setattr(amct, "_default_session", None)  # put back after connect()
    return amct.connect(server.target)


def _inputs(model: Any) -> list[str]:
    return [value.name for value in model.graph.input]


@pytest.mark.usefixtures("session")
def test_save_model(server: ProtocolServer, tmp_path: Path) -> None:
    (tmp_path / "modified.onnx").write_bytes(b"")
    (tmp_path / "record.txt").write_text("record {}")
    amct.save_model(str(tmp_path / "modified.onnx"), str(tmp_path / "record.txt"), f"{tmp_path}/out/m")
    assert (tmp_path / "out" / "m_deploy_model.onnx").exists()
    assert not server.requests[0].options.reference_defects
    again = amct.connect(server.target, reference_defects=True)
    again.save_model(str(tmp_path / "modified.onnx"), str(tmp_path / "record.txt"), f"{tmp_path}/out/m")
    assert server.requests[1].options.reference_defects


def test_variables(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(amct, "_default_session", None)
    monkeypatch.setenv("MODELPRESS_TARGET", server.target)
    monkeypatch.setenv("MODELPRESS_REFERENCE_DEFECTS", "1")
    (tmp_path / "modified.onnx").write_bytes(b"")
    (tmp_path / "record.txt").write_text("record {}")
    amct.save_model(str(tmp_path / "modified.onnx"), str(tmp_path / "record.txt"), f"{tmp_path}/out/")
    assert server.requests[0].options.reference_defects


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, "r", "s"), TypeError, "Func save_model argument modfied_onnx_file must be str"),
        (("m", None, "s"), TypeError, "record_file"),
        (("m", "r", Path("s")), TypeError, "save_path"),
        (("", "r", "s"), ValueError, "modfied_onnx_file is empty"),
        (("m/", "r", "s"), ValueError, "names a folder"),
        (("m", "x" * 255, "s"), ValueError, "255 characters"),
        (("m", "r", "x" * 234), ValueError, "233"),
        (("missing.onnx", "r", "s"), FileNotFoundError, "missing.onnx"),
    ],
)
def test_arguments_of_save_model(
    server: ProtocolServer, arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        amct.save_model(*arguments)
    assert not server.workspaces
    assert not server.deleted


@pytest.mark.usefixtures("session")
def test_prune_writes_what_the_reference_exports(tmp_path: Path) -> None:
    """Same structure as the reference's file for an equivalent module: names, inputs, versions, attributes."""
    amct.save_prune_retrain_model(
        Net(),
        f"{tmp_path}/m",
        torch.zeros(1, 3, 8, 8),
        ["input"],
        ["output"],
        {"input": {0: "batch"}, "output": {0: "batch"}},
    )
    written = onnx.load(tmp_path / "m_deploy_model.onnx")
    golden = onnx.load(GOLDEN / "prune_plain" / "deploy.onnx")
    digests = {
        hashlib.sha256((tmp_path / f"m_{kind}_model.onnx").read_bytes()).hexdigest()
        for kind in ("deploy", "fake_quant")
    }
    assert len(digests) == 1
    for model in (written, golden):
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
        model.ClearField("producer_version")  # torch's
    assert str(written) == str(golden)


@pytest.mark.usefixtures("session")
def test_module_stays_as_it_is(tmp_path: Path) -> None:
    model = Net().train()
    model.bn1.eval()  # frozen, as in fine-tuning
    before = {name: value.clone() for name, value in model.state_dict().items()}
    amct.save_prune_retrain_model(model, f"{tmp_path}/m", (torch.zeros(1, 3, 8, 8),))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("session")
def test_list_form_of_dynamic_axes(tmp_path: Path) -> None:
    amct.save_prune_retrain_model(
        Net(), f"{tmp_path}/m", torch.zeros(1, 3, 8, 8), ["in"], ["out"], {"in": [0, 2, 3], "out": {0: "n"}}
    )
    model = onnx.load(tmp_path / "m_deploy_model.onnx")
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["in_dynamic_axes_1", 3, "in_dynamic_axes_2", "in_dynamic_axes_3"]
    assert _inputs(model)[0] == "in"


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": "net"}, TypeError, "argument model must be Module"),
        ({"save_path": 1}, TypeError, "argument save_path must be str"),
        ({"input_data": [torch.zeros(1, 3, 8, 8)]}, RuntimeError, "must be tuple or torch.Tensor"),
        ({"input_names": ("a",)}, TypeError, "input_names must be list"),
        ({"output_names": [1]}, RuntimeError, "output_names type must be list"),
        ({"dynamic_axes": [0]}, TypeError, "dynamic_axes must be dict"),
        ({"dynamic_axes": {1: [0]}}, RuntimeError, "type is invalid"),
        ({"dynamic_axes": {"in": 0}}, RuntimeError, "type is invalid"),
        ({"dynamic_axes": {"in": ["0"]}}, RuntimeError, "type is invalid"),
        ({"dynamic_axes": {"in": {0: 1}}}, RuntimeError, "type is invalid"),
        ({"dynamic_axes": {"in": [-1]}}, RuntimeError, "negative"),
        ({"dynamic_axes": {"in": {-1: "n"}}}, RuntimeError, "negative"),
        ({"save_path": "x" * 234}, ValueError, "233"),
    ],
)
def test_arguments_of_save_prune_retrain_model(
    server: ProtocolServer, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    arguments: dict[str, Any] = {"model": Net(), "save_path": "m", "input_data": torch.zeros(1, 3, 8, 8)}
    with pytest.raises(error, match=text):
        amct.save_prune_retrain_model(**arguments | change)
    assert not server.workspaces
    assert not server.deleted


@pytest.mark.usefixtures("session")
def test_external_data_goes_and_comes_along(server: ProtocolServer, tmp_path: Path) -> None:
    amct.export(Net(), tmp_path / "inline.onnx", torch.zeros(1, 3, 8, 8))
    model = onnx.load(tmp_path / "inline.onnx")
    (tmp_path / "in").mkdir()
    onnx.save_model(model, tmp_path / "in" / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "in" / "record.txt").write_text("record {}")
    amct.save_model(f"{tmp_path}/in/m.onnx", f"{tmp_path}/in/record.txt", f"{tmp_path}/out/")
    assert any(name.endswith("/files/model/m.data") for name in server.files)
    assert (tmp_path / "out" / "m.data").read_bytes() == (tmp_path / "in" / "m.data").read_bytes()
    (tmp_path / "in" / "m.data").unlink()
    with pytest.raises(FileNotFoundError, match=r"external data of .*m\.data"):
        amct.save_model(f"{tmp_path}/in/m.onnx", f"{tmp_path}/in/record.txt", f"{tmp_path}/out/")


def test_the_package_needs_no_torch() -> None:
    script = "import modelpress, sys; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
