"""Errors by meaning, and the only translation of an exception into a gRPC status.

ServiceError
├── InvalidArgument      the caller sent something malformed or out of contract
├── OutOfRange           a cursor or offset past the end
├── NotFound             the named resource does not exist
├── AlreadyExists        the id is taken
├── FailedPrecondition   the resource is in the wrong state
├── Aborted              an etag or a concurrent change got in the way
├── PermissionDenied     the principal may not
├── Unauthenticated      no principal
├── ResourceExhausted    queue full, quota or size limit
├── Unavailable          loading, draining, dependency down
├── DeadlineExceeded     the caller's time is over
├── Unimplemented        written in the contract, not served yet
├── DataLoss             stored bytes are not what was stored
└── RelayedFailure       any of these, in the words of another process of this service

A service subclasses these with its own reason. Every status carries exactly one `google.rpc.ErrorInfo`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

import grpc
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

ERROR_DOMAIN: Final = "interlock"
ECHO_LIMIT_CHARS: Final = 64

# The reasons that common itself gives; interlock.types.v1.ErrorReason documents them.
MALFORMED_REQUEST: Final = "MALFORMED_REQUEST"
INVALID_FIELD: Final = "INVALID_FIELD"
INVALID_NAME: Final = "INVALID_NAME"
MESSAGE_TOO_LARGE: Final = "MESSAGE_TOO_LARGE"
BYTES_IN_FLIGHT_EXCEEDED: Final = "BYTES_IN_FLIGHT_EXCEEDED"
DEADLINE_PASSED: Final = "DEADLINE_EXCEEDED"
DRAINING: Final = "DRAINING"
STREAM_STALLED: Final = "STREAM_STALLED"
DEPENDENCY_UNAVAILABLE: Final = "DEPENDENCY_UNAVAILABLE"
INTERNAL: Final = "INTERNAL"

# A client accepts 8 KiB of trailers by default, and the details travel there as base64 beside the message.
_MESSAGE_LIMIT_CHARS: Final = 1024
_METADATA_LIMIT_CHARS: Final = 256
_STATUS_LIMIT_BYTES: Final = 4096
_STATUSES_KEPT: Final = 256


@dataclass(frozen=True)
class Violation:
    """One field that breaks the contract; the description says what was wanted and what came."""

    field: str
    description: str


class ServiceError(Exception):
    """An error that the caller may read; a subclass fixes the gRPC code, the raiser gives the reason.

    `reason` is UPPER_SNAKE, at most 63 characters, one cause each, stable. Each value in the message belongs in
    `metadata` too. `retry_after_s` (seconds) becomes a RetryInfo; leave it out when the delay is not known.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s


class InvalidArgument(ServiceError):
    """The request is malformed or breaks the contract, whatever the state of the system."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class OutOfRange(ServiceError):
    """The request asks past the end of something that may still grow."""

    code = grpc.StatusCode.OUT_OF_RANGE


class NotFound(ServiceError):
    """The named resource does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ServiceError):
    """The id that the caller chose is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ServiceError):
    """The resource is in a state that does not allow this."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(ServiceError):
    """A concurrent change got in the way: read again and retry the whole step."""

    code = grpc.StatusCode.ABORTED


class PermissionDenied(ServiceError):
    """The principal is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(ServiceError):
    """The caller gave no valid identity."""

    code = grpc.StatusCode.UNAUTHENTICATED


class ResourceExhausted(ServiceError):
    """A queue, a quota or a size limit is full; retry only when `retry_after_s` is given."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(ServiceError):
    """Loading, draining or a dependency down: the same call may succeed a little later."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed, or too little of it is left to do the work."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unimplemented(ServiceError):
    """The contract has this, the service does not serve it yet."""

    code = grpc.StatusCode.UNIMPLEMENTED


class DataLoss(ServiceError):
    """Stored bytes are missing or not what was stored."""

    code = grpc.StatusCode.DATA_LOSS


class RelayedFailure(ServiceError):
    """What another process of this service has put into words already: its status is the caller's, as it is."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message, reason=status_reason(status))
        self.status = status


# Envoy's transcoder uses the same table, so a REST twin answers alike on both doors.
HTTP_STATUS: Final[Mapping[int, int]] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}

# What a peer's failure means to our caller. Anything else from a peer is our bug: INTERNAL.
_PEER_FAILURES: Final[Mapping[grpc.StatusCode, tuple[int, str, str]]] = {
    grpc.StatusCode.UNAVAILABLE: (Code.UNAVAILABLE, DEPENDENCY_UNAVAILABLE, "a service that this call needs is down"),
    grpc.StatusCode.CANCELLED: (Code.UNAVAILABLE, DEPENDENCY_UNAVAILABLE, "a service that this call needs hung up"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        Code.DEADLINE_EXCEEDED,
        DEADLINE_PASSED,
        "a service that this call needs did not answer within the deadline",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        Code.RESOURCE_EXHAUSTED,
        DEPENDENCY_UNAVAILABLE,
        "a service that this call needs is at its limit",
    ),
}


def echo(value: str) -> str:
    """Return foreign text as it may stand in a message: printable ASCII in quotes, at most 64 characters of it."""
    escaped = _printable(value[:ECHO_LIMIT_CHARS])
    cut = len(value) > ECHO_LIMIT_CHARS or len(escaped) > ECHO_LIMIT_CHARS
    return f'"{escaped[:ECHO_LIMIT_CHARS]}{"..." if cut else ""}"'


def to_status(error: BaseException, request_id: str) -> Status:
    """Return the status that the caller sees for `error`; others may have the same one, so it is not to be changed.

    A cancellation is not an answer: it is raised again, untouched. What is neither ours nor a peer's failure is a bug
    and becomes INTERNAL with a fixed text and the request id, by which the log line is found.
    """
    if isinstance(error, asyncio.CancelledError):
        raise error
    if isinstance(error, RelayedFailure):
        return error.status
    if isinstance(error, ServiceError):
        return _service_status(error)
    if isinstance(error, grpc.aio.AioRpcError):
        return _peer_status(error, request_id)
    return _opaque_status(request_id)


def status_reason(status: Status) -> str:
    """Return the reason of the status' ErrorInfo, or an empty string."""
    info = ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return info.reason
    return ""


def http_status(status: Status) -> int:
    """Return the HTTP status of a REST twin's answer; a message over the size limit is 413, other exhaustion 429."""
    if status.code == Code.RESOURCE_EXHAUSTED and status_reason(status) == MESSAGE_TOO_LARGE:
        return 413
    return HTTP_STATUS.get(status.code, 500)


def _service_status(error: ServiceError) -> Status:
    code: tuple[int, str] = error.code.value
    retry_ms = None if error.retry_after_s is None else max(1, round(error.retry_after_s * 1000))
    metadata = tuple([(key, value[:_METADATA_LIMIT_CHARS]) for key, value in error.metadata.items()])
    known = _plain_status(code[0], error.message[:_MESSAGE_LIMIT_CHARS], error.reason, metadata, retry_ms)
    if not error.violations:
        return known
    status = Status()
    status.CopyFrom(known)
    _attach_violations(status, error.violations)
    return status


# Who is overloaded says the same to many.
@lru_cache(maxsize=_STATUSES_KEPT)
def _plain_status(
    code: int, message: str, reason: str, metadata: tuple[tuple[str, str], ...], retry_ms: int | None
) -> Status:
    status = _status(code, message, reason, dict(metadata))
    if retry_ms is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_ms)
        _attach(status, retry)
    return status


def _peer_status(error: grpc.aio.AioRpcError, request_id: str) -> Status:
    if error.code() not in _PEER_FAILURES:
        return _opaque_status(request_id)
    code, reason, message = _PEER_FAILURES[error.code()]
    return _status(code, message, reason, {})


def _opaque_status(request_id: str) -> Status:
    message = f"internal error; the log has it under request id {request_id}"
    return _status(Code.INTERNAL, message, INTERNAL, {"request_id": request_id})


def _status(code: int, message: str, reason: str, metadata: Mapping[str, str]) -> Status:
    status = Status(code=code, message=_printable(message)[:_MESSAGE_LIMIT_CHARS])
    safe = {key: _printable(value)[:_METADATA_LIMIT_CHARS] for key, value in metadata.items()}
    _attach(status, ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=safe))
    return status


def _attach(status: Status, detail: Message) -> None:
    # The same bytes from every process: maps have no order of their own.
    status.details.add().Pack(detail, deterministic=True)


def _attach_violations(status: Status, violations: Sequence[Violation]) -> None:
    """Add as many violations as the trailers can hold, the first ones first."""
    room_bytes = _STATUS_LIMIT_BYTES - status.ByteSize()
    detail = BadRequest()
    for violation in violations:
        entry = BadRequest.FieldViolation(
            field=_printable(violation.field)[:_METADATA_LIMIT_CHARS],
            description=_printable(violation.description)[:_MESSAGE_LIMIT_CHARS],
        )
        room_bytes -= entry.ByteSize() + 4
        if room_bytes < 0:
            break
        detail.field_violations.append(entry)
    if detail.field_violations:
        _attach(status, detail)


def _printable(text: str) -> str:
    """Escape what is not printable ASCII, so that no client text can forge a header, a log line or a terminal code."""
    if text.isascii() and text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")
