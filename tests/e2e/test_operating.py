"""What operators do with the real binary: configure, check, read logs, back up and restore."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

import grpc
import modelpress
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from modelpress.v1 import compression_pb2, compression_pb2_grpc, workspaces_pb2, workspaces_pb2_grpc

from tests.e2e.server_process import BIN_DIR, GOLDEN_SAVE, ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

CASE = GOLDEN_SAVE / "conv2d_bn_relu_linear"


def modelpressd(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs modelpressd to its end."""
    return subprocess.run(
        [str(BIN_DIR / "modelpressd"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | variables,
    )


def test_settings_come_from_flag_variable_and_file(tmp_path: Path) -> None:
    config = tmp_path / "modelpressd.textproto"
    config.write_text(f"""\
storage {{ data_dir: "{tmp_path}" }}
work {{
  workers: 2
  lease_s: 5
}}
quotas {{ project_quota {{ project: "big" bytes: 1000 }} }}
observation {{ metrics_listen: "" }}
""")
    done = modelpressd(
        "check-config",
        f"--config={config}",
        "--workers=4",
        "--listen=localhost:0",
        MODELPRESSD_WORKERS="3",
        MODELPRESSD_LEASE_S="6",
    )
    assert done.returncode == 0, done.stderr
    assert "  workers: 4  # flag --workers\n" in done.stdout
    assert "  lease_s: 6  # variable MODELPRESSD_LEASE_S\n" in done.stdout
    assert f'  metrics_listen: ""  # {config}:7\n' in done.stdout
    assert "  drain_timeout_s: 30\n" in done.stdout
    assert "warning: child_memory_limit_mb is 0" in done.stderr

    # What it prints is a configuration, which says the same.
    printed = tmp_path / "printed.textproto"
    printed.write_text(done.stdout)
    again = modelpressd("check-config", f"--config={printed}")
    assert again.returncode == 0, again.stderr
    assert [line.split("  #")[0] for line in again.stdout.splitlines()] == [
        line.split("  #")[0] for line in done.stdout.splitlines()
    ]


def test_check_config_finds_what_would_not_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    cases = {
        f"--data_dir={file}": "is not a folder",
        f"--data_dir={tmp_path}/no/where": "cannot be made",
        "--listen=localhost": "is not of the form HOST:PORT",
        "--listen=192.0.2.1:0": "192.0.2.1:0",
        "--metrics_listen=no.such.host.invalid:1": "cannot be resolved",
        "--workers=-1": "flag --workers: workers must be 0 or more, not -1",
    }
    for flag, message in cases.items():
        done = modelpressd("check-config", f"--data_dir={tmp_path}", "--metrics_listen=", "--listen=localhost:0", flag)
        assert done.returncode == 1, flag
        assert "error: " in done.stderr, flag
        assert message in done.stderr, flag
    assert modelpressd("check-config", "--listen=localhost:0").returncode == 1  # data_dir
    done = modelpressd("check-config", f"--data_dir={tmp_path}", "--database=postgresql://me:secret@localhost:1/none")
    assert done.returncode == 1
    assert "secret" not in done.stdout + done.stderr
    assert "postgresql://me:***@localhost:1/none" in done.stdout


def test_check_config_beside_a_running_server_changes_nothing(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        before = sorted(path.name for path in server.data_dir.iterdir())
        done = modelpressd(
            "check-config", f"--data_dir={server.data_dir}", f"--listen={server.target}", "--metrics_listen="
        )
        assert done.returncode == 0, done.stderr
        assert "warning: listen" in done.stderr
        assert "in use" in done.stderr
        assert sorted(path.name for path in server.data_dir.iterdir()) == before


def test_slips_are_told(tmp_path: Path) -> None:
    for arguments, variables, message in [
        (["serve", "--worker=1"], {}, "there is no flag --worker; did you mean --workers?"),
        (["serve"], {"MODELPRESSD_WORKER": "1"}, "did you mean MODELPRESSD_WORKERS?"),
        (["server"], {}, "there is no command server; did you mean serve?"),
        (["serve", f"--config={tmp_path}/none"], {}, "No such file or directory"),
        (["health", "--workers=1"], {}, "--workers is no flag of the command health"),
    ]:
        done = modelpressd(*arguments, **variables)
        assert done.returncode == 64
        assert message in done.stderr
    done = modelpressd("--help")
    assert done.returncode == 0
    assert "--child_memory_limit_mb=0" in done.stdout
    assert "check-config" in done.stdout


def test_a_file_is_all_that_a_server_needs(tmp_path: Path) -> None:
    config = tmp_path / "modelpressd.textproto"
    config.write_text('work { workers: 2 } observation { log_format: "text" }')
    with ServerProcess(tmp_path, f"--config={config}") as server, modelpress.Client(server.target) as client:
        client.create_workspace("w1")
    assert " INFO call CreateWorkspace: OK (" in server.log()


def save_request(workspace: str, save_path: str) -> compression_pb2.SaveModelRequest:
    return compression_pb2.SaveModelRequest(
        workspace=workspace, modified_onnx_file="m.onnx", record_file="r.txt", save_path=save_path
    )


def entries(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log().splitlines()]


def test_log_follows_a_call_into_its_operation(tmp_path: Path) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = [("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01")]
    with (
        ServerProcess(tmp_path) as server,
        modelpress.Client(server.target) as client,
        grpc.insecure_channel(server.target) as channel,
    ):
        workspace = client.create_workspace("w1").name
        client.upload_file(workspace, "m.onnx", CASE / "modified.onnx")
        client.upload_file(workspace, "r.txt", CASE / "record.txt")
        request = save_request(workspace, "out/m")
        request.options.request_id = "3b0c1a52-7f4e-4d0a-9a54-0d8a3f1c2b6e"
        answer = compression_pb2_grpc.CompressionStub(channel).SaveModel(request, metadata=metadata)
        operations = operations_pb2_grpc.OperationsStub(channel)
        done = operations.WaitOperation(operations_pb2.WaitOperationRequest(name=answer.name))
        assert done.done
        details = modelpress.v1.operations_pb2.OperationMetadata()
        assert done.metadata.Unpack(details)
        assert details.trace_id == trace_id
        hostile = 'no\nsuch"thing\r\n{"severity":"ERROR"}'
        with pytest.raises(grpc.RpcError):
            operations.GetOperation(operations_pb2.GetOperationRequest(name=hostile))
        with pytest.raises(grpc.RpcError):
            workspaces_pb2_grpc.WorkspacesStub(channel).GetWorkspace(
                workspaces_pb2.GetWorkspaceRequest(name="workspaces/none")
            )
        client.get_workspace(workspace)

    log = entries(server)
    calls = [entry for entry in log if "rpc" in entry]
    assert [(call["rpc"].rsplit("/")[-1], call["code"]) for call in calls if "Upload" not in call["rpc"]] == [
        ("CreateWorkspace", "OK"),
        ("SaveModel", "OK"),
        ("GetOperation", "INVALID_ARGUMENT"),
        ("GetWorkspace", "NOT_FOUND"),
    ]
    save = next(call for call in calls if call["rpc"].endswith("SaveModel"))
    identifier = answer.name.removeprefix("operations/")
    assert save["trace_id"] == trace_id
    assert save["span_id"] != "00f067aa0ba902b7"
    assert save["operation"] == identifier
    assert save["request_id"] == "3b0c1a52-7f4e-4d0a-9a54-0d8a3f1c2b6e"
    assert save["resource"] == workspace
    assert save["project"] == "default"
    assert save["principal"]
    assert save["peer"]
    assert 0 < save["duration_s"] < 60
    refused = next(call for call in calls if call["rpc"].endswith("GetOperation"))
    assert refused["resource"] == hostile
    assert refused["reason"] == "NAME_INVALID"
    work = [entry for entry in log if entry.get("operation") == identifier and "rpc" not in entry]
    assert len(work) >= 2
    assert {entry["trace_id"] for entry in work} == {trace_id}
    assert {entry["method"] for entry in work} == {"SaveModel"}


def test_what_libraries_say_of_hostile_messages_is_logged_as_all_else(tmp_path: Path) -> None:
    no_utf8 = b"\x0a\x01\xff"  # field 1
    with ServerProcess(tmp_path) as server, grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(
            "/modelpress.v1.Workspaces/GetWorkspace",
            request_serializer=lambda request: request,
            response_deserializer=workspaces_pb2.Workspace.FromString,
        )
        for _ in range(30):
            with pytest.raises(grpc.RpcError):
                call(no_utf8)
    complaints = [entry for entry in entries(server) if entry["message"].startswith("protobuf: ")]
    assert 0 < len(complaints) < 30  # they can be repeated at will


def test_metrics_of_a_working_server(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--metrics_listen=localhost:0") as server, modelpress.Client(server.target) as client:
        workspace = client.create_workspace("w1").name
        client.upload_file(workspace, "in/m.onnx", CASE / "modified.onnx")
        client.upload_file(workspace, "in/r.txt", CASE / "record.txt")
        # All files beside a model are its input: the outputs go elsewhere.
        client.save_model(workspace, "in/m.onnx", "in/r.txt", "out/m").result(timeout=60)
        again = client.save_model(workspace, "in/m.onnx", "in/r.txt", "out/m")
        assert again.metadata.cached
        message = next(entry["message"] for entry in entries(server) if entry["message"].startswith("metrics on port"))
        with urllib.request.urlopen(f"http://localhost:{message.split()[3]}/metrics") as answer:
            text = answer.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["modelpress_workers"] == "1"
    assert values["modelpress_workers_busy"] == "0"
    assert values["modelpress_operations_cached_total"] == "1"
    assert values["modelpress_oldest_pending_seconds"] == "0"
    assert float(values["modelpress_upload_bytes_total"]) >= (CASE / "modified.onnx").stat().st_size


def test_backup_under_load_comes_back_whole(tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    original = tmp_path / "original"
    original.mkdir()
    stop = threading.Event()
    failures: list[BaseException] = []

    def load(target: str, workspace: str, seed: int) -> None:
        try:
            with modelpress.Client(target) as client, grpc.insecure_channel(target) as channel:
                compression = compression_pb2_grpc.CompressionStub(channel)
                number = 0
                while not stop.is_set():
                    source = tmp_path / f"source{seed}"
                    source.write_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest() * 4000)
                    client.upload_file(workspace, f"load{seed}/{number}", source)
                    request = save_request(workspace, f"out{seed}/{number}")
                    request.options.no_cache = True
                    compression.SaveModel(request)
                    if number >= 5:
                        client.delete_file(f"{workspace}/files/load{seed}/{number - 5}")
                    number += 1
        except BaseException as error:  # the test's own thread tells it
            failures.append(error)

    with ServerProcess(original) as server, modelpress.Client(server.target) as client:
        workspace = client.create_workspace("w1").name
        client.upload_file(workspace, "m.onnx", CASE / "modified.onnx")
        client.upload_file(workspace, "r.txt", CASE / "record.txt")
        threads = [threading.Thread(target=load, args=(server.target, workspace, seed)) for seed in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                done = modelpressd("backup", f"--data_dir={server.data_dir}", f"--backup_dir={backup}")
                assert done.returncode == 0, done.stderr
                done = modelpressd("backup", f"--backup_dir={backup}", "--verify")
                assert done.returncode == 0, done.stderr
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        server.kill()
    assert not failures, failures

    restored = tmp_path / "restored"
    restored.mkdir()
    done = modelpressd("restore", f"--data_dir={restored / 'data'}", f"--backup_dir={backup}")
    assert done.returncode == 0, done.stderr
    assert modelpressd("restore", f"--data_dir={restored / 'data'}", f"--backup_dir={backup}").returncode == 1
    with ServerProcess(restored) as server, modelpress.Client(server.target) as client:
        operations = client.list_operations()
        unfinished = [operation for operation in operations if not operation.done()]
        assert unfinished, "operations came quicker than one worker does them, so the backup has some that wait"
        for operation in operations:
            operation.result(timeout=300)
        files = client.list_files(workspace)
        assert any(file.name.startswith(f"{workspace}/files/load") for file in files)
        for file in files:
            target = tmp_path / "download"
            client.download_file(file.name, target)
            assert hashlib.sha256(target.read_bytes()).hexdigest() == file.sha256

    # A byte that turns is found.
    blob = next(path for path in sorted((backup / "blobs").rglob("*")) if path.is_file() and path.stat().st_size > 0)
    blob.chmod(0o640)
    content = bytearray(blob.read_bytes())
    content[0] ^= 1
    blob.write_bytes(content)
    done = modelpressd("backup", f"--backup_dir={backup}", "--verify")
    assert done.returncode == 1
    assert str(blob) in done.stderr
    assert "is damaged" in done.stderr
