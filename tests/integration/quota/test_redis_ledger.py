"""The ledger on a Redis that dies, hangs, forgets, or comes back with what it knew before."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from tests.integration.quota.test_ledger import book, claim, entry, limit
from tracerouter.errors import StoreUnavailable
from tracerouter.quota import RedisLedger
from tracerouter.quota import redis as redis_ledger
from tracerouter.quota.accounts import ALL, Account
from tracerouter.store import RedisStore, SqliteStore
from tracerouter.types import Balance, Denied, Reservation, Spend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.redis_server import RedisServer

    Replicas = Callable[..., AbstractAsyncContextManager[RedisLedger]]

NOW = time.time()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, so that a test need not wait."""
    monkeypatch.setattr(redis_ledger, "WATCH", 0.1)
    monkeypatch.setattr(redis_ledger, "_POLL", 0.02)


@pytest.fixture
def replica(redis: RedisServer, tmp_path: Path) -> Replicas:
    """Return what starts a replica, whose journal has a name."""

    @asynccontextmanager
    async def started(name: str = "a", window: float = 0.3) -> AsyncIterator[RedisLedger]:
        store, journal = RedisStore(redis.url, timeout=0.3), SqliteStore(tmp_path / f"{name}.db")
        ledger = RedisLedger(store, journal, window=window)
        await ledger.start()
        try:
            yield ledger
        finally:
            await ledger.close()
            await store.close()
            journal.close()

    return started


def month(ledger: RedisLedger, tenant: str = "default") -> Balance:
    return ledger.balance(tenant, Account(ledger.calendar.period("month", NOW), "tenant", ALL))


def today(ledger: RedisLedger) -> Balance:
    return ledger.balance("default", Account(ledger.calendar.day(NOW), "tenant", ALL))


def now(identity: str, nanos: int, **facts: Any) -> Any:
    return entry(identity, nanos, at=NOW, **facts)


def asks(identity: str, bound: int, amount: int = 1000, **facts: Any) -> Any:
    return claim(identity, bound, limit(amount), at=NOW, **facts)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.02)


async def ready(*ledgers: RedisLedger) -> None:
    for ledger in ledgers:
        await until(lambda ledger=ledger: ledger.available and not ledger.waiting)  # type: ignore[misc]


async def test_a_request_takes_two_round_trips(replica: Replicas) -> None:
    """One to reserve, one to settle; the first of a tenant takes more, and many at once share those that settle."""
    async with replica(window=0) as ledger:
        await ready(ledger)
        await asyncio.sleep(0.05)
        assert ledger._watching is not None
        ledger._watching.cancel()  # it asks, too
        for number in range(3):
            before = ledger._store.round_trips
            held = await ledger.reserve(asks(f"r{number}", 5))
            assert isinstance(held, Reservation)
            await ledger.settle(now(f"r{number}", 3, reservation=held))
            took = ledger._store.round_trips - before
        assert took == 2
        before = ledger._store.round_trips
        await book(ledger, *(now(f"s{number}", 1) for number in range(100)))
        assert ledger._store.round_trips - before <= 5
        assert month(ledger).spent.cost_nanos == 109


async def test_keys_of_a_tenant_are_in_one_slot_and_end(redis: RedisServer, replica: Replicas) -> None:
    """Whatever a tenant is called; and no key of the accounts is kept for ever."""
    async with replica(window=0) as ledger:
        for tenant in ("acme", "}{", "{x}y", "", "a b", "ä"):
            held = await ledger.reserve(asks("r", 5, tenant=tenant))
            assert isinstance(held, Reservation)
            await ledger.settle(now(f"s{tenant}", 5, tenant=tenant))
            assert month(ledger, tenant) == Balance(Spend(5, 1, 15), Spend(5, 1, 5))
    keys = [key.decode() for key in redis.ask("KEYS", "tracerouter:ledger:*")]
    by_tenant: dict[str, set[int]] = {}
    for key in keys:
        by_tenant.setdefault(key.split(":")[2], set()).add(key_slot(key.encode()))
        days = redis.ask("TTL", key) / 86_400
        assert 1.9 < days <= (2 if key.endswith(ledger.calendar.day(NOW)[7:]) else 40)
    assert len(keys) == 6 * 4
    assert [len(slots) for slots in by_tenant.values()] == [1] * 6
    assert len(set().union(*by_tenant.values())) == 6


async def test_giving_back_wins_over_a_claim_that_comes_later(replica: Replicas) -> None:
    """A release that overtakes its claim leaves nothing held; an attempt of another name is not concerned."""
    async with replica(window=0) as ledger:
        late = asks("r", 10)
        await ledger.release(late)
        with pytest.raises(StoreUnavailable):
            await ledger.reserve(late)
        assert month(ledger) == Balance()
        assert isinstance(await ledger.reserve(asks("r", 10, attempt=2)), Reservation)


async def test_leases_run_on_the_clock_of_redis(replica: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica whose clock is an hour ahead ends no reservation of another's."""
    async with replica("a", window=0) as one, replica("b", window=0) as other:
        await ready(one, other)
        assert isinstance(await one.reserve(asks("r", 600)), Reservation)
        clock = time.time
        monkeypatch.setattr(time, "time", lambda: clock() + 3600)
        assert isinstance(await other.reserve(asks("s", 600)), Denied)
        assert month(other).held == Spend(600, 1, 600)


async def test_what_redis_could_not_take_it_takes_when_it_is_back(
    redis: RedisServer, replica: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a Redis that is gone, entries are booked once it is there again, also more than memory keeps."""
    monkeypatch.setattr(redis_ledger, "_WAITING", 10)
    monkeypatch.setattr(redis_ledger, "_BATCH", 7)
    async with replica("a") as ledger:
        await ledger.settle(now("r", 1))
        redis.stop()
        began = time.monotonic()
        for number in range(50):
            await ledger.settle(now(f"r{number}", 10))
            with pytest.raises(StoreUnavailable):
                await ledger.reserve(asks(f"s{number}", 1))
        assert time.monotonic() - began < 2
        assert ledger.waiting == 50
        assert not ledger.available
        assert len(next(iter(ledger._streams.values())).waiting) <= 11
        redis.start()
        await ready(ledger)
        assert month(ledger) == today(ledger) == Balance(Spend(501, 51, 51 * 15))
        assert isinstance(await ledger.reserve(asks("t", 499)), Reservation)


async def test_an_answer_that_got_lost_books_nothing_twice(redis: RedisServer, replica: Replicas) -> None:
    """Redis hangs, then does what it was asked; the ledger, which could not know, asks again."""
    async with replica(window=0) as ledger:
        held = await ledger.reserve(asks("r", 5))
        assert isinstance(held, Reservation)
        redis.pause()
        await ledger.settle(now("r", 3, reservation=held))
        with pytest.raises(StoreUnavailable):
            await ledger.reserve(asks("s", 7))
        assert ledger.waiting == 1
        redis.resume()
        await until(lambda: not ledger.waiting)
        assert month(ledger) == Balance(Spend(3, 1, 15))
        await ledger.settle(now("t", 4))
        assert month(ledger) == Balance(Spend(7, 2, 30))


async def test_a_flushed_redis_is_rebuilt_from_all_journals(redis: RedisServer, replica: Replicas) -> None:
    """It is noticed by the next claim, and no claim is granted until each replica has told what it knows."""
    async with replica("a") as one, replica("b") as idle, replica("c") as other:
        await ready(one, idle, other)
        for number, ledger in enumerate((one, idle, other)):
            await book(ledger, now(f"r{number}", 100), now(f"s{number}", 50, tenant="acme", user="ada"))
        held = await idle.reserve(asks("under way", 500))
        assert isinstance(held, Reservation)
        redis.ask("FLUSHALL")
        with pytest.raises(StoreUnavailable):
            await one.reserve(asks("t", 1))
        assert not one.available
        await other.settle(now("r3", 20))
        await ready(one, idle, other)
        assert month(one) == today(one) == Balance(Spend(320, 4, 60), Spend(500, 1, 500))
        assert month(one, "acme") == Balance(Spend(150, 3, 45))
        assert one.leaders(one.calendar.day(NOW)) == [("default", 320), ("acme", 150)]
        assert isinstance(await other.reserve(asks("u", 181)), Denied)
        assert isinstance(await one.reserve(asks("v", 180)), Reservation)
        await idle.settle(now("under way", 400, reservation=held))
        assert month(one) == Balance(Spend(720, 5, 75), Spend(180, 1, 180))


async def test_limits_are_closed_until_the_last_batch_is_booked(
    redis: RedisServer, replica: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long journal, also that of a process that was there before; and while it takes long, the others know."""
    monkeypatch.setattr(redis_ledger, "_BATCH", 3)
    async with replica("a", window=0.05) as before:
        await book(before, *(now(f"r{number}", 1) for number in range(100)))
    async with replica("a", window=0.05) as ledger:
        await ready(ledger)
        await book(ledger, *(now(f"s{number}", 1) for number in range(100)))
        redis.ask("FLUSHALL")
        held: Any = None
        async with asyncio.timeout(5):
            while held is None:
                with suppress(StoreUnavailable):
                    held = await ledger.reserve(asks("t", 1))  # the same: what was not held needs no giving back
                await asyncio.sleep(0.002)
        assert month(ledger).spent.cost_nanos == 200
        assert held.headroom[0].left == 1000 - 201


async def test_a_replica_that_is_slow_to_rebuild_keeps_limits_closed(redis: RedisServer, replica: Replicas) -> None:
    """However short the window: who began within it is waited for."""
    async with replica("a") as one, replica("b") as slow:
        await ready(one, slow)
        await book(slow, now("r", 100))
        gate, read = asyncio.Event(), slow._rebuild

        async def waits(generation: str | None) -> None:
            await gate.wait()
            await read(generation)

        slow._rebuild = waits  # type: ignore[method-assign]
        redis.ask("FLUSHALL")
        await asyncio.sleep(0.8)
        with pytest.raises(StoreUnavailable):
            await one.reserve(asks("s", 1))
        gate.set()
        await ready(one, slow)
        assert month(one).spent.cost_nanos == 100


async def test_a_part_that_is_lost_is_rebuilt_too(redis: RedisServer, replica: Replicas) -> None:
    """A key that Redis evicted is missed, whichever of a tenant's it is."""
    async with replica("a") as one, replica("b") as other:
        await ready(one, other)
        await book(one, now("r", 100))
        await book(other, now("s", 200))
        assert isinstance(await one.reserve(asks("under way", 600)), Reservation)
        key = f"tracerouter:ledger:{{default}}:{one.calendar.day(NOW)}"
        for lost in (key[:-3], key, f"{key[:-3]}:held", f"{key[:-3]}:leases"):
            assert redis.ask("DEL", lost) == 1
            with pytest.raises(StoreUnavailable):
                await other.reserve(asks("t", 1))
            await ready(one, other)
            assert month(one) == today(one) == Balance(Spend(300, 2, 30), Spend(600, 1, 600))
            assert isinstance(await other.reserve(asks(lost, 100, lease=0)), Reservation)


async def test_a_redis_that_comes_back_with_an_older_state_is_brought_up_to_date(
    redis: RedisServer, replica: Replicas
) -> None:
    """What was booked since its snapshot is booked again, that of replicas that ask nothing too."""
    async with replica("a") as one, replica("b") as idle:
        await ready(one, idle)
        await book(one, now("r", 100))
        await book(idle, now("s", 200))
        redis.ask("SAVE")
        try:
            await book(one, now("t", 10))
            await book(idle, now("u", 20))
            await asyncio.to_thread(redis.stop)
            await asyncio.to_thread(redis.start)
            assert month(one).spent.cost_nanos == 300  # as of then
            await until(lambda: month(one).spent.cost_nanos == 330)
            await ready(one, idle)
            assert month(one) == Balance(Spend(330, 4, 60))
        finally:
            redis.ask("FLUSHALL")
            redis.ask("SAVE")


async def test_a_replica_sees_by_itself_that_a_state_is_older(redis: RedisServer, replica: Replicas) -> None:
    """A fail-over that lost the last writes is noticed by the claim of whoever made them."""
    async with replica("a") as one:
        await ready(one)
        await book(one, now("r", 100))
        key = f"tracerouter:ledger:{{default}}:{one.calendar.day(NOW)[:7]}"
        older = redis.dump(key)
        await book(one, now("s", 200))
        redis.restore(key, older)
        with pytest.raises(StoreUnavailable):
            await one.reserve(asks("t", 1))
        await ready(one)
        assert month(one).spent.cost_nanos == 300


async def test_what_a_process_left_the_next_one_on_its_journal_books(redis: RedisServer, replica: Replicas) -> None:
    """A process that ended while Redis was away leaves its entries in the journal, for once."""
    async with replica("a") as before:
        await book(before, now("r", 1))
        redis.stop()
        await book(before, now("s", 10), now("t", 100))
    redis.start()
    async with replica("a") as after:
        await ready(after)
        assert month(after) == Balance(Spend(111, 3, 45))
        await book(after, now("t", 100), now("u", 1000))
        assert month(after) == Balance(Spend(1111, 4, 60))
    async with replica("a") as again, replica("b") as other:
        await ready(again, other)
        assert month(other) == Balance(Spend(1111, 4, 60))


async def test_processes_with_one_journal_book_nothing_twice(redis: RedisServer, replica: Replicas) -> None:
    """Each books its own, and after a flush all that stands in the file, at the same time."""
    async with replica("a") as one, replica("a") as other:
        await ready(one, other)
        await asyncio.gather(*(book(one, now(f"r{number}", 1)) for number in range(30)))
        await asyncio.gather(*(book(other, now(f"s{number}", 1)) for number in range(30)))
        redis.ask("FLUSHALL")
        await asyncio.gather(*(book(each, now(f"{each._id}{at}", 1)) for at in range(30) for each in (one, other)))
        await ready(one, other)
        assert month(one).spent == Spend(120, 120, 120 * 15)


async def test_reading_a_redis_that_is_gone_is_one_error(redis: RedisServer, replica: Replicas) -> None:
    """Terminals and gauges are told that the store is not there."""
    async with replica() as ledger:
        redis.stop()
        for read in (lambda: month(ledger), lambda: ledger.leaders("2026-03")):
            with pytest.raises(StoreUnavailable):
                read()
