"""What a drift statistic looks like without drift: chance, time of day and autocorrelation."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from services.monitor.domain.drift_metric import DriftMetric, measure_counts
from services.monitor.domain.null_distribution import Null, SameHoursNull, fit_same_hours, fit_student, scale
from services.monitor.domain.profile import FloatArray, Histogram, merge_histograms

DAY_S: Final = 86_400.0
WEEK_S: Final = 7 * DAY_S
BUSIER: Final = 4.0
"""How many times busier than the busiest window so far the rest of a week may be: working days after a weekend."""
WEEKLY_CHANGE: Final = 1.5
"""Factor by which the weeks' shares of a value may differ, and volumes with them."""
MINIMUM_BLOCKS: Final = 8
"""Blocks of the same time of day from which their own spread is the null."""
DRAWS: Final = 400
FREEDOM_PER_WINDOW: Final = 3.0
"""Degrees of freedom of the largest design effect for each window more. Between 1 (windows differ in one direction) and the
number of bins (they differ by chance); chosen so that the first windows of a stream without drift raise no alarm while a
real shift is seen from the fourth window on (benchmarks/monitoring)."""
COMPARED_WINDOWS: Final = 200
"""Most recent windows whose spread gives the design effect."""
_NORMAL_DF: Final = 1_000.0


class NullSource(enum.StrEnum):
    """Where the null distribution came from."""

    SAME_HOURS = "same_hours"
    """The same hours of at least eight days before."""
    PART_OF_WEEK = "part_of_week"
    """Sampling from what is nearest to the scope among all that a part of a week like the baseline may look like."""
    DESIGN_EFFECT = "design_effect"
    """Sampling, with the spread between windows taken into account."""
    SAMPLING = "sampling"
    """Sampling alone: there is one window and nothing before it, so autocorrelation is unknown."""


@dataclass(frozen=True, slots=True)
class Window:
    """The values of one window."""

    start_s: float
    """Seconds since 1970 UTC."""
    histogram: Histogram
    is_drifted: bool = False
    """Whether it was found to have drifted; such a window does not tell what is usual."""


@dataclass(frozen=True, slots=True)
class NullModel:
    """How much windows differ without drift."""

    source: NullSource
    design_effect: float
    """How many values of the scope tell as much as one independent value, 1 or more; on average over the bins."""
    worst_effect: float
    """The same in the direction in which past windows differ most."""
    chance_effect: float
    """What chance alone makes of that."""
    scaling: float
    """What an excess over it has to be multiplied with for windows of the scope's size."""
    blocks: tuple[Histogram, ...]
    """The same hours of the days before, the last first; empty unless they are the null."""
    degrees_of_freedom: float
    """Of the design effect."""
    days_ago: tuple[int, ...] = ()
    """When the blocks were, in days or, for long scopes, in periods of days."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Counts of scopes without drift, as large as this one."""

    by_chance: FloatArray
    """Samples, [draws, bins]."""
    of_blocks: FloatArray | None = None
    """Parts of each block, [blocks, draws, bins], where blocks are the null."""


def draw_without_drift(
    reference: Histogram, current: Histogram, model: NullModel, random: np.random.Generator
) -> Drawn:
    """Return counts of scopes without drift, as large as this one."""
    if model.source is not NullSource.SAME_HOURS:
        return Drawn(_predicted_counts(reference, current, model, random))
    draws = math.ceil(DRAWS / len(model.blocks))
    parts = np.stack([_thinned(block, current, draws, random) for block in model.blocks])
    return Drawn(_pooled_counts(reference, current, model.blocks, random), parts)


def closest_part(reference: Histogram, windows: Sequence[Window], past: Sequence[Window], window_s: float) -> Histogram:
    """Return what is nearest to the scope among all that a stretch of a week with the reference's shares may look like.

    What follows the hour or the weekday is, over the week, as in the reference: no value comes more often than a week has
    of it. What the last seven days had of it already, the scope cannot have again. How large the week will be is not
    known: the rest of it may be `BUSIER` times as busy as the busiest window so far, and shares differ by `WEEKLY_CHANGE`.
    """
    end = max(window.start_s for window in windows) + window_s
    before = [window for window in past if window.start_s + window_s > end - WEEK_S]
    filled = [window.histogram for window in [*before, *windows] if window.histogram.total > 0]
    scope = merge_histograms([window.histogram for window in windows])
    seen = np.sum([histogram.counts for histogram in filled], axis=0)
    busiest = max(histogram.total for histogram in filled)
    week = seen.sum() + max(WEEK_S / window_s - len(filled), 0.0) * BUSIER * busiest
    # A value that the reference does not have may be as common as one that it just missed.
    known = (reference.counts + reference.total / reference.effective_count) / reference.total
    left = WEEKLY_CHANGE * week * known - (seen - scope.counts)
    limits = np.maximum(left / scope.total, WEEKLY_CHANGE * known)
    shares = np.minimum(scope.counts / scope.total, limits)
    room = limits - shares
    shares += (1 - shares.sum()) * room / max(float(room.sum()), 1e-300)
    return replace(reference, counts=shares * reference.total)


def fit_null(
    metric: DriftMetric, reference: Histogram, current: Histogram, model: NullModel, drawn: Drawn
) -> Null | SameHoursNull:
    """Return the null of a statistic between the reference and the scope, as measured with `compared_size`."""
    size = compared_size(current, model)
    by_chance = measure_counts(metric, reference, current, drawn.by_chance, size)
    if drawn.of_blocks is not None:
        blocks = measure_counts(metric, reference, current, drawn.of_blocks, size)
        return fit_same_hours(metric, blocks, model.days_ago, by_chance)
    # What is not known about the design effect is in the draws already.
    values = scale(metric, by_chance)
    return fit_student(metric, float(values.mean()), float(values.std(ddof=1)))


def compared_size(current: Histogram, model: NullModel) -> float:
    """Return the number of values of which an empty bin is half a one, for the scope and its null alike.

    With each one's own, bins that are always empty at this hour would tell a busy hour from the quiet ones before it.
    """
    return min([current.effective_count, *(block.effective_count for block in model.blocks)])


def model_null(
    windows: Sequence[Window], past: Sequence[Window], window_s: float, *, is_baseline: bool = False
) -> NullModel:
    """Return how much windows differ without drift, from those of the scope and those before it.

    With `MINIMUM_BLOCKS` blocks as long as the scope and at the same time of day, none of them drifted, their own spread
    is the null. Else, against a baseline of whole weeks, the scope is a part of a week: `closest_part`. Against anything
    else the spread between windows gives a design effect (Kish, Survey sampling, 1965): a feature that follows the hour
    differs so much between windows that a window counts as one observation.
    """
    blocks = _same_hours(windows, past, window_s)
    if len(blocks) >= MINIMUM_BLOCKS:
        histograms = tuple(blocks.values())
        effects = _design_effects(histograms, _typical_size(histograms))
        return NullModel(NullSource.SAME_HOURS, *effects, histograms, _NORMAL_DF, tuple(blocks))
    usual = [window for window in past if not window.is_drifted]
    compared = usual if len(usual) >= 2 else list(past) if len(past) >= 2 else [*past, *windows]
    filled = [window.histogram for window in compared[-COMPARED_WINDOWS:] if window.histogram.total > 0]
    size = _typical_size([window.histogram for window in windows if window.histogram.total > 0])
    if len(filled) < 2:
        source = NullSource.PART_OF_WEEK if is_baseline else NullSource.SAMPLING
        return NullModel(source, 1.0, 1.0, 1.0, 1.0, (), _NORMAL_DF)
    source = NullSource.PART_OF_WEEK if is_baseline else NullSource.DESIGN_EFFECT
    return NullModel(source, *_design_effects(filled, size), (), FREEDOM_PER_WINDOW * (len(filled) - 1))


def _thinned(block: Histogram, current: Histogram, draws: int, random: np.random.Generator) -> FloatArray:
    """Return parts of a block: it has less noise than a scope of fewer values; a part without replacement has as much."""
    whole = np.rint(block.counts * (block.effective_count / block.total)).astype(np.int64)
    size = max(1, min(int(whole.sum()), round(current.effective_count)))
    if size >= whole.sum():
        # As it is: rounded to whole values, a handful of sampled ones may come to nothing.
        return np.tile(block.counts, (draws, 1))
    return random.multivariate_hypergeometric(whole, size, draws, method="marginals").astype(np.float64)


def _pooled_counts(
    reference: Histogram, current: Histogram, blocks: Sequence[Histogram], random: np.random.Generator
) -> FloatArray:
    """Draw counts by chance alone from what all blocks have together.

    A value that none of them has may be as common as in the reference, if not more than once in all of them.
    """
    pooled = np.sum([block.counts * (block.effective_count / block.total) for block in blocks], axis=0)
    total = pooled.sum()
    shares = np.maximum(pooled / total, np.minimum(reference.counts / reference.total, 1 / total))
    size = max(round(current.effective_count), 1)
    return np.asarray(random.multinomial(size, _normalised(shares), DRAWS), dtype=np.float64)


def _predicted_counts(
    reference: Histogram, current: Histogram, model: NullModel, random: np.random.Generator
) -> FloatArray:
    """Draw counts of a scope without drift: the reference is a sample too, so its shares are drawn first."""
    effects, freedom = np.ones(DRAWS), model.degrees_of_freedom
    if model.source is NullSource.DESIGN_EFFECT:
        # It was estimated from few windows, so it is drawn too.
        drawn = model.worst_effect * freedom / random.chisquare(freedom, DRAWS)
        effects = 1 + model.scaling * np.maximum(drawn - model.chance_effect, 0.0)
    sizes = np.maximum(np.rint(current.effective_count / effects), 1).astype(np.int64)
    shares = random.dirichlet(reference.counts * (reference.effective_count / reference.total) + 1e-9, DRAWS)
    return np.asarray(random.multinomial(sizes, _normalised(shares)), dtype=np.float64)


def _same_hours(windows: Sequence[Window], past: Sequence[Window], window_s: float) -> dict[int, Histogram]:
    """Return the undrifted blocks as long as the scope, by how many periods of whole days before it they were.

    They have at least half of its windows.
    """
    if not windows or not past:
        return {}
    start = min(window.start_s for window in windows)
    length = max(window.start_s for window in windows) + window_s - start
    period = DAY_S * math.ceil(length / DAY_S)
    grouped: dict[int, list[Window]] = {}
    for window in past:
        ago = math.ceil((start - window.start_s) / period - 1e-9)
        if ago >= 1 and window.histogram.total > 0 and window.start_s < start - ago * period + length:
            grouped.setdefault(ago, []).append(window)
    needed = math.ceil(len(windows) / 2)
    return {
        ago: merge_histograms([window.histogram for window in group])
        for ago, group in sorted(grouped.items())
        if len(group) >= needed and not any(window.is_drifted for window in group)
    }


def _design_effects(histograms: Sequence[Histogram], size: float) -> tuple[float, float, float, float]:
    """Return design effects, 1 + (n - 1) rho: the mean for windows of the given size, and what the null is drawn from.

    That is the largest one of these windows, what chance makes of it, and the factor to windows of the given size.

    They are the generalised design effects of Rao and Scott, The analysis of categorical data from complex sample surveys
    (1981). The mean would spread a shift that moves with the hour over all bins, where it looks like noise, so nulls are
    drawn with the largest, less what chance alone makes of it in so few windows (Marchenko and Pastur, Distribution of
    eigenvalues for some sets of random matrices, 1967).
    """
    counts = np.array([item.counts * (item.effective_count / item.total) for item in histograms])
    counts = counts[:, counts.sum(axis=0) > 0]
    rows, columns = counts.shape
    freedom = (rows - 1) * (columns - 1)
    if freedom < 1:
        return 1.0, 1.0, 1.0, 1.0
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    residuals = (counts - expected) / np.sqrt(expected)
    # The smaller of the two Gram matrices has the same largest eigenvalue.
    gram = residuals @ residuals.T if rows <= columns else residuals.T @ residuals
    by_chance = (1 + math.sqrt((columns - 1) / (rows - 1))) ** 2
    worst = float(np.linalg.eigvalsh(gram)[-1]) / (rows - 1)
    scaling = max(size - 1, 0.0) / max(_typical_size(histograms) - 1, 1.0)
    return 1 + scaling * max(float(np.trace(gram)) / freedom - 1, 0.0), worst, by_chance, scaling


def _typical_size(histograms: Sequence[Histogram]) -> float:
    sizes = np.array([item.effective_count for item in histograms])
    return float((sizes**2).sum() / sizes.sum()) if sizes.size and sizes.sum() > 0 else 0.0


def _normalised(shares: FloatArray) -> FloatArray:
    # Multinomial wants a sum of at most 1, rounding included.
    return np.asarray(shares / (shares.sum(axis=-1, keepdims=True) * (1 + 1e-12)))
