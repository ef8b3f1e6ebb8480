"""Quality without labels in a row of windows whose labels come some windows later: how often intervals hold what they show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.monitor.domain.estimate_check import CHECKED_LIMIT, Stretch, known_coverage, misses_of, widening
from services.monitor.domain.label_free import NotCalibrated, ScoreSketch, check_calibration, estimate_quality
from services.monitor.domain.quality import ClassificationQuality

Window = tuple[ClassificationQuality, ScoreSketch]
WINDOWS, REFERENCE = 120, 20
KINDS = ("none", "steps", "slow", "random walk", "season")


@dataclass(frozen=True)
class Followed:
    """One metric, over all windows that were judged."""

    metric: str
    windows: int
    plain: float
    """Share covered by intervals that assume no concept drift, calibrated anew with each label that came."""
    plain_width: float
    covered: float
    """The same of intervals that were held against labels."""
    width: float
    said: tuple[float, float, float]
    """How often such intervals hold their figure, as the answer says it, with the ends of its interval; on average."""


def follow(windows: Sequence[Window], delay: int, first: int) -> list[Followed]:
    """Judge the windows from `first` on; what is known of labels at each is what came `delay` windows before and earlier.

    What the monitor does at each window, each past estimate made once instead of anew.
    """
    misses: dict[str, list[tuple[int, float]]] = {}
    rows: dict[str, list[tuple[bool, float, bool, float, float, float, float]]] = {}
    for now in range(delay, len(windows)):
        quality, scores = windows[now]
        known = [labelled for labelled, _ in windows[: now - delay + 1]]
        if now >= first:
            try:
                estimates = estimate_quality(scores, check_calibration(known))
            except NotCalibrated:
                estimates = []
            truth = {metric.name: metric.value.estimate for metric in quality.metrics()}
            for metric in estimates:
                if metric.name in truth:
                    past = [(now - at, miss) for at, miss in misses.get(metric.name, []) if at <= now - delay]
                    checked = past[-CHECKED_LIMIT:]
                    (by, held), value, real = widening(checked, delay), metric.value, truth[metric.name]
                    inside = value.lower <= real <= value.upper, value.lower - by <= real <= value.upper + by
                    width, coverage = value.upper - value.lower, known_coverage(held, len(checked), delay)
                    said = (coverage.estimate, coverage.lower, coverage.upper) if checked else (np.nan, 0.0, 1.0)
                    row = (inside[0], width, inside[1], width + 2 * by, *said)
                    rows.setdefault(metric.name, []).append(row)
        for name, miss in misses_of(Stretch(0, scores, quality), known).items():
            misses.setdefault(name, []).append((now, miss))
    followed = []
    for name, found in rows.items():
        plain, plain_width, covered, width, *said = np.nanmean(np.array(found, dtype=float), axis=0).tolist()
        followed.append(Followed(name, len(found), plain, plain_width, covered, width, (said[0], said[1], said[2])))
    return followed


def simulated(delay: int, seed: int) -> Iterator[tuple[str, list[Followed]]]:
    """Yield each kind of drift with what became of a stream of it; nothing was tuned on them."""
    for number, kind in enumerate(KINDS):
        random = np.random.default_rng([seed, number, delay])
        yield kind, follow(list(_stream(kind, random)), delay, REFERENCE)


def _stream(kind: str, random: np.random.Generator) -> Iterator[Window]:
    """Yield windows of a classifier that is calibrated at first, whose meaning then drifts; sizes and mixes differ too."""
    level, slope, slow = 0.0, 1.0, random.normal(0, 0.01)
    size = int(random.choice([400, 1_500, 4_000]))
    for index in range(WINDOWS):
        if index >= REFERENCE:
            if kind == "steps" and random.random() < 0.03:
                level, slope = random.normal(0, 0.4), random.uniform(0.6, 1.3)
            level += {"slow": slow, "random walk": random.normal(0, 0.06)}.get(kind, 0.0)
        season = 0.3 * np.sin(2 * np.pi * index / 24) if kind == "season" else 0.0
        count = max(int(random.poisson(size * random.uniform(0.6, 1.4))), 50)
        p = random.beta(random.uniform(1.2, 1.8), random.uniform(2.5, 3.5), count)
        truth = 1 / (1 + np.exp(-(level + season + slope * np.log(p / (1 - p)))))
        quality, scores = ClassificationQuality(), ScoreSketch()
        quality.update(p, random.random(count) < truth)
        scores.update(p)
        yield quality, scores
