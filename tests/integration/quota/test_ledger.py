"""What is reserved and what was spent, on each store: one and the same suite."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from tracerouter.quota import Calendar, RedisLedger, SqliteLedger
from tracerouter.quota.accounts import ALL, Account
from tracerouter.store import RedisStore, SqliteStore
from tracerouter.types import (
    Balance,
    Caller,
    Claim,
    Cost,
    Denied,
    Entry,
    Limit,
    Reservation,
    Role,
    Source,
    Spend,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    AnyLedger = SqliteLedger | RedisLedger
    Open = Callable[..., AbstractAsyncContextManager[AnyLedger]]

NOON = datetime(2026, 3, 15, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
USD = 1_000_000_000


@pytest.fixture(params=["memory", "sqlite", "redis", "redis_cluster"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Return what opens a ledger; opened again it finds what was written."""

    @asynccontextmanager
    async def redis(zone: str = "UTC") -> AsyncIterator[RedisLedger]:
        store, journal = RedisStore(request.getfixturevalue(request.param).url), SqliteStore(tmp_path / "journal.db")
        ledger = RedisLedger(store, journal, zone, window=0)
        try:
            yield ledger
        finally:
            await ledger.close()
            await store.close()
            journal.close()

    @asynccontextmanager
    async def sqlite(zone: str = "UTC") -> AsyncIterator[SqliteLedger]:
        store = SqliteStore(":memory:" if request.param == "memory" else tmp_path / "ledger.db")
        try:
            yield SqliteLedger(store, zone)
        finally:
            store.close()

    return sqlite if request.param in {"memory", "sqlite"} else redis


@pytest.fixture
async def ledger(opened: Open) -> AsyncIterator[AnyLedger]:
    async with opened() as made:
        yield made


def entry(identity: str, nanos: int | None = 100, *, at: float = NOON, attempt: int = 1, **facts: Any) -> Entry:
    role, reservation = facts.pop("role", Role.CHEAP), facts.pop("reservation", None)
    cost = Cost(nanos, Source.UNKNOWN if nanos is None else Source.REPORTED)
    caller = Caller(**facts)
    return Entry(identity, identity, attempt, at, caller, role, "small", Usage(10, 5, 3, 2), cost, reservation)


def limit(amount: int, unit: str = "cost_nanos", **facts: Any) -> Limit:
    return Limit("a limit", facts.pop("per", "tenant"), unit, amount, facts.pop("period", "day"), **facts)


def claim(identity: str, bound: int, *limits: Limit, at: float = NOON, lease: float = 60.0, **facts: Any) -> Claim:
    role, attempt = facts.pop("role", Role.CHEAP), facts.pop("attempt", 1)
    return Claim(identity, attempt, at, Caller(**facts), role, Spend(bound, 1, bound), limits, lease)


def spent(
    ledger: AnyLedger,
    period: str = "day",
    at: float = NOON,
    *,
    scope: str = "tenant",
    role: str = ALL,
    tenant: str = "default",
) -> Spend:
    return balance(ledger, period, at, scope=scope, role=role, tenant=tenant).spent


def balance(
    ledger: AnyLedger,
    period: str = "day",
    at: float = NOON,
    *,
    scope: str = "tenant",
    role: str = ALL,
    tenant: str = "default",
) -> Balance:
    return ledger.balance(tenant, Account(ledger.calendar.period(period, at), scope, role))


async def book(ledger: AnyLedger, *entries: Entry) -> None:
    await asyncio.gather(*(ledger.settle(each) for each in entries))


async def test_an_entry_is_booked_once(ledger: AnyLedger) -> None:
    """However often an attempt is settled, and with whatever cost, the first entry stands alone."""
    await book(ledger, entry("r", 100), entry("r", 100), entry("r", 700))
    await ledger.settle(entry("r", 100, at=NOON + DAY))
    assert spent(ledger, "month") == Spend(100, 1, 15)


async def test_each_attempt_is_an_entry(ledger: AnyLedger) -> None:
    """The attempts of one request are booked each, and a fallback as an expensive one, too."""
    await book(ledger, entry("r", 100), entry("r", 900, attempt=2, role=Role.FALLBACK), entry("s", 1))
    assert spent(ledger) == Spend(1001, 3, 45)
    assert spent(ledger, role="cheap") == Spend(101, 2, 30)
    assert spent(ledger, role="fallback") == spent(ledger, role="expensive") == Spend(900, 1, 15)


async def test_each_scope_has_its_account(ledger: AnyLedger) -> None:
    """Tenant, team and user are summed each, and never across tenants."""
    await book(
        ledger,
        entry("a", 1, tenant="acme", team="ops", user="ada"),
        entry("b", 10, tenant="acme", team="ops", user="bob", role=Role.EXPENSIVE),
        entry("c", 100, tenant="acme", team="dev", user="ada"),
        entry("d", 1000, tenant="globex", team="ops", user="ada"),
        entry("e", 10_000, tenant="acme"),
    )

    def cost(**scope: Any) -> int:
        return spent(ledger, **scope).cost_nanos

    assert cost(tenant="acme") == 10_111
    assert cost(tenant="globex") == 1000
    assert cost(tenant="acme", scope="team:ops") == 11
    assert cost(tenant="acme", scope="user:ada") == 101
    assert cost(tenant="acme", scope="team:") == cost(tenant="acme", scope="user:") == 10_000
    assert cost(tenant="acme", role="expensive") == cost(tenant="acme", scope="user:bob", role="expensive") == 10
    assert spent(ledger, tenant="nobody") == Spend(0, 0, 0)


@pytest.mark.parametrize("name", ["a:b", "user:ada", "{x}", "a b", "ä😀", "a'b", "a|b", ""])
async def test_names_are_taken_as_they_are(ledger: AnyLedger, name: str) -> None:
    """No name of a tenant, team or user reaches another's account."""
    tenant = name or "default"
    await book(ledger, entry("r", 5, tenant=tenant, team=name, user=name))
    await book(ledger, entry("s", 7, tenant=f"{tenant}x", team=f"{name}x", user=f"{name}x"))
    assert spent(ledger, tenant=tenant).cost_nanos == 5
    assert spent(ledger, tenant=tenant, scope=f"user:{name}").cost_nanos == 5
    assert spent(ledger, tenant=tenant, scope=f"team:{name}").cost_nanos == 5


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata", "Pacific/Auckland"])
async def test_midnight_is_the_zones(opened: Open, zone: str) -> None:
    """The zone's own midnight ends day and month, also on the days on which its clocks are put forward or back."""
    async with opened(zone) as ledger:
        for month, day in ((1, 1), (3, 29), (3, 30), (4, 5), (10, 25), (10, 26), (11, 1)):
            midnight = datetime(2026, month, day, tzinfo=ZoneInfo(zone)).timestamp()
            name = f"{month}-{day}"
            await book(
                ledger,
                entry(f"{name} before", 1, at=midnight - 1, tenant=name),
                entry(f"{name} after", 10, at=midnight + 1, tenant=name),
            )
            assert spent(ledger, "day", midnight - 3600, tenant=name).cost_nanos == 1
            assert spent(ledger, "day", midnight + 3600, tenant=name).cost_nanos == 10
            assert spent(ledger, "month", midnight + 3600, tenant=name).cost_nanos == (10 if day == 1 else 11)
            ends = ledger.calendar.end("day", midnight - 1)
            assert ends == midnight
            assert (ledger.calendar.end("month", midnight - 1) == midnight) == (day == 1)


async def test_an_unknown_cost_is_left_out_of_sums(ledger: AnyLedger) -> None:
    """An attempt of unknown cost is counted with its tokens, and adds no money."""
    await book(ledger, entry("a", 100), entry("b", None), entry("c", None))
    assert spent(ledger) == Spend(100, 3, 45)


async def test_sums_are_exact(ledger: AnyLedger) -> None:
    """Money is whole nano-dollars: no sum is off by one, however large."""
    large = 9_007_199_254_740_993  # where floats have lost the ones
    await book(ledger, entry("a", large), *(entry(f"r{number}", 1) for number in range(300)))
    assert spent(ledger).cost_nanos == large + 300


async def test_a_classifiers_call_costs_but_is_no_attempt(ledger: AnyLedger) -> None:
    """What a classifier asks is spent like any other money, and counts for no limit on requests."""
    await book(ledger, entry("r", 100), entry("r", 7, attempt=2, role=Role.CLASSIFY))
    assert spent(ledger)[:2] == (107, 1)
    assert spent(ledger, role="classify")[:2] == (7, 0)


async def test_the_tenants_that_spend_most_come_first(ledger: AnyLedger) -> None:
    """Each tenant's sum of a day and of a month."""
    await book(
        ledger,
        *(entry(f"r{number}", number, tenant=f"t{number}") for number in range(1, 4)),
        entry("m", 100, at=NOON - 3 * DAY, tenant="t1"),
    )
    assert ledger.leaders("2026-03-15") == [("t3", 3), ("t2", 2), ("t1", 1)]
    assert ledger.leaders("2026-03") == [("t1", 101), ("t3", 3), ("t2", 2)]
    assert ledger.leaders("2026-02") == []


async def test_what_is_reserved_counts_as_spent(ledger: AnyLedger) -> None:
    """A limit has room for what it holds and no more, until a claim is settled: then the truth counts."""
    ten = limit(10)
    first = await ledger.reserve(claim("a", 6, ten))
    assert isinstance(first, Reservation)
    assert first.headroom == ((ten, 4),)
    denied = await ledger.reserve(claim("b", 5, ten))
    assert isinstance(denied, Denied)
    assert (denied.limit, denied.left) == (ten, 4)
    assert balance(ledger) == Balance(Spend(), Spend(6, 1, 6))
    await ledger.settle(entry("a", 2, reservation=first))
    assert balance(ledger) == Balance(Spend(2, 1, 15), Spend())
    assert isinstance(await ledger.reserve(claim("b", 8, ten)), Reservation)
    assert isinstance(await ledger.reserve(claim("c", 1, ten)), Denied)


async def test_a_denied_claim_holds_nothing(ledger: AnyLedger) -> None:
    """All limits have room, or none of them is touched."""
    assert isinstance(await ledger.reserve(claim("a", 5, limit(10), limit(4, per="user"), user="ada")), Denied)
    assert balance(ledger).held == balance(ledger, scope="user:ada").held == Spend()


async def test_several_limits_hold_at_once(ledger: AnyLedger) -> None:
    """The first without room is told: by scope, role, period and unit."""
    day, month = limit(10), limit(15, period="month")
    tokens, fallbacks = limit(20, "tokens"), limit(1, "requests", role=Role.EXPENSIVE)
    await ledger.settle(entry("old", 9, at=NOON - DAY))
    held = await ledger.reserve(claim("a", 4, day, month, tokens, fallbacks, role=Role.FALLBACK))
    assert isinstance(held, Reservation)
    assert [room.left for room in held.headroom] == [6, 2, 16, 0]
    for wanted, role, told in ((3, Role.CHEAP, month), (7, Role.CHEAP, day), (1, Role.EXPENSIVE, fallbacks)):
        limits = (day, month, tokens, *((fallbacks,) if role is Role.EXPENSIVE else ()))
        denied = await ledger.reserve(claim("b", wanted, *limits, role=role))
        assert isinstance(denied, Denied)
        assert denied.limit == told


async def test_a_limit_names_the_end_of_its_period(ledger: AnyLedger) -> None:
    """Seconds until there is room again."""
    now = time.time()
    denied = await ledger.reserve(claim("a", 1, limit(0), at=now))
    assert isinstance(denied, Denied)
    assert 0 < denied.retry_after <= DAY
    assert abs(now + denied.retry_after - Calendar().end("day", now)) < 5


async def test_a_reservation_whose_owner_died_comes_back(ledger: AnyLedger) -> None:
    """After its lease it counts no more, for who reserves and for who reads; a late truth is booked all the same."""
    ten = limit(10)
    held = await ledger.reserve(claim("a", 10, ten, lease=0.0))
    assert isinstance(held, Reservation)
    assert balance(ledger).held == Spend()
    assert isinstance(await ledger.reserve(claim("b", 10, ten)), Reservation)
    await ledger.settle(entry("a", 9, reservation=held))
    assert balance(ledger) == Balance(Spend(9, 1, 15), Spend(10, 1, 10))


async def test_a_claim_is_given_back(ledger: AnyLedger) -> None:
    """A claim of which nothing came leaves no trace, whether it was granted or not."""
    wanted = claim("a", 10, limit(10))
    await ledger.reserve(wanted)
    await ledger.release(wanted)
    await ledger.release(wanted)
    assert balance(ledger) == Balance()
    assert isinstance(await ledger.reserve(claim("b", 10, limit(10))), Reservation)


async def test_a_further_try_holds_as_much_again(ledger: AnyLedger) -> None:
    """A second claim of one attempt adds to the first, and settling releases both."""
    ten = limit(10)
    await ledger.reserve(claim("a", 4, ten))
    more = await ledger.reserve(claim("a", 4, ten))
    assert isinstance(more, Reservation)
    assert more.headroom == ((ten, 2),)
    assert isinstance(await ledger.reserve(claim("a", 4, ten)), Denied)
    await ledger.settle(entry("a", 7, reservation=more))
    assert balance(ledger) == Balance(Spend(7, 1, 15), Spend())


async def test_midnight_charges_the_period_of_the_reservation(ledger: AnyLedger) -> None:
    """A request that began before midnight holds and spends in that day, however late it ends."""
    held = await ledger.reserve(claim("a", 5, limit(10), at=NOON))
    assert isinstance(held, Reservation)
    assert balance(ledger, at=NOON + DAY).held == Spend()
    await ledger.settle(entry("a", 5, at=NOON, reservation=held))
    assert spent(ledger, at=NOON + DAY) == Spend()
    assert balance(ledger) == Balance(Spend(5, 1, 15), Spend())


async def test_a_truth_above_its_bound_is_booked_as_it_is(ledger: AnyLedger) -> None:
    """What was spent was spent; the limit has no room then."""
    held = await ledger.reserve(claim("a", 5, limit(10)))
    assert isinstance(held, Reservation)
    await ledger.settle(entry("a", 25, reservation=held))
    assert balance(ledger).spent.cost_nanos == 25
    denied = await ledger.reserve(claim("b", 1, limit(10)))
    assert isinstance(denied, Denied)
    assert denied.left == 0


async def test_no_race_spends_more_than_the_limit(ledger: AnyLedger) -> None:
    """Of many claims at once as many are granted as there is room for."""
    hundred = limit(100)
    found = await asyncio.gather(*(ledger.reserve(claim(f"r{number}", 7, hundred)) for number in range(200)))
    held = [(number, one) for number, one in enumerate(found) if isinstance(one, Reservation)]
    assert len(held) == 100 // 7
    await book(ledger, *(entry(f"r{number}", 7, reservation=one) for number, one in held))
    assert balance(ledger) == Balance(Spend(98, 14, 14 * 15), Spend())
