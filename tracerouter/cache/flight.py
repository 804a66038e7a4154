"""Single flight: of equal requests at the same time one does the work, and the others wait for what it finds.

The one that works leads a :class:`Flight`. It leads until its answer is kept, until it is known that it will not be, or
until it ends without one; and as long as somebody waits, it goes on working though its own caller has left.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tracerouter.errors import CallerGone

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from tracerouter.cache.shared import Claim
    from tracerouter.protocols import Sink

_Found = TypeVar("_Found")

PATIENCE: Final = 60.0
"""Seconds after which a flight is given up by those who wait: one of them leads another."""


class End(Enum):
    """What those who wait are told where there is nothing to give them."""

    FAILED = auto()
    """The one has no answer: another may try, one at a time."""
    NOT_KEPT = auto()
    """Its answer is for nobody else: each asks for its own."""


class Flight:
    """The work of one request, that equal ones wait for."""

    __slots__ = ("alone", "begun", "claim", "ended", "key", "leader", "outdated", "waiting")

    def __init__(self, key: str, leader: str) -> None:
        loop = asyncio.get_running_loop()
        self.key = key
        self.leader = leader
        """The leader's place in its trace, as a W3C ``traceparent``."""
        self.begun = loop.time()
        """On the event loop's clock."""
        self.ended: asyncio.Future[bytes | End] = loop.create_future()
        self.waiting = 0
        self.alone: asyncio.Task[Any] | None = None
        """The work, once its own caller has left."""
        self.claim: Claim | None = None
        """What entitles this process to the work, where others might do it."""
        self.outdated = False
        """Whether the cache has been emptied since it began."""

    @property
    def landed(self) -> bool:
        """Whether it has ended with an answer."""
        return self.ended.done() and isinstance(self.ended.result(), bytes)

    async def wait(self, until: float) -> bytes | End | None:
        """Return how it ended, or None where it has not by `until` (on the event loop's clock)."""
        self.waiting += 1
        try:
            await asyncio.wait({self.ended}, timeout=max(until - asyncio.get_running_loop().time(), 0))
        finally:
            self.waiting -= 1
            if self.alone is not None and not self.waiting and not self.landed:
                self.alone.cancel()  # nobody is left who wants it
        return self.ended.result() if self.ended.done() else None


class Flights:
    """The flights of this process."""

    def __init__(self) -> None:
        self._by_key: dict[str, Flight] = {}
        self._led: dict[asyncio.Task[Any] | None, Flight] = {}
        self._alone: set[asyncio.Task[Any]] = set()

    def under_way(self, key: str) -> Flight | None:
        """Return the flight that may be waited for."""
        return self._by_key.get(key)

    def lead(self, key: str, leader: str) -> Flight:
        """Let the current task lead a flight; it is over when :meth:`carry` is."""
        flight = Flight(key, leader)
        self._by_key[key] = self._led[asyncio.current_task()] = flight
        return flight

    @property
    def led(self) -> Flight | None:
        """The flight that the current task leads."""
        return self._led.get(asyncio.current_task())

    def end(self, found: bytes | End) -> None:
        """End the flight that the current task leads, if it leads one, and tell those who wait."""
        flight = self._led.pop(asyncio.current_task(), None)
        if flight is not None:
            self.give_up(flight)
            flight.ended.set_result(found)

    def give_up(self, flight: Flight) -> None:
        """Let nobody else begin to wait for it."""
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    def outdate(self) -> None:
        """Let who comes from now on wait for nothing that has begun before."""
        self._by_key.clear()
        for flight in self._led.values():
            flight.outdated = True

    async def carry(
        self,
        work: Callable[[Sink | None], Coroutine[Any, Any, _Found]],
        sink: Sink | None,
        *,
        apart: bool = True,
    ) -> _Found:
        """Do a request's work, and see to it that the flight which it may lead ends with it.

        Args:
            work: Takes a sink.
            sink: The caller's own.
            apart: Whether the work may go on, in a task of its own, when the caller has left and others wait for it.
                If not, or when the last of them has left, it is cancelled with the caller.
        """
        if not apart:
            return await self._done(work, sink)
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def take(chunk: Mapping[str, Any]) -> None:
            if left.done() or sink is None:
                return
            try:
                await sink(chunk)
            except Exception as error:
                if not self._wanted(task):
                    raise
                gone = CallerGone("the caller's sink took no more")
                gone.__cause__ = error
                if not left.done():
                    left.set_exception(gone)

        task = asyncio.create_task(self._done(work, take if sink is not None else None))
        task.add_done_callback(lambda _: None if left.done() else left.set_result(None))
        try:
            await left
        except BaseException:  # the caller has left
            if self._wanted(task):
                self._let_alone(task)
            else:
                task.cancel()
                await asyncio.wait({task})  # its account is closed then
            raise
        return task.result()

    async def close(self) -> None:
        """End what goes on without a caller."""
        for task in self._alone:
            task.cancel()
        if self._alone:
            await asyncio.wait(self._alone)

    async def _done(self, work: Callable[[Sink | None], Coroutine[Any, Any, _Found]], sink: Sink | None) -> _Found:
        try:
            return await work(sink)
        finally:
            self.end(End.FAILED)

    def _wanted(self, task: asyncio.Task[Any]) -> bool:
        flight = self._led.get(task)
        return flight is not None and flight.waiting > 0

    def _let_alone(self, task: asyncio.Task[Any]) -> None:
        self._led[task].alone = task
        self._alone.add(task)
        task.add_done_callback(self._alone.discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # its record tells of it
