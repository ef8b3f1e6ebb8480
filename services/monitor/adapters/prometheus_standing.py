"""How versions are doing as Prometheus metrics, for recording rules and alerts outside of the monitor."""

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.monitor.domain.drift import FeatureDrift
from services.monitor.domain.standing import Standing, Standings

_PREFIX: Final = "interlock_monitor"
_WHO: Final = ("model", "version", "environment")
FEATURE_LIMIT: Final = 50
"""Features of a version that are exposed: those that drifted most."""


class StandingCollector(Collector):
    """Exposes the standings of the last time; series are bounded by the limits of versions and features."""

    def __init__(self, standings: Standings) -> None:
        self._standings = standings

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        found = self._standings.all()
        yield from _traffic(found)
        yield from _drift(found)
        yield from _quality(found)


def _who(standing: Standing) -> list[str]:
    return [standing.model, standing.version, standing.environment]


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=[*_WHO, *labels])


def _traffic(standings: Sequence[Standing]) -> Iterator[Metric]:
    count = _family("window_predictions", "Predictions of the last complete window.")
    errors = _family("window_error_share", "Share of them that failed, 0 to 1.")
    latency = _family("window_latency_seconds", "Their latency in the router, by quantile.", "quantile")
    start = _family("window_start_timestamp_seconds", "When that window begins, prediction time.")
    for standing in standings:
        traffic, who = standing.traffic, _who(standing)
        count.add_metric(who, traffic.prediction_count)
        start.add_metric(who, traffic.scope.start_us / 1e6)
        if traffic.prediction_count:
            errors.add_metric(who, traffic.error_rate.estimate)
            for quantile, value_ms in zip(("0.5", "0.95", "0.99"), traffic.latency_ms, strict=True):
                latency.add_metric([*who, quantile], value_ms / 1000)
    yield from (count, errors, latency, start)


def _drift(standings: Sequence[Standing]) -> Iterator[Metric]:
    value = _family("drift", "Drift from the baseline in the last complete window.", "feature", "statistic")
    drifted = _family("feature_drifted", "Whether that counts as drift, 0 or 1.", "feature")
    missing = _family("feature_missing_share", "Share of missing values in that window, 0 to 1.", "feature")
    for standing in standings:
        features: tuple[FeatureDrift, ...] = tuple(standing.drift.features) if standing.drift else ()
        for feature in features[:FEATURE_LIMIT]:
            who = [*_who(standing), f"output:{feature.name}" if feature.is_output else feature.name]
            drifted.add_metric(who, float(feature.is_drifted))
            missing.add_metric(who, feature.missing_share)
            for statistic in feature.statistics:
                value.add_metric([*who, statistic.metric.value], statistic.value.estimate)
    yield from (value, drifted, missing)


def _quality(standings: Sequence[Standing]) -> Iterator[Metric]:
    value = _family("quality", "Quality over the day that ends with the last complete window.", "metric")
    labelled = _family("labelled_predictions", "Predictions of that day that have a label.")
    pending = _family("unlabelled_predictions", "Predictions of that day whose label may still come.")
    for standing in standings:
        labelled.add_metric(_who(standing), standing.quality.labelled_count)
        pending.add_metric(_who(standing), standing.quality.pending_count)
        for metric in standing.quality.metrics:
            value.add_metric([*_who(standing), metric.name], metric.value.estimate)
    yield from (value, labelled, pending)
