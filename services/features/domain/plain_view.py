"""Views whose values are pushed or filled in batches: one Redis hash for each entity, one field for each feature.

A field holds the event time and the known-at time, 8 bytes each, little-endian microseconds, and the value's wire form.
The newest value by (event time, known-at) stays, whatever the order of arrival; of two with both times equal the
greater value stays, null being the least, lists compared element by element. So any order of the same writes, each
done once or often, leads to the same hash.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final

from services.features.domain.catalog import ANY_AGE_US, CompiledFeature, CompiledView
from services.features.domain.definitions import Feature
from services.features.domain.online_key import KeySpace
from services.features.domain.ports import (
    Column,
    Command,
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
from services.features.domain.wire import encode, tag_of

_TIMES: Final = struct.Struct("<qq")
_HEAD_BYTES: Final = 16
_NO_EXPIRY: Final = b"0"
_PRESENT, _STALE, _MISSING = int(Status.PRESENT), int(Status.STALE), int(Status.MISSING)

# KEYS[1] the hash; ARGV: both times (16 bytes), when the row expires (Unix milliseconds, 0 never), then field, value...
# Returns 1 something was written, 2 the store is newer, 3 all of it was known.
_WRITE: Final = Script.of("""
local function varint(s, i)
  local bytes = {}
  repeat
    local b = string.byte(s, i)
    i = i + 1
    bytes[#bytes + 1] = b % 128
  until b < 128
  return bytes, i
end

local function length(s, i)
  local bytes, at = varint(s, i)
  local n = 0
  for k = #bytes, 1, -1 do n = n * 128 + bytes[k] end
  return n, at
end

local function compare_bytes(a, b)
  for k = 1, math.min(#a, #b) do
    local x, y = string.byte(a, k), string.byte(b, k)
    if x ~= y then return x < y and -1 or 1 end
  end
  return #a == #b and 0 or (#a < #b and -1 or 1)
end

local function compare_whole(a, b)
  local x, y = varint(a, 2), varint(b, 2)
  if (#x == 10) ~= (#y == 10) then return #x == 10 and -1 or 1 end
  if #x ~= #y then return #x < #y and -1 or 1 end
  for k = #x, 1, -1 do
    if x[k] ~= y[k] then return x[k] < y[k] and -1 or 1 end
  end
  return 0
end

local compare

local function compare_lists(a, b)
  local _, i = length(a, 2)
  local _, j = length(b, 2)
  while i <= #a and j <= #b do
    local n, from = length(a, i + 1)
    local m, start = length(b, j + 1)
    local found = compare(string.sub(a, from, from + n - 1), string.sub(b, start, start + m - 1))
    if found ~= 0 then return found end
    i, j = from + n, start + m
  end
  if i > #a and j > #b then return 0 end
  return i > #a and -1 or 1
end

compare = function(a, b)
  local x, y = string.byte(a, 1), string.byte(b, 1)
  if x == 48 or y == 48 then return x == y and 0 or (x == 48 and -1 or 1) end
  if x ~= y then return x < y and -1 or 1 end
  if x == 9 then
    local p, q = struct.unpack('<d', a, 2), struct.unpack('<d', b, 2)
    if p == q then return compare_bytes(b, a) end
    return p < q and -1 or 1
  end
  if x == 16 then return compare_whole(a, b) end
  if x == 42 then return compare_lists(a, b) end
  if x == 26 then
    local _, i = length(a, 2)
    local _, j = length(b, 2)
    return compare_bytes(string.sub(a, i), string.sub(b, j))
  end
  return compare_bytes(a, b)
end

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local expires_ms = tonumber(ARGV[2])
if expires_ms ~= 0 and expires_ms <= now_ms then return 2 end

local event, known = struct.unpack('<i8i8', ARGV[1])
local names = {}
for k = 3, #ARGV, 2 do names[#names + 1] = ARGV[k] end
local held = redis.call('HMGET', KEYS[1], unpack(names))
local changes, older = {}, false
local written = false
for k = 1, #names do
  local value, old = ARGV[2 * k + 2], held[k]
  local new = true
  if old then
    local old_event, old_known = struct.unpack('<i8i8', old)
    local same = string.sub(old, 17) == value
    if event ~= old_event then
      new = event > old_event
      older = older or not new
    elseif same then
      new = false
      if known > old_known then
        changes[#changes + 1] = names[k]
        changes[#changes + 1] = ARGV[1] .. value
      end
    elseif known ~= old_known then
      new = known > old_known
      older = older or not new
    else
      new = compare(value, string.sub(old, 17)) > 0
      older = older or not new
    end
  end
  if new then
    written = true
    changes[#changes + 1] = names[k]
    changes[#changes + 1] = ARGV[1] .. value
  end
end
if #changes > 0 then
  redis.call('HSET', KEYS[1], unpack(changes))
end
if written then
  if expires_ms == 0 then
    redis.call('PERSIST', KEYS[1])
  else
    local left_ms = redis.call('PTTL', KEYS[1])
    if left_ms < 0 or now_ms + left_ms < expires_ms then redis.call('PEXPIREAT', KEYS[1], ARGV[2]) end
  end
  return 1
end
return older and 2 or 3
""")


def input_of(feature: Feature) -> InputColumn:
    """Return what a row may carry for a feature."""
    assert feature.type is not None, "a definition in the catalog is sound"
    return InputColumn(feature.name, ValueType(feature.type, feature.is_list, feature.nullable))


def default_of(feature: Feature) -> bytes:
    """Return the wire form of what stands in for a value that is missing."""
    assert feature.type is not None, "a definition in the catalog is sound"
    return encode(checked(feature.default, ValueType(feature.type, feature.is_list, nullable=True)))


class _Reading:
    """One feature in a read, with what never changes worked out."""

    __slots__ = ("default", "max_age_us", "tag")

    def __init__(self, feature: CompiledFeature) -> None:
        spec = feature.spec
        assert spec.type is not None, "a definition in the catalog is sound"
        self.tag = tag_of(spec.type, is_list=spec.is_list)
        self.default = default_of(spec)
        self.max_age_us = feature.max_age_us

    def column(self, found: Sequence[bytes | None], as_of_us: int) -> Column:
        """Return the column for what the hashes hold: nothing, or times and value."""
        values: list[bytes] = []
        statuses: list[int] = []
        ages_ms: list[int] = []
        event_times_us: list[int] = []
        known_ats_us: list[int] = []
        tag, default = self.tag, self.default
        oldest_us = 0 if self.max_age_us == ANY_AGE_US else as_of_us - self.max_age_us
        times = _TIMES.unpack_from
        for held in found:
            if held is not None:
                event_us, known_us = times(held)
                # A value of another type is from before the feature was redefined.
                if event_us <= as_of_us and held[_HEAD_BYTES] in (tag, 0x30):
                    values.append(held[_HEAD_BYTES:])
                    statuses.append(_STALE if event_us < oldest_us else _PRESENT)
                    ages_ms.append((as_of_us - event_us) // 1000)
                    event_times_us.append(event_us)
                    known_ats_us.append(known_us)
                    continue
            values.append(default)
            statuses.append(_MISSING)
            ages_ms.append(-1)
            event_times_us.append(0)
            known_ats_us.append(0)
        return Column(values, statuses, ages_ms, event_times_us, known_ats_us)


class PlainReader:
    """See `ports.ViewReader`: one HMGET for each row."""

    def __init__(self, view: CompiledView, features: Sequence[CompiledFeature]) -> None:
        self.features = tuple(feature.spec.name for feature in features)
        self.entities = tuple(entity.id for entity in view.entities)
        self._keys = KeySpace(view)
        self._names = tuple(name.encode() for name in self.features)
        self._readings = tuple(map(_Reading, features))

    def ask(self, rows: Sequence[ReadRow], as_of_us: int) -> Sequence[Command]:
        """Return one HMGET for each row."""
        names, key_of = self._names, self._keys.of_row
        return [(b"HMGET", key_of(row.keys), *names) for row in rows]

    def answer(self, rows: Sequence[ReadRow], replies: Sequence[Reply], as_of_us: int) -> Sequence[Column]:
        """Return the columns; what happened after the as-of time is MISSING, for the store holds the newest only."""
        hashes = zip(*replies, strict=True) if replies else ((),) * len(self._readings)
        return [reading.column(found, as_of_us) for reading, found in zip(self._readings, hashes, strict=True)]


class PlainWriter:
    """See `ports.ViewWriter`: one script call for each row."""

    needs_event_id = False

    def __init__(self, view: CompiledView) -> None:
        self.view = view
        self.inputs: Sequence[InputColumn] = tuple(input_of(feature.spec) for feature in view.features.values())
        self._keys = KeySpace(view)
        self._names: Mapping[str, bytes] = {column.name: column.name.encode() for column in self.inputs}

    def write(self, row: Row, now_us: int) -> ScriptCall | Outcome:
        """Return the call of the script that lets the newest value of each feature stay."""
        arguments = [_TIMES.pack(row.event_time_us, row.known_at_us), self._expiry(row)]
        for name, value in row.values.items():
            arguments += (self._names[name], encode(value))
        return ScriptCall(_WRITE, (self._keys.of(row.keys),), tuple(arguments))

    def outcome(self, reply: Reply) -> Outcome:
        """Return the outcome that the script gave."""
        return Outcome(reply)

    def _expiry(self, row: Row) -> bytes:
        if self.view.retention_us is None:
            return _NO_EXPIRY
        return b"%d" % max(1, -(-(row.event_time_us + self.view.retention_us) // 1000))
