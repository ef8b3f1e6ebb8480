"""Aggregates over sliding windows as of many times, in whole columns.

An event counts for a row with time T when its event time lies in (T - window, T] and it was known by T. Count, sum and
mean are differences of prefix sums: an event enters at the time from which it can be seen and leaves when its window ends.
The sums carry their rounding errors along, twice (Ogita, Rump, Oishi, "Accurate Sum and Dot Product", 2005), so that a
small window after a long history loses nothing. Extremes and newest values look at the events themselves, some millions of
pairs at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[Any]

_PAIRS_AT_A_TIME: Final = 4_000_000


@dataclass(frozen=True)
class Events:
    """Events sorted by entity, event time and what else makes one newer: code of the entity, times in microseconds."""

    keys: Int64s
    event_us: Int64s
    known_us: Int64s


@dataclass(frozen=True)
class Rows:
    """Rows to aggregate for: code of the entity, negative for one without events, and time in microseconds."""

    keys: Int64s
    time_us: Int64s


class WindowJoin:
    """What rows see of events; `counts` and values are columns of the events, results columns of the rows."""

    def __init__(self, events: Events, rows: Rows, *, both_clocks: bool) -> None:
        self._events = events
        self._rows = rows
        self._both_clocks = both_clocks
        self._visible_us = np.maximum(events.event_us, events.known_us) if both_clocks else events.event_us
        self._begins = (
            np.concatenate(([0], np.cumsum(np.bincount(events.keys)))) if len(events.keys) else np.zeros(1, int)
        )
        self._entering = np.lexsort((self._visible_us, events.keys))
        self._entered = self._count_until(self._visible_us[self._entering], rows.time_us)
        self._happened = self._count_until(events.event_us, rows.time_us)
        self._left: dict[int, Int64s] = {}

    def count(self, counts: Bools, window_us: int) -> Int64s:
        """Return how many events with `counts` each row sees."""
        ones = self._that_count(counts, window_us).astype(np.int64)
        found: Int64s = _prefix(ones[self._entering])[self._entered] - _prefix(ones)[self._gone(window_us)]
        return found

    def total(self, values: Numbers, counts: Bools, window_us: int) -> Numbers:
        """Return the sum of `values` (int64, which wraps around, or finite float64) for each row; 0 without events."""
        counted = np.where(self._that_count(counts, window_us), values, values.dtype.type(0))
        entered, gone = self._entered, self._gone(window_us)
        if values.dtype == np.int64:
            whole: Numbers = _prefix(counted[self._entering])[entered] - _prefix(counted)[gone]
            return whole
        sums = zip(_exact_prefix(counted[self._entering]), _exact_prefix(counted), strict=True)
        high, middle, low = (added[entered] - removed[gone] for added, removed in sums)
        total: Numbers = high + (middle + low)
        # What went in and out again leaves nothing behind.
        total[self.count(counts, window_us) == 0] = 0.0
        return total

    def extreme(self, values: Numbers, counts: Bools, window_us: int, *, largest: bool) -> tuple[Numbers, Bools]:
        """Return the largest or smallest value for each row, and whether there is one."""
        result, present = np.zeros(len(self._rows.keys), values.dtype), np.zeros(len(self._rows.keys), np.bool_)
        reduce = np.maximum if largest else np.minimum
        for begin, lengths, starts, found in self._pairs(counts, window_us):
            some = np.flatnonzero(lengths)
            if len(some):
                result[begin + some] = reduce.reduceat(values[found], starts[some])
                present[begin + some] = True
        return result, present

    def newest(self, counts: Bools, window_us: int, most: int) -> tuple[Int64s, Int64s]:
        """Return how many events each row gets, at most `most`, and their places, row after row, newest first."""
        all_lengths, all_found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for _, lengths, starts, found in self._pairs(counts, window_us):
            kept = np.minimum(lengths, most)
            owner = np.repeat(np.arange(len(kept)), kept)
            rank = np.arange(len(owner)) - (np.cumsum(kept) - kept)[owner]
            all_lengths.append(kept)
            all_found.append(found[(starts + lengths - 1)[owner] - rank])
        return np.concatenate(all_lengths), np.concatenate(all_found)

    def newest_event_us(self, window_us: int) -> Int64s:
        """Return the time of the newest event that each row sees, 0 where there is none."""
        newest = np.zeros(len(self._rows.keys), np.int64)
        if not len(self._events.keys):
            return newest
        # Sorted by entity first, the largest place so far is never another entity's once one of its own has entered.
        latest = np.maximum.accumulate(self._entering)[np.maximum(self._entered - 1, 0)]
        found = self._entered > self._begins[np.maximum(self._rows.keys, 0)]
        found &= self._rows.keys >= 0
        newest[found] = self._events.event_us[latest[found]]
        newest[self._rows.time_us - newest >= window_us] = 0
        return newest

    def _pairs(self, counts: Bools, window_us: int) -> Iterator[tuple[int, Int64s, Int64s, Int64s]]:
        """Yield (first row, lengths, starts, places of events) for runs of rows, oldest event first.

        `lengths[i]` events of the run's row i begin at `starts[i]` in the places.
        """
        first, last = self._gone(window_us), self._happened
        ends = np.cumsum(last - first)
        begin = 0
        while begin < len(ends):
            done = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, done + _PAIRS_AT_A_TIME, side="right")))
            lengths = (last - first)[begin:end]
            owner = np.repeat(np.arange(end - begin), lengths)
            found = np.arange(len(owner)) + (first[begin:end] - np.cumsum(lengths) + lengths)[owner]
            seen = counts[found]
            if self._both_clocks:
                seen &= self._events.known_us[found] <= self._rows.time_us[begin:end][owner]
            counted = np.bincount(owner[seen], minlength=end - begin).astype(np.int64)
            yield begin, counted, np.cumsum(counted) - counted, found[seen]
            begin = end

    def _that_count(self, counts: Bools, window_us: int) -> Bools:
        """Return which events some row may see: those known only after their window never enter."""
        return counts & (self._visible_us < self._events.event_us + window_us)

    def _gone(self, window_us: int) -> Int64s:
        """Return for each row how many events, in their order, have left the window."""
        if window_us not in self._left:
            self._left[window_us] = self._count_until(self._events.event_us, self._rows.time_us - window_us)
        return self._left[window_us]

    def _count_until(self, times_us: Int64s, until_us: Int64s) -> Int64s:
        """Return for each row how many events of earlier entities there are, and of its own up to a time.

        `times_us` rise within each entity. A binary search in all rows at once, each among the events of its entity.
        """
        known = (self._rows.keys >= 0) & (self._rows.keys < len(self._begins) - 1)
        low = self._begins[np.where(known, self._rows.keys, 0)].astype(np.int64)
        high = self._begins[np.where(known, self._rows.keys + 1, 0)].astype(np.int64)
        while (open_ := low < high).any():
            middle = (low + high) >> 1
            before = open_ & (times_us[np.minimum(middle, len(times_us) - 1)] <= until_us)
            low = np.where(before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)
        return low


def _prefix(values: Numbers) -> Numbers:
    sums: Numbers = np.concatenate((np.zeros(1, values.dtype), np.cumsum(values)))
    return sums


def _exact_prefix(values: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Return prefix sums, the sums of their rounding errors, and the sums of the rounding errors of those."""
    high, errors = _summed(values)
    middle, errors = _summed(errors)
    return high, middle, _prefix(errors)


def _summed(values: Numbers) -> tuple[Numbers, Numbers]:
    """Return prefix sums and the rounding error of each step (Knuth's TwoSum)."""
    sums = _prefix(values)
    before, after = sums[:-1], sums[1:]
    part = after - before
    return sums, (before - (after - part)) + (values - part)
