"""The simplest post-training calibration: factors from plain minimum and maximum ranges, written as a record file.

It makes what the save step needs (a model with named nodes and a record file) from a float ONNX model and some
calibration inputs. Layers: Conv, ConvTranspose, Gemm and MatMul with constant weights, under the conditions of
docs/spec/save.md section 4.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import text_format
from modelpress.amct import record_pb2
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_pair import onnx, onnxruntime

MIN_OPSET = 11
_WEIGHT_LEVELS = 127
_ACTIVATION_LEVELS = 255
_SMALLEST_SCALE = 1e-12
# Integer biases stay clear of the int32 bounds.
_LARGEST_BIAS = 2.0**30

Batch = Mapping[str, NDArray[Any]]


class Layer(NamedTuple):
    """A layer that will be quantized."""

    name: str
    activation: str  # tensor name
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    channel_axes: tuple[int, ...] | None  # axes of the weight to reduce per output channel; None: one scale for all


def name_nodes(model: Any) -> None:
    """Gives every node a unique name that a record file can address (no colon); names that are fit stay."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = node.name.replace(":", "_") or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        taken.add(name)
        node.name = name


def find_layers(model: Any) -> list[Layer]:
    """The quantizable layers, in the order of the graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    layers = []
    for node in model.graph.node:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"} or node.input[1] not in constants:
            continue
        if node.input[0] in constants:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        channel_axes: tuple[int, ...] | None = None
        if node.op_type in {"Conv", "ConvTranspose"}:
            if weight.ndim not in {3, 4, 5}:
                continue
            if node.op_type == "Conv":
                channel_axes = tuple(range(1, weight.ndim))
        elif weight.ndim != 2 or attributes.get("transA") == 1:
            continue
        bias = None
        if node.op_type != "MatMul" and len(node.input) > 2 and node.input[2]:
            if node.input[2] not in constants:
                continue
            bias = numpy_helper.to_array(constants[node.input[2]])
        layers.append(Layer(node.name, node.input[0], weight, bias, channel_axes))
    return layers


def measure_ranges(model: Any, tensors: Iterable[str], batches: Iterable[Batch]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each tensor over all batches."""
    wanted = set(tensors)
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(wanted - inputs - outputs))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    fetched = sorted(wanted - inputs)
    ranges: dict[str, tuple[float, float]] = {}
    for batch in batches:
        values = dict(zip(fetched, session.run(fetched, dict(batch)), strict=True)) if fetched else {}
        values |= {name: batch[name] for name in wanted & inputs}
        for name, value in values.items():
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return ranges


def activation_factors(low: float, high: float) -> tuple[float, int]:
    """scale_d and offset_d of an int8 activation; 0 is always in the range, so that padding is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / _ACTIVATION_LEVELS
    if scale < _SMALLEST_SCALE:
        return 1.0, 0
    return scale, int(np.clip(-128 - np.rint(low / scale), -128, 127))


def weight_scales(layer: Layer, scale_d: float) -> NDArray[np.float64]:
    """scale_w: the largest absolute weight over 127, but never so small that the integer bias would overflow."""
    largest = np.abs(layer.weight).max(axis=layer.channel_axes) if layer.channel_axes else np.abs(layer.weight).max()
    scales = np.atleast_1d(largest.astype(np.float64) / _WEIGHT_LEVELS)
    scales[scales < _SMALLEST_SCALE] = 1.0
    if layer.bias is not None:
        bias = np.abs(layer.bias.astype(np.float64))
        needed = (bias if scales.size == bias.size else bias.max(keepdims=True)) / (scale_d * _LARGEST_BIAS)
        scales = np.maximum(scales, needed)
    return scales


def write_record(model: Any, batches: Iterable[Batch], record_file: Path) -> list[str]:
    """Calibrates the quantizable layers of a model with named nodes; returns their names."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    if opset < MIN_OPSET:
        raise ValueError(f"the model has opset {opset}; the fake-quant model needs {MIN_OPSET} or newer")
    layers = find_layers(model)
    if not layers:
        raise ValueError("the model has no quantizable layer")
    ranges = measure_ranges(model, (layer.activation for layer in layers), batches)
    record = record_pb2.ScaleOffsetRecord()
    for layer in layers:
        scale_d, offset_d = activation_factors(*ranges[layer.activation])
        scales = weight_scales(layer, scale_d)
        value = record.record.add(key=layer.name).value
        value.scale_d, value.offset_d = scale_d, offset_d
        value.scale_w.extend(scales.tolist())
        value.offset_w.extend([0] * scales.size)
    record_file.write_text(text_format.MessageToString(record), encoding="utf-8")
    return [layer.name for layer in layers]
