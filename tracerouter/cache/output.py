"""Answers given before: near, in this process's memory; far, in what all replicas share; and those on their way."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from tracerouter.cache import values
from tracerouter.cache.flight import PATIENCE, End, Flight, Flights
from tracerouter.cache.values import Value, pack, unpack
from tracerouter.errors import StoreUnavailable
from tracerouter.types import Hit

if TYPE_CHECKING:
    from aiocache.base import BaseCache

    from tracerouter.cache.shared import Claim, SharedCache
    from tracerouter.types import Completion, Freshness

HEARD: Final = 1.0
"""Seconds between two looks at whether another process has emptied the cache."""

_SOONEST: Final = 0.02
_LATEST: Final = 0.25
"""Seconds between two looks at what another process works on: at first, and in the end."""

_log = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """What is looked up, by whom."""

    key: str
    freshness: Freshness
    leader: str
    now: float
    """Unix seconds at which it was asked: what is made afterwards is young enough."""
    deadline: float
    """On the event loop's clock, as are the next."""
    begun: float


class OutputCache:
    """Keeps completions, packed, in two layers. A layer that fails is one that misses.

    Of equal requests at the same time one does the work, over all processes that share a layer: see
    :class:`tracerouter.cache.flight.Flights`.

    Args:
        backend: The near layer, an aiocache backend in this process; its own time to live is `stale_for` longer than
            an answer's.
        shared: The far layer. None: there is one process.
        stale_for: Seconds for which an expired answer can still be read as stale.
        patience: Seconds after which a flight is given up by those who wait for it.
    """

    def __init__(
        self,
        backend: BaseCache,
        shared: SharedCache | None = None,
        *,
        stale_for: float = 86_400.0,
        patience: float = PATIENCE,
    ) -> None:
        self.flights = Flights()
        self._backend = backend
        self._shared = shared
        self._stale_for = stale_for
        self._patience = patience
        self._fails = False
        self._watching: asyncio.Task[None] | None = None
        self._holding: set[asyncio.Task[None]] = set()

    async def look_up(self, key: str, freshness: Freshness, leader: str = "", deadline: float = float("inf")) -> Hit:
        """Return what is held: a ``hit``, a ``miss``, or ``stale`` where it expired or is too old for the caller.

        With a `leader`, a request that finds nothing fresh waits for an equal one that is under way; where there is
        none, it leads a flight from here on, until :meth:`keep` or :meth:`keep_nothing`, or until it has ended.

        Args:
            key: Of the request.
            freshness: What its caller lets the cache do.
            leader: The request's own place in its trace, as a W3C ``traceparent``.
            deadline: When it waits no more, on the event loop's clock.
        """
        asked = _Asked(key, freshness, leader, time.time(), deadline, asyncio.get_running_loop().time())
        near = await self._near(asked)
        if near.fresh:
            return near
        flight = None
        if leader:
            near, leads = await self._waited(asked, near)
            if not leads:
                return near
            flight = self.flights.lead(key, leader)
        return near if self._shared is None else await self._far(self._shared, asked, near, flight)

    async def at_hand(self, key: str, freshness: Freshness) -> bool:
        """Return whether a look-up would find an answer near, and wait for nothing; False where that takes thought."""
        if freshness.max_age is not None or freshness.label is not None:
            return False
        try:
            raw = await self._backend.get(key)
        except Exception:  # noqa: BLE001 - the look-up will tell
            return False
        return raw is not None and values.fresh(raw, time.time())

    async def keep(self, key: str, completion: Completion, ttl: float, alias: str | None = None) -> None:
        """Keep an answer for `ttl` seconds and give it to those who wait; `alias` is the model that gave it."""
        flight, now = self.flights.led, time.time()
        try:
            raw = pack(Value(now, now + ttl, alias, completion))
            if flight is None or not flight.outdated:
                await self._backend.set(key, raw, ttl=ttl + self._stale_for)
        except Exception as error:  # noqa: BLE001 - of a backend; an answer of a wrapped service's may be no JSON
            self._told(error)
            self.keep_nothing()
            return
        self.flights.end(raw)
        if self._shared is not None:
            with suppress(StoreUnavailable):
                claim = flight.claim if flight and flight.claim else await self._shared.claim(key, "")
                await self._shared.keep(claim, raw, ttl + self._stale_for)

    def keep_nothing(self) -> None:
        """Tell those who wait that the answer will not be kept: each asks for its own."""
        self.flights.end(End.NOT_KEPT)

    async def invalidate(self) -> None:
        """Forget all answers, here at once and in every process that shares them within about a second.

        What is under way goes on, and its answer is kept for nobody who asks from now on.

        Raises:
            StoreUnavailable: The other processes could not be told.
        """
        left_behind = None
        try:
            if self._shared is not None:
                left_behind = await self._shared.begin_anew()
        finally:
            await self._forget()
        if self._shared is not None:
            await self._shared.clear(namespace=left_behind)

    async def close(self) -> None:
        """End what goes on without a caller."""
        await self.flights.close()
        if self._watching is not None:
            self._watching.cancel()
        if self._holding:  # they end with their flights
            await asyncio.wait(self._holding, timeout=1)

    async def _near(self, asked: _Asked) -> Hit:
        try:
            raw: bytes | None = await self._backend.get(asked.key)
        except Exception as error:  # noqa: BLE001 - whatever a backend raises: a request goes on without it
            self._told(error)
            return _hit(asked, None, "memory")._replace(looked=(("memory", "error"),))
        self._told(None)
        return _hit(asked, raw, "memory")

    async def _waited(self, asked: _Asked, near: Hit) -> tuple[Hit, bool]:
        """Wait for an equal request that is under way here; return what came of it, and whether to lead now."""
        clock = asyncio.get_running_loop().time
        while (flight := self.flights.under_way(asked.key)) is not None:
            found = await flight.wait(min(flight.begun + self._patience, asked.deadline))
            value = unpack(found) if isinstance(found, bytes) else None
            if value is not None:
                near = _held(asked, value, "memory")._replace(status="hit", looked=(("memory", "hit"),))
            elif found in {None, End.FAILED}:  # another may have come first, and be done
                self.flights.give_up(flight)
                near = await self._near(asked)
            near = near._replace(leader=flight.leader, waited=clock() - asked.begun)
            if near.fresh or found is End.NOT_KEPT or clock() >= asked.deadline:
                return near, False
        return near, True

    async def _far(self, shared: SharedCache, asked: _Asked, near: Hit, flight: Flight | None) -> Hit:
        """Look in what all replicas share, and wait for what another one works on; without a `flight`, only look."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(shared))
        clock, pause = asyncio.get_running_loop().time, _SOONEST
        until = min(asked.begun + self._patience, asked.deadline)
        mine = True
        try:
            claim = await shared.claim(asked.key, asked.leader if flight is not None else "")
            try:
                found = await shared.look_up(claim, asked.now, asked.freshness.max_age)
                while found.leader is not None and clock() < until:
                    await asyncio.sleep(min(pause, until - clock()))
                    pause = min(pause * 1.5, _LATEST)
                    near = near._replace(leader=found.leader, waited=clock() - asked.begun)
                    found = await shared.look_up(claim, asked.now, asked.freshness.max_age)
                far = _hit(asked, found.raw, "redis")
                mine = found.leader is None and not far.fresh
            finally:
                if mine and flight is not None:  # or may be: a call that was cut off may have been heard
                    self._hold(shared, flight, claim)
        except StoreUnavailable:
            return near._replace(looked=(*near.looked, ("redis", "error")))
        if far.fresh and found.raw is not None and flight is not None:
            await self._take_over(asked, found.raw, flight)
        best = far if far.completion is not None or near.completion is None else near
        return best._replace(looked=(*near.looked, *far.looked), leader=near.leader, waited=near.waited)

    async def _take_over(self, asked: _Asked, raw: bytes, flight: Flight) -> None:
        """Keep near what was found far, and give it to those who wait here."""
        value = unpack(raw)
        if value is not None and not flight.outdated:
            with suppress(Exception):  # a near layer that fails has told so when it was asked
                await self._backend.set(asked.key, raw, ttl=value.expires_at + self._stale_for - asked.now)
        self.flights.end(raw)

    def _hold(self, shared: SharedCache, flight: Flight, claim: Claim) -> None:
        """Hold a claim for as long as its flight lasts."""

        async def hold() -> None:
            await shared.hold(claim, flight.ended)
            if not flight.landed:
                with suppress(StoreUnavailable):
                    await shared.release(claim)

        flight.claim = claim
        self._holding.add(holding := asyncio.create_task(hold()))
        holding.add_done_callback(self._holding.discard)

    async def _watch(self, shared: SharedCache) -> None:
        """Hear of it when another process empties the cache."""
        while True:
            await asyncio.sleep(HEARD)
            with suppress(StoreUnavailable):
                if await shared.changed():
                    await self._forget()

    async def _forget(self) -> None:
        self.flights.outdate()
        with suppress(Exception):  # a near layer that fails holds nothing that anyone is given
            await self._backend.clear()

    def _told(self, error: Exception | None) -> None:
        """Log when the near layer begins and ceases to fail, not each time."""
        if (error is not None) == self._fails:
            return
        self._fails = error is not None
        if error is not None:
            _log.warning("the cache fails, requests go on without it: %s", type(error).__name__)
        else:
            _log.warning("the cache works again")


def _hit(asked: _Asked, raw: bytes | None, layer: str) -> Hit:
    """Return what a layer says to a request."""
    value = unpack(raw) if raw is not None else None
    return (
        Hit(None, "miss", layer, asked.key, looked=((layer, "miss"),)) if value is None else _held(asked, value, layer)
    )


def _held(asked: _Asked, value: Value, layer: str) -> Hit:
    status = "hit" if value.fresh(asked.now, asked.freshness) else "stale"
    age = max(time.time() - value.kept_at, 0.0)
    return Hit(value.completion, status, layer, asked.key, age, value.alias, ((layer, status),))
