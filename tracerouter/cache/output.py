"""Answers given before."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import orjson

from tracerouter.cache.keys import FORMAT
from tracerouter.types import Completion, Hit

if TYPE_CHECKING:
    from aiocache.base import BaseCache

    from tracerouter.types import Freshness

_log = logging.getLogger(__name__)


class OutputCache:
    """Keeps completions as bytes in an aiocache backend. A backend that fails is a cache that misses.

    Args:
        backend: Where; its own time to live is `stale_for` longer than an answer's.
        layer: Its name in spans and metrics.
        stale_for: Seconds for which an expired answer can still be read as stale.
    """

    def __init__(self, backend: BaseCache, *, layer: str = "memory", stale_for: float = 86_400.0) -> None:
        self._backend = backend
        self._layer = layer
        self._stale_for = stale_for
        self._fails = False

    async def look_up(self, key: str, freshness: Freshness) -> Hit:
        """Return what is held: a ``hit``, a ``miss``, or ``stale`` where it expired or is too old for the caller."""
        try:
            raw = await self._backend.get(key)
        except Exception as error:  # noqa: BLE001 - whatever a backend raises: a request goes on without it
            self._told(error)
            raw = None
        else:
            self._told(None)
        if raw is None:
            return Hit(layer=self._layer, key=key)
        try:
            version, *held = orjson.loads(raw)
            if version != FORMAT:
                return Hit(layer=self._layer, key=key)
            kept_at, expires_at, alias, body = held
        except (ValueError, TypeError):  # not ours, or cut off
            return Hit(layer=self._layer, key=key)
        now = time.time()
        age = max(now - kept_at, 0.0)
        too_old = freshness.max_age is not None and age > freshness.max_age
        status = "stale" if now >= expires_at or too_old else "hit"
        return Hit(Completion(body), status, self._layer, key, age, alias)

    async def keep(self, key: str, completion: Completion, ttl: float, alias: str | None = None) -> None:
        """Keep an answer for `ttl` seconds; `alias` is the model that gave it."""
        now = time.time()
        try:
            raw = orjson.dumps([FORMAT, now, now + ttl, alias, completion.body])
            await self._backend.set(key, raw, ttl=ttl + self._stale_for)
        except Exception as error:  # noqa: BLE001 - as above; an answer of a wrapped service's may be no JSON
            self._told(error)

    def _told(self, error: Exception | None) -> None:
        """Log when the backend begins and ceases to fail, not each time."""
        if (error is not None) == self._fails:
            return
        self._fails = error is not None
        if error is not None:
            _log.warning("the cache fails, requests go on without it: %s", type(error).__name__)
        else:
            _log.warning("the cache works again")
