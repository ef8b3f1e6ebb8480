"""Estimates with their uncertainty.

Here and beside it `import scipy` alone: its modules are imported when the first report is made, not to start.
"""

import math
from dataclasses import dataclass
from typing import Final

import scipy

LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the interval that covers the true value with probability `level`."""

    estimate: float
    lower: float
    upper: float
    level: float
    sample_count: int


def two_sided_quantile(level: float) -> float:
    """Return z so that a standard normal lies within -z and z with probability `level`."""
    return float(scipy.special.ndtri(0.5 + level / 2))


def rate_interval(successes: float, total: float, level: float = LEVEL) -> Interval:
    """Return the interval of a rate, 0 to 1; counts need not be whole. With no observation it is all of 0 to 1.

    Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    if total <= 0:
        return Interval(0.5, 0.0, 1.0, level, 0)
    z = two_sided_quantile(level)
    rate = min(max(successes / total, 0.0), 1.0)
    centre = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    lower, upper = max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate))
    return Interval(rate, lower, upper, level, round(total))


def mean_interval(mean: float, variance: float, total: float, level: float = LEVEL) -> Interval:
    """Return Student's interval of a mean; `variance` is that of one observation. Below two observations it has no ends."""
    if total < 2:
        return Interval(mean, -math.inf, math.inf, level, round(total))
    half = float(scipy.special.stdtrit(total - 1, 0.5 + level / 2)) * math.sqrt(max(variance, 0.0) / total)
    return Interval(mean, mean - half, mean + half, level, round(total))


def logit_interval(estimate: float, variance: float, count: int, level: float = LEVEL) -> Interval:
    """Return the interval of a figure strictly between 0 and 1 with the given variance, by the delta method on its logit."""
    half = two_sided_quantile(level) * math.sqrt(max(variance, 0.0)) / (estimate * (1 - estimate))
    centre = float(scipy.special.logit(estimate))
    return Interval(
        estimate, float(scipy.special.expit(centre - half)), float(scipy.special.expit(centre + half)), level, count
    )


def difference_interval(first: Interval, second: Interval) -> Interval:
    """Return the interval of `first` minus `second`, independent of each other and of the same level.

    Square-and-add: Newcombe, Interval estimation for the difference between independent proportions (1998), method 10
    when both are Wilson's; Zou and Donner, Construction of confidence limits about effect measures (2008) in general.
    """
    estimate = first.estimate - second.estimate
    below = math.hypot(first.estimate - first.lower, second.upper - second.estimate)
    above = math.hypot(first.upper - first.estimate, second.estimate - second.lower)
    count = first.sample_count + second.sample_count
    return Interval(estimate, estimate - below, estimate + above, first.level, count)
