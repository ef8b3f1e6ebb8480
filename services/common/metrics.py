"""Prometheus metrics of a process: what the call chain counts about every method, and collectors for the hot path.

Names are `interlock_<service>_<noun>_<unit>`. Each process owns one registry; nothing is global.

prometheus_client takes a lock for each number that changes, and a call changes six. On a request's path plain numbers are
kept instead, by the loop's own thread alone, and made into samples when somebody asks for them.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

# From a lookup in memory (1 ms) to the deadline cap (60 s); design 6 sets goals at 10 and 100 ms.
LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Buckets:
    """Values of one label set: how many fell into each bucket, and their sum."""

    __slots__ = ("_counts", "_limits", "total")

    def __init__(self, limits: Sequence[float] = LATENCY_BUCKETS_S) -> None:
        self._limits = limits
        self._counts = [0] * (len(limits) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._limits, value)] += 1
        self.total += value

    def counts(self) -> list[tuple[str, float]]:
        """Return each bucket's upper limit with how many are not above it."""
        total, found = 0, []
        for limit, count in zip((*self._limits, "+Inf"), self._counts, strict=True):
            total += count
            found.append((str(limit), float(total)))
        return found


class HotHistogram(Collector):
    """A histogram with labels."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        limits: Sequence[float] = LATENCY_BUCKETS_S,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._limits = limits
        self._buckets: dict[tuple[str, ...], Buckets] = {}
        registry.register(self)

    def of(self, *labels: str) -> Buckets:
        """Return what falls under one label set."""
        found = self._buckets.get(labels)
        if found is None:
            found = self._buckets[labels] = Buckets(self._limits)
        return found

    def forget(self, *labels: str) -> None:
        """Drop one label set."""
        self._buckets.pop(labels, None)

    def collect(self) -> Iterator[Metric]:
        """Yield the samples of now."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, found in list(self._buckets.items()):
            family.add_metric(labels, found.counts(), found.total)
        yield family


class HotCounter(Collector):
    """A counter with labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._counts: dict[tuple[str, ...], int] = {}
        registry.register(self)

    def add(self, labels: tuple[str, ...], count: int = 1) -> None:
        """Count some under a label set."""
        self._counts[labels] = self._counts.get(labels, 0) + count

    def forget(self, labels: tuple[str, ...]) -> None:
        """Drop one label set."""
        self._counts.pop(labels, None)

    def collect(self) -> Iterator[Metric]:
        """Yield the samples of now."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family


class MethodMetrics:
    """What is counted about one method."""

    __slots__ = ("_finished", "in_flight", "method", "seconds")

    def __init__(self, method: str, finished: HotCounter, seconds: Buckets) -> None:
        self.method = method
        self.seconds = seconds
        self.in_flight = 0
        self._finished = finished

    def finish(self, seconds: float, code: str) -> None:
        """Count one call that was in flight and is over, under its gRPC code name."""
        self.in_flight -= 1
        self.seconds.observe(seconds)
        self._finished.add((self.method, code))


class RequestMetrics:
    """Requests by method and code, their duration in seconds, and how many are in flight."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self._finished = HotCounter(
            f"interlock_{service}_requests", "Finished calls by method and gRPC code.", ["method", "code"], registry
        )
        self._seconds = HotHistogram(
            f"interlock_{service}_request_seconds",
            "Seconds from a call's arrival to its last byte.",
            ["method"],
            registry,
        )
        self._in_flight = Gauge(
            f"interlock_{service}_requests_in_flight", "Calls being answered now.", ["method"], registry=registry
        )
        self._methods: dict[str, MethodMetrics] = {}

    def of(self, method: str) -> MethodMetrics:
        """Return the counters of a method, given by its full name."""
        found = self._methods.get(method)
        if found is None:
            found = self._methods[method] = MethodMetrics(method, self._finished, self._seconds.of(method))
            self._in_flight.labels(method).set_function(lambda: found.in_flight)
        return found
