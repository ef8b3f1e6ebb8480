"""Distributions of a drift statistic without drift: from draws, or from the same hours of the days before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy

from services.monitor.domain.drift_metric import DriftMetric
from services.monitor.domain.profile import FloatArray

SMALLEST_CHANGE: Final = 0.01
"""Relative change of a statistic that is never surprising, whatever the windows before."""
MOMENT_SHARE: Final = 0.35
"""Degrees of freedom for each effective day: a spread that is read from the variance of squares is known less well than one
that is read from the values themselves (at best half as well, and by a handful of days more often too small than too large). Chosen by
simulation, on other seeds than are reported: with four weeks of streams with correlated hours 3.1 of 100 windows alarmed with 1, 1.7
with 0.5, 0.7 with 0.35."""
LEAST_FREEDOM: Final = 5.0
"""As far as there are as many days: with fewer, two weeks of past could not tell a shift of three standard deviations. The price: up to
the eighteenth day 2 to 3 of 100 windows of such streams alarm (with 4: 1 to 2, and half of the power in the second week)."""
LARGEST_CORRELATION: Final = 0.9
_NORMAL_DF: Final = 1_000.0
_POINTS: Final = 100
_LOGARITHMIC: Final = frozenset({DriftMetric.KOLMOGOROV_SMIRNOV, DriftMetric.WASSERSTEIN})


@dataclass(frozen=True, slots=True)
class Null:
    """Distribution of a statistic without drift: Student's t around `centre` on the metric's own scale."""

    metric: DriftMetric
    centre: float
    spread: float
    degrees_of_freedom: float

    def p_value(self, value: float) -> float:
        """Return the probability of a value at least as large."""
        score = (float(scale(self.metric, np.array(value))) - self.centre) / self.spread
        return float(scipy.special.stdtr(self.degrees_of_freedom, -score))

    def quantile(self, level: float) -> float:
        """Return the value that is exceeded with probability 1 - level."""
        return _unscale(
            self.metric, self.centre + self.spread * float(scipy.special.stdtrit(self.degrees_of_freedom, level))
        )


@dataclass(frozen=True, slots=True)
class DirectionNull:
    """What chance brings, and one direction in which days differ beyond it: (level + spread t)^2 + chance."""

    metric: DriftMetric
    chance: FloatArray
    """Squared distance by chance, shifted so that the mean of the whole is that of the past, [n]."""
    level: float
    spread: float
    degrees_of_freedom: float

    def p_value(self, value: float) -> float:
        """Return the probability of a value at least as large."""
        beyond = float(squared_distance(self.metric, np.array(value))) - self.chance
        root = np.sqrt(np.maximum(beyond, 0.0))
        tails = scipy.special.stdtr(self.degrees_of_freedom, (self.level - root) / self.spread)
        tails += scipy.special.stdtr(self.degrees_of_freedom, (-self.level - root) / self.spread)
        return float(np.where(beyond > 0, tails, 1.0).mean())

    def quantile(self, level: float) -> float:
        """Return the value that is exceeded with probability 1 - level."""
        steps = scipy.special.stdtrit(self.degrees_of_freedom, (np.arange(_POINTS) + 0.5) / _POINTS)
        found = float(np.quantile(np.add.outer(self.chance, (self.level + self.spread * steps) ** 2), level))
        return max(found, 0.0) if self.metric is DriftMetric.PSI else math.sqrt(max(found, 0.0))


@dataclass(frozen=True, slots=True)
class SameHoursNull:
    """The least significant of what several nulls say, each of which is right where others are not."""

    parts: tuple[Null | DirectionNull, ...]
    chance: FloatArray
    """The statistic of draws from what all blocks have together, [draws]."""

    def p_value(self, value: float) -> float:
        """Return the probability of a value at least as large."""
        # A value that chance brings once in some hundred windows may have come in none of those before.
        by_chance = float(np.mean(self.chance >= value * (1 - 1e-9)))
        return max(by_chance, *(part.p_value(value) for part in self.parts))

    def quantile(self, level: float) -> float:
        """Return the value that is exceeded with probability 1 - level."""
        return max(part.quantile(level) for part in self.parts)


def scale(metric: DriftMetric, values: FloatArray) -> FloatArray:
    """Return values on a scale on which they are about normal if only chance makes them.

    PSI, squared Jensen-Shannon and squared V are about chi-square over n: cube roots are normal (Wilson and Hilferty, The
    distribution of chi-square, 1931). Kolmogorov's and the Wasserstein distance are about log-normal.
    """
    if metric in _LOGARITHMIC:
        return np.log(np.maximum(values, 1e-300))
    return np.cbrt(squared_distance(metric, values))


def squared_distance(metric: DriftMetric, values: FloatArray) -> FloatArray:
    """Return what grows with the square of a change: PSI, squared Jensen-Shannon, squared V."""
    return values if metric is DriftMetric.PSI else np.square(values)


def fit_student(metric: DriftMetric, centre: float, spread: float, degrees_of_freedom: float = _NORMAL_DF) -> Null:
    """Return a null around a centre on the metric's scale."""
    # Where the blocks are all alike (the hour of the day, in windows of an hour) rounding would be significant.
    least = SMALLEST_CHANGE if metric in _LOGARITHMIC else SMALLEST_CHANGE * max(centre, SMALLEST_CHANGE) / 3
    return Null(metric, centre, max(spread, least), degrees_of_freedom)


def fit_same_hours(
    metric: DriftMetric, blocks: FloatArray, days_ago: Sequence[int], chance: FloatArray
) -> SameHoursNull:
    """Return the null that blocks show: the statistic of parts of each, [blocks, draws], and of draws from all together.

    Days that resemble those before them tell less than as many independent ones: both the spread and how well it is known
    go by the effective number of days of a first-order autoregression (Bayley and Hammersley, The effective number of
    independent observations in an autocorrelated time series, 1946).

    A distance from the baseline is a quadratic form in what moves from day to day, and its tail is the longer the fewer
    directions there are. So all that days differ by beyond chance is taken for one direction: a normal level whose mean
    and variance give the mean and the variance that the blocks have beyond chance. Cube roots, which are right for many
    directions of like size, made 3 to 5 of 100 windows significant where 1 is stated.
    """
    scaled = scale(metric, blocks)
    effective_mean, effective_spread = _effective_days(scaled.mean(axis=1), days_ago)
    freedom = max(MOMENT_SHARE * (effective_spread - 1), min(effective_spread - 1, LEAST_FREEDOM))
    if metric in _LOGARITHMIC:
        mean, variance = _moments(scaled, effective_mean)
        return SameHoursNull((fit_student(metric, mean, _predicted(variance, effective_mean), freedom),), chance)
    mean, variance = _moments(squared_distance(metric, blocks), effective_mean)
    by_chance = squared_distance(metric, chance)
    shifted = by_chance + mean - by_chance.mean()
    excess = mean - float(by_chance.mean()), max(variance - float(by_chance.var()), 0.0)
    level, level_variance = _level(*excess)
    spread = _predicted(level_variance, effective_mean)
    least = SMALLEST_CHANGE / 2 * math.sqrt(max(mean, SMALLEST_CHANGE**3))
    points = np.sort(shifted)[: shifted.size // _POINTS * _POINTS].reshape(_POINTS, -1).mean(axis=1)
    direction = DirectionNull(metric, points - level**2 - level_variance, level, max(spread, least), freedom)
    roots = np.cbrt(np.maximum(shifted, 0.0))
    spread = _predicted(float(roots.var(ddof=1)), effective_mean)
    return SameHoursNull((direction, fit_student(metric, float(roots.mean()), spread)), chance)


def _level(mean: float, variance: float) -> tuple[float, float]:
    """Return mean and variance of a normal level whose square has this variance, 4 m^2 s^2 + 2 s^4, and if it can this mean."""
    squared = math.sqrt(variance / 2)
    if mean > squared:
        squared = mean - math.sqrt(mean**2 - squared**2)
    return math.sqrt(max(mean - squared, 0.0)), squared


def _moments(blocks: FloatArray, effective: float) -> tuple[float, float]:
    """Return mean and variance of a single value, from [blocks, draws]."""
    means, variances = blocks.mean(axis=1), blocks.var(axis=1)
    # The mean of days that resemble each other moves with them, which hides a part of their variance.
    between = float(means.var()) / max(1 - 1 / effective, 0.3)
    return float(means.mean()), between + float(variances.mean())


def _predicted(variance: float, effective: float) -> float:
    """Return the standard deviation of a new value around the mean of so many."""
    return math.sqrt(variance * (1 + 1 / effective))


def _effective_days(values: FloatArray, days_ago: Sequence[int]) -> tuple[float, float]:
    """Return how many independent days would tell the mean, and the variance, as well as these."""
    count, centred = values.size, values - values.mean()
    neighbours = np.diff(days_ago) == 1
    total = float(centred @ centred)
    if total <= 0 or not neighbours.any():
        return float(count), float(count)
    found = float((centred[1:] * centred[:-1])[neighbours].sum()) / total * count / int(neighbours.sum())
    # The estimate from a short series is too low by about (1 + 3 r) / n (Marriott and Pope, 1954).
    r = min(max(found + (1 + 3 * found) / count, 0.0), LARGEST_CORRELATION)
    return max(count * (1 - r) / (1 + r), 2.0), max(count * (1 - r**2) / (1 + r**2), 3.0)


def _unscale(metric: DriftMetric, value: float) -> float:
    match metric:
        case DriftMetric.PSI:
            return float(max(value, 0.0) ** 3)
        case DriftMetric.JENSEN_SHANNON | DriftMetric.CHI_SQUARE:
            return float(max(value, 0.0) ** 1.5)
        case _:
            return math.exp(min(value, 700.0))
