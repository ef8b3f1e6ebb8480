"""The metrics that rules know, and what a window's reports say about each."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from services.monitor.domain.alert import AlertRule, Condition, Observation, is_beyond
from services.monitor.domain.data_quality import DataQualityCheck
from services.monitor.domain.drift import DriftStatistic, benjamini_hochberg
from services.monitor.domain.drift_metric import DriftMetric
from services.monitor.domain.interval import Interval, rate_interval
from services.monitor.domain.quality_analysis import METRICS
from services.monitor.domain.report import (
    DataQualityReport,
    DriftReport,
    FairnessReport,
    QualityReport,
    TrafficReport,
)


class Source(StrEnum):
    """Which analysis a metric comes from."""

    DRIFT = "drift"
    DATA_QUALITY = "data_quality"
    QUALITY = "quality"
    ESTIMATED_QUALITY = "estimated_quality"
    FAIRNESS = "fairness"
    TRAFFIC = "traffic"


ERROR_RATE: Final = "error_rate"
LATENCY: Final = "latency_p99_ms"
PREDICTION_RATE: Final = "prediction_rate"
GAPS: Final = ("demographic_parity", "equal_opportunity", "predictive_parity", "false_positive_rate")
_NAMES: Final[Mapping[Source, tuple[str, ...]]] = {
    Source.DRIFT: tuple(DriftMetric),
    Source.DATA_QUALITY: tuple(DataQualityCheck),
    Source.QUALITY: METRICS,
    Source.ESTIMATED_QUALITY: METRICS,
    Source.FAIRNESS: GAPS,
}
_TRAFFIC: Final = (ERROR_RATE, LATENCY, PREDICTION_RATE)
KNOWN_METRICS: Final = (*(f"{source}/{name}" for source, names in _NAMES.items() for name in names), *_TRAFFIC)
METRIC_GROUPS: Final[Mapping[str, str]] = {
    **{f"{source}/": ", ".join(names) for source, names in _NAMES.items()},
    "without_group": ", ".join(_TRAFFIC),
}
"""The known names as errors list them."""
BY_FEATURE: Final = frozenset({Source.DRIFT, Source.DATA_QUALITY, Source.FAIRNESS})
"""Sources that say something about each feature."""
Report = DriftReport | DataQualityReport | QualityReport | FairnessReport | TrafficReport


@dataclass(frozen=True, slots=True)
class Reading:
    """What a report says about one feature (empty: the version as a whole)."""

    feature: str
    value: Interval
    is_significant: bool = True


def source_of(metric: str) -> Source:
    """Return which analysis a known metric comes from."""
    head, _, name = metric.partition("/")
    return Source(head) if name else Source.TRAFFIC


def observe(rule: AlertRule, report: Report) -> Mapping[str, Observation] | None:
    """Return by feature what a report says to a rule; None when it has too few predictions to be judged."""
    if _count(rule, report) < (1 if rule.metric == PREDICTION_RATE else rule.minimum_count):
        return None
    readings = list(_readings(rule.metric, report))
    if not readings and source_of(rule.metric) in (Source.QUALITY, Source.ESTIMATED_QUALITY):
        # Without a label, or a level, or for another task, it has no value, which is not a good one.
        return None
    return {
        reading.feature: Observation(
            reading.value.estimate,
            is_beyond(rule, reading.value.estimate, reading.value.lower, reading.value.upper)
            and (reading.is_significant or rule.condition is Condition.BELOW),
        )
        for reading in readings
        if not math.isnan(reading.value.estimate) and (not rule.features or reading.feature in rule.features)
    }


def _count(rule: AlertRule, report: Report) -> int:
    match report:
        case QualityReport() if source_of(rule.metric) is Source.QUALITY:
            return report.labelled_count
        case FairnessReport():
            return max((sum(group.prediction_count for group in found.groups) for found in report.features), default=0)
        case _:
            return report.prediction_count


def _readings(metric: str, report: Report) -> Iterator[Reading]:
    name = metric.partition("/")[2]
    match report:
        case DriftReport():
            yield from _drift(DriftMetric(name), report)
        case DataQualityReport():
            yield from _data_quality(name, report)
        case QualityReport():
            is_estimated = source_of(metric) is Source.ESTIMATED_QUALITY
            for found in report.metrics:
                # An estimate without a level has no interval that anything could surely lie beyond.
                if found.name == name and found.is_estimated == is_estimated and found.value.level > 0:
                    yield Reading("", found.value)
        case FairnessReport():
            yield from _fairness(name, report)
        case TrafficReport():
            yield Reading("", _traffic(metric, report))


def _drift(metric: DriftMetric, report: DriftReport) -> Iterator[Reading]:
    """Yield the drift of all features; significant at the policy's false discovery rate.

    The report corrects statistics with a minimum effect; others are corrected here, over the features.
    """
    policy = report.scope.policy
    found: list[tuple[str, DriftStatistic]] = [
        (feature.name, statistic)
        for feature in report.features
        for statistic in feature.statistics
        if statistic.metric is metric
    ]
    q_values = [statistic.q_value for _, statistic in found]
    if policy.minimum_effect(metric) is None:
        q_values = benjamini_hochberg([statistic.p_value for _, statistic in found]).tolist()
    for (name, statistic), q_value in zip(found, q_values, strict=True):
        yield Reading(name, statistic.value, q_value < policy.false_discovery_rate)


def _data_quality(check: str, report: DataQualityReport) -> Iterator[Reading]:
    for finding in report.findings:
        if finding.check == check:
            total = finding.count / finding.share if finding.share else report.prediction_count
            value = rate_interval(finding.count, total)
            if finding.check is DataQualityCheck.VOLUME:
                value = _point(1.0, report.prediction_count)
            yield Reading(finding.feature, value)


def _fairness(gap: str, report: FairnessReport) -> Iterator[Reading]:
    for feature in report.features:
        sizes = [_size(group.gaps[gap]) for group in feature.groups if gap in group.gaps]
        if sizes:
            yield Reading(feature.feature, max(sizes, key=lambda size: (size.lower, size.estimate)))


def _size(gap: Interval) -> Interval:
    """Return the interval of a difference whatever its sign."""
    ends = (abs(gap.lower), abs(gap.upper))
    lower = 0.0 if gap.lower <= 0 <= gap.upper else min(ends)
    return Interval(abs(gap.estimate), lower, max(ends), gap.level, gap.sample_count)


def _traffic(metric: str, report: TrafficReport) -> Interval:
    if metric == ERROR_RATE:
        return report.error_rate
    return _point(report.latency_ms[2] if metric == LATENCY else report.prediction_rate, report.prediction_count)


def _point(value: float, count: int) -> Interval:
    """Return an interval without width, for what is counted and not estimated."""
    return Interval(value, value, value, 0.95, count)
