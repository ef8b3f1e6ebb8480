"""Quality of a version, from windows of labels."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from services.monitor.domain.drift_analysis import OUTPUT_PREFIX, Verdicts
from services.monitor.domain.estimate_check import hold_against_labels
from services.monitor.domain.failure import NotCalibrated
from services.monitor.domain.label_free import NotCalibrated as Uncalibrated
from services.monitor.domain.label_free import ScoreSketch, Stretch, check_calibration, estimate_quality
from services.monitor.domain.quality import (
    CalibrationBin,
    ClassificationQuality,
    EstimateBasis,
    QualityMetric,
    RegressionQuality,
)
from services.monitor.domain.quality_window import Quality, QualityWindow
from services.monitor.domain.scope import Scope
from services.monitor.domain.version_info import Task, VersionInfo
from services.monitor.domain.window import WindowSketch
from services.monitor.domain.window_series import Placed

METRICS: Final = (
    "auc",
    "log_loss",
    "brier",
    "precision",
    "recall",
    "accuracy",
    "expected_calibration_error",
    "mean_absolute_error",
    "root_mean_squared_error",
)


def measure(
    labelled: Sequence[Placed[QualityWindow]], info: VersionInfo
) -> tuple[list[QualityMetric], list[CalibrationBin], float]:
    """Return the metrics, the calibration curve of a classification, and how many predictions have a label."""
    quality = _pooled(labelled, info)
    if quality is None or quality.labelled_weight <= 0:
        return [], [], 0.0
    calibration = quality.calibration_curve() if isinstance(quality, ClassificationQuality) else []
    return quality.metrics(), calibration, quality.labelled_weight


@dataclass(frozen=True, slots=True)
class EstimateInput:
    """Probabilities and labels of a scope and of the time before it."""

    scope: Scope
    scores: Sequence[Placed[ScoreSketch]]
    """Of the scope, and of so much before it as is looked back at."""
    labelled: Sequence[Placed[QualityWindow]]
    """Of the scope and the four weeks before it."""
    drifted: frozenset[str] | None
    """Inputs that have drifted in the scope; None: there is no baseline to tell."""
    verdicts: Verdicts
    """Of the windows before it."""


def estimate(given: EstimateInput) -> list[QualityMetric]:
    """Return what confidences say, the calibration being learnt from labelled windows; raises NotCalibrated."""
    info = given.scope.info
    if info.task is not Task.CLASSIFICATION:
        raise NotCalibrated(info.name, "want a classification, got a regression, which has no confidences")
    stretches = _stretches(given)
    now = stretches.pop(0, Stretch(0, ClassificationQuality()))
    before = [stretch for stretch in stretches.values() if stretch.quality.labelled_weight > 0]
    try:
        # A version that has labels of this scope only is better than none.
        calibration = check_calibration(before or [now], now.drifted)
    except Uncalibrated as error:
        raise NotCalibrated(info.name, str(error)) from None
    metrics = hold_against_labels(estimate_quality(now.scores, calibration), before)
    if given.drifted is not None:
        return metrics
    unknown = EstimateBasis.NO_BASELINE
    return [replace(metric, value=replace(metric.value, level=0.0), basis=unknown) for metric in metrics]


def _stretches(given: EstimateInput) -> dict[int, Stretch]:
    """Return what is known of the scope and of stretches as long before it, by how many stretches ago they were."""
    found: dict[int, Stretch] = {0: Stretch(0, ClassificationQuality(), drifted=given.drifted or frozenset())}
    names: dict[int, list[Collection[str]]] = {}
    for placed in given.labelled:
        ago = _stretches_ago(placed, given.scope)
        names.setdefault(ago, []).append(given.verdicts.get((placed.start_us, placed.end_us), ()))
    for ago, verdicts in names.items():
        found.setdefault(ago, Stretch(ago, ClassificationQuality(), drifted=_usually_drifted(verdicts)))
    for placed in given.labelled:
        if isinstance(placed.window.quality, ClassificationQuality):
            found[_stretches_ago(placed, given.scope)].quality.merge(placed.window.quality)
    for scored in given.scores:
        ago = _stretches_ago(scored, given.scope)
        if ago in found:
            found[ago].scores.merge(scored.window)
    return found


def _usually_drifted(verdicts: Sequence[Collection[str]]) -> frozenset[str]:
    """Return the inputs that had drifted in at least half of the windows of a stretch."""
    counts = Counter(name for names in verdicts for name in names if not name.startswith(OUTPUT_PREFIX))
    return frozenset(name for name, count in counts.items() if 2 * count >= len(verdicts))


def _stretches_ago(placed: Placed[Any], scope: Scope) -> int:
    """Return how many stretches as long as the scope before it a window lies; 0: in it."""
    return max(-(-(scope.start_us - placed.start_us) // (scope.end_us - scope.start_us)), 0)


def pending_count(
    windows: Sequence[Placed[WindowSketch]],
    labelled: Sequence[Placed[QualityWindow]],
    label_retention_us: int,
    now_us: int,
) -> int:
    """Return how many answered predictions have no label yet and may still get one."""
    known = {(placed.start_us, placed.end_us): placed.window.quality.labelled_weight for placed in labelled}
    waiting = (placed for placed in windows if placed.end_us + label_retention_us > now_us)
    missing = (placed.window.ok_count - known.get((placed.start_us, placed.end_us), 0.0) for placed in waiting)
    return round(sum(max(0.0, count) for count in missing))


def _pooled(labelled: Sequence[Placed[QualityWindow]], info: VersionInfo) -> Quality | None:
    if info.task is None:
        return None
    total = QualityWindow(RegressionQuality() if info.task is Task.REGRESSION else ClassificationQuality())
    for placed in labelled:
        total.merge(placed.window)
    return total.quality
