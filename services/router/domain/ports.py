"""What the domain needs from outside; adapters and the tests' fakes provide it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.common.call import Call, Pending
from services.common.errors import ServiceError
from services.router.domain.enrichment import FeatureAsk, FeatureRead, FeatureStatus, FetchedRow, Missing
from services.router.domain.routing import Choice, Target
from services.router.domain.tensor import Tensor


# Made for each request; a frozen one costs twice the time.
@dataclass(slots=True)
class Job:
    """Rows for one version: every input of the signature once, and the outputs wanted (none named = all)."""

    inputs: tuple[Tensor, ...]
    rows: int
    outputs: tuple[str, ...] = ()


class OutputsReceiver(Protocol):
    """Takes what became of a job that was begun; one of the two is called, once, unless it was taken back."""

    def take_outputs(self, outputs: tuple[Tensor, ...]) -> None:
        """Take the outputs of its rows, in order."""

    def fail(self, error: Exception) -> None:
        """Take why there are none."""


class Inference(Protocol):
    """The replicas that run versions."""

    def begin(self, target: Target, job: Job, call: Call, receiver: OutputsReceiver) -> Pending:
        """Set out to run a job as `infer` does, for a caller who has no task."""
        ...

    async def infer(self, target: Target, job: Job, call: Call, hope_s: float | None = None) -> tuple[Tensor, ...]:
        """Return the outputs of a job's rows, in order, before the call's deadline; raises ServiceError.

        `hope_s` shortens, in seconds, how long a version is waited for that was ready a moment ago.
        """
        ...

    def is_ready(self, target: Target) -> bool:
        """Whether some replica of the target's pool says READY for its version."""
        ...


class RowReceiver(Protocol):
    """Takes what became of a read that was begun."""

    def take_row(self, row: FetchedRow | ServiceError | None) -> None:
        """Take what is known for the row, or what is wrong with its keys; None where the service does not answer."""


class Features(Protocol):
    """The features service."""

    def begin(self, sources: tuple[str, ...], row: FeatureAsk, call: Call, receiver: RowReceiver) -> Pending | None:
        """Set out to read for one row without a task; None where the service is known not to answer.

        The receiver is told once, unless the read was taken back.
        """
        ...

    async def read(
        self, sources: tuple[str, ...], rows: Sequence[FeatureAsk], call: Call
    ) -> list[FetchedRow | ServiceError]:
        """Return what is known for each row, in order, or what is wrong with its keys.

        Raises FeaturesUnavailable, soon, when the service does not answer.
        """
        ...


class PredictionId(Protocol):
    """A UUIDv7: its text is what callers get, its bytes what the event carries."""

    @property
    def bytes(self) -> bytes:
        """The 16 bytes."""
        ...


class NewId(Protocol):
    """Makes prediction ids: of now, or of a time in nanoseconds since 1970-01-01 UTC."""

    def __call__(self, *, nanoseconds: int | None = None) -> PredictionId:
        """Return an id that was never given before."""
        ...


@dataclass(slots=True)
class PredictionEvent:
    """Predictions of one request that share target, outcome and tensors; one entry per row in the sequences."""

    choice: Choice
    ids: Sequence[PredictionId]
    buckets: Sequence[int]
    degraded: Sequence[bool]
    inputs: tuple[Tensor, ...]
    """As the model took them, without the signature's `unlogged`; empty when it was not run."""
    outputs: tuple[Tensor, ...]
    """As the model gave them; empty when it was not run."""
    status: int
    """gRPC status code."""
    principal: str
    latency_us: int
    reads: tuple[FeatureRead, ...] = ()
    """What was fetched; empty for a version that fetches nothing."""
    missing: Mapping[int, Missing] = field(default_factory=dict)
    """Features without a usable value, by the position of the prediction that lacked them."""
    fixed: bool = False
    """A fixed prediction of the route answered, and no version."""


class EventSink(Protocol):
    """Where prediction events go. Never waits, never fails: what does not fit is dropped and counted."""

    def record(self, event: PredictionEvent) -> None:
        """Take an event."""
        ...


class PredictionMetrics(Protocol):
    """Counts what came of predictions, by names that the registry gave."""

    def observe(self, choice: Choice | None, code: str, rows: int, seconds: float, *, fixed: bool = False) -> None:
        """Count `rows` predictions with a gRPC code name; no choice means that the model is unknown.

        `fixed` means that a fixed prediction of the route answered, and no version.
        """
        ...

    def count_values(self, model: str, counts: Mapping[FeatureStatus, int]) -> None:
        """Count fetched values by how good they were."""
        ...

    def count_degraded(self, model: str, how: Sequence[str]) -> None:
        """Count one answer that was less good than asked, once for each way."""
        ...

    def count_fallback(self, model: str, served_by: str) -> None:
        """Count one answer of a rung of the route's fallback."""
        ...
