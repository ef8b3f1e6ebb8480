"""How long a batch takes, by its size: what admission, deadlines and a latency target are reckoned with.

A moving average for each power of two. The version's warm-up gives the first values; after that every batch corrects the
one of its own size. A size that was never seen is taken from the next larger one, which is no shorter, else in proportion
from the next smaller one.
"""

from collections.abc import Sequence
from typing import Final

_WEIGHT_OF_NEW: Final = 0.2
_BUCKETS: Final = 33


class BatchTime:
    """Seconds of a batch by rows, as far as they are known; 0 where nothing is."""

    __slots__ = ("_known", "_seconds", "_spread", "_top")

    def __init__(self, measured: Sequence[tuple[int, float]] = ()) -> None:
        self._known = [False] * _BUCKETS
        self._seconds = [0.0] * _BUCKETS
        self._spread = 0.0
        self._top = 0
        """The largest bucket that is known."""
        for rows, seconds in measured:
            self._learn((rows - 1).bit_length(), seconds)

    def seconds(self, rows: int) -> float:
        """Return how long a batch of so many rows takes."""
        if rows <= 0:
            return 0.0
        bucket = (rows - 1).bit_length()
        if bucket <= self._top:
            return self._seconds[bucket]
        return self._seconds[self._top] * float(1 << (bucket - self._top))

    def careful(self, rows: int) -> float:
        """Return how long a batch of so many rows takes when it takes long: with twice the mean deviation."""
        return self.seconds(rows) * (1.0 + 2.0 * self._spread)

    def at_least(self, rows: int) -> float:
        """Return how long a batch of so many rows takes when it is quick: with twice the mean deviation."""
        return self.seconds(rows) * (1.0 - 2.0 * self._spread)

    def observe(self, rows: int, seconds: float) -> None:
        """Take one batch into account."""
        bucket = (rows - 1).bit_length()
        if self._known[bucket] and self._seconds[bucket]:
            off = (seconds - self._seconds[bucket]) / self._seconds[bucket]
            # One batch that took ages says little: for the spread it counts as twice the usual.
            self._spread += _WEIGHT_OF_NEW * (min(abs(off), 1.0) - self._spread)
            seconds = self._seconds[bucket] * (1.0 + _WEIGHT_OF_NEW * off)
        self._learn(bucket, seconds)

    def largest_within(self, sizes: Sequence[int], limit_s: float) -> int:
        """Return the largest of some ascending sizes that takes at most `limit_s`; the smallest when none does."""
        fitting = [size for size in sizes if self.seconds(size) <= limit_s]
        return fitting[-1] if fitting else sizes[0]

    def _learn(self, bucket: int, seconds: float) -> None:
        """Set a size, and the smaller ones that go by it for want of a value of their own."""
        self._known[bucket] = True
        self._top = max(self._top, bucket)
        self._seconds[bucket] = seconds
        while bucket and not self._known[bucket - 1]:
            bucket -= 1
            self._seconds[bucket] = seconds
