"""What the domain does, as Prometheus series and spans. Labels are the versions that the registry named, nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry

from services.common.metrics import Buckets, HotCounter, HotHistogram
from services.common.tracing import OpenSpan, Tracing
from services.inference.domain.batching import Batch
from services.inference.domain.item import Item
from services.inference.domain.version import VersionKey

_SIZES: Final = tuple(float(1 << power) for power in range(14))
_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_LABELS: Final = ("model", "version")
_Reasons = dict[str, tuple[str, str, str]]


@dataclass(slots=True)
class _Series:
    """The series of one version, looked up once; labels by reason."""

    rows: Buckets
    queue: Buckets
    compute: Buckets
    batches: _Reasons
    items: _Reasons


class PrometheusObserver:
    """Counts batches and answers by version."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = "interlock_inference"
        rows, queue, compute = (
            "Rows of a batch that ran.", "Seconds that a request waited for its batch.", "Seconds of a batch in the model.",
        )  # fmt: skip
        self._rows = HotHistogram(f"{name}_batch_rows", rows, _LABELS, registry, _SIZES)
        self._queue = HotHistogram(f"{name}_queue_seconds", queue, _LABELS, registry, _SECONDS)
        self._compute = HotHistogram(f"{name}_compute_seconds", compute, _LABELS, registry, _SECONDS)
        self._batches = HotCounter(f"{name}_batches", "Batches by why they left.", (*_LABELS, "cause"), registry)
        self._items = HotCounter(f"{name}_items", "Requests by outcome.", (*_LABELS, "reason"), registry)
        self._series: dict[VersionKey, _Series] = {}

    def batch_ran(self, key: VersionKey, batch: Batch, compute_s: float) -> None:
        """Count a batch."""
        series = self._of(key)
        series.rows.observe(batch.rows)
        series.compute.observe(compute_s)
        self._batches.add(_labels(series.batches, key, batch.reason))

    def items_done(self, key: VersionKey, items: Sequence[Item], reason: str) -> None:
        """Count requests, and end their spans."""
        series = self._of(key)
        self._items.add(_labels(series.items, key, reason), len(items))
        for item in items:
            if item.started:
                series.queue.observe(item.started - item.arrived)
            if item.trace is not None:
                item.trace.ended(reason)

    def forget(self, key: VersionKey) -> None:
        """Drop the series of a version that is gone."""
        series = self._series.pop(key, None)
        if series is None:
            return
        for histogram in (self._rows, self._queue, self._compute):
            histogram.forget(*key)
        for labels in series.batches.values():
            self._batches.forget(labels)
        for labels in series.items.values():
            self._items.forget(labels)

    def _of(self, key: VersionKey) -> _Series:
        series = self._series.get(key)
        if series is None:
            rows, queue, compute = (histogram.of(*key) for histogram in (self._rows, self._queue, self._compute))
            series = self._series[key] = _Series(rows, queue, compute, {}, {})
        return series


def _labels(known: _Reasons, key: VersionKey, reason: str) -> tuple[str, str, str]:
    labels = known.get(reason)
    if labels is None:
        labels = known[reason] = (*key, reason or "OK")
    return labels


class SpanTracer:
    """Gives traced requests a span with two phases below it: queue and compute."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def begin(self, key: VersionKey, traceparent: str) -> "SpanTrace | None":
        """Return the trace of a request that has arrived; None where nothing is traced."""
        if not traceparent or not self._tracing.enabled:
            return None
        return SpanTrace(self._tracing, key, traceparent)


class SpanTrace:
    """The spans of one request. A request that runs in parts has the phases of its first part."""

    __slots__ = ("_compute", "_item", "_key", "_queue", "_tracing")

    def __init__(self, tracing: Tracing, key: VersionKey, traceparent: str) -> None:
        self._tracing = tracing
        self._key = key
        self._item: OpenSpan | None = tracing.begin("inference.item", traceparent)
        self._queue: OpenSpan | None = tracing.begin("inference.queue", self._item.traceparent)
        self._compute: OpenSpan | None = None

    @property
    def traceparent(self) -> str:
        """The context of the phase under way."""
        span = self._compute or self._item
        return span.traceparent if span is not None else ""

    def started(self, batch_size: int, reason: str) -> None:
        """End the queue phase, begin the compute phase."""
        if self._queue is None or self._item is None:
            return
        self._queue.end()
        self._queue = None
        self._compute = self._tracing.begin("inference.compute", self._item.traceparent)
        if self._compute.span is not None:
            self._compute.span.set_attribute("interlock.batch_size", batch_size)
            self._compute.span.set_attribute("interlock.batch_reason", str(reason))

    def ended(self, error: str) -> None:
        """End what is open."""
        names = {"interlock.model": self._key.model, "interlock.version": self._key.version}
        for span in (self._queue, self._compute):
            if span is not None:
                span.end(error)
        if self._item is not None:
            self._item.end(error, names)
        self._queue = self._compute = self._item = None
