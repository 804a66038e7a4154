"""How limits stand, read from a real ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tracerouter.errors import StoreUnavailable
from tracerouter.policy import Policy, PolicyFile
from tracerouter.quota import QuotaState, SqliteLedger
from tracerouter.quota.accounts import Calendar
from tracerouter.store import SqliteStore
from tracerouter.types import NANOS, Caller, Claim, Cost, Entry, Reservation, Role, Spend, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ACME, ANN = Caller("acme"), Caller("acme", "web", "ann")

State = Callable[..., QuotaState]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "tracerouter.db")
    yield opened
    opened.close()


@pytest.fixture
def ledger(store: SqliteStore) -> SqliteLedger:
    return SqliteLedger(store)


@pytest.fixture
def state(store: SqliteStore) -> State:
    """Make the state of a policy with these quotas; `by_key` are the callers that keys stand for."""

    def made(*quotas: dict[str, Any], by_key: Iterable[Caller] = (), **policy: Any) -> QuotaState:
        read = Policy.of(PolicyFile.model_validate({"ladder": ["small", "large"], "quotas": [*quotas], **policy}))
        return QuotaState(SqliteLedger(store, read.timezone), read, by_key)

    return made


async def book(ledger: SqliteLedger, caller: Caller, usd: float, role: Role = Role.CHEAP) -> None:
    """Spend, now, with 15 tokens."""
    known = f"{caller}-{usd}-{role}-{time.perf_counter_ns()}"
    await ledger.settle(
        Entry(known, known, 1, time.time(), caller, role, "small", Usage(10, 5), Cost(round(usd * NANOS)))
    )


def named(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {limit["name"]: limit for limit in told["limits"]}


async def test_a_limit_is_told_whole(ledger: SqliteLedger, state: State) -> None:
    """What may be spent, what was, what is held and what is left, in the limit's unit; and when that ends."""
    quota = {"per": "tenant", "limit": "5 USD/month", "then": ["downgrade", "refuse"], "fallback": "accept"}
    seen = state(quota, {"per": "tenant", "limit": "10 requests/day"}, {"per": "tenant", "limit": "100 tokens/day"})
    await book(ledger, ACME, 1.25)
    claim = Claim("r", 1, time.time(), ACME, Role.CHEAP, Spend(NANOS // 2, 1, 40), (), 60)
    assert isinstance(await ledger.reserve(claim), Reservation)
    around = {int(Calendar().end("month", time.time()))}
    told = seen.of(ACME)
    around.add(int(Calendar().end("month", time.time())))
    assert {key: told[key] for key in ("object", "tenant", "team", "user", "tier")} == {
        "object": "quota", "tenant": "acme", "team": None, "user": None, "tier": None,
    }  # fmt: skip
    money, requests, tokens = told["limits"]
    assert money.pop("resets_at") in around
    assert money == {
        "name": "tenant 5 USD/month", "per": "tenant", "tier": None, "role": None, "unit": "USD", "period": "month",
        "limit": "5.000000000", "spent": "1.250000000", "reserved": "0.500000000", "remaining": "3.250000000",
        "then": ["downgrade", "refuse"], "fallback": "accept",
    }  # fmt: skip
    amounts = ("unit", "limit", "spent", "reserved", "remaining")
    assert [requests[name] for name in amounts] == ["requests", 10, 1, 1, 8]
    assert [tokens[name] for name in amounts] == ["tokens", 100, 15, 40, 45]


async def test_what_is_left_is_never_below_nothing(ledger: SqliteLedger, state: State) -> None:
    """A call may cost more than was held for it."""
    seen = state({"per": "tenant", "limit": "1 USD/day"})
    await book(ledger, ACME, 1.5)
    (limit,) = seen.of(ACME)["limits"]
    assert (limit["spent"], limit["remaining"]) == ("1.500000000", "0.000000000")
    assert seen.remaining() == [(("acme", "day"), 0.0)]


async def test_a_caller_is_told_of_its_own_accounts(ledger: SqliteLedger, state: State) -> None:
    """Its tenant's, its team's and its user's; and of those limits alone that hold for its tenant and tier."""
    seen = state(
        {"per": "tenant", "limit": "9 USD/day"},
        {"per": "team", "limit": "8 USD/day"},
        {"per": "user", "limit": "7 USD/day"},
        {"per": "user", "limit": "6 USD/day", "role": "expensive"},
        {"per": "tenant", "limit": "5 USD/day", "tier": "free"},
        {"per": "tenant", "limit": "4 USD/day", "tenant": "globex"},
        tiers={"free": {}},
    )
    await book(ledger, ANN, 0.1)
    await book(ledger, ANN, 0.2, Role.FALLBACK)
    await book(ledger, Caller("acme", "web", "bob"), 0.4)
    await book(ledger, Caller("acme"), 0.8)
    await book(ledger, Caller("globex", "web", "ann"), 1.6)

    def spent(caller: Caller) -> dict[str, float]:
        return {name: float(limit["spent"]) for name, limit in named(seen.of(caller)).items()}

    assert spent(ANN) == {
        "tenant 9 USD/day": 1.5, "team 8 USD/day": 0.7, "user 7 USD/day": 0.3, "user expensive 6 USD/day": 0.2,
    }  # fmt: skip
    assert spent(Caller("acme", tier="free")) == {
        "tenant 9 USD/day": 1.5, "team 8 USD/day": 0.8, "user 7 USD/day": 0.8, "user expensive 6 USD/day": 0,
        "free tenant 5 USD/day": 1.5,
    }  # fmt: skip
    assert spent(Caller("globex"))["globex tenant 4 USD/day"] == 1.6


async def test_a_tenant_is_told_with_what_it_spent(ledger: SqliteLedger, state: State) -> None:
    """For who may see every tenant: a team and a user have to be named, else theirs would be that of nobody."""
    seen = state(*({"per": per, "limit": "5 USD/month"} for per in ("tenant", "team", "user")))
    await book(ledger, ANN, 2)
    told = seen.of_tenant(ACME)
    assert told["spent"] == {"day": "2.000000000", "month": "2.000000000"}
    assert [*named(told)] == ["tenant 5 USD/month"]
    assert [*named(seen.of_tenant(Caller("acme", team="web")))] == ["tenant 5 USD/month", "team 5 USD/month"]
    told = seen.of_tenant(Caller("acme", user="bob"))
    assert [(name, limit["spent"]) for name, limit in named(told).items()] == [
        ("tenant 5 USD/month", "2.000000000"),
        ("user 5 USD/month", "0.000000000"),
    ]


TIERED = (
    {"per": "tenant", "limit": "9 USD/day"},
    {"per": "tenant", "limit": "5 USD/day", "tier": "free"},
    {"per": "tenant", "limit": "7 USD/day", "tier": "paid"},
)
TIERS: dict[str, Any] = {"free": {}, "paid": {}}


@pytest.mark.parametrize(
    ("by_key", "last", "told", "budget"),
    [
        ((), None, {None, "free", "paid"}, None),
        ((), Caller("acme", tier="paid"), {None, "paid"}, 7),
        ((), Caller("acme"), {None}, 9),
        ((Caller("acme", tier="free"),), None, {None, "free"}, 5),
        ((Caller("acme", tier="free"),), Caller("acme", tier="paid"), {None, "free"}, 5),
        ((Caller("acme", tier="free"), Caller("acme", tier="paid")), None, {None, "free", "paid"}, 5),
    ],
)
async def test_limits_of_a_tier_hold_for_the_tenants_that_have_it(
    ledger: SqliteLedger,
    state: State,
    by_key: tuple[Caller, ...],
    last: Caller | None,
    told: set[str | None],
    budget: float | None,
) -> None:
    """Keys say which; else the tenant's last request does. A gauge tells no limit that may be the wrong one."""
    seen = state(*TIERED, by_key=by_key, tiers=TIERS)
    if last is not None:
        seen.seen(last)
    await book(ledger, ACME, 1)
    assert {limit["tier"] for limit in seen.of_tenant(ACME)["limits"]} == told
    assert seen.budgets() == ([] if budget is None else [(("acme", "day"), budget)])
    assert seen.remaining() == ([] if budget is None else [(("acme", "day"), budget - 1)])
    assert {limit["tier"] for limit in seen.of_tenant(Caller("acme", tier="paid"))["limits"]} == {None, "paid"}


async def test_processes_agree_on_a_budget(ledger: SqliteLedger, state: State) -> None:
    """One that has seen a tenant and one that has not never tell two limits: dashboards take the largest."""
    first, second = (state(*TIERED, tiers=TIERS) for _ in range(2))
    await book(ledger, ACME, 1)
    first.seen(Caller("acme", tier="free"))
    assert {*first.budgets(), *second.budgets()} == {(("acme", "day"), 5.0)}
    assert {*first.remaining(), *second.remaining()} == {(("acme", "day"), 4.0)}


async def test_budgets_are_the_tenants_whole_money(ledger: SqliteLedger, state: State) -> None:
    """The narrowest limit in USD that counts every call; a team's, a role's, or one in requests is no budget."""
    seen = state(
        {"per": "tenant", "limit": "9 USD/day"},
        {"per": "tenant", "limit": "3 USD/day", "name": "narrow"},
        {"per": "tenant", "limit": "50 USD/month"},
        {"per": "tenant", "limit": "1 USD/day", "role": "expensive"},
        {"per": "team", "limit": "1 USD/day"},
        {"per": "tenant", "limit": "1 requests/day"},
    )
    await book(ledger, ACME, 1)
    assert dict(seen.budgets()) == {("acme", "day"): 3, ("acme", "month"): 50}
    assert dict(seen.remaining()) == {("acme", "day"): 2, ("acme", "month"): 49}


async def test_gauges_name_the_twenty_that_spend_most(ledger: SqliteLedger, state: State) -> None:
    """All others are one; none of their budgets is told."""
    seen = state({"per": "tenant", "limit": "100 USD/day"})
    for number in range(1, 23):
        await book(ledger, Caller(f"t{number}"), number)
    spend = dict(seen.spend())
    assert [tenant for tenant, period in spend if period == "day"] == [*(f"t{n}" for n in range(22, 2, -1)), "other"]
    assert spend["other", "day"] == spend["other", "month"] == 3
    assert {tenant for (tenant, _), _ in seen.budgets()} == {f"t{number}" for number in range(3, 23)}


async def test_tenants_come_in_pages_by_name(ledger: SqliteLedger, state: State) -> None:
    """Those that have spent and those that have a key, each once."""
    seen = state(by_key=[Caller("b"), Caller("d"), Caller("b", tier="free")])
    for name, usd in (("c", 1), ("b", 3), ("a", 2)):
        await book(ledger, Caller(name), usd)
    assert seen.tenants() == ["b", "a", "c", "d"]
    pages, after, more = [], "", True
    while more:
        page, more = seen.page(after, 2)
        pages.append([one["tenant"] for one in page])
        after = pages[-1][-1]
    assert pages == [["a", "b"], ["c", "d"]]
    assert seen.page("d", 2) == ([], False)


async def test_a_day_ends_where_the_policy_says(ledger: SqliteLedger, state: State) -> None:
    """At its own zone's midnight."""
    seen = state({"per": "tenant", "limit": "9 USD/day"}, timezone="Asia/Kolkata")
    (limit,) = seen.of(ACME)["limits"]
    assert limit["resets_at"] % 86_400 == 18.5 * 3600  # half past six in the evening, UTC


def test_a_store_that_is_gone_is_said_so(store: SqliteStore, state: State) -> None:
    """Every reader gets the one error that the service degrades by."""
    seen = state({"per": "tenant", "limit": "9 USD/day"})
    store.close()
    for ask in (lambda: seen.of(ACME), lambda: seen.of_tenant(ACME), seen.tenants, seen.spend, seen.budgets):
        with pytest.raises(StoreUnavailable, match=r"store: .*tracerouter\.db can't be read"):
            ask()
