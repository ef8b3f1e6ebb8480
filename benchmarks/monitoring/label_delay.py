"""Quality without labels in a row of windows whose labels come some windows later: how often intervals hold what they show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.monitor.domain.estimate_check import CHECKED_LIMIT, known_coverage, misses_of, widening
from services.monitor.domain.label_free import NotCalibrated, ScoreSketch, Stretch, check_calibration, estimate_quality
from services.monitor.domain.quality import ClassificationQuality, QualityMetric

WINDOWS, REFERENCE = 120, 20
KINDS = ("none", "steps", "steps that an input shows", "slow", "random walk", "season")


@dataclass(frozen=True)
class Row:
    """One estimate of one window."""

    is_stated: bool
    plain: bool
    """Whether the interval held the figure before it was widened by what past ones missed."""
    plain_width: float
    covered: bool
    """The same as it was answered."""
    width: float
    said: tuple[float, float, float] | None
    """How often such intervals hold their figure, as the answer says it, with the ends of its interval."""


@dataclass(frozen=True)
class Followed:
    """One metric, over all windows that were judged."""

    metric: str
    stated: list[Row]
    unstated: list[Row]


def follow(windows: Sequence[Stretch], delay: int, first: int) -> list[Followed]:
    """Judge the windows from `first` on; what is known of labels at each is what came `delay` windows before and earlier.

    What the monitor does at each window, each past estimate made once instead of anew.
    """
    misses: dict[str, list[tuple[int, float]]] = {}
    rows: dict[str, list[Row]] = {}
    for now in range(delay, len(windows)):
        window = replace(windows[now], ago=0)
        known = [replace(windows[at], ago=now - at) for at in range(now - delay + 1)]
        truth = {metric.name: metric.value.estimate for metric in window.quality.metrics()}
        for metric in _estimates(window, known) if now >= first else []:
            if metric.name in truth:
                past = [(now - at, miss) for at, miss in misses.get(metric.name, []) if at <= now - delay]
                rows.setdefault(metric.name, []).append(_row(metric, past[-CHECKED_LIMIT:], delay, truth[metric.name]))
        for name, miss in misses_of(window, known).items():
            misses.setdefault(name, []).append((now, miss))
    return [
        Followed(name, [row for row in found if row.is_stated], [row for row in found if not row.is_stated])
        for name, found in rows.items()
    ]


def _estimates(window: Stretch, known: Sequence[Stretch]) -> list[QualityMetric]:
    try:
        return estimate_quality(window.scores, check_calibration(known, window.drifted))
    except NotCalibrated:
        return []


def _row(metric: QualityMetric, misses: Sequence[tuple[int, float]], delay: int, real: float) -> Row:
    value, is_stated = metric.value, metric.value.level > 0
    by, held = widening(misses, delay) if misses and is_stated else (0.0, 0)
    said = None
    if misses and is_stated:
        coverage = known_coverage(held, len(misses), delay)
        said = coverage.estimate, coverage.lower, coverage.upper
    plain, covered = (value.lower - more <= real <= value.upper + more for more in (0.0, by))
    width = value.upper - value.lower
    return Row(is_stated, plain, width, covered, width + 2 * by, said)


def simulated(delay: int, seed: int) -> Iterator[tuple[str, list[Followed]]]:
    """Yield each kind of drift with what became of a stream of it; nothing was tuned on them."""
    for number, kind in enumerate(KINDS):
        random = np.random.default_rng([seed, number, delay])
        yield kind, follow(list(_stream(kind, random)), delay, REFERENCE)


def _stream(kind: str, random: np.random.Generator) -> Iterator[Stretch]:
    """Yield windows of a classifier that is calibrated at first, whose meaning then drifts; sizes and mixes differ too."""
    level, slope, slow, step = 0.0, 1.0, random.normal(0, 0.01), 0
    size = int(random.choice([400, 1_500, 4_000]))
    for index in range(WINDOWS):
        if index >= REFERENCE:
            if kind.startswith("steps") and random.random() < 0.03:
                level, slope, step = random.normal(0, 0.4), random.uniform(0.6, 1.3), step + 1
            level += {"slow": slow, "random walk": random.normal(0, 0.06)}.get(kind, 0.0)
        season = 0.3 * np.sin(2 * np.pi * index / 24) if kind == "season" else 0.0
        count = max(int(random.poisson(size * random.uniform(0.6, 1.4))), 50)
        p = random.beta(random.uniform(1.2, 1.8), random.uniform(2.5, 3.5), count)
        truth = 1 / (1 + np.exp(-(level + season + slope * np.log(p / (1 - p)))))
        quality, scores = ClassificationQuality(), ScoreSketch()
        quality.update(p, random.random(count) < truth)
        scores.update(p)
        drifted = {f"step {step}"} if step and kind == "steps that an input shows" else set()
        yield Stretch(0, quality, scores, frozenset(drifted))
