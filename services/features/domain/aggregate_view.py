"""Views whose features are aggregates of pushed events: one Redis hash for each entity, which keeps the events.

The hash holds events as records of one size, joined in slots of time, so that a read gets few large values and decodes
them as arrays. Its fields:

- `s<slot>`: records of the events with event time in the slot, in the order in which they were taken; `t<slot>`: their
  texts, one after the other.
- `i<byte>`: digests, less their first byte, of the ids of all events held: what makes an event count once.
- `d`: numbers of the slots held, 4 bytes each; `n`: the newest time seen.

Events older than the longest window and the allowed lateness together are dropped, a slot at a time, and not taken
any more. So the answer for any time not further back than the allowed lateness from the newest event is exact.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from services.features.domain.aggregates import (
    ID_BYTES,
    AggregateValue,
    combine,
    event_digest,
    is_late,
    window_us,
)
from services.features.domain.catalog import ANY_AGE_US, CompiledFeature, CompiledView
from services.features.domain.definitions import Aggregate, AggregateSource, FeatureType, Scalar
from services.features.domain.online_key import KeySpace
from services.features.domain.ports import (
    Column,
    InputColumn,
    Outcome,
    ReadRow,
    Reply,
    Row,
    Script,
    ScriptCall,
    Status,
    ValueType,
)
from services.features.domain.value_check import checked
from services.features.domain.wire import encode

_SECOND_US: Final = 1_000_000
_CLOCK_SLACK_US: Final = 60 * _SECOND_US
# Few enough for one HMGET, many enough that a slot more or less does not matter.
_MOST_SLOTS: Final = 128
_SLOT_WIDTHS_S: Final = (1, 5, 15, 60, 300, 900, 3_600, 4 * 3_600, 43_200, 86_400, 4 * 86_400)

# KEYS[1] the hash. ARGV: digest of the id, slot, record, texts, event time, the earlier of both times, how long events
# are held, width of a slot: microseconds. Returns 1 taken, 2 too old to be held, 3 the id is known.
_WRITE: Final = Script.of("""
local key, id, record = KEYS[1], ARGV[1], ARGV[3]
local slot, keep, width = tonumber(ARGV[2]), tonumber(ARGV[7]), tonumber(ARGV[8])
local bucket, rest = 'i' .. string.sub(id, 1, 1), string.sub(id, 2)
local held = redis.call('HMGET', key, bucket, 'n', 'd', 's' .. ARGV[2])
local ids, newest = held[1] or '', math.max(tonumber(held[2] or 0), tonumber(ARGV[6]))
if string.find(ids, rest, 1, true) then return 3 end
local first = math.floor((newest - keep) / width)
if slot < first then return 2 end

local function forget(old)
  local field, tail = 'i' .. string.sub(old, 1, 1), string.sub(old, 2)
  local known = redis.call('HGET', key, field)
  local at = known and string.find(known, tail, 1, true)
  if not at then return end
  known = string.sub(known, 1, at - 1) .. string.sub(known, at + #tail)
  if known == '' then redis.call('HDEL', key, field) else redis.call('HSET', key, field, known) end
end

redis.call('HSET', key, bucket, ids .. rest, 'n', string.format('%.0f', newest),
  's' .. ARGV[2], (held[4] or '') .. record)
if ARGV[4] ~= '' then
  redis.call('HSET', key, 't' .. ARGV[2], (redis.call('HGET', key, 't' .. ARGV[2]) or '') .. ARGV[4])
end
if held[4] then return 1 end

-- A new slot: old ones go, a few at a time so that nobody waits long, and the hash lives on.
local kept, dropped = {}, 0
local slots = held[3] or ''
for at = 1, #slots, 4 do
  local old = struct.unpack('<I4', slots, at)
  if old < first and dropped < 4 then
    dropped = dropped + 1
    local records = redis.call('HGET', key, 's' .. old)
    for from = 1, #records, #record do forget(string.sub(records, from, from + #id - 1)) end
    redis.call('HDEL', key, 's' .. old, 't' .. old)
  else
    kept[#kept + 1] = string.sub(slots, at, at + 3)
  end
end
kept[#kept + 1] = struct.pack('<I4', slot)
redis.call('HSET', key, 'd', table.concat(kept))
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local expires_ms = math.max(now_ms, math.ceil(tonumber(ARGV[5]) / 1000)) + math.ceil((keep + width) / 1000)
local left_ms = redis.call('PTTL', key)
if left_ms < 0 or now_ms + left_ms < expires_ms then
  redis.call('PEXPIREAT', key, string.format('%.0f', expires_ms))
end
return 1
""")

# KEYS[1] the hash. ARGV: first and last slot wanted, "1" if texts are wanted. Returns records and texts, each joined.
_READ: Final = Script.of("""
local slots = redis.call('HGET', KEYS[1], 'd')
if not slots then return {} end
local first, last = tonumber(ARGV[1]), tonumber(ARGV[2])
local records, texts = {}, {}
for at = 1, #slots, 4 do
  local slot = struct.unpack('<I4', slots, at)
  if slot >= first and slot <= last then
    records[#records + 1] = 's' .. slot
    texts[#texts + 1] = 't' .. slot
  end
end
if #records == 0 then return {} end
records = table.concat(redis.call('HMGET', KEYS[1], unpack(records)))
if ARGV[3] ~= '1' then return {records} end
local found = {}
for _, text in ipairs(texts) do found[#found + 1] = redis.call('HGET', KEYS[1], text) or '' end
return {records, table.concat(found)}
""")


class _Layout:
    """How the events of a view are kept; all of its fields are, so an aggregate more needs no other layout.

    Two layouts never share a hash: when the fields, or the time for which events are held, change so much that the
    width of a slot does, the view starts with no events.
    """

    def __init__(self, view: CompiledView) -> None:
        source = view.definition.source
        assert isinstance(source, AggregateSource), "only aggregate views come here"
        self.fields: dict[str, FeatureType] = {
            field.name: field.type for field in sorted(source.fields, key=lambda each: each.name) if field.type
        }
        self.aggregates = {aggregate.feature: aggregate for aggregate in source.aggregates}
        longest_us = max(map(window_us, source.aggregates))
        self.keep_us = longest_us + view.allowed_lateness_us + _CLOCK_SLACK_US
        self.width_us = _slot_width_us(self.keep_us)
        self.dtype = np.dtype(
            [
                ("id", "V16"),
                ("event_time", "<i8"),
                ("known_at", "<i8"),
                *((f"null:{name}", "?") for name in self.fields),
                *((f"value:{name}", _NUMPY[kind]) for name, kind in self.fields.items()),
            ]
        )
        codes = "".join(_STRUCT[kind] for kind in self.fields.values())
        self._record = struct.Struct(f"<{ID_BYTES}sqq{'?' * len(codes)}{codes}")
        shape = json.dumps([[name, kind.value] for name, kind in self.fields.items()] + [self.width_us])
        self._suffix = b"~" + hashlib.sha256(shape.encode()).hexdigest()[:8].encode()
        self._keys = KeySpace(view)

    def key(self, keys: Sequence[str]) -> bytes:
        """Return the Redis key of an entity: of fixed length at its end, so no two entities share one."""
        return self._keys.of(keys) + self._suffix

    def record(self, row: Row, digest: bytes) -> tuple[bytes, bytes]:
        """Return an event as it is kept: the record, and its texts."""
        values = [row.values.get(name) for name in self.fields]
        texts: list[bytes] = []
        stored: list[Any] = []
        for value, kind in zip(values, self.fields.values(), strict=True):
            if kind is FeatureType.STRING:
                text = str(value).encode() if value is not None else b""
                texts.append(text)
                stored.append(len(text))
            else:
                stored.append(0 if value is None else value)
        nulls = [value is None for value in values]
        return self._record.pack(digest, row.event_time_us, row.known_at_us, *nulls, *stored), b"".join(texts)


_NUMPY: Final = {FeatureType.DOUBLE: "<f8", FeatureType.INT64: "<i8", FeatureType.BOOL: "?", FeatureType.STRING: "<u4"}
_STRUCT: Final = {FeatureType.DOUBLE: "d", FeatureType.INT64: "q", FeatureType.BOOL: "?", FeatureType.STRING: "I"}


def _slot_width_us(keep_us: int) -> int:
    for width_s in _SLOT_WIDTHS_S:
        if keep_us <= width_s * _SECOND_US * _MOST_SLOTS:
            return width_s * _SECOND_US
    return _SLOT_WIDTHS_S[-1] * _SECOND_US


class AggregateWriter:
    """See `ports.ViewWriter`: one script call for each event."""

    needs_event_id = True

    def __init__(self, view: CompiledView) -> None:
        self.view = view
        self._layout = _Layout(view)
        self.inputs: Sequence[InputColumn] = tuple(
            InputColumn(name, ValueType(kind, nullable=True)) for name, kind in self._layout.fields.items()
        )
        self._limits = (b"%d" % self._layout.keep_us, b"%d" % self._layout.width_us)

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
        return ScriptCall(_WRITE, (self._layout.key(row.keys),), arguments)

    def outcome(self, reply: Reply) -> Outcome:
        """Return the outcome that the script gave."""
        return Outcome(reply)


class AggregateReader:
    """See `ports.ViewReader`: one script call for each entity, however many rows name it."""

    def __init__(self, view: CompiledView, features: Sequence[CompiledFeature]) -> None:
        self.features = tuple(feature.spec.name for feature in features)
        self.entities = tuple(entity.id for entity in view.entities)
        self._layout = _Layout(view)
        self._computations = tuple(_Computation(self._layout.aggregates[each.spec.name], each) for each in features)
        self._longest_us = max(each.window_us for each in self._computations)
        self._wants_texts = any(
            self._layout.fields.get(each.field) is FeatureType.STRING for each in self._computations
        )

    def ask(self, rows: Sequence[ReadRow], as_of_us: int) -> Sequence[ScriptCall]:
        """Return one script call for each different entity."""
        width_us = self._layout.width_us
        slots = (b"%d" % ((as_of_us - self._longest_us) // width_us), b"%d" % (as_of_us // width_us))
        arguments = (*slots, b"1" if self._wants_texts else b"0")
        return [ScriptCall(_READ, (self._layout.key(keys),), arguments) for keys in self._places(rows)]

    def answer(self, rows: Sequence[ReadRow], replies: Sequence[Reply], as_of_us: int) -> Sequence[Column]:
        """Return the columns as of a time; an entity without events has counts and sums of 0."""
        columns = [Column([], [], [], [], []) for _ in self._computations]
        places = self._places(rows)
        found = {keys: self._compute(reply, as_of_us) for keys, reply in zip(places, replies, strict=True)}
        for row in rows:
            keys = self._keys(row)
            values = found[keys] if keys else [_NOTHING] * len(columns)
            for column, computation, value in zip(columns, self._computations, values, strict=True):
                computation.add(column, value, as_of_us)
        return columns

    def _keys(self, row: ReadRow) -> tuple[str, ...] | None:
        """Return the keys of a row in order, or None if it names no entity of the view."""
        keys = tuple([row.keys.get(entity, "") for entity in self.entities])
        return keys if all(keys) else None

    def _places(self, rows: Sequence[ReadRow]) -> Sequence[tuple[str, ...]]:
        return list(dict.fromkeys(keys for row in rows if (keys := self._keys(row))))

    def _compute(self, reply: Reply, as_of_us: int) -> list[AggregateValue]:
        events = _Events(self._layout, reply, as_of_us - self._longest_us, as_of_us)
        return [events.aggregate(each.aggregate, as_of_us - each.window_us) for each in self._computations]


_NOTHING: Final = AggregateValue(None)


class _Events:
    """The events of one entity that count as of a time, the oldest first, as arrays."""

    def __init__(self, layout: _Layout, reply: Reply, after_us: int, as_of_us: int) -> None:
        self._fields = layout.fields
        records = np.frombuffer(reply[0] if reply else b"", layout.dtype)
        self._texts = _texts(records, layout, reply[1] if len(reply) > 1 else b"")
        times = records["event_time"]
        counts = np.flatnonzero((times > after_us) & (times <= as_of_us) & (records["known_at"] <= as_of_us))
        self._order = counts[_newest_last(records[counts])]
        self._records = records[self._order]
        self._times: Any = np.ascontiguousarray(self._records["event_time"])
        self._columns: dict[str, tuple[Any, Any]] = {}

    def aggregate(self, aggregate: Aggregate, after_us: int) -> AggregateValue:
        """Return the aggregate of the events after a time, as `aggregates.compute_aggregate` has it."""
        start = int(np.searchsorted(self._times, after_us, side="right"))
        if not aggregate.field:
            count = len(self._times) - start
            return self._value(combine(aggregate, count, ()), len(self._times) - 1 if count else -1)
        places, values = self._column(aggregate.field)
        start = int(np.searchsorted(places, start))
        taken: list[Scalar] = values[start:].tolist() if isinstance(values, np.ndarray) else values[start:]
        return self._value(combine(aggregate, len(taken), taken), int(places[-1]) if taken else -1)

    def _value(self, value: Any, newest: int) -> AggregateValue:
        if newest < 0:
            return AggregateValue(value)
        record = self._records[newest]
        return AggregateValue(value, int(record["event_time"]), int(record["known_at"]))

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


def _newest_last(records: Any) -> Any:
    """Return the order by event time, known-at time and digest of the id."""
    times = records["event_time"]
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    if not np.any(ordered[1:] == ordered[:-1]):
        return order
    digests = np.ascontiguousarray(records["id"]).view(">u8").reshape(-1, ID_BYTES // 8)
    return np.lexsort((digests[:, 1], digests[:, 0], records["known_at"], times))


def _texts(records: Any, layout: _Layout, joined: bytes) -> dict[str, list[str]]:
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

    __slots__ = ("_default", "_is_double", "_max_age_us", "aggregate", "field", "window_us")

    def __init__(self, aggregate: Aggregate, feature: CompiledFeature) -> None:
        spec = feature.spec
        assert spec.type is not None, "a definition in the catalog is sound"
        self.aggregate = aggregate
        self.field = aggregate.field
        self.window_us = window_us(aggregate)
        self._default = encode(checked(spec.default, ValueType(spec.type, spec.is_list, nullable=True)))
        self._is_double = spec.type is FeatureType.DOUBLE and not spec.is_list
        self._max_age_us = feature.max_age_us

    def add(self, column: Column, found: AggregateValue, as_of_us: int) -> None:
        """Add the value of a row. Nothing to count is counted now: its age is 0."""
        value = found.value
        missing = value is None
        age_us = as_of_us - found.event_time_us if found.event_time_us else 0
        status = Status.PRESENT if self._max_age_us == ANY_AGE_US or age_us <= self._max_age_us else Status.STALE
        column.values.append(
            self._default if value is None else encode(float(value) if self._is_double else value)  # type: ignore[arg-type]
        )
        column.statuses.append(int(Status.MISSING if missing else status))
        column.ages_ms.append(-1 if missing else age_us // 1000)
        column.event_times_us.append(0 if missing else found.event_time_us)
        column.known_ats_us.append(0 if missing else found.known_at_us)
