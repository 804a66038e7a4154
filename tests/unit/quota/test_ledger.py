"""What was spent: booked once, summed exactly, in the day of the ledger's zone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from tracerouter.quota import Spend, SqliteLedger, ledger
from tracerouter.store import SqliteStore
from tracerouter.types import Caller, Cost, Entry, Role, Source, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = datetime(2026, 3, 15, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0


@pytest.fixture
def store() -> Iterator[SqliteStore]:
    made = SqliteStore(":memory:")
    yield made
    made.close()


def entry(request_id: str, nanos: int | None = 100, *, at: float = NOON, attempt: int = 1, **facts: Any) -> Entry:
    role = facts.pop("role", Role.CHEAP)
    cost = Cost(nanos, Source.UNKNOWN if nanos is None else Source.REPORTED)
    return Entry(request_id, request_id, attempt, at, Caller(**facts), role, "small", Usage(10, 5, 3, 2), cost)


async def booked(store: SqliteStore, *entries: Entry, zone: str = "UTC") -> SqliteLedger:
    made = SqliteLedger(store, zone)
    await asyncio.gather(*(made.settle(each) for each in entries))
    return made


async def test_an_entry_is_booked_once(store: SqliteStore) -> None:
    """However often an attempt is settled, and with whatever cost, the first entry stands alone."""
    made = await booked(store, entry("r", 100), entry("r", 100), entry("r", 700))
    await made.settle(entry("r", 100, at=NOON + DAY))
    assert store.read("SELECT count(*), sum(cost_nanos) FROM entries") == [(1, 100)]
    assert made.spent("month", NOON + DAY) == Spend(100, 1, 15)


async def test_each_attempt_is_an_entry(store: SqliteStore) -> None:
    """The attempts of one request are booked each."""
    made = await booked(store, entry("r", 100), entry("r", 900, attempt=2, role=Role.FALLBACK), entry("s", 1))
    assert made.spent("day", NOON) == Spend(1001, 3, 45)


async def test_an_entry_keeps_what_it_was_told(store: SqliteStore) -> None:
    """The row of an entry holds all of it."""
    await booked(store, entry("r", 100, tenant="acme", team="ops", user="ada", role=Role.EXPENSIVE))
    assert store.read("SELECT * FROM entries") == [
        ("r", 1, "r", NOON, "2026-03-15", "acme", "ops", "ada", "expensive", "small", 10, 5, 100, "reported")
    ]


async def test_spend_is_narrowed_by_each_scope(store: SqliteStore) -> None:
    """The sum is that of all scopes given together; without any it is everybody's."""
    made = await booked(
        store,
        entry("a", 1, tenant="acme", team="ops", user="ada"),
        entry("b", 10, tenant="acme", team="ops", user="bob", role=Role.EXPENSIVE),
        entry("c", 100, tenant="acme", team="dev", user="ada"),
        entry("d", 1000, tenant="globex", team="ops", user="ada"),
        entry("e", 10_000),
    )

    def cost(**scope: str) -> int:
        return made.spent("day", NOON, **scope).cost_nanos

    assert cost() == 11_111
    assert cost(tenant="acme") == 111
    assert cost(tenant="default") == 10_000
    assert cost(team="ops") == 1011
    assert cost(user="ada") == 1101
    assert cost(role="expensive") == 10
    assert cost(tenant="acme", team="ops") == 11
    assert cost(tenant="acme", team="ops", user="ada", role="cheap") == 1
    assert cost(tenant="acme' OR 1=1 --") == 0
    assert made.spent("day", NOON, tenant="nobody") == Spend(0, 0, 0)


async def test_a_day_ends_at_midnight(store: SqliteStore) -> None:
    """An entry counts in the day and month in which its request began."""
    midnight = datetime(2026, 4, 1, tzinfo=UTC).timestamp()
    made = await booked(
        store,
        entry("a", 1, at=midnight - 31 * DAY - 0.001),
        entry("b", 10, at=midnight - 31 * DAY),
        entry("c", 100, at=midnight - 0.001),
        entry("d", 1000, at=midnight),
    )
    assert made.spent("day", midnight - 1).cost_nanos == 100
    assert made.spent("month", midnight - 1).cost_nanos == 110
    assert made.spent("day", midnight).cost_nanos == 1000
    assert made.spent("month", midnight).cost_nanos == 1000
    assert made.spent("day", midnight + DAY) == Spend(0, 0, 0)
    assert made.spent("month", midnight + DAY).cost_nanos == 1000


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata", "Pacific/Auckland"])
async def test_midnight_is_the_zones(store: SqliteStore, zone: str) -> None:
    """The zone's own midnight ends the day, also on the days on which its clocks are put forward or back."""
    for month, day in ((1, 1), (3, 29), (3, 30), (10, 25), (10, 26)):
        midnight = datetime(2026, month, day, tzinfo=ZoneInfo(zone)).timestamp()
        name = f"{month}-{day}"
        made = await booked(
            store,
            entry(f"{name} before", 1, at=midnight - 1, tenant=name),
            entry(f"{name} after", 10, at=midnight + 1, tenant=name),
            zone=zone,
        )
        assert made.spent("day", midnight - 3600, tenant=name).cost_nanos == 1
        assert made.spent("day", midnight + 3600, tenant=name).cost_nanos == 10
        assert made.spent("month", midnight + 3600, tenant=name).cost_nanos == (10 if day == 1 else 11)


async def test_an_unknown_cost_is_left_out_of_sums(store: SqliteStore) -> None:
    """An attempt of unknown cost is counted with its tokens, adds no money, and stays unknown in its entry."""
    made = await booked(store, entry("a", 100), entry("b", None), entry("c", None))
    assert made.spent("day", NOON) == Spend(100, 3, 45)
    assert store.read("SELECT cost_nanos, source FROM entries WHERE request_id = 'b'") == [(None, "unknown")]


async def test_sums_are_exact(store: SqliteStore) -> None:
    """Money is whole nano-dollars: no sum is off by one, however large."""
    large = 9_007_199_254_740_993  # where floats have lost the ones
    made = await booked(store, entry("a", large), *(entry(f"r{number}", 1) for number in range(500)))
    assert made.spent("day", NOON).cost_nanos == large + 500


async def test_callers_without_team_and_user_share_a_sum(store: SqliteStore) -> None:
    """No team and no user are one row of the sums, not one an entry."""
    await booked(store, *(entry(f"r{number}", 1) for number in range(50)))
    assert store.read("SELECT team, user, cost_nanos, requests FROM spend") == [("", "", 50, 50)]


@pytest.fixture
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Stopped:
            return cls.fromtimestamp(NOON, tz)

    monkeypatch.setattr(ledger, "datetime", Stopped)


@pytest.mark.usefixtures("_now")
async def test_the_tenants_that_spend_most(store: SqliteStore) -> None:
    """The twenty tenants that spend most are told by name, day and month, and all others together."""
    usd = 1_000_000_000
    days = [entry(f"d{number}", number * usd, tenant=f"t{number:02}") for number in range(1, 26)]
    earlier = [
        entry("m", 100 * usd, at=NOON - 3 * DAY, tenant="t01"),
        entry("old", 900 * usd, at=NOON - 20 * DAY, tenant="t02"),
    ]
    told = dict((await booked(store, *days, *earlier)).tenant_spend())
    by_day = {tenant: cost for (tenant, period), cost in told.items() if period == "day"}
    by_month = {tenant: cost for (tenant, period), cost in told.items() if period == "month"}
    assert by_day == {**{f"t{number:02}": number for number in range(6, 26)}, "other": 1 + 2 + 3 + 4 + 5}
    assert by_month == {**{f"t{number:02}": number for number in range(7, 26)}, "t01": 101, "other": 2 + 3 + 4 + 5 + 6}
    assert len(told) == 42


@pytest.mark.usefixtures("_now")
async def test_few_tenants_have_no_others(store: SqliteStore) -> None:
    """Where no more than twenty spend there is no ``other``; where nobody does there is nothing."""
    made = SqliteLedger(store)
    assert made.tenant_spend() == []
    await booked(store, *(entry(f"r{number}", 1, tenant=f"t{number}") for number in range(20)))
    assert len(made.tenant_spend()) == 40
    assert "other" not in {tenant for (tenant, _), _ in made.tenant_spend()}


async def test_a_classifiers_call_costs_but_is_no_attempt(store: SqliteStore) -> None:
    """What a classifier asks is spent like any other money, and counts for no limit on requests."""
    made = await booked(store, entry("r", 100), entry("r", 7, attempt=2, role=Role.CLASSIFY))
    assert made.spent("day", NOON)[:2] == (107, 1)
    assert made.spent("day", NOON, role="classify")[:2] == (7, 0)
