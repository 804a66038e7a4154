"""What is done about reviews without a request: expiry, telling what came of them, delivering webhooks."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tracerouter.errors import StoreUnavailable, place
from tracerouter.review.queue import REVIEW, STATES, WEBHOOK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from tracerouter.review.queue import Reviews
    from tracerouter.review.webhooks import Webhooks

log = logging.getLogger(__name__)

LOOK: Final = 5.0
"""Seconds after which the store is looked at, at the latest: another process may have added something."""
_AT_ONCE: Final = 16
"""Webhooks that one process delivers at the same time."""


class Worker:
    """Two loops beside the requests: what is due is done when it is due, in whichever process is first.

    Args:
        reviews: The queue.
        webhooks: How callers are told. None: they are not; what was to be delivered waits.
        look: Seconds between two looks at the store, at most.
    """

    def __init__(self, reviews: Reviews, webhooks: Webhooks | None = None, look: float = LOOK) -> None:
        self._reviews = reviews
        self._webhooks = webhooks
        self._look = look
        self._running: asyncio.Task[None] | None = None
        self._bells: Sequence[asyncio.Event] = ()

    def wake(self) -> None:
        """Let it look now; starts it where it does not run. Needs a running loop."""
        if self._running is None or self._running.done():
            self._bells = asyncio.Event(), asyncio.Event()
            self._running = asyncio.create_task(self._run())
        for bell in self._bells:
            bell.set()

    async def close(self) -> None:
        """Stop it; what is under way is done again by who comes next."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
        self._reviews.look_away()

    async def _run(self) -> None:
        for_reviews, for_webhooks = self._bells
        loops = [self._repeat(self._settle, REVIEW, STATES, for_reviews)]
        if self._webhooks is not None:
            loops.append(self._repeat(self._deliver, WEBHOOK, ("pending",), for_webhooks))
        await asyncio.gather(*loops)

    async def _repeat(
        self, step: Callable[[], Awaitable[None]], kind: str, states: Sequence[str], bell: asyncio.Event
    ) -> None:
        while True:
            bell.clear()
            wait = self._look
            try:
                await step()
                now = time.time()
                for first in await self._reviews.items.due(kind, states, now + wait, 1):
                    wait = max((first.due or now) - now, 0.0)
            except StoreUnavailable:
                log.info("the reviews' worker waits for the store")
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may fare better
                log.error("the reviews' worker failed: %s", place(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await bell.wait()

    async def _settle(self) -> None:
        now = time.time()
        due = await self._reviews.items.due(REVIEW, STATES, now)
        await _all(self._reviews.settle(item, now) for item in due)
        if any(item.body.get("webhook") for item in due):
            self._bells[1].set()
        await self._reviews.look()

    async def _deliver(self) -> None:
        assert self._webhooks is not None  # noqa: S101 - for the type checker: else this does not run
        due = await self._reviews.items.due(WEBHOOK, ("pending",), time.time(), _AT_ONCE)
        await _all(self._webhooks.deliver(self._reviews.items, item) for item in due)


async def _all(each: Iterable[Awaitable[None]]) -> None:
    """Do all, and then raise what went wrong first: one that is broken must not stop the others."""
    for result in await asyncio.gather(*each, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
