"""Label-free estimates held against the labels that came since.

Confidences cannot know that the meaning of features changed; labels that come late can. So an interval is widened by how
far past figures came to lie outside of theirs, by the quantile tracking of Angelopoulos, Candes and Tibshirani, Conformal
PID control for time series prediction (2023), a form of Gibbs and Candes, Adaptive conformal inference under distribution
shift (2021). Whatever drifts, a share of at most 1 - level + c / n of n intervals in a row misses its figure. Each time
that misses grow larger than all before, c grows by about 3 plus the number of stretches that labels take to come. No more is
to be had: the first intervals after a change miss before any label says so.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from services.monitor.domain.interval import LEVEL, Interval, rate_interval
from services.monitor.domain.label_free import NotCalibrated, Stretch, check_calibration, estimate_quality
from services.monitor.domain.quality import QualityMetric

CHECKED_LIMIT: Final = 40
"""Stretches that are looked back at, at most."""
LABELLED_SHARE: Final = 0.9
"""Of the predictions of a stretch, that must have a label: those whose labels come first may be of a kind."""
_RATE: Final = 0.5
"""What a miss widens by, as a share of the largest one so far."""
_DRAWS: Final = 100


def hold_against_labels(
    metrics: Sequence[QualityMetric], stretches: Sequence[Stretch], level: float = LEVEL
) -> list[QualityMetric]:
    """Return estimates of a scope with intervals widened by the misses of the stretches before it.

    What each stretch is estimated from is what was known as long before it as the newest labels are before the scope.
    Estimates without a level stay as they are, and stretches of which none would have been stated tell nothing.
    """
    complete = [s for s in stretches if 0 < LABELLED_SHARE * s.scores.total_weight <= s.quality.labelled_weight]
    newest_last = sorted(complete, key=lambda stretch: -stretch.ago)[-CHECKED_LIMIT:]
    if not newest_last:
        return list(metrics)
    lag = newest_last[-1].ago
    misses: dict[str, list[tuple[int, float]]] = {}
    for stretch in newest_last:
        known = [one for one in stretches if one.ago >= stretch.ago + lag]
        for name, miss in misses_of(stretch, known).items():
            misses.setdefault(name, []).append((stretch.ago, miss))
    return [
        _widened(metric, misses.get(metric.name, []), lag, level) if metric.value.level else metric
        for metric in metrics
    ]


def widening(misses: Sequence[tuple[int, float]], lag: int, level: float = LEVEL) -> tuple[float, int]:
    """Return what an interval of now is to be widened by at each end, and how many past ones, so widened, held their figure.

    `misses`, the oldest first: how many stretches ago, and how far the figure lay outside of its interval (less than 0:
    inside). Each is known `lag` stretches later.
    """
    width, largest, held = 0.0, 0.0, 0
    waiting: deque[tuple[int, float, float]] = deque()
    for ago, miss in [*misses, (0, 0.0)]:
        while waiting and waiting[0][0] >= ago + lag:
            _, known, given = waiting.popleft()
            largest = max(largest, known)
            width = max(0.0, width + _RATE * largest * ((known > given) - (1 - level)))
        waiting.append((ago, miss, width))
        held += ago > 0 and miss <= width
    return width, held


def known_coverage(held: int, checked: int, lag: int) -> Interval:
    """Return how often intervals hold their figure, from how many of those that were checked did.

    No widening can know of a change before a label of it has come, so up to `lag` stretches in a row miss together: that
    many tell as much as one.
    """
    return replace(rate_interval(held / lag, checked / lag), sample_count=checked)


def misses_of(stretch: Stretch, known: Sequence[Stretch]) -> Mapping[str, float]:
    """Return by metric how far a figure lies outside of its interval (less than 0: inside), estimated from what was known.

    Empty where no level would have been stated.
    """
    try:
        calibration = check_calibration(known, stretch.drifted, stretch.ago)
    except NotCalibrated:
        return {}
    if not calibration.is_supported:
        return {}
    figures = {metric.name: metric.value.estimate for metric in stretch.quality.metrics()}
    return {
        metric.name: max(metric.value.lower - figures[metric.name], figures[metric.name] - metric.value.upper)
        for metric in estimate_quality(stretch.scores, calibration, draws=_DRAWS)
        if metric.name in figures
    }


def _widened(metric: QualityMetric, misses: Sequence[tuple[int, float]], lag: int, level: float) -> QualityMetric:
    (by, held), value = widening(misses, lag, level), metric.value
    # All of these metrics lie between 0 and 1.
    interval = replace(value, lower=max(value.lower - by, 0.0), upper=min(value.upper + by, 1.0))
    coverage = known_coverage(held, len(misses), lag) if misses else None
    return replace(metric, value=interval, checked_count=len(misses), held_count=held, coverage=coverage)
