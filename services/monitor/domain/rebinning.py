"""Counts of sketches in bins that they were not made for: two versions have two baselines, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.monitor.domain.category_sketch import CategorySketch
from services.monitor.domain.numeric_sketch import NumericSketch
from services.monitor.domain.profile import FloatArray, Histogram
from services.monitor.domain.window import Sketch

BIN_COUNT: Final = 20
CATEGORY_COUNT: Final = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Bins that several sketches are counted in: edges of numbers, or names of categories."""

    edges: FloatArray | None
    categories: tuple[str, ...] = ()
    is_exact: bool = False
    """Whether they are the sketches' own."""


def common_bins(reference: Sketch, others: Sequence[Sketch]) -> Bins:
    """Return the sketches' own bins where all have the same, else the reference's twentieths or all categories."""
    if isinstance(reference, NumericSketch):
        own = reference.edges
        if own.size and all(isinstance(s, NumericSketch) and np.array_equal(s.edges, own) for s in others):
            return Bins(own, is_exact=True)
        quantiles = np.unique(reference.quantiles(np.linspace(0, 1, BIN_COUNT + 1)))
        return Bins(quantiles[~np.isnan(quantiles)])
    same = all(isinstance(s, CategorySketch) and s.categories == reference.categories for s in others)
    if reference.categories and same:
        return Bins(None, reference.categories, is_exact=True)
    counts: dict[str, float] = {}
    for sketch in (reference, *others):
        for name, count in _counts(sketch).items():
            counts[name] = counts.get(name, 0.0) + count
    return Bins(None, tuple(sorted(counts, key=lambda name: (-counts[name], name))[:CATEGORY_COUNT]))


def rebinned(sketch: Sketch, bins: Bins) -> Histogram:
    """Return what a sketch has in some bins: of numbers read from its quantiles, of categories their counts."""
    own = sketch.histogram()
    if bins.is_exact:
        return own
    if isinstance(sketch, CategorySketch):
        found = _counts(sketch)
        inside = np.array([found.get(name, 0.0) for name in bins.categories])
        counts = np.append(inside, max(0.0, own.total - float(inside.sum())))
        return Histogram(counts, own.effective_count)
    edges = bins.edges if bins.edges is not None else np.empty(0)
    counts = np.diff(np.concatenate([[0.0], sketch.shares_below(edges), [1.0]])) * own.total
    return Histogram(counts, own.effective_count, edges, own.minimum, own.maximum)


def _counts(sketch: Sketch) -> dict[str, float]:
    if not isinstance(sketch, CategorySketch):
        return {}
    known = dict(zip(sketch.categories, sketch.category_weights.tolist(), strict=True))
    return known | dict(sketch.new_categories(CATEGORY_COUNT))
