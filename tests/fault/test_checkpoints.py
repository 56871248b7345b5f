"""A child that is killed in the middle of a calibration: the next attempt goes on, and writes the same bytes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import modelpress

from tests.e2e.server_process import ServerProcess
from tests.fault.workloads import digests_of, quantize_model

if TYPE_CHECKING:
    from pathlib import Path


def test_a_killed_calibration_goes_on(tmp_path: Path) -> None:
    workload = quantize_model(tmp_path / "inputs", batches=300)
    with ServerProcess(tmp_path, "--workers=1") as server, modelpress.Client(server.target) as client:
        workspace = client.create_workspace("checkpoints").name
        workload.upload(client, workspace)
        expected = digests_of(workload.start(client, workspace).result(timeout=300))
        operation = workload.start(client, workspace)
        deadline = time.monotonic() + 120
        while not list((server.data_dir / "scratch").rglob("calibration")):
            assert time.monotonic() < deadline, "no checkpoint was written"
            assert not operation.done(), "it was to be killed before"
        for child in server.children():
            os.kill(child, signal.SIGKILL)
        assert digests_of(operation.result(timeout=300)) == expected
        assert operation.metadata.attempt == 2
        assert "resumed calibration " in server.log()
    assert not list((server.data_dir / "scratch").rglob("*")), "the checkpoints are gone with the operation"
