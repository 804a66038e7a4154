"""How fast callers may ask, in one process and over Redis: the same promises."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from typing import TYPE_CHECKING

import pytest

from tracerouter.errors import StoreUnavailable
from tracerouter.quota import MemoryRates, RedisRates
from tracerouter.store import RedisStore
from tracerouter.types import Caller, Limit, Reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.redis_server import RedisServer
    from tracerouter.types import Admission

AnyRates = MemoryRates | RedisRates

ANN = Caller("acme", user="ann", key="key-1")


def rate(amount: int, unit: str = "requests", *, per: str = "key", period: str = "minute") -> Limit:
    return Limit(f"{per} {amount} {unit}/{period}", per, unit, amount, period)


@asynccontextmanager
async def over_redis(url: str) -> AsyncIterator[RedisRates]:
    store = RedisStore(url)
    try:
        yield RedisRates(store)
    finally:
        await store.close()


@pytest.fixture(params=["memory", "redis"])
async def rates(request: pytest.FixtureRequest) -> AsyncIterator[AnyRates]:
    if request.param == "memory":
        yield MemoryRates()
        return
    async with over_redis(request.getfixturevalue("redis").url) as made:
        yield made


async def taken(rates: AnyRates, caller: Caller, *limits: Limit, tokens: int = 0, times: int = 1) -> list[Admission]:
    return [await rates.take(caller, limits, tokens) for _ in range(times)]


async def owed(rates: AnyRates, caller: Caller, limits: list[Limit], tokens: int) -> None:
    rates.owe(caller, limits, tokens)
    if isinstance(rates, RedisRates):
        await asyncio.gather(*rates._owing)


async def test_so_many_pass_and_no_more(rates: AnyRates) -> None:
    """A caller may ask as often as the rate says at once; the next one is told how long to wait."""
    told = await taken(rates, ANN, rate(3), times=4)
    assert [one.denied is None for one in told] == [True, True, True, False]
    assert [one.standings[0].left for one in told] == [2, 1, 0, 0]
    denied = told[-1].denied
    assert denied is not None
    assert (denied.limit.name, denied.left, denied.reason) == ("key 3 requests/minute", 0, Reason.RATE_LIMIT)
    assert 15 < denied.retry_after <= 20
    assert 55 < told[-1].standings[0].reset <= 60


async def test_waiting_helps(rates: AnyRates) -> None:
    """Who waits as long as it was told passes, and who waits less does not."""
    fast = rate(4, period="second")
    while (denied := (await rates.take(ANN, [fast], 0)).denied) is None:
        pass
    assert 0 < denied.retry_after <= 0.25
    await asyncio.sleep(denied.retry_after + 0.002)  # a clock gives no event to wait for
    (late,) = await taken(rates, ANN, fast)
    assert late.denied is None


async def test_a_request_takes_from_all_of_its_rates_or_from_none(rates: AnyRates) -> None:
    """One that is denied by its tokens has not used up a request."""
    requests, tokens = rate(10), rate(100, "tokens")
    (first,) = await taken(rates, ANN, requests, tokens, tokens=80)
    assert [one.left for one in first.standings] == [9, 20]
    (second,) = await taken(rates, ANN, requests, tokens, tokens=30)
    assert second.denied is not None
    assert (second.denied.limit, second.denied.left) == (tokens, 20)
    assert [one.left for one in second.standings] == [9, 20]
    (third,) = await taken(rates, ANN, requests, tokens, tokens=20)
    assert third.denied is None


async def test_tokens_that_were_used_are_owed(rates: AnyRates) -> None:
    """An answer's tokens count when they are known, more than are left, too: what comes next waits for them."""
    requests, tokens = rate(10), rate(100, "tokens")
    await taken(rates, ANN, requests, tokens, tokens=10)
    await owed(rates, ANN, [requests, tokens], 150)
    (after,) = await taken(rates, ANN, requests, tokens, tokens=10)
    assert after.denied is not None
    assert (after.denied.limit, after.denied.left) == (tokens, 0)
    assert 40 < after.denied.retry_after <= 42
    assert after.standings[0].left == 9


async def test_what_never_fits_is_not_to_be_waited_for(rates: AnyRates) -> None:
    """A request that is larger than all that a minute has will not pass however long it waits."""
    (told,) = await taken(rates, ANN, rate(100, "tokens"), tokens=101)
    assert told.denied is not None
    assert (told.denied.retry_after, told.denied.left) == (inf, 100)


@pytest.mark.parametrize(
    ("per", "same", "other"),
    [
        ("key", Caller("acme", user="bob", key="key-1"), Caller("acme", user="ann", key="key-2")),
        ("user", Caller("acme", user="ann", key="key-2"), Caller("acme", user="bob", key="key-1")),
        ("tenant", Caller("acme", key="key-2"), Caller("beta", user="ann", key="key-1")),
    ],
)
async def test_whose_requests_are_counted_together(rates: AnyRates, per: str, same: Caller, other: Caller) -> None:
    """A rate counts those of one key, user or tenant, and never those of another tenant."""
    await taken(rates, ANN, rate(1, per=per))
    for caller, passes in ((same, False), (other, True), (Caller("beta", user=ANN.user, key=ANN.key), per != "tenant")):
        (told,) = await taken(rates, caller, rate(1, per=per))
        assert (told.denied is None) is passes, caller


async def test_who_has_no_key_shares_one(rates: AnyRates) -> None:
    """Leaving out what a rate counts by is no way around it."""
    await taken(rates, Caller("acme"), rate(1))
    (told,) = await taken(rates, Caller("acme"), rate(1))
    assert told.denied is not None


async def test_replicas_share_a_rate(redis: RedisServer) -> None:
    """Of 200 requests that come to four replicas at once, as many pass as may, and each asks Redis once."""
    async with AsyncExitStack() as opened:
        replicas = [await opened.enter_async_context(over_redis(redis.url)) for _ in range(4)]
        for replica in replicas:
            await taken(replica, Caller("warm"), rate(50))
        before = [replica._script._store.round_trips for replica in replicas]
        told = await asyncio.gather(
            *(replica.take(ANN, [rate(50, period="hour")], 0) for replica in replicas for _ in range(50))
        )
        asked = [replica._script._store.round_trips - was for replica, was in zip(replicas, before, strict=True)]
    assert sum(one.denied is None for one in told) == 50
    assert asked == [50] * 4


async def test_buckets_vanish_when_they_are_full(redis: RedisServer) -> None:
    """What Redis holds of a caller goes when it has all of its rate again; all keys of a tenant stand in one slot."""
    async with over_redis(redis.url) as rates:
        await taken(rates, ANN, rate(10), rate(10, per="tenant"))
    keys = redis.ask("KEYS", "*")
    assert len(keys) == 2
    assert all(key.startswith(b"tracerouter:{acme}:rate:") for key in keys)
    assert all(0 < redis.ask("PTTL", key.decode()) <= 6100 for key in keys)


async def test_a_redis_that_is_gone(redis: RedisServer) -> None:
    """It can't be told who is too fast, and what was used is not counted: neither waits, nor raises anything else."""
    async with over_redis(redis.url) as rates:
        redis.stop()
        with pytest.raises(StoreUnavailable):
            await rates.take(ANN, [rate(1)], 0)
        await owed(rates, ANN, [rate(1, "tokens")], 10)


async def test_the_clock_decides_in_memory() -> None:
    """Every six seconds one of ten requests a minute is there again."""
    now = 1000.0
    rates = MemoryRates(clock=lambda: now)
    limit = rate(10)
    await taken(rates, ANN, limit, times=10)
    passed = []
    for _ in range(12):
        now += 3.0
        (told,) = await taken(rates, ANN, limit)
        passed.append(told.denied is None)
    assert passed == [False, True] * 6
