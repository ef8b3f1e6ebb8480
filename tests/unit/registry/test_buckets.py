"""Buckets: exact, disjoint, complete, and moved as little as possible."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.domain.bucket import BUCKET_COUNT, BucketRange, Ranges, assign_buckets

NAMES = [f"v{number}" for number in range(8)]


@st.composite
def weights(draw: st.DrawFn) -> dict[str, int]:
    """Weights of up to eight variants that add up to 10,000, zeros among them."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    cuts = sorted(draw(st.lists(st.integers(0, BUCKET_COUNT), min_size=len(names) - 1, max_size=len(names) - 1)))
    edges = [0, *cuts, BUCKET_COUNT]
    return dict(zip(names, [high - low for low, high in itertools.pairwise(edges)], strict=True))


def buckets(ranges: Ranges) -> set[int]:
    return {bucket for first, last in ranges for bucket in range(first, last + 1)}


@settings(deadline=None, max_examples=50)
@given(st.lists(weights(), min_size=1, max_size=5))
def test_any_chain_of_weights_is_exact_and_moves_the_least(chain: list[dict[str, int]]) -> None:
    held: dict[str, Ranges] = {}
    for wanted in chain:
        found = assign_buckets(held, wanted)
        assert {name: len(buckets(ranges)) for name, ranges in found.items()} == wanted
        assert set().union(*map(buckets, found.values())) == set(range(BUCKET_COUNT))
        for name, ranges in found.items():
            assert list(ranges) == sorted(ranges)
            assert all(low.last + 1 < high.first for low, high in itertools.pairwise(ranges))
            before, after = buckets(held.get(name, ())), buckets(ranges)
            assert before <= after or after <= before, "a variant grows or shrinks, it never does both"
        assert assign_buckets(held, wanted) == found
        assert assign_buckets(found, wanted) == found
        held = found


def test_a_rollout_only_ever_adds_users_to_the_newcomer() -> None:
    held = assign_buckets({}, {"old": BUCKET_COUNT})
    for share in (500, 2_500, 5_000, 10_000):
        after = assign_buckets(held, {"old": BUCKET_COUNT - share, "new": share})
        assert buckets(held.get("new", ())) <= buckets(after["new"])
        assert len(after["new"]) == 1, "one range suffices"
        held = after


def test_a_third_variant_gets_one_range_between_those_who_give() -> None:
    held = assign_buckets({}, {"a": 6_000, "b": 4_000})
    found = assign_buckets(held, {"a": 5_400, "b": 3_600, "c": 1_000})
    assert found == {
        "a": (BucketRange(0, 5_399),),
        "b": (BucketRange(6_400, 9_999),),
        "c": (BucketRange(5_400, 6_399),),
    }


def test_weights_that_do_not_add_up_are_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="10000, got 9999"):
        assign_buckets({}, {"a": 9_999})
