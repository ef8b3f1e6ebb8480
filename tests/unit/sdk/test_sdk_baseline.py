"""Baseline profiles."""

import math

import numpy as np
import pytest

from interlock_sdk.baseline import profile_categories, profile_numbers, profile_probabilities


def test_numbers_are_profiled_without_the_missing_ones() -> None:
    profile = profile_numbers("x", [1.0, 2.0, 3.0, math.nan, 6.0])
    numeric = profile.numeric
    assert (profile.name, profile.count, profile.missing_count) == ("x", 5, 1)
    assert (numeric.mean, numeric.minimum, numeric.maximum) == (3.0, 1.0, 6.0)
    assert numeric.standard_deviation == pytest.approx(math.sqrt(3.5))
    assert numeric.quantiles[3] == 2.5


def test_few_distinct_numbers_get_a_bin_each() -> None:
    numeric = profile_numbers("month", [3, 3, 4, 5, 5, 5]).numeric
    assert list(numeric.bin_edges) == [3, 3.5, 4.5, 5]
    assert list(numeric.bin_counts) == [2, 1, 3]


def test_many_distinct_numbers_get_bins_that_hold_equally_many() -> None:
    values = np.random.default_rng(0).lognormal(size=10_000)
    numeric = profile_numbers("x", values).numeric
    assert len(numeric.bin_counts) == 20
    assert all(count == pytest.approx(500, abs=2) for count in numeric.bin_counts)
    assert (numeric.bin_edges[0], numeric.bin_edges[-1]) == (values.min(), values.max())


@pytest.mark.parametrize(
    "values", [[7.0], [7.0] * 30, [0.0, 0.0, 1e-300], list(range(1_000)), [5.0] * 900 + list(range(100))]
)
def test_bins_hold_every_value_and_ascend(values: list[float]) -> None:
    numeric = profile_numbers("x", values).numeric
    assert sum(numeric.bin_counts) == len(values)
    assert len(numeric.bin_edges) == len(numeric.bin_counts) + 1
    assert all(low < high for low, high in zip(numeric.bin_edges, numeric.bin_edges[1:], strict=False))


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_no_numbers_leave_an_empty_numeric_profile(values: list[float]) -> None:
    profile = profile_numbers("x", values)
    assert (profile.count, profile.missing_count) == (len(values), len(values))
    assert profile.WhichOneof("profile") == "numeric"
    assert not profile.numeric.bin_counts


def test_categories_are_ranked_by_frequency_and_then_by_name() -> None:
    profile = profile_categories("c", ["b", "a", None, "c", "c", "c"], max_categories=2)
    categorical = profile.categorical
    assert [(category.value, category.count) for category in categorical.categories] == [("c", 3), ("a", 1)]
    assert (profile.count, profile.missing_count) == (6, 1)
    assert (categorical.other_count, categorical.distinct_count) == (1, 3)


def test_probabilities_get_a_profile_for_each_label() -> None:
    profiles = profile_probabilities(["no", "yes"], np.array([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0]]))
    assert [profile.name for profile in profiles] == ["probability/no", "probability/yes"]
    assert profiles[0].numeric.mean == pytest.approx(2 / 3)


def test_probabilities_and_labels_must_be_equally_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        profile_probabilities(["only"], np.array([[0.5, 0.5]]))
