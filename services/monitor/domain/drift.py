"""Drift of a version's features and outputs: how large, how sure, and whether it is worth an alarm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from services.monitor.domain.drift_metric import DriftMetric, error_of_bins, measure_bins, measure_counts, metrics_of
from services.monitor.domain.drift_null import (
    DRAWS,
    Drawn,
    NullModel,
    NullSource,
    Window,
    closest_part,
    compared_size,
    draw_without_drift,
    fit_null,
    model_null,
)
from services.monitor.domain.interval import LEVEL, Interval
from services.monitor.domain.profile import FloatArray, Histogram, merge_histograms

FALSE_DISCOVERY_RATE: Final = 0.01
MINIMUM_EFFECTS: Final[Mapping[DriftMetric, float]] = {
    DriftMetric.PSI: 0.1,
    DriftMetric.JENSEN_SHANNON: 0.1,
    DriftMetric.KOLMOGOROV_SMIRNOV: 0.1,
}
"""Metrics that are not named measure, and never alarm."""


@dataclass(frozen=True, slots=True)
class FeatureComparison:
    """One feature or output: what it was, what it is, and how it was lately. All histograms have the same bins."""

    name: str
    reference: Histogram
    windows: Sequence[Window]
    """Windows of the scope; at least one."""
    past: Sequence[Window] = ()
    """Windows before the scope: four weeks of them are plenty, none will do."""
    is_output: bool = False
    is_baseline: bool = True
    """Whether the reference is of whole weeks, so that an hour may differ from it without drift."""
    missing_share: float = 0.0
    baseline_missing_share: float = 0.0


@dataclass(frozen=True, slots=True)
class DriftStatistic:
    """One drift statistic."""

    metric: DriftMetric
    value: Interval
    """Source of the interval: basic bootstrap of the counts (Davison and Hinkley, Bootstrap methods, 1997, 5.2)."""
    null_quantile_95: float
    p_value: float
    q_value: float
    sketch_error: float
    source: NullSource


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """Drift of one feature or output."""

    name: str
    is_output: bool
    value_count: int
    missing_share: float
    baseline_missing_share: float
    statistics: tuple[DriftStatistic, ...]
    is_drifted: bool

    @property
    def has_few_past_windows(self) -> bool:
        """Whether it is not known yet what the hour, the weekday or a slow swing brings."""
        return any(statistic.source is not NullSource.SAME_HOURS for statistic in self.statistics)


def measure_drift(
    comparisons: Sequence[FeatureComparison],
    *,
    window_s: float,
    false_discovery_rate: float = FALSE_DISCOVERY_RATE,
    minimum_effects: Mapping[DriftMetric, float] = MINIMUM_EFFECTS,
    seed: int = 0,
) -> list[FeatureDrift]:
    """Return the drift of features and outputs that are looked at together, the largest first.

    A feature has drifted when a statistic with a minimum effect is at least that large and its q-value is below the false
    discovery rate. The same input and seed give the same answer.
    """
    measured = [_measure_feature(comparison, window_s, seed) for comparison in comparisons]
    judged = [
        (feature, index)
        for feature, drift in enumerate(measured)
        for index, statistic in enumerate(drift.statistics)
        if statistic.metric in minimum_effects
    ]
    q_values = benjamini_hochberg([measured[feature].statistics[index].p_value for feature, index in judged])
    corrected = dict(zip(judged, q_values.tolist(), strict=True))
    drifts = []
    for feature, drift in enumerate(measured):
        statistics = tuple(
            replace(statistic, q_value=corrected.get((feature, index), statistic.p_value))
            for index, statistic in enumerate(drift.statistics)
        )
        is_drifted = any(
            statistic.q_value < false_discovery_rate
            and statistic.value.estimate >= minimum_effects.get(statistic.metric, np.inf)
            for statistic in statistics
        )
        drifts.append(replace(drift, statistics=statistics, is_drifted=is_drifted))
    return sorted(drifts, key=_largest_first)


def benjamini_hochberg(p_values: npt.ArrayLike) -> FloatArray:
    """Return q-values: rejecting those below r keeps the share of false rejections at r or less.

    Benjamini and Hochberg, Controlling the false discovery rate (1995). It holds for independent and positively dependent
    statistics (Benjamini and Yekutieli, 2001): those of one feature rise together, and so do those of features that
    depend on each other, since drift raises every one of them. Their correction for any dependence would cost a factor
    of ln(m) in power for a case that does not arise.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.size == 0:
        return p
    order = np.argsort(p)
    ratios = p[order] * p.size / np.arange(1, p.size + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(ratios[::-1])[::-1], 1.0)
    return q


def _measure_feature(comparison: FeatureComparison, window_s: float, seed: int) -> FeatureDrift:
    current = merge_histograms([window.histogram for window in comparison.windows])
    statistics: tuple[DriftStatistic, ...] = ()
    if current.total > 0 and comparison.reference.total > 0:
        random = np.random.default_rng(seed)
        model = model_null(comparison.windows, comparison.past, window_s, is_baseline=comparison.is_baseline)
        metrics = metrics_of(comparison.reference)
        usual = comparison.reference
        if model.source is NullSource.PART_OF_WEEK:
            usual = closest_part(usual, comparison.windows, comparison.past, window_s)
        drawn = draw_without_drift(usual, current, model, random)
        resampled = _resampled(comparison.reference, current, model, random)
        statistics = tuple(
            _measure(metric, comparison.reference, current, model=model, drawn=drawn, resampled=resampled)
            for metric in metrics
        )
    return FeatureDrift(
        name=comparison.name,
        is_output=comparison.is_output,
        value_count=round(current.total),
        missing_share=comparison.missing_share,
        baseline_missing_share=comparison.baseline_missing_share,
        statistics=statistics,
        is_drifted=False,
    )


def _measure(
    metric: DriftMetric,
    reference: Histogram,
    current: Histogram,
    *,
    model: NullModel,
    drawn: Drawn,
    resampled: FloatArray,
) -> DriftStatistic:
    value = measure_bins(metric, reference, current)
    null = fit_null(metric, reference, current, model, drawn)
    repeated = measure_counts(metric, reference, current, resampled)
    # Distances are biased upwards by chance, in the sample as in the draws; the basic bootstrap takes that off again.
    lower, upper = 2 * value - np.quantile(repeated, [0.5 + LEVEL / 2, 0.5 - LEVEL / 2])
    interval = Interval(
        estimate=value,
        lower=min(max(float(lower), 0.0), value),
        upper=max(float(upper), value),
        level=LEVEL,
        sample_count=round(current.effective_count),
    )
    tested = measure_counts(metric, reference, current, current.counts[np.newaxis], compared_size(current, model))
    p_value = null.p_value(float(tested[0]))
    error = error_of_bins(metric, reference, current)
    return DriftStatistic(metric, interval, null.quantile(0.95), p_value, p_value, error, model.source)


def _resampled(reference: Histogram, current: Histogram, model: NullModel, random: np.random.Generator) -> FloatArray:
    """Draw counts [draws, bins] from the scope's own shares."""
    size = max(1, round(current.effective_count / model.design_effect))
    return np.asarray(random.multinomial(size, current.counts / current.total, DRAWS), dtype=np.float64)


def _largest_first(drift: FeatureDrift) -> tuple[bool, float, str]:
    """Order by drift, then by the only statistic that all have and that has no unit and an upper end."""
    distances = [item.value.estimate for item in drift.statistics if item.metric is DriftMetric.JENSEN_SHANNON]
    return not drift.is_drifted, -max(distances, default=0.0), drift.name
