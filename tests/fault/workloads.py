"""Operations that are worth disturbing, with what they have to result in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from modelpress.v1 import workspaces_pb2
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from pathlib import Path

    import modelpress

GEMM_SIZE = 1024


@dataclass(frozen=True)
class Workload:
    """One operation. Its inputs lie in a folder; in a workspace they have the same names."""

    method: str
    folder: Path
    parameters: dict[str, Any]

    def upload(self, client: modelpress.Client, workspace: str) -> None:
        """Sends the inputs."""
        for path in sorted(self.folder.iterdir()):
            client.upload_file(workspace, path.name, path)

    def start(
        self, client: modelpress.Client, workspace: str, request_id: str | None = None
    ) -> modelpress.Operation[Any]:
        """Asks for it; it is really done, whatever was done before."""
        call = getattr(client, self.method)
        operation: modelpress.Operation[Any] = call(
            workspace, "m.onnx", save_path="out/m", no_cache=True, request_id=request_id, **self.parameters
        )
        return operation


def outputs_of(response: Any) -> dict[str, workspaces_pb2.File]:
    """The files that an operation wrote, by the names of the response's fields."""
    return {field.name: value for field, value in response.ListFields() if isinstance(value, workspaces_pb2.File)}


def digests_of(response: Any) -> dict[str, str]:
    """The digests of those files."""
    return {name: file.sha256 for name, file in outputs_of(response).items()}


def save_model(folder: Path, *, megabytes: int, seed: int) -> Workload:
    """Saves a chain of Gemm layers: seconds or less, mostly reading and writing."""
    folder.mkdir(parents=True)
    layers = max(1, megabytes * (1 << 20) // (4 * GEMM_SIZE * GEMM_SIZE))
    values = np.random.default_rng(seed)
    nodes, tensors, records = [], [], []
    for i in range(layers):
        weight = values.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32) / 32
        tensors.append(helper.make_tensor(f"w{i}", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True))
        nodes.append(helper.make_node("Gemm", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"fc{i}", transB=i % 2))
        scale = float(np.abs(weight).max()) / 127
        records.append(
            f'record {{ key: "fc{i}" value {{ scale_d: 0.05 offset_d: {i % 7} scale_w: {scale!r} offset_w: 0 }} }}'
        )
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, [1, GEMM_SIZE])],
        [helper.make_tensor_value_info(f"t{layers}", TensorProto.FLOAT, [1, GEMM_SIZE])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    (folder / "r.txt").write_text("\n".join(records))
    return Workload("save_model", folder, {"record_file": "r.txt"})


def quantize_model(folder: Path, *, batches: int) -> Workload:
    """Calibrates two convolutions, in two passes: mostly computing, with checkpoints. 300 batches take seconds."""
    folder.mkdir(parents=True)
    values = np.random.default_rng(5)
    shape = [1, 16, 48, 48]
    tensors = [
        helper.make_tensor(name, TensorProto.FLOAT, dims, values.standard_normal(dims, dtype=np.float32) / 8)
        for name, dims in (("w1", (32, 16, 3, 3)), ("w2", (16, 32, 3, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["t1"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["t1"], ["t2"], name="relu"),
        helper.make_node("Conv", ["t2", "w2"], ["y"], name="c2", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    np.save(folder / "d.npy", values.standard_normal((batches, *shape[1:]), dtype=np.float32))
    layer = {
        "quant_enable": True,
        "activation_quant_params": {
            "num_bits": 8,
            "max_percentile": 0.9,  # not among what the first pass keeps: there is a second one
            "min_percentile": 0.9,
            "search_range": [0.7, 1.3],
            "search_step": 0.001,
            "act_algo": "ifmr",
            "asymmetric": True,
        },
        "weight_quant_params": {"num_bits": 8, "channel_wise": True, "wts_algo": "arq_quantize"},
    }
    config = {
        "version": 1,
        "batch_num": batches,
        "activation_offset": True,
        "do_fusion": True,
        "skip_fusion_layers": [],
        "c1": layer,
        "c2": layer,
    }
    (folder / "c.json").write_text(json.dumps(config))
    return Workload("quantize_model", folder, {"config_file": "c.json", "calibration_data": "d.npy"})
