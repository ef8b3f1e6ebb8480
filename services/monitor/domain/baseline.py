"""Baselines: what the features and outputs of a version looked like in training."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NumericProfile:
    """Profile of numbers."""

    mean: float
    standard_deviation: float
    minimum: float
    maximum: float
    bin_edges: tuple[float, ...] = ()
    """Ascending, one more than counts. A bin holds its lower edge, the last one both."""
    bin_counts: tuple[int, ...] = ()
    quantiles: tuple[float, ...] = ()
    """At 0.01, 0.05, 0.25, 0.5, 0.75, 0.95 and 0.99; or none."""


@dataclass(frozen=True, slots=True)
class CategoricalProfile:
    """Profile of texts and truth values."""

    counts: Mapping[str, int]
    """How often the most frequent values occurred."""
    other_count: int = 0
    """Values that are not in counts."""
    distinct_count: int = 0


@dataclass(frozen=True, slots=True)
class FeatureProfile:
    """Profile of one feature or output."""

    name: str
    count: int
    """Values, missing ones included."""
    missing_count: int
    content: NumericProfile | CategoricalProfile | None
    """None when the version came without."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Reference profile of a version."""

    row_count: int = 0
    description: str = ""
    features: Mapping[str, FeatureProfile] = field(default_factory=dict)
    """By name of the feature."""
    outputs: Mapping[str, FeatureProfile] = field(default_factory=dict)
    """By "prediction" or "probability/<label>"."""
