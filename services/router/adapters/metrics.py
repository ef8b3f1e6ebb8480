"""Prometheus metrics of predictions, of the hop and of the event stream."""

from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.metrics import HotCounter, HotHistogram
from services.router.domain.enrichment import FeatureStatus
from services.router.domain.routing import Choice

UNKNOWN: Final = "_unknown"
_REQUESTS_PER_MESSAGE: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# A fetch that takes longer than 50 ms is answered by policy.
_FETCH_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.1)


class PrometheusPredictions:
    """Implements the domain's `PredictionMetrics`; labels come from the registry, so their number is bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._predictions = HotCounter(
            "interlock_router_predictions",
            "Predictions by model, version, variant (empty: pinned) and gRPC code.",
            ["model", "version", "variant", "code"],
            registry,
        )
        self._seconds = HotHistogram(
            "interlock_router_prediction_seconds",
            "Seconds that the router spent on a prediction.",
            ["model", "version"],
            registry,
        )
        self._values = Counter(
            "interlock_router_feature_values",
            "Fetched values by model and by how good they were.",
            ["model", "status"],
            registry=registry,
        )
        self._degraded = Counter(
            "interlock_router_degraded_predictions",
            "Answers that were less good than asked, by model and how.",
            ["model", "how"],
            registry=registry,
        )
        self._fallbacks = Counter(
            "interlock_router_fallback_predictions",
            "Answers of a rung of the route's fallback, by model and by what answered.",
            ["model", "served_by"],
            registry=registry,
        )

    def observe(self, choice: Choice | None, code: str, rows: int, seconds: float, *, fixed: bool = False) -> None:
        """Count `rows` predictions with a gRPC code name; no choice means that the model is unknown.

        A fixed prediction counts under no version.
        """
        if choice is None:
            self._predictions.add((UNKNOWN, UNKNOWN, "", code), rows)
            return
        found = choice.target.version
        version = "" if fixed else found.id
        self._predictions.add((found.model, version, choice.variant, code), rows)
        self._seconds.of(found.model, version).observe(seconds)

    def count_values(self, model: str, counts: Mapping[FeatureStatus, int]) -> None:
        """Count fetched values by how good they were."""
        for status, count in counts.items():
            self._values.labels(model, status.value).inc(count)

    def count_degraded(self, model: str, how: Sequence[str]) -> None:
        """Count one answer that was less good than asked, once for each way."""
        for way in how:
            self._degraded.labels(model, way).inc()

    def count_fallback(self, model: str, served_by: str) -> None:
        """Count one answer of a rung of the route's fallback."""
        self._fallbacks.labels(model, served_by).inc()


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


class FetchMetrics:
    """Counts what goes over the hop to the features service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "interlock_router_feature_fetch_seconds",
            "Seconds that a request waited for its features, gathering included.",
            buckets=_FETCH_BUCKETS_S,
            registry=registry,
        )
        self._rows = Histogram(
            "interlock_router_feature_read_rows",
            "Rows that were read in one message.",
            buckets=_REQUESTS_PER_MESSAGE,
            registry=registry,
        )
        self._reads = Counter(
            "interlock_router_feature_reads",
            "Messages to the features service by gRPC code.",
            ["code"],
            registry=registry,
        )
        self._refused = Counter(
            "interlock_router_feature_fetches_refused",
            "Fetches that were not tried, as the features service is known to be down.",
            registry=registry,
        )
        self._open = Gauge(
            "interlock_router_features_breaker_open",
            "1 while the features service is known to be down, 0.5 while it is tried again.",
            registry=registry,
        )

    def fetched(self, seconds: float) -> None:
        """Count one request's fetch, with whatever outcome."""
        self._seconds.observe(seconds)

    def refused(self) -> None:
        """Count a fetch that was not tried."""
        self._refused.inc()

    def read(self, rows: int, code: str) -> None:
        """Count a message and how it ended."""
        self._rows.observe(rows)
        self._reads.labels(code).inc()

    def breaker(self, state: str) -> None:
        """Take note of the breaker's state."""
        self._open.set({"open": 1.0, "half-open": 0.5}.get(state, 0.0))


class EventMetrics:
    """Counts predictions that left as events, and those that did not."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sent = Counter("interlock_router_events_sent", "Predictions sent to the monitor.", registry=registry)
        self.dropped = Counter(
            "interlock_router_events_dropped", "Predictions that the monitor never got.", registry=registry
        )
