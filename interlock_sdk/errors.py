"""What can go wrong with a call.

- `CallError`: the service refused or failed the call, or nothing answered
- `DeploymentFailed`: a deployed version cannot be loaded, or does not pass its golden rows
- `DeploymentNotReady`: a deployment took longer than the caller wanted to wait
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

Detail = TypeVar("Detail", bound=Message)

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request: its path, and what was wanted and what came."""

    field: str
    description: str


class CallError(Exception):
    """A call that was refused, failed or never answered.

    `code` says what kind of failure it is, `reason` is the contract's stable word for it ("" when nothing of Interlock
    answered), `metadata` holds the values that the message names, and `retry_after_s` is set where the service said when
    to come back.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """Gives one line: the kind, the message and every wrong field."""
        fields = "".join(f"; {violation.field}: {violation.description}" for violation in self.violations)
        return f"{self.code.name}: {self.message}{fields}"


class DeploymentFailed(Exception):
    """No replica can serve a deployment; the message is what a replica says."""

    def __init__(self, deployment: str, message: str) -> None:
        super().__init__(f"{deployment} failed: {message or 'no reason given'}")
        self.deployment = deployment


class DeploymentNotReady(Exception):
    """A deployment is not ready yet, and the caller's patience is over."""

    def __init__(self, deployment: str, state: str, timeout_s: float) -> None:
        super().__init__(f"{deployment} is {state} and not READY after {timeout_s:g} s")
        self.deployment = deployment


def call_error_from_rpc(error: grpc.aio.AioRpcError, target: str) -> CallError:
    """Reads what the service said; a call that no service answered names the address instead."""
    raw = dict(error.trailing_metadata() or ()).get(_DETAILS_KEY)
    if not isinstance(raw, bytes):
        return _without_details(error, target)
    return call_error_from_status(Status.FromString(raw))


def call_error_from_status(status: Status) -> CallError:
    """Reads a google.rpc.Status, such as the error of one row."""
    info = _detail(status, ErrorInfo())
    retry = _detail(status, RetryInfo())
    bad_request = _detail(status, BadRequest()) or BadRequest()
    return CallError(
        _status_code(status.code),
        status.message,
        reason=info.reason if info else "",
        metadata=info.metadata if info else None,
        violations=tuple(FieldViolation(item.field, item.description) for item in bad_request.field_violations),
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
    )


def _without_details(error: grpc.aio.AioRpcError, target: str) -> CallError:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return CallError(error.code(), f"{target} does not answer")
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CallError(error.code(), f"{target} did not answer in time")
    return CallError(error.code(), error.details() or "no details")


def _detail(status: Status, wanted: Detail) -> Detail | None:
    for detail in status.details:
        if detail.TypeName() == wanted.DESCRIPTOR.full_name:
            try:
                detail.Unpack(wanted)
            except DecodeError:
                return None
            return wanted
    return None


def _status_code(number: int) -> grpc.StatusCode:
    for code in grpc.StatusCode:
        if code.value[0] == number:
            return code
    return grpc.StatusCode.UNKNOWN
