"""The ledger in SQLite: what is reserved and what was spent, for the processes of one machine."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import orjson

from tracerouter.quota.accounts import Calendar
from tracerouter.types import Balance, Denied, Headroom, Reservation, Spend

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Iterable

    from tracerouter.quota.accounts import Account
    from tracerouter.store import SqliteStore
    from tracerouter.types import Caller, Claim, Entry, Role

_INSERT: Final = "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_BOOK: Final = """
INSERT INTO accounts
SELECT value ->> 0, ?1, value ->> 1, value ->> 2, ?3, ?4, ?5, ?6, ?7, ?8 FROM json_each(?2) WHERE true
ON CONFLICT DO UPDATE SET
    cost_nanos = cost_nanos + excluded.cost_nanos, requests = requests + excluded.requests,
    tokens = tokens + excluded.tokens, held_nanos = held_nanos + excluded.held_nanos,
    held_requests = held_requests + excluded.held_requests, held_tokens = held_tokens + excluded.held_tokens
"""
"""All accounts at once: each step of a statement is one more wait for the interpreter's lock, while that of the file is
held."""
_TAKEN: Final = """
SELECT cost_nanos + held_nanos, requests + held_requests, tokens + held_tokens
FROM accounts WHERE period = ? AND tenant = ? AND scope = ? AND role = ?
"""
_RESERVE: Final = """
INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    expires = excluded.expires, cost_nanos = cost_nanos + excluded.cost_nanos,
    requests = requests + excluded.requests, tokens = tokens + excluded.tokens
"""
_RELEASE: Final = """
DELETE FROM reservations WHERE id = ? AND attempt = ? RETURNING tenant, accounts, cost_nanos, requests, tokens
"""
_EXPIRE: Final = "DELETE FROM reservations WHERE expires <= ? RETURNING tenant, accounts, cost_nanos, requests, tokens"
_EXPIRED: Final = "SELECT accounts, cost_nanos, requests, tokens FROM reservations WHERE tenant = ? AND expires <= ?"
_BALANCE: Final = """
SELECT cost_nanos, requests, tokens, held_nanos, held_requests, held_tokens
FROM accounts WHERE period = ? AND tenant = ? AND scope = ? AND role = ?
"""
_LEADERS: Final = """
SELECT tenant, cost_nanos FROM accounts WHERE period = ? AND scope = 'tenant' AND role = 'all' ORDER BY 2 DESC
"""
_NOTHING: Final = Spend()


class SqliteLedger:
    """Accounts in the store's file. An attempt is booked once, however often it is settled.

    Args:
        store: Where.
        zone: IANA name of the time zone whose midnight ends a day.
    """

    def __init__(self, store: SqliteStore, zone: str = "UTC") -> None:
        self._store = store
        self.calendar = Calendar(zone)

    @property
    def available(self) -> bool:
        """Whether limits can be checked, as far as is known."""
        return self._store.available

    @property
    def waiting(self) -> int:
        """How many entries are not booked yet, since the disk fails."""
        return self._store.waiting

    async def start(self) -> None:
        """Do nothing: it is there."""

    async def close(self) -> None:
        """Do nothing: what it holds is the store's."""

    async def reserve(self, claim: Claim) -> Reservation | Denied:
        """Hold the claim's bound on all of its caller's accounts, or on none, if a limit has no room for it.

        Raises:
            StoreUnavailable: The disk fails.
        """
        return await self._store.transact(partial(self._reserved, claim))

    def release(self, claim: Claim) -> Awaitable[None]:
        """Give back what was reserved for `claim`, if it was."""
        return self._store.write(partial(_released, claim.id, claim.attempt))

    def settle(self, entry: Entry) -> Awaitable[None]:
        """Book one attempt, in the periods of its request's start, and release what was reserved for it.

        Await the result to know that it is committed.
        """
        return self._store.write(partial(self._settled, entry))

    def balance(self, tenant: str, account: Account) -> Balance:
        """Return what was spent on an account, and what is reserved. Blocks; for terminals and gauges."""
        rows = self._store.read(_BALANCE, _key(tenant, account))
        spent, held = (Spend(*rows[0][:3]), Spend(*rows[0][3:])) if rows else (_NOTHING, _NOTHING)
        for accounts, *bound in self._store.read(_EXPIRED, (tenant, time.time())):  # soon released
            if list(account) in orjson.loads(accounts):
                held = Spend(*(mine - its for mine, its in zip(held, bound, strict=True)))
        return Balance(spent, held)

    def leaders(self, period: str) -> list[tuple[str, int]]:
        """Return what each tenant has spent (nano-dollars) in a day or month, most first. Blocks; for gauges."""
        return [(tenant, nanos) for tenant, nanos in self._store.read(_LEADERS, (period,))]

    def _reserved(self, claim: Claim, connection: sqlite3.Connection) -> Reservation | Denied:
        now = time.time()
        _expire(now, connection)
        headroom = []
        for limit in claim.limits:
            account = self.calendar.account(limit, claim.caller, claim.time)
            row = connection.execute(_TAKEN, _key(claim.caller.tenant, account)).fetchone()
            left = limit.amount - limit.of(Spend(*row) if row else _NOTHING)
            if left < limit.of(claim.bound):
                ends = self.calendar.end(limit.period, claim.time)
                return Denied(limit, max(left, 0), max(ends - now, 0.0))
            headroom.append(Headroom(limit, left - limit.of(claim.bound)))
        accounts = self._accounts(claim.caller, claim.role, claim.time)
        _book(connection, claim.caller.tenant, accounts, held=claim.bound)
        row = (claim.id, claim.attempt, now + claim.lease, claim.caller.tenant, accounts, *claim.bound)
        connection.execute(_RESERVE, row)
        return Reservation(claim.bound, tuple(headroom))

    def _settled(self, entry: Entry, connection: sqlite3.Connection) -> None:
        caller = entry.caller
        if insert(entry, self.calendar.day(entry.time), connection):
            _book(connection, caller.tenant, self._accounts(caller, entry.role, entry.time), entry.spend)
        if entry.reservation is not None:
            _released(entry.id, entry.attempt, connection)

    def _accounts(self, caller: Caller, role: Role, at: float) -> str:
        """Return them as the file keeps them: ``[[period, scope, role], …]``."""
        return orjson.dumps([list(one) for one in self.calendar.accounts(caller, role, at)]).decode()


def insert(entry: Entry, day: str, connection: sqlite3.Connection) -> bool:
    """Write an entry down; False: it was there."""
    caller, used = entry.caller, entry.usage
    row = (
        entry.id,
        entry.attempt,
        entry.request_id,
        entry.time,
        day,
        caller.tenant,
        caller.team,
        caller.user,
        entry.role,
        entry.model,
        used.input if used else 0,
        used.output if used else 0,
        entry.cost.nanos,
        entry.cost.source,
    )
    return bool(connection.execute(_INSERT, row).rowcount)


def _key(tenant: str, account: Account) -> tuple[str, str, str, str]:
    return account.period, tenant, account.scope, account.role


def _book(
    connection: sqlite3.Connection, tenant: str, accounts: str, spent: Spend = _NOTHING, *, held: Spend = _NOTHING
) -> None:
    connection.execute(_BOOK, (tenant, accounts, *spent, *held))


def _released(identity: str, attempt: int, connection: sqlite3.Connection) -> None:
    _release(connection, connection.execute(_RELEASE, (identity, attempt)))


def _expire(now: float, connection: sqlite3.Connection) -> None:
    """Release what owners that died held."""
    _release(connection, connection.execute(_EXPIRE, (now,)))


def _release(connection: sqlite3.Connection, rows: Iterable[tuple[str, str, int, int, int]]) -> None:
    for tenant, accounts, *bound in list(rows):
        _book(connection, tenant, accounts, held=Spend(*(-amount for amount in bound)))
