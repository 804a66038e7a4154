"""Where state outlives the process: SQLite, for one machine, or Redis, for all replicas."""

from tracerouter.store.decisions import DecisionLog
from tracerouter.store.items import LISTED, Depth, Happened, Item, Items, SqliteItems
from tracerouter.store.redis import RedisStore
from tracerouter.store.redis_items import RedisItems
from tracerouter.store.sqlite import SqliteStore

__all__ = [
    "LISTED",
    "DecisionLog",
    "Depth",
    "Happened",
    "Item",
    "Items",
    "RedisItems",
    "RedisStore",
    "SqliteItems",
    "SqliteStore",
]
