"""kill -9 of server, worker and child at random moments: every accepted operation ends once, with the right bytes.

MODELPRESS_FAULT_KILLS sets the number of kills (`./dev test fault`: 60); the ordinary test run makes 9.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import modelpress
import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.e2e.server_process import BIN_DIR, ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

KILLS = int(os.environ.get("MODELPRESS_FAULT_KILLS", "9"))


def write_model(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """A chain of Gemm layers, big enough that a kill can meet every stage."""
    size, layers = 1024, max(1, megabytes // 4)
    values = np.random.default_rng(5)
    nodes, tensors, records = [], [], []
    for i in range(layers):
        weight = values.standard_normal((size, size), dtype=np.float32) / 32
        tensors.append(helper.make_tensor(f"w{i}", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True))
        nodes.append(helper.make_node("Gemm", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"fc{i}", transB=i % 2))
        scale = float(np.abs(weight).max()) / 127
        records.append(
            f'record {{ key: "fc{i}" value {{ scale_d: 0.05 offset_d: {i % 7} scale_w: {scale!r} offset_w: 0 }} }}'
        )
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info(f"t{layers}", TensorProto.FLOAT, [1, size])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    (folder / "r.txt").write_text("\n".join(records))
    return folder / "m.onnx", folder / "r.txt"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def start_worker(server: ServerProcess) -> subprocess.Popen[bytes]:
    log = (server.folder / "worker.log").open("ab")
    return subprocess.Popen(
        [BIN_DIR / "modelpressd", "work", f"--data_dir={server.data_dir}", "--metrics_listen=", "--lease_s=2"],
        stderr=log,
        stdout=log,
    )


def test_every_operation_ends_once_with_the_same_bytes(tmp_path: Path) -> None:
    chance = random.Random(20261121)
    model, record = write_model(tmp_path, megabytes=24)
    with ServerProcess(tmp_path, "--lease_s=2") as server:
        with modelpress.Client(server.target) as client:
            undisturbed = client.save_model_files(model, record, str(tmp_path / "undisturbed" / "m"))
            expected = [digest(undisturbed.deploy_model), digest(undisturbed.fake_quant_model)]
            workspace = client.create_workspace("fault").name
            client.upload_file(workspace, "m.onnx", model)
            client.upload_file(workspace, "r.txt", record)

        worker = start_worker(server)
        operations: list[str] = []
        killed = {"server": 0, "worker": 0, "child": 0}
        try:
            for number in range(KILLS):
                with modelpress.Client(server.target) as client:
                    operations.extend(
                        client.save_model(workspace, "m.onnx", "r.txt", f"out{number}-{i}/m").name for i in range(2)
                    )
                time.sleep(chance.uniform(0.0, 0.6))  # the moment of the kill is what the test varies
                victim = ("server", "worker", "child")[number % 3]
                if victim == "server":
                    server.kill()
                    server.start()
                elif victim == "worker":
                    worker.kill()
                    worker.wait()
                    worker = start_worker(server)
                else:
                    for child in children_of(server.pid) + children_of(worker.pid):
                        with contextlib.suppress(ProcessLookupError):  # it may just have ended
                            os.kill(child, signal.SIGKILL)
                killed[victim] += 1

            with modelpress.Client(server.target) as client:
                assert len(set(operations)) == 2 * KILLS
                for name in operations:
                    response = client.get_operation(name).result(timeout=300)
                    assert [response.deploy_model.sha256, response.fake_quant_model.sha256] == expected, name
                listed = [operation.name for operation in client.list_operations(f'workspace = "{workspace}"')]
                assert sorted(listed) == sorted(operations), "none twice, none lost"
                # The names point to those bytes, and the bytes are really there.
                for number in (0, KILLS - 1):
                    client.download_file(
                        f"{workspace}/files/out{number}-0/m_deploy_model.onnx", tmp_path / "check.onnx"
                    )
                    assert digest(tmp_path / "check.onnx") == expected[0]
            assert not list((server.data_dir / "scratch").glob("*/*")), "dead attempts left files behind"
        finally:
            worker.kill()
            worker.wait()
    print(f"{sum(killed.values())} kills {killed}, {len(operations)} operations, every result identical")
