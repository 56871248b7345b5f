"""The drop-in functions for retraining, but for what the service decides."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modelpress
import modelpress.torch as amct
import onnx
import pytest
import torch
from google.protobuf import json_format
from protocol_server import ProtocolServer, status
from qat_cases import GOLDEN, Case
from safetensors.torch import load as load_safetensors
from torch import nn

X = torch.zeros(1, 3, 8, 8)
KEPT = [1, 2]


class Net(nn.Module):
    """A convolution that can lose channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.conv2(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))
        return y


def _tensor(name: str, axis: int = 0) -> dict[str, Any]:
    return {"name": name, "axis": axis, "kept": KEPT, "size": 4}


PRUNE_PLAN: dict[str, Any] = {
    "cuts": [
        {"module": "conv1", "type": "Conv2d", "tensors": [_tensor("weight")], "attributes": {"out_channels": 2}},
        {
            "module": "bn1",
            "type": "BatchNorm2d",
            "tensors": [_tensor(name) for name in ("weight", "bias", "running_mean", "running_var")],
            "attributes": {"num_features": 2},
        },
        {"module": "conv2", "type": "Conv2d", "tensors": [_tensor("weight", 1)], "attributes": {"in_channels": 2}},
    ]
}
RECORD = b"""prune_record {
  producer {
    name: "conv1"
  }
}
"""


@pytest.fixture
def session(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> amct.Session:
    """A connection, and a folder with the files that calls read."""
    monkeypatch.setattr(amct, "_default_session", None)  # put back after connect()
    monkeypatch.chdir(tmp_path)
    Path("prune.cfg").write_text("prune_config {}")
    Path("config.json").write_text("{}")
    Path("record.txt").write_bytes(RECORD)
    server.rewrite_plan = json.dumps(PRUNE_PLAN).encode()
    server.record = RECORD
    return amct.connect(server.target)


def sent(server: ProtocolServer, path: str, request: Any = None) -> bytes:
    request = request or server.requests[-1]
    return server.files[f"{request.workspace}/files/{path}"]


def sent_model(server: ProtocolServer) -> Any:
    return onnx.load_from_string(sent(server, server.requests[-1].model))


def is_marked(model: Any) -> bool:
    return any(node.op_type == "QuantIdentity" for node in model.graph.node)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """The same state: masks and scales that are not known yet are NaN."""
    return list(a) == list(b) and all(torch.allclose(a[name], b[name], 0, 0, equal_nan=True) for name in a)


def frozen(model: nn.Module) -> Callable[[], bool]:
    """Tells later whether a module is still what it is now."""
    state = copy.deepcopy(model.state_dict())
    flags = [(id(module), module.training) for module in model.modules()]

    def unchanged() -> bool:
        return same(model.state_dict(), state) and flags == [
            (id(module), module.training) for module in model.modules()
        ]

    return unchanged


@pytest.mark.usefixtures("session")
def test_create_prune_retrain_model(server: ProtocolServer) -> None:
    net = Net().eval()
    net.bn1.train()
    unchanged = frozen(net)
    model = amct.create_prune_retrain_model(net, X, "prune.cfg", "new/record.txt")
    assert unchanged()
    assert isinstance(model, Net)
    assert all(module.training for module in model.modules())
    assert torch.equal(model.conv1.weight, net.conv1.weight[KEPT])
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert net.conv1.weight.grad is None
    assert Path("new/record.txt").read_bytes() == RECORD
    assert Path("new/record.txt").stat().st_mode & 0o777 == 0o640
    request = server.requests[-1]
    assert request.plan_only
    assert request.module_manifest
    assert sent(server, request.config_definition) == b"prune_config {}"
    assert is_marked(sent_model(server))
    assert not request.options.reference_defects
    amct.connect(server.target, reference_defects=True)
    amct.create_prune_retrain_model(net, X, "prune.cfg", "new/record.txt")
    assert server.requests[-1].options.reference_defects


@pytest.mark.usefixtures("session")
def test_a_failure_leaves_files_as_they_were(server: ProtocolServer) -> None:
    Path("record.txt").write_bytes(b"precious")
    server.rewrite_plan = json.dumps({"cuts": [{"module": "conv9", "type": "Conv2d"}]}).encode()
    with pytest.raises(RuntimeError, match=r"the rewrite plan does not fit the model: .*conv9"):
        amct.create_prune_retrain_model(Net(), X, "prune.cfg", "record.txt")
    server.faults.operation_error = status(3, "prune_ratio is missing", "CONFIG_INVALID")
    with pytest.raises(modelpress.InvalidArgument, match="prune_ratio is missing"):
        amct.create_prune_retrain_model(Net(), X, "prune.cfg", "record.txt")
    assert Path("record.txt").read_bytes() == b"precious"
    assert sorted(path.name for path in Path().iterdir()) == ["config.json", "prune.cfg", "record.txt"]


class WithHead(Net):
    """A head that only training uses, on channels that are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.head(self.bn1(self.conv1(x)))
        return super().forward(x)


@pytest.mark.usefixtures("session")
def test_layers_in_front_of_what_only_training_uses(server: ProtocolServer, caplog: pytest.LogCaptureFixture) -> None:
    """They are left out; this server cuts them all the same."""
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match=r"head fails .* in front of it, conv1, out of the pruning"):
        amct.create_prune_retrain_model(WithHead().eval(), x, "prune.cfg", "new.txt")
    assert "conv1 keep their channels" in caplog.text
    sent_definitions = [sent(server, request.config_definition, request) for request in server.requests]
    assert sent_definitions == [b"prune_config {}", b'prune_config {}\nregular_prune_skip_layers: "conv1"']
    assert not Path("new.txt").exists()


def checkpoints(model: nn.Module) -> Iterator[tuple[str, str | None]]:
    """The forms of a checkpoint, and the state_dict_name that each needs."""
    state = model.state_dict()
    prefixed = {f"module.{name}": value for name, value in state.items()}
    forms: list[tuple[Any, str | None]] = [
        (state, None),
        (prefixed, ""),
        ({"state_dict": state, "epoch": 3}, "state_dict"),
        ({"state_dict": prefixed}, "state_dict"),
    ]
    for i, (content, name) in enumerate(forms):
        torch.save(content, f"{i}.pth")
        yield f"{i}.pth", name
    torch.save(state, "old.pth", _use_new_zipfile_serialization=False)
    yield "old.pth", None


@pytest.mark.usefixtures("session")
def test_restore_prune_retrain_model(server: ProtocolServer) -> None:
    trained = amct.create_prune_retrain_model(Net(), X, "prune.cfg", "record.txt")
    trained(torch.randn(4, 3, 8, 8))
    before = Path("record.txt").stat().st_mtime_ns
    x = torch.randn(2, 3, 8, 8)
    for file, name in checkpoints(trained):
        net = Net()
        unchanged = frozen(net)
        model = amct.restore_prune_retrain_model(net, (X,), "record.txt", "prune.cfg", file, name)
        assert unchanged()
        assert all(module.training for module in model.modules())
        assert torch.equal(model.eval()(x), copy.deepcopy(trained).eval()(x))
        request = server.requests[-1]
        assert sent(server, request.record_file) == RECORD
        assert not request.weights
        assert request.plan_only
    assert Path("record.txt").stat().st_mtime_ns == before


class Pickled:
    """Something that must not come out of a checkpoint."""


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("content", "name", "error", "text"),
    [
        ({"a": 1}, "nokey", KeyError, "The pth_file has no key name: nokey"),
        ({"state_dict": {}}, "state_dict", KeyError, "The pth_file has no key name: state_dict"),
        ([1], "nokey", KeyError, "no key name"),
        ({"epoch": 3}, "epoch", RuntimeError, "holds a int instead of a state_dict"),
        ([1], None, RuntimeError, "holds a list instead of a state_dict"),
        (Net().state_dict(), None, RuntimeError, "size mismatch for conv1.weight"),
        ({"state_dict": Net().state_dict()}, None, RuntimeError, "Missing key"),
        (Pickled(), None, pickle.UnpicklingError, "weights_only"),
    ],
)
def test_checkpoints_that_do_not_fit(content: Any, name: str | None, error: type[Exception], text: str) -> None:
    torch.save(content, "c.pth")
    with pytest.raises(error, match=text):
        amct.restore_prune_retrain_model(Net(), X, "record.txt", "prune.cfg", "c.pth", name)


@pytest.mark.usefixtures("session")
def test_save_prune_retrain_model(server: ProtocolServer) -> None:
    model = amct.create_prune_retrain_model(Net(), X, "prune.cfg", "record.txt")
    unchanged = frozen(model)
    amct.save_prune_retrain_model(model, "out/m", X, ["in"], ["out"], {"in": [0]})
    assert unchanged()
    assert sent(server, server.requests[-1].record_file) == RECORD
    exported = sent_model(server)
    assert not is_marked(exported)
    assert [value.name for value in exported.graph.input][:1] == ["in"]
    assert Path("out/m_deploy_model.onnx").exists()
    amct.save_prune_retrain_model(Net(), "out/m", X)  # of somewhere else
    assert not server.requests[-1].record_file


@pytest.mark.usefixtures("session")
def test_copies_keep_what_was_done_to_the_module(server: ProtocolServer) -> None:
    model = amct.create_prune_retrain_model(Net(), X, "prune.cfg", "record.txt")
    assert not [name for name in model.state_dict() if "modelpress" in name]
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nn.DataParallel(model)):
        amct.save_prune_retrain_model(again, "out/m", X)
        assert sent(server, server.requests[-1].record_file) == RECORD


@pytest.mark.usefixtures("session")
def test_distributed_modules(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        distributed = nn.parallel.DistributedDataParallel(Net())
        model = amct.create_prune_retrain_model(distributed, X, "prune.cfg", "record.txt")
        assert isinstance(model, Net)
        trained = nn.parallel.DistributedDataParallel(model)
        torch.save(trained.state_dict(), "c.pth")
        again = amct.restore_prune_retrain_model(distributed, X, "record.txt", "prune.cfg", "c.pth")
        assert isinstance(again, Net)
        assert torch.equal(again.conv1.weight, model.conv1.weight)
        amct.save_prune_retrain_model(trained, "out/m", X)
    finally:
        torch.distributed.destroy_process_group()


# ---- quantization-aware training, with the plans of golden cases ----


Q01 = Case("q01_share_bn")
Q01_PLAN = json_format.MessageToJson(Q01.plan, preserving_proto_field_name=True).encode()


@pytest.mark.usefixtures("session")
def test_quantization_aware_training(server: ProtocolServer) -> None:
    server.rewrite_plan, server.record = Q01_PLAN, b""
    net, x = Q01.net().eval(), tuple(Q01.inputs("dummy"))
    unchanged = frozen(net)
    amct.create_quant_retrain_config("out/c.json", net, x)
    assert Path("out/c.json").read_bytes() == b'{"batch_num": 1}'
    assert is_marked(sent_model(server))
    model = amct.create_quant_retrain_model("config.json", net, "out/record.txt", x)
    assert unchanged()
    assert Path("out/record.txt").read_bytes() == b""
    assert Path("out/record.txt").stat().st_mode & 0o777 == 0o640
    assert sent(server, server.requests[-1].config_file) == b"{}"
    assert list(model.state_dict()) == Q01.info["state_dict_keys_in_order"]
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(*[torch.randn_like(value) for value in x]).square().sum().backward()
        optimizer.step()
    with pytest.raises(RuntimeError, match="record_file is empty, no layers to be quantized"):
        amct.save_quant_retrain_model("config.json", model, "out/record.txt", "out/m", x)
    model.eval()
    model(*x)
    record = Path("out/record.txt").read_bytes()
    assert record.count(b"scale_d") == len(json.loads(server.rewrite_plan)["layers"])
    torch.save({"model": model.state_dict()}, "c.pth")
    unchanged = frozen(model)
    amct.save_quant_retrain_model("config.json", model, "out/record.txt", "out/m", x, ["in"], ["out"], {"in": {0: "n"}})
    assert unchanged()
    request = server.requests[-1]
    exported = sent_model(server)
    assert is_marked(exported)
    assert not [tensor.name for tensor in exported.graph.initializer if "quant_module" in tensor.name]
    assert exported.graph.input[0].name == "in"
    assert exported.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    assert sent(server, request.record_file) == record
    assert [layer["module"] for layer in json.loads(sent(server, request.rewrite_plan))["layers"]] == [
        layer["module"] for layer in json.loads(server.rewrite_plan)["layers"]
    ]
    assert json.loads(sent(server, request.module_manifest))["modules"][0]["type"] != "RetrainQuant"

    again = amct.restore_quant_retrain_model("config.json", net, "out/record.txt", x, "c.pth", "model")
    assert Path("out/record.txt").read_bytes() == b""
    assert not server.requests[-1].weights
    assert same(again.state_dict(), model.state_dict())
    again.eval()
    assert torch.equal(again(*x), model(*x))
    assert Path("out/record.txt").read_bytes() == record


@pytest.mark.usefixtures("session")
def test_retrained_modules_are_refused(server: ProtocolServer) -> None:
    server.rewrite_plan, server.record = Q01_PLAN, b""
    x = tuple(Q01.inputs("dummy"))
    model = amct.create_quant_retrain_model("config.json", Q01.net(), "r.txt", x)
    for call in (
        lambda: amct.create_quant_retrain_config("c.json", model, x),
        lambda: amct.create_quant_retrain_model("config.json", model, "r.txt", x),
        lambda: amct.create_prune_retrain_model(model, x, "prune.cfg", "r.txt"),
        lambda: amct.create_compressed_retrain_model(model, x, "prune.cfg", "r.txt"),
    ):
        with pytest.raises(RuntimeError, match=r"quant layers are in the model \{'c1': 'RetrainQuant'"):
            call()


@pytest.mark.usefixtures("session")
def test_compressed_flow_of_pruning_alone(server: ProtocolServer) -> None:
    """The two files are the plain export, as those of save_prune_retrain_model."""
    net = Net().eval()
    model = amct.create_compressed_retrain_model(net, X, "prune.cfg", "new/record.txt")
    assert model.training
    assert not net.training
    assert Path("new/record.txt").read_bytes() == RECORD
    torch.save(model.state_dict(), "c.pth")
    again = amct.restore_compressed_retrain_model(Net(), X, "new/record.txt", "prune.cfg", "c.pth")
    assert again.training
    assert torch.equal(again.eval()(X), copy.deepcopy(model).eval()(X))
    amct.save_compressed_retrain_model(model, "new/record.txt", "out/m", X, ["in"])
    assert not is_marked(sent_model(server))
    assert sent_model(server).graph.input[0].name == "in"
    amct.save_compressed_retrain_model(Net(), "new/record.txt", "out/m", X)  # by the record alone
    assert not is_marked(sent_model(server))
    Path("factors.txt").write_text('record { key: "fc" value { scale_d: 1 } }')
    amct.save_compressed_retrain_model(Net(), "factors.txt", "out/m", X)
    assert is_marked(sent_model(server))


@pytest.mark.usefixtures("session")
def test_compressed_flow_with_quantization(server: ProtocolServer) -> None:
    server.rewrite_plan, server.record = Q01_PLAN, b""
    net, x = Q01.net().eval(), tuple(Q01.inputs("dummy"))
    model = amct.create_compressed_retrain_model(net, x, "prune.cfg", "r.txt")
    assert not model.training  # nothing was pruned
    Path("pruned.txt").write_bytes(RECORD)
    for file in ("r.txt", "pruned.txt"):
        with pytest.raises(RuntimeError, match=r"record_file is empty, .*inference process is omitted"):
            amct.save_compressed_retrain_model(model, file, "out/m", x)
    Path("broken.txt").write_bytes(b"record {")
    with pytest.raises(ValueError, match=r"record_file: broken\.txt is no record file"):
        amct.save_compressed_retrain_model(model, "broken.txt", "out/m", x)
    model.train()(*x)
    model.eval()(*x)
    amct.save_compressed_retrain_model(model, "r.txt", "out/m", x)
    assert is_marked(sent_model(server))
    assert sent(server, server.requests[-1].record_file) == Path("r.txt").read_bytes()


# ---- arguments ----

CALLS: dict[str, dict[str, Any]] = {
    "create_prune_retrain_model": {"input_data": X, "config_defination": "prune.cfg", "record_file": "r.txt"},
    "restore_prune_retrain_model": {
        "input_data": X,
        "record_file": "record.txt",
        "config_defination": "prune.cfg",
        "pth_file": "c.pth",
        "state_dict_name": None,
    },
    "save_prune_retrain_model": {"save_path": "out/m", "input_data": X},
    "create_quant_retrain_config": {"config_file": "c.json", "input_data": X, "config_defination": None},
    "create_quant_retrain_model": {"config_file": "config.json", "record_file": "r.txt", "input_data": X},
    "restore_quant_retrain_model": {
        "config_file": "config.json",
        "record_file": "r.txt",
        "input_data": X,
        "pth_file": "c.pth",
        "state_dict_name": None,
    },
    "save_quant_retrain_model": {
        "config_file": "config.json",
        "record_file": "record.txt",
        "save_path": "out/m",
        "input_data": X,
    },
    "create_compressed_retrain_model": {"input_data": X, "config_defination": "prune.cfg", "record_file": "r.txt"},
    "restore_compressed_retrain_model": {
        "input_data": X,
        "record_file": "record.txt",
        "config_defination": "prune.cfg",
        "pth_file": "c.pth",
        "state_dict_name": None,
    },
    "save_compressed_retrain_model": {"record_file": "record.txt", "save_path": "out/m", "input_data": X},
    "auto_channel_prune_search": {
        "config": "prune.cfg",
        "input_data": [X, torch.zeros(1, 2)],
        "output_cfg": "out.cfg",
        "sensitivity": "TaylorLossSensitivity",
        "search_alg": "GreedySearch",
    },
}
OPTIONAL = {"state_dict_name": str, "input_names": list, "output_names": list, "dynamic_axes": dict}


def wrong_types() -> Iterator[tuple[str, str, str]]:
    """(function, argument, type in the message) of every argument whose type is checked."""
    for function, arguments in CALLS.items():
        yield function, "model", "<class 'torch.nn.modules.module.Module'>"
        names = [*arguments]
        if function.startswith("save"):
            names += ["input_names", "output_names", "dynamic_axes"]
        for name in names:
            if name in {"sensitivity", "search_alg"} or (name == "input_data" and not function.startswith("auto")):
                continue
            kind: Any = OPTIONAL.get(name, list if name == "input_data" else str)
            optional = name in OPTIONAL or (function, name) == ("create_quant_retrain_config", "config_defination")
            yield function, name, f"({kind}, <class 'NoneType'>)" if optional else f"{kind}"


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(("function", "argument", "kind"), wrong_types())
def test_types_of_arguments(server: ProtocolServer, function: str, argument: str, kind: str) -> None:
    torch.save(Net().state_dict(), "c.pth")
    with pytest.raises(TypeError) as caught:
        getattr(amct, function)(**{"model": Net()} | CALLS[function] | {argument: 1})
    assert str(caught.value).startswith(f"Func {function} argument {argument} must be {kind}")
    assert not server.workspaces
    assert not server.deleted


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (function, argument)
        for function, arguments in CALLS.items()
        for argument, value in arguments.items()
        if isinstance(value, str) and Path(value).name in {"prune.cfg", "config.json", "record.txt", "c.pth"}
    ],
)
def test_files_that_are_not_there(server: ProtocolServer, function: str, argument: str) -> None:
    torch.save(Net().state_dict(), "c.pth")
    with pytest.raises(FileNotFoundError, match=rf"{argument}: none.txt does not exist"):
        getattr(amct, function)(**{"model": Net()} | CALLS[function] | {argument: "none.txt"})
    assert not server.deleted


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("function", [name for name in CALLS if name != "auto_channel_prune_search"])
def test_input_data_must_be_a_tuple(server: ProtocolServer, function: str) -> None:
    torch.save(Net().state_dict(), "c.pth")
    with pytest.raises(RuntimeError, match=r"^input data type must be tuple or torch\.Tensor!"):
        getattr(amct, function)(**{"model": Net()} | CALLS[function] | {"input_data": [X]})
    assert not server.deleted


# Situations of the error catalogue that this client recognises by itself: the change of the arguments.
CATALOGUE: dict[str, dict[str, Any]] = {
    "model is a bare layer": {"model": nn.Conv2d(3, 4, 3)},
    "config_file not a string": {"config_file": 1},
    "input_data is a list": {"input_data": [X]},
    "model without wrappers": {},
    'record_file ""': {"record_file": ""},
    "config_file ends with /": {"config_file": "config.json/"},
    "input_data list": {"input_data": [X]},
    "config_file int": {"config_file": 1},
    "dynamic_axes negative key": {"dynamic_axes": {"in": {-1: "n"}}},
    "dynamic_axes negative entry": {"dynamic_axes": {"in": [-1]}},
    "dynamic_axes string entry": {"dynamic_axes": {"in": ["0"]}},
    "dynamic_axes value is a string": {"dynamic_axes": {"in": "0"}},
    "dynamic_axes int key": {"dynamic_axes": {1: [0]}},
    "dynamic_axes dict value int": {"dynamic_axes": {"in": {0: 1}}},
    "dynamic_axes dict key str": {"dynamic_axes": {"in": {"0": "n"}}},
    "dynamic_axes tuple value": {"dynamic_axes": {"in": (0,)}},
    "dynamic_axes not a dict": {"dynamic_axes": [0]},
    "input_names not strings": {"input_names": [1]},
    "input_names not a list": {"input_names": "in"},
    "float model and empty record": {"record_file": "empty.txt"},
}
ERRORS = {
    (entry["api"], entry["situation"]): entry
    for entry in json.loads((GOLDEN / "errors" / "case.json").read_text())["entries"]
    if entry["situation"] in CATALOGUE
}


def test_the_catalogue_has_all_situations() -> None:
    assert {situation for _, situation in ERRORS} == set(CATALOGUE)


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(("function", "situation"), ERRORS)
def test_golden_errors(server: ProtocolServer, function: str, situation: str) -> None:
    Path("empty.txt").touch()
    entry = ERRORS[function, situation]
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        getattr(amct, function)(**{"model": Net()} | CALLS[function] | CATALOGUE[situation])
    assert type(caught.value).__name__ == entry["type"]
    assert str(caught.value).startswith(entry["message"])
    assert not server.deleted


@pytest.mark.usefixtures("session")
def test_prefix_of_save_path() -> None:
    for function in ("save_prune_retrain_model", "save_quant_retrain_model", "save_compressed_retrain_model"):
        with pytest.raises(ValueError, match="233"):
            getattr(amct, function)(**{"model": Net()} | CALLS[function] | {"save_path": "a" * 242})


# ---- search ----


@pytest.mark.usefixtures("session")
def test_auto_channel_prune_search(server: ProtocolServer) -> None:
    torch.manual_seed(1)
    net = Net().train()
    net.conv1.weight.requires_grad_(False)
    unchanged = frozen(net)
    data, label = torch.randn(3, 3, 8, 8), torch.randn(3, 2)
    amct.auto_channel_prune_search(
        net, "prune.cfg", [data, label], "out/found.cfg", "TaylorLossSensitivity", "GreedySearch"
    )
    assert unchanged()
    assert all(parameter.grad is None for parameter in net.parameters())
    request = server.requests[-1]
    found = load_safetensors(sent(server, request.sensitivities))
    assert Path("out/found.cfg").read_bytes() == b"ratios of " + sent(server, request.sensitivities)
    assert is_marked(sent_model(server))
    assert sorted(found) == ["conv1", "conv2", "fc"]
    reference = copy.deepcopy(net).eval().requires_grad_(True)
    (reference(data[:1]) - label[:1]).abs().mean().backward()
    for name, value in found.items():
        weight = reference.get_submodule(name).weight
        assert value.dtype == torch.float32
        assert torch.equal(value, (weight * weight.grad).abs().flatten(1).sum(1).detach())


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"input_data": (X, X)}, TypeError, "input_data must be <class 'list'>"),
        ({"input_data": [X]}, ValueError, r"input_data must be \[data, label\]"),
        ({"input_data": [X, 1]}, ValueError, r"input_data must be \[data, label\]"),
        ({"sensitivity": "Other"}, ValueError, "sensitivity must be 'TaylorLossSensitivity', not 'Other'"),
        ({"search_alg": object()}, ValueError, "search_alg must be 'GreedySearch', not <object"),
        ({"output_cfg": "out/"}, ValueError, "output_cfg"),
    ],
)
def test_arguments_of_auto_channel_prune_search(
    server: ProtocolServer, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        amct.auto_channel_prune_search(**{"model": Net()} | CALLS["auto_channel_prune_search"] | change)
    assert not server.deleted


@pytest.mark.usefixtures("session")
def test_search_with_several_outputs() -> None:
    class Pair(Net):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), x

    with pytest.raises(RuntimeError, match=r"forward must return one tensor .* not a tuple"):
        amct.auto_channel_prune_search(**{"model": Pair()} | CALLS["auto_channel_prune_search"])
