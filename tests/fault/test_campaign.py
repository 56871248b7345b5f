"""The fault campaign: whatever happens to the service, every operation ends once, with the bytes of an undisturbed run.

MODELPRESS_FAULT_ROUNDS sets how often everything happens (`./dev test fault`: 10); the ordinary test run does it once.
The order and the moments are drawn from MODELPRESS_FAULT_SEED.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import modelpress
import pytest
from modelpress.v1 import operations_pb2

from tests.fault import workloads
from tests.fault.site import LEASE_S, Site

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

T = TypeVar("T")

ROUNDS = int(os.environ.get("MODELPRESS_FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("MODELPRESS_FAULT_SEED", "20261121"))
USERS = 4
PATIENCE_S = 300
DAY_S = 86_400.0

# What a user meets while something is broken, and tries again: no answer, or the server's disk.
TROUBLE = {"", "STORAGE_ERROR", "STORAGE_FULL", "STORAGE_UNAVAILABLE", "SERVER_DRAINING", "UPLOAD_BUSY"}

FAILED = (operations_pb2.OperationMetadata.FAILED, operations_pb2.OperationMetadata.CANCELLED)

# ---- users ----


@dataclass
class Asked:
    """An operation as its user knows it."""

    name: str
    workspace: str
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)


class User:
    """Uploads, runs, downloads and compares, again and again, and tries again whatever fails of it."""

    def __init__(
        self, site: Site, plan: list[tuple[workloads.Workload, dict[str, str]]], folder: Path, seed: int
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._chance = random.Random(seed)
        self._clients = [modelpress.Client(target) for target in site.targets]
        self.asked: list[Asked] = []
        self.repeated = 0  # calls
        self.ended = 0  # operations
        folder.mkdir()

    def work(self, stop: threading.Event) -> None:
        """One operation after the other until `stop`, and the last one to its end."""
        while not stop.is_set():
            self._one(*self._plan[len(self.asked) % len(self._plan)])
            self.ended += 1

    def _insist(self, call: Callable[[modelpress.Client], T]) -> T:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            client = self._chance.choice(self._clients)
            try:
                return call(client)
            except modelpress.Error as error:
                if error.reason not in TROUBLE or time.monotonic() > deadline:
                    raise
                self.repeated += 1
            time.sleep(self._chance.uniform(0.05, 0.3))

    def _one(self, workload: workloads.Workload, expected: dict[str, str]) -> None:
        identity = str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        workspace = self._insist(lambda client: client.create_workspace(request_id=identity)).name
        self._insist(lambda client: workload.upload(client, workspace))
        own = self._folder / "own"
        own.write_bytes(self._chance.randbytes(1 << 20))  # nobody has it yet: these bytes really travel
        self._insist(lambda client: client.upload_file(workspace, "own", own))

        operation = self._insist(lambda client: workload.start(client, workspace, request_id=identity))
        asked = Asked(operation.name, workspace)
        self.asked.append(asked)
        response, asked.attempts = self._insist(lambda client: self._result(client, operation.name))

        wanted = {f"{workspace}/files/own": digest(own)}
        wanted |= {file.name: expected.get(name, "") for name, file in workloads.outputs_of(response).items()}
        asked.wrong += [name for name, sha256 in wanted.items() if self._fetch(name) != sha256]
        if len(wanted) != 1 + len(expected):
            asked.wrong.append("the number of outputs")
        if self._chance.random() < 0.3:
            self._insist(lambda client: delete(client, workspace))

    def _fetch(self, name: str) -> str:
        received = self._folder / "received"
        self._insist(lambda client: client.download_file(name, received))
        return digest(received)

    @staticmethod
    def _result(client: modelpress.Client, name: str) -> tuple[Any, int]:
        operation = client.get_operation(name)
        try:
            response = operation.result(timeout=PATIENCE_S)
        except modelpress.Error as error:
            if operation.metadata.state in FAILED:  # the operation, not a call that waited for it
                raise AssertionError(f"{name} failed: {error}") from error
            raise
        return response, operation.metadata.attempt


def delete(client: modelpress.Client, workspace: str) -> None:
    """Deletes it, if the call before did not."""
    with contextlib.suppress(modelpress.NotFound):
        client.delete_workspace(workspace)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- faults ----


class Faults:
    """What is done to a site, one thing after the other, with the moments left to chance."""

    def __init__(self, site: Site, seed: int) -> None:
        self._site = site
        self._chance = random.Random(seed)
        self.made: Counter[str] = Counter()

    def round(self) -> None:
        """Everything once, in some order."""
        faults = [
            self.kill_server,
            self.kill_worker,
            self.kill_child,
            self.kill_child,
            self.stop_server,
            self.stop_worker,
            self.stop_child,
            self.disk_full,
            self.disk_failing,
            self.clock_jump,
            self.cut_clients,
        ]
        if self._site.postgres is not None:
            faults += [self.kill_database, self.kill_database_connection, self.stop_database, self.cut_database]
        self._chance.shuffle(faults)
        for fault in faults:
            time.sleep(self._chance.uniform(0.0, 1.0))
            fault()
            self.made[fault.__name__] += 1

    def kill_server(self) -> None:
        self._site.restart(self._chance.choice(self._site.servers), self._chance)

    def kill_worker(self) -> None:
        self._site.restart(self._site.worker, self._chance)

    def kill_child(self) -> None:
        for child in self._site.children():
            with contextlib.suppress(ProcessLookupError):  # it may just have ended
                os.kill(child, signal.SIGKILL)

    def stop_server(self) -> None:
        self._stop(self._chance.choice(self._site.servers).pid)

    def stop_worker(self) -> None:
        self._stop(self._site.worker.pid)

    def stop_child(self) -> None:
        children = self._site.children()
        if children:
            self._stop(self._chance.choice(children))

    def _stop(self, pid: int) -> None:
        """SIGSTOP for longer than the lease."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self._chance.uniform(1.2, 2.0) * LEASE_S)
            os.kill(pid, signal.SIGCONT)

    def disk_full(self) -> None:
        with self._site.faults.failing(errno.ENOSPC, one_in=4):
            time.sleep(self._chance.uniform(0.3, 0.8))

    def disk_failing(self) -> None:
        with self._site.faults.failing(errno.EIO, one_in=8):
            time.sleep(self._chance.uniform(0.3, 0.8))

    def clock_jump(self) -> None:
        self._site.faults.set_clock(self._chance.choice([-1, 1]) * self._chance.uniform(600.0, 60 * DAY_S))
        time.sleep(self._chance.uniform(1.0, 2.0))
        self._site.faults.set_clock(self._chance.uniform(-600.0, 600.0))

    def cut_clients(self) -> None:
        for proxy in self._site.client_proxies:
            proxy.cut()

    def kill_database(self) -> None:
        assert self._site.postgres is not None
        self._site.postgres.kill()
        time.sleep(self._chance.uniform(0.0, 2.0))
        self._site.postgres.start()

    def kill_database_connection(self) -> None:
        assert self._site.postgres is not None
        self._site.postgres.kill_connections()

    def stop_database(self) -> None:
        assert self._site.postgres is not None
        self._stop(self._site.postgres.pid)

    def cut_database(self) -> None:
        assert self._site.database_proxy is not None
        self._site.database_proxy.cut()


# ---- the campaign ----


def undisturbed(client: modelpress.Client, workload: workloads.Workload) -> dict[str, str]:
    """Digests of the outputs when nothing happens."""
    workspace = client.create_workspace().name
    workload.upload(client, workspace)
    response = workload.start(client, workspace).result(timeout=PATIENCE_S)
    client.delete_workspace(workspace)
    return workloads.digests_of(response)


def await_progress(users: list[User], working: list[Future[None]]) -> None:
    """Until what every user waits for has ended, so that no operation meets more failing disks than it has attempts."""
    goals = [user.ended + 1 for user in users]
    while not any(future.done() for future in working):  # one has failed: nothing to wait for
        if all(user.ended >= goal for user, goal in zip(users, goals, strict=True)):
            return
        time.sleep(0.05)


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_every_operation_ends_once_with_the_same_bytes(tmp_path: Path, database: str) -> None:
    saves = [workloads.save_model(tmp_path / f"save{i}", megabytes=8, seed=i) for i in range(3)]
    kinds = [*saves, workloads.quantize_model(tmp_path / "quantize", batches=100)]
    with Site(tmp_path, postgres=database == "postgres") as site:
        with modelpress.Client(site.targets[0]) as client:
            plan = [(workload, undisturbed(client, workload)) for workload in kinds]
            before = {operation.name for operation in client.list_operations()}

        users = [User(site, plan, tmp_path / f"user{i}", SEED + i) for i in range(USERS)]
        faults = Faults(site, SEED)
        stop = threading.Event()
        with ThreadPoolExecutor(USERS) as pool:
            working = [pool.submit(user.work, stop) for user in users]
            try:
                for _ in range(ROUNDS):
                    faults.round()
                    await_progress(users, working)
            finally:
                stop.set()
            for future in working:
                future.result()

        asked = [one for user in users for one in user.asked]
        assert not [one for one in asked if one.wrong]
        # None lost, none twice: by what clients are told, and by what the database saw.
        names = sorted(one.name for one in asked)
        with modelpress.Client(site.targets[1]) as client:
            assert sorted({operation.name for operation in client.list_operations()} - before) == names
        succeeded = operations_pb2.OperationMetadata.SUCCEEDED
        ends = sorted((f"operations/{name}", state) for name, state in site.ends())
        assert ends == sorted((name, succeeded) for name in {*names, *before})

        assert site.damage() == ""
        for blob in (site.data_dir / "blobs").glob("*/*"):
            assert digest(blob) == blob.parent.name + blob.name
        deadline = time.monotonic() + 60
        while left := list((site.data_dir / "scratch").iterdir()):
            assert time.monotonic() < deadline, f"dead attempts left files behind: {left}"
            time.sleep(0.1)

    attempts = sum(one.attempts for one in asked)
    print(
        f"{database}: {len(asked)} operations, each with one result and the bytes of an undisturbed run; "
        f"{attempts} attempts; {faults.made.total()} faults: {dict(sorted(faults.made.items()))}, "
        f"{site.faults.injected} failed file calls; "
        f"{sum(user.repeated for user in users)} calls repeated by users"
    )
