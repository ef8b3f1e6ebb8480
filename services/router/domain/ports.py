"""What the domain needs from outside; adapters and the tests' fakes provide it."""

from dataclasses import dataclass
from typing import Protocol

from services.common.call import Call
from services.router.domain.routing import Choice, Target
from services.router.domain.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Job:
    """Rows for one version: every input of the signature once, and the outputs wanted (none named = all)."""

    inputs: tuple[Tensor, ...]
    rows: int
    outputs: tuple[str, ...] = ()


class Inference(Protocol):
    """The replicas that run versions."""

    async def infer(self, target: Target, job: Job, call: Call) -> tuple[Tensor, ...]:
        """Return the outputs of a job's rows, in order, before the call's deadline; raises ServiceError."""
        ...

    def is_ready(self, target: Target) -> bool:
        """Whether some replica of the target's pool says READY for its version."""
        ...


class PredictionId(Protocol):
    """A UUIDv7: its text is what callers get, its bytes what the event carries."""

    @property
    def bytes(self) -> bytes:
        """The 16 bytes."""
        ...


@dataclass(frozen=True, slots=True)
class PredictionEvent:
    """Predictions of one request that share target, outcome and tensors; one entry per row in the tuples."""

    choice: Choice
    ids: tuple[PredictionId, ...]
    buckets: tuple[int, ...]
    degraded: tuple[bool, ...]
    inputs: tuple[Tensor, ...]
    """As the model took them; empty when it was not run."""
    outputs: tuple[Tensor, ...]
    """As the model gave them; empty when it was not run."""
    status: int
    """gRPC status code."""
    principal: str
    latency_us: int


class EventSink(Protocol):
    """Where prediction events go. Never waits, never fails: what does not fit is dropped and counted."""

    def record(self, event: PredictionEvent) -> None:
        """Take an event."""
        ...


class PredictionMetrics(Protocol):
    """Counts what came of predictions, by names that the registry gave."""

    def observe(self, choice: Choice | None, code: str, rows: int, seconds: float) -> None:
        """Count `rows` predictions with a gRPC code name; no choice means that the model is unknown."""
        ...
