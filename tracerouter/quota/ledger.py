"""The ledger in SQLite: what is reserved and what was spent, for the processes of one machine.

A row of ``accounts`` counts what one scope (a tenant, a team, a user) spends in one role on one day; months, and roles
together, are sums of those, so that an attempt is booked on three rows and no more.
"""

from __future__ import annotations

import time
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from tracerouter.quota.accounts import ALL, Calendar, scopes
from tracerouter.types import Balance, Caller, Denied, Headroom, Reservation, Role, Spend

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Iterable

    from tracerouter.quota.accounts import Account
    from tracerouter.store import SqliteStore
    from tracerouter.types import Claim, Entry

_INSERT: Final = "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_BOOK: Final = """
INSERT INTO accounts VALUES
    (?1, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12), (?2, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12),
    (?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
ON CONFLICT DO UPDATE SET
    cost_nanos = cost_nanos + excluded.cost_nanos, requests = requests + excluded.requests,
    tokens = tokens + excluded.tokens, held_nanos = held_nanos + excluded.held_nanos,
    held_requests = held_requests + excluded.held_requests, held_tokens = held_tokens + excluded.held_tokens
"""
"""All three at once: each step of a statement is one more wait for the interpreter's lock, while the file's is held."""
_BALANCE: Final = """
SELECT coalesce(sum(cost_nanos), 0), coalesce(sum(requests), 0), coalesce(sum(tokens), 0),
    coalesce(sum(held_nanos), 0), coalesce(sum(held_requests), 0), coalesce(sum(held_tokens), 0)
FROM accounts WHERE scope = ? AND day IN ({days}) AND tenant = ?
"""
_RESERVE: Final = """
INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    expires = excluded.expires, cost_nanos = cost_nanos + excluded.cost_nanos,
    requests = requests + excluded.requests, tokens = tokens + excluded.tokens
"""
_HELD: Final = "day, tenant, team, user, role, cost_nanos, requests, tokens"
_RELEASE: Final = f"DELETE FROM reservations WHERE id = ? AND attempt = ? RETURNING {_HELD}"  # noqa: S608 - all ours
_EXPIRE: Final = f"DELETE FROM reservations WHERE expires <= ? RETURNING {_HELD}"  # noqa: S608 - likewise
_EXPIRED: Final = f"SELECT {_HELD} FROM reservations WHERE expires <= ?"  # noqa: S608 - likewise
_LEADERS: Final = """
SELECT tenant, sum(cost_nanos) FROM accounts WHERE scope = 'tenant' AND day BETWEEN ? AND ? GROUP BY tenant
ORDER BY 2 DESC
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
        days, roles = self.calendar.days(account.period), _roles(account)
        ((*amounts,),) = self._store.read(*_balance(tenant, account.scope, days, roles))
        held = Spend(*amounts[3:])
        for day, whose, team, user, role, *bound in self._store.read(_EXPIRED, (time.time(),)):
            # whoever reserves next will release it
            counts = day in days and (not roles or role in roles)
            if counts and whose == tenant and account.scope in scopes(team, user):
                held = held.plus(Spend(*(-amount for amount in bound)))
        return Balance(Spend(*amounts[:3]), held)

    def leaders(self, period: str) -> list[tuple[str, int]]:
        """Return what each tenant has spent (nano-dollars) in a day or month, most first. Blocks; for gauges."""
        days = self.calendar.days(period)
        return [(tenant, nanos) for tenant, nanos in self._store.read(_LEADERS, (days[0], days[-1]))]

    def _reserved(self, claim: Claim, connection: sqlite3.Connection) -> Reservation | Denied:
        now, caller, day = time.time(), claim.caller, self.calendar.day(claim.time)
        _release(connection, connection.execute(_EXPIRE, (now,)))
        headroom = []
        for limit in claim.limits:
            account = self.calendar.account(limit, caller, claim.time)
            days = [one for one in self.calendar.days(account.period) if one <= day]
            amounts = connection.execute(*_balance(caller.tenant, account.scope, days, _roles(account))).fetchone()
            left = limit.amount - limit.of(Spend(*amounts[:3]).plus(Spend(*amounts[3:])))
            if left < limit.of(claim.bound):
                ends = self.calendar.end(limit.period, claim.time)
                return Denied(limit, max(left, 0), max(ends - now, 0.0))
            headroom.append(Headroom(limit, left - limit.of(claim.bound)))
        _book(connection, caller, day, claim.role, held=claim.bound)
        held = (day, caller.tenant, caller.team, caller.user, claim.role, *claim.bound)
        connection.execute(_RESERVE, (claim.id, claim.attempt, now + claim.lease, *held))
        return Reservation(claim.bound, tuple(headroom))

    def _settled(self, entry: Entry, connection: sqlite3.Connection) -> None:
        day = self.calendar.day(entry.time)
        is_new = insert(entry, day, connection)
        released = _NOTHING
        if entry.reservation is not None:
            for held in connection.execute(_RELEASE, (entry.id, entry.attempt)).fetchall():
                released = Spend(*(-amount for amount in held[-3:]))
        if is_new or released != _NOTHING:
            _book(connection, entry.caller, day, entry.role, entry.spend if is_new else _NOTHING, released)


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


def _roles(account: Account) -> tuple[str, ...]:
    """Return the roles of the attempts that an account counts; none, where it counts all."""
    if account.role == ALL:
        return ()
    return (account.role, Role.FALLBACK) if account.role == Role.EXPENSIVE else (account.role,)


def _balance(tenant: str, scope: str, days: list[str], roles: tuple[str, ...]) -> tuple[str, tuple[Any, ...]]:
    """Return the query of an account's sums, and its values."""
    return _balance_of(len(days), len(roles)), (scope, *days, tenant, *roles)


@lru_cache(maxsize=256)
def _balance_of(days: int, roles: int) -> str:
    """Return the query for so many days and roles; each is looked up by the primary key."""
    query = _BALANCE.format(days=", ".join("?" * days))
    return f"{query} AND role IN ({', '.join('?' * roles)})" if roles else query


def _book(  # noqa: PLR0913 - what a row is made of
    connection: sqlite3.Connection,
    caller: Caller,
    day: str,
    role: str,
    spent: Spend = _NOTHING,
    held: Spend = _NOTHING,
) -> None:
    connection.execute(_BOOK, (*scopes(caller.team, caller.user), day, caller.tenant, role, *spent, *held))


def _released(identity: str, attempt: int, connection: sqlite3.Connection) -> None:
    _release(connection, connection.execute(_RELEASE, (identity, attempt)))


def _release(connection: sqlite3.Connection, rows: Iterable[tuple[Any, ...]]) -> None:
    """Take what those reservations held off their accounts."""
    for day, tenant, team, user, role, *bound in list(rows):
        _book(connection, Caller(tenant, team, user), day, role, held=Spend(*(-amount for amount in bound)))
