"""What the Redis server does in one piece, in Lua: nothing comes between the parts of a script.

A script that begins with ``#!lua`` alone is refused by a server whose memory is full; with ``allow-oom`` it runs. A
script without that line would be refused at its first command that needs memory only if nothing was written before, and
else go beyond the limit.
"""

PAYLOAD = "payload"
"""The one field of an entry."""

_NEEDS_ROOM, _WITHOUT_ROOM = "#!lua\n", "#!lua flags=allow-oom\n"

_TRIM = """
local function is_before(one, other)
    local ms, sequence = one:match('^(%d+)-(%d+)$')
    local other_ms, other_sequence = other:match('^(%d+)-(%d+)$')
    if ms ~= other_ms then
        return tonumber(ms) < tonumber(other_ms)
    end
    return tonumber(sequence) < tonumber(other_sequence)
end

local function after(id)
    local ms, sequence = id:match('^(%d+)-(%d+)$')
    return ms .. '-' .. string.format('%.0f', tonumber(sequence) + 1)
end

local function groups_of(stream)
    local groups = {}
    if redis.call('EXISTS', stream) == 1 then
        for _, row in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
            local group = {}
            for at = 1, #row, 2 do
                group[row[at]] = row[at + 1]
            end
            groups[group['name']] = group
        end
    end
    return groups
end

-- Let go of what every group has handled. Returns how many entries went, and name and lag of each group removed.
local function trim(stream, most_lag, required)
    local groups, is_required, removed, keep_from = groups_of(stream), {}, {}, nil
    for _, name in ipairs(required) do
        if not groups[name] then
            return 0, removed
        end
        is_required[name] = true
    end
    for name, group in pairs(groups) do
        local lag = group['lag'] and group['lag'] + group['pending']
        if not is_required[name] and lag and lag > most_lag then
            redis.call('XGROUP', 'DESTROY', stream, name)
            table.insert(removed, name)
            table.insert(removed, lag)
        else
            local needs = after(group['last-delivered-id'])
            local oldest = redis.call('XPENDING', stream, name)[2]
            if oldest and is_before(oldest, needs) then
                needs = oldest
            end
            if not keep_from or is_before(needs, keep_from) then
                keep_from = needs
            end
        end
    end
    return keep_from and redis.call('XTRIM', stream, 'MINID', '=', keep_from) or 0, removed
end
"""

TRIM = f"""{_WITHOUT_ROOM}{_TRIM}
-- KEYS: stream. ARGV: most lag, required groups.
local gone, removed = trim(KEYS[1], tonumber(ARGV[1]), {{unpack(ARGV, 2)}})
return {{gone, removed}}
"""
"""Returns how many entries went, and name and lag of each group that was removed."""

SEND = f"""{_NEEDS_ROOM}{_TRIM}
-- KEYS: stream. ARGV: payload, capacity, most lag, required groups.
local _, removed = trim(KEYS[1], tonumber(ARGV[3]), {{unpack(ARGV, 4)}})
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) then
    return {{false, removed}}
end
return {{redis.call('XADD', KEYS[1], '*', '{PAYLOAD}', ARGV[1]), removed}}
"""
"""Returns the entry's id, nil where the stream is full, and the groups that were removed."""

_BURY = f"""
local function is_ours(fields)
    return #fields == 2 and fields[1] == '{PAYLOAD}'
end

-- Put an entry to the dead letters. Returns whether there was room.
local function bury(stream, letters, group, id, fields, count, room)
    if redis.call('XLEN', letters) >= room then
        return false
    end
    redis.call('XADD', letters, '*', 'entry', id, 'count', count, unpack(fields))
    redis.call('XACK', stream, group, id)
    return true
end
"""

CLAIM = f"""{_WITHOUT_ROOM}{_BURY}
-- KEYS: stream, dead letters. ARGV: group, consumer, least idle in ms, number, most deliveries, room for dead letters.
-- A dead letter needs memory even where there is none: it is one that the stream gives back.
local found, buried, unburied, missing, cursor = {{}}, {{}}, {{}}, {{}}, '0-0'
repeat
    local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], cursor, 'COUNT', ARGV[4])
    cursor = claimed[1]
    for _, entry in ipairs(claimed[2]) do
        local id, fields = entry[1], entry[2]
        local count = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1][4]
        if count <= tonumber(ARGV[5]) and is_ours(fields) then
            table.insert(found, {{id, fields[2], count}})
        else
            local times = math.min(count - 1, tonumber(ARGV[5]))  -- looking for room is no delivery
            local room = bury(KEYS[1], KEYS[2], ARGV[1], id, fields, times, tonumber(ARGV[6]))
            table.insert(room and buried or unburied, {{id, is_ours(fields) and times or 0}})
        end
    end
    for _, id in ipairs(claimed[3]) do
        table.insert(missing, id)
    end
until cursor == '0-0' or #found > 0
return {{found, buried, unburied, missing}}
"""
"""Returns id, payload and deliveries of each entry claimed; id and deliveries of those that are dead letters now, and
of those that have no room there, 0 of what is not the bus's own; ids of those that somebody deleted."""

BURY = f"""{_WITHOUT_ROOM}{_BURY}
-- KEYS: stream, dead letters. ARGV: group, id, room for dead letters.
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
return entry and bury(KEYS[1], KEYS[2], ARGV[1], ARGV[2], entry[2], 1, tonumber(ARGV[3])) and 1 or 0
"""
"""Returns whether the entry is a dead letter now."""

RENEW = f"""{_WITHOUT_ROOM}
-- KEYS: stream. ARGV: group, consumer, id. XCLAIM alone would take the entry from whoever has it.
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then
    return 0
end
return #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
"""
"""Returns whether the entry is still the consumer's."""

STATE = f"""{_WITHOUT_ROOM}{_TRIM}
-- KEYS: stream. ARGV: what the keys of dead letters begin with.
local rows = {{}}
for name, group in pairs(groups_of(KEYS[1])) do
    table.insert(rows, {{name, group['pending'], group['lag'], redis.call('XLEN', ARGV[1] .. name)}})
end
return {{redis.call('XLEN', KEYS[1]), rows}}
"""
"""Returns how many entries there are, and name, pending, unread and dead letters of each group."""
