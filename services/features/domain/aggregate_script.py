"""The scripts that keep and read the events of an entity; `aggregate_layout` says what lies where."""

from typing import Final

from services.features.domain.ports import Script

# KEYS[1] the hash. ARGV: digest of the id, slot, record, texts, event time, the earlier of both times, how long events
# are held, width of a slot (microseconds), then of tiles: digest, format, events from which on there is one, and for
# each field its type with the places of its null mark and value in a record.
# Returns 1 taken, 2 too old to be held, 3 the id is known.
WRITE: Final = Script.of("""
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

-- Shewchuk's compress: as few numbers as hold the same true sum, the least first.
local function compress(parts)
  local top, packed = parts[#parts], {}
  for i = #parts - 1, 1, -1 do
    local sum = top + parts[i]
    local error = parts[i] - (sum - top)
    if error ~= 0 then
      packed[#packed + 1] = sum
      sum = error
    end
    top = sum
  end
  local few = {}
  for i = #packed, 1, -1 do
    local sum = packed[i] + top
    local error = top - (sum - packed[i])
    if error ~= 0 then few[#few + 1] = error end
    top = sum
  end
  few[#few + 1] = top
  return few
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
  if n > 3 then parts = compress(parts) end
  if #parts > 4 or x - x ~= 0 then tile[5] = 0 end
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
  if not tile then
    tile = {0, 0, 0, 0, 1}
    for i = 6, 5 + (#ARGV - 11) * 3 do tile[i] = 0 end
    for at = 1, #old, #record do add(tile, string.sub(old, at, at + #record - 1)) end
  end
  add(tile, record)
  redis.call('HSET', key, 'p' .. ARGV[2], ARGV[9] .. struct.pack(ARGV[10], unpack(tile)))
elseif count > 1 then
  -- A process of another release may have made one; a tile that is there always covers its slot.
  redis.call('HDEL', key, 'p' .. ARGV[2])
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

# KEYS[1] the hash. ARGV: first and last slot wanted, "1" if texts are wanted, the as-of time, digest of tiles, how many
# values of each field in the list are wanted one by one, that list (places of counts in a tile, joined by commas), then
# the slots that windows cut.
# Returns the records and the texts of some slots and the tiles of the others, each joined.
READ: Final = Script.of("""
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
for i = 8, #ARGV do cut[tonumber(ARGV[i])] = true end
local names = {}
for i = 1, #slots do names[i] = 'p' .. slots[i] end
local tiles = redis.call('HMGET', key, unpack(names))
local wanted = tonumber(ARGV[6])
local raw, texts, taken = {}, {}, {}
for i = 1, #slots do
  local slot, tile = slots[i], tiles[i]
  local good = tile and not cut[slot] and string.sub(tile, 1, 8) == ARGV[5]
  if good then
    local known, exact = struct.unpack('<i8B', tile, 29)
    good = exact == 1 and known <= as_of
  end
  if good and wanted > 0 then
    local least = math.huge
    for at in string.gmatch(ARGV[7], '%d+') do
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
