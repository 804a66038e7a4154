"""The servers that integration tests share."""

from __future__ import annotations

from tests.redis_server import redis, redis_cluster, redis_cluster_server, redis_server

__all__ = ["redis", "redis_cluster", "redis_cluster_server", "redis_server"]
