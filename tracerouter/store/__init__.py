"""Where state outlives the process: SQLite, for one machine."""

from tracerouter.store.decisions import DecisionLog
from tracerouter.store.sqlite import SqliteStore

__all__ = ["DecisionLog", "SqliteStore"]
