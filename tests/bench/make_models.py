"""Writes models of the size and shape of ResNet-50 and ViT-B/16, with record files, for the engine's benchmark.

Weights and factors are random: the time the engine takes depends on shapes and layout, not on values. Layers are laid
out as torch exports them: convolutions with folded batch norm, `Gemm` with transB = 1, `MatMul` followed by
`Add(bias, product)`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Builder:
    """Collects the nodes and weights of a graph, and the record file's entries."""

    def __init__(self, name: str, input_shape: Sequence[int]) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.records: list[str] = []
        self.input = helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape)
        self._random = np.random.default_rng(1)

    def node(self, op: str, name: str, inputs: Sequence[str], **attributes: object) -> str:
        """Adds a node of one output; returns the output's name."""
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def constant(self, name: str, values: object, dtype: type[np.generic]) -> str:
        """Adds a small initializer."""
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def weights(self, name: str, shape: Sequence[int]) -> str:
        """Adds a float32 initializer of random values in [-0.25, 0.25)."""
        values = self._random.random(shape, dtype=np.float32) * np.float32(0.5) - np.float32(0.25)
        return self.constant(name, values, np.float32)

    def record(self, layer: str, scales: int) -> None:
        """Adds the factors of a layer: 8 bits, `scales` weight scales of about 0.25 / 127."""
        scale_w = " ".join(
            f"scale_w: {scale:.9g} offset_w: 0" for scale in self._random.uniform(0.00195, 0.00205, scales)
        )
        self.records.append(f'record {{ key: "{layer}" value {{ scale_d: 0.0235 offset_d: -3 {scale_w} }} }}\n')

    def conv(self, name: str, x: str, channels: tuple[int, int], kernel: int, stride: int, pad: int) -> str:
        """Adds a recorded convolution with bias; `channels` are (in, out)."""
        self.record(name, channels[1])
        return self.node(
            "Conv",
            name,
            [
                x,
                self.weights(f"{name}.weight", [channels[1], channels[0], kernel, kernel]),
                self.weights(f"{name}.bias", [channels[1]]),
            ],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            dilations=[1, 1],
            group=1,
        )

    def gemm(self, name: str, x: str, inputs: int, outputs: int) -> str:
        """Adds a recorded fully connected layer on a matrix."""
        self.record(name, 1)
        weights = [self.weights(f"{name}.weight", [outputs, inputs]), self.weights(f"{name}.bias", [outputs])]
        return self.node("Gemm", name, [x, *weights], transB=1)

    def matmul(self, name: str, x: str, inputs: int, outputs: int) -> str:
        """Adds a recorded fully connected layer on a batch of sequences."""
        self.record(f"{name}/MatMul", 1)
        product = self.node("MatMul", f"{name}/MatMul", [x, self.weights(f"{name}.weight", [inputs, outputs])])
        return self.node("Add", f"{name}/Add", [self.weights(f"{name}.bias", [outputs]), product])

    def save(self, output: str, folder: Path) -> None:
        """Writes model.onnx and record.txt."""
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 1000])
        graph = helper.make_graph(self.nodes, self.name, [self.input], [result], self.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="modelpress-bench"
        )
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        (folder / "record.txt").write_text("".join(self.records))


def resnet50(folder: Path) -> None:
    """53 convolutions and one Gemm, 25.6 million weights."""
    b = Builder("resnet50", [1, 3, 224, 224])
    x = b.node("Relu", "relu", [b.conv("conv1", "input", (3, 64), 7, 2, 3)])
    x = b.node("MaxPool", "maxpool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            shortcut = x if block > 0 else b.conv(f"{name}.downsample.0", x, (channels, 4 * width), 1, stride, 0)
            x = b.node("Relu", f"{name}.relu1", [b.conv(f"{name}.conv1", x, (channels, width), 1, 1, 0)])
            x = b.node("Relu", f"{name}.relu2", [b.conv(f"{name}.conv2", x, (width, width), 3, stride, 1)])
            x = b.node("Add", f"{name}.add", [b.conv(f"{name}.conv3", x, (width, 4 * width), 1, 1, 0), shortcut])
            x = b.node("Relu", f"{name}.relu3", [x])
            channels = 4 * width
    x = b.node("Flatten", "flatten", [b.node("GlobalAveragePool", "avgpool", [x])], axis=1)
    b.save(b.gemm("fc", x, channels, 1000), folder)


def vit_b_16(folder: Path) -> None:
    """A patch convolution, 12 transformer blocks of 4 MatMuls each and a Gemm, 86.6 million weights."""
    width, heads, tokens = 768, 12, 197
    b = Builder("vit_b_16", [1, 3, 224, 224])
    shapes = {
        "patches": [1, width, tokens - 1],
        "qkv": [1, tokens, 3, heads, width // heads],
        "joined": [1, tokens, width],
    }
    for name, shape in shapes.items():
        b.constant(name, shape, np.int64)
    for index in range(3):
        b.constant(f"index{index}", index, np.int64)
    for name, value in {"attention_scale": 0.125, "sqrt2": 2**0.5, "one": 1.0, "half": 0.5}.items():
        b.constant(name, value, np.float32)

    def norm(name: str, x: str) -> str:
        weights = [b.weights(f"{name}.weight", [width]), b.weights(f"{name}.bias", [width])]
        return b.node("LayerNormalization", name, [x, *weights], axis=-1, epsilon=1e-6)

    def attention(name: str, x: str) -> str:
        x = b.node("Reshape", f"{name}/split", [b.matmul(f"{name}.qkv", x, width, 3 * width), "qkv"])
        x = b.node("Transpose", f"{name}/heads", [x], perm=[2, 0, 3, 1, 4])
        q, k, v = (b.node("Gather", f"{name}/{part}", [x, f"index{i}"], axis=0) for i, part in enumerate("qkv"))
        k = b.node("Transpose", f"{name}/kt", [k], perm=[0, 1, 3, 2])
        scores = b.node("Mul", f"{name}/scale", [b.node("MatMul", f"{name}/scores", [q, k]), "attention_scale"])
        x = b.node("MatMul", f"{name}/mix", [b.node("Softmax", f"{name}/softmax", [scores], axis=-1), v])
        x = b.node("Reshape", f"{name}/join", [b.node("Transpose", f"{name}/back", [x], perm=[0, 2, 1, 3]), "joined"])
        return b.matmul(f"{name}.proj", x, width, width)

    def mlp(name: str, x: str) -> str:
        x = b.matmul(f"{name}.0", x, width, 4 * width)
        erf = b.node("Erf", f"{name}/erf", [b.node("Div", f"{name}/div", [x, "sqrt2"])])
        x = b.node("Mul", f"{name}/mul", [x, b.node("Add", f"{name}/add", [erf, "one"])])
        return b.matmul(f"{name}.3", b.node("Mul", f"{name}/gelu", [x, "half"]), 4 * width, width)

    x = b.node("Reshape", "flatten", [b.conv("conv_proj", "input", (3, width), 16, 16, 0), "patches"])
    x = b.node("Transpose", "to_tokens", [x], perm=[0, 2, 1])
    x = b.node("Concat", "with_class", [b.weights("class_token", [1, 1, width]), x], axis=1)
    x = b.node("Add", "with_position", [x, b.weights("pos_embedding", [1, tokens, width])])
    for block in range(12):
        name = f"encoder.{block}"
        x = b.node("Add", f"{name}/add1", [attention(f"{name}.attention", norm(f"{name}.ln_1", x)), x])
        x = b.node("Add", f"{name}/add2", [mlp(f"{name}.mlp", norm(f"{name}.ln_2", x)), x])
    x = b.node("Gather", "class", [norm("encoder.ln", x), "index0"], axis=1)
    b.save(b.gemm("head", x, width, 1000), folder)


MODELS: dict[str, Callable[[Path], None]] = {"resnet50": resnet50, "vit_b_16": vit_b_16}


def make(name: str, folder: Path) -> None:
    """Writes model and record into `folder`, which must not exist; it appears only when complete."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    MODELS[name](partial)
    partial.rename(folder)


def fill(skeleton: Path, model: Path) -> None:
    """Writes a model whose big initializers came without data, with random weights; variances are positive."""
    if model.exists():
        return
    proto = onnx.load(skeleton)
    random = np.random.default_rng(1)
    for tensor in proto.graph.initializer:
        shape = tuple(tensor.dims)
        if tensor.data_type == TensorProto.FLOAT and np.prod(shape, dtype=np.int64) > 64:
            values = random.random(shape, dtype=np.float32) * np.float32(0.5)
            tensor.CopyFrom(numpy_helper.from_array(values + np.float32(0.01), tensor.name))
    partial = model.with_suffix(".partial")
    onnx.save(proto, partial)
    partial.rename(model)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    make(arguments.name, arguments.folder)
