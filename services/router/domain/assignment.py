"""Sticky assignment: which bucket a user is in, and which variant owns the bucket.

Part of the contract: `docs/assignment.md` says it in words, `assignment_vectors.json` beside the router's protos in
numbers. A change here moves users between variants.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

BUCKETS: Final = 10_000
NO_BUCKET: Final = BUCKETS
_HASH_BYTES: Final = 8
_UNOWNED: Final = 255
_VARIANT_LIMIT: Final = 32


class Bucketing:
    """Buckets of one route: the hash of its salt is taken once."""

    __slots__ = ("_salted",)

    def __init__(self, salt: str) -> None:
        self._salted = hashlib.sha256(salt.encode() + b"\x00")

    def bucket_of(self, user_id: str) -> int:
        """Return the bucket, 0 to 9,999, of a user: SHA-256(salt, zero byte, user id), first 8 bytes, big-endian."""
        digest = self._salted.copy()
        digest.update(user_id.encode())
        return int.from_bytes(digest.digest()[:_HASH_BYTES], "big") % BUCKETS


def owners(ranges: Sequence[Iterable[tuple[int, int]]]) -> bytes:
    """Return, for each bucket, the index of the variant whose ranges (inclusive) hold it.

    Raises `ValueError` for a range outside of the buckets, and for a bucket that two variants or none own: half a
    configuration must not be applied.
    """
    if not 1 <= len(ranges) <= _VARIANT_LIMIT:
        raise ValueError(f"want 1 to {_VARIANT_LIMIT} variants, got {len(ranges)}")
    table = bytearray([_UNOWNED]) * BUCKETS
    for index, variant_ranges in enumerate(ranges):
        for first, last in variant_ranges:
            if not 0 <= first <= last < BUCKETS:
                raise ValueError(f"want buckets from 0 to {BUCKETS - 1}, got {first} to {last}")
            if table[first : last + 1].strip(bytes([_UNOWNED])):
                raise ValueError(f"want each bucket in one variant, got {first} to {last} twice")
            table[first : last + 1] = bytes([index]) * (last - first + 1)
    if _UNOWNED in table:
        raise ValueError(f"want every bucket in a variant, got none for {table.index(_UNOWNED)}")
    return bytes(table)
