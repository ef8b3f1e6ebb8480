"""Aggregates over sliding windows as of many times, in whole columns.

An event counts for a row with time T when its event time lies in (T - window, T] and it was known by T. Count, sum and
mean are differences of prefix sums: an event enters at the time from which it is known and leaves when its window ends.
The sums carry their rounding errors along, twice (Ogita, Rump, Oishi, "Accurate Sum and Dot Product", 2005), so that a
small window after a long history loses nothing. Extremes and newest values look at the events
themselves, some millions of pairs at a time.
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
    """Events of many entities, all columns of one length: code of the entity, times in microseconds.

    `digests` tell which of two events with the same times is the newer one.
    """

    keys: Int64s
    event_us: Int64s
    known_us: Int64s
    digests: npt.NDArray[np.uint64]

    def visible_us(self, *, both_clocks: bool) -> Int64s:
        """Return from when on each event may be seen."""
        return np.maximum(self.event_us, self.known_us) if both_clocks else self.event_us


@dataclass(frozen=True)
class Rows:
    """Rows to aggregate for: code of the entity (one that no event has where there are none) and time."""

    keys: Int64s
    time_us: Int64s


def count_in_window(events: Events, counts: Bools, rows: Rows, window_us: int, *, both_clocks: bool) -> Int64s:
    """Return how many events with `counts` each row sees."""
    entering, leaving = _moves(events, counts, rows, window_us, both_clocks=both_clocks)
    found: Int64s = entering.position - leaving.position
    return found


def sum_in_window(
    events: Events, values: Numbers, counts: Bools, rows: Rows, window_us: int, *, both_clocks: bool
) -> Numbers:
    """Return the sum of `values` (int64 or float64) where `counts`, for each row; 0 without events."""
    entering, leaving = _moves(events, counts, rows, window_us, both_clocks=both_clocks)
    if values.dtype == np.int64:
        whole: Numbers = (
            _prefix(values[entering.order])[entering.position] - _prefix(values[leaving.order])[leaving.position]
        )
        return whole
    pairs = zip(_exact_prefix(values[entering.order]), _exact_prefix(values[leaving.order]), strict=True)
    high, middle, low = (added[entering.position] - removed[leaving.position] for added, removed in pairs)
    total: Numbers = high + (middle + low)
    # What went in and out again leaves nothing behind.
    total[entering.position == leaving.position] = 0.0
    return total


def newest_event_us(events: Events, rows: Rows, window_us: int, *, both_clocks: bool) -> Int64s:
    """Return the time of the newest event that each row sees, 0 where there is none."""
    newest = np.zeros(len(rows.keys), np.int64)
    if not len(events.keys):
        return newest
    visible = _move(events, events.visible_us(both_clocks=both_clocks), np.arange(len(events.keys)), rows)
    # Entity and place among all times make one number, so the largest so far never is another entity's.
    distinct = np.unique(events.event_us)
    codes = events.keys * len(distinct) + np.searchsorted(distinct, events.event_us)
    largest = np.maximum.accumulate(codes[visible.order])[np.maximum(visible.position - 1, 0)]
    found = (visible.position > 0) & (largest // len(distinct) == rows.keys)
    newest[found] = distinct[largest[found] % len(distinct)]
    newest[rows.time_us - newest >= window_us] = 0
    return newest


def pairs_in_window(
    events: Events, counts: Bools, rows: Rows, window_us: int, *, both_clocks: bool
) -> Iterator[tuple[int, Int64s, Int64s, Int64s]]:
    """Yield (first row, lengths, starts, indexes of events) for runs of rows, oldest event first, known-at as tie.

    `lengths[i]` events of the run's row i begin at `starts[i]` in the indexes.
    """
    chosen = np.flatnonzero(counts)
    by = (events.digests, events.known_us, events.event_us, events.keys)
    order = chosen[np.lexsort([column[chosen] for column in by])]
    sorted_keys, sorted_times = events.keys[order], events.event_us[order]
    first = _positions(sorted_keys, sorted_times, rows.keys, rows.time_us - window_us)
    last = _positions(sorted_keys, sorted_times, rows.keys, rows.time_us)
    ends = np.cumsum(last - first)
    begin = 0
    while begin < len(ends):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _PAIRS_AT_A_TIME, side="right")))
        lengths = (last - first)[begin:end]
        owner = np.repeat(np.arange(end - begin), lengths)
        offsets = np.cumsum(lengths) - lengths
        found = order[np.arange(len(owner)) - offsets[owner] + first[begin:end][owner]]
        if both_clocks:
            seen = events.known_us[found] <= rows.time_us[begin:end][owner]
            owner, found = owner[seen], found[seen]
        counted = np.bincount(owner, minlength=end - begin).astype(np.int64)
        yield begin, counted, np.cumsum(counted) - counted, found
        begin = end


def extreme_in_window(
    events: Events, values: Numbers, counts: Bools, rows: Rows, window_us: int, *, largest: bool, both_clocks: bool
) -> tuple[Numbers, Bools]:
    """Return the largest or smallest value for each row, and whether there is one."""
    result, present = np.zeros(len(rows.keys), values.dtype), np.zeros(len(rows.keys), np.bool_)
    reduce = np.maximum if largest else np.minimum
    for begin, lengths, starts, found in pairs_in_window(events, counts, rows, window_us, both_clocks=both_clocks):
        some = np.flatnonzero(lengths)
        if len(some):
            result[begin + some] = reduce.reduceat(values[found], starts[some])
            present[begin + some] = True
    return result, present


def newest_in_window(
    events: Events, counts: Bools, rows: Rows, window_us: int, most: int, *, both_clocks: bool
) -> tuple[Int64s, Int64s]:
    """Return how many events each row gets, at most `most`, and their indexes, row after row, newest first."""
    all_lengths, all_found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for _, lengths, starts, found in pairs_in_window(events, counts, rows, window_us, both_clocks=both_clocks):
        kept = np.minimum(lengths, most)
        owner = np.repeat(np.arange(len(kept)), kept)
        rank = np.arange(len(owner)) - (np.cumsum(kept) - kept)[owner]
        all_lengths.append(kept)
        all_found.append(found[(starts + lengths - 1)[owner] - rank])
    return np.concatenate(all_lengths), np.concatenate(all_found)


@dataclass(frozen=True)
class _Move:
    """Events in the order in which they enter or leave; how many have done so by each row's time."""

    order: Int64s
    position: Int64s


def _moves(events: Events, counts: Bools, rows: Rows, window_us: int, *, both_clocks: bool) -> tuple[_Move, _Move]:
    enters, leaves = events.visible_us(both_clocks=both_clocks), events.event_us + window_us
    chosen = np.flatnonzero(counts & (enters < leaves))
    return _move(events, enters, chosen, rows), _move(events, leaves, chosen, rows)


def _move(events: Events, times: Int64s, chosen: Int64s, rows: Rows) -> _Move:
    order = chosen[np.lexsort((times[chosen], events.keys[chosen]))]
    return _Move(order, _positions(events.keys[order], times[order], rows.keys, rows.time_us))


def _positions(keys: Int64s, times: Int64s, row_keys: Int64s, row_times: Int64s) -> Int64s:
    """Return for each row how many of the sorted (key, time) are not after the row's."""
    if not len(keys):
        return np.zeros(len(row_keys), np.int64)
    # (key, time) becomes one number: the time by its rank among all times.
    distinct = np.unique(times)
    step = len(distinct) + 1
    codes = keys * step + np.searchsorted(distinct, times, side="left")
    wanted = row_keys * step + np.searchsorted(distinct, row_times, side="right")
    found: Int64s = np.searchsorted(codes, wanted, side="left").astype(np.int64)
    return found


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
