"""Views whose features are aggregates of pushed events: one Redis hash for each entity, which keeps the events.

The hash holds events as records of one size, joined in slots of time, so that a read gets few large values and decodes
them as arrays. Slots with many events have a tile too: count, sums, extremes and newest times of all of them, from
which a read takes what lies wholly within its windows. Sums in tiles are exact (see `aggregates.exact_parts`), and a
tile is only taken when it covers its slot and was known by the read's time, so tiles never change an answer.

- `s<slot>`: records of the events with event time in the slot, in the order in which they were taken; `t<slot>`: their
  texts, one after the other; `p<slot>`: the tile.
- `i<byte>`: digests, less their first byte, of the ids of all events held: what makes an event count once.
- `d`: numbers of the slots held, 4 bytes each; `n`: the newest time seen.

Events older than the longest window and the allowed lateness together are dropped, a slot at a time, and not taken
any more. So the answer for any time not further back than the allowed lateness from the newest event is exact.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np

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
from services.features.domain.definitions import Aggregate, AggregateFunction, AggregateSource, FeatureType, Value
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
# are held, width of a slot (microseconds), then of tiles: digest, format, events from which on there is one, and for
# each field its type with the places of its null mark and value in a record.
# Returns 1 taken, 2 too old to be held, 3 the id is known.
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

-- Shewchuk's grow-expansion: places 3 to 6 of a field hold numbers whose true sum is that of all values.
local function add_exactly(tile, base, x)
  local parts, n = {}, 0
  for i = 3, 6 do
    local y = tile[base + i]
    if y ~= 0 then
      if math.abs(x) < math.abs(y) then x, y = y, x end
      local sum = x + y
      local error = y - (sum - x)
      if error ~= 0 then n = n + 1 parts[n] = error end
      x = sum
    end
  end
  parts[n + 1] = x
  if n > 3 or x - x ~= 0 then tile[5] = 0 end
  for i = 1, 4 do tile[base + 2 + i] = parts[i] or 0 end
end

local function add_number(tile, base, at, from)
  local x = struct.unpack('<d', from, at)
  local one = tile[base - 2] == 1
  if one or x < tile[base + 1] then tile[base + 1] = x end
  if one or x > tile[base + 2] then tile[base + 2] = x end
  add_exactly(tile, base, x)
end

-- A whole number is two: the upper 32 bits with the sign, and the lower 32.
local function add_whole(tile, base, high, low)
  local one = tile[base - 2] == 1
  if one or high < tile[base + 1] or (high == tile[base + 1] and low < tile[base + 2]) then
    tile[base + 1], tile[base + 2] = high, low
  end
  if one or high > tile[base + 3] or (high == tile[base + 3] and low > tile[base + 4]) then
    tile[base + 3], tile[base + 4] = high, low
  end
  tile[base + 5], tile[base + 6] = tile[base + 5] + high, tile[base + 6] + low
end

local function newer(tile, base, event, known)
  if event > tile[base] or (event == tile[base] and known > tile[base + 1]) then
    tile[base], tile[base + 1] = event, known
  end
end

-- A tile: count, newest event and its known-at time, latest known-at time, whether it is good; for each field how many
-- values, newest event and known-at time, six numbers.
local function add(tile, from)
  local event, known = struct.unpack('<i8i8', from, 17)
  tile[1] = tile[1] + 1
  newer(tile, 2, event, known)
  if known > tile[4] then tile[4] = known end
  local base = 5
  for i = 12, #ARGV, 3 do
    if string.byte(from, ARGV[i + 1]) == 0 then
      tile[base + 1] = tile[base + 1] + 1
      newer(tile, base + 2, event, known)
      local kind, at = ARGV[i], tonumber(ARGV[i + 2])
      if kind == 'd' then
        add_number(tile, base + 3, at, from)
      elseif kind == 'q' then
        local low, high = struct.unpack('<I4i4', from, at)
        add_whole(tile, base + 3, high, low)
      elseif kind == '?' then
        add_whole(tile, base + 3, 0, string.byte(from, at))
      end
    end
    base = base + 9
  end
end

local old = held[4] or ''
local count = #old / #record + 1
if count >= tonumber(ARGV[11]) then
  local packed = redis.call('HGET', key, 'p' .. ARGV[2])
  local tile
  if packed and string.sub(packed, 1, 8) == ARGV[9] then
    tile = {struct.unpack(ARGV[10], packed, 9)}
    tile[#tile] = nil
  end
  if not tile or tile[1] ~= count - 1 then
    tile = {0, 0, 0, 0, 1}
    for i = 6, 5 + (#ARGV - 11) * 3 do tile[i] = 0 end
    for at = 1, #old, #record do add(tile, string.sub(old, at, at + #record - 1)) end
  end
  add(tile, record)
  redis.call('HSET', key, 'p' .. ARGV[2], ARGV[9] .. struct.pack(ARGV[10], unpack(tile)))
end
redis.call('HSET', key, bucket, ids .. rest, 'n', string.format('%.0f', newest), 's' .. ARGV[2], old .. record)
if ARGV[4] ~= '' then
  redis.call('HSET', key, 't' .. ARGV[2], (redis.call('HGET', key, 't' .. ARGV[2]) or '') .. ARGV[4])
end
if held[4] then return 1 end

-- A new slot: old ones go, a few at a time so that nobody waits long, and the hash lives on.
local kept, dropped = {}, 0
local slots = held[3] or ''
for at = 1, #slots, 4 do
  local gone = struct.unpack('<I4', slots, at)
  if gone < first and dropped < 4 then
    dropped = dropped + 1
    local records = redis.call('HGET', key, 's' .. gone)
    for from = 1, #records, #record do forget(string.sub(records, from, from + #id - 1)) end
    redis.call('HDEL', key, 's' .. gone, 't' .. gone, 'p' .. gone)
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

# KEYS[1] the hash. ARGV: first and last slot wanted, "1" if texts are wanted, the as-of time, size of a record, digest
# of tiles, how many values of each field in the list are wanted one by one, that list (places of counts in a tile,
# joined by commas), then the slots that windows cut.
# Returns the records and the texts of some slots and the tiles of the others, each joined.
_READ: Final = Script.of("""
local key = KEYS[1]
local packed = redis.call('HGET', key, 'd')
if not packed then return {} end
local first, last, as_of = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local slots = {}
for at = 1, #packed, 4 do
  local slot = struct.unpack('<I4', packed, at)
  if slot >= first and slot <= last then slots[#slots + 1] = slot end
end
if #slots == 0 then return {} end
table.sort(slots, function(a, b) return a > b end)
local cut = {}
for i = 9, #ARGV do cut[tonumber(ARGV[i])] = true end
local names = {}
for i = 1, #slots do names[i] = 'p' .. slots[i] end
local tiles = redis.call('HMGET', key, unpack(names))
local wanted, size = tonumber(ARGV[7]), tonumber(ARGV[5])
local raw, texts, taken = {}, {}, {}
for i = 1, #slots do
  local slot, tile = slots[i], tiles[i]
  local good = tile and not cut[slot] and string.sub(tile, 1, 8) == ARGV[6]
  if good then
    local count, _, _, known, exact = struct.unpack('<I4i8i8i8B', tile, 9)
    good = exact == 1 and known <= as_of and redis.call('HSTRLEN', key, 's' .. slot) == count * size
  end
  if good and wanted > 0 then
    local least = math.huge
    for at in string.gmatch(ARGV[8], '%d+') do
      least = math.min(least, (struct.unpack('<I4', tile, at)))
    end
    wanted = wanted - least
    good = false
  end
  if good then
    taken[#taken + 1] = string.sub(tile, 9)
  else
    raw[#raw + 1] = 's' .. slot
    texts[#texts + 1] = 't' .. slot
  end
end
local records = #raw > 0 and table.concat(redis.call('HMGET', key, unpack(raw))) or ''
local found = {}
if ARGV[3] == '1' then
  for _, text in ipairs(texts) do found[#found + 1] = redis.call('HGET', key, text) or '' end
end
return {records, table.concat(found), table.concat(taken)}
""")
# A tile of a usual event, with two or three fields, takes less room than this many of them.
_LEAST_EVENTS_OF_A_TILE: Final = 16


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
        used = {each.field for each in source.aggregates if each.field}
        self.tile_fields = [name for name in self.fields if name in used]
        self.tile_dtype = np.dtype(_TILE_HEAD + [part for name in self.tile_fields for part in _tile_parts(name)])
        self._suffix = b"~" + hashlib.sha256(shape.encode()).hexdigest()[:8].encode()
        self.tile_digest = hashlib.sha256(f"{shape} {self.tile_fields}".encode()).hexdigest()[:8].encode()
        self._keys = KeySpace(view)

    @property
    def tile_arguments(self) -> tuple[bytes, ...]:
        """What the script that writes must know of tiles."""
        form = b"<I4i8i8i8B" + b"I4i8i8dddddd" * len(self.tile_fields)
        fields: list[bytes] = []
        for name in self.tile_fields:
            kind, places = _STRUCT[self.fields[name]], self.dtype.fields
            assert places is not None
            null_at, value_at = places[f"null:{name}"][1], places[f"value:{name}"][1]
            fields += (kind.encode(), b"%d" % (null_at + 1), b"%d" % (value_at + 1))
        return (self.tile_digest, form, b"%d" % _LEAST_EVENTS_OF_A_TILE, *fields)

    def count_place(self, field: str) -> int:
        """Return where a kept tile has the number of values of a field, counted from 1."""
        places = self.tile_dtype.fields
        assert places is not None
        return len(self.tile_digest) + int(places[f"count:{field}"][1]) + 1

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

_TILE_HEAD: Final[list[Any]] = [
    ("count", "<u4"),
    ("event_time", "<i8"),
    ("known_at", "<i8"),
    ("latest_known_at", "<i8"),
    ("good", "u1"),
]


def _tile_parts(field: str) -> list[Any]:
    """Six numbers: least, greatest and four that add up; each is two, upper and lower 32 bits, for whole numbers."""
    return [
        (f"count:{field}", "<u4"),
        (f"event_time:{field}", "<i8"),
        (f"known_at:{field}", "<i8"),
        (f"numbers:{field}", "<f8", (6,)),
    ]


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
        last = [each.aggregate for each in self._computations if each.aggregate.function is AggregateFunction.LAST_N]
        texts = any(self._layout.fields[each.field] is FeatureType.STRING for each in last)
        self._ask = (b"1" if texts else b"0",)
        self._ask_tiles = (
            b"%d" % self._layout.dtype.itemsize,
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
        return [ScriptCall(_READ, (self._layout.key(keys),), arguments) for keys in self._places(rows)]

    def answer(self, rows: Sequence[ReadRow], replies: Sequence[Reply], as_of_us: int) -> Sequence[Column]:
        """Return the columns as of a time; an entity without events has counts and sums of 0."""
        columns = [Column([], [], [], [], []) for _ in self._computations]
        places = self._places(rows)
        found = {keys: self._compute(reply, as_of_us) for keys, reply in zip(places, replies, strict=True)}
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

    def __init__(self, layout: _Layout, reply: Reply, after_us: int, as_of_us: int) -> None:
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
