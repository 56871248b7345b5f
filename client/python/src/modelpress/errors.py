"""Exceptions of the client: one class per gRPC status code, with the service's reason and the place in a file.

Every failure that the service reports carries a `google.rpc.Status` with an `ErrorInfo`
(api/modelpress/v1/errors.proto), both as an RPC's error and as an operation's. A failure without details (a broken
connection, say) has an empty `reason`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.rpc import error_details_pb2, status_pb2

DOMAIN = "modelpress"
_STATUS_TRAILER = "grpc-status-details-bin"


class Error(RuntimeError):
    """Base of all failures reported by the service or the connection to it.

    Attributes:
        code: the gRPC status code's number.
        reason: name of a value of `modelpress.v1.Reason`, such as "RECORD_UNKNOWN_LAYER"; empty where none was sent.
        message: the text for people.
        metadata: what else is known of the place; `file`, `line`, `column` and `layer` come from it.
        violations: (field, description) pairs of a malformed request.
        missing: names of the files that a call wanted and the workspace lacks.
    """

    code = 2

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
        missing: Sequence[str] = (),
    ) -> None:
        super().__init__(f"{message} [{reason}]" if reason else message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.missing = tuple(missing)

    @property
    def file(self) -> str | None:
        """The file, by its name in the workspace."""
        return self.metadata.get("file")

    @property
    def line(self) -> int | None:
        """Line in the file, from 1."""
        return self._number("line")

    @property
    def column(self) -> int | None:
        """Column in the line, from 1."""
        return self._number("column")

    @property
    def layer(self) -> str | None:
        """Name of the layer (node) concerned."""
        return self.metadata.get("layer")

    def _number(self, key: str) -> int | None:
        text = self.metadata.get(key, "")
        return int(text) if text.isdecimal() else None


class Cancelled(Error):
    """The operation was cancelled."""

    code = 1


class Unknown(Error):
    """A failure without a better class."""

    code = 2


class InvalidArgument(Error, ValueError):
    """The request or the bytes that the caller sent are wrong."""

    code = 3


class DeadlineExceeded(Error):
    """An RPC's deadline or an operation's execution_timeout passed."""

    code = 4


class NotFound(Error):
    """A workspace, file or operation of that name does not exist."""

    code = 5


class AlreadyExists(Error):
    """The name is taken, or the request id was used for another request."""

    code = 6


class PermissionDenied(Error):
    """The caller may not do that."""

    code = 7


class ResourceExhausted(Error):
    """A limit of memory, time, size or storage was hit."""

    code = 8


class FailedPrecondition(Error):
    """The state does not allow that now, such as deleting a workspace in use."""

    code = 9


class Aborted(Error):
    """A conflict with another caller; try again."""

    code = 10


class OutOfRange(Error):
    """An offset does not fit the file or upload."""

    code = 11


class Unimplemented(Error):
    """This server does not know the call."""

    code = 12


class Internal(Error):
    """The service failed; the input is not at fault."""

    code = 13


class Unavailable(Error):
    """The service cannot be reached or is draining; try again later."""

    code = 14


class DataLoss(Error):
    """Stored data are damaged."""

    code = 15


class Unauthenticated(Error):
    """The caller's identity is missing or not accepted."""

    code = 16


_CLASSES: Mapping[int, type[Error]] = {cls.code: cls for cls in Error.__subclasses__()}


def from_status(status: Any) -> Error:
    """The exception for a google.rpc.Status."""
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[tuple[str, str]] = []
    missing: list[str] = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        precondition = error_details_pb2.PreconditionFailure()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(request):
            violations += [(violation.field, violation.description) for violation in request.field_violations]
        elif detail.Unpack(precondition):
            missing += [violation.subject for violation in precondition.violations if violation.type == "MISSING"]
    cls = _CLASSES.get(status.code, Unknown)
    return cls(status.message, reason=reason, metadata=metadata, violations=violations, missing=missing)


def from_rpc_error(error: Any) -> Error:
    """The exception for a grpc.RpcError that is also a call (sync), or for a grpc.aio.AioRpcError."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_TRAILER:
            status.ParseFromString(value)
    # The RPC's own code and text count; the details may be absent, e.g. when the connection broke.
    status.code = error.code().value[0]
    status.message = error.details() or error.code().name
    return from_status(status)
