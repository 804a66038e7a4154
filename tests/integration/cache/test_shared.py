"""Two layers on a real Redis: several caches, each as in a process of its own, share what one has found."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import pytest
from aiocache.backends.redis import RedisCache
from aiocache.serializers import NullSerializer

from tracerouter.cache import BoundedMemoryCache, OutputCache, output, shared
from tracerouter.cache.shared import SharedCache
from tracerouter.cache.values import COMPRESS_FROM, FORMAT, HEAD, Value, pack, unpack
from tracerouter.store import RedisStore
from tracerouter.types import Completion, Freshness, Hit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.redis_server import RedisServer

ANY = Freshness()
ANSWER = Completion.of("Forty-two.", model="m")
LONG = Completion.of("Forty-two, and so on. " * 200, model="m")
FLIGHT = "00-{0:032x}-{0:016x}-01"
KEY = "0123456789abcdef"


class Process:
    """What one process has of the cache."""

    def __init__(self, url: str, **options: float) -> None:
        self.store = RedisStore(url, timeout=0.3)
        self.near = BoundedMemoryCache()
        self.shared = SharedCache(self.store)
        self.cache = OutputCache(self.near, self.shared, **options)
        self.trips: list[int] = []

    async def ask(
        self,
        answer: Completion | None = None,
        gate: asyncio.Event | None = None,
        *,
        number: int = 1,
        max_age: float | None = None,
    ) -> Hit:
        """Ask as a request does: what is not there is answered, once `gate` is open, and kept; None: it fails."""
        hits: list[Hit] = []

        async def work(_: object) -> None:
            begun = self.store.round_trips
            hit = await self.cache.look_up(KEY, Freshness(max_age=max_age), FLIGHT.format(number), float("inf"))
            hits.append(hit)
            if not hit.fresh:
                if gate is not None:
                    await gate.wait()
                if answer is not None:
                    await self.cache.keep(KEY, answer, 600, "small")
            self.trips.append(self.store.round_trips - begun)

        await self.cache.flights.carry(work, None)
        return hits[0]


class Start(Protocol):
    """Starts another process."""

    async def __call__(self, **options: float) -> Process: ...


@pytest.fixture
async def process(redis: RedisServer) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(**options: float) -> Process:
            made = Process(redis.url, **options)
            stack.push_async_callback(made.store.close)
            stack.push_async_callback(made.cache.close)
            await made.shared.changed()
            return made

        yield start


async def test_what_one_process_kept_is_a_hit_in_another(process: Start) -> None:
    """It comes from Redis once, whole and with its age and model, and from memory afterwards."""
    one, other = await process(), await process()
    assert (await one.ask(LONG)).looked == (("memory", "miss"), ("redis", "miss"))
    hits = [await other.ask() for _ in range(2)]
    assert [hit.looked for hit in hits] == [(("memory", "miss"), ("redis", "hit")), (("memory", "hit"),)]
    assert [(hit.layer, hit.completion, hit.alias) for hit in hits] == [
        ("redis", LONG, "small"),
        ("memory", LONG, "small"),
    ]
    assert all(0 <= (hit.age or 0) < 5 for hit in hits)


async def test_a_look_up_is_one_round_trip_and_so_is_keeping(process: Start) -> None:
    """Claim and release are part of them; a hit in memory takes none. Once Redis knows the scripts."""
    warm, cold = await process(), await process()
    await warm.ask(ANSWER)
    await warm.shared.begin_anew()
    await warm.cache.invalidate()
    await cold.shared.changed()
    for asking in (warm, cold, warm, cold):
        await asking.ask(ANSWER)
    assert [warm.trips[1:], cold.trips] == [[2, 0], [1, 0]]


async def test_values_can_be_read_by_aiocache(process: Start, redis: RedisServer) -> None:
    """Another client with aiocache's Redis backend finds the same bytes under the same key, and they expire."""
    one = await process(stale_for=50)
    await one.ask(ANSWER)
    host, _, port = redis.url.removeprefix("redis://").partition("/")[0].partition(":")
    plain = RedisCache(
        endpoint=host, port=int(port), serializer=NullSerializer(encoding=None), namespace=one.shared.namespace
    )
    raw = await plain.get(f"{{{KEY}}}")
    await plain.close()
    value = unpack(raw)
    assert value is not None
    assert (value.completion, value.alias, value.expires_at - value.kept_at) == (ANSWER, "small", 600)
    assert raw == await one.shared.get(f"{{{KEY}}}")
    assert 640_000 < redis.ask("PTTL", f"{one.shared.namespace}:{{{KEY}}}") <= 650_000


@pytest.mark.parametrize("answer", [ANSWER, LONG])
def test_long_answers_are_compressed(answer: Completion) -> None:
    """Above the size a value is smaller than its JSON, and below it no larger than its head; both come back whole."""
    raw = pack(Value(1.0, 2.0, None, answer))
    assert unpack(raw) == Value(1.0, 2.0, None, answer)
    size = len(pack(Value(1.0, 2.0, None, Completion.of("", model="m")))) + len(answer.text)
    assert len(raw) < size / 2 if size > COMPRESS_FROM else len(raw) == size


async def test_what_is_not_ours_is_a_miss(process: Start, redis: RedisServer) -> None:
    """Another format, another writer's value, a broken one or another type: the request goes on, and keeps its own."""
    one = await process()
    good = pack(Value(time.time(), time.time() + 60, None, LONG))
    for raw in (b"", b"x", b"[1, 2]" * 9, good[:-9], bytes([FORMAT + 1]) + good[1:], good[: HEAD.size] + b"junk"):
        name = f"{one.shared.namespace}:{{{KEY}}}"
        await one.store.run("SET", name, raw)
        hit = await one.ask()
        assert (hit.status, hit.completion) == ("miss", None)
    redis.ask("DEL", name)
    redis.ask("RPUSH", name, "x")
    assert (await one.ask(ANSWER)).looked == (("memory", "miss"), ("redis", "error"))


async def test_an_expired_answer_is_stale_and_one_makes_it_anew(process: Start) -> None:
    """Stale is told by every process, from whichever layer; the claim is given all the same, to one of them."""
    one, other = await process(), await process()
    await one.ask(ANSWER)
    await asyncio.sleep(0.02)
    gate = asyncio.Event()
    young = asyncio.create_task(one.ask(LONG, gate, max_age=0.01))
    await _until(lambda: bool(one.cache._holding))
    waiting = asyncio.create_task(other.ask(number=2, max_age=0.01))
    await _until(lambda: other.store.round_trips > 3)
    assert not waiting.done()
    gate.set()
    assert (await young).looked == (("memory", "stale"), ("redis", "stale"))
    assert (await young).completion == ANSWER
    assert ((await waiting).status, (await waiting).completion) == ("hit", LONG)


async def test_one_works_for_all_processes(process: Start, redis: RedisServer) -> None:
    """Of three processes with ten requests each one does the work; the others tell whom they waited for."""
    three, gate = [await process() for _ in range(3)], asyncio.Event()
    first = asyncio.create_task(three[0].ask(ANSWER, gate, number=7))
    await _until(lambda: bool(three[0].cache._holding))
    asked = [asyncio.create_task(one.ask(ANSWER, gate, number=8)) for one in three for _ in range(10)]
    await _until(lambda: all(one.store.round_trips > 3 for one in three[1:]))
    assert not any(task.done() for task in asked)
    gate.set()
    hits = await asyncio.gather(*asked)
    assert {hit.status for hit in hits} == {"hit"}
    assert {hit.leader for hit in hits} <= {FLIGHT.format(7), FLIGHT.format(8)}
    assert sum(hit.leader == FLIGHT.format(7) for hit in hits) == 10 + 2
    assert all(hit.waited > 0 for hit in hits)
    assert (await first).status == "miss"
    assert not redis.ask("KEYS", "tracerouter:flight:*")


async def test_a_failure_sets_the_next_free_at_once(process: Start) -> None:
    """Whoever has no answer, or none that is kept, releases its claim, and does not let others wait for the lease."""
    one, other = await process(), await process()
    gate = asyncio.Event()
    failing = asyncio.create_task(one.ask(None, gate))
    await _until(lambda: bool(one.cache._holding))
    next_one = asyncio.create_task(other.ask(ANSWER, number=2))
    await _until(lambda: other.store.round_trips > 3)
    started = time.monotonic()
    gate.set()
    await failing
    assert (await next_one).status == "miss"
    assert time.monotonic() - started < 1 < shared.LEASE


async def test_who_leaves_while_it_asks_leaves_no_claim(process: Start, redis: RedisServer) -> None:
    """A look-up that is cancelled at any moment does not let others wait for the lease."""
    one = await process()
    for steps in range(1, 12):
        asking = asyncio.create_task(one.ask(ANSWER, asyncio.Event()))
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await _until(lambda: not one.cache._holding)
        assert not redis.ask("KEYS", "tracerouter:flight:*")


async def test_a_claim_outlives_its_lease_while_its_process_lives(
    process: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is renewed; a process that died loses it with the lease, and one of the others goes on."""
    monkeypatch.setattr(shared, "LEASE", 0.3)
    one, other = await process(), await process()
    gate = asyncio.Event()
    living = asyncio.create_task(one.ask(ANSWER, gate))
    await _until(lambda: bool(one.cache._holding))
    waiting = asyncio.create_task(other.ask(number=2))
    await asyncio.sleep(0.8)  # the time that is measured
    assert not waiting.done()
    gate.set()
    assert (await waiting).status == "hit"
    await living

    gate.clear()
    dying = asyncio.create_task(one.ask(ANSWER, gate, max_age=0))
    await _until(lambda: bool(one.cache._holding))
    for task in one.cache._holding:
        task.cancel()  # as if killed: nobody renews, nobody releases
    started = time.monotonic()
    assert (await other.ask(ANSWER, number=2, max_age=0)).leader == FLIGHT.format(1)
    assert 0.15 < time.monotonic() - started < 1
    dying.cancel()


async def test_emptying_reaches_every_process(process: Start, redis: RedisServer) -> None:
    """Within about a second none of them is given an answer from before, and nothing of them is left in Redis."""
    one, other = await process(), await process()
    await one.ask(ANSWER)
    await other.ask()
    assert (await other.ask()).layer == "memory"
    old = one.shared.namespace
    started = time.monotonic()
    await one.cache.invalidate()
    assert (await one.cache.look_up(KEY, ANY)).status == "miss"
    await _until(lambda: other.shared.generation == one.shared.generation)
    assert (await other.cache.look_up(KEY, ANY)).status == "miss"
    assert time.monotonic() - started < 2 * output.HEARD
    assert not redis.ask("KEYS", f"{old}:*")


async def test_what_was_begun_before_is_kept_for_nobody(process: Start) -> None:
    """An answer that is made while the cache is emptied stays behind, in both layers."""
    one, other = await process(), await process()
    gate = asyncio.Event()
    begun = asyncio.create_task(one.ask(ANSWER, gate))
    await _until(lambda: bool(one.cache._holding))
    await other.cache.invalidate()
    await _until(lambda: one.shared.generation == other.shared.generation)
    gate.set()
    await begun
    for asking in (one, other):
        assert (await asking.cache.look_up(KEY, ANY)).status == "miss"


async def test_clearing_touches_nothing_else(process: Start, redis: RedisServer) -> None:
    """Of a thousand answers none is left, and whatever else lies in the same database does."""
    one = await process()
    for number in range(1000):
        await one.shared.keep(await one.shared.claim(f"{number:x}", ""), pack(Value(0, 9, None, ANSWER)), 60)
    for name in ("tracerouter:ledger:{acme}", "tracerouter:cache", "somebody:else"):
        redis.ask("SET", name, "1")
    before = int(redis.ask("DBSIZE"))
    assert before > 1000
    await one.cache.invalidate()
    assert int(redis.ask("DBSIZE")) == before - 1000


async def test_times_to_live_of_all_sizes(process: Start, redis: RedisServer) -> None:
    """The interface of aiocache takes seconds as numbers of any kind, down to less than a millisecond."""
    one = await process()
    for ttl, least, most in ((7, 6_900, 7_000), (1.5, 1_400, 1_500), (0.0001, -2, 1)):
        await one.shared.set("k", b"\xff\x00", ttl=ttl)
        assert least <= redis.ask("PTTL", f"{one.shared.namespace}:k") <= most
    await one.shared.set("k", b"\xff\x00", ttl=None)
    assert await one.shared.get("k") == b"\xff\x00"
    assert await one.shared.expire("k", 0.5)
    assert 400 < redis.ask("PTTL", f"{one.shared.namespace}:k") <= 500


async def test_requests_go_on_without_redis(process: Start, redis: RedisServer) -> None:
    """Hanging, gone, and back again: memory serves, misses are misses, and nothing takes longer than a time-out."""
    one = await process()
    await one.ask(ANSWER)
    redis.pause()
    assert (await one.ask()).looked == (("memory", "hit"),)
    await one.near.clear()
    started = time.monotonic()
    for _ in range(5):
        assert (await one.ask()).looked == (("memory", "miss"), ("redis", "error"))
    assert time.monotonic() - started < 0.3 + 0.3
    assert not (await one.ask(LONG)).fresh
    assert (await one.ask()).completion == LONG
    redis.resume()
    await asyncio.to_thread(redis.stop)
    await one.near.clear()
    hits = await asyncio.gather(*(one.ask(ANSWER) for _ in range(20)))
    assert sorted(hit.status for hit in hits) == ["hit"] * 19 + ["miss"]
    before = one.shared.generation
    await asyncio.to_thread(redis.start)
    await _until(lambda: one.shared.generation != before)  # it has heard that all is gone
    assert (await one.ask(ANSWER)).looked == (("memory", "miss"), ("redis", "miss"))
    await one.near.clear()
    assert (await one.ask()).looked == (("memory", "miss"), ("redis", "hit"))


async def test_a_start_without_redis_is_a_start(process: Start, redis: RedisServer) -> None:
    """A process that has never reached it serves from memory, and shares once it is there."""
    await asyncio.to_thread(redis.stop)
    one = Process(redis.url)
    assert (await one.ask(ANSWER)).looked == (("memory", "miss"), ("redis", "error"))
    assert (await one.ask()).looked == (("memory", "hit"),)
    await asyncio.to_thread(redis.start)
    await _until(lambda: one.store.available)
    await one.near.clear()
    assert (await one.ask(ANSWER)).looked == (("memory", "miss"), ("redis", "miss"))
    assert (await (await process()).ask()).looked == (("memory", "miss"), ("redis", "hit"))
    await one.cache.close()
    await one.store.close()


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)  # what others do gives no event
