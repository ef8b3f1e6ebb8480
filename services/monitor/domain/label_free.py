"""Quality without labels, estimated from calibrated probabilities."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from services.monitor.domain.interval import LEVEL, Interval
from services.monitor.domain.numeric_sketch import SketchUnreadable
from services.monitor.domain.profile import FloatArray
from services.monitor.domain.quality import ClassificationQuality, QualityMetric
from services.monitor.domain.score_histogram import (
    SCORE_BINS,
    SCORE_EDGES,
    pack_sparse,
    roc_figures,
    score_bins,
    unpack_sparse,
)

CALIBRATION_TOLERANCE: Final = 0.05
"""Expected calibration error that is surely exceeded: not calibrated."""
MINIMUM_REFERENCE: Final = 200
MINIMUM_CLASS: Final = 20
_DRAWS: Final = 400
_MAGIC: Final = b"ILS1"
_CENTRES: Final = (SCORE_EDGES[:-1] + SCORE_EDGES[1:]) / 2


class NotCalibrated(Exception):
    """The classifier's probabilities are not calibrated, or there is too little to tell."""


class ScoreSketch:
    """Predicted probabilities of the positive class, of predictions with and without labels: fixed memory, mergeable."""

    __slots__ = ("predicted_negative", "predicted_positive", "squared_weight")

    def __init__(self) -> None:
        self.predicted_positive: FloatArray = np.zeros(SCORE_BINS)
        """Predictions of the positive class, by bin of the probability."""
        self.predicted_negative: FloatArray = np.zeros(SCORE_BINS)
        self.squared_weight = 0.0

    @property
    def total_weight(self) -> float:
        """Predictions, weighted."""
        return float(self.predicted_positive.sum() + self.predicted_negative.sum())

    def update(
        self,
        probabilities: npt.ArrayLike,
        is_predicted_positive: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> None:
        """Take probabilities [n] of the positive class, whether the model's class is that [n] (None: p >= 0.5), weights [n]."""
        p = np.asarray(probabilities, dtype=np.float64)
        predicted = p >= 0.5 if is_predicted_positive is None else np.asarray(is_predicted_positive, dtype=bool)
        w = np.ones(p.size) if weights is None else np.asarray(weights, dtype=np.float64)
        bins = score_bins(p)
        self.predicted_positive += np.bincount(bins, w * predicted, SCORE_BINS)
        self.predicted_negative += np.bincount(bins, w * ~predicted, SCORE_BINS)
        self.squared_weight += float(w @ w)

    def merge(self, other: "ScoreSketch") -> None:
        """Add what another sketch has seen."""
        self.predicted_positive = self.predicted_positive + other.predicted_positive
        self.predicted_negative = self.predicted_negative + other.predicted_negative
        self.squared_weight += other.squared_weight

    def to_bytes(self) -> bytes:
        """Return an encoding that carries its version."""
        head = _MAGIC + struct.pack("<d", self.squared_weight)
        return head + pack_sparse(self.predicted_positive) + pack_sparse(self.predicted_negative)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the sketch; raises SketchUnreadable."""
        sketch = cls()
        try:
            if data[:4] != _MAGIC:
                raise SketchUnreadable(f"want scores that begin with {_MAGIC!r}, got {data[:4]!r}")
            (sketch.squared_weight,) = struct.unpack_from("<d", data, 4)
            sketch.predicted_positive, rest = unpack_sparse(memoryview(data)[12:])
            sketch.predicted_negative, rest = unpack_sparse(rest)
        except (struct.error, ValueError) as error:
            raise SketchUnreadable(f"want scores, got {len(data)} bytes that are none: {error}") from error
        return sketch


@dataclass(frozen=True, slots=True)
class Calibration:
    """How probabilities map to rates, as learnt from labelled predictions, and how sure that is.

    Beta calibration: logit(rate) = a ln p - b ln(1 - p) + c; (1, 1, 0) when nothing has to be corrected (Kull, Silva
    Filho and Flach, Beta calibration, 2017).
    """

    coefficients: FloatArray
    covariance: FloatArray
    window_variance: float
    """Variance of c between windows of the reference, beyond chance."""
    error: Interval
    """Expected calibration error of the probabilities themselves."""


def check_calibration(references: Sequence[ClassificationQuality]) -> Calibration:
    """Return the calibration that labelled predictions show, one entry for each window.

    Raises NotCalibrated where they are too few, or where the expected calibration error is surely above the tolerance.
    """
    pooled = ClassificationQuality()
    for reference in references:
        pooled.merge(reference)
    classes = min(float(pooled.positives.sum()), float(pooled.negatives.sum()))
    if pooled.labelled_weight < MINIMUM_REFERENCE or classes < MINIMUM_CLASS:
        raise NotCalibrated(
            f"want at least {MINIMUM_REFERENCE} labelled predictions and {MINIMUM_CLASS} of each class to check calibration "
            f"with, got {pooled.labelled_weight:.0f} and {classes:.0f}"
        )
    error = pooled.calibration_error()
    if error.lower > CALIBRATION_TOLERANCE:
        raise NotCalibrated(
            f"want an expected calibration error of at most {CALIBRATION_TOLERANCE}, got {error.estimate:.3f} "
            f"({error.lower:.3f} to {error.upper:.3f})"
        )
    coefficients, covariance = _fit_beta(pooled)
    rates = _rates(coefficients)
    return Calibration(coefficients, covariance, _window_variance(references, rates), error)


def estimate_quality(
    scores: ScoreSketch, calibration: Calibration, level: float = LEVEL, seed: int = 0
) -> list[QualityMetric]:
    """Return accuracy, AUC, Brier, log loss, precision and recall of predictions without labels; empty without predictions.

    Confidence-based performance estimation (NannyML, https://nannyml.readthedocs.io, "Estimation of performance"):
    calibrated probabilities say how many of the predictions in each confusion cell to expect. It holds under covariate
    shift, not when the meaning of the features changes. The interval is one of prediction: it covers, with probability
    `level`, the figure that the labels of these very predictions will show; labels are drawn, and so is the calibration.
    """
    total = scores.total_weight
    if total <= 0:
        return []
    share = total / scores.squared_weight
    predicted, rejected = scores.predicted_positive * share, scores.predicted_negative * share
    filled = np.flatnonzero(predicted + rejected)
    predicted, rejected = predicted[filled], rejected[filled]
    expected = _rates(calibration.coefficients)[filled]
    estimate = _figures((predicted * expected)[None], (rejected * expected)[None], predicted, rejected, filled)
    random = np.random.default_rng(seed)
    spread = calibration.covariance.copy()
    spread[2, 2] += calibration.window_variance
    coefficients = random.multivariate_normal(calibration.coefficients, spread, _DRAWS, method="cholesky")
    rates = np.stack([_rates(row)[filled] for row in coefficients])
    drawn = _figures(
        random.binomial(np.rint(predicted).astype(np.int64), rates).astype(np.float64),
        random.binomial(np.rint(rejected).astype(np.int64), rates).astype(np.float64),
        predicted,
        rejected,
        filled,
    )
    found = []
    for name, values in estimate.items():
        if not np.isfinite(values[0]):
            continue
        samples = drawn[name][np.isfinite(drawn[name])]
        lower, upper = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2])
        value = float(values[0])
        interval = Interval(value, min(float(lower), value), max(float(upper), value), level, round(total * share))
        better = name not in {"log_loss", "brier"}
        found.append(QualityMetric(name, interval, higher_is_better=better, is_estimated=True))
    return found


def _figures(
    hits: FloatArray, misses: FloatArray, predicted: FloatArray, rejected: FloatArray, filled: npt.NDArray[np.intp]
) -> dict[str, FloatArray]:
    """Return metrics [draws] from positives among predicted and rejected, [draws, filled bins]."""
    total = predicted.sum() + rejected.sum()
    hit, miss = hits.sum(axis=1), misses.sum(axis=1)
    positives = hits + misses
    negatives = np.maximum(predicted + rejected - positives, 0.0)
    p = _CENTRES[filled]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "accuracy": (hit + rejected.sum() - miss) / total,
            "auc": roc_figures(positives, negatives).area,
            "log_loss": -(positives @ np.log(p) + negatives @ np.log1p(-p)) / total,
            "brier": (positives @ (1 - p) ** 2 + negatives @ p**2) / total,
            "precision": hit / (predicted.sum() if predicted.sum() > 0 else np.nan),
            "recall": hit / (hit + miss),
        }


def _design() -> FloatArray:
    return np.stack([np.log(_CENTRES), -np.log1p(-_CENTRES), np.ones(SCORE_BINS)], axis=1)


def _rates(coefficients: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(_design() @ coefficients, -40, 40))))


def _fit_beta(quality: ClassificationQuality) -> tuple[FloatArray, FloatArray]:
    """Return coefficients and their covariance by penalised maximum likelihood; the prior is mild, around no correction."""
    design, identity = _design(), np.array([1.0, 1.0, 0.0])
    counts = quality.positives + quality.negatives
    used = counts > 0
    design, counts, positives = design[used], counts[used], quality.positives[used]
    coefficients = identity.copy()
    information = np.eye(3)
    for _ in range(50):
        rates = 1 / (1 + np.exp(-np.clip(design @ coefficients, -40, 40)))
        gradient = design.T @ (positives - counts * rates) - (coefficients - identity)
        information = (design * (counts * rates * (1 - rates))[:, None]).T @ design + np.eye(3)
        step = np.linalg.solve(information, gradient)
        coefficients = coefficients + step
        if float(np.abs(step).max()) < 1e-9:
            break
    return coefficients, np.asarray(np.linalg.inv(information), dtype=np.float64)


def _window_variance(references: Sequence[ClassificationQuality], rates: FloatArray) -> float:
    """Return how much c differs between windows beyond chance, by the method of moments."""
    squares, informations = 0.0, 0.0
    for reference in references:
        counts = reference.positives + reference.negatives
        information = float((counts * rates * (1 - rates)).sum())
        if information > 0:
            squares += float((reference.positives - counts * rates).sum()) ** 2 / information
            informations += information
    windows = len(references)
    if windows < 2 or informations <= 0:
        return 0.0
    return max(squares - (windows - 1), 0.0) / informations
