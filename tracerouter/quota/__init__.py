"""What callers may spend, and have spent."""

from tracerouter.quota.accounts import Calendar
from tracerouter.quota.hold import ENDLESS_LEASE, LEASE_MARGIN, Hold, reserve
from tracerouter.quota.ledger import SqliteLedger
from tracerouter.quota.redis import RedisLedger
from tracerouter.quota.relief import Relief, relieve
from tracerouter.quota.state import QuotaState

__all__ = [
    "ENDLESS_LEASE",
    "LEASE_MARGIN",
    "Calendar",
    "Hold",
    "QuotaState",
    "RedisLedger",
    "Relief",
    "SqliteLedger",
    "relieve",
    "reserve",
]
