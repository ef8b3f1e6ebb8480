"""What a replica's failure means: to the caller, and to the question whether to try again."""

from collections.abc import Callable
from functools import partial
from typing import Final

from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from services.common.errors import (
    DEADLINE_PASSED,
    DEPENDENCY_UNAVAILABLE,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    Violation,
)
from services.router.domain.failure import InvalidModelOutput

# Refused before it was accepted: it may be sent again without having been run once.
_NEVER_RAN: Final = frozenset({"VERSION_NOT_READY", "VERSION_NOT_LOADED", "DRAINING"})

_BY_CODE: Final[dict[int, type[ServiceError]]] = {
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.FAILED_PRECONDITION: FailedPrecondition,
    Code.RESOURCE_EXHAUSTED: ResourceExhausted,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.UNAVAILABLE: Unavailable,
    # The version is gone from that replica; to our caller, who named no replica, it is not ready.
    Code.NOT_FOUND: Unavailable,
}


class HopFailed(Unavailable):
    """A replica or the stream to it failed; another one, or this one in a moment, may answer.

    `ran` says whether the request may have reached a model, `told` whether the replica itself said so of the version.
    """

    def __init__(self, message: str, *, reason: str, ran: bool, told: bool = False) -> None:
        super().__init__(message, reason=reason)
        self.ran = ran
        self.told = told


class AttemptTimedOut(HopFailed):
    """A replica took far longer than is usual for the version; another one is asked instead."""

    def __init__(self, *, ran: bool) -> None:
        super().__init__("the replica did not answer in time", reason=DEPENDENCY_UNAVAILABLE, ran=ran)


def stream_ended(*, ran: bool) -> HopFailed:
    """Return the failure of a request whose stream ended before its answer."""
    return HopFailed("the replica went away before it answered", reason=DEPENDENCY_UNAVAILABLE, ran=ran)


def errors_of(status: Status) -> Callable[[], ServiceError]:
    """Return what makes errors of ours of a replica's status, with its reason and details.

    Each request is to have an error of its own: an error holds on to where it was raised.
    """
    info, bad_request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details:
        for wanted in (info, bad_request, retry):
            detail.Unpack(wanted)
    reason = info.reason or DEPENDENCY_UNAVAILABLE
    if status.code in (Code.UNAVAILABLE, Code.NOT_FOUND):
        return partial(HopFailed, status.message, reason=reason, ran=reason not in _NEVER_RAN, told=True)
    if reason == "INVALID_MODEL_OUTPUT":
        return partial(InvalidModelOutput, "other rows or shapes than its signature says")
    if status.code not in _BY_CODE:
        return partial(ServiceError, "the replica failed to answer", reason="INTERNAL")
    return partial(
        _BY_CODE[status.code],
        status.message,
        reason=info.reason or (DEADLINE_PASSED if status.code == Code.DEADLINE_EXCEEDED else reason),
        metadata=dict(info.metadata),
        violations=[Violation(found.field, found.description) for found in bad_request.field_violations],
        retry_after_s=retry.retry_delay.ToMilliseconds() / 1e3 if retry.HasField("retry_delay") else None,
    )


def is_expected_end(code: int) -> bool:
    """Whether a stream's end is part of life: the replica goes, restarts or lost the version."""
    return code in (Code.OK, Code.UNAVAILABLE, Code.CANCELLED, Code.NOT_FOUND)
