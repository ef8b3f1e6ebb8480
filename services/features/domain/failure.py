"""What features refuses and why; `reason` is a value of the contract's FeaturesErrorReason."""

from collections.abc import Mapping, Sequence
from typing import Final

from services.common.errors import (
    DEADLINE_PASSED,
    DEPENDENCY_UNAVAILABLE,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    Violation,
    echo,
)

INVALID_DEFINITION: Final = "INVALID_DEFINITION"
_SHOWN_VERSIONS: Final = 10
INVALID_ENTITY_KEY: Final = "INVALID_ENTITY_KEY"
INVALID_VALUE: Final = "INVALID_VALUE"
INVALID_EVENT_TIME: Final = "INVALID_EVENT_TIME"


class SourceUnreadable(FailedPrecondition):
    """A batch source or a file of the history cannot be read, or lacks something; metadata names it."""

    def __init__(self, source: str, why: str, column: str = "") -> None:
        of_column = f", column {echo(column)}" if column else ""
        super().__init__(
            f"{echo(source)}{of_column}: {why}",
            reason="SOURCE_UNREADABLE",
            metadata={"source": source, "column": column} if column else {"source": source},
        )


class OutputUnusable(FailedPrecondition):
    """The folder for a result is not empty, or cannot be written."""

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(f"output_uri {echo(uri)}: {why}", reason="OUTPUT_UNUSABLE", metadata={"output_uri": uri})


class NotMaterializable(FailedPrecondition):
    """The view has no batch source."""

    def __init__(self, view: str) -> None:
        super().__init__(
            f"{view} has no batch source: there is nothing to materialize",
            reason="NOT_MATERIALIZABLE",
            metadata={"feature_view": view},
        )


class JoinTooLarge(ResourceExhausted):
    """The rows of a join by stream are more than allowed."""

    def __init__(self, limit_mib: int) -> None:
        super().__init__(
            f"want at most {limit_mib} MiB of rows (INTERLOCK_FEATURES_JOIN_LIMIT_MIB), got more; use a PointInTimeJoinJob",
            reason="JOIN_TOO_LARGE",
            metadata={"limit_mib": str(limit_mib)},
        )


class WorkTooLarge(ResourceExhausted):
    """Offline work needs more memory or disk than it may have."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the work needs more than it may have: {why}", reason="WORK_ENDED")


def too_quiet(limit_s: float) -> DeadlineExceeded:
    """Return the error for a stream on which nothing comes."""
    return DeadlineExceeded(
        f"no message came for {limit_s:g} s", reason=DEADLINE_PASSED, metadata={"limit_s": f"{limit_s:g}"}
    )


class JobEnded(FailedPrecondition):
    """The job has ended: there is nothing to cancel."""

    def __init__(self, name: str, state: str) -> None:
        super().__init__(
            f"{name} has ended: want a job that waits or runs, got one that is {state}",
            reason="JOB_ENDED",
            metadata={"name": name, "state": state},
        )


class NameTaken(AlreadyExists):
    """Another job has the id."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} exists already; choose another id", reason="RESOURCE_EXISTS", metadata={"name": name})


class DefinitionInUse(FailedPrecondition):
    """Registered versions depend on what would change; they are named by definition."""

    def __init__(self, blocked: Mapping[str, Sequence[str]]) -> None:
        versions = sorted({version for each in blocked.values() for version in each})
        shown = ", ".join(versions[:_SHOWN_VERSIONS])
        more = f" and {len(versions) - _SHOWN_VERSIONS} more" if len(versions) > _SHOWN_VERSIONS else ""
        super().__init__(
            f"{', '.join(blocked)}: want a change that hurts no registered version, got one that breaks {shown}{more}; "
            "nothing was changed",
            reason="DEFINITION_IN_USE",
            metadata={"resources": ", ".join(blocked), "model_versions": shown, "count": str(len(versions))},
            violations=[
                Violation(name, f"breaks {', '.join(each[:_SHOWN_VERSIONS])}") for name, each in blocked.items()
            ],
        )


class RegistryUnavailable(Unavailable):
    """The registry cannot be asked who depends on a definition."""

    def __init__(self) -> None:
        super().__init__(
            "the registry does not answer, so nobody knows which versions depend on this; nothing was changed",
            reason=DEPENDENCY_UNAVAILABLE,
            metadata={"service": "registry"},
            retry_after_s=1.0,
        )


class RequestIdReused(AlreadyExists):
    """The idempotency key was used with another body."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            "request_id: want a new UUID for a new request, got one that was used with another body",
            reason="REQUEST_ID_REUSED",
            metadata={"request_id": request_id},
        )


class NotPushable(FailedPrecondition):
    """Clients do not push into the view."""

    def __init__(self, view: str) -> None:
        super().__init__(
            f"featureViews/{view} is not filled by push; want a view with a push_source or an aggregate_source",
            reason="NOT_PUSHABLE",
            metadata={"feature_view": f"featureViews/{view}"},
        )


class OnlineStoreUnavailable(Unavailable):
    """Redis is down, slow or refuses."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the online store does not answer: {why}",
            reason="ONLINE_STORE_UNAVAILABLE",
            metadata={"why": why},
            retry_after_s=0.5,
        )


class HistoryUnavailable(Unavailable):
    """The history cannot be written."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the history cannot be written: {why}",
            reason="HISTORY_UNAVAILABLE",
            metadata={"why": why},
            retry_after_s=1.0,
        )


class QueueFull(ResourceExhausted):
    """More waits already than is taken."""

    def __init__(self, what: str, waiting: int, limit: int) -> None:
        super().__init__(
            f"{waiting} {what} wait already, at most {limit} may",
            reason="QUEUE_FULL",
            metadata={"waiting": str(waiting), "limit": str(limit)},
            retry_after_s=0.1,
        )
