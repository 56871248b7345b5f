"""Cutting channels of torch modules by a rewrite plan."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from golden_cuts import cut_tensor, cuts_of, filter_cuts
from modelpress.torch_record import RecordFile
from modelpress.torch_rewrite import BrokenTrainingError, apply_cuts, apply_plan, copy_model
from modelpress.v1 import rewrite_plan_pb2
from qat_cases import GOLDEN as GOLDEN_QAT
from qat_cases import Case
from torch import nn

GOLDEN_PRUNE = GOLDEN_QAT.parent / "prune"
PRUNE_CASES = sorted(path.parent.name for path in GOLDEN_PRUNE.glob("*/pruned.onnx"))


def cuts_of_layer(name: str, layer: dict[str, Any]) -> list[dict[str, Any]]:
    """What kept_channels.json of a golden case says of a layer."""
    if layer["type"].startswith("BatchNorm"):
        tensors = [
            cut_tensor(key, 0, layer["kept"], layer["channels"])
            for key in ("weight", "bias", "running_mean", "running_var")
        ]
        attributes = {"num_features": len(layer["kept"])}
        return [{"module": name, "type": layer["type"], "tensors": tensors, "attributes": attributes}]
    sizes = {"in": layer["in_channels"], "out": layer["out_channels"]}
    kept = {"in": layer["kept_in"], "out": layer["kept_out"]}
    groups = layer["groups"]
    outs = [cut_tensor("weight", 0, kept["out"], sizes["out"]), cut_tensor("bias", 0, kept["out"], sizes["out"])]
    ins = cut_tensor("weight", 1, kept["in"], sizes["in"], groups)
    if layer["type"] == "ConvTranspose2d":
        outs, ins = [], cut_tensor("weight", 0, kept["in"], sizes["in"])
    depthwise = 1 < groups == sizes["in"]
    unit = "features" if layer["type"] == "Linear" else "channels"
    attributes = {f"in_{unit}": len(kept["in"]), f"out_{unit}": len(kept["out"])}
    if layer["type"] != "Linear":
        attributes["groups"] = layer["groups_after"]
    tensors = [*outs] if depthwise else [*outs, ins]
    return [{"module": name, "type": layer["type"], "tensors": tensors, "attributes": attributes}]


def initializers(path: Path) -> dict[str, Any]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def layers_of_case(kept: dict[str, Any], weights: dict[str, Any]) -> nn.Module:
    """The layers of a golden case, by their names; nothing connects them."""
    root = nn.Module()
    for name, layer in kept.items():
        *parents, last = name.split(".")
        parent = root
        for part in parents:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        bias = f"{name}.bias" in weights
        shape = weights[f"{name}.weight"].shape if f"{name}.weight" in weights else ()
        if layer["type"].startswith("BatchNorm"):
            module: nn.Module = getattr(nn, layer["type"])(layer["channels"])
        elif layer["type"] == "Linear":
            module = nn.Linear(layer["in_channels"], layer["out_channels"], bias)
        else:
            module = getattr(nn, layer["type"])(
                layer["in_channels"], layer["out_channels"], shape[2:] or 1, groups=layer["groups"], bias=bias
            )
        parent.add_module(last, module)
    root.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.items()}, strict=False)
    return root


@pytest.mark.parametrize("case", PRUNE_CASES)
def test_golden_cuts(case: str) -> None:
    """Every parameter that the exporter left its name has the reference's bits after the cut."""
    folder = GOLDEN_PRUNE / case
    kept = json.loads((folder / "kept_channels.json").read_text())
    before, after = initializers(folder / "model.onnx"), initializers(folder / "pruned.onnx")
    names = {name for name in before.keys() & after.keys() if name.rpartition(".")[0] in kept}
    root = layers_of_case(kept, {name: before[name] for name in names})
    apply_cuts(root, cuts_of(*[cut for name, layer in kept.items() for cut in cuts_of_layer(name, layer)]))
    state = root.state_dict()
    assert names
    for name in names:
        assert torch.equal(state[name], torch.from_numpy(after[name].copy())), name
    for name, layer in kept.items():
        if not layer["type"].startswith("BatchNorm") and layer["type"] != "Linear":
            assert root.get_submodule(name).groups == layer["groups_after"]


@pytest.mark.parametrize("name", ["c01_filter_prune_quant", "c04_filter_quant_restore"])
def test_golden_network_after_cuts(name: str) -> None:
    case = Case(name)
    net = case.float_net()
    apply_cuts(net, filter_cuts(case, net))
    after = initializers(case.folder / "create_pruned.onnx")
    state = {name: value for name, value in net.state_dict().items() if "num_batches_tracked" not in name}
    assert {name.replace(".sub_module", "") for name in after} == set(state)
    for key, value in after.items():
        assert np.array_equal(state[key.replace(".sub_module", "")].numpy(), value), key
    net(torch.randn(2, 4, 8, 8)).sum().backward()


def two_convs() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, groups=2, bias=False))


KEPT = [0, 3]
CUTS: list[dict[str, Any]] = [
    {
        "module": "0",
        "type": "Conv2d",
        "tensors": [cut_tensor("weight", 0, KEPT, 4), cut_tensor("bias", 0, KEPT, 4)],
        "attributes": {"out_channels": 2},
    },
    {
        "module": "1",
        "type": "BatchNorm2d",
        "tensors": [cut_tensor(name, 0, KEPT, 4) for name in ("weight", "bias", "running_mean", "running_var")],
        "attributes": {"num_features": 2},
    },
    {
        "module": "2",
        "type": "Conv2d",
        "tensors": [cut_tensor("weight", 1, KEPT, 4, 2), cut_tensor("bias", 0, KEPT, 4)],
        "attributes": {"in_channels": 2},
    },
]


def test_parameters_stay_what_they_are() -> None:
    model = two_convs().to(torch.float64).to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    model(torch.randn(1, 3, 5, 5, dtype=torch.float64)).sum().backward()
    before = dict(model.named_parameters())
    weight = model[0].weight.detach().clone()
    apply_cuts(model, cuts_of(*CUTS))
    for name, parameter in model.named_parameters():
        assert parameter is before[name]
        assert isinstance(parameter, nn.Parameter)
        assert parameter.requires_grad == (name != "0.weight")
        assert parameter.dtype == torch.float64
        assert parameter.grad is None
    assert torch.equal(model[0].weight, weight[KEPT])
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert model[2].weight.shape == (4, 1, 1, 1)
    assert (model[0].out_channels, model[1].num_features, model[2].in_channels) == (2, 2, 2)
    model(torch.randn(2, 3, 5, 5, dtype=torch.float64)).sum().backward()


@pytest.mark.parametrize("kind", ["", "BatchNorm1d", "BatchNorm2d"])
def test_batch_norms_that_the_graph_does_not_tell_apart(kind: str) -> None:
    model = two_convs()
    model[1] = nn.SyncBatchNorm(4)
    cuts = [dict(cut) for cut in CUTS]
    cuts[1]["type"] = kind
    apply_cuts(model, cuts_of(*cuts))
    assert model[1].num_features == 2


def test_a_module_is_cut_several_times() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    weight = model[0].weight.detach().clone()
    cut = {"module": "0", "type": "Linear"}
    first = cut | {"tensors": [cut_tensor("weight", 1, [0, 2, 3, 5], 6)], "attributes": {"in_features": 4}}
    second = cut | {"tensors": [cut_tensor("weight", 1, [1, 2], 4)], "attributes": {"in_features": 2}}
    apply_cuts(model, cuts_of(first, second))
    assert torch.equal(model[0].weight, weight[:, [2, 3]])
    assert model[0].in_features == 2


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.ReLU())
    model[1].weight = model[0].weight
    return model


def cut_linear(module: str, kept: list[int], axis: int = 0) -> dict[str, Any]:
    attributes = {"in_features" if axis else "out_features": len(kept)}
    return {
        "module": module,
        "type": "Linear",
        "tensors": [cut_tensor("weight", axis, kept, 4)],
        "attributes": attributes,
    }


def test_tied_parameters_are_cut_once() -> None:
    model = tied()
    weight = model[0].weight.detach().clone()
    cuts = [cut_linear(module, KEPT, axis) for module in "01" for axis in (0, 1)]
    apply_cuts(model, cuts_of(*cuts))
    assert model[0].weight is model[1].weight
    assert torch.equal(model[0].weight, weight[KEPT][:, KEPT])
    assert model[1].out_features == 2
    assert model(torch.randn(1, 2)).shape == (1, 2)


@pytest.mark.parametrize(
    "cuts",
    [
        [cut_linear("0", KEPT)],
        [cut_linear("0", KEPT), cut_linear("1", [0, 1])],
        [cut_linear("0", KEPT), cut_linear("1", KEPT), cut_linear("1", KEPT, 1)],
        [cut_linear("0", KEPT), cut_linear("0", KEPT, 1), cut_linear("1", KEPT, 1), cut_linear("1", KEPT)],
    ],
)
def test_tied_parameters_that_are_cut_differently(cuts: list[dict[str, Any]]) -> None:
    model = tied()
    with pytest.raises(RuntimeError, match="are one parameter, but are cut differently"):
        apply_cuts(model, cuts_of(*cuts))
    assert model[0].weight.shape == (4, 4)


@pytest.mark.parametrize(
    ("index", "change", "text"),
    [
        (1, {"type": "Conv1d"}, "1 is a BatchNorm2d instead of a Conv1d"),
        (2, {"module": "9"}, "no module '9'"),
        (2, {"type": "Linear"}, "2 is a Conv2d instead of a Linear"),
        (2, {"attributes": {"in_feature": 2}}, "2 has no attribute in_feature"),
        (1, {"tensors": [cut_tensor("weight", 0, KEPT, 5)]}, "1.weight has 4 channels along axis 0 instead of 5"),
        (1, {"tensors": [cut_tensor("weight", 1, KEPT, 4)]}, "1.weight has 1 axes"),
        (1, {"tensors": [cut_tensor("weight", 0, [], 4)]}, "not ascending indices below 4"),
        (1, {"tensors": [cut_tensor("weight", 0, [3, 0], 4)]}, "not ascending indices below 4"),
        (1, {"tensors": [cut_tensor("weight", 0, [0, 4], 4)]}, "not ascending indices below 4"),
        (1, {"tensors": [cut_tensor("weight", 0, [-1, 0], 4)]}, "not ascending indices below 4"),
        (2, {"tensors": [cut_tensor("weight", 1, [0, 1, 3], 4, 2)]}, "3 of 4 input channels cannot be 2 groups"),
        (1, {"tensors": [cut_tensor("training", 0, KEPT, 4)]}, "1.training is no parameter"),
    ],
)
def test_cuts_that_do_not_fit_change_nothing(index: int, change: dict[str, Any], text: str) -> None:
    model = two_convs()
    before = copy.deepcopy(model.state_dict())
    cuts = [dict(cut) for cut in CUTS]
    cuts[index] |= change
    with pytest.raises(RuntimeError, match=text):
        apply_cuts(model, cuts_of(*cuts))
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model[0].out_channels == 4


def test_a_module_that_cannot_be_copied() -> None:
    model = two_convs()
    model.last = model(torch.randn(1, 3, 5, 5))
    with pytest.raises(RuntimeError, match=r"the model cannot be copied .*results of a forward"):
        copy_model(model)


class WithHead(nn.Module):
    """A second head, which only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body = two_convs()
        self.head = nn.Sequential(nn.Dropout(), nn.Conv2d(4, 2, 1))
        self.tail = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> Any:
        y = self.body[1](self.body[0](x))
        result = self.tail(self.body[2](y)) * scale
        return (result, self.head(y)) if self.training else result


def test_layers_that_only_training_uses(tmp_path: Path) -> None:
    model = WithHead().eval()
    cuts = [{**cut, "module": f"body.{cut['module']}"} for cut in CUTS]
    plan = rewrite_plan_pb2.RewritePlan(cuts=cuts_of(*cuts))
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    record = RecordFile(tmp_path / "r.txt")
    inputs = (torch.randn(2, 3, 5, 5), {"scale": 2.0})
    torch.set_rng_state(generator)
    with pytest.raises(BrokenTrainingError, match=r"training mode: head\.1 fails .* it, body\.0, out of") as caught:
        apply_plan(model, plan, record, input_data=inputs)
    assert caught.value.layers == ["body.0"]
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    apply_plan(model, plan, record)
    # Before the cuts it does not run either: one value per channel.
    apply_plan(model, plan, record, input_data=torch.randn(1, 3, 3, 3))
    model.head = nn.Identity()
    assert apply_plan(model, plan, record, input_data=inputs).body[0].out_channels == 2
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
