"""Where state outlives the process: SQLite, for one machine, or Redis, for all replicas."""

from tracerouter.store.decisions import DecisionLog
from tracerouter.store.redis import RedisStore
from tracerouter.store.sqlite import SqliteStore

__all__ = ["DecisionLog", "RedisStore", "SqliteStore"]
