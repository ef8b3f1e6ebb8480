"""Quality of a version, from windows of labels."""

from collections.abc import Sequence
from typing import Final

from services.monitor.domain.failure import NotCalibrated
from services.monitor.domain.label_free import NotCalibrated as Uncalibrated
from services.monitor.domain.label_free import ScoreSketch, check_calibration, estimate_quality
from services.monitor.domain.quality import CalibrationBin, ClassificationQuality, QualityMetric, RegressionQuality
from services.monitor.domain.quality_window import Quality, QualityWindow
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


def estimate(
    windows: Sequence[Placed[WindowSketch]], references: Sequence[Placed[QualityWindow]], info: VersionInfo
) -> list[QualityMetric]:
    """Return what confidences alone say, the calibration being learnt from labelled windows; raises NotCalibrated."""
    if info.task is not Task.CLASSIFICATION:
        raise NotCalibrated(info.name, "want a classification, got a regression, which has no confidences")
    known = [placed.window.quality for placed in references]
    try:
        calibration = check_calibration([found for found in known if isinstance(found, ClassificationQuality)])
    except Uncalibrated as error:
        raise NotCalibrated(info.name, str(error)) from None
    scores = ScoreSketch()
    for placed in windows:
        if placed.window.scores is not None:
            scores.merge(placed.window.scores)
    return estimate_quality(scores, calibration)


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
