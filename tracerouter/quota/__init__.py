"""What callers may spend, and have spent."""

from tracerouter.quota.accounts import Calendar
from tracerouter.quota.confirmations import Confirmations
from tracerouter.quota.hold import ENDLESS_LEASE, LEASE_MARGIN, Hold, reserve
from tracerouter.quota.jobs import Jobs
from tracerouter.quota.ledger import SqliteLedger
from tracerouter.quota.rates import MemoryRates, RedisRates
from tracerouter.quota.redis import RedisLedger
from tracerouter.quota.relief import Later, Relief, relieve
from tracerouter.quota.state import QuotaState

__all__ = [
    "ENDLESS_LEASE",
    "LEASE_MARGIN",
    "Calendar",
    "Confirmations",
    "Hold",
    "Jobs",
    "Later",
    "MemoryRates",
    "QuotaState",
    "RedisLedger",
    "RedisRates",
    "Relief",
    "SqliteLedger",
    "relieve",
    "reserve",
]
