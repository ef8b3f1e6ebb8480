"""What the monitor refuses and why; `reason` is a value of the contract's MonitorErrorReason."""

from collections.abc import Mapping, Sequence
from typing import Final

from services.common.errors import (
    DEPENDENCY_UNAVAILABLE,
    INVALID_FIELD,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Violation,
    echo,
)

INVALID_WINDOW: Final = "INVALID_WINDOW"
UNKNOWN_METRIC: Final = "UNKNOWN_METRIC"
_NEXT_ATTEMPT_S: Final = 1.0


class ResourceExists(AlreadyExists):
    """The id is taken; ids that differ only in case are the same."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{echo(name)} exists already; choose another id", reason="RESOURCE_EXISTS", metadata={"name": name}
        )


class UnknownMetric(InvalidArgument):
    """No metric of that name; `known` are the names, by group where one line cannot hold them."""

    def __init__(self, violations: Sequence[Violation], known: Sequence[str] | Mapping[str, str]) -> None:
        names = known if isinstance(known, Mapping) else {"known": ", ".join(known)}
        super().__init__(
            f"{violations[0].field}: {violations[0].description}",
            reason=UNKNOWN_METRIC,
            metadata={"field": violations[0].field, **names},
            violations=violations,
        )


class RegistryUnavailable(Unavailable):
    """The registry does not answer, and what it would say is not known here."""

    def __init__(self) -> None:
        super().__init__(
            "the registry does not answer; try again", reason=DEPENDENCY_UNAVAILABLE, retry_after_s=_NEXT_ATTEMPT_S
        )


class NoBaseline(FailedPrecondition):
    """The version was registered without a baseline."""

    def __init__(self, version: str) -> None:
        super().__init__(
            f"{version} has no baseline; register one with the version, or give a reference scope",
            reason="NO_BASELINE",
            metadata={"model_version": version},
        )


class NotCalibrated(FailedPrecondition):
    """Performance cannot be estimated from confidences that do not mean what they say."""

    def __init__(self, version: str, why: str) -> None:
        super().__init__(
            f"the quality of {version} cannot be estimated: {why}",
            reason="NOT_CALIBRATED",
            metadata={"model_version": version},
        )


class RequestIdReused(InvalidArgument):
    """A request id came again with another content."""

    def __init__(self, request_id: str) -> None:
        wrong = Violation("request_id", "want a new UUID for a new request, got one that was used with another body")
        super().__init__(
            f"{wrong.field}: {wrong.description}",
            reason=INVALID_FIELD,
            metadata={"request_id": request_id},
            violations=[wrong],
        )


class FeedbackQueueFull(ResourceExhausted):
    """Too many labels wait to be written."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"{count} labels wait to be written; try again", reason="QUEUE_FULL", retry_after_s=_NEXT_ATTEMPT_S
        )


class PredictionNotFound(NotFound):
    """The log has no prediction of that id."""

    def __init__(self, prediction_id: str) -> None:
        super().__init__(
            f"prediction {echo(prediction_id)} is not in the log",
            reason="RESOURCE_NOT_FOUND",
            metadata={"prediction_id": prediction_id},
        )


class InvalidQuery(InvalidArgument):
    """The text is not one SELECT over the view `predictions`."""

    def __init__(self, description: str) -> None:
        # An engine's words may span lines.
        line = " ".join(description.split())
        super().__init__(f"sql: {line}", reason="INVALID_QUERY", violations=[Violation("sql", line)])


class QueryTooLarge(ResourceExhausted):
    """The query needs more than it may have."""

    def __init__(self, description: str) -> None:
        super().__init__(description, reason="QUERY_TOO_LARGE")


class MaybeDamaged(Exception):
    """A query failed for a reason that a damaged file can have."""


class LogUnavailable(Unavailable):
    """The log cannot be read."""

    def __init__(self) -> None:
        super().__init__(
            "the prediction log cannot be read now; try again",
            reason="LOG_UNAVAILABLE",
            retry_after_s=_NEXT_ATTEMPT_S,
        )


class LogNotWritten(Unavailable):
    """Predictions are in memory, and the disk does not take them."""

    def __init__(self) -> None:
        super().__init__(
            "the prediction log cannot be written now; what came is in memory and is written once it can be",
            reason="LOG_UNAVAILABLE",
            retry_after_s=_NEXT_ATTEMPT_S,
        )


class ReportNotReady(FailedPrecondition):
    """The report is being written, or could not be."""

    def __init__(self, name: str, state: str, why: str) -> None:
        because = f": {why}" if why else "; ask again in a moment"
        super().__init__(
            f"{name} is {state}{because}", reason="REPORT_NOT_READY", metadata={"name": name, "state": state}
        )
