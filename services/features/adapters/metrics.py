"""Prometheus metrics of the online store, of pushes and of the history."""

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.features.domain.ports import Column, Outcome, Status

_READ_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.5)
_ROW_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_SHARE_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_SYNC_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
REFUSED: Final = "REFUSED"


class StoreMetrics:
    """Counts round trips to the online store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._shares = Histogram(
            "interlock_features_reads_per_round_trip",
            "Reads that left for the online store together.",
            buckets=_SHARE_BUCKETS,
            registry=registry,
        )
        self._failures = Counter(
            "interlock_features_online_store_failures",
            "Round trips and waits that ended without an answer of the online store.",
            registry=registry,
        )

    def left_together(self, reads: int) -> None:
        """Count a round trip of so many reads."""
        self._shares.observe(reads)

    def failed(self) -> None:
        """Count a failure."""
        self._failures.inc()


class FeatureMetrics:
    """Counts what was read and pushed; the label `view` comes from definitions, so its values are bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._read_seconds = Histogram(
            "interlock_features_read_seconds",
            "Seconds from a read's request to its columns, without transport.",
            buckets=_READ_BUCKETS_S,
            registry=registry,
        )
        self._read_rows = Histogram(
            "interlock_features_read_rows", "Rows of a read.", buckets=_ROW_BUCKETS, registry=registry
        )
        self._values = Counter(
            "interlock_features_read_values",
            "Values read, by view and status (PRESENT, STALE, MISSING).",
            ["view", "status"],
            registry=registry,
        )
        self._pushed = Counter(
            "interlock_features_pushed_rows",
            "Rows pushed, by view and outcome (WRITTEN, OLDER, DUPLICATE, LATE, REFUSED).",
            ["view", "outcome"],
            registry=registry,
        )
        # The look-up of a label set costs more than the count.
        self._counters: dict[tuple[str, int], Counter] = {}

    def read(self, views: Sequence[str], columns: Sequence[Column], rows: int, seconds: float) -> None:
        """Count a read; `views` has the view of each column."""
        self._read_seconds.observe(seconds)
        self._read_rows.observe(rows)
        counts: dict[tuple[str, int], int] = {}
        for view, column in zip(views, columns, strict=True):
            left = rows
            for status in (Status.PRESENT, Status.STALE):
                found = column.statuses.count(status) if left else 0
                left -= found
                if found:
                    counts[view, status] = counts.get((view, status), 0) + found
            if left:
                counts[view, Status.MISSING] = counts.get((view, Status.MISSING), 0) + left
        for key, count in counts.items():
            counter = self._counters.get(key)
            if counter is None:
                counter = self._counters[key] = self._values.labels(key[0], Status(key[1]).name)
            counter.inc(count)

    def pushed(self, view: str, outcomes: Sequence[Outcome], refused: int) -> None:
        """Count the rows of a push."""
        for outcome in Outcome:
            count = outcomes.count(outcome)
            if count:
                self._pushed.labels(view, outcome.name).inc(count)
        if refused:
            self._pushed.labels(view, REFUSED).inc(refused)


class HistoryMetrics:
    """How the history's log gets on."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sync_seconds = Histogram(
            "interlock_features_history_sync_seconds",
            "Seconds to write and sync what was pushed at the same moment.",
            buckets=_SYNC_BUCKETS_S,
            registry=registry,
        )
        self.waiting_rows = Gauge(
            "interlock_features_history_waiting_rows", "Rows that are being made safe on disk.", registry=registry
        )
        self.log_bytes = Gauge(
            "interlock_features_history_log_bytes",
            "Bytes of the log that are in no Parquet part yet.",
            registry=registry,
        )
        self.oldest_seconds = Gauge(
            "interlock_features_history_lag_seconds",
            "Age of the oldest part of the log that is in no Parquet part yet.",
            registry=registry,
        )
        self.failures = Counter(
            "interlock_features_history_failures",
            "Writes of the log and of Parquet parts that failed, by what failed (log, part).",
            ["what"],
            registry=registry,
        )
