"""Quality without labels, estimated from calibrated probabilities."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import scipy

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
GROUP_SIZE: Final = 100
"""Labelled predictions in a group of the calibration, at least; of `MAXIMUM_GROUPS` groups at most."""
MAXIMUM_GROUPS: Final = 200
DRAWS: Final = 400
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
        """Take probabilities [n] of the positive class, whether the model's class is that [n] (None: p >= 0.5), weights [n].

        NaN is no probability and left out.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        predicted = p >= 0.5 if is_predicted_positive is None else np.asarray(is_predicted_positive, dtype=bool)
        w = np.ones(p.size) if weights is None else np.asarray(weights, dtype=np.float64)
        there = ~np.isnan(p)
        if not there.all():
            p, predicted, w = p[there], predicted[there], w[there]
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

    Isotonic regression over groups of equally many predictions, straight lines between their means; Zadrozny and Elkan,
    Transforming classifier scores into accurate multiclass probability estimates (2002).
    """

    probabilities: FloatArray
    """Mean predicted probability of each group, ascending, [groups]."""
    positives: FloatArray
    """Labelled positive, [groups]."""
    counts: FloatArray
    """Labelled, [groups]."""
    level_variance: float
    """How much the level of the rates' logits differs between windows of the reference, beyond chance: a variance."""
    slope_variance: float
    """The same of the slope of the logits."""
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
    probabilities, positives, counts = pooled.calibration_groups(
        int(min(MAXIMUM_GROUPS, max(pooled.labelled_weight // GROUP_SIZE, 10)))
    )
    rates = _rates(probabilities, positives / counts, counts)
    logits = _logit(rates)
    total = pooled.positives + pooled.negatives
    centred = logits - np.average(logits, weights=total * rates * (1 - rates))
    level = _window_variance(references, rates, np.ones(SCORE_BINS))
    slope = _window_variance(references, rates, centred)
    return Calibration(probabilities, positives, counts, level, slope, error)


def estimate_quality(
    scores: ScoreSketch, calibration: Calibration, level: float = LEVEL, seed: int = 0, draws: int = DRAWS
) -> list[QualityMetric]:
    """Return accuracy, AUC, Brier score, precision and recall of predictions without labels; empty without predictions.

    Confidence-based performance estimation (NannyML, https://nannyml.readthedocs.io, "Estimation of performance"):
    calibrated probabilities say how many of the predictions in each confusion cell to expect. It holds under covariate
    shift, not when the meaning of the features changes: `estimate_check` mends that once labels come. The interval is one
    of prediction: it covers, with probability `level`, the figure that the labels of these very predictions will show;
    labels are drawn, and so is the calibration.
    """
    total = scores.total_weight
    if total <= 0:
        return []
    share = total / scores.squared_weight
    predicted, rejected = scores.predicted_positive * share, scores.predicted_negative * share
    filled = np.flatnonzero(predicted + rejected)
    predicted, rejected = predicted[filled], rejected[filled]
    observed = calibration.positives / calibration.counts
    expected = _rates(calibration.probabilities, observed, calibration.counts, _CENTRES[filled])
    estimate = _figures((predicted * expected)[None], (rejected * expected)[None], predicted, rejected, filled)
    random = np.random.default_rng(seed)
    rates = _drawn_rates(calibration, expected, filled, random, draws)
    drawn = _figures(
        random.binomial(np.rint(predicted).astype(np.int64), rates).astype(np.float64),
        random.binomial(np.rint(rejected).astype(np.int64), rates).astype(np.float64),
        predicted,
        rejected,
        filled,
    )
    found = []
    for name, values in estimate.items():
        samples = drawn[name][np.isfinite(drawn[name])]
        if not np.isfinite(values[0]) or not samples.size:
            continue
        lower, upper = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2])
        value = float(values[0])
        interval = Interval(value, min(float(lower), value), max(float(upper), value), level, round(total * share))
        better = name != "brier"
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
            "brier": (positives @ (1 - p) ** 2 + negatives @ p**2) / total,
            "precision": hit / (predicted.sum() if predicted.sum() > 0 else np.nan),
            "recall": hit / (hit + miss),
        }


def _drawn_rates(
    calibration: Calibration,
    expected: FloatArray,
    filled: npt.NDArray[np.intp],
    random: np.random.Generator,
    draws: int,
) -> FloatArray:
    """Draw rates [draws, filled bins]: each group's from its beta posterior (Jeffreys), then the window's own shift."""
    hits, misses = calibration.positives + 0.5, calibration.counts - calibration.positives + 0.5
    groups = random.beta(np.maximum(hits, 0.5), np.maximum(misses, 0.5), (draws, calibration.counts.size))
    centres = _CENTRES[filled]
    rates = np.stack([_rates(calibration.probabilities, row, calibration.counts, centres) for row in groups])
    middle = float(_logit(expected).mean())
    logits = _logit(rates)
    shifts = random.normal(0.0, np.sqrt(calibration.level_variance), (draws, 1))
    slopes = random.normal(0.0, np.sqrt(calibration.slope_variance), (draws, 1))
    return np.asarray(1 / (1 + np.exp(-(logits + shifts + slopes * (logits - middle)))))


def _rates(
    probabilities: FloatArray, rates: FloatArray, counts: FloatArray, centres: FloatArray = _CENTRES
) -> FloatArray:
    """Return the rate in fine bins, rising with the probability."""
    risen = scipy.optimize.isotonic_regression(rates, weights=counts).x
    return np.asarray(np.clip(np.interp(centres, probabilities, risen), 1e-9, 1 - 1e-9))


def _logit(rates: FloatArray) -> FloatArray:
    return np.asarray(np.log(rates) - np.log1p(-rates))


def _window_variance(references: Sequence[ClassificationQuality], rates: FloatArray, direction: FloatArray) -> float:
    """Return how much windows' logits differ along a direction beyond chance, by the method of moments."""
    squares, informations = 0.0, 0.0
    for reference in references:
        counts = reference.positives + reference.negatives
        information = float((direction**2 * counts * rates * (1 - rates)).sum())
        if information > 0:
            squares += float((direction * (reference.positives - counts * rates)).sum()) ** 2 / information
            informations += information
    windows = len(references)
    if windows < 2 or informations <= 0:
        return 0.0
    return max(squares - (windows - 1), 0.0) / informations
