"""What an attempt is booked on: who, in which role, in which day and month.

An account is a tenant's, or within it a team's or a user's; it counts all calls or those of one role; and it counts
for a day or for a month. Callers without a team (or a user) share the account of those, so that leaving it out is no
way around a limit.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple
from zoneinfo import ZoneInfo

from tracerouter.types import Role

if TYPE_CHECKING:
    from datetime import tzinfo

    from tracerouter.types import Caller, Limit

ALL: Final = "all"
"""Every role together."""

_QUARTER: Final = 900
"""Seconds; every zone's midnight falls on a quarter of an hour."""


class Account(NamedTuple):
    """The name of an account, within its tenant."""

    period: str
    """``2026-11-24`` or ``2026-11``."""
    scope: str
    """``tenant``, ``team:NAME`` or ``user:NAME``."""
    role: str
    """A role, or :data:`ALL`. On ``expensive`` every ``fallback`` is booked, too."""


class Calendar:
    """The days and months of one time zone.

    Args:
        zone: Its IANA name.
    """

    def __init__(self, zone: str = "UTC") -> None:
        self._zone: tzinfo = UTC if zone == "UTC" else ZoneInfo(zone)

    def day(self, at: float) -> str:
        """Return the day of `at` (Unix seconds), such as ``2026-11-24``."""
        return _day(int(at // _QUARTER), self._zone)

    def days(self, period: str) -> list[str]:
        """Return the days of a period: itself, or each of a month."""
        if len(period) > len("2026-11"):
            return [period]
        return [f"{period}-{day:02}" for day in range(1, monthrange(int(period[:4]), int(period[5:]))[1] + 1)]

    def period(self, name: str, at: float) -> str:
        """Return the ``day`` or ``month`` of `at`."""
        day = self.day(at)
        return day if name == "day" else day[:7]

    def end(self, name: str, at: float) -> float:
        """Return the Unix seconds at which the ``day`` or ``month`` of `at` ends."""
        here = datetime.fromtimestamp(at, self._zone).replace(hour=0, minute=0, second=0, microsecond=0)
        first = here + timedelta(days=1) if name == "day" else (here.replace(day=1) + timedelta(days=32)).replace(day=1)
        return first.timestamp()

    def accounts(self, caller: Caller, role: Role, at: float) -> list[Account]:
        """Return every account on which an attempt of `caller` in `role`, begun `at`, is booked."""
        day, who, what = self.day(at), scopes(caller.team, caller.user), roles(role)
        return [Account(period, one, other) for period in (day, day[:7]) for one in who for other in what]

    def account(self, limit: Limit, caller: Caller, at: float) -> Account:
        """Return the account that `limit` bounds."""
        return Account(self.period(limit.period, at), scope(limit.per, caller), limit.role.value if limit.role else ALL)


def scope(per: str, caller: Caller) -> str:
    """Return whose account it is."""
    if per == "tenant":
        return per
    named = {"team": caller.team, "user": caller.user, "key": caller.key}
    return f"{per}:{named[per] or ''}"


def scopes(team: str | None, user: str | None) -> tuple[str, str, str]:
    """Return whose accounts a call is booked on."""
    return "tenant", f"team:{team or ''}", f"user:{user or ''}"


def roles(role: str) -> tuple[str, ...]:
    """Return in which accounts of theirs a call in `role` counts."""
    return (ALL, Role.FALLBACK.value, Role.EXPENSIVE.value) if role == Role.FALLBACK else (ALL, str(role))


@lru_cache(maxsize=256)
def _day(quarter: int, zone: tzinfo) -> str:
    return datetime.fromtimestamp(quarter * _QUARTER, zone).strftime("%Y-%m-%d")
