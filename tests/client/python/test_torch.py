"""The documented functions on local paths and modules."""

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import modelpress
import modelpress.torch as amct
import numpy as np
import onnx
import pytest
import torch
from google.protobuf import json_format
from modelpress.v1 import module_manifest_pb2
from protocol_server import ProtocolServer, status
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
        ((1, "r", "s"), TypeError, "Func save_model argument modfied_onnx_file must be <class 'str'>"),
        (("m", None, "s"), TypeError, "record_file"),
        (("m", "r", Path("s")), TypeError, "save_path"),
        (("", "r", "s"), ValueError, "empty string is an invalid value for modfied_onnx_file"),
        (("m/", "r", "s"), ValueError, "should be a file's name but a path"),
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
        ({"model": "net"}, TypeError, "argument model must be .*Module"),
        ({"save_path": 1}, TypeError, "argument save_path must be .*str"),
        ({"input_data": [torch.zeros(1, 3, 8, 8)]}, RuntimeError, "must be tuple or torch.Tensor"),
        ({"input_names": ("a",)}, TypeError, "input_names must be .*list"),
        ({"output_names": [1]}, RuntimeError, "output_names type must be list"),
        ({"dynamic_axes": [0]}, TypeError, "dynamic_axes must be .*dict"),
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


class Named(nn.Module):
    """Names and sharing that an ONNX file alone does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1, groups=2), nn.ReLU())])
        self.fc = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.fc.weight
        self.lstm: nn.Module | None = None

    def forward(self, x: torch.Tensor, pair: Any = None, scale: float = 1.0, negate: bool = False) -> torch.Tensor:
        y = self.bn(self.conv(x))
        for block in self.blocks:
            y = block(y)
        y = self.tied(self.fc(y.flatten(2).transpose(1, 2)))
        if pair is not None:
            y = y + pair[0] * pair[1]
        z: torch.Tensor = y * scale if self.lstm is None else self.lstm(y)[0]
        return -z if negate else z


X = torch.zeros(1, 3, 6, 6)


def test_export_for_quantization_keeps_names(tmp_path: Path) -> None:
    model = Named()
    inputs = amct.export_for_quantization(model, tmp_path / "m.onnx", X, ["x"], None, {"x": [0]})
    proto = onnx.load(tmp_path / "m.onnx")
    assert [value.name for value in inputs] == _inputs(proto)
    assert _inputs(proto)[0] == "x"
    names = {tensor.name for tensor in proto.graph.initializer}
    assert {"conv.weight", "bn.running_mean", "blocks.1.0.weight", "fc.weight", "fc.bias", "tied.bias"} <= names
    assert "BatchNormalization" in [node.op_type for node in proto.graph.node]
    assert model.training
    # The weights of an RNN layer exist in the file only if they are folded.
    model.lstm = nn.LSTM(8, 4, batch_first=True)
    amct.export_for_quantization(model, tmp_path / "m.onnx", X)
    proto = onnx.load(tmp_path / "m.onnx")
    constants = {tensor.name for tensor in proto.graph.initializer}
    (lstm,) = [node for node in proto.graph.node if node.op_type == "LSTM"]
    assert set(lstm.input[1:3]) <= constants


def test_module_manifest(tmp_path: Path) -> None:
    model = Named()
    model.lstm = nn.GRU(8, 4, num_layers=2, dropout=0.5, bidirectional=True)
    amct.write_manifest(model, tmp_path / "m.json")
    manifest = json_format.Parse((tmp_path / "m.json").read_text(), module_manifest_pb2.ModuleManifest())
    modules = {module.name: module for module in manifest.modules}
    assert list(modules) == [name for name, _ in model.named_modules() if name]
    assert modules["blocks.1.0"].type == "Conv2d"
    assert modules["blocks.1.0"].groups == 2
    assert modules["blocks.1.0"].padding_mode == "zeros"
    assert list(modules["conv"].dilation) == [1, 1]
    assert list(modules["conv"].parameters[0].shape) == [8, 3, 3, 3]
    assert modules["tied"].parameters[0].identity == "fc.weight"
    assert modules["tied"].parameters[1].identity == "tied.bias"
    gru = modules["lstm"]
    assert (gru.num_layers, gru.bidirectional, gru.hidden_size, gru.dropout) == (2, True, 4, 0.5)


def _arrays(server: ProtocolServer, request: Any) -> dict[str, Any]:
    archive = server.files[f"{request.workspace}/files/{request.calibration_data.path}"]
    with np.load(io.BytesIO(archive)) as members:
        return dict(members)


@pytest.mark.usefixtures("session")
def test_documented_flow_of_post_training_quantization(server: ProtocolServer, tmp_path: Path) -> None:
    config, modified, record = (str(tmp_path / "out" / name) for name in ("c.json", "m.onnx", "r.txt"))
    net = Named()
    amct.create_quant_config(config, net, X, skip_layers=["fc"], batch_num=2, activation_offset=False)
    assert server.requests[-1].module_manifest
    assert list(server.requests[-1].skip_layers) == ["fc"]
    model = amct.quantize_model(
        config, modified, record, net, X, input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}}
    )
    assert Path(record).read_bytes() == b"weights + nothing"
    assert not server.requests[-1].HasField("sample_data")
    model.eval()
    assert not net.training
    batches = [torch.randn(n, 3, 6, 6) for n in (2, 3, 4)]
    for i, x in enumerate(batches):
        assert torch.equal(model(x), net(x))
        done = Path(record).read_bytes().startswith(b"activations")
        assert done == (i >= 1)  # with batch number batch_num, and not again
    arrays = _arrays(server, server.requests[-1])
    assert arrays["x__0"].shape == (2, 3, 6, 6)
    (scale,) = [name for name in arrays if name.endswith("__0") and name != "x__0"]  # numbers are inputs too
    assert arrays[scale] == 1
    assert arrays[scale].dtype == np.float64
    assert np.array_equal(arrays["x__1"], batches[1].numpy())
    assert server.requests[-1].model  # RNN layers are calibrated with their float weights
    amct.save_model(modified, record, f"{tmp_path}/out/m")
    assert not server.workspaces


@pytest.mark.usefixtures("session")
def test_batches_of_other_sizes_than_the_models(server: ProtocolServer, tmp_path: Path) -> None:
    """Without dynamic axes the modified model takes one size only; the calibration takes any."""
    config = tmp_path / "c.json"
    config.write_text('{"batch_num": 1}')
    record = tmp_path / "r.txt"
    model = amct.quantize_model(str(config), str(tmp_path / "m.onnx"), str(record), Named().eval(), X)
    before = (tmp_path / "m.onnx").read_bytes()
    model(torch.zeros(5, 3, 6, 6))
    assert type(server.requests[-1]).__name__ == "QuantizeModelRequest"
    sent = onnx.load_from_string(server.files[f"{server.requests[-1].workspace}/files/{server.requests[-1].model}"])
    assert [dim.dim_value for dim in sent.graph.input[0].type.tensor_type.shape.dim] == [0, 3, 6, 6]
    assert record.read_bytes() == b"weights + "  # from the record as it was before
    assert record.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "m.onnx").read_bytes() == before


@pytest.mark.usefixtures("session")
def test_arguments_of_forward_are_bound_to_inputs(server: ProtocolServer, tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text('{"batch_num": 2, "fc": {"weight_quant_params": {"wts_algo": "ada_quantize"}}}')
    pair = (torch.ones(1, 16, 8), torch.ones(1, 16, 8))
    model = amct.quantize_model(
        str(config),
        str(tmp_path / "m.onnx"),
        str(tmp_path / "r.txt"),
        Named().eval(),
        (X, pair, 2.0),
        ["x", "a", "b", "s"],
    )
    assert server.requests[-1].HasField("sample_data")
    model(X, scale=4.0, pair=[pair[0], 3 * pair[1]])
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((X, pair, 2.0, True), "negate=True; in input_data it is False"),
        ((X, None, 2.0), "with the arguments x, pair, scale"),
        ((X, {"a": pair[0]}, 2.0), "tensors in a dict"),
        ((X, (pair[0], pair[1].bfloat16()), 2.0), "bfloat16"),
    ]
    for arguments, text in wrong:
        with pytest.raises(RuntimeError, match=text):
            model(*arguments)
    model(X, pair, 2.0)
    arrays = _arrays(server, server.requests[-1])
    assert sorted(arrays) == [f"{name}__{i}" for name in "abs" for i in (0, 1)] + ["x__0", "x__1"]
    assert arrays["b__0"].max() == 3
    assert arrays["s__0"] == 4


@pytest.mark.usefixtures("session")
def test_a_failed_calibration_is_tried_again(server: ProtocolServer, tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text('{"batch_num": 1}')
    record = tmp_path / "r.txt"
    model = amct.quantize_model(str(config), str(tmp_path / "m.onnx"), str(record), Named().eval(), X)
    server.faults.operation_error = status(3, "not finite", "DATA_NOT_FINITE")
    for _ in range(2):
        with pytest.raises(modelpress.InvalidArgument):
            model(X)
    assert record.read_bytes() == b"weights + nothing"
    server.faults.operation_error = None
    model(X)
    assert record.read_bytes() == b"activations + weights + nothing"
    assert sorted(name.partition("__")[2] for name in _arrays(server, server.requests[-1])) == ["0", "0"]


@pytest.mark.usefixtures("session")
def test_quantize_preprocess(server: ProtocolServer, tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text("{}")
    record = tmp_path / "out" / "r.txt"
    model = amct.quantize_preprocess(str(config), str(record), Named().eval(), X)
    assert record.read_bytes() == b""
    assert record.stat().st_mode & 0o777 == 0o640
    for _ in range(2):
        model(torch.ones(2, 3, 6, 6))
    assert record.read_bytes() == b"balance"
    assert len(server.requests) == 1


class Ignoring(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return torch.relu(x)


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("function", "change", "error", "text"),
    [
        ("create_quant_config", {"config_file": 1}, TypeError, "argument config_file must be .*str"),
        ("create_quant_config", {"config_file": ""}, ValueError, "empty string is an invalid value for config_file"),
        ("create_quant_config", {"model": None}, TypeError, "argument model must be .*Module"),
        ("create_quant_config", {"skip_layers": "fc"}, TypeError, "skip_layers must be .*list"),
        ("create_quant_config", {"batch_num": "1"}, TypeError, "batch_num must be .*int"),
        ("create_quant_config", {"batch_num": True}, TypeError, "batch_num must be .*int"),
        ("create_quant_config", {"batch_num": 0}, ValueError, "batch_num must be greater than 0"),
        ("create_quant_config", {"activation_offset": 1}, TypeError, "activation_offset must be .*bool"),
        ("create_quant_config", {"config_defination": "missing.cfg"}, OSError, "missing.cfg"),
        ("create_quant_config", {"input_data": [X]}, RuntimeError, "must be tuple or torch.Tensor"),
        ("quantize_preprocess", {"config_file": "missing.json"}, OSError, "missing.json"),
        ("quantize_preprocess", {"record_file": None}, TypeError, "record_file must be .*str"),
        ("quantize_model", {"config_file": "missing.json"}, OSError, "missing.json"),
        ("quantize_model", {"modfied_onnx_file": None}, TypeError, "modfied_onnx_file must be .*str"),
        ("quantize_model", {"dynamic_axes": {"x": [-1]}}, RuntimeError, "negative"),
        ("quantize_model", {"input_names": [1]}, RuntimeError, "input_names type must be list"),
        ("quantize_model", {"model": Ignoring(), "input_data": (X, X)}, RuntimeError, "does not use"),
    ],
)
def test_arguments_of_post_training_quantization(
    server: ProtocolServer, function: str, change: Any, error: type[Exception], text: str, tmp_path: Path
) -> None:
    (tmp_path / "c.json").write_text("{}")
    arguments: dict[str, Any] = {"config_file": str(tmp_path / "c.json"), "model": Named(), "input_data": X}
    if function != "create_quant_config":
        arguments["record_file"] = str(tmp_path / "r.txt")
    if function == "quantize_model":
        arguments["modfied_onnx_file"] = str(tmp_path / "m.onnx")
    with pytest.raises(error, match=text):
        getattr(amct, function)(**arguments | change)
    assert not server.requests


def test_the_package_needs_no_torch() -> None:
    script = "import modelpress, sys; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
