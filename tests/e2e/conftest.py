"""The servers that end-to-end tests share."""

from __future__ import annotations

from tests.redis_server import redis, redis_server

__all__ = ["redis", "redis_server"]
