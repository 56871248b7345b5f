"""The blocking and the asyncio client against the protocol on a real socket, with faults."""

import asyncio
import hashlib
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modelpress
import pytest
from google.rpc import error_details_pb2
from modelpress import AsyncClient, Client, Progress, RetryPolicy
from protocol_server import ProtocolServer, status


class _Loop:
    """Lets one test body drive either client: asyncio's coroutines are run to their end, other values come through."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def __call__(self, value: Any) -> Any:
        return self._loop.run_until_complete(value) if asyncio.iscoroutine(value) else value

    def close(self) -> None:
        self._loop.close()


@pytest.fixture(params=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, server: ProtocolServer, retry: RetryPolicy) -> Iterator[tuple[Any, _Loop]]:
    run = _Loop()
    if request.param == "blocking":
        opened: Any = Client(server.target, retry=retry)
    else:

        async def connect() -> AsyncClient:
            return AsyncClient(server.target, retry=retry)

        opened = run(connect())
    yield opened, run
    run(opened.close())
    run.close()


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.bin"
    path.write_bytes(bytes(range(256)) * 4096 * 3)  # 3 MiB: several messages
    return path


def test_workspaces_and_files(client: tuple[Any, _Loop], tmp_path: Path) -> None:
    c, run = client
    for letter in "abc":
        assert run(c.create_workspace(letter)).name == f"workspaces/{letter}"
    assert [w.name for w in run(c.list_workspaces())] == ["workspaces/a", "workspaces/b", "workspaces/c"]  # two pages
    with pytest.raises(modelpress.AlreadyExists) as caught:
        run(c.create_workspace("a"))
    assert caught.value.reason == "WORKSPACE_EXISTS"
    source = tmp_path / "empty"
    source.touch()
    file = run(c.upload_file("workspaces/a", "x/empty", source))
    assert run(c.get_file(file.name)).size_bytes == 0
    assert [f.name for f in run(c.list_files("workspaces/a"))] == ["workspaces/a/files/x/empty"]
    run(c.delete_file(file.name))
    with pytest.raises(modelpress.NotFound) as missing:
        run(c.get_file(file.name))
    assert missing.value.file == file.name
    run(c.delete_workspace("workspaces/a"))
    with pytest.raises(modelpress.NotFound):
        run(c.get_workspace("workspaces/a"))


def test_broken_upload_goes_on_where_it_stopped(client: tuple[Any, _Loop], server: ProtocolServer, big: Path) -> None:
    c, run = client
    server.faults.break_upload_at = [1_500_000, 2_500_000]
    seen: list[Progress] = []
    file = run(c.upload_file("workspaces/a", "big", big, progress=seen.append))
    assert server.files[file.name] == big.read_bytes()
    assert server.received < 2 * big.stat().st_size  # not sent anew
    assert seen[-1] == Progress("upload", big.stat().st_size, big.stat().st_size)


def test_upload_that_another_stream_ended(client: tuple[Any, _Loop], server: ProtocolServer, big: Path) -> None:
    c, run = client
    server.faults.end_upload_at = [1_500_000]
    file = run(c.upload_file("workspaces/a", "big", big))
    assert server.files[file.name] == big.read_bytes()


def test_known_content_is_not_sent(client: tuple[Any, _Loop], server: ProtocolServer, big: Path) -> None:
    c, run = client
    run(c.upload_file("workspaces/a", "one", big))
    run(c.upload_file("workspaces/a", "two", big))
    assert server.received == big.stat().st_size
    assert server.files["workspaces/a/files/two"] == big.read_bytes()


def test_upload_without_progress_gives_up(client: tuple[Any, _Loop], server: ProtocolServer, big: Path) -> None:
    c, run = client
    server.faults.break_upload_at = [0] * 10
    with pytest.raises(modelpress.Unavailable):
        run(c.upload_file("workspaces/a", "big", big))
    assert len(server.faults.break_upload_at) == 7  # three attempts


def test_file_that_changes_while_it_is_sent(client: tuple[Any, _Loop], server: ProtocolServer, big: Path) -> None:
    c, run = client

    def corrupt(progress: Progress) -> None:
        if progress.done == 1 << 20:
            with big.open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"?")

    with pytest.raises(modelpress.InvalidArgument) as caught:
        run(c.upload_file("workspaces/a", "big", big, progress=corrupt))
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert not server.files


def test_failure_of_the_callback_ends_the_upload(client: tuple[Any, _Loop], server: ProtocolServer, big: Path) -> None:
    c, run = client

    def fail(progress: Progress) -> None:
        raise KeyError(progress.stage)

    with pytest.raises(KeyError):
        run(c.upload_file("workspaces/a", "big", big, progress=fail))
    assert not server.files


def test_broken_download_goes_on(client: tuple[Any, _Loop], server: ProtocolServer, big: Path, tmp_path: Path) -> None:
    c, run = client
    name = "workspaces/a/files/big"
    server.files[name] = big.read_bytes()
    server.faults.break_download_after = [1000, 50_000]
    target = tmp_path / "copy"
    run(c.download_file(name, target))
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(big.read_bytes()).digest()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_damaged_download_leaves_the_old_file(
    client: tuple[Any, _Loop], server: ProtocolServer, tmp_path: Path
) -> None:
    c, run = client
    server.files["workspaces/a/files/f"] = b"content"
    server.faults.flip_downloaded_bit = True
    target = tmp_path / "f"
    target.write_bytes(b"old")
    with pytest.raises(modelpress.DataLoss, match="DIGEST_MISMATCH"):
        run(c.download_file("workspaces/a/files/f", target))
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_unary_calls_are_retried(client: tuple[Any, _Loop], server: ProtocolServer) -> None:
    c, run = client
    server.faults.unavailable = {"CreateWorkspace": 2}
    run(c.create_workspace("a"))
    server.faults.unavailable = {"CreateWorkspace": 100}
    with pytest.raises(modelpress.Unavailable):
        run(c.create_workspace("b"))
    assert server.faults.unavailable["CreateWorkspace"] == 95


def _stage(server: ProtocolServer) -> None:
    server.files |= {"workspaces/a/files/m.onnx": b"model", "workspaces/a/files/r.txt": b"record"}


def test_save_model(client: tuple[Any, _Loop], server: ProtocolServer) -> None:
    c, run = client
    _stage(server)
    server.faults.unavailable = {"WaitOperation": 1}
    operation = run(
        c.save_model(
            "workspaces/a",
            "m.onnx",
            "r.txt",
            "results/x",
            reference_defects=True,
            execution_timeout=1.5,
            request_id="id",
        )
    )
    response = run(operation.result())
    assert response.deploy_model.name == "workspaces/a/files/results/x_deploy_model.onnx"
    options = server.requests[0].options
    assert (options.reference_defects, options.request_id) == (True, "id")
    assert options.execution_timeout.ToMilliseconds() == 1500
    found = run(c.get_operation(operation.name))
    assert run(found.done())
    assert run(found.result()) == response
    assert [o.name for o in run(c.list_operations())] == [operation.name]
    run(c.delete_operation(operation.name))
    with pytest.raises(modelpress.NotFound):
        run(c.get_operation(operation.name))


def test_missing_files_are_named(client: tuple[Any, _Loop]) -> None:
    c, run = client
    with pytest.raises(modelpress.NotFound) as caught:
        run(c.save_model("workspaces/a", "m.onnx", "r.txt", "x"))
    assert caught.value.missing == ("m.onnx", "r.txt")


def test_operation_error_has_its_place(client: tuple[Any, _Loop], server: ProtocolServer) -> None:
    c, run = client
    _stage(server)
    error = status(3, "no such layer", "RECORD_UNKNOWN_LAYER", file="r.txt", line="7", column="3", layer="conv9")
    request = error_details_pb2.BadRequest()
    request.field_violations.add(field="record_file", description="no such layer")
    error.details.add().Pack(request)
    server.faults.operation_error = error
    operation = run(c.save_model("workspaces/a", "m.onnx", "r.txt", "x"))
    with pytest.raises(modelpress.InvalidArgument) as caught:
        run(operation.result())
    e = caught.value
    assert (e.code, e.reason, e.file, e.line, e.column, e.layer) == (3, "RECORD_UNKNOWN_LAYER", "r.txt", 7, 3, "conv9")
    assert e.violations == (("record_file", "no such layer"),)
    assert isinstance(e, RuntimeError)
    assert isinstance(e, ValueError)


def test_timeout_progress_and_cancel(client: tuple[Any, _Loop], server: ProtocolServer) -> None:
    c, run = client
    _stage(server)
    server.faults.hold_operations = True
    operation = run(c.save_model("workspaces/a", "m.onnx", "r.txt", "x"))
    seen: list[Progress] = []
    with pytest.raises(TimeoutError):
        run(operation.result(timeout=0.05, progress=seen.append))
    assert seen == [Progress("quantize", 1, 2)]
    assert not run(operation.done())
    run(operation.cancel())
    with pytest.raises(modelpress.Cancelled):
        run(operation.result())


def test_unreachable_server() -> None:
    with Client("localhost:1") as c, pytest.raises(modelpress.Unavailable):
        c.list_workspaces()


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("m", ["m_deploy_model.onnx", "m_fake_quant_model.onnx", "m_report.json"]),
        ("", ["deploy_model.onnx", "fake_quant_model.onnx", "report.json"]),
    ],
)
def test_save_model_files(
    client: tuple[Any, _Loop], server: ProtocolServer, tmp_path: Path, prefix: str, names: list[str]
) -> None:
    c, run = client
    (tmp_path / "modified.onnx").write_bytes(b"")
    (tmp_path / "record.txt").write_bytes(b"record")
    folder = tmp_path / "upper" / "results"
    saved = run(c.save_model_files(tmp_path / "modified.onnx", tmp_path / "record.txt", f"{folder}/{prefix}"))
    assert sorted(path.name for path in folder.iterdir()) == names
    assert saved.deploy_model == folder / names[0]
    assert saved.warnings == ("a warning",)
    assert stat.S_IMODE(folder.stat().st_mode) & ~0o750 == 0
    assert server.requests[0].modified_onnx_file == "model/modified.onnx"
    assert not server.workspaces  # the temporary one is gone
    assert len(server.deleted) == 1


def test_named_workspace_is_kept(client: tuple[Any, _Loop], server: ProtocolServer, tmp_path: Path) -> None:
    c, run = client
    run(c.create_workspace("mine"))
    (tmp_path / "modified.onnx").write_bytes(b"")
    run(c.save_prune_retrain_model_files(tmp_path / "modified.onnx", f"{tmp_path}/out/", workspace="mine"))
    assert server.workspaces == {"workspaces/mine"}
    assert "workspaces/mine/files/model/modified.onnx" in server.files


def test_workspace_that_cannot_be_deleted_costs_no_results(
    client: tuple[Any, _Loop], server: ProtocolServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    c, run = client
    (tmp_path / "model.onnx").write_bytes(b"")
    server.faults.unavailable = {"DeleteWorkspace": 100}
    saved = run(c.save_prune_retrain_model_files(tmp_path / "model.onnx", f"{tmp_path}/out/"))
    assert saved.deploy_model.exists()
    assert "is left on the server" in caplog.text


def test_failed_flow_leaves_nothing(client: tuple[Any, _Loop], server: ProtocolServer, tmp_path: Path) -> None:
    c, run = client
    (tmp_path / "modified.onnx").write_bytes(b"")
    (tmp_path / "record.txt").write_bytes(b"record")
    server.faults.operation_error = status(3, "bad", "RECORD_SYNTAX")
    with pytest.raises(modelpress.InvalidArgument, match="RECORD_SYNTAX"):
        run(c.save_model_files(tmp_path / "modified.onnx", tmp_path / "record.txt", f"{tmp_path}/out/m"))
    assert not server.workspaces
    assert not (tmp_path / "out").exists()


def test_cancelling_the_task_cancels_the_operation(server: ProtocolServer, tmp_path: Path) -> None:
    (tmp_path / "modified.onnx").write_bytes(b"")
    server.faults.hold_operations = True

    async def body() -> None:
        running = asyncio.Event()
        async with AsyncClient(server.target) as c:

            def show(progress: Progress) -> None:
                if progress.stage == "quantize":
                    running.set()

            flow = c.save_prune_retrain_model_files(tmp_path / "modified.onnx", f"{tmp_path}/out/", progress=show)
            task = asyncio.create_task(flow)
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(body())
    assert server.operations["operations/0"].error.code == 1
    assert not server.workspaces


def test_interrupt_cancels_the_operation(server: ProtocolServer, tmp_path: Path) -> None:
    """Ctrl-C in a process of its own, sent once its operation runs."""
    model = tmp_path / "modified.onnx"
    model.write_bytes(b"")
    server.faults.hold_operations = True
    script = (
        "import modelpress, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test run in the background ignores it
        "def show(p):\n"
        "    if p.stage == 'quantize': os.kill(os.getpid(), signal.SIGINT)\n"
        "with modelpress.Client(sys.argv[1]) as c:\n"
        "    c.save_prune_retrain_model_files(sys.argv[2], sys.argv[3], progress=show)\n"
    )
    command = [sys.executable, "-c", script, server.target, str(model), f"{tmp_path}/out/"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "KeyboardInterrupt" in process.stderr
    assert server.operations["operations/0"].error.code == 1
    assert not server.workspaces


def test_one_client_for_many_threads(server: ProtocolServer, tmp_path: Path) -> None:
    failures: list[BaseException] = []
    with Client(server.target) as c:

        def work(index: int) -> None:
            try:
                source = tmp_path / str(index)
                source.write_bytes(bytes([index]) * 100_000)
                c.upload_file("workspaces/a", str(index), source)
                c.download_file(f"workspaces/a/files/{index}", tmp_path / f"{index}.copy")
                assert (tmp_path / f"{index}.copy").read_bytes() == source.read_bytes()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_blocking_and_asyncio_clients_agree() -> None:
    def public(cls: type) -> dict[str, Callable[..., Any]]:
        return {name: value for name, value in vars(cls).items() if not name.startswith("_")}

    assert set(public(Client)) == set(public(AsyncClient))
    for name, method in public(Client).items():
        other = public(AsyncClient)[name]
        assert (
            method.__code__.co_varnames[: method.__code__.co_argcount]
            == other.__code__.co_varnames[: other.__code__.co_argcount]
        )
        assert method.__kwdefaults__ == other.__kwdefaults__
