"""What a hostile case is, and the good files that the others are made from."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Content = bytes | Callable[[], bytes]  # made when it is needed where that takes long

# Reasons that would mean that the service took the blame, or hid what happened.
UNCLEAR = {"", "INTERNAL_ERROR", "ENGINE_CRASHED", "OUTPUT_INVALID", "STORAGE_ERROR"}


@dataclass
class Case:
    """Files in a folder of a workspace, and a call on them that must be refused.

    Attributes:
        name: unique.
        files: content by path in the case's folder; the good files are there too where these do not replace them.
        call: name of a function of calls.py.
        reasons: those that are right; empty: any that is clear.
        harmless: why the call may as well succeed: legal, though odd.
    """

    name: str
    files: dict[str, Content]
    call: str = "save"
    reasons: frozenset[str] = field(default_factory=frozenset)
    harmless: str = ""

    def content(self) -> dict[str, bytes]:
        """The files, made now where they are big or slow to make."""
        return {path: made if isinstance(made, bytes) else made() for path, made in self.files.items()}


GENERATORS: list[Callable[[], Iterator[Case]]] = []


def generator(function: Callable[[], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
    """Registers a function that makes cases."""
    GENERATORS.append(function)
    return function


def all_cases() -> list[Case]:
    """Every case of every generator."""
    cases = [case for make in GENERATORS for case in make()]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return cases


def reasons(*names: str) -> frozenset[str]:
    """The reasons that a case may be refused with."""
    return frozenset(names)


# ---- good files --------------------------------------------------------------------------------------


def good_model() -> onnx.ModelProto:
    """A convolution, a ReLU and a Gemm, with weights in raw_data."""
    values = np.random.default_rng(7)

    def tensor(name: str, *shape: int) -> TensorProto:
        data = values.standard_normal(shape, dtype=np.float32)
        return helper.make_tensor(name, TensorProto.FLOAT, shape, data.tobytes(), raw=True)

    nodes = [
        helper.make_node(
            "Conv", ["x", "conv1.weight", "conv1.bias"], ["c"], name="conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "good",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [
            tensor("conv1.weight", 16, 3, 3, 3),
            tensor("conv1.bias", 16),
            tensor("fc.weight", 5, 16),
            tensor("fc.bias", 5),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


GOOD_RECORD = (
    'record { key: "conv1" value { scale_d: 0.05 offset_d: 3 scale_w: 0.02 offset_w: 0 } }\n'
    'record { key: "fc" value { scale_d: 0.05 offset_d: -3 scale_w: 0.02 offset_w: 0 } }\n'
)
GOOD_CFG = "batch_num: 1\n"
GOOD_PRUNE_CFG = (
    "prune_config { filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: 0.5 ascend_optimized: false } } }\n"
)
GOOD_SEARCH_CFG = "compress_ratio: 1.5\nascend_optimized: false\n"


def layer_config() -> dict[str, Any]:
    """One layer in a JSON configuration."""
    return {
        "quant_enable": True,
        "activation_quant_params": {
            "num_bits": 8,
            "max_percentile": 0.999999,
            "min_percentile": 0.999999,
            "search_range": [0.7, 1.3],
            "search_step": 0.01,
        },
        "weight_quant_params": {"num_bits": 8, "wts_algo": "arq_quantize", "channel_wise": True},
    }


def good_config() -> dict[str, Any]:
    """A JSON configuration as create_quant_config writes it."""
    head: dict[str, Any] = {
        "version": 1,
        "activation_offset": True,
        "batch_num": 1,
        "do_fusion": True,
        "skip_fusion_layers": [],
    }
    return head | {
        "conv1": layer_config(),
        "fc": layer_config()
        | {"weight_quant_params": {"num_bits": 8, "wts_algo": "arq_quantize", "channel_wise": False}},
    }


def good_manifest() -> dict[str, Any]:
    """The module manifest of good_model."""
    return {
        "modules": [
            {"name": "", "type": "Net"},
            {
                "name": "conv1",
                "type": "Conv2d",
                "parameters": [{"name": "weight", "shape": [16, 3, 3, 3]}, {"name": "bias", "shape": [16]}],
                "groups": 1,
                "out_channels": 16,
                "padding_mode": "zeros",
            },
            {
                "name": "fc",
                "type": "Linear",
                "parameters": [{"name": "weight", "shape": [5, 16]}, {"name": "bias", "shape": [5]}],
                "out_channels": 5,
            },
        ]
    }


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """The array as a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    """The arrays as a .npz file."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `length`: what it says of its header's size."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def good_weights() -> bytes:
    """The weights of good_model's modules."""
    header: dict[str, Any] = {}
    data = b""
    for name, shape in (
        ("conv1.weight", [16, 3, 3, 3]),
        ("conv1.bias", [16]),
        ("fc.weight", [5, 16]),
        ("fc.bias", [5]),
    ):
        part = np.ones(shape, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    return safetensors(header, data)


def good_files() -> dict[str, bytes]:
    """What every case's folder holds where the case does not replace it."""
    return {
        "m.onnx": good_model().SerializeToString(),
        "r.txt": GOOD_RECORD.encode(),
        "q.cfg": GOOD_CFG.encode(),
        "p.cfg": GOOD_PRUNE_CFG.encode(),
        "s.cfg": GOOD_SEARCH_CFG.encode(),
        "c.json": json.dumps(good_config()).encode(),
        "manifest.json": json.dumps(good_manifest()).encode(),
        "d.npz": npz(x=np.ones((2, 3, 8, 8), np.float32)),
        "d.npy": npy(np.ones((2, 3, 8, 8), np.float32)),
        "w.safetensors": good_weights(),
        "sens.safetensors": safetensors(
            {"conv1": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}},
            np.arange(16, dtype=np.float32).tobytes(),
        ),
    }


# ---- protobuf by hand --------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """A varint; negative numbers as protobuf's int64."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(number: int, content: bytes, length: int | None = None) -> bytes:
    """A field of bytes; `length`: what it says of itself."""
    return varint(number << 3 | 2) + varint(len(content) if length is None else length) + content


def number(field_number: int, value: int) -> bytes:
    """A field that is a varint."""
    return varint(field_number << 3) + varint(value)
