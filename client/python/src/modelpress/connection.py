"""How a client reaches a server that wants to know who calls: TLS, a token, and what travels with every call."""

import ipaddress
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import grpc

DEFAULT_TARGET = "localhost:50051"
# Version 00 of W3C Trace Context, section 3.2; ids of zeros are not valid.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_TOKEN = re.compile(r"[!-~]+", re.ASCII)  # what a header may hold
# Of a gRPC target, whose authority (what stands between "//" and the next "/") must be empty.
_SCHEME = re.compile(r"(?:dns|ipv4|ipv6):(?:///|/)?")
_WITH_PORT = re.compile(
    r"(?:\[([^\]]+)\]|([^:]+))(?::[0-9]+)?", re.ASCII
)  # or without, unless it is IPv6 without brackets
_LOOPBACK_IPV4 = ipaddress.IPv4Network("127.0.0.0/8")
_LOOPBACK_IPV6 = ipaddress.IPv6Address("::1")


class ConnectionOptions(TypedDict, total=False):
    """How to connect. What is not given, or None, comes from the variable of that name: MODELPRESS_TLS_CA and so on.

    Attributes:
        tls: TLS also to this machine (MODELPRESS_TLS=1); to others it is always used.
        tls_ca: PEM file of root certificates to trust instead of the system's; implies TLS.
        tls_cert: PEM file of the client's certificate chain (mTLS), with `tls_key`; implies TLS.
        tls_key: PEM file of its private key.
        tls_server_name: name that the server's certificate is made for, where it is not the target's; implies TLS.
        token_file: file with a bearer token and nothing else, read anew for every call. It goes over TLS, or to this
            machine.
        project: for administrators: the project to act in.
    """

    tls: bool | None
    tls_ca: str | os.PathLike[str] | None
    tls_cert: str | os.PathLike[str] | None
    tls_key: str | os.PathLike[str] | None
    tls_server_name: str | None
    token_file: str | os.PathLike[str] | None
    project: str | None


@dataclass(frozen=True)
class Connection:
    """A target, and what its channel and calls need.

    Attributes:
        target: a gRPC target.
        credentials: grpc.ChannelCredentials; None: plaintext.
        channel_options: (name, value) pairs.
        token_file: see ConnectionOptions.
        project: the same.
        traceparent: W3C Trace Context of whoever calls; empty: each call is part of `trace`.
        trace: a trace id of this connection.
    """

    target: str
    credentials: Any
    channel_options: tuple[tuple[str, str | int], ...]
    token_file: str
    project: str
    traceparent: str
    trace: str

    def call_arguments(self) -> dict[str, Any]:
        """What every call is given, by gRPC's names.

        Raises:
            OSError: the token file cannot be read.
            ValueError: it does not hold exactly one token.
        """
        metadata = [("traceparent", self.traceparent or f"00-{self.trace}-{_random_hex(8)}-00")]
        if self.project:
            metadata.append(("modelpress-project", self.project))
        arguments: dict[str, Any] = {"metadata": metadata}
        if self.token_file:
            token = _read_token(self.token_file)
            if is_loopback(self.target):
                metadata.append(("authorization", f"Bearer {token}"))
            else:  # gRPC sends it over secured channels only
                arguments["credentials"] = grpc.access_token_call_credentials(token)
        return arguments


def make_connection(target: str | None, credentials: Any, options: ConnectionOptions) -> Connection:
    """The connection that a client's arguments and the environment ask for.

    Args:
        target: None: variable MODELPRESS_TARGET, else localhost:50051.
        credentials: grpc.ChannelCredentials, in place of the options and variables of TLS; None: as those say.
        options: as far as given.

    Raises:
        TypeError: an unknown option.
        ValueError: options that do not go together.
        OSError: a file cannot be read.
    """
    unknown = sorted(options.keys() - ConnectionOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"unexpected keyword argument: {', '.join(unknown)}")
    chosen = target or os.environ.get("MODELPRESS_TARGET") or DEFAULT_TARGET
    channel_options: list[tuple[str, str | int]] = []
    if is_loopback(chosen):  # or gRPC would go by the proxy of http_proxy, which is another machine
        channel_options.append(("grpc.enable_http_proxy", 0))
    if credentials is None:
        credentials = _tls_credentials(chosen, options)
        if name := _option(options, "tls_server_name"):
            channel_options.append(("grpc.ssl_target_name_override", name))
    else:
        given = sorted(key for key, value in options.items() if key.startswith("tls") and value is not None)
        if given:
            raise ValueError(f"credentials take the place of {', '.join(given)}: give either")
    traceparent = os.environ.get("TRACEPARENT", "")
    return Connection(
        target=chosen,
        credentials=credentials,
        channel_options=tuple(channel_options),
        token_file=_option(options, "token_file"),
        project=_option(options, "project"),
        traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else "",
        trace=_random_hex(16),
    )


def is_loopback(target: str) -> bool:
    """Whether every address of a gRPC target is this machine, so that plaintext is safe.

    What cannot be told for certain is not: names other than localhost, escapes, name servers of one's own.
    """
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    scheme = _SCHEME.match(target)
    addresses = target[scheme.end() :] if scheme else target
    return all(_is_loopback_address(address) for address in addresses.split(","))


def _is_loopback_address(address: str) -> bool:
    match = _WITH_PORT.fullmatch(address)
    host = match[1] or match[2] if match else address
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return number in _LOOPBACK_IPV4 or number == _LOOPBACK_IPV6


def _option(options: ConnectionOptions, name: str) -> str:
    value: Any = options.get(name)
    return os.environ.get(f"MODELPRESS_{name.upper()}", "") if value is None else os.fspath(value)


def _tls_credentials(target: str, options: ConnectionOptions) -> Any:
    """None for plaintext."""
    ca, cert, key = (_option(options, name) for name in ("tls_ca", "tls_cert", "tls_key"))
    if bool(cert) != bool(key):
        raise ValueError("tls_cert and tls_key go together: give both, or none")
    wanted = options.get("tls")
    if wanted is None:
        wanted = os.environ.get("MODELPRESS_TLS") == "1"
    if not (wanted or ca or cert or _option(options, "tls_server_name")) and is_loopback(target):
        return None
    return grpc.ssl_channel_credentials(
        Path(ca).read_bytes() if ca else None,
        Path(key).read_bytes() if key else None,
        Path(cert).read_bytes() if cert else None,
    )


def _read_token(path: str) -> str:
    token = Path(path).read_bytes().strip().decode("ascii", errors="replace")
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{path} must hold one token and nothing else; a token has neither spaces nor line breaks")
    return token


def _random_hex(size: int) -> str:
    """Of `size` bytes, not all zero."""
    text = secrets.token_hex(size)
    return text if text.strip("0") else _random_hex(size)
