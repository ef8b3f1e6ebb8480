"""Profiles training data: the baseline that later traffic is compared with."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from interlock.registry.v1 import baseline_pb2 as pb

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MAX_BINS = 20
MAX_CATEGORIES = 1_000


def profile_numbers(name: str, values: npt.ArrayLike) -> pb.FeatureProfile:
    """Profiles numbers of any shape; NaN counts as missing. With no value at all the profile stays empty."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    present = numbers[~np.isnan(numbers)]
    profile = pb.FeatureProfile(name=name, count=numbers.size, missing_count=numbers.size - present.size)
    profile.numeric.SetInParent()
    if present.size:
        profile.numeric.CopyFrom(_numeric_profile(present))
    return profile


def profile_categories(
    name: str, values: Iterable[str | None], max_categories: int = MAX_CATEGORIES
) -> pb.FeatureProfile:
    """Profiles texts; None counts as missing. Equally frequent values are listed in alphabetical order."""
    counts = Counter(values)
    missing_count = counts.pop(None, 0)
    ranked = sorted(((value, count) for value, count in counts.items() if value is not None), key=_most_frequent_first)
    categories = [pb.CategoryCount(value=value, count=count) for value, count in ranked[:max_categories]]
    other_count = sum(count for _, count in ranked[max_categories:])
    return pb.FeatureProfile(
        name=name,
        count=missing_count + sum(counts.values()),
        missing_count=missing_count,
        categorical=pb.CategoricalProfile(categories=categories, other_count=other_count, distinct_count=len(ranked)),
    )


def profile_probabilities(labels: Iterable[str], probabilities: npt.NDArray[np.floating]) -> list[pb.FeatureProfile]:
    """Profiles a classification's probabilities, [N, labels]: one profile `probability/<label>` for each column."""
    columns = probabilities.T
    return [profile_numbers(f"probability/{label}", column) for label, column in zip(labels, columns, strict=True)]


def _most_frequent_first(category: tuple[str, int]) -> tuple[int, str]:
    value, count = category
    return -count, value


def _numeric_profile(present: npt.NDArray[np.float64]) -> pb.NumericProfile:
    edges = _bin_edges(present)
    counts, _ = np.histogram(present, bins=edges)
    return pb.NumericProfile(
        mean=float(present.mean()),
        standard_deviation=float(present.std()),
        minimum=float(present.min()),
        maximum=float(present.max()),
        bin_edges=edges.tolist(),
        bin_counts=counts.tolist(),
        quantiles=np.quantile(present, QUANTILES).tolist(),
    )


def _bin_edges(present: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gives bins of one value each where the values are few, and bins that hold about equally many otherwise."""
    distinct = np.unique(present)
    if distinct.size == 1:
        return np.array([distinct[0], np.nextafter(distinct[0], np.inf)])
    if distinct.size <= MAX_BINS:
        return np.concatenate([distinct[:1], (distinct[:-1] + distinct[1:]) / 2, distinct[-1:]])
    return np.unique(np.quantile(present, np.linspace(0, 1, MAX_BINS + 1)))
