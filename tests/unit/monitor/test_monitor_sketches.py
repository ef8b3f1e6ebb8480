"""Sketches: what they keep is exact where they say so and inside the stated error elsewhere, in whatever order they merge."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.monitor.domain.category_sketch import CategorySketch
from services.monitor.domain.numeric_sketch import NumericSketch, SketchUnreadable
from services.monitor.domain.profile import merge_histograms, point_values, profile_numbers

numbers = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=60)
texts = st.lists(st.sampled_from(["JFK", "EWR", "LGA", "new", "other", None]), max_size=40)
EDGES = (-10.0, 0.0, 1.0, 500.0)


def numeric(values: npt.ArrayLike, weights: npt.ArrayLike | None = None, edges: npt.ArrayLike = EDGES) -> NumericSketch:
    sketch = NumericSketch(edges)
    sketch.update(np.asarray(values, dtype=float), weights)
    return sketch


def category(values: Any, weights: list[float] | None = None) -> CategorySketch:
    sketch = CategorySketch(["JFK", "EWR", "LGA"])
    sketch.update(values, weights)
    return sketch


def figures(sketch: NumericSketch) -> list[float]:
    moments = [sketch.mean, sketch.second_moment] if sketch.moment_weight else []
    counts = [sketch.count, sketch.missing_weight, sketch.minimum, sketch.maximum, sketch.squared_weight]
    return [*sketch.bin_weights, *counts, *moments]


@given(parts=st.lists(numbers, min_size=1, max_size=5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_merge_order_does_not_matter_and_equals_one_sketch_of_everything(
    parts: list[list[float]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(parts))))
    merged, other = NumericSketch(EDGES), NumericSketch(EDGES)
    for index in range(len(parts)):
        merged.merge(numeric(parts[index]))
        other.merge(numeric(parts[order[index]]))
    whole = numeric([value for part in parts for value in part])
    assert figures(merged) == pytest.approx(figures(whole), rel=1e-9, abs=1e-3)
    assert figures(other) == pytest.approx(figures(whole), rel=1e-9, abs=1e-3)


@given(values=numbers)
@settings(max_examples=60, deadline=None)
def test_bins_equal_numpy_and_nothing_is_lost(values: list[float]) -> None:
    sketch = numeric(values)
    present = np.array([value for value in values if not np.isnan(value)])
    inside, _ = np.histogram(present, bins=np.array(EDGES))
    assert sketch.bin_weights.tolist() == [(present < EDGES[0]).sum(), *inside, (present > EDGES[-1]).sum()]
    assert sketch.total_weight == len(values)


@given(values=numbers)
@settings(max_examples=30, deadline=None)
def test_a_numeric_sketch_survives_its_encoding(values: list[float]) -> None:
    sketch = numeric(values)
    copy = NumericSketch.from_bytes(sketch.to_bytes())
    assert copy.to_bytes() == sketch.to_bytes()
    assert figures(copy) == figures(sketch)


def test_quantiles_are_inside_the_stated_error_after_many_merges() -> None:
    random = np.random.default_rng(0)
    values = random.lognormal(sigma=2, size=100_000)
    sketch = NumericSketch(EDGES)
    for part in np.split(values, 100):
        sketch.merge(numeric(part))
    ranks = np.linspace(0.01, 0.99, 99)
    found = np.searchsorted(np.sort(values), sketch.quantiles(ranks)) / values.size
    # The bound holds for all ranks at once in 99 % of sketches; KLL is random, so it is given half as much again.
    assert np.abs(found - ranks).max() <= 1.5 * sketch.rank_error
    assert len(sketch.to_bytes()) < 8_000
    assert sketch.standard_deviation == pytest.approx(values.std(), rel=1e-9)


def test_weights_count_as_that_many_values() -> None:
    random = np.random.default_rng(1)
    values, weights = random.normal(size=500), random.integers(1, 6, 500)
    weighted, repeated = numeric(values, weights), numeric(np.repeat(values, weights))
    assert weighted.bin_weights.tolist() == repeated.bin_weights.tolist()
    assert (weighted.mean, weighted.second_moment) == pytest.approx((repeated.mean, repeated.second_moment))
    assert weighted.quantiles([0.5])[0] == pytest.approx(np.median(np.repeat(values, weights)), abs=0.1)
    kish = weights.sum() ** 2 / (weights**2).sum()
    assert weighted.histogram().effective_count == pytest.approx(kish)
    assert merge_histograms([weighted.histogram()]).effective_count == pytest.approx(kish)


def test_large_weights_take_no_more_memory_and_spoil_no_quantile() -> None:
    sketch = numeric(np.arange(1_000.0), np.full(1_000, 1e7))
    assert sketch.value_weight == 1e10
    assert sketch.kll.n == 100_000
    assert sketch.quantiles([0.5])[0] == pytest.approx(500, abs=20)


def test_infinite_values_are_counted_and_spoil_nothing() -> None:
    sketch = numeric([np.inf, -np.inf, 0.5, 2.0, np.nan])
    assert sketch.bin_weights.tolist() == [1, 0, 1, 1, 1]
    assert (sketch.minimum, sketch.maximum, sketch.mean, sketch.missing_weight) == (0.5, 2.0, 1.25, 1)
    only = numeric([np.inf], [3.0])
    assert only.bin_weights.tolist() == [0, 0, 0, 0, 3]
    assert np.isnan(only.quantiles([0.5])[0])


def test_a_baseline_with_a_bin_for_each_value_is_recognised() -> None:
    assert profile_numbers([0, 0, 1, 5]).histogram().points == pytest.approx([0, 1, 5])
    assert profile_numbers([7, 7]).histogram().points == pytest.approx([7])
    assert point_values(np.quantile(np.random.default_rng(0).normal(size=1_000), np.linspace(0, 1, 21))) is None
    edges = profile_numbers([0, 0, 1, 5]).edges
    assert numeric([0, 5, 5], edges=edges).histogram().points is not None
    assert numeric([0, 4.9], edges=edges).histogram().points is None


@given(parts=st.lists(texts, min_size=1, max_size=5), data=st.data())
@settings(max_examples=40, deadline=None)
def test_categories_merge_in_any_order(parts: list[list[str | None]], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(parts))))
    merged, other = category([]), category([])
    for index in range(len(parts)):
        merged.merge(category(parts[index]))
        other.merge(category(parts[order[index]]))
    values = [value for part in parts for value in part]
    wanted = [
        values.count("JFK"),
        values.count("EWR"),
        values.count("LGA"),
        values.count("new") + values.count("other"),
    ]
    for sketch in (merged, other, CategorySketch.from_bytes(merged.to_bytes())):
        assert sketch.histogram().counts.tolist() == wanted
        assert (sketch.count, sketch.missing_weight) == (len(values), values.count(None))
        assert dict(sketch.new_categories()) == {v: values.count(v) for v in ("new", "other") if v in values}
        assert sketch.distinct_count == pytest.approx(len(set(values) - {None}), abs=0.01)


def test_new_categories_without_end_take_fixed_memory() -> None:
    sketch = CategorySketch(["JFK"])
    for start in range(0, 60_000, 2_000):
        sketch.update([f"id-{index}" for index in range(start, start + 2_000)] + ["often"] * 500)
    assert len(sketch.to_bytes()) < 10_000
    name, count = sketch.new_categories(1)[0]
    assert name == "often"
    assert abs(count - 15_000) <= 0.014 * sketch.other_weight
    assert sketch.distinct_count == pytest.approx(60_001, rel=0.05)


def test_categories_take_arrow_columns_and_weights() -> None:
    column = pa.array(["EWR", None, "new", "EWR"]).dictionary_encode()
    sketch = category(column, [1.0, 2.0, 3.0, 4.0])
    assert sketch.histogram().counts.tolist() == [0, 5, 0, 3]
    assert sketch.missing_weight == 2
    null = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1]), pa.array(["JFK", None]))
    assert category(null).missing_weight == 2
    assert sketch.histogram().effective_count == pytest.approx(64 / 26)


@pytest.mark.parametrize("kind", [NumericSketch, CategorySketch])
@pytest.mark.parametrize("data", [b"", b"ILN9" + bytes(90), b"ILN1", b"ILC1" + bytes(20)])
def test_bytes_that_are_no_sketch_are_refused(kind: type[NumericSketch | CategorySketch], data: bytes) -> None:
    with pytest.raises(SketchUnreadable):
        kind.from_bytes(data)


def test_sketches_of_different_bins_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different bins"):
        numeric([1]).merge(NumericSketch([0, 1]))
    with pytest.raises(ValueError, match="different categories"):
        category([]).merge(CategorySketch(["a"]))
