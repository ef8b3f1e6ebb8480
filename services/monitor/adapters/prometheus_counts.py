"""The monitor's counts as Prometheus metrics, read when they are scraped."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.monitor.domain.bounded_queue import Drops
from services.monitor.domain.event_stream import StreamTotals
from services.monitor.domain.prediction_counts import PredictionCounts

_PREFIX = "interlock_monitor"


class CountsCollector(Collector):
    """Exposes counts and totals; what it costs is bounded by the limit of the counts."""

    def __init__(
        self, counts: PredictionCounts, totals: StreamTotals, drops: Drops, damaged_files: Callable[[], int]
    ) -> None:
        self._counts = counts
        self._totals = totals
        self._drops = drops
        self._damaged_files = damaged_files

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with its value of now."""
        yield self._predictions()
        yield self._dropped()
        for name, help_text, value in (
            ("event_batches", "Batches of prediction events taken.", self._totals.batch_count),
            ("event_batches_missing", "Batches whose number was skipped.", self._totals.missing_batch_count),
            ("predictions_dropped", "Predictions that routers say they dropped.", self._totals.dropped_count),
            ("log_files_damaged", "Files of the prediction log that are left out.", self._damaged_files()),
        ):
            yield CounterMetricFamily(f"{_PREFIX}_{name}", help_text, value=value)
        streams = self._totals.open_stream_count
        yield GaugeMetricFamily(f"{_PREFIX}_event_streams_open", "Streams of routers that are open.", value=streams)

    def _dropped(self) -> Metric:
        text = "Predictions that did not get into a part of the monitor, by part and reason."
        family = CounterMetricFamily(f"{_PREFIX}_predictions_not_taken", text, labels=["part", "reason"])
        for part, reason, count in self._drops.counts():
            family.add_metric([part, reason], count)
        return family

    def _predictions(self) -> Metric:
        labels = ["model", "version", "variant", "outcome"]
        family = CounterMetricFamily(f"{_PREFIX}_predictions", "Predictions seen, by who answered.", labels=labels)
        for key, outcomes in self._counts.of_model():
            who = [key.model, key.version, key.variant]
            family.add_metric([*who, "ok"], outcomes.ok_count)
            family.add_metric([*who, "error"], outcomes.error_count)
        return family
