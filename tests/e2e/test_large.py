"""Models of gigabytes, made as sparse files: memory of the child stays far below the model's size.

Needs some 16 GB of disk and a few minutes, so it runs with `./dev test large` only.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.e2e.server_process import ServerProcess, run_cli

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif("MODELPRESS_LARGE" not in os.environ, reason="./dev test large")

LIMIT_MB = 600


def sparse_weight(path: Path, count: int) -> None:
    """Float32 zeros with a few values, without disk blocks for the zeros."""
    with path.open("wb") as file:
        file.truncate(count * 4)
        for at in range(0, count, count // 8):
            file.seek(at * 4)
            file.write(np.linspace(-1, 1, 1000, dtype=np.float32).tobytes())


def gemm_chain(shapes: list[tuple[int, int]], *, trans_b: int) -> tuple[onnx.ModelProto, str]:
    nodes, records = [], []
    for i in range(len(shapes)):
        nodes.append(helper.make_node("Gemm", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"fc{i}", transB=trans_b))
        records.append(
            f'record {{ key: "fc{i}" value {{ scale_d: 0.05 offset_d: 3 scale_w: 0.0078125 offset_w: 0 }} }}'
        )
    inputs = shapes[0][1 if trans_b else 0]
    outputs = shapes[-1][0 if trans_b else 1]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info(f"t{len(shapes)}", TensorProto.FLOAT, [1, outputs])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), "\n".join(records)


def save(server: ServerProcess, folder: Path) -> None:
    done = run_cli(
        server.target,
        "save_model",
        f"--modified_onnx_file={folder / 'm.onnx'}",
        f"--record_file={folder / 'r.txt'}",
        f"--save_path={folder / 'out' / 'm'}",
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "out" / "m_report.json").read_text())
    assert all(layer["quantized"] for layer in report["layers"])
    assert not report["warnings"]
    # The supervisor logs what each child took.
    peaks = [int(peak) for peak in re.findall(r'"peak_rss_bytes":\s*"?(\d+)', server.log())]
    assert peaks, "the log names no peak"
    print(f"peak of the child: {max(peaks) / 1e6:.0f} MB")
    assert max(peaks) < LIMIT_MB * 1e6


def test_large_external_data_of_3_gb(tmp_path: Path) -> None:
    shapes = [(16384, 12288), (12288, 16384)] * 2  # 4 x 805 MB
    model, record = gemm_chain(shapes, trans_b=0)
    for i, shape in enumerate(shapes):
        sparse_weight(tmp_path / f"w{i}.bin", shape[0] * shape[1])
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=f"w{i}.bin")
        model.graph.initializer.append(tensor)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "r.txt").write_text(record)
    with ServerProcess(tmp_path) as server:
        save(server, tmp_path)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_large_one_tensor_just_under_2_gb(tmp_path: Path, trans_b: int) -> None:
    shape = (24576, 20340)  # 1,999,503,360 bytes
    model, record = gemm_chain([shape], trans_b=trans_b)
    head = TensorProto(name="w0", data_type=TensorProto.FLOAT, dims=shape).SerializeToString()
    # The initializer is written by hand as the graph's last field, its data as a hole in the file.
    size = shape[0] * shape[1] * 4

    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    raw_data = b"\x4a" + varint(size)
    initializer = b"\x2a" + varint(len(head) + len(raw_data) + size) + head + raw_data
    graph = model.graph.SerializeToString() + initializer
    model.ClearField("graph")
    start_of_file = model.SerializeToString() + b"\x3a" + varint(len(graph) + size) + graph
    start = len(start_of_file)
    with (tmp_path / "m.onnx").open("wb") as file:
        file.write(start_of_file)
        file.truncate(start + size)
        for at in range(0, size, size // 8):
            file.seek(start + at // 4 * 4)
            file.write(np.linspace(-1, 1, 1000, dtype=np.float32).tobytes())
    (tmp_path / "r.txt").write_text(record)
    with ServerProcess(tmp_path) as server:
        save(server, tmp_path)
