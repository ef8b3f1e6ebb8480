"""How groups fare next to each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from services.monitor.domain.interval import LEVEL, Interval, difference_interval, rate_interval

MINIMUM_COUNT: Final = 100


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """Predictions of one group, weighted; the four cells are those with a label."""

    prediction_count: float = 0.0
    predicted_positive: float = 0.0
    true_positive: float = 0.0
    false_positive: float = 0.0
    true_negative: float = 0.0
    false_negative: float = 0.0

    def __add__(self, other: "GroupCounts") -> Self:
        return type(self)(*(mine + theirs for mine, theirs in zip(self._cells(), other._cells(), strict=True)))

    def __sub__(self, other: "GroupCounts") -> Self:
        return type(self)(*(mine - theirs for mine, theirs in zip(self._cells(), other._cells(), strict=True)))

    def _cells(self) -> tuple[float, ...]:
        return (
            self.prediction_count,
            self.predicted_positive,
            self.true_positive,
            self.false_positive,
            self.true_negative,
            self.false_negative,
        )


@dataclass(frozen=True, slots=True)
class GroupFairness:
    """How one group fares."""

    group: str
    is_reference: bool
    prediction_count: int
    positive_rate: Interval
    gaps: Mapping[str, Interval]
    """Difference to the reference: "demographic_parity", "equal_opportunity", "predictive_parity", "false_positive_rate";
    empty for the reference itself and for groups that are not judged."""
    is_judged: bool


def measure_fairness(
    groups: Mapping[str, GroupCounts],
    reference: str | None = None,
    minimum_count: int = MINIMUM_COUNT,
    level: float = LEVEL,
) -> list[GroupFairness]:
    """Return each group beside the reference (None: the largest group), which comes first; then by size.

    A group, or a reference, with fewer predictions than the minimum is not judged. A gap that needs labels is left out
    where fewer than the minimum of either group's predictions belong to its denominator's side, so no verdict rests on a
    handful of labels. Intervals are Newcombe's, of independent groups.
    """
    if not groups:
        return []
    chosen = reference if reference is not None else max(sorted(groups), key=lambda name: groups[name].prediction_count)
    base = groups.get(chosen, GroupCounts())
    found = []
    for name, counts in groups.items():
        is_judged = min(counts.prediction_count, base.prediction_count) >= minimum_count
        is_reference = name == chosen
        rate = rate_interval(counts.predicted_positive, counts.prediction_count, level)
        gaps = _gaps(counts, base, minimum_count, level) if is_judged and not is_reference else {}
        found.append(GroupFairness(name, is_reference, round(counts.prediction_count), rate, gaps, is_judged))
    return sorted(found, key=lambda group: (not group.is_reference, -group.prediction_count, group.group))


def _gaps(counts: GroupCounts, base: GroupCounts, minimum_count: int, level: float) -> dict[str, Interval]:
    gaps = {}
    for (name, (hits, total)), (_, (base_hits, base_total)) in zip(_rates(counts), _rates(base), strict=True):
        needed = minimum_count if name == "demographic_parity" else _MINIMUM_LABELS
        if min(total, base_total) >= needed:
            gaps[name] = difference_interval(
                rate_interval(hits, total, level), rate_interval(base_hits, base_total, level)
            )
    return gaps


_MINIMUM_LABELS: Final = 20
"""Labels in a denominator (positives, positive predictions, negatives) below which a gap says nothing."""


def _rates(counts: GroupCounts) -> list[tuple[str, tuple[float, float]]]:
    hit, alarm = counts.true_positive, counts.false_positive
    return [
        ("demographic_parity", (counts.predicted_positive, counts.prediction_count)),
        ("equal_opportunity", (hit, hit + counts.false_negative)),
        ("predictive_parity", (hit, hit + alarm)),
        ("false_positive_rate", (alarm, alarm + counts.true_negative)),
    ]
