"""Prometheus metrics of predictions, of the hop and of the event stream."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.common.metrics import LATENCY_BUCKETS_S
from services.router.domain.routing import Choice

UNKNOWN: Final = "_unknown"
_REQUESTS_PER_MESSAGE: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class PrometheusPredictions:
    """Implements the domain's `PredictionMetrics`; labels come from the registry, so their number is bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._predictions = Counter(
            "interlock_router_predictions",
            "Predictions by model, version, variant (empty: pinned) and gRPC code.",
            ["model", "version", "variant", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "interlock_router_prediction_seconds",
            "Seconds that the router spent on a prediction.",
            ["model", "version"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        # The look-up of a label set costs more than the count.
        self._counters: dict[tuple[str, str, str, str], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def observe(self, choice: Choice | None, code: str, rows: int, seconds: float) -> None:
        """Count `rows` predictions with a gRPC code name; no choice means that the model is unknown."""
        if choice is None:
            model, version, variant = UNKNOWN, UNKNOWN, ""
        else:
            found = choice.target.version
            model, version, variant = found.model, found.id, choice.variant
        self._counter((model, version, variant, code)).inc(rows)
        if choice is not None:
            self._histogram((model, version)).observe(seconds)

    def _counter(self, labels: tuple[str, str, str, str]) -> Counter:
        counter = self._counters.get(labels)
        if counter is None:
            counter = self._counters[labels] = self._predictions.labels(*labels)
        return counter

    def _histogram(self, labels: tuple[str, str]) -> Histogram:
        histogram = self._histograms.get(labels)
        if histogram is None:
            histogram = self._histograms[labels] = self._seconds.labels(*labels)
        return histogram


class HopMetrics:
    """Counts what goes over the hop to inference."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._messages = Histogram(
            "interlock_router_coalesced_requests",
            "Requests that left in one message.",
            buckets=_REQUESTS_PER_MESSAGE,
            registry=registry,
        )
        self._retries = Counter(
            "interlock_router_inference_retries", "Requests sent to inference again.", registry=registry
        )

    def sent(self, requests: int) -> None:
        """Count a message."""
        self._messages.observe(requests)

    def retried(self) -> None:
        """Count a second try."""
        self._retries.inc()


class EventMetrics:
    """Counts predictions that left as events, and those that did not."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sent = Counter("interlock_router_events_sent", "Predictions sent to the monitor.", registry=registry)
        self.dropped = Counter(
            "interlock_router_events_dropped", "Predictions that the monitor never got.", registry=registry
        )
