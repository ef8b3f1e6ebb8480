"""Views whose features are aggregates of pushed events: writing events, and reading what windows hold of them.

A read gives what `aggregates.compute_aggregate` gives, to the bit.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from services.features.domain.aggregate_layout import AggregateLayout
from services.features.domain.aggregate_script import READ, WRITE
from services.features.domain.aggregates import (
    ID_BYTES,
    AggregateValue,
    combine,
    event_digest,
    exact_total,
    is_late,
    mean_of,
    sum_of,
    window_us,
)
from services.features.domain.catalog import ANY_AGE_US, CompiledFeature, CompiledView
from services.features.domain.definitions import Aggregate, AggregateFunction, FeatureType, Value
from services.features.domain.ports import (
    Column,
    InputColumn,
    Outcome,
    ReadRow,
    Reply,
    Row,
    ScriptCall,
    Status,
    ValueType,
)
from services.features.domain.value_check import checked
from services.features.domain.wire import encode


class AggregateWriter:
    """See `ports.ViewWriter`: one script call for each event."""

    needs_event_id = True

    def __init__(self, view: CompiledView) -> None:
        self.view = view
        self._layout = AggregateLayout(view)
        self.inputs: Sequence[InputColumn] = tuple(
            InputColumn(name, ValueType(kind, nullable=True)) for name, kind in self._layout.fields.items()
        )
        self._limits = (b"%d" % self._layout.keep_us, b"%d" % self._layout.width_us, *self._layout.tile_arguments)

    def write(self, row: Row, now_us: int) -> ScriptCall | Outcome:
        """Return the call that adds an event if its id is new, or LATE."""
        if is_late(row.event_time_us, row.known_at_us, self.view.allowed_lateness_us):
            return Outcome.LATE
        digest = event_digest(row.event_id)
        record, texts = self._layout.record(row, digest)
        # The earlier of both times: an event that happens in the future must not push out what counts now.
        newest_us = min(row.event_time_us, row.known_at_us)
        slot = row.event_time_us // self._layout.width_us
        times = (b"%d" % row.event_time_us, b"%d" % newest_us)
        arguments = (digest, b"%d" % slot, record, texts, *times, *self._limits)
        return ScriptCall(WRITE, (self._layout.key(row.keys),), arguments)

    def outcome(self, reply: Reply) -> Outcome:
        """Return the outcome that the script gave."""
        return Outcome(reply)


class AggregateReader:
    """See `ports.ViewReader`: one script call for each entity, however many rows name it."""

    def __init__(self, view: CompiledView, features: Sequence[CompiledFeature]) -> None:
        self.features = tuple(feature.spec.name for feature in features)
        self.entities = tuple(entity.id for entity in view.entities)
        self._layout = AggregateLayout(view)
        self._computations = tuple(_Computation(self._layout.aggregates[each.spec.name], each) for each in features)
        self._longest_us = max(each.window_us for each in self._computations)
        last = [each.aggregate for each in self._computations if each.aggregate.function is AggregateFunction.LAST_N]
        texts = any(self._layout.fields[each.field] is FeatureType.STRING for each in last)
        # Many an entity has no events: what it has then is the same at all times.
        self._of_nothing = self._compute(None, 0)
        self._ask = (b"1" if texts else b"0",)
        self._ask_tiles = (
            self._layout.tile_digest,
            b"%d" % max((each.last_count for each in last), default=0),
            b",".join(b"%d" % self._layout.count_place(field) for field in sorted({each.field for each in last})),
        )

    def ask(self, rows: Sequence[ReadRow], as_of_us: int) -> Sequence[ScriptCall]:
        """Return one script call for each different entity."""
        width_us = self._layout.width_us
        last = as_of_us // width_us
        cut = {last, *((as_of_us - each.window_us) // width_us for each in self._computations)}
        slots = (b"%d" % ((as_of_us - self._longest_us) // width_us), b"%d" % last)
        arguments = (*slots, *self._ask, b"%d" % as_of_us, *self._ask_tiles, *(b"%d" % slot for slot in cut))
        return [ScriptCall(READ, (self._layout.key(keys),), arguments) for keys in self._places(rows)]

    def answer(self, rows: Sequence[ReadRow], replies: Sequence[Reply], as_of_us: int) -> Sequence[Column]:
        """Return the columns as of a time; an entity without events has counts and sums of 0."""
        columns = [Column([], [], [], [], []) for _ in self._computations]
        places = self._places(rows)
        found = {
            keys: self._compute(reply, as_of_us) if reply else self._of_nothing
            for keys, reply in zip(places, replies, strict=True)
        }
        for row in rows:
            for column, computation, value in zip(columns, self._computations, found[self._keys(row)], strict=True):
                computation.add(column, value, as_of_us)
        return columns

    def _keys(self, row: ReadRow) -> tuple[str, ...]:
        return tuple([row.keys[entity] for entity in self.entities])

    def _places(self, rows: Sequence[ReadRow]) -> Sequence[tuple[str, ...]]:
        return list(dict.fromkeys(map(self._keys, rows)))

    def _compute(self, reply: Reply, as_of_us: int) -> list[AggregateValue]:
        events = _Events(self._layout, reply, as_of_us - self._longest_us, as_of_us)
        return [events.aggregate(each.aggregate, as_of_us - each.window_us) for each in self._computations]


_Found: TypeAlias = tuple[Any, Any, tuple[int, int]]


class _Events:
    """The events of one entity that count as of a time: arrays of those that came one by one, and tiles."""

    def __init__(self, layout: AggregateLayout, reply: Reply, after_us: int, as_of_us: int) -> None:
        self._fields = layout.fields
        joined, texts, tiles = reply or (b"", b"", b"")
        records = np.frombuffer(joined, layout.dtype)
        self._texts = _texts(records, layout, texts)
        times = records["event_time"]
        counts = np.flatnonzero((times > after_us) & (times <= as_of_us) & (records["known_at"] <= as_of_us))
        self._order = counts[_newest_last(records[counts])]
        self._records = records[self._order]
        self._times: Any = np.ascontiguousarray(self._records["event_time"])
        self._tiles = np.frombuffer(tiles, layout.tile_dtype)
        self._columns: dict[str, tuple[Any, Any]] = {}
        self._found: dict[tuple[str, int], _Found] = {}

    def aggregate(self, aggregate: Aggregate, after_us: int) -> AggregateValue:
        """Return the aggregate of the events after a time, as `aggregates.compute_aggregate` has it.

        No tile has events on both sides of that time.
        """
        found = self._found.get((aggregate.field, after_us))
        if found is None:
            find = self._find_values if aggregate.field else self._find_events
            found = self._found[aggregate.field, after_us] = find(aggregate.field, after_us)
        taken, tiles, newest = found
        if aggregate.function is AggregateFunction.COUNT:
            return AggregateValue(len(taken) + int(tiles["count"].sum()), *newest)
        return AggregateValue(self._combine(aggregate, taken, tiles), *newest)

    def _find_events(self, field: str, after_us: int) -> _Found:
        """Return the times of single events after a time, the tiles after it, and both times of the newest event."""
        tiles = self._tiles[self._tiles["event_time"] > after_us]
        start = int(np.searchsorted(self._times, after_us, side="right"))
        return self._times[start:], tiles, self._newest(len(self._times) - 1, start, tiles, "")

    def _find_values(self, field: str, after_us: int) -> _Found:
        """Return the values that single events after a time bring for a field; the tiles that have some; the times."""
        tiles = self._tiles[(self._tiles["event_time"] > after_us) & (self._tiles[f"count:{field}"] > 0)]
        start = int(np.searchsorted(self._times, after_us, side="right"))
        places, values = self._column(field)
        newest = self._newest(int(places[-1]) if len(places) else -1, start, tiles, f":{field}")
        return values[int(np.searchsorted(places, start)) :], tiles, newest

    def _combine(self, aggregate: Aggregate, taken: Any, tiles: Any) -> Value:
        function, field = aggregate.function, aggregate.field
        if function is AggregateFunction.LAST_N:
            # The values come one by one where they may be among the last.
            newest = taken[-aggregate.last_count :]
            return combine(aggregate, len(newest), newest.tolist() if isinstance(newest, np.ndarray) else newest)
        numbers = tiles[f"numbers:{field}"]
        whole = self._fields[field] is not FeatureType.DOUBLE
        if function in (AggregateFunction.SUM, AggregateFunction.MEAN):
            total = exact_total(
                taken.tolist() + (_joined(numbers[:, 4:]) if whole else numbers[:, 2:].ravel().tolist())
            )
            count = len(taken) + int(tiles[f"count:{field}"].sum())
            return sum_of(total) if function is AggregateFunction.SUM else mean_of(total, count)
        least = function is AggregateFunction.MINIMUM
        own = [(taken.min() if least else taken.max()).item()] if len(taken) else []
        column = 0 if least else 2 if whole else 1
        theirs = _joined(numbers[:, column : column + 2]) if whole else numbers[:, column].tolist()
        return combine(aggregate, len(own), own + theirs)

    def _newest(self, place: int, start: int, tiles: Any, field: str) -> tuple[int, int]:
        """Return both times of the newest event, (0, 0) without one."""
        times = list(zip(tiles[f"event_time{field}"].tolist(), tiles[f"known_at{field}"].tolist(), strict=True))
        if place >= start:
            times.append((int(self._times[place]), int(self._records["known_at"][place])))
        return max(times, default=(0, 0))

    def _column(self, field: str) -> tuple[Any, Any]:
        """Return the places of the events that bring a field, and its values."""
        if field not in self._columns:
            places = np.flatnonzero(~self._records[f"null:{field}"])
            if self._fields[field] is FeatureType.STRING:
                texts = self._texts[field]
                values: Any = [texts[place] for place in self._order[places]]
            else:
                values = self._records[f"value:{field}"][places]
            self._columns[field] = places, values
        return self._columns[field]


def _joined(halves: Any) -> list[int]:
    """Return whole numbers from their upper and lower 32 bits, or sums of these."""
    return [int(high) * 2**32 + int(low) for high, low in halves.tolist()]


def _newest_last(records: Any) -> Any:
    """Return the order by event time, known-at time and digest of the id."""
    times = records["event_time"]
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    if not np.any(ordered[1:] == ordered[:-1]):
        return order
    digests = np.ascontiguousarray(records["id"]).view(">u8").reshape(-1, ID_BYTES // 8)
    return np.lexsort((digests[:, 1], digests[:, 0], records["known_at"], times))


def _texts(records: Any, layout: AggregateLayout, joined: bytes) -> dict[str, list[str]]:
    """Return the texts of every event by field: they lie event by event, field by field."""
    names = [name for name, kind in layout.fields.items() if kind is FeatureType.STRING]
    if not joined or not names:
        # None were asked for, or all are empty.
        return {name: [""] * len(records) for name in names}
    lengths = np.stack([records[f"value:{name}"] for name in names], axis=1).ravel()
    ends = np.cumsum(lengths, dtype=np.int64)
    texts = [joined[end - length : end].decode() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    return {name: texts[index :: len(names)] for index, name in enumerate(names)}


class _Computation:
    """One feature in a read, with what never changes worked out."""

    __slots__ = ("_default", "_is_double", "_max_age_us", "_null_is_known", "aggregate", "field", "window_us")

    def __init__(self, aggregate: Aggregate, feature: CompiledFeature) -> None:
        spec = feature.spec
        assert spec.type is not None, "a definition in the catalog is sound"
        self.aggregate = aggregate
        self.field = aggregate.field
        self.window_us = window_us(aggregate)
        self._default = encode(checked(spec.default, ValueType(spec.type, spec.is_list, nullable=True)))
        # That nothing happened in a window is known, and null may say so.
        self._null_is_known = spec.nullable and spec.default is None
        self._is_double = spec.type is FeatureType.DOUBLE and not spec.is_list
        self._max_age_us = feature.max_age_us

    def add(self, column: Column, found: AggregateValue, as_of_us: int) -> None:
        """Add the value of a row. Nothing to count is counted now: its age is 0."""
        value = found.value
        missing = value is None and not self._null_is_known
        age_us = as_of_us - found.event_time_us if found.event_time_us else 0
        status = Status.PRESENT if self._max_age_us == ANY_AGE_US or age_us <= self._max_age_us else Status.STALE
        column.values.append(
            self._default if value is None else encode(float(value) if self._is_double else value)  # type: ignore[arg-type]
        )
        column.statuses.append(int(Status.MISSING if missing else status))
        column.ages_ms.append(-1 if missing else age_us // 1000)
        column.event_times_us.append(0 if missing else found.event_time_us)
        column.known_ats_us.append(0 if missing else found.known_at_us)
