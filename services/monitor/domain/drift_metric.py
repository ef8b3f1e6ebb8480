"""Drift statistics between two samples, or between counts in the same bins."""

import enum
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy

from services.monitor.domain.profile import FloatArray, Histogram, profile_numbers

HALF_COUNT: Final = 0.5
"""An empty bin counts as half a value, or as what the other side expects there where that is less, in the population
stability index, which has no value otherwise."""


class DriftMetric(enum.StrEnum):
    """A drift statistic. Names are those of the policy's minimum effects."""

    PSI = "psi"
    JENSEN_SHANNON = "jensen_shannon"
    WASSERSTEIN = "wasserstein"
    KOLMOGOROV_SMIRNOV = "kolmogorov_smirnov"
    CHI_SQUARE = "chi_square"


NUMERIC_METRICS: Final = (
    DriftMetric.PSI,
    DriftMetric.JENSEN_SHANNON,
    DriftMetric.WASSERSTEIN,
    DriftMetric.KOLMOGOROV_SMIRNOV,
)
CATEGORICAL_METRICS: Final = (DriftMetric.PSI, DriftMetric.JENSEN_SHANNON, DriftMetric.CHI_SQUARE)


@dataclass(frozen=True, slots=True)
class Segments:
    """Stretches of the axis of numbers, and which cumulative counts hold at their two ends."""

    widths: FloatArray
    starts: npt.NDArray[np.intp]
    ends: npt.NDArray[np.intp]


def metrics_of(histogram: Histogram) -> tuple[DriftMetric, ...]:
    """Return the statistics that fit the type."""
    return CATEGORICAL_METRICS if histogram.edges is None else NUMERIC_METRICS


def measure_bins(metric: DriftMetric, reference: Histogram, current: Histogram) -> float:
    """Return a statistic between two histograms of the same bins, neither of them empty."""
    return float(measure_counts(metric, reference, current, current.counts[np.newaxis])[0])


def measure_counts(
    metric: DriftMetric,
    reference: Histogram,
    current: Histogram,
    counts: FloatArray,
    size: float | None = None,
) -> FloatArray:
    """Return a statistic between the reference and each row of counts [n, bins]; `current` gives their range.

    The sizes that Cramer's V depends on are those of `reference` and `current`, not of the rows. `size` is the number of
    values of which an empty bin is half a one in the population stability index; None: the row's.
    """
    match metric:
        case DriftMetric.PSI:
            return population_stability(reference.counts, counts, size)
        case DriftMetric.JENSEN_SHANNON:
            return jensen_shannon(reference.counts, counts)
        case DriftMetric.CHI_SQUARE:
            return cramers_v(reference.counts, counts * (current.total / counts.sum(axis=-1, keepdims=True)))
        case DriftMetric.KOLMOGOROV_SMIRNOV:
            return np.asarray(np.abs(_cumulative(reference.counts) - _cumulative(counts)).max(axis=-1))
        case DriftMetric.WASSERSTEIN:
            return _wasserstein_of_bins(
                _cumulative(reference.counts), _cumulative(counts), segments_of(reference, current)
            )


def error_of_bins(metric: DriftMetric, reference: Histogram, current: Histogram) -> float:
    """Return how far a statistic from bins may be from that of the values themselves; never exceeded.

    PSI, Jensen-Shannon and Cramer's V are defined on the bins, so they are exact.
    """
    if metric not in {DriftMetric.KOLMOGOROV_SMIRNOV, DriftMetric.WASSERSTEIN}:
        return 0.0
    segments = segments_of(reference, current)
    first, second = _cumulative(reference.counts), _cumulative(current.counts)
    # Within a segment both functions rise somewhere between their values at its ends.
    most = np.maximum(first[segments.ends] - second[segments.starts], second[segments.ends] - first[segments.starts])
    least = np.maximum(first[segments.starts] - second[segments.ends], second[segments.starts] - first[segments.ends])
    if metric is DriftMetric.KOLMOGOROV_SMIRNOV:
        return max(float(most.max()) - measure_bins(metric, reference, current), 0.0)
    value = measure_bins(metric, reference, current)
    upper, lower = float(most @ segments.widths), float(np.maximum(least, 0.0) @ segments.widths)
    return max(upper - value, value - lower, 0.0)


def population_stability(reference: FloatArray, current: FloatArray, size: float | None = None) -> FloatArray:
    """Return the population stability index between counts [..., bins], over the last axis: 0 and more.

    `size` is the number of current values of which an empty bin counts as half a one. None: as many as there are.

    Siddiqi, Credit risk scorecards (2006): sum of (q - p) ln(q / p).
    """
    p, q = _shares(reference), _shares(current)
    half_reference = HALF_COUNT / np.sum(reference, axis=-1, keepdims=True)
    half_current = HALF_COUNT / (np.sum(current, axis=-1, keepdims=True) if size is None else size)
    p, q = np.where(p > 0, p, np.minimum(half_reference, q)), np.where(q > 0, q, np.minimum(half_current, p))
    ratios = np.divide(q, p, out=np.ones(np.broadcast_shapes(p.shape, q.shape)), where=(p > 0) & (q > 0))
    return np.asarray(np.sum((q - p) * np.log(ratios), axis=-1))


def jensen_shannon(reference: FloatArray, current: FloatArray) -> FloatArray:
    """Return the Jensen-Shannon distance, base 2, between counts [..., bins], over the last axis: 0 to 1."""
    p, q = np.broadcast_arrays(_shares(reference), _shares(current))
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.asarray(np.sqrt(np.clip(divergence, 0.0, 1.0)))


def cramers_v(reference: FloatArray, current: FloatArray) -> FloatArray:
    """Return Cramer's V of the two-row table of counts [..., bins], over the last axis: 0 to 1, no continuity correction."""
    first, second = np.broadcast_arrays(reference, current)
    first_total, second_total = first.sum(axis=-1), second.sum(axis=-1)
    columns = first + second
    # With two rows chi-square is n1 n2 sum (p - q)^2 / (column total).
    gaps = first / first_total[..., None] - second / second_total[..., None]
    terms = np.divide(gaps**2, columns, out=np.zeros_like(gaps), where=columns > 0)
    chi_square = first_total * second_total * terms.sum(axis=-1)
    return np.asarray(np.sqrt(np.clip(chi_square / (first_total + second_total), 0.0, 1.0)))


def compare_samples(reference: npt.ArrayLike, current: npt.ArrayLike) -> dict[DriftMetric, float]:
    """Return the statistics between two samples of numbers, exact; PSI and Jensen-Shannon in the reference's bins."""
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    profile = profile_numbers(first)
    counts = count_in_edges(profile.edges, second)
    bins = profile.histogram().counts
    return {
        DriftMetric.PSI: float(population_stability(bins, counts)),
        DriftMetric.JENSEN_SHANNON: float(jensen_shannon(bins, counts)),
        DriftMetric.WASSERSTEIN: float(scipy.stats.wasserstein_distance(first, second)),
        DriftMetric.KOLMOGOROV_SMIRNOV: float(scipy.stats.ks_2samp(first, second, method="asymp").statistic),
    }


def count_in_edges(edges: FloatArray, values: npt.ArrayLike) -> FloatArray:
    """Return how many values lie below the edges, in each bin, and above; NaN is left out. [edges + 1]."""
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    ordered = ordered[~np.isnan(ordered)]
    starts = ordered.searchsorted(edges)
    starts[-1] = ordered.searchsorted(edges[-1], side="right")
    return np.diff(np.concatenate([[0], starts, [ordered.size]])).astype(np.float64)


def segments_of(reference: Histogram, current: Histogram) -> Segments:
    """Return the segments on which the two distribution functions are known: between values, or within bins."""
    edges = reference.edges
    if edges is None:
        raise ValueError("categories have no order")
    low, high = min(reference.minimum, current.minimum), max(reference.maximum, current.maximum)
    inner = edges if reference.points is None or current.points is None else reference.points
    knots = np.concatenate([[min(low, inner[0])], inner, [max(high, inner[-1])]])
    if inner is edges:
        order = np.arange(edges.size + 2)
        return Segments(np.diff(knots), order[:-1], order[1:])
    # Cumulative counts: 0, below, after each value, and all. Between two values the functions are flat.
    flat = np.arange(2, inner.size + 1)
    starts = np.concatenate([[0], flat, [edges.size]])
    ends = np.concatenate([[1], flat, [edges.size + 1]])
    return Segments(np.diff(knots), starts, ends)


def _wasserstein_of_bins(first: FloatArray, second: FloatArray, segments: Segments) -> FloatArray:
    """Integrate the distance of two distribution functions that are linear within segments."""
    gaps = first - second
    left, right = gaps[..., segments.starts], gaps[..., segments.ends]
    sizes = np.abs(left) + np.abs(right)
    crossing = np.divide(left**2 + right**2, 2 * sizes, out=np.zeros_like(sizes), where=sizes > 0)
    areas = np.where(left * right >= 0, sizes / 2, crossing)
    return np.asarray(areas @ segments.widths)


def _cumulative(counts: FloatArray) -> FloatArray:
    """Return the shares below each knot, from 0 to 1: [..., bins + 1]."""
    sums = np.cumsum(counts, axis=-1)
    zeros = np.zeros((*sums.shape[:-1], 1))
    return np.concatenate([zeros, sums / sums[..., -1:]], axis=-1)


def _shares(counts: FloatArray) -> FloatArray:
    array = np.asarray(counts, dtype=np.float64)
    return np.asarray(array / array.sum(axis=-1, keepdims=True))


def _relative_entropy(p: FloatArray, q: FloatArray) -> FloatArray:
    ratios = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray(np.sum(p * np.log2(ratios), axis=-1))
