"""Reference profiles, and counts in their bins: what later traffic is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_POINT_TOLERANCE: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Histogram:
    """How values are spread over the bins of a reference. Only histograms with the same bins can be compared.

    Numbers: counts [k + 1] are those below the first of k edges, in each of k - 1 bins, and above the last edge.
    Categories: counts [k + 1] are those of k categories in the reference's order, and of all others together.
    """

    counts: FloatArray
    """Weighted counts; values that each stand for more than one prediction (sampling) count as that many."""
    effective_count: float
    """Unweighted observations that would tell as much: Kish's effective sample size."""
    edges: FloatArray | None = None
    """Ascending edges; None: categories."""
    minimum: float = 0.0
    """Smallest finite value; numbers only."""
    maximum: float = 0.0
    """Largest finite value; numbers only."""
    points: FloatArray | None = None
    """The one value that each bin between the edges holds, where that is so: then nothing is lost by binning."""

    @property
    def total(self) -> float:
        """Weighted count of all values."""
        return float(self.counts.sum())


@dataclass(frozen=True, slots=True)
class NumericProfile:
    """Profile of numbers; without edges it is that of no number at all."""

    edges: FloatArray
    """Ascending, [k]. A bin holds its lower edge, the last one both."""
    counts: FloatArray
    """[k - 1]."""
    mean: float = 0.0
    standard_deviation: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.0
    quantiles: tuple[float, ...] = ()
    """At 0.01, 0.05, 0.25, 0.5, 0.75, 0.95 and 0.99."""

    def histogram(self) -> Histogram:
        """Return the counts with empty bins outside the edges."""
        if self.edges.size == 0:
            return Histogram(np.zeros(1), 0.0, self.edges)
        counts = np.concatenate([[0.0], self.counts, [0.0]])
        points = point_values(self.edges)
        return Histogram(counts, float(counts.sum()), self.edges, float(self.edges[0]), float(self.edges[-1]), points)


@dataclass(frozen=True, slots=True)
class CategoricalProfile:
    """Profile of texts and truth values."""

    categories: tuple[str, ...]
    """The most frequent first."""
    counts: FloatArray
    """[categories]."""
    other_count: float = 0.0
    """Values that are not in categories."""
    distinct_count: int = 0

    def histogram(self) -> Histogram:
        """Return the counts, those of no category last."""
        counts = np.append(self.counts, self.other_count).astype(np.float64)
        return Histogram(counts, float(counts.sum()))


@dataclass(frozen=True, slots=True)
class FeatureProfile:
    """Profile of one feature or output of the baseline."""

    name: str
    count: int
    """Values, missing ones included."""
    missing_count: int
    content: NumericProfile | CategoricalProfile


def point_values(edges: FloatArray) -> FloatArray | None:
    """Return the values of a baseline that has one bin for each value (edges between them halfway), else None.

    With values v0 < v1 < ... the edges are v0, (v0 + v1) / 2, ..., v_last (interlock_sdk.baseline), so the values can be
    read off; other edges give values that lie outside their bins.
    """
    if edges.size == 2 and edges[1] <= np.nextafter(edges[0], np.inf):
        return edges[:1]
    if edges.size < 3:
        return None
    values = np.empty(edges.size - 1)
    values[0] = edges[0]
    for index in range(1, values.size):
        values[index] = 2 * edges[index] - values[index - 1]
    # The last two edges are v_last-1 + half a step and v_last.
    scale = float(np.abs(edges).max() + edges[-1] - edges[0])
    if abs(values[-1] - edges[-1]) > _POINT_TOLERANCE * scale:
        return None
    values[-1] = edges[-1]
    inside = (values[:-1] >= edges[:-2]) & (values[:-1] < edges[1:-1])
    return values if bool(inside.all()) and bool((np.diff(values) > 0).all()) else None


def profile_numbers(values: npt.ArrayLike, max_bins: int = 20) -> NumericProfile:
    """Profile numbers as the SDK does (equally filled bins, or one for each value where they are few); NaN is left out."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    present = numbers[np.isfinite(numbers)]
    distinct = np.unique(present)
    if distinct.size == 0:
        return NumericProfile(np.empty(0), np.empty(0))
    if distinct.size == 1:
        edges = np.array([distinct[0], np.nextafter(distinct[0], np.inf)])
    elif distinct.size <= max_bins:
        edges = np.concatenate([distinct[:1], (distinct[:-1] + distinct[1:]) / 2, distinct[-1:]])
    else:
        edges = np.unique(np.quantile(present, np.linspace(0, 1, max_bins + 1)))
    counts = np.histogram(present, bins=edges)[0].astype(np.float64)
    quantiles = tuple(np.quantile(present, (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)).tolist())
    return NumericProfile(
        edges, counts, float(present.mean()), float(present.std()), float(distinct[0]), float(distinct[-1]), quantiles
    )


def merge_histograms(histograms: Sequence[Histogram]) -> Histogram:
    """Return the histogram of all values together; there is at least one, and all have the same bins."""
    filled = [histogram for histogram in histograms if histogram.total > 0]
    if not filled:
        return histograms[0]
    counts = np.sum([histogram.counts for histogram in filled], axis=0)
    # Kish: (sum of weights)^2 / (sum of squared weights), from each part's own.
    squares = sum(histogram.total**2 / histogram.effective_count for histogram in filled)
    effective_count = float(counts.sum()) ** 2 / squares
    points = filled[0].points if all(histogram.points is not None for histogram in filled) else None
    return replace(
        filled[0],
        counts=counts,
        effective_count=effective_count,
        minimum=min(histogram.minimum for histogram in filled),
        maximum=max(histogram.maximum for histogram in filled),
        points=points,
    )
