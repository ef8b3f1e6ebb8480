"""Data quality: nulls, types, ranges, new categories, freshness, volume; each against what is usual."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy

from services.monitor.domain.drift import FALSE_DISCOVERY_RATE, benjamini_hochberg
from services.monitor.domain.interval import LEVEL, Interval

MINIMUM_WINDOWS: Final = 4
"""Windows of the same hours from which a volume is expected."""
VOLUME_FACTOR: Final = 1.5
"""A volume that is off by less is no finding."""


class DataQualityCheck(enum.StrEnum):
    """A check of data quality. Names are those of the alert rules."""

    NULLS = "nulls"
    TYPE = "type"
    RANGE = "range"
    NEW_CATEGORY = "new_category"
    VOLUME = "volume"
    FRESHNESS = "freshness"


MINIMUM_SHARES: Final = {
    DataQualityCheck.NULLS: 0.01,
    DataQualityCheck.TYPE: 0.001,
    DataQualityCheck.RANGE: 0.001,
    DataQualityCheck.NEW_CATEGORY: 0.005,
    DataQualityCheck.FRESHNESS: 0.01,
}
"""Share of predictions, beyond the usual one, that is worth telling."""


@dataclass(frozen=True, slots=True)
class RateCheck:
    """How often something is wrong with a feature, and how often it usually is."""

    feature: str
    check: DataQualityCheck
    count: float
    """Predictions of the scope concerned."""
    total: float
    """Predictions of the scope."""
    baseline_count: float = 0.0
    baseline_total: float = 0.0
    """Of the baseline; 0 and 0: it should never happen."""
    past: Sequence[tuple[float, float]] = ()
    """(count, total) of windows before: how much the rate differs between windows."""
    expected: str = ""
    """For people: "0 to 24"."""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataQualityFinding:
    """One failed check."""

    feature: str
    check: DataQualityCheck
    count: int
    share: float
    expected: str
    examples: tuple[str, ...]
    p_value: float
    q_value: float


@dataclass(frozen=True, slots=True)
class VolumeVerdict:
    """How many requests were expected, and whether what came is unusual."""

    expected: Interval | None
    """None: too little history. The interval is one of prediction."""
    p_value: float
    is_unusual: bool


def check_rates(
    checks: Sequence[RateCheck], false_discovery_rate: float = FALSE_DISCOVERY_RATE
) -> list[DataQualityFinding]:
    """Return the failed checks among those looked at together, the worst first.

    A check fails when its q-value is below the rate and its share exceeds the usual one by the minimum. The p-value is
    that of the beta-binomial distribution which the baseline's counts predict, with counts thinned by the design effect
    between past windows.
    """
    judged = [check for check in checks if check.total > 0]
    q_values = benjamini_hochberg([_rate_p_value(check) for check in judged]).tolist()
    found = []
    for check, q_value in zip(judged, q_values, strict=True):
        share = check.count / check.total
        usual = check.baseline_count / check.baseline_total if check.baseline_total else 0.0
        if q_value >= false_discovery_rate or share - usual < MINIMUM_SHARES[check.check]:
            continue
        found.append(
            DataQualityFinding(
                feature=check.feature,
                check=check.check,
                count=round(check.count),
                share=share,
                expected=check.expected or f"at most {usual:.2%} of the predictions",
                examples=check.examples[:20],
                p_value=_rate_p_value(check),
                q_value=q_value,
            )
        )
    return sorted(found, key=lambda finding: (-finding.share, finding.feature, finding.check))


def check_volume(count: float, past: Sequence[float]) -> VolumeVerdict:
    """Return whether a count is unusual beside those of the same hours of the weeks (or days) before.

    Counts are compared as square roots, where chance has the variance 1/4 whatever their size (Anscombe, The
    transformation of Poisson, binomial and negative-binomial data, 1948); Student's prediction interval.
    """
    if len(past) < MINIMUM_WINDOWS:
        return VolumeVerdict(None, 1.0, is_unusual=False)
    roots = np.sqrt(np.asarray(past, dtype=np.float64) + 0.375)
    freedom = roots.size - 1
    spread = math.sqrt(max(float(roots.var(ddof=1)), 0.25) * (1 + 1 / roots.size))
    centre = float(roots.mean())
    score = (math.sqrt(count + 0.375) - centre) / spread
    p_value = 2 * float(scipy.special.stdtr(freedom, -abs(score)))
    half = float(scipy.special.stdtrit(freedom, 0.5 + LEVEL / 2)) * spread
    expected = Interval(
        estimate=max(centre**2 - 0.375, 0.0),
        lower=max(max(centre - half, 0.0) ** 2 - 0.375, 0.0),
        upper=max((centre + half) ** 2 - 0.375, 0.0),
        level=LEVEL,
        sample_count=roots.size,
    )
    larger = max(count, expected.estimate) + 0.5
    smaller = min(count, expected.estimate) + 0.5
    is_unusual = p_value < FALSE_DISCOVERY_RATE and larger / smaller >= VOLUME_FACTOR
    return VolumeVerdict(expected, p_value, is_unusual)


def beta_binomial_tail(count: int, total: int, wrong: float, right: float) -> float:
    """Return the probability of `count` or more of `total` whose rate has the distribution Beta(wrong, right)."""
    if count <= 0:
        return 1.0
    if count <= total / 2:
        return max(1.0 - float(_beta_binomial(np.arange(count), total, wrong, right).sum()), 0.0)
    return min(float(_beta_binomial(np.arange(count, total + 1), total, wrong, right).sum()), 1.0)


def _beta_binomial(counts: npt.NDArray[np.int64], total: int, wrong: float, right: float) -> npt.NDArray[np.float64]:
    """Return the probability of each count."""
    log_beta = scipy.special.betaln
    choose = -log_beta(total - counts + 1, counts + 1) - math.log(total + 1)
    return np.asarray(np.exp(choose + log_beta(counts + wrong, total - counts + right) - log_beta(wrong, right)))


def volume_finding(count: float, verdict: VolumeVerdict) -> DataQualityFinding | None:
    """Return the finding of an unusual volume, None when it is usual."""
    if not verdict.is_unusual or verdict.expected is None:
        return None
    expected = verdict.expected
    return DataQualityFinding(
        feature="",
        check=DataQualityCheck.VOLUME,
        count=round(count),
        share=1.0,
        expected=f"{expected.lower:.0f} to {expected.upper:.0f} predictions",
        examples=(),
        p_value=verdict.p_value,
        q_value=verdict.p_value,
    )


def _rate_p_value(check: RateCheck) -> float:
    """Return the probability of at least as many as were counted, if the rate is the baseline's."""
    effect = _design_effect(check)
    thinned = replace(check, count=check.count / effect, total=check.total / effect)
    total = max(round(thinned.total), 1)
    # Thinned counts are rounded down: never more surprising than what was counted.
    count = math.floor(thinned.count + 1e-9)
    wrong = check.baseline_count + 0.5
    right = max(check.baseline_total - check.baseline_count, 0.0) + 0.5
    if check.baseline_total <= 0:
        # It should never happen: as if a thousand had been looked at and none was wrong.
        right = 1_000.5
    return beta_binomial_tail(count, total, wrong, right)


def _design_effect(check: RateCheck) -> float:
    """Return how much more the rate differs between past windows than by chance, 1 or more."""
    past = [(count, total) for count, total in check.past if total > 0]
    if len(past) < 2:
        return 1.0
    counts, totals = np.array(past, dtype=np.float64).T
    rate = counts.sum() / totals.sum()
    if rate <= 0 or rate >= 1:
        return 1.0
    found = float((((counts - totals * rate) ** 2) / (totals * rate * (1 - rate))).sum()) / (len(past) - 1)
    size = float((totals**2).sum() / totals.sum())
    return 1 + max(found - 1, 0.0) * check.total / size
