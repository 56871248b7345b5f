"""Exports with marks, against those of the reference."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from golden_cuts import filter_cuts
from modelpress.torch_marks import export_with_marks
from modelpress.torch_rewrite import apply_cuts
from qat_cases import FLOWS, Case
from torch import nn

X = torch.zeros(1, 3, 6, 6)


def same_file(written: Path, golden: Path) -> bool:
    """Byte for byte; another version of torch than the golden file's has other bytes but the same graph."""
    if written.read_bytes() == golden.read_bytes():
        return True
    models = [onnx.load(written), onnx.load(golden)]
    if models[0].producer_version == models[1].producer_version:
        return False
    nodes = [[(node.op_type, node.name, list(node.input)) for node in model.graph.node] for model in models]
    return nodes[0] == nodes[1]


@pytest.mark.parametrize("name", FLOWS)
def test_golden_export_of_create(name: str, tmp_path: Path) -> None:
    case = Case(name)
    export_with_marks(case.float_net(), tmp_path / "m.onnx", tuple(case.inputs("dummy")))
    assert same_file(tmp_path / "m.onnx", case.folder / "create.onnx")


def stripped_state(case: Case, net: nn.Module) -> dict[str, torch.Tensor]:
    """The trained float network's state, out of the wrapped one's."""
    absorbed = {layer.bn: layer.module for layer in case.plan.layers if layer.HasField("bn")}
    trained = case.arrays("state") | case.arrays("state_eval_diff")  # an inference refreshes masks
    state = {}
    for name in net.state_dict():
        module, _, key = name.rpartition(".")
        candidates = [
            name,
            f"{absorbed.get(module)}.bn_module.{key}",
            f"{module}.quant_module.replaced_module.{key}",
            f"{module}.replaced_module.{key}",
        ]
        (found,) = [candidate for candidate in candidates if candidate in trained]
        value = torch.from_numpy(trained[found])
        mask = found.rpartition(".replaced_module.")[0] + ".wts_mask"
        if key == "weight" and mask in trained and not np.isnan(trained[mask]).any():
            value = value * torch.from_numpy(trained[mask])
        state[name] = value
    return state


@pytest.mark.parametrize("name", FLOWS)
def test_golden_export_of_save(name: str, tmp_path: Path) -> None:
    case = Case(name)
    net = case.float_net()
    apply_cuts(net, filter_cuts(case, net))
    net.load_state_dict(stripped_state(case, net))
    export_with_marks(net, tmp_path / "m.onnx", tuple(case.inputs("dummy")))
    assert same_file(tmp_path / "m.onnx", case.folder / "strip.onnx")


def marks(path: Path) -> list[tuple[str, str]]:
    """(op_name, module_type) in the order of the graph."""
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "QuantIdentity"]
    assert all(node.domain == "custom_op_domain" for node in nodes)
    values = [{attribute.name: attribute.s.decode() for attribute in node.attribute} for node in nodes]
    return [(value["op_name"], value["module_type"]) for value in values]


class Conv(nn.Conv2d):
    """A subclass, which is no layer."""


class Leaky(nn.LeakyReLU):
    """A subclass of an activation, which is marked."""


class Net(nn.Module):
    """All sorts of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
        self.sync = nn.SyncBatchNorm(4)
        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU6(), Leaky(), nn.Sigmoid(), nn.Tanh(), nn.Softmax(1), nn.GELU()])
        self.pool = nn.AvgPool2d(2)
        self.own = Conv(4, 4, 1)
        self.reflected = nn.Conv1d(4, 4, 3, padding=1, padding_mode="reflect")
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.deep_rnn = nn.GRU(4, 4, num_layers=2, batch_first=True)
        self.fc = nn.Linear(4, 4)
        self.alias = self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.sync(self.conv(input=x)) + self.conv.weight.sum()
        for act in self.acts:
            y = act(y)
        y = self.own(self.pool(y)).flatten(2)
        y = self.deep_rnn(self.rnn(self.reflected(y).transpose(1, 2))[0])[0]
        z: torch.Tensor = self.alias(self.fc(y))
        return z


EXPECTED = [
    ("conv", "Conv2d"),
    ("sync", "SyncBatchNorm"),
    ("acts.0", "ReLU"),
    ("acts.1", "ReLU6"),
    ("acts.2", "Leaky"),
    ("acts.3", "Sigmoid"),
    ("acts.4", "Tanh"),
    ("acts.5", "Softmax"),
    ("pool", "AvgPool2d"),
    ("rnn", "GRU"),
    ("fc", "Linear"),
    ("fc", "Linear"),
]


def test_which_modules_are_marked(tmp_path: Path) -> None:
    export_with_marks(Net(), tmp_path / "m.onnx", X)
    assert marks(tmp_path / "m.onnx") == EXPECTED
    export_with_marks(Net(), tmp_path / "m.onnx", X, reference_defects=True)
    assert marks(tmp_path / "m.onnx") == [mark for mark in EXPECTED if mark[0] != "sync"]


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that an export could leave changed."""
    modules = [(id(module), module.training, list(module._modules.items())) for module in model.modules()]
    return [modules, {name: value.clone() for name, value in model.state_dict().items()}.keys()]


def test_the_module_stays_as_it_is(tmp_path: Path) -> None:
    model = Net().train()
    model.sync.eval()
    before, state = snapshot(model), {name: value.clone() for name, value in model.state_dict().items()}
    export_with_marks(model, tmp_path / "m.onnx", X, ["x"], ["y"], {"x": {0: "n"}})
    assert snapshot(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    shape = onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "n"
    with pytest.raises(RuntimeError):
        export_with_marks(model, tmp_path / "m.onnx", torch.zeros(1, 5, 6, 6))
    assert snapshot(model) == before
    with pytest.raises(RuntimeError, match="must be tuple or"):
        export_with_marks(model, tmp_path / "m.onnx", [X])
    assert snapshot(model) == before


def test_a_bare_layer(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^model has no parent module"):
        export_with_marks(nn.Conv2d(3, 4, 3), tmp_path / "m.onnx", X)


class Shapes(nn.Module):
    """Sizes read before and after a pooling: decisions of pruning depend on how they are written into the graph."""

    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 2)
        self.after = after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z = self.pool(y)
        out: torch.Tensor = self.fc(z.view((z if self.after else y).size(0), -1))
        return out


@pytest.mark.parametrize("after", [False, True])
def test_marks_keep_sizes_in_the_graph(after: bool, tmp_path: Path) -> None:
    export_with_marks(Shapes(after=after), tmp_path / "m.onnx", X)
    graph = onnx.load(tmp_path / "m.onnx").graph
    producers = {name: node for node in graph.node for name in node.output}
    (shape,) = [node for node in graph.node if node.op_type == "Shape"]
    assert producers[shape.input[0]].op_type == ("GlobalAveragePool" if after else "Conv")
    assert [node.op_type for node in graph.node if node.op_type in {"Gather", "Unsqueeze", "Concat", "Reshape"}] == [
        "Gather",
        "Unsqueeze",
        "Concat",
        "Reshape",
    ]


@pytest.mark.parametrize("module", [nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(4, affine=False)])
def test_modules_that_need_shapes(module: nn.Module, tmp_path: Path) -> None:
    """The reference fails here."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), module, nn.Conv2d(4, 4, 1))
    before = snapshot(model)
    export_with_marks(model, tmp_path / "m.onnx", X)
    assert [mark for mark in marks(tmp_path / "m.onnx") if mark[1] != "BatchNorm2d"] == [
        ("0", "Conv2d"),
        ("1", "ReLU"),
        ("3", "Conv2d"),
    ]
    assert snapshot(model) == before
