"""Long work as resources: what was asked, how it is getting on, what came of it.

A job belongs to the process that holds its lease. Whoever finds a job that waits, or whose lease ran out, may take it and
goes on where it was; whoever lost the lease stops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Final

from services.common.names import NameFormat
from services.features.domain.definitions import NEVER, BatchSource
from services.features.domain.failure import JobEnded
from services.features.domain.point_in_time import Clock

DEFAULT_PARITY_ROWS: Final = 10_000
DEFAULT_TOLERANCE: Final = 1e-6
MOST_EXAMPLES: Final = 20


class JobState(Enum):
    """Where a job is in its life."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class JobKind(Enum):
    """Kinds of jobs, by the form of their names."""

    JOIN = NameFormat("pointInTimeJoinJobs/{job}")
    MATERIALIZATION = NameFormat("materializationJobs/{job}")
    PARITY = NameFormat("parityJobs/{job}")


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """How a job is getting on; `error` is a `google.rpc.Status` in wire form, empty unless it failed."""

    state: JobState = JobState.PENDING
    done_count: int = 0
    total_count: int = 0
    skipped_counts: Mapping[str, int] = field(default_factory=dict)
    error: bytes = b""
    create_time: datetime
    start_time: datetime | None = None
    end_time: datetime | None = None
    creator: str = ""


@dataclass(frozen=True, kw_only=True)
class JoinSpec:
    """Features to join to rows, whose time is the rows' event time column, into an empty folder."""

    rows: BatchSource
    features: tuple[str, ...]
    output_uri: str
    clock: Clock = Clock.BOTH
    assumed_delay_us: int = 0


@dataclass(frozen=True)
class JoinOutcome:
    """Values found, by feature."""

    present_counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MaterializationSpec:
    """A view's batch source from one event time up to another; `start` None: where the last job ended."""

    view: str
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True)
class MaterializationOutcome:
    """Rows written to the online store, and rows older than what it holds."""

    written_count: int = 0
    older_count: int = 0


@dataclass(frozen=True, kw_only=True)
class ParitySpec:
    """Logged predictions of a version, by prediction time, or a table of vectors, to be recomputed.

    Columns of features are by `<view>.<feature>` in the table, and the event time is that of reading.
    """

    model_version: str = ""
    start: datetime = NEVER
    end: datetime = NEVER
    vectors: BatchSource | None = None
    max_row_count: int = DEFAULT_PARITY_ROWS
    relative_tolerance: float = DEFAULT_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class FeatureParity:
    """How online and offline values of one feature compare; `suspected_shift_us` 0: none is suspected.

    `incomparable_counts` are values that cannot be compared, by reason.
    """

    feature: str
    compared_count: int = 0
    different_count: int = 0
    online_only_count: int = 0
    offline_only_count: int = 0
    largest_difference: float = 0.0
    suspected_shift_us: int = 0
    example_prediction_ids: Sequence[str] = ()
    incomparable_counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ParityOutcome:
    """One for each fetched feature, the worst first."""

    features: Sequence[FeatureParity] = ()


Spec = JoinSpec | MaterializationSpec | ParitySpec
Outcome = JoinOutcome | MaterializationOutcome | ParityOutcome
_KINDS: Final = {
    JoinSpec: JobKind.JOIN,
    MaterializationSpec: JobKind.MATERIALIZATION,
    ParitySpec: JobKind.PARITY,
}


@dataclass(frozen=True)
class Job:
    """One job; `checkpoint` is how far it came, in rows, for whoever goes on with it."""

    name: str
    spec: Spec
    outcome: Outcome
    status: JobStatus
    checkpoint: int = 0

    @property
    def kind(self) -> JobKind:
        """Its kind."""
        return _KINDS[type(self.spec)]

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    def started(self, now: datetime) -> "Job":
        """Return the job as it is when somebody works on it."""
        status = self.status
        if status.state is JobState.PENDING:
            status = replace(status, state=JobState.RUNNING)
        return replace(self, status=replace(status, start_time=status.start_time or now))

    def ended(self, state: JobState, now: datetime, error: bytes = b"") -> "Job":
        """Return the job as it is when the work has stopped."""
        return replace(self, status=replace(self.status, state=state, end_time=now, error=error))

    def cancelling(self, now: datetime) -> "Job":
        """Return the job as it is once somebody asked it to stop; raises JobEnded."""
        state = self.status.state
        if state.ended:
            raise JobEnded(self.name, state.value)
        if state is JobState.PENDING:
            return self.ended(JobState.CANCELLED, now)
        return replace(self, status=replace(self.status, state=JobState.CANCELLING))


def first_outcome(spec: Spec) -> Outcome:
    """Return what has come of a job that has not begun."""
    if isinstance(spec, JoinSpec):
        return JoinOutcome()
    return MaterializationOutcome() if isinstance(spec, MaterializationSpec) else ParityOutcome()
