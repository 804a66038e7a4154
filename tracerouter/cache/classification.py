"""Classifications remembered: an equal request need not be classified again."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from cachebox import LRUCache

from tracerouter.cache.keys import said_digest

if TYPE_CHECKING:
    from tracerouter.protocols import Classifier
    from tracerouter.types import Classification, Task


class CachedClassifier:
    """A classifier that remembers what another one said of the same words.

    Args:
        inner: The other one.
        entries: How many are remembered, at most; some 300 bytes each.
        ttl: Seconds.
    """

    def __init__(self, inner: Classifier, *, entries: int = 10_000, ttl: float = 3600.0) -> None:
        self._inner = inner
        self._ttl = ttl
        self._known: LRUCache[bytes, tuple[Classification, float]] = LRUCache(entries)

    async def classify(self, task: Task) -> Classification:
        """Return what is remembered, marked as ``cached``, or ask."""
        key = said_digest(task)
        known = self._known.get(key)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        found = await self._inner.classify(task)
        if found.failed:  # what failed may know the next time
            return found
        self._known.insert(key, (replace(found, cached=True), time.monotonic() + self._ttl))
        return found
