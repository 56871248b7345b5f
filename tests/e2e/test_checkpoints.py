"""A child that is killed in the middle of a calibration: the next attempt goes on, and writes the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import modelpress
import numpy as np
from onnx import TensorProto, helper

from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

    from modelpress.v1 import compression_pb2

BATCHES = 300
LAYER = {
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


def write_inputs(folder: Path) -> None:
    """A calibration that takes seconds."""
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
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    np.save(folder / "d.npy", values.standard_normal((BATCHES, *shape[1:]), dtype=np.float32))
    config = {
        "version": 1,
        "batch_num": BATCHES,
        "activation_offset": True,
        "do_fusion": True,
        "skip_fusion_layers": [],
        "c1": LAYER,
        "c2": LAYER,
    }
    (folder / "c.json").write_text(json.dumps(config))


def digests(response: compression_pb2.QuantizeModelResponse) -> dict[str, str]:
    files = [response.record_file, response.deploy_model, response.fake_quant_model, response.report]
    return {file.name.rpartition("/")[2]: file.sha256 for file in files}


def test_a_killed_calibration_goes_on(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    with ServerProcess(tmp_path, "--workers=1") as server, modelpress.Client(server.target) as client:
        workspace = client.create_workspace("checkpoints").name
        for name in ("m.onnx", "d.npy", "c.json"):
            client.upload_file(workspace, name, tmp_path / name)

        def start() -> modelpress.Operation[compression_pb2.QuantizeModelResponse]:
            return client.quantize_model(
                workspace, "m.onnx", config_file="c.json", calibration_data="d.npy", save_path="out/x", no_cache=True
            )

        expected = digests(start().result(timeout=300))
        operation = start()
        deadline = time.monotonic() + 120
        while not list((server.data_dir / "scratch").rglob("calibration")):
            assert time.monotonic() < deadline, "no checkpoint was written"
            assert not operation.done(), "it was to be killed before"
        found = subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True, check=True)
        for child in found.stdout.split():
            os.kill(int(child), signal.SIGKILL)
        assert digests(operation.result(timeout=300)) == expected
        assert operation.metadata.attempt == 2
        assert "resumed calibration at batch " in server.log()
    assert not list((server.data_dir / "scratch").rglob("*")), "the checkpoints are gone with the operation"
