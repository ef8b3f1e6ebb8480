"""Prometheus metrics of a process: what the call chain counts about every method.

Names are `interlock_<service>_<noun>_<unit>`. Each process owns one registry; nothing is global.
"""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From a lookup in memory (1 ms) to the deadline cap (60 s); design 6 sets goals at 10 and 100 ms.
LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class MethodMetrics:
    """Counters of one method, with the label look-ups done once."""

    __slots__ = ("_codes", "_requests", "in_flight", "method", "seconds")

    def __init__(self, method: str, requests: Counter, seconds: Histogram, in_flight: Gauge) -> None:
        self.method = method
        self.seconds = seconds.labels(method)
        self.in_flight = in_flight.labels(method)
        self._requests = requests
        self._codes: dict[str, Counter] = {}

    def count(self, code: str) -> None:
        """Count one finished call under its gRPC code name."""
        counter = self._codes.get(code)
        if counter is None:
            counter = self._codes[code] = self._requests.labels(self.method, code)
        counter.inc()


class RequestMetrics:
    """Requests by method and code, their duration in seconds, and how many are in flight."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            f"interlock_{service}_requests",
            "Finished calls by method and gRPC code.",
            ["method", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            f"interlock_{service}_request_seconds",
            "Seconds from a call's arrival to its last byte.",
            ["method"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._in_flight = Gauge(
            f"interlock_{service}_requests_in_flight", "Calls being answered now.", ["method"], registry=registry
        )
        self._methods: dict[str, MethodMetrics] = {}

    def of(self, method: str) -> MethodMetrics:
        """Return the counters of a method, given by its full name."""
        metrics = self._methods.get(method)
        if metrics is None:
            metrics = self._methods[method] = MethodMetrics(method, self._requests, self._seconds, self._in_flight)
        return metrics
