"""What callers have spent."""

from tracerouter.quota.ledger import Spend, SqliteLedger

__all__ = ["Spend", "SqliteLedger"]
