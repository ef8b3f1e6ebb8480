"""Assignment: the golden vectors of the contract, evenness, and refusal of routes that make no sense."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.assignment import BUCKETS, Bucketing, owners

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "protos/interlock/router/v1/assignment_vectors.json").read_text()
)


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=range(len(VECTORS["vectors"])))
def test_the_golden_vectors_hold(vector: dict[str, Any]) -> None:
    assert Bucketing(vector["salt"]).bucket_of(vector["user_id"]) == vector["bucket"]


def test_the_golden_route_assigns_as_written() -> None:
    route = VECTORS["route"]
    table = owners([[(first, last) for first, last in variant["buckets"]] for variant in route["variants"]])
    names = [variant["name"] for variant in route["variants"]]
    bucketing = Bucketing(route["salt"])
    for wanted in route["assignments"]:
        bucket = bucketing.bucket_of(wanted["user_id"])
        assert (bucket, names[table[bucket]]) == (wanted["bucket"], wanted["variant"])
    assert {wanted["variant"] for wanted in route["assignments"]} == {"1", "2"}


def test_buckets_are_even() -> None:
    """Chi-square over 100 groups of 100,000 users: the 99.99 % point for 99 degrees of freedom is about 161."""
    bucketing = Bucketing("models/fraud/routes/production")
    counts = Counter(bucketing.bucket_of(f"user-{index}") // 100 for index in range(100_000))
    assert sum((counts[group] - 1000) ** 2 / 1000 for group in range(100)) < 161


def test_salts_assign_independently() -> None:
    one, other = Bucketing("a"), Bucketing("b")
    users = [f"user-{index}" for index in range(20_000)]
    both = sum(one.bucket_of(user) < 5000 and other.bucket_of(user) < 5000 for user in users)
    assert 4700 < both < 5300


@given(st.lists(st.integers(1, BUCKETS - 1), max_size=31, unique=True))
def test_every_bucket_has_the_owner_whose_range_holds_it(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), BUCKETS]
    ranges = [[(first, end - 1)] for first, end in pairwise(borders)]
    table = owners(ranges)
    for index, [(first, last)] in enumerate(ranges):
        assert table[first] == table[last] == index
    assert len(table) == BUCKETS


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [[(0, 9998)]],
        [[(0, 9999)], [(5, 5)]],
        [[(0, 10_000)]],
        [[(-1, 9999)]],
        [[(5, 4), (0, 9999)]],
        [[(0, 9999)], *[[] for _ in range(32)]],
    ],
)
def test_a_route_that_does_not_own_each_bucket_once_is_refused(ranges: list[list[tuple[int, int]]]) -> None:
    with pytest.raises(ValueError, match="want"):
        owners(ranges)
