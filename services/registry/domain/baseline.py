"""Baselines: reference profiles of a version's features and outputs. Here only: do they fit the signature."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from services.common.errors import Violation, echo
from services.common.text_check import check_text
from services.registry.domain.signature import FeatureSpec, Signature, Task

PREDICTION_PROFILE: Final = "prediction"
CATEGORY_LIMIT: Final = 1_000
BIN_LIMIT: Final = 10_000
QUANTILE_COUNT: Final = 7
DESCRIPTION_LIMIT_CHARS: Final = 10_000

Violations = Iterator[Violation]


@dataclass(frozen=True, slots=True)
class NumericProfile:
    """Profile of numbers; without bins it is that of no number at all."""

    figures: tuple[float, float, float, float]
    """Mean, standard deviation, smallest, largest."""
    bin_edges: tuple[float, ...] = ()
    bin_counts: tuple[int, ...] = ()
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class CategoricalProfile:
    """Profile of texts and truth values: how often the most frequent ones occurred, and the rest."""

    category_counts: tuple[int, ...]
    other_count: int
    distinct_count: int


@dataclass(frozen=True, slots=True)
class Profile:
    """Profile of one feature or output."""

    name: str
    count: int
    missing_count: int
    content: NumericProfile | CategoricalProfile | None


@dataclass(frozen=True, slots=True)
class Baseline:
    """Reference profile of a version."""

    row_count: int
    description: str
    features: tuple[Profile, ...]
    outputs: tuple[Profile, ...]


def check_baseline(baseline: Baseline, signature: Signature, path: str) -> Violations:
    """Yield everything that is wrong with a baseline."""
    if baseline.row_count < 0:
        yield Violation(f"{path}.row_count", f"want at least 0, got {baseline.row_count}")
    yield from check_text(baseline.description, f"{path}.description", DESCRIPTION_LIMIT_CHARS)
    features = {feature.name: feature for feature in signature.features}
    yield from _check_profiles(baseline.features, features.keys(), f"{path}.features")
    for index, profile in enumerate(baseline.features):
        feature = features.get(profile.name)
        if feature is not None:
            yield from _check_kind(profile, _is_numeric(feature), f"{path}.features[{index}]")
    yield from _check_profiles(baseline.outputs, _output_names(signature), f"{path}.outputs")
    for index, profile in enumerate(baseline.outputs):
        if profile.name.startswith("probability/"):
            yield from _check_kind(profile, True, f"{path}.outputs[{index}]")


def _is_numeric(feature: FeatureSpec) -> bool:
    return feature.type is not None and feature.type.numeric


def _output_names(signature: Signature) -> set[str]:
    prediction = signature.prediction
    if prediction is None:
        return set()
    labels = prediction.labels if prediction.task is Task.CLASSIFICATION else ()
    return {PREDICTION_PROFILE, *(f"probability/{label}" for label in labels)}


def _check_profiles(profiles: Sequence[Profile], known: Collection[str], path: str) -> Violations:
    seen: set[str] = set()
    for index, profile in enumerate(profiles):
        at = f"{path}[{index}]"
        if profile.name not in known:
            yield Violation(f"{at}.name", f"want a name of the signature, got {echo(profile.name)}")
        elif profile.name in seen:
            yield Violation(f"{at}.name", f"want each name once, got {echo(profile.name)} again")
        seen.add(profile.name)
        yield from _check_profile(profile, at)


def _check_profile(profile: Profile, path: str) -> Violations:
    if not 0 <= profile.missing_count <= profile.count:
        yield Violation(f"{path}.missing_count", f"want 0 to the count of {profile.count}, got {profile.missing_count}")
    if isinstance(profile.content, NumericProfile):
        yield from _check_numeric(profile.content, f"{path}.numeric")
    elif isinstance(profile.content, CategoricalProfile):
        yield from _check_categorical(profile.content, f"{path}.categorical")


def _check_kind(profile: Profile, numeric: bool, path: str) -> Violations:
    wanted, word = (NumericProfile, "numeric") if numeric else (CategoricalProfile, "categorical")
    if profile.content is None:
        yield Violation(path, f"want a {word} profile, got none")
    elif not isinstance(profile.content, wanted):
        yield Violation(path, f"want a {word} profile of {echo(profile.name)}, got the other kind")


def _check_numeric(numbers: NumericProfile, path: str) -> Violations:
    if not all(map(math.isfinite, (*numbers.figures, *numbers.bin_edges, *numbers.quantiles))):
        yield Violation(path, "want finite numbers, got NaN or an infinity")
        return
    _, deviation, smallest, largest = numbers.figures
    if deviation < 0:
        yield Violation(f"{path}.standard_deviation", f"want at least 0, got {deviation:g}")
    if smallest > largest:
        yield Violation(f"{path}.minimum", f"want at most the maximum {largest:g}, got {smallest:g}")
    yield from _check_bins(numbers, path)
    if numbers.quantiles and len(numbers.quantiles) != QUANTILE_COUNT:
        yield Violation(f"{path}.quantiles", f"want {QUANTILE_COUNT} or none, got {len(numbers.quantiles)}")
    if any(low > high for low, high in pairwise(numbers.quantiles)):
        yield Violation(f"{path}.quantiles", "want them ascending, got one that is smaller than the one before")


def _check_bins(numbers: NumericProfile, path: str) -> Violations:
    edges, counts = numbers.bin_edges, numbers.bin_counts
    if len(counts) > BIN_LIMIT:
        yield Violation(f"{path}.bin_counts", f"want at most {BIN_LIMIT} bins, got {len(counts)}")
    if len(edges) != len(counts) + 1 and (edges or counts):
        yield Violation(f"{path}.bin_edges", f"want one more than the {len(counts)} bins, got {len(edges)}")
    if any(low >= high for low, high in pairwise(edges)):
        yield Violation(f"{path}.bin_edges", "want them ascending, got one that is not above the one before")
    if any(count < 0 for count in counts):
        yield Violation(f"{path}.bin_counts", "want counts of at least 0, got a negative one")


def _check_categorical(categories: CategoricalProfile, path: str) -> Violations:
    if len(categories.category_counts) > CATEGORY_LIMIT:
        yield Violation(f"{path}.categories", f"want at most {CATEGORY_LIMIT}, got {len(categories.category_counts)}")
    counts = (*categories.category_counts, categories.other_count, categories.distinct_count)
    if min(counts) < 0:
        yield Violation(path, f"want counts of at least 0, got {min(counts)}")
