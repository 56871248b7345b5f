"""Two projects on one server, callers of each, and their calls made comparable: for the tests of who sees what."""

from __future__ import annotations

import base64
import importlib
import json
import pkgutil
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import grpc
import modelpress.v1
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pb2, text_format
from google.rpc import error_details_pb2, status_pb2

from tests.e2e.server_process import BIN_DIR, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

assert error_details_pb2  # its types are among the details of errors, which are shown as text

TIMEOUT_S = 60
ISSUER, AUDIENCE, KEY_ID = "https://issuer.example", "modelpress", "key-1"
STATUS_TRAILER = "grpc-status-details-bin"
GAMMA_BYTES, GAMMA_WORKSPACES, GAMMA_PENDING = 100_000, 2, 1


def methods() -> dict[str, Any]:
    """Every method of the API by "SERVICE/METHOD", as its descriptor."""
    modules = [
        importlib.import_module(f"modelpress.v1.{module.name}")
        for module in pkgutil.iter_modules(modelpress.v1.__path__)
        if module.name.endswith("_pb2")
    ]
    return {
        f"{service.full_name}/{method.name}": method
        for module in [operations_pb2, *modules]
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def _streams(method: Any) -> tuple[bool, bool]:
    """Whether the caller, and whether the server, sends a stream."""
    proto = descriptor_pb2.ServiceDescriptorProto()
    method.containing_service.CopyToProto(proto)
    mine = proto.method[method.index]
    return mine.client_streaming, mine.server_streaming


@dataclass(frozen=True)
class Names:
    """What a call can name of a project."""

    workspace: str
    folder: str
    upload: str
    operation: str
    sha256: str

    def file(self, path: str) -> str:
        """Name of a file in the folder."""
        return f"workspaces/{self.workspace}/files/{self.folder}/{path}"


@dataclass(frozen=True)
class Answer:
    """All that a caller gets to see of a call but the time it took."""

    code: str
    message: str
    details: str  # google.rpc.Status with what is in it
    trailers: tuple[tuple[str, str], ...]
    responses: tuple[str, ...]

    def without(self, names: Names, **others: str) -> Answer:
        """The answer with every name replaced by what kind of name it is, and times left out."""
        words = {value: kind for kind, value in (asdict(names) | others).items()}
        pattern = re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)))

        def neutral(text: str) -> str:
            text = pattern.sub(lambda match: f"<{words[match[0]]}>", text)
            text = re.sub(r"\b(create|update|start|end)_time \{[^}]*\}", r"\1_time {}", text)
            return re.sub(r'trace_id: "\w+"', "", text)

        return Answer(
            self.code,
            neutral(self.message),
            neutral(self.details),
            tuple((key, neutral(value)) for key, value in self.trailers),
            tuple(neutral(response) for response in self.responses),
        )


class Caller:
    """Somebody with credentials, on a connection of their own."""

    def __init__(self, target: str, certificate: bytes, token: str = "", project: str = "") -> None:
        self.channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(certificate))
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        self._metadata += [("modelpress-project", project)] if project else []

    def start(self, name: str, *requests: Any) -> Any:
        """Calls the method "SERVICE/METHOD"; gives what grpc gives for a call that is under way."""
        method = methods()[name]
        sends, receives = _streams(method)
        kind = f"{'stream' if sends else 'unary'}_{'stream' if receives else 'unary'}"
        stub = getattr(self.channel, kind)(
            f"/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=method.output_type._concrete_class.FromString,
        )
        options: dict[str, Any] = {"metadata": self._metadata, "timeout": TIMEOUT_S}
        if receives:
            return stub(iter(requests) if sends else requests[0], **options)
        return stub.future(iter(requests) if sends else requests[0], **options)

    def call(self, name: str, *requests: Any) -> Any:
        """Calls the method and returns its response, of a stream a list; grpc.RpcError if it fails."""
        call = self.start(name, *requests)
        return list(call) if _streams(methods()[name])[1] else call.result()

    def answer(self, name: str, *requests: Any) -> Answer:
        """Calls the method; what came of it."""
        call = self.start(name, *requests)
        responses: list[Any] = []
        try:
            if _streams(methods()[name])[1]:
                responses.extend(call)
            else:
                responses.append(call.result())
        except grpc.RpcError:
            pass
        trailers = dict(call.trailing_metadata() or ())
        details = status_pb2.Status.FromString(trailers.pop(STATUS_TRAILER, b""))
        return Answer(
            call.code().name,
            call.details() or "",
            text_format.MessageToString(details),
            tuple(sorted((key, str(value)) for key, value in trailers.items())),
            tuple(text_format.MessageToString(response) for response in responses),
        )

    def pages(self, name: str, request: Any) -> list[Any]:
        """All pages of a list."""
        pages = [self.call(name, request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(self.call(name, request))
        return pages


def _openssl(*arguments: str | Path, text: bytes = b"") -> bytes:
    return subprocess.run(
        ["openssl", *(str(argument) for argument in arguments)], input=text, check=True, capture_output=True
    ).stdout


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Tenants:
    """A server with TLS that knows the callers, by name.

    alpha and beta have a writer and a reader, beta also one with a JWT; gamma has a writer and small quotas; the admin
    belongs to a project of their own, "operators".
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = folder / "issuer.key"
        certificate, key = folder / "server.pem", folder / "server.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"),
            *("-subj", "/CN=test", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        )
        self.certificate = certificate.read_bytes()
        self._tokens: dict[str, str] = {}
        entries = []
        for project, role in [
            ("alpha", "writer"),
            ("alpha", "reader"),
            ("beta", "writer"),
            ("beta", "reader"),
            ("gamma", "writer"),
            ("operators", "admin"),
        ]:
            name = f"{project}-{role}"
            made = subprocess.run(
                [
                    *(BIN_DIR / "modelpressd", "create-token"),
                    *(f"--principal={name}", f"--project={project}", f"--role={role}"),
                ],
                check=True,
                capture_output=True,
                text=True,
            )
            self._tokens[name], entry = made.stdout.split("\n", 1)
            entries.append(entry)
        (folder / "credentials").write_text("".join(entries))
        _openssl("genrsa", "-out", self._key, "2048")
        modulus = _openssl("rsa", "-in", self._key, "-noout", "-modulus").decode().strip().removeprefix("Modulus=")
        key_set = {
            "keys": [
                {
                    "kty": "RSA",
                    "kid": KEY_ID,
                    "alg": "RS256",
                    "use": "sig",
                    "n": _base64(bytes.fromhex(modulus)),
                    "e": "AQAB",
                }
            ]
        }
        (folder / "jwks.json").write_text(json.dumps(key_set))
        self._tokens["beta-jwt"] = self.jwt("beta", "writer")
        (folder / "config").write_text(
            f'quotas {{ project_quota {{ project: "gamma" bytes: {GAMMA_BYTES} '
            f"workspaces: {GAMMA_WORKSPACES} pending: {GAMMA_PENDING} }} }}"
        )
        self.server = ServerProcess(
            folder,
            f"--config={folder / 'config'}",
            f"--tls_cert={certificate}",
            f"--tls_key={key}",
            f"--credentials_file={folder / 'credentials'}",
            f"--jwks_file={folder / 'jwks.json'}",
            f"--jwt_issuer={ISSUER}",
            f"--jwt_audience={AUDIENCE}",
            "--health_listen=localhost:0",
            "--threads_per_operation=1",
        )
        self._callers: dict[tuple[str, str], Caller] = {}

    def jwt(self, project: str, role: str) -> str:
        """A JWT that the server's key set vouches for."""
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": f"{project}-jwt",
            "exp": int(time.time()) + 3600,
            "project": project,
            "role": role,
        }
        parts = [_base64(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": KEY_ID, "typ": "JWT"}, claims)]
        signed = ".".join(parts)
        signature = _openssl("dgst", "-sha256", "-sign", self._key, text=signed.encode())
        return f"{signed}.{_base64(signature)}"

    def caller(self, name: str, project: str = "") -> Caller:
        """The caller of that name; "" has no credentials. `project` is what they say they speak for."""
        key = name, project
        if key not in self._callers:
            self._callers[key] = Caller(
                self.server.target, self.certificate, self._tokens.get(name, "") if name else "", project
            )
        return self._callers[key]

    def __enter__(self) -> Tenants:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for caller in self._callers.values():
            caller.channel.close()
        self.server.stop()


def strings(message: Any) -> Iterator[str]:
    """All text in a message that is not empty, in the messages in it too."""
    for field, value in message.ListFields():
        values: Sequence[Any] = value if field.label == field.LABEL_REPEATED else [value]
        for one in values:
            if field.type == field.TYPE_STRING:
                yield one
            elif field.type == field.TYPE_MESSAGE:
                yield from strings(one)
