"""Where callers stand: their limits, for the API, the terminal and the gauges."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from cachebox import LRUCache

from tracerouter.quota.accounts import ALL, Account
from tracerouter.types import NANOS, Caller, usd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracerouter.policy import Policy
    from tracerouter.quota.accounts import Calendar
    from tracerouter.types import Balance, Limit

_LEADERS: Final = 20
"""Tenants that gauges name, at most."""
_SEEN: Final = 10_000
"""Tenants of which the tier is remembered, at most."""
_PERIODS: Final = ("day", "month")

Told = dict[str, Any]


class Books(Protocol):
    """A ledger, as it is read. Both block, and raise ``StoreUnavailable``."""

    calendar: Calendar

    def balance(self, tenant: str, account: Account) -> Balance:
        """Return what was spent on an account, and what is reserved."""
        ...

    def leaders(self, period: str) -> list[tuple[str, int]]:
        """Return what each tenant has spent (nano-dollars) in a day or month, most first."""
        ...


class QuotaState:
    """Reads the ledger against the policy's limits. All of it blocks, and raises ``StoreUnavailable``.

    A limit may hold for one tier alone, and the ledger knows tenants by name. What tiers a tenant has is told by the
    API keys; where an application identifies its callers itself, by the tenant's last request.

    Args:
        ledger: What was spent.
        policy: The limits.
        callers: Those that API keys stand for.
    """

    def __init__(self, ledger: Books, policy: Policy, callers: Iterable[Caller] = ()) -> None:
        self._ledger = ledger
        self._policy = policy
        self._by_key: dict[str, set[str | None]] = {}
        for caller in callers:
            self._by_key.setdefault(caller.tenant, set()).add(caller.tier)
        self._seen: LRUCache[str, str | None] = LRUCache(_SEEN)

    def seen(self, caller: Caller) -> None:
        """Remember a tenant's tier."""
        self._seen.insert(caller.tenant, caller.tier)

    def of(self, caller: Caller) -> Told:
        """Return how each limit stands that holds for `caller`: its tenant's, its team's and its user's."""
        held = [limit for limit in self._policy.limits if limit.concerns(caller)]
        return self._told(caller, held)

    def of_tenant(self, who: Caller) -> Told:
        """Return what a tenant has spent, and how its limits stand, for who may see every tenant.

        Args:
            who: The tenant. Limits per team and per user are told of the `team` and the `user` that it names; those of
                every tier that the tenant may have are told, if it names none.
        """
        limits = self._limits(who.tenant, self._tiers(who.tenant) if who.tier is None else {who.tier})
        named = {"tenant": who.tenant, "team": who.team, "user": who.user}
        held = [limit for limit in limits if named[limit.per] is not None]
        now = time.time()
        spent = {name: usd(self._taken(who.tenant, name, now).spent.cost_nanos) for name in _PERIODS}
        return {**self._told(who, held), "spent": spent}

    def tenants(self) -> list[str]:
        """Return every tenant that has spent something this month, most first, and then the others that have a key."""
        spent = [tenant for tenant, _ in self._ledger.leaders(self._ledger.calendar.period("month", time.time()))]
        return [*spent, *sorted(self._by_key.keys() - spent)]

    def page(self, after: str, limit: int) -> tuple[list[Told], bool]:
        """Return :meth:`of_tenant` of `limit` tenants by name, from behind `after` on, and whether there are more."""
        names = sorted(name for name in self.tenants() if name > after)
        return [self.of_tenant(Caller(name)) for name in names[:limit]], len(names) > limit

    def spend(self) -> list[tuple[tuple[str, str], float]]:
        """Return ``((tenant, period), USD)`` of the tenants that spend most, and of all others as ``other``."""
        now = time.time()
        found = []
        for period in _PERIODS:
            rows = self._ledger.leaders(self._ledger.calendar.period(period, now))
            others = sum(nanos for _, nanos in rows[_LEADERS:])
            rows = [*rows[:_LEADERS], *([("other", others)] if len(rows) > _LEADERS else [])]
            found += [((tenant, period), nanos / NANOS) for tenant, nanos in rows]
        return found

    def budgets(self) -> list[tuple[tuple[str, str], float]]:
        """Return ``((tenant, period), USD)``: what those tenants may spend, by their narrowest limit on all of it.

        Nothing is told of a tenant whose tier is not known where that matters: of processes that tell different limits
        none could be believed.
        """
        return [(key, limit.amount / NANOS) for key, limit, _ in self._budgets()]

    def remaining(self) -> list[tuple[tuple[str, str], float]]:
        """Return the same of what they have left."""
        return [(key, max(limit.amount - taken, 0) / NANOS) for key, limit, taken in self._budgets()]

    def _budgets(self) -> list[tuple[tuple[str, str], Limit, int]]:
        now, calendar = time.time(), self._ledger.calendar
        found = []
        for period in _PERIODS:
            leaders = self._ledger.leaders(calendar.period(period, now)) if self._policy.limits else []
            for tenant, _ in leaders[:_LEADERS]:
                tiers = self._tiers(tenant)
                own = [
                    limit
                    for limit in self._limits(tenant, tiers)
                    if (limit.per, limit.unit, limit.role, limit.period) == ("tenant", "cost_nanos", None, period)
                ]
                if own and not (tiers is None and any(limit.tier is not None for limit in own)):
                    taken = self._taken(tenant, period, now).taken.cost_nanos
                    found.append(((tenant, period), min(own, key=lambda one: one.amount), taken))
        return found

    def _tiers(self, tenant: str) -> set[str | None] | None:
        """Return the tiers that a tenant's callers have. None: that is not known."""
        if tenant in self._by_key:
            return self._by_key[tenant]
        return {self._seen[tenant]} if tenant in self._seen else None

    def _limits(self, tenant: str, tiers: set[str | None] | None) -> list[Limit]:
        """Return those that hold for callers of these tiers, or of any."""
        return [
            limit
            for limit in self._policy.limits
            if limit.tenant in (None, tenant) and (limit.tier is None or tiers is None or limit.tier in tiers)
        ]

    def _taken(self, tenant: str, period: str, now: float) -> Balance:
        return self._ledger.balance(tenant, Account(self._ledger.calendar.period(period, now), "tenant", ALL))

    def _told(self, who: Caller, limits: Iterable[Limit]) -> Told:
        now = time.time()
        whose = {"tenant": who.tenant, "team": who.team, "user": who.user, "tier": who.tier}
        return {"object": "quota", **whose, "limits": [self._stands(limit, who, now) for limit in limits]}

    def _stands(self, limit: Limit, who: Caller, now: float) -> Told:
        calendar = self._ledger.calendar
        balance = self._ledger.balance(who.tenant, calendar.account(limit, who, now))
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
            "tier": limit.tier,
            "role": limit.role,
            "unit": "USD" if money else limit.unit,
            "period": limit.period,
            **{name: usd(amount) if money else amount for name, amount in amounts.items()},
            "resets_at": int(calendar.end(limit.period, now)),
            "then": list(limit.then),
            "fallback": limit.fallback,
        }
