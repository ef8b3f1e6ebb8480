"""How long a batch takes, by its size: what admission, deadlines and a latency target are reckoned with.

A moving average for each power of two. The version's warm-up gives the first values; after that every batch corrects the
one of its own size. A size that was never seen is taken from the next larger one, which is no shorter, else in proportion
from the next smaller one.
"""

from collections.abc import Sequence
from math import inf
from typing import Final

_WEIGHT_OF_NEW: Final = 0.2
_BUCKETS: Final = 33


class BatchTime:
    """Seconds of a batch by rows, as far as they are known; 0 where nothing is."""

    __slots__ = ("_known", "_seconds")

    def __init__(self, measured: Sequence[tuple[int, float]] = ()) -> None:
        self._known = [0.0] * _BUCKETS
        self._seconds = [0.0] * _BUCKETS
        for rows, seconds in measured:
            self._known[(rows - 1).bit_length()] = seconds
        self._fill()

    def seconds(self, rows: int) -> float:
        """Return how long a batch of so many rows takes."""
        return self._seconds[(rows - 1).bit_length()] if rows > 0 else 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Take one batch into account."""
        bucket = (rows - 1).bit_length()
        known = self._known[bucket]
        if known:
            self._known[bucket] = self._seconds[bucket] = known + _WEIGHT_OF_NEW * (seconds - known)
        else:
            self._known[bucket] = seconds
        if not known or self._is_borrowed(bucket):
            self._fill()

    def largest_within(self, sizes: Sequence[int], limit_s: float) -> int:
        """Return the largest of some ascending sizes that takes at most `limit_s`; the smallest when none does."""
        fitting = [size for size in sizes if self.seconds(size) <= limit_s]
        return fitting[-1] if fitting else sizes[0]

    def _is_borrowed(self, bucket: int) -> bool:
        """Return whether a neighbour goes by this size for want of a value of its own."""
        return not self._known[max(0, bucket - 1)] or not self._known[min(_BUCKETS - 1, bucket + 1)]

    def _fill(self) -> None:
        larger = inf
        for bucket in reversed(range(_BUCKETS)):
            larger = self._known[bucket] or larger
            self._seconds[bucket] = larger
        for bucket in range(_BUCKETS):
            if self._seconds[bucket] == inf:
                self._seconds[bucket] = 2 * self._seconds[bucket - 1] if bucket else 0.0
