"""The layer that all replicas share: aiocache's Redis backend over the store's connections, without its faults.

aiocache's own empties the whole database where it has no namespace, blocks Redis with ``KEYS`` where it has one, reads
bytes as text, makes an error of a time to live below a millisecond, and opens connections without end.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiocache.backends.redis import RedisCache
from aiocache.serializers import NullSerializer

from tracerouter.cache.values import FORMAT, HEAD
from tracerouter.errors import StoreUnavailable

if TYPE_CHECKING:
    from tracerouter.store import RedisStore

LEASE: Final = 6.0
"""Seconds after which the claim of a process that died is free. One that lives renews it after a third of them."""

_GENERATION: Final = "tracerouter:cache:generation"
_ANY_AGE: Final = 1e300
_BATCH: Final = 100
"""Keys that are deleted at a time: Redis, and the store's connections, are others' too."""

_LOOK_UP: Final = f"""
local held = redis.call('GET', KEYS[1])
if held and #held >= {HEAD.size} then
  local format, _, kept, expires = struct.unpack('{HEAD.format}', held)
  local now = tonumber(ARGV[1])
  if format == {FORMAT} and now < expires and now - kept <= tonumber(ARGV[2]) then
    return {{held, false}}
  end
end
if ARGV[3] == '' then return {{held, false}} end
local leader = redis.call('GET', KEYS[2])
if leader and leader ~= ARGV[3] then return {{held, leader}} end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return {{held, false}}
"""
_KEEP: Final = """
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if redis.call('GET', KEYS[2]) == ARGV[3] then redis.call('DEL', KEYS[2]) end
"""
_RENEW: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
_READ_GENERATION: Final = """
local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""


class Claim(NamedTuple):
    """The right of one request to work on an answer that is not kept; it ends with its lease."""

    value_key: str
    """Where in Redis the answer goes."""
    key: str
    """Where in Redis it says who works on it."""
    leader: str
    """Who: the request's ``traceparent``. Empty: nobody."""


class Shared(NamedTuple):
    """What a look-up found."""

    raw: bytes | None
    """What is kept, fresh or not."""
    leader: str | None = None
    """Who works on it elsewhere, where it is not fresh. None: nobody, so the claim is given to the one who asks."""


class SharedCache(RedisCache):
    """Packed answers in Redis, and claims on those that are not there. Calls end as those of its store do.

    A value and its claim lie under one hash tag. All keys hold the *generation*, a word that all processes share:
    drawing another one leaves every value behind, and with them what a process still writes that has not heard of it.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisStore) -> None:
        # no time-out of its own, which costs a task an operation
        super().__init__(serializer=NullSerializer(encoding=None), namespace="tracerouter:cache", timeout=None)
        self.client = store.client
        self.generation: str | None = None
        """None: not known yet."""
        self._store = store
        self._look_up, self._keep = store.script(_LOOK_UP), store.script(_KEEP)
        self._renew, self._release = store.script(_RENEW), store.script(_RELEASE)
        self._read_generation = store.script(_READ_GENERATION)

    async def claim(self, key: str, leader: str) -> Claim:
        """Return the claim that a :meth:`look_up` may be given, as of this generation.

        Args:
            key: Of the answer.
            leader: Who asks, as a ``traceparent``; empty: somebody who claims nothing.

        Raises:
            StoreUnavailable: The generation is not known yet, and can't be read.
        """
        if self.generation is None:
            await self.changed()
        return Claim(self.build_key(_tag(key)), f"tracerouter:flight:{self.generation}:{_tag(key)}", leader)

    async def look_up(self, claim: Claim, now: float, max_age: float | None) -> Shared:
        """Return what is kept; where that is not fresh, who works on it, or else the claim is given.

        Args:
            claim: Says what is asked for, and by whom.
            now: When the request came in (Unix seconds).
            max_age: How old the answer may be (seconds); None: any age.

        Raises:
            StoreUnavailable: As of the store. The claim may have been given all the same.
        """
        age = _ANY_AGE if max_age is None else max_age
        raw, other = await self._look_up([claim.value_key, claim.key], now, age, claim.leader, _ms(LEASE))
        return Shared(raw, None if other is None else other.decode("ascii", "replace"))

    async def keep(self, claim: Claim, raw: bytes, ttl: float) -> None:
        """Keep a packed answer for `ttl` seconds, and end the claim to it.

        What was claimed before another generation was drawn stays behind with the old one.

        Raises:
            StoreUnavailable: As of the store.
        """
        await self._keep([claim.value_key, claim.key], raw, _ms(ttl), claim.leader)

    async def hold(self, claim: Claim, ended: asyncio.Future[Any]) -> None:
        """Renew the claim until `ended`."""
        while not (await asyncio.wait({ended}, timeout=LEASE / 3))[0]:
            with suppress(StoreUnavailable):
                await self._renew([claim.key], claim.leader, _ms(LEASE))

    async def release(self, claim: Claim) -> None:
        """End the claim, if it is still ours."""
        await self._release([claim.key], claim.leader)

    async def changed(self) -> bool:
        """Read the generation; return whether it is another one than at the last time."""
        found = (await self._read_generation([_GENERATION], secrets.token_hex(8))).decode("ascii", "replace")
        before, self.generation = self.generation, found
        self.namespace = f"tracerouter:cache:{found}"
        return before is not None and before != found

    async def begin_anew(self) -> str:
        """Draw another generation, so that nobody finds what is kept; return the namespace left behind, to be cleared.

        Raises:
            StoreUnavailable: As of the store.
        """
        await self.changed()
        left_behind: str = self.namespace
        await self._store.run("SET", _GENERATION, secrets.token_hex(8))
        await self.changed()
        return left_behind

    async def _set(
        self, key: str, value: bytes, ttl: float | None = None, _cas_token: Any = None, _conn: Any = None
    ) -> Any:
        return await super()._set(key, value, None if ttl is None else _ms(ttl) / 1000, _cas_token, _conn)

    async def _expire(self, key: str, ttl: float, _conn: Any = None) -> bool:
        return bool(await self.client.pexpire(key, _ms(ttl)))

    async def _clear(self, namespace: str | None = None, _conn: Any = None) -> bool:
        """Delete the namespace's keys, step by step, so that Redis answers others in between."""
        pattern = "".join(f"\\{one}" if one in "*?[]\\^-" else one for one in namespace or self.namespace)
        cursor = 0
        while True:
            cursor, keys = await self._store.run("SCAN", cursor, "MATCH", f"{pattern}:*", "COUNT", _BATCH)
            await asyncio.gather(*(self._store.run("UNLINK", key) for key in keys))
            if not cursor:
                return True


def _tag(key: str) -> str:
    """Write a key so that whatever belongs to it lies on one node of a cluster."""
    return f"{{{key}}}"


def _ms(seconds: float) -> int:
    return max(round(seconds * 1000), 1)
