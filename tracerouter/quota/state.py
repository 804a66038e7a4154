"""Where callers stand: their limits, for the API, the terminal and the gauges."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from cachebox import LRUCache

from tracerouter.errors import StoreUnavailable
from tracerouter.quota.accounts import ALL, Account
from tracerouter.types import NANOS, usd

if TYPE_CHECKING:
    from tracerouter.policy import Policy
    from tracerouter.quota.accounts import Calendar
    from tracerouter.types import Balance, Caller, Limit

_LEADERS: Final = 20
"""Tenants that gauges name, at most."""
_KNOWN: Final = 10_000
"""Tenants of which the tier is remembered, at most."""
_PERIODS: Final = ("day", "month")


class Books(Protocol):
    """A ledger, as it is read. Both block, and raise StoreUnavailable where its store does not answer."""

    calendar: Calendar

    def balance(self, tenant: str, account: Account) -> Balance:
        """Return what was spent on an account, and what is reserved."""
        ...

    def leaders(self, period: str) -> list[tuple[str, int]]:
        """Return what each tenant has spent (nano-dollars) in a day or month, most first."""
        ...


class QuotaState:
    """Reads the ledger against the policy's limits. All of it blocks.

    Where the ledger's store does not answer, what gauges read is empty; the rest raises StoreUnavailable.

    Args:
        ledger: What was spent.
        policy: The limits.
    """

    def __init__(self, ledger: Books, policy: Policy) -> None:
        self._ledger = ledger
        self._policy = policy
        self._tiers: LRUCache[str, str | None] = LRUCache(_KNOWN)

    def seen(self, caller: Caller) -> None:
        """Remember a tenant's tier, which says what limits it has: gauges know tenants by name alone."""
        self._tiers.insert(caller.tenant, caller.tier)

    def of(self, caller: Caller) -> list[dict[str, Any]]:
        """Return how each limit stands that holds for `caller`. Money is fixed-point, in USD."""
        now = time.time()
        return [self._told(limit, caller, now) for limit in self._policy.limits if limit.concerns(caller)]

    def tenants(self) -> list[dict[str, Any]]:
        """Return what each tenant has spent today and this month, most first."""
        now = time.time()
        today, month = (dict(self._ledger.leaders(self._ledger.calendar.period(name, now))) for name in _PERIODS)
        return [{"tenant": one, "day": usd(today.get(one, 0)), "month": usd(nanos)} for one, nanos in month.items()]

    def spend(self) -> list[tuple[tuple[str, str], float]]:
        """Return ``((tenant, period), USD)`` of the tenants that spend most, and of all others as ``other``."""
        now = time.time()
        found: list[tuple[tuple[str, str], float]] = []
        with suppress(StoreUnavailable):
            for period in _PERIODS:
                rows = self._ledger.leaders(self._ledger.calendar.period(period, now))
                others = sum(nanos for _, nanos in rows[_LEADERS:])
                rows = [*rows[:_LEADERS], *([("other", others)] if len(rows) > _LEADERS else [])]
                found += [((tenant, period), nanos / NANOS) for tenant, nanos in rows]
        return found

    def budgets(self) -> list[tuple[tuple[str, str], float]]:
        """Return ``((tenant, period), USD)``: what those tenants may spend, as far as their tier is known."""
        return [(key, limit.amount / NANOS) for key, limit, _ in self._budgets()]

    def remaining(self) -> list[tuple[tuple[str, str], float]]:
        """Return the same of what they have left."""
        return [(key, max(limit.amount - taken, 0) / NANOS) for key, limit, taken in self._budgets()]

    def _budgets(self) -> list[tuple[tuple[str, str], Limit, int]]:
        found: list[tuple[tuple[str, str], Limit, int]] = []
        with suppress(StoreUnavailable):
            self._find_budgets(found)
        return found

    def _find_budgets(self, found: list[tuple[tuple[str, str], Limit, int]]) -> None:
        now, calendar = time.time(), self._ledger.calendar
        for period in _PERIODS:
            limits = [
                limit
                for limit in self._policy.limits
                if (limit.per, limit.unit, limit.role, limit.period) == ("tenant", "cost_nanos", None, period)
            ]
            name = calendar.period(period, now)
            for tenant, _ in self._ledger.leaders(name)[:_LEADERS] if limits else ():
                tier = self._tiers.get(tenant)
                own = [one for one in limits if one.tier in (None, tier) and one.tenant in (None, tenant)]
                if own:
                    taken = self._ledger.balance(tenant, Account(name, "tenant", ALL)).taken.cost_nanos
                    found.append(((tenant, period), min(own, key=lambda one: one.amount), taken))

    def _told(self, limit: Limit, caller: Caller, now: float) -> dict[str, Any]:
        calendar = self._ledger.calendar
        balance = self._ledger.balance(caller.tenant, calendar.account(limit, caller, now))
        spent, held = limit.of(balance.spent), limit.of(balance.held)
        amounts = {
            "limit": limit.amount,
            "spent": spent,
            "reserved": held,
            "remaining": max(limit.amount - spent - held, 0),
        }
        money = limit.unit == "cost_nanos"
        return {
            "name": limit.name,
            "per": limit.per,
            "role": limit.role,
            "unit": "USD" if money else limit.unit,
            "period": limit.period,
            **{name: usd(amount) if money else amount for name, amount in amounts.items()},
            "resets_at": calendar.end(limit.period, now),
            "then": list(limit.then),
        }
