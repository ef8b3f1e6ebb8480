"""Buckets of the assignment: which variant holds which of the 10,000, moved as little as possible.

A request's bucket is a salted hash of its user (see the contract's Route), so a bucket that does not move is a user
who does not change sides.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

BUCKET_COUNT: Final = 10_000


class BucketRange(NamedTuple):
    """Neighbouring buckets, both ends included."""

    first: int
    last: int


Ranges = tuple[BucketRange, ...]


def assign_buckets(held: Mapping[str, Ranges], weights: Mapping[str, int]) -> dict[str, Ranges]:
    """Return the ranges of each variant in `weights`, as many buckets as its weight says.

    `weights` add up to BUCKET_COUNT; `held` says who has what now, disjoint. A variant that shrinks gives buckets and
    gets none, one that grows gets and gives none, any other keeps what it has; so no assignment moves fewer. The
    result depends on the arguments and the order of `weights` only.
    """
    if sum(weights.values()) != BUCKET_COUNT:
        raise ValueError(f"want weights that add up to {BUCKET_COUNT}, got {sum(weights.values())}")
    kept = {name: _keep(_buckets(held.get(name, ())), weight) for name, weight in weights.items()}
    taken = {bucket for buckets in kept.values() for bucket in buckets}
    free = iter(bucket for bucket in range(BUCKET_COUNT) if bucket not in taken)
    for name, weight in weights.items():
        kept[name] += [next(free) for _ in range(weight - len(kept[name]))]
    return {name: _ranges(sorted(buckets)) for name, buckets in kept.items()}


def _keep(buckets: list[int], weight: int) -> list[int]:
    """Return the buckets that a variant keeps: the one at the bottom gives from its top, any other from its bottom.

    So what is given by neighbours of a newcomer lies together, and ranges stay few.
    """
    surplus = max(0, len(buckets) - weight)
    if buckets and buckets[0] == 0:
        return buckets[: len(buckets) - surplus]
    return buckets[surplus:]


def _buckets(ranges: Iterable[BucketRange]) -> list[int]:
    return sorted(bucket for first, last in ranges for bucket in range(first, last + 1))


def _ranges(buckets: Sequence[int]) -> Ranges:
    found: list[BucketRange] = []
    for bucket in buckets:
        if found and found[-1].last == bucket - 1:
            found[-1] = BucketRange(found[-1].first, bucket)
        else:
            found.append(BucketRange(bucket, bucket))
    return tuple(found)
