"""What was spent: one entry an attempt or classifier's call, summed by day, tenant, team, user and role."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from tracerouter.types import NANOS

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from datetime import tzinfo

    from tracerouter.store import SqliteStore
    from tracerouter.types import Entry

    Period = Literal["day", "month"]

_INSERT: Final = "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SUMS: Final = (
    "coalesce(sum(cost_nanos), 0), coalesce(sum(requests) FILTER (WHERE role <> 'classify'), 0), "
    "coalesce(sum(input_tokens + output_tokens), 0)"
)
_LEADERS: Final = 20


class Spend(NamedTuple):
    """What was spent in a period: nano-dollars of known cost, attempts, tokens both ways.

    A classifier's call (role ``classify``) costs, but is no attempt.
    """

    cost_nanos: int
    requests: int
    tokens: int


class SqliteLedger:
    """The ledger in the store's file. An attempt is booked once, however often it is settled.

    Args:
        store: Where.
        zone: IANA name of the zone whose midnight ends a day.
    """

    def __init__(self, store: SqliteStore, zone: str = "UTC") -> None:
        self._store = store
        self._zone: tzinfo = UTC if zone == "UTC" else ZoneInfo(zone)

    def settle(self, entry: Entry) -> Awaitable[None]:
        """Book one attempt, in the period of its request's start; await the result to know that it is committed."""
        caller = entry.caller
        values = (
            entry.id,
            entry.attempt,
            entry.request_id,
            entry.time,
            self._day(entry.time),
            caller.tenant,
            caller.team,
            caller.user,
            entry.role,
            entry.model,
            entry.usage.input if entry.usage else 0,
            entry.usage.output if entry.usage else 0,
            entry.cost.nanos,
            entry.cost.source,
        )
        return self._store.write(_INSERT, values)

    def spent(  # noqa: PLR0913 - a scope may be narrowed by each
        self,
        period: Period,
        now: float,
        *,
        tenant: str | None = None,
        team: str | None = None,
        user: str | None = None,
        role: str | None = None,
    ) -> Spend:
        """Return what was spent in the day or month of `now` (Unix seconds), in the scope of all that is given."""
        scope = {"tenant": tenant, "team": team, "user": user, "role": role}
        given = {name: value for name, value in scope.items() if value is not None}
        where = " AND ".join(["day >= ?", "day <= ?", *(f"{name} = ?" for name in given)])
        days = (self._first_day(period, now), self._day(now))
        query = f"SELECT {_SUMS} FROM spend WHERE {where}"  # noqa: S608 - the names are ours, the values are bound
        ((cost, requests, tokens),) = self._store.read(query, (*days, *given.values()))
        return Spend(cost, requests, tokens)

    def tenant_spend(self) -> list[tuple[tuple[str, str], float]]:
        """Return ``((tenant, period), USD)`` of the tenants that spend most, and of all others as ``other``."""
        now = datetime.now(UTC).timestamp()
        return [
            ((tenant, period), nanos / NANOS) for period in _PERIODS for tenant, nanos in self._leaders(period, now)
        ]

    def _leaders(self, period: Period, now: float) -> list[tuple[str, int]]:
        query = "SELECT tenant, sum(cost_nanos) FROM spend WHERE day BETWEEN ? AND ? GROUP BY tenant ORDER BY 2 DESC"
        rows = self._store.read(query, (self._first_day(period, now), self._day(now)))
        others = sum(cost for _, cost in rows[_LEADERS:])
        return [*rows[:_LEADERS], *([("other", others)] if len(rows) > _LEADERS else [])]

    def _day(self, at: float) -> str:
        return _day_of(int(at // _QUARTER), self._zone)

    def _first_day(self, period: Period, now: float) -> str:
        day = self._day(now)
        return day if period == "day" else f"{day[:7]}-01"


_QUARTER: Final = 900
"""Seconds; every zone's midnight falls on a quarter of an hour."""


@lru_cache(maxsize=256)
def _day_of(quarter: int, zone: tzinfo) -> str:
    return datetime.fromtimestamp(quarter * _QUARTER, zone).strftime("%Y-%m-%d")


_PERIODS: Final[tuple[Period, ...]] = ("day", "month")
