"""Quality without labels, estimated from calibrated probabilities."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import scipy

from services.monitor.domain.interval import LEVEL, Interval
from services.monitor.domain.numeric_sketch import SketchUnreadable
from services.monitor.domain.profile import FloatArray
from services.monitor.domain.quality import ClassificationQuality, EstimateBasis, QualityMetric
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
REFERENCE_LIMIT: Final = 200
"""Newest stretches that level and slope are followed through, at most."""
USUAL_NOISE: Final = 0.05
"""How much the logits' level and slope differ from stretch to stretch by themselves, before any label says so: a standard
deviation, of which twice as much is a fifth as likely. With a handful of labelled stretches it sets how wide intervals are, with twenty
it no longer matters."""
USUAL_STEP: Final = 0.02
"""The same of how far both move for good from one stretch to the next."""
_SPREADS: Final = np.array([0.0, *np.geomspace(0.01, 1.28, 8)])
"""Standard deviations, of both, that are thought possible."""
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
class Stretch:
    """A stretch of time as long as the one that is estimated."""

    ago: int
    """1: the one right before that, 2: the one before; 0: itself."""
    quality: ClassificationQuality
    """What its labels say, as far as they have come."""
    scores: ScoreSketch = field(default_factory=ScoreSketch)
    drifted: frozenset[str] = frozenset()
    """Inputs that had drifted in it."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of an effect in the stretch that is estimated: a mixture of normal distributions, [models] each."""

    weights: FloatArray
    means: FloatArray
    variances: FloatArray

    @property
    def mean(self) -> float:
        """Mean of the mixture."""
        return float(self.weights @ self.means)

    def draw(self, random: np.random.Generator, draws: int) -> FloatArray:
        """Draw effects, [draws, 1]."""
        chosen = random.choice(self.weights.size, draws, p=self.weights)
        return random.normal(self.means[chosen], np.sqrt(self.variances[chosen]))[:, None]


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
    level: Forecast
    """How far the logits of rates lie above those of the groups in the stretch that is estimated."""
    slope: Forecast
    """How much steeper they are, less 1."""
    is_supported: bool
    """Whether labels have come of stretches in which the same inputs had drifted. If not, both are those of all stretches."""
    unsupported_inputs: tuple[str, ...]
    """If not: the least that it differs in from stretches with labels, by name."""


def check_calibration(references: Sequence[Stretch], drifted: frozenset[str] = frozenset(), at: int = 0) -> Calibration:
    """Return the calibration that labelled stretches show for the one `at` stretches ago, in which these inputs had drifted.

    What a probability means changes with the inputs (a drift that the features tell may have reasons that they do not) and
    by itself. So the shape is learnt from all stretches, level and slope of its logits from those in which the same inputs
    had drifted, by a local level model: each moves as a random walk and differs from stretch to stretch (Durbin and
    Koopman, Time series analysis by state space methods, 2012, chapter 2), both variances being unknown.

    Raises NotCalibrated where labels are too few, or where the expected calibration error is surely above the tolerance.
    """
    pooled = _checked(references)
    probabilities, positives, counts = pooled.calibration_groups(
        int(min(MAXIMUM_GROUPS, max(pooled.labelled_weight // GROUP_SIZE, 10)))
    )
    rates = _rates(probabilities, positives / counts, counts)
    alike = [stretch for stretch in references if stretch.drifted == drifted]
    is_supported = sum(stretch.quality.labelled_weight for stretch in alike) >= MINIMUM_REFERENCE
    level, slope = _forecasts(alike if is_supported else references, rates, at)
    differing = [] if is_supported else [drifted ^ stretch.drifted for stretch in references]
    names = min(filter(None, differing), key=len, default=drifted)
    return Calibration(probabilities, positives, counts, level, slope, is_supported, tuple(sorted(names)))


def _checked(references: Sequence[Stretch]) -> ClassificationQuality:
    """Return all references together; raises NotCalibrated."""
    pooled = ClassificationQuality()
    for reference in references:
        pooled.merge(reference.quality)
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
    return pooled


def estimate_quality(
    scores: ScoreSketch, calibration: Calibration, level: float = LEVEL, seed: int = 0, draws: int = DRAWS
) -> list[QualityMetric]:
    """Return accuracy, AUC, Brier score, precision and recall of predictions without labels; empty without predictions.

    Confidence-based performance estimation (NannyML, https://nannyml.readthedocs.io, "Estimation of performance"):
    calibrated probabilities say how many of the predictions in each confusion cell to expect. The interval is one of
    prediction: it covers, with probability `level`, the figure that the labels of these very predictions will show;
    labels are drawn, and so is the calibration. No level is stated (0) where inputs drifted as in no labelled stretch.
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
    logits = _logit(expected)
    direction = logits - _mean(logits, (predicted + rejected) * expected * (1 - expected))
    expected = _moved(expected, direction, calibration.level.mean, calibration.slope.mean)
    estimate = _figures((predicted * expected)[None], (rejected * expected)[None], predicted, rejected, filled)
    random = np.random.default_rng(seed)
    rates = _drawn_rates(calibration, direction, filled, random, draws)
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
        value, stated = float(values[0]), level if calibration.is_supported else 0.0
        interval = Interval(value, min(float(lower), value), max(float(upper), value), stated, round(total * share))
        basis = EstimateBasis.LABELS if calibration.is_supported else EstimateBasis.DRIFTED_INPUTS
        found.append(QualityMetric(name, interval, name != "brier", basis, calibration.unsupported_inputs))
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
    direction: FloatArray,
    filled: npt.NDArray[np.intp],
    random: np.random.Generator,
    draws: int,
) -> FloatArray:
    """Draw rates [draws, filled bins]: each group's from its beta posterior (Jeffreys), then the window's own shift."""
    hits, misses = calibration.positives + 0.5, calibration.counts - calibration.positives + 0.5
    groups = random.beta(np.maximum(hits, 0.5), np.maximum(misses, 0.5), (draws, calibration.counts.size))
    rates = np.stack([_rates(calibration.probabilities, row, calibration.counts, _CENTRES[filled]) for row in groups])
    return _moved(rates, direction, calibration.level.draw(random, draws), calibration.slope.draw(random, draws))


def _rates(
    probabilities: FloatArray, rates: FloatArray, counts: FloatArray, centres: FloatArray = _CENTRES
) -> FloatArray:
    """Return the rate in fine bins, rising with the probability."""
    risen = scipy.optimize.isotonic_regression(rates, weights=counts).x
    return np.asarray(np.clip(np.interp(centres, probabilities, risen), 1e-9, 1 - 1e-9))


def _moved(
    rates: FloatArray, direction: FloatArray, level: float | FloatArray, slope: float | FloatArray
) -> FloatArray:
    return np.asarray(np.clip(scipy.special.expit(_logit(rates) + level + slope * direction), 1e-9, 1 - 1e-9))


def _logit(rates: FloatArray) -> FloatArray:
    return np.asarray(np.log(rates) - np.log1p(-rates))


def _mean(values: FloatArray, weights: FloatArray) -> float:
    total = float(weights.sum())
    return float(values @ weights) / total if total > 0 else 0.0


def _forecasts(references: Sequence[Stretch], rates: FloatArray, at: int) -> tuple[Forecast, Forecast]:
    """Return how far level and slope of the logits will lie from those of the rates, from how they did before."""
    ordered = sorted(references, key=lambda stretch: -stretch.ago)[-REFERENCE_LIMIT:]
    gaps = -np.diff([*(stretch.ago for stretch in ordered), at])
    logits, levels, slopes = _logit(rates), [], []
    for stretch in ordered:
        counts = stretch.quality.positives + stretch.quality.negatives
        weights, beyond = counts * rates * (1 - rates), stretch.quality.positives - counts * rates
        # Around the stretch's own middle: what is taken for a slope is no level.
        direction = logits - _mean(logits, weights)
        levels.append((float(beyond.sum()), float(weights.sum())))
        slopes.append((float(beyond @ direction), float(weights @ direction**2)))
    return _forecast(levels, gaps), _forecast(slopes, gaps)


def _forecast(effects: Sequence[tuple[float, float]], gaps: npt.NDArray[np.intp]) -> Forecast:
    """Follow an effect by Kalman's filter, once for each pair of variances, weighted by how well it foretold what came.

    `effects`: score and information in each stretch (one step of Newton's method from none); `gaps`: stretches from each to the next.
    """
    noises, steps = (variances.ravel() for variances in np.meshgrid(_SPREADS**2, _SPREADS**2))
    means, variances, likelihoods = np.zeros(noises.size), np.ones(noises.size), np.zeros(noises.size)
    for (score, information), gap in zip(effects, gaps, strict=True):
        if information > 0:
            spreads = variances + noises + 1 / information
            errors = score / information - means
            likelihoods -= (np.log(spreads) + errors**2 / spreads) / 2
            means = means + variances / spreads * errors
            variances = variances * (1 - variances / spreads)
        variances = variances + gap * steps
    prior = 1 / ((1 + noises / USUAL_NOISE**2) * (1 + steps / USUAL_STEP**2))
    weights = prior * np.exp(likelihoods - likelihoods.max())
    return Forecast(weights / weights.sum(), means, variances + noises)
