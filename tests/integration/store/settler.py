"""A process that settles entries as requests would, and says of each, once it is durable, that it is.

``python -m tests.integration.store.settler FILE NAME COUNT``
"""

from __future__ import annotations

import asyncio
import sys

from tracerouter.quota import SqliteLedger
from tracerouter.store import SqliteStore
from tracerouter.types import Caller, Cost, Entry, Role, Usage

AT = 1_767_225_600.0  # 2026-01-01 UTC
AT_ONCE = 8


def entry(request_id: str, number: int) -> Entry:
    """Return an entry whose cost is told by its number; every fifth is of unknown cost."""
    return Entry(
        id=request_id,
        request_id=request_id,
        attempt=1,
        time=AT,
        caller=Caller(tenant=f"tenant-{number % 3}", user=f"user-{number % 2}" if number % 4 else None),
        role=Role.CHEAP,
        model="small",
        usage=Usage(input=number, output=1),
        cost=Cost(number * 1_000 + 1) if number % 5 else Cost(None),
    )


async def settle(path: str, name: str, count: int) -> None:
    """Settle `count` entries, some at once."""
    store = SqliteStore(path)
    ledger = SqliteLedger(store)

    async def request(first: int) -> None:
        for number in range(first, count, AT_ONCE):
            request_id = f"{name}-{number}"
            await ledger.settle(entry(request_id, number))
            print(request_id, flush=True)  # noqa: T201 - what the test reads

    await asyncio.gather(*(request(first) for first in range(AT_ONCE)))
    store.close()


if __name__ == "__main__":
    asyncio.run(settle(sys.argv[1], sys.argv[2], int(sys.argv[3])))
