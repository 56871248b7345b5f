"""Layers that are used one by one, against training runs of the reference (tests/golden/qat/s*)."""

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from modelpress import torch_operators
from modelpress import torch_quantizers as q
from modelpress.torch import Conv1dQAT, Conv2dQAT, ConvTranspose1dQAT, ConvTranspose2dQAT, LinearQAT
from qat_cases import GOLDEN, assert_numbers
from torch import nn

CASES = sorted(path.name for path in GOLDEN.glob("s[0-9]*"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def arrays(case: str, name: str) -> dict[str, Any]:
    with np.load(GOLDEN / case / f"{name}.npz") as data:
        return dict(data)


def tensors(case: str, name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays(case, name).items()}


def build(case: str) -> Any:
    info = json.loads((GOLDEN / case / "case.json").read_text())
    cls = getattr(torch_operators, info["module"])
    layer = getattr(nn, info["module"].removesuffix("QAT"))(*info["constructor_args"], **info["constructor_kwargs"])
    layer.load_state_dict(tensors(case, "init_state"))
    quantized = cls.from_float(layer, info["config"])
    assert quantized.weight is layer.weight
    assert quantized.bias is layer.bias
    assert isinstance(quantized, type(layer))
    return info, quantized


def assert_state(layer: nn.Module, expected: dict[str, Any]) -> None:
    state = layer.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert state[key].numpy().dtype == value.dtype, key
        assert_numbers(state[key].numpy(), value, key)


def export(layer: nn.Module, x: torch.Tensor, path: Path) -> onnx.ModelProto:
    torch.onnx.export(
        layer.eval(), (x,), str(path), input_names=["input"], output_names=["output"], opset_version=13, dynamo=False
    )
    return onnx.load(path)


@pytest.mark.parametrize("case", CASES)
def test_training(case: str, tmp_path: Path) -> None:
    info, layer = build(case)
    assert list(layer.state_dict()) == info["state_dict_keys_in_order"]
    optimizer = torch.optim.SGD(layer.parameters(), lr=info["flow"]["lr"])
    train, io = tensors(case, "train"), arrays(case, "io")
    for step in range(info["flow"]["steps"]):
        optimizer.zero_grad()
        loss = ((layer(train[f"x{step}"]) - train[f"t{step}"]) ** 2).mean()
        loss.backward()
        optimizer.step()
        assert_numbers(float(loss), io["loss"][step], f"loss {step}")
    assert_state(layer, arrays(case, "state"))
    with torch.no_grad():
        output = layer.eval()(train["eval"])
    assert_numbers(output.numpy(), io["torch_out"], atol=1e-3)
    assert_state(layer, arrays(case, "state_eval"))

    again = copy.deepcopy(layer)
    found, expected = export(layer, train["eval"], tmp_path / "qdq.onnx"), onnx.load(GOLDEN / case / "qdq.onnx")
    assert_state(layer, {**arrays(case, "state_eval"), "cur_batch": np.int64(info["flow"]["steps"] + 2)})
    assert_graph(found.graph, expected.graph)
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {"input": train["eval"].numpy()})
    np.testing.assert_allclose(exported, again(train["eval"]).detach().numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(exported, io["qdq_out:output"], rtol=0, atol=1e-3)


def assert_graph(found: onnx.GraphProto, expected: onnx.GraphProto) -> None:
    for left, right in zip(found.node, expected.node, strict=True):
        assert (left.name, left.op_type) == (right.name, right.op_type)
        assert list(left.input) == list(right.input)
        assert list(left.output) == list(right.output)
        for one, other in zip(left.attribute, right.attribute, strict=True):
            if one.name == "value":
                assert_array(one.t, other.t)
            else:
                assert one == other
    for one, other in zip(found.initializer, expected.initializer, strict=True):
        assert one.name == other.name
        assert_array(one, other)


def assert_array(found: onnx.TensorProto, expected: onnx.TensorProto) -> None:
    left, right = onnx.numpy_helper.to_array(found), onnx.numpy_helper.to_array(expected)
    assert left.dtype == right.dtype
    assert_numbers(left, right, found.name)


@pytest.mark.parametrize("case", CASES)
def test_checkpoint_of_the_reference(case: str) -> None:
    """It is loaded, and the clip values that were trained stay (the reference initialises them again)."""
    _, layer = build(case)
    layer.load_state_dict(tensors(case, "state"))
    output = layer.eval()(tensors(case, "train")["eval"])
    assert_state(layer, arrays(case, "state_eval"))
    assert_numbers(output.detach().numpy(), arrays(case, "io")["torch_out"], atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ConvTranspose2dQAT(4, 6, 3, groups=2), (2, 4, 5, 5)),
        (ConvTranspose1dQAT(4, 6, 3, stride=2, output_padding=1, groups=2), (2, 4, 5)),
        (ConvTranspose1dQAT(4, 6, 3, config={"retrain_weight_config": {"channel_wise": False}}), (2, 4, 5)),
        (Conv1dQAT(4, 6, 3, padding="same", padding_mode="reflect"), (2, 4, 5)),
        (LinearQAT(4, 3, bias=False), (2, 3, 4)),
        (LinearQAT(4, 3, config={"retrain_enable": False}), (2, 4)),
    ],
)
def test_export(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    x = torch.randn(shape)
    for _ in range(2):
        layer(x)
    expected = copy.deepcopy(layer).eval()(x).detach()
    model = export(layer, x, tmp_path / "qdq.onnx")
    quantized = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantized) == (2 if layer.retrain_enable else 0)
    session = onnxruntime.InferenceSession(tmp_path / "qdq.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], expected.numpy(), rtol=0, atol=1e-4)


def test_output_size() -> None:
    layer = ConvTranspose2dQAT(2, 3, 2, stride=2)
    assert layer(torch.randn(1, 2, 4, 4), output_size=[9, 9]).shape == (1, 3, 9, 9)


@pytest.mark.parametrize("algo", ["arq_retrain", "ulq_retrain"])
@pytest.mark.parametrize("layer_type", [Conv1dQAT, ConvTranspose1dQAT])
def test_gradients(algo: str, layer_type: type[Any]) -> None:
    """Those of the float operator at the quantized values, also where the reference's backward fails."""
    layer = layer_type(4, 6, 3, groups=2, config={"retrain_weight_config": {"weights_retrain_algo": algo}})
    float_weight, x = layer.weight.detach().clone(), torch.randn(2, 4, 8)
    layer(x)
    layer(x).square().sum().backward()
    plain = layer_type._float_class(4, 6, 3, groups=2)
    plain.weight.data, plain.bias.data = layer.weight.data.clone(), layer.bias.data.clone()
    x = q.fake_quantize(x, q.Quantization(layer.acts_scale, layer.acts_offset_deploy.float()), 8)
    plain(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    assert not torch.equal(layer.weight, float_weight)
    assert layer.wts_scales.grad is None
    assert layer.acts_clip_max.grad is not None


def test_init_takes_its_batches() -> None:
    layer = LinearQAT(4, 3, config={"retrain_data_config": {"batch_num": 2, "clip_min": -3.0}})
    batches = [torch.randn(5, 4) for _ in range(2)]
    for batch in batches:
        output = layer(batch)
        torch.testing.assert_close(output, nn.functional.linear(batch, layer.weight, layer.bias), rtol=0, atol=0)
    search = q.RangeSearch()
    for batch in batches:
        search.add(batch)
    quantization, clip = search.search(8, torch.device("cpu"))
    assert float(layer.acts_scale) == float(quantization.scale)
    assert (float(layer.acts_clip_max), float(layer.acts_clip_min)) == (float(clip.maximum), float(clip.minimum))


def test_disabled_layer_is_float() -> None:
    layer = Conv2dQAT(2, 3, 3, config={"retrain_enable": False})
    before, x = copy.deepcopy(layer), torch.randn(1, 2, 5, 5)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(value, before.state_dict()[key], rtol=0, atol=0, equal_nan=True)


def test_copies_and_pickles() -> None:
    layer, x = Conv2dQAT(2, 3, 3), torch.randn(1, 2, 5, 5)
    layer(x)
    for duplicate in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copy.deepcopy(layer)(x), duplicate(x))


def test_from_float_of_another_class() -> None:
    for cls, error in ((Conv2dQAT, TypeError), (ConvTranspose2dQAT, TypeError), (LinearQAT, RuntimeError),
                       (torch_operators.Conv3dQAT, RuntimeError)):  # fmt: skip
        with pytest.raises(error, match=rf"{cls.__name__}.from_float can only works for {cls._float_class.__name__}$"):
            cls.from_float(nn.Bilinear(2, 2, 2))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ([], TypeError, r"LinearQAT: config must be a dict, not \[\]"),
        ({"retrain_enable": 1}, TypeError, "retrain_enable must be of type bool, not 1"),
        ({"retrain_data_config": 3}, TypeError, "retrain_data_config must be a dict, not 3"),
        ({"retrain_data_config": {"dst_type": "INT4"}}, ValueError, "dst_type must be INT8 or INT16"),
        ({"retrain_data_config": {"batch_num": 0}}, ValueError, "batch_num must be greater than 0"),
        ({"retrain_data_config": {"batch_num": True}}, TypeError, "batch_num must be of type int, not True"),
        ({"retrain_data_config": {"clip_max": -1.0}}, ValueError, "clip_max must be greater than 0"),
        ({"retrain_data_config": {"clip_max": 1}}, TypeError, "clip_max must be of type float, not 1"),
        ({"retrain_data_config": {"clip_min": 1.0}}, ValueError, "clip_min must be less than 0"),
        ({"retrain_weight_config": {"dst_type": "INT4"}}, ValueError, "dst_type must be INT8"),
        ({"retrain_weight_config": {"weights_retrain_algo": "x"}}, ValueError, "must be arq_retrain or ulq_retrain"),
        ({"retrain_weight_config": {"channel_wise": True}}, ValueError, "channel_wise must be false"),
    ],
)
def test_bad_configuration(config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LinearQAT(4, 3, config=config)


def test_bad_values() -> None:
    layer = LinearQAT(4, 3)
    with pytest.raises(TypeError, match="float64"):
        layer(torch.zeros(1, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="invalid value inf or nan"):
        layer(torch.full((1, 4), torch.inf))
    layer.weight.data[0] = torch.nan
    with pytest.raises(RuntimeError, match="The weight to be quantized has invalid value"):
        layer(torch.zeros(1, 4))
