"""The ledger's Lua: what Redis does in one step, so that nothing else happens in between.

A month of a tenant is four keys or more, all with the tenant as hash tag: the month's accounts (a hash), its leases (a
sorted set: reservation, and when it ends), what these hold (a hash), and each day's accounts (a hash).

An account is one field, ``all:user:ada``, with what was spent on it and what is reserved: ``DOLLARS NANOS REQUESTS
TOKENS``. Lua's numbers are doubles, exact up to 2**53; so money is kept as whole dollars and as nano-dollars below one,
each of them far from there, and carried over by hand. (HINCRBY is exact in 64 bits, but an attempt changes 36 amounts
or more, and with one call for each of them a script took 1.6 times as long.)

Besides, the month has its ``generation``; for each stream of entries its ``cursor:…``, how far that is booked; and, to
miss a key that Redis evicted, the ``day`` that was booked last and the number of ``holds``.
"""

from __future__ import annotations

from typing import Final

_SHARED: Final = """
local month, leases, held, day = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local generation, opening = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local changes = {}

local function change(claim, sign)
    changes[claim[1]] = true
    for _, period in ipairs({month, month .. string.sub(claim[1], 8)}) do
        local accounts = changes[period] or {}
        changes[period] = accounts
        for _, scope in ipairs(claim[2]) do
            for _, role in ipairs(claim[3]) do
                local name = role .. ':' .. scope
                local sums = accounts[name] or {0, 0, 0, 0}
                accounts[name] = sums
                for at, amount in ipairs(claim[4]) do sums[at] = sums[at] + sign * amount end
            end
        end
    end
end

local function parsed(account)
    if not account then return 0, 0, 0, 0 end
    local dollars, nanos, requests, tokens = string.match(account, '(%S+) (%S+) (%S+) (%S+)')
    return tonumber(dollars), tonumber(nanos), tonumber(requests), tonumber(tokens)
end

local function apply_some(period, accounts, names)
    local found, told = redis.call('HMGET', period, unpack(names)), {}
    for at, name in ipairs(names) do
        local sums, dollars, nanos, requests, tokens = accounts[name], parsed(found[at])
        nanos = nanos + sums[2]
        local carry = math.floor(nanos / 1000000000)
        told[2 * at - 1] = name
        told[2 * at] = string.format('%.0f %.0f %.0f %.0f',
            dollars + sums[1] + carry, nanos - carry * 1000000000, requests + sums[3], tokens + sums[4])
    end
    redis.call('HSET', period, unpack(told))
end

local function apply()
    local newest = redis.call('HGET', month, 'day') or ''
    for period, accounts in pairs(changes) do
        if accounts == true then
            if period > newest then newest = period end
        else
            local names = {}
            for name in pairs(accounts) do
                table.insert(names, name)
                if #names == 500 then
                    apply_some(period, accounts, names)
                    names = {}
                end
            end
            if #names > 0 then apply_some(period, accounts, names) end
            redis.call('EXPIRE', period, period == month and 3456000 or 172800)
        end
    end
    redis.call('HSET', month, 'day', newest)
    changes = {}
end

local function hold(member, lease, claims)
    if redis.call('HSET', held, member, claims) == 1 then redis.call('HINCRBY', month, 'holds', 1) end
    redis.call('ZADD', leases, now + lease, member)
    redis.call('EXPIRE', held, 3456000)
    redis.call('EXPIRE', leases, 3456000)
end

local function release(member)
    local claims = redis.call('HGET', held, member)
    if claims then
        for _, claim in ipairs(cjson.decode(claims)) do change(claim, -1) end
        redis.call('HDEL', held, member)
        redis.call('HINCRBY', month, 'holds', -1)
    end
    redis.call('ZREM', leases, member)
end

local function lost()
    if redis.call('HGET', month, 'generation') == generation then return false end
    if opening == '' then return true end
    if redis.call('EXISTS', month) == 0 then
        local rest = {leases, held}
        for number = 1, 31 do table.insert(rest, month .. string.format('-%02d', number)) end
        redis.call('DEL', unpack(rest))
    end
    redis.call('HSET', month, 'generation', generation)
    redis.call('EXPIRE', month, 3456000)
    return false
end

local function sweep()
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 500)) do release(member) end
end
"""

RESERVE: Final = (
    _SHARED
    + """
local stream, cursor, member, lease, claim = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

local function room(limit, account)
    local dollars, nanos, requests, tokens = parsed(account)
    if limit[3] == 'requests' then return requests <= limit[4] end
    if limit[3] == 'tokens' then return tokens <= limit[4] end
    return dollars < limit[4] or (dollars == limit[4] and nanos <= limit[5])
end

if lost() then return {'lost'} end
if tonumber(redis.call('HGET', month, 'cursor:' .. stream) or '0') < tonumber(cursor) then return {'lost'} end
local decoded = cjson.decode(claim)
local holds = tonumber(redis.call('HGET', month, 'holds') or '0')
if redis.call('HLEN', held) ~= holds or redis.call('ZCARD', leases) ~= holds
    or (redis.call('HGET', month, 'day') == decoded[1] and redis.call('EXISTS', day) == 0) then
    redis.call('DEL', month, leases, held)
    return {'lost'}
end
sweep()
if next(changes) then apply() end
local found = redis.call('HGET', held, member)
if found == '[]' then return {'released'} end
local told = {'held'}
for at, limit in ipairs(cjson.decode(ARGV[8])) do
    local taken = redis.call('HGET', limit[1] == 'day' and day or month, limit[2])
    if not room(limit, taken) then return {'denied', at, taken or ''} end
    table.insert(told, taken or '')
end
change(decoded, 1)
apply()
hold(member, lease, found and string.sub(found, 1, -2) .. ',' .. claim .. ']' or '[' .. claim .. ']')
return told
"""
)
"""``(generation, opening, stream, cursor, member, lease, claim, limits)``: hold a claim, or tell which limit is full.

A claim is ``[day, scopes, roles, [dollars, nanos, requests, tokens]]``; a limit ``[period, account, unit, amount,
nanos]``, what may be taken before, at most, of money in dollars and nanos. Answers ``held`` with the account of each
limit, ``denied`` with the limit's place and account, ``released`` where the claim was given back before it came, or
``lost``: this month is new here, or older than what was seen of it.
"""

SETTLE: Final = (
    _SHARED
    + """
local stream, from, to = 'cursor:' .. ARGV[3], ARGV[4], ARGV[5]
if lost() then return {'lost'} end
local at = redis.call('HGET', month, stream) or '0'
if at == from then
    for _, claim in ipairs(cjson.decode(ARGV[6])) do change(claim, 1) end
    redis.call('HSET', month, stream, to)
elseif tonumber(at) < tonumber(to) then
    return {'behind', at}
end
for _, one in ipairs(cjson.decode(ARGV[7])) do
    release(one[1])
    if one[2] > 0 then hold(one[1], one[2], '[]') end
end
for _, one in ipairs(cjson.decode(ARGV[8])) do
    if redis.call('HEXISTS', held, one[1]) == 0 then
        for _, claim in ipairs(cjson.decode(one[3])) do change(claim, 1) end
        hold(one[1], one[2], one[3])
    end
end
sweep()
if next(changes) then apply() end
return {'booked'}
"""
)
"""``(generation, opening, stream, from, to, entries, releases, holds)``: book entries of a stream, and release.

Entries `from` + 1 up to `to` are booked if the stream's cursor stands at `from`, and so once, however often they are
sent; ``behind``, with where it stands, if it is before `to` but not there. A release ``[member, seconds]`` keeps a
reservation of that name from being made for so long. A hold ``[member, lease, claims]`` is put back if it is not there.
"""

WATCH: Final = """
local run, fresh, busy, rebuilt, replaced, window = ARGV[1], ARGV[2], 'busy:' .. ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local id = redis.call('HGET', KEYS[1], 'id')
if not id or id == replaced or redis.call('HGET', KEYS[1], 'run') ~= run then
    redis.call('DEL', KEYS[1])
    id = fresh
    redis.call('HSET', KEYS[1], 'id', id, 'run', run, 'since', now)
end
local wait = redis.call('HGET', KEYS[1], 'since') + window - now
if rebuilt == id then
    redis.call('HDEL', KEYS[1], busy)
elseif wait > 0 or redis.call('HEXISTS', KEYS[1], busy) == 1 then
    redis.call('HSET', KEYS[1], busy, now + 10)
end
local at_work, told = 0, redis.call('HGETALL', KEYS[1])
for at = 1, #told, 2 do
    if string.sub(told[at], 1, 5) == 'busy:' then
        if tonumber(told[at + 1]) > now then at_work = at_work + 1 else redis.call('HDEL', KEYS[1], told[at]) end
    end
end
return {id, at_work, tostring(wait)}
"""
"""``(run, fresh, stream, rebuilt, replaced, window)``: tell the generation, how many rebuild it, and for how long yet.

A generation ends when its key is gone, when Redis was started again (`run`: it may know an older state now), or when
it is the one that was found to be lost (`replaced`). Then `fresh` is the next one. Who notices it within the window is
waited for; who comes later is not, or every process that starts would keep all others from checking limits.
"""

KNOW: Final = """
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], 3456000)
"""
"""``(tenant)``: remember that a tenant has accounts in a month."""
