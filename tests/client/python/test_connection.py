"""TLS, tokens, project and trace context, against servers with certificates."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import modelpress
import modelpress.torch as amct
import pytest
from modelpress import AsyncClient, Client, RetryPolicy
from modelpress.connection import is_loopback
from protocol_server import ProtocolServer, status

ONCE = RetryPolicy(attempts=1)
VARIABLES = ("TLS", "TLS_CA", "TLS_CERT", "TLS_KEY", "TLS_SERVER_NAME", "TOKEN_FILE", "PROJECT", "TARGET")
# gRPC targets that are this machine, and some that are not or may not be: every client has the same opinion of them.
TARGETS = json.loads((Path(__file__).parent.parent / "loopback_targets.json").read_text())
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-00")


@dataclass(frozen=True)
class Certificates:
    """PEM files: a root; certificates that it has signed."""

    root: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
    openssl("req", "-x509", *curve, "-keyout", "root.key", "-out", "root.pem", "-subj", "/CN=root", "-days", "2")
    for name, names in (("server", "DNS:models.example,DNS:localhost"), ("client", "DNS:trainer")):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        signing = ("-CA", "root.pem", "-CAkey", "root.key", "-days", "2", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    paths = (folder / name for name in ("root.pem", "server.pem", "server.key", "client.pem", "client.key"))
    return Certificates(*paths)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"MODELPRESS_{name}", raising=False)
    monkeypatch.delenv("TRACEPARENT", raising=False)


def start(certificates: Certificates, *, mutual: bool) -> Iterator[ProtocolServer]:
    pair = (certificates.server_key.read_bytes(), certificates.server.read_bytes())
    root = certificates.root.read_bytes() if mutual else None
    server = ProtocolServer(grpc.ssl_server_credentials([pair], root, require_client_auth=mutual))
    yield server
    server.stop()


@pytest.fixture
def tls_server(certificates: Certificates) -> Iterator[ProtocolServer]:
    yield from start(certificates, mutual=False)


@pytest.fixture
def mutual_server(certificates: Certificates) -> Iterator[ProtocolServer]:
    yield from start(certificates, mutual=True)


def test_tls_with_a_root_of_ones_own(tls_server: ProtocolServer, certificates: Certificates) -> None:
    with Client(tls_server.target, tls_ca=certificates.root) as client:
        assert client.create_workspace("w").name == "workspaces/w"
    with pytest.raises(modelpress.Unavailable), Client(tls_server.target, tls=True, retry=ONCE) as client:
        client.list_workspaces()  # the system does not know the root
    with pytest.raises(modelpress.Unavailable), Client(tls_server.target, retry=ONCE) as client:
        client.list_workspaces()  # plaintext


def test_the_server_must_be_who_it_should(tls_server: ProtocolServer, certificates: Certificates) -> None:
    root = certificates.root
    with (
        pytest.raises(modelpress.Unavailable),
        Client(tls_server.target, tls_ca=root, tls_server_name="other.example", retry=ONCE) as client,
    ):
        client.list_workspaces()
    target = f"127.0.0.1:{tls_server.port}"
    with pytest.raises(modelpress.Unavailable), Client(target, tls_ca=root, retry=ONCE) as client:
        client.list_workspaces()
    with Client(target, tls_ca=root, tls_server_name="models.example") as client:
        assert client.list_workspaces() == []


def test_a_client_certificate(mutual_server: ProtocolServer, certificates: Certificates) -> None:
    root = certificates.root
    with pytest.raises(modelpress.Unavailable), Client(mutual_server.target, tls_ca=root, retry=ONCE) as client:
        client.list_workspaces()
    own: dict[str, Any] = {"tls_cert": certificates.client, "tls_key": certificates.client_key}
    with Client(mutual_server.target, tls_ca=root, **own) as client:
        assert client.list_workspaces() == []
    for half in own.items():
        with pytest.raises(ValueError, match="go together"):
            Client(mutual_server.target, tls_ca=root, **dict([half]))


def test_the_environment_decides_where_no_argument_does(
    mutual_server: ProtocolServer, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    values = {
        "TARGET": f"127.0.0.1:{mutual_server.port}",
        "TLS": "1",
        "TLS_CA": certificates.root,
        "TLS_CERT": certificates.client,
        "TLS_KEY": certificates.client_key,
        "TLS_SERVER_NAME": "models.example",
        "TOKEN_FILE": token,
        "PROJECT": "vision",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"MODELPRESS_{name}", str(value))
    with Client() as client:
        client.list_workspaces()
    metadata = mutual_server.metadata.calls[-1][1]
    assert metadata["authorization"] == "Bearer secret"
    assert metadata["modelpress-project"] == "vision"
    with Client(project="speech") as client:
        client.list_workspaces()
    assert mutual_server.metadata.calls[-1][1]["modelpress-project"] == "speech"


def test_every_call_carries_who_calls(server: ProtocolServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(" first\t\n")
    source = tmp_path / "m.onnx"
    source.write_bytes(b"model")
    with Client(server.target, token_file=token, project="vision") as client:
        client.create_workspace("w")
        client.upload_file("workspaces/w", "m.onnx", source)
        token.write_text("second")  # rotated
        client.download_file("workspaces/w/files/m.onnx", tmp_path / "copy")
        client.save_model("workspaces/w", "m.onnx", "m.onnx", "out/m", no_cache=True).result()
    calls = server.metadata.calls
    expected = {"CreateWorkspace", "StartUpload", "UploadBytes", "DownloadFile", "SaveModel"}
    assert expected <= {method for method, _ in calls}
    before = {"CreateWorkspace", "StartUpload", "UploadBytes", "GetFile"}
    for method, metadata in calls:
        assert metadata["modelpress-project"] == "vision", method
        if method in before:
            assert metadata["authorization"] == "Bearer first", method
        elif method in expected:
            assert metadata["authorization"] == "Bearer second", method
    traces = [TRACEPARENT.fullmatch(metadata["traceparent"]) for _, metadata in calls]
    assert len({trace[1] for trace in traces if trace}) == 1, "one trace for one client"
    assert len({trace[2] for trace in traces if trace}) == len(calls), "and an id for each call"
    assert server.requests[-1].options.no_cache
    with Client(server.target) as client:
        client.list_workspaces()
    assert calls[-1][1].keys() & {"authorization", "modelpress-project"} == set()
    other = TRACEPARENT.fullmatch(calls[-1][1]["traceparent"])
    assert other is not None
    assert other[1] not in {trace[1] for trace in traces if trace}


def test_asyncio_too(tls_server: ProtocolServer, certificates: Certificates, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    source = tmp_path / "f"
    source.write_bytes(b"content")

    async def run() -> None:
        options: dict[str, Any] = {"tls_ca": certificates.root, "token_file": token}
        async with AsyncClient(tls_server.target, **options) as client:
            await client.create_workspace("w")
            await client.upload_file("workspaces/w", "f", source)
            await client.download_file("workspaces/w/files/f", tmp_path / "copy")

    asyncio.run(run())
    assert (tmp_path / "copy").read_bytes() == b"content"
    assert {metadata["authorization"] for _, metadata in tls_server.metadata.calls} == {"Bearer secret"}


def test_the_callers_trace_goes_on(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch) -> None:
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    monkeypatch.setenv("TRACEPARENT", given)
    with Client(server.target) as client:
        client.list_workspaces()
    assert server.metadata.calls[-1][1]["traceparent"] == given
    for bad in ("", given.upper(), given + "0", f"00-{'0' * 32}-00f067aa0ba902b7-01", given.replace("00-", "ff-", 1)):
        monkeypatch.setenv("TRACEPARENT", bad)
        with Client(server.target) as client:
            client.list_workspaces()
        assert TRACEPARENT.fullmatch(server.metadata.calls[-1][1]["traceparent"]), bad


def test_a_token_leaves_this_machine_over_tls_only(
    server: ProtocolServer, tls_server: ProtocolServer, certificates: Certificates, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    # 0.0.0.0 is this machine, but as far as names tell it might be another one.
    insecure = grpc.experimental.insecure_channel_credentials()
    with (
        pytest.raises(modelpress.Error, match="security level"),
        Client(f"0.0.0.0:{server.port}", credentials=insecure, token_file=token, retry=ONCE) as client,
    ):
        client.list_workspaces()
    assert server.metadata.calls == []
    target = f"0.0.0.0:{tls_server.port}"
    with Client(target, tls_ca=certificates.root, tls_server_name="models.example", token_file=token) as client:
        client.list_workspaces()
    assert tls_server.metadata.calls[-1][1]["authorization"] == "Bearer secret"


def test_this_machine_is_reached_without_a_proxy(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for host in ("localhost", "127.0.0.1", "ipv4:127.0.0.1"):
        with Client(f"{host}:{server.port}", retry=ONCE) as client:
            assert client.list_workspaces() == []


def test_bad_token_files_are_named(server: ProtocolServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    with Client(server.target, token_file=token) as client:
        with pytest.raises(FileNotFoundError, match="token"):
            client.list_workspaces()
        for bad in (b"", b" \n", b"two tokens", b"two\nlines", b"\xff\xfe", b"nul\0"):
            token.write_bytes(bad)
            with pytest.raises(ValueError, match="must hold one token and nothing else"):
                client.list_workspaces()
    assert server.metadata.calls == []


def test_what_does_not_go_together(server: ProtocolServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give either"):
        Client(server.target, credentials=grpc.ssl_channel_credentials(), tls_ca="ca.pem")
    with pytest.raises(FileNotFoundError):
        Client(server.target, tls_ca=tmp_path / "none.pem")
    unknown: Any = {"tls_roots": "ca.pem"}
    with pytest.raises(TypeError, match="tls_roots"):
        Client(server.target, **unknown)


def test_credentials_of_ones_own(tls_server: ProtocolServer, certificates: Certificates) -> None:
    credentials = grpc.ssl_channel_credentials(certificates.root.read_bytes())
    with Client(tls_server.target, credentials=credentials) as client:
        assert client.list_workspaces() == []


def test_sessions_of_modelpress_torch(tls_server: ProtocolServer, certificates: Certificates, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    session = amct.connect(tls_server.target, tls_ca=certificates.root, token_file=token, project="vision")
    session.save_model(str(model), str(model), str(tmp_path / "out" / "x"))
    for _, metadata in tls_server.metadata.calls:
        assert (metadata["authorization"], metadata["modelpress-project"]) == ("Bearer secret", "vision")


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (16, "AUTHENTICATION_FAILED", modelpress.Unauthenticated),
        (7, "ACCESS_DENIED", modelpress.PermissionDenied),
        (8, "QUOTA_EXCEEDED", modelpress.ResourceExhausted),
        (14, "STORAGE_UNAVAILABLE", modelpress.Unavailable),
    ],
)
def test_errors_of_access_have_their_classes(
    code: int, reason: str, expected: type[modelpress.Error], server: ProtocolServer
) -> None:
    server.faults.operation_error = status(code, "no", reason, quota="bytes")
    with Client(server.target) as client:
        client.create_workspace("w")
        server.files["workspaces/w/files/m.onnx"] = b"model"
        with pytest.raises(expected) as raised:
            client.save_model("workspaces/w", "m.onnx", "m.onnx", "out/m").result()
    assert raised.value.reason == reason
    assert raised.value.metadata["quota"] == "bytes"


@pytest.mark.parametrize("target", TARGETS["this_machine"])
def test_plaintext_to_this_machine(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize("target", TARGETS["others"])
def test_plaintext_only_to_this_machine(target: str) -> None:
    assert not is_loopback(target)
