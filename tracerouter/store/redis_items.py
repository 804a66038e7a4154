"""Items in Redis, for all replicas: each step is one script, and all keys of a kind stand in one slot of a cluster.

===============================  =========================================================
``…:{KIND}:item:ID``             a hash: what scripts look at, and the item itself as JSON
``…:{KIND}:history:ID``          a list of what was done with it
``…:{KIND}:only:TENANT:UNIQUE``  the id of the one that has this key
``…:{KIND}:state:STATE``         ids by creation
``…:{KIND}:due:STATE``           ids by when they are due
``…:{KIND}:of:TENANT``, ``…all`` ids by creation
``…:{KIND}:expiry``              ids and tenants by when they vanish
===============================  =========================================================

Redis deletes an item itself when it expires; the next script that runs takes it off the lists.
"""

from __future__ import annotations

import time
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import orjson

from tracerouter.store.items import LISTED, Depth, Happened, Item

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from types import EllipsisType

    from tracerouter.store.redis import RedisStore

_COMMON: Final = """
local base, now = KEYS[1], ARGV[1]
local call = redis.call

local function unlist(id, tenant)
    for _, state in ipairs(call('SMEMBERS', base .. ':states')) do
        call('ZREM', base .. ':state:' .. state, id)
        call('ZREM', base .. ':due:' .. state, id)
    end
    call('ZREM', base .. ':all', id)
    call('ZREM', base .. ':of:' .. tenant, id)
    call('ZREM', base .. ':expiry', id .. ' ' .. tenant)
end

for _, gone in ipairs(call('ZRANGEBYSCORE', base .. ':expiry', '-inf', now, 'LIMIT', 0, 100)) do
    local id, tenant = string.match(gone, '^(%S+) (.*)$')
    call('DEL', base .. ':item:' .. id, base .. ':history:' .. id)
    unlist(id, tenant)
end

local function found(id)
    return call('HGET', base .. ':item:' .. id, 'json')
end

local function keep(id, tenant, state, created, due, expires, expires_ms, only)
    call('SADD', base .. ':states', state)
    call('ZADD', base .. ':state:' .. state, created, id)
    if due ~= '' then
        call('ZADD', base .. ':due:' .. state, due, id)
    end
    local keys = {base .. ':item:' .. id, base .. ':history:' .. id}
    if only ~= '' then
        keys[3] = base .. ':only:' .. tenant .. ':' .. only
    end
    if expires ~= '' then
        call('ZADD', base .. ':expiry', expires, id .. ' ' .. tenant)
    else
        call('ZREM', base .. ':expiry', id .. ' ' .. tenant)
    end
    for _, key in ipairs(keys) do
        if expires ~= '' then call('PEXPIREAT', key, expires_ms) else call('PERSIST', key) end
    end
end
"""

_ADD: Final = f"""{_COMMON}
local id, tenant, user, state, created, due, expires, expires_ms, only, json = unpack(ARGV, 2)
local there = found(id)
local key = base .. ':only:' .. tenant .. ':' .. only
if not there and only ~= '' then
    local other = call('GET', key)
    there = other and found(other)
end
if there then return there end
call('HSET', base .. ':item:' .. id, 'version', 1, 'state', state, 'tenant', tenant, 'user', user,
     'created', created, 'only', only, 'json', json)
if only ~= '' then call('SET', key, id) end
call('ZADD', base .. ':all', created, id)
call('ZADD', base .. ':of:' .. tenant, created, id)
keep(id, tenant, state, created, due, expires, expires_ms, only)
return json
"""

_CHANGE: Final = f"""{_COMMON}
local id, version, state, due, expires, expires_ms, json, happened = unpack(ARGV, 2)
local key = base .. ':item:' .. id
local was, before, tenant, created, only = unpack(call('HMGET', key, 'version', 'state', 'tenant', 'created', 'only'))
if was ~= version then return 0 end
call('HSET', key, 'version', version + 1, 'state', state, 'json', json)
call('ZREM', base .. ':state:' .. before, id)
call('ZREM', base .. ':due:' .. before, id)
call('RPUSH', base .. ':history:' .. id, happened)
keep(id, tenant, state, created, due, expires, expires_ms, only)
return 1
"""

_TAKE: Final = f"""{_COMMON}
local id = ARGV[2]
local key = base .. ':item:' .. id
local json, tenant, only = unpack(call('HMGET', key, 'json', 'tenant', 'only'))
if not json then return false end
call('DEL', key, base .. ':history:' .. id)
if only ~= '' then call('DEL', base .. ':only:' .. tenant .. ':' .. only) end
unlist(id, tenant)
return json
"""

_DUE: Final = f"""{_COMMON}
local until_then, limit = ARGV[2], ARGV[3]
local told = {{}}
for at = 4, #ARGV do
    local ids = call('ZRANGEBYSCORE', base .. ':due:' .. ARGV[at], '-inf', until_then, 'LIMIT', 0, limit)
    for _, id in ipairs(ids) do
        told[#told + 1] = found(id) or nil
    end
end
return told
"""

_LIST: Final = f"""{_COMMON}
local of, tenant, user, limit = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local wanted, indexes, told = {{}}, {{}}, {{}}
for at = 6, #ARGV do
    wanted[ARGV[at]] = true
    indexes[#indexes + 1] = base .. ':state:' .. ARGV[at]
end
local any = of == 'any'
if tenant ~= '' then
    indexes = {{base .. ':of:' .. string.sub(tenant, 2)}}
elseif any then
    indexes = {{base .. ':all'}}
end
for _, index in ipairs(indexes) do
    local first, taken = 0, 0
    repeat
        local ids = call('ZREVRANGE', index, first, first + 99)
        for _, id in ipairs(ids) do
            local json, state, whose = unpack(call('HMGET', base .. ':item:' .. id, 'json', 'state', 'user'))
            if json and taken < limit and (any or wanted[state]) and (user == '' or user == whose) then
                taken = taken + 1
                told[#told + 1] = json
            end
        end
        first = first + 100
    until #ids == 0 or taken == limit
end
return told
"""

_DEPTH: Final = f"""{_COMMON}
local count, oldest = 0, false
for at = 2, #ARGV do
    local index = base .. ':state:' .. ARGV[at]
    count = count + call('ZCARD', index)
    local created = call('ZRANGE', index, 0, 0, 'WITHSCORES')[2]
    if created and (not oldest or tonumber(created) < tonumber(oldest)) then oldest = created end
end
return {{count, oldest}}
"""


class RedisItems:
    """Items in Redis, for all replicas."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._add, self._change, self._take = store.script(_ADD), store.script(_CHANGE), store.script(_TAKE)
        self._due, self._list, self._depth = store.script(_DUE), store.script(_LIST), store.script(_DEPTH)

    async def add(self, item: Item) -> Item:
        """Keep a new item: see :class:`Items`."""
        owner = (item.id, item.tenant, _marked(item.user), item.state, item.created)
        told = (*owner, *_times(item), _marked(item.unique), _written(item))
        return _item(await self._add([_base(item.kind)], time.time(), *told))

    async def get(self, kind: str, id: str) -> Item | None:  # noqa: A002 - as in Items
        """Return an item: see :class:`Items`."""
        found = await self._store.run("HGET", f"{_base(kind)}:item:{id}", "json")
        return None if found is None else _item(found)

    async def change(  # noqa: PLR0913 - as in Items
        self,
        item: Item,
        *,
        by: str,
        what: str,
        state: str | None = None,
        due: float | EllipsisType | None = ...,
        expires: float | EllipsisType | None = ...,
        body: Mapping[str, Any] | None = None,
    ) -> Item | None:
        """Change an item: see :class:`Items`."""
        now, new = time.time(), item.changed(state, due, expires, body)
        happened = orjson.dumps([now, by, what])
        told = (item.id, item.version, new.state, *_times(new), _written(new), happened)
        return new if await self._change([_base(item.kind)], now, *told) else None

    async def take(self, kind: str, id: str) -> Item | None:  # noqa: A002 - as in Items
        """Return an item and delete it: see :class:`Items`."""
        found = await self._take([_base(kind)], time.time(), id)
        return None if found is None else _item(found)

    async def due(self, kind: str, states: Collection[str], now: float, limit: int = LISTED) -> Sequence[Item]:
        """Return the items that are due: see :class:`Items`."""
        found = [_item(one) for one in await self._due([_base(kind)], time.time(), now, limit, *states)]
        return sorted(found, key=lambda one: one.due or 0.0)[:limit]

    async def list(
        self,
        kind: str,
        *,
        states: Collection[str] | None = None,
        tenant: str | None = None,
        user: str | None = None,
        limit: int = LISTED,
    ) -> Sequence[Item]:
        """Return items, the newest first: see :class:`Items`."""
        of = "any" if states is None else "these"
        told = (of, _marked(tenant), _marked(user), str(limit), *(states or ()))
        found = [_item(one) for one in await self._list([_base(kind)], time.time(), *told)]
        return sorted(found, key=lambda one: one.created, reverse=True)[:limit]

    async def depth(self, kind: str, states: Collection[str]) -> Depth:
        """Return how many items there are: see :class:`Items`."""
        count, oldest = await self._depth([_base(kind)], time.time(), *states)
        return Depth(count, None if oldest is None else float(oldest))

    async def history(self, kind: str, id: str) -> Sequence[Happened]:  # noqa: A002 - as in Items
        """Return what was done with an item: see :class:`Items`."""
        found = await self._store.run("LRANGE", f"{_base(kind)}:history:{id}", 0, -1)
        return [Happened(*orjson.loads(one)) for one in found]


def _base(kind: str) -> str:
    return f"tracerouter:{{{kind}}}"


def _marked(value: str | None) -> str:
    """Tell what is absent from what is empty."""
    return "" if value is None else f"={value}"


def _times(item: Item) -> tuple[str, str, str]:
    due, expires = ("" if at is None else repr(at) for at in (item.due, item.expires))
    return due, expires, "" if item.expires is None else str(ceil(item.expires * 1000))


def _written(item: Item) -> bytes:
    return orjson.dumps(
        {name: getattr(item, name) for name in item.__slots__ if name != "body"} | {"body": dict(item.body)}
    )


def _item(found: bytes) -> Item:
    return Item(**orjson.loads(found))
