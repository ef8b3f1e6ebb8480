"""What is kept of predictions once they have an outcome: the event for the monitor, and metrics."""

import asyncio
import time
from types import TracebackType
from typing import Final, Self

from services.common.call import Call
from services.common.errors import ServiceError
from services.router.domain.enrichment import FeatureRead, Missing
from services.router.domain.ports import EventSink, PredictionEvent, PredictionId, PredictionMetrics
from services.router.domain.redaction import redacted
from services.router.domain.routing import Choice
from services.router.domain.tensor import Tensor

_OK: Final = (0, "OK")
_CANCELLED: Final = (1, "CANCELLED")
_DEADLINE_EXCEEDED: Final = (4, "DEADLINE_EXCEEDED")
_INTERNAL: Final = (13, "INTERNAL")
_LATENCY_LIMIT_US: Final = 2**32 - 1


class Observation:
    """Watches the predictions of one block of rows; when the block ends, their outcome is known and handed on.

    The block fills in what it has: without outputs the rows count as not run.
    """

    __slots__ = (
        "_buckets",
        "_call",
        "_choice",
        "_degraded",
        "_events",
        "_metrics",
        "_missing",
        "_reads",
        "_started",
        "fixed",
        "ids",
        "inputs",
        "outputs",
    )

    def __init__(
        self, choice: Choice, call: Call, started: float, *, events: EventSink, metrics: PredictionMetrics
    ) -> None:
        self._choice = choice
        self._call = call
        self._started = started
        self._events = events
        self._metrics = metrics
        self.ids: list[PredictionId] = []
        self._buckets: list[int] = []
        self._degraded: list[bool] = []
        self._reads: list[FeatureRead] | None = None
        self._missing: dict[int, Missing] = {}
        self.fixed = False
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()

    def add_row(
        self,
        prediction_id: PredictionId,
        bucket: int,
        *,
        degraded: bool = False,
        read: FeatureRead | None = None,
        missing: Missing | None = None,
    ) -> None:
        """Say that the block holds one more row; either each of its rows has a `read` or none."""
        self.ids.append(prediction_id)
        self._buckets.append(bucket)
        self._degraded.append(degraded)
        self.mark_read(read, missing)

    def mark_read(self, read: FeatureRead | None, missing: Missing | None) -> None:
        """Say what was fetched for the last row."""
        if missing:
            self._missing[len(self.ids) - 1] = missing
        if read is not None:
            self._reads = self._reads or []
            self._reads.append(read)

    def mark_degraded(self) -> None:
        """Say that the last row was answered less well than asked."""
        self._degraded[-1] = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Hand the outcome of the rows on: the event, and metrics. For those who do not use the block form."""
        status, code = _outcome(error, self._call)
        seconds = time.perf_counter() - self._started
        self._metrics.observe(self._choice, code, len(self.ids), seconds, fixed=self.fixed)
        ran, signature, names = status == 0, self._choice.target.version.signature, self._choice.rules.redacted
        inputs = self.inputs if ran else ()
        if inputs and signature.unlogged:
            inputs = tuple([tensor for tensor in inputs if tensor.name not in signature.unlogged])
        self._events.record(
            PredictionEvent(
                choice=self._choice,
                ids=self.ids,
                buckets=self._buckets,
                degraded=self._degraded,
                inputs=redacted(signature, names, inputs) if names else inputs,
                outputs=self.outputs if ran else (),
                status=status,
                principal=self._call.principal,
                latency_us=min(int(seconds * 1e6), _LATENCY_LIMIT_US),
                reads=tuple(self._reads) if self._reads else (),
                missing=self._missing,
                fixed=self.fixed,
            )
        )


def code_of(error: BaseException | None, call: Call) -> str:
    """Return the name of the gRPC code that the caller will see."""
    return _outcome(error, call)[1]


def _outcome(error: BaseException | None, call: Call) -> tuple[int, str]:
    if error is None:
        return _OK
    if isinstance(error, ServiceError):
        return error.code.value[0], error.code.name
    if isinstance(error, asyncio.CancelledError):
        # The chain ends a handler at its deadline the same way as when the caller goes.
        return _DEADLINE_EXCEEDED if call.remaining_s() <= 0 else _CANCELLED
    return _INTERNAL
