"""What the tests of limits share."""

from __future__ import annotations

from tests.e2e.limits.callers import callers, keys, upstream
from tests.redis_server import redis, redis_server

__all__ = ["callers", "keys", "redis", "redis_server", "upstream"]
