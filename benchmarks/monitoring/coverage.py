"""Intervals over simulated samples whose truth is known: how often they cover it."""

import numpy as np
from scipy import stats

from services.monitor.domain.label_free import ScoreSketch, Stretch, check_calibration, estimate_quality
from services.monitor.domain.quality import ClassificationQuality


def label_free_coverage(chunks: int = 500, size: int = 1_000, seed: int = 0) -> dict[str, float]:
    """Covariate shift with a calibrated classifier: other cases than in the reference, the same meaning."""
    random = np.random.default_rng(seed)
    calibration = check_calibration([Stretch(20 - at, _labelled(random, size, 1.0, 3.0)[0]) for at in range(20)])
    covered: dict[str, int] = {}
    for _ in range(chunks):
        quality, scores = _labelled(random, size, random.uniform(0.8, 1.6), random.uniform(2.0, 4.0))
        truth = {metric.name: metric.value.estimate for metric in quality.metrics()}
        for metric in estimate_quality(scores, calibration, seed=int(random.integers(1 << 30))):
            inside = metric.value.lower <= truth[metric.name] <= metric.value.upper
            covered[metric.name] = covered.get(metric.name, 0) + inside
    return {name: count / chunks for name, count in covered.items()}


def auc_coverage(samples: int = 400, seed: int = 0) -> list[tuple[int, float, float]]:
    """Return (positives among 1,000 negatives, true AUC, coverage) of the AUC's interval."""
    random, found = np.random.default_rng(seed), []
    for positives in (5, 20, 300):
        for distance in (0.5, 1.5, 3.0):
            truth = float(stats.norm.cdf(distance / np.sqrt(2)))
            covered = 0
            for _ in range(samples):
                scores = np.concatenate([random.normal(distance, 1, positives), random.normal(0, 1, 1_000)])
                quality = ClassificationQuality()
                quality.update(stats.norm.cdf(scores / 2), np.arange(scores.size) < positives)
                area = quality.auc()
                covered += area is not None and area.lower <= truth <= area.upper
            found.append((positives, truth, covered / samples))
    return found


def _labelled(random: np.random.Generator, size: int, a: float, b: float) -> tuple[ClassificationQuality, ScoreSketch]:
    p = random.beta(a, b, size)
    quality, scores = ClassificationQuality(), ScoreSketch()
    quality.update(p, random.random(size) < p)
    scores.update(p)
    return quality, scores
