"""aiocache's interface over memory that has a bound.

aiocache's own memory backend grows without end, and its timers can delete a newer value. Here a value carries its
expiry, and the least recently used go when bytes or entries run out.
"""

from __future__ import annotations

import time
from typing import Any, Final

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer
from cachebox import LRUCache

_OVERHEAD: Final = 200
"""Bytes that an entry takes besides its key and value, about."""


class BoundedMemoryCache(BaseCache):
    """An aiocache backend for immutable ``bytes``, in this process.

    Args:
        max_bytes: The bound on keys, values and overhead together.
        max_entries: The bound on their number.
    """

    NAME = "bounded-memory"

    def __init__(self, max_bytes: int = 64 * 1024 * 1024, max_entries: int = 100_000, **options: Any) -> None:
        # memory does not need the timeout, which costs a task an operation
        super().__init__(**{"serializer": NullSerializer(), "timeout": None, **options})
        self._max_entries = max_entries
        self._kept: LRUCache[str, tuple[bytes, float | None]] = LRUCache(
            max_bytes, getsizeof=lambda key, value: len(key) + len(value[0]) + _OVERHEAD
        )

    async def _get(self, key: str, encoding: str | None = "utf-8", _conn: Any = None) -> bytes | None:
        found = self._kept.get(key)
        if found is None:
            return None
        value, expires = found
        if expires is not None and expires <= time.monotonic():
            self._kept.pop(key, None)
            return None
        return value

    _gets = _get

    async def _multi_get(
        self, keys: list[str], encoding: str | None = "utf-8", _conn: Any = None
    ) -> list[bytes | None]:
        return [await self._get(key) for key in keys]

    async def _set(
        self, key: str, value: bytes, ttl: float | None = None, _cas_token: Any = None, _conn: Any = None
    ) -> bool:
        if _cas_token is not None and _cas_token != await self._get(key):
            return False
        return self._keep(key, value, time.monotonic() + ttl if ttl else None)

    def _keep(self, key: str, value: bytes, expires: float | None) -> bool:
        try:
            # what can change is copied; bytes are not
            self._kept.insert(key, (value if isinstance(value, bytes) else bytes(memoryview(value)), expires))
        except OverflowError:  # larger than the whole cache
            self._kept.pop(key, None)
            return False
        while len(self._kept) > self._max_entries:
            self._kept.popitem()  # the one not used for longest
        return True

    async def _multi_set(self, pairs: list[tuple[str, bytes]], ttl: float | None = None, _conn: Any = None) -> bool:
        for key, value in pairs:
            await self._set(key, value, ttl)
        return True

    async def _add(self, key: str, value: bytes, ttl: float | None = None, _conn: Any = None) -> bool:
        if await self._get(key) is not None:
            msg = f"Key {key} already exists, use .set to update the value"
            raise ValueError(msg)
        return await self._set(key, value, ttl)

    async def _exists(self, key: str, _conn: Any = None) -> bool:
        return await self._get(key) is not None

    async def _increment(self, key: str, delta: int, _conn: Any = None) -> int:
        held = await self._get(key)
        try:
            number = int(held or b"0") + delta
        except ValueError:
            msg = "Value is not an integer"
            raise TypeError(msg) from None
        _, expires = self._kept.get(key) or (None, None)
        self._keep(key, str(number).encode(), expires)
        return number

    async def _expire(self, key: str, ttl: float, _conn: Any = None) -> bool:
        value = await self._get(key)
        return value is not None and await self._set(key, value, ttl)

    async def _delete(self, key: str, _conn: Any = None) -> int:
        return int(self._kept.pop(key, None) is not None)

    async def _clear(self, namespace: str | None = None, _conn: Any = None) -> bool:
        for key in [key for key in self._kept if key.startswith(namespace or "")]:
            self._kept.pop(key, None)
        return True

    async def _raw(
        self, command: str, *args: Any, encoding: str | None = None, _conn: Any = None, **kwargs: Any
    ) -> Any:
        return getattr(self._kept, command)(*args, **kwargs)
