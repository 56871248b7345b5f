"""The flags of security as an operator gives them: certificates made with openssl, a token made with create-token."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import grpc
import pytest
from modelpress.v1 import workspaces_pb2, workspaces_pb2_grpc

from tests.e2e.server_process import BIN_DIR, SOURCE_DIR, ServerProcess

if TYPE_CHECKING:
    from pathlib import Path


def modelpressd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN_DIR / "modelpressd", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def tls_flags(tmp_path: Path) -> list[str]:
    """Flags of a server with a certificate of its own making, which is its own CA."""
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
            ),
            *("-subj", "/CN=test", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return [f"--tls_cert={certificate}", f"--tls_key={key}"]


def list_workspaces(channel: grpc.Channel, token: str = "") -> list[str]:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    stub = workspaces_pb2_grpc.WorkspacesStub(channel)
    response = stub.ListWorkspaces(workspaces_pb2.ListWorkspacesRequest(), metadata=metadata, timeout=30)
    return [workspace.name for workspace in response.workspaces]


def test_token_over_tls(tmp_path: Path, tls_flags: list[str]) -> None:
    made = modelpressd("create-token", "--principal=ci", "--project=vision", "--role=reader", "--expire_in_h=1")
    assert made.returncode == 0, made.stderr
    token, entry = made.stdout.split("\n", 1)
    assert token.startswith("mp_")
    assert token not in entry
    credentials = tmp_path / "credentials"
    credentials.write_text(entry)
    with ServerProcess(
        tmp_path, *tls_flags, f"--credentials_file={credentials}", "--health_listen=localhost:0"
    ) as server:
        certificate = (tmp_path / "server.pem").read_bytes()
        with grpc.secure_channel(server.target, grpc.ssl_channel_credentials(certificate)) as channel:
            assert list_workspaces(channel, token) == []
            with pytest.raises(grpc.RpcError) as refused:
                list_workspaces(channel)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as denied:
                workspaces_pb2_grpc.WorkspacesStub(channel).CreateWorkspace(
                    workspaces_pb2.CreateWorkspaceRequest(), metadata=[("authorization", f"Bearer {token}")], timeout=30
                )
            assert denied.value.code() == grpc.StatusCode.PERMISSION_DENIED
        probe = modelpressd("health", f"--target={server.target}", f"--tls_ca={tmp_path / 'server.pem'}")
        assert probe.returncode == 0, probe.stderr
        assert modelpressd("health", f"--target={server.target}").returncode == 1
        assert token not in server.log()


def test_strangers_cannot_fill_the_log(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text(
        modelpressd("create-token", "--principal=ci", "--project=vision", "--role=reader").stdout.split("\n", 1)[1]
    )
    with (
        ServerProcess(tmp_path, f"--credentials_file={credentials}") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        before = server.log().count("\n")
        for path in ("/modelpress.v1.Workspaces/ListWorkspaces", "/modelpress.v1.Workspaces/None", "/made/Up"):
            call = channel.unary_unary(path)
            for _ in range(50):
                with pytest.raises(grpc.RpcError) as refused:
                    call(b"", metadata=[("authorization", "Bearer none")], timeout=30)
                assert refused.value.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
        lines = server.log().splitlines()[before:]
    assert 0 < len(lines) <= 20, lines
    assert all("refused: " in line for line in lines), lines


def test_the_image_does_not_switch_protection_off() -> None:
    command = re.search(r"^CMD (.*)$", (SOURCE_DIR / "Dockerfile").read_text(), re.MULTILINE)
    assert command is not None
    done = modelpressd(*json.loads(command[1]))
    assert done.returncode == 1
    assert "--tls_cert" in done.stderr
    assert "--insecure_plaintext" in done.stderr


def test_wrong_usage_is_told(tmp_path: Path, tls_flags: list[str]) -> None:
    data = f"--data_dir={tmp_path / 'data'}"
    for flags, told in [
        (["--listen=0.0.0.0:0"], "--tls_cert"),
        (["--listen=0.0.0.0:0", *tls_flags], "--credentials_file"),
        (["--listen=localhost:0", tls_flags[0]], "--tls_key"),
        (["--listen=localhost:0", f"--credentials_file={tmp_path / 'none'}"], "none"),
    ]:
        started = modelpressd("serve", data, "--metrics_listen=", *flags)
        assert started.returncode == 1
        assert told in started.stderr
    for flags, told in [
        (["--project=vision", "--role=reader"], "--principal"),
        (["--principal=ci", "--project=Vision", "--role=reader"], "project"),
        (["--principal=ci", "--project=vision", "--role=root"], "--role"),
        (["--principal=ci", "--project=vision", "--role=reader", "--expire_in_h=-1"], "--expire_in_h"),
    ]:
        made = modelpressd("create-token", *flags)
        assert made.returncode == 64
        assert told in made.stderr
        assert not made.stdout
