"""The store on a real Redis, that answers, hangs, dies and comes back."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import pytest

from tracerouter.errors import ConfigError, StoreUnavailable
from tracerouter.store import RedisStore
from tracerouter.store.redis import PAUSE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.redis_server import RedisServer

TAKE = "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('INCRBY', KEYS[2], ARGV[2])"
CALM = PAUSE + 0.05
"""Seconds after which a store that was not answered tries again."""


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis.url, max_connections=4, timeout=0.3)
    yield store
    await store.close()


async def test_a_script_is_one_round_trip_once_redis_knows_it(store: RedisStore, redis: RedisServer) -> None:
    """The first call sends the text, later ones its hash, and the text again once Redis has forgotten it."""
    script, trips = store.script(TAKE), []
    for number in range(1, 5):
        if number == 4:
            redis.ask("SCRIPT", "FLUSH")
        before = store.round_trips
        assert await script(["a", "b"], b"\x00\xff", 2) == 2 * number
        trips.append(store.round_trips - before)
    assert await store.run("GET", "a") == b"\x00\xff"
    assert trips == [2, 1, 1, 2]


async def test_connections_are_bounded_and_shared(store: RedisStore, redis: RedisServer) -> None:
    """Two hundred calls at once are all answered, over four connections."""
    answers = await asyncio.gather(*(store.run("INCR", "n") for _ in range(200)))
    assert sorted(answers) == list(range(1, 201))
    ours = [line for line in redis.ask("CLIENT", "LIST").decode().splitlines() if " cmd=incr" in line]
    assert len(ours) == 4


async def test_a_redis_that_dies_is_one_error_and_comes_back(
    store: RedisStore, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failed call is a StoreUnavailable; only the changes are logged; it works again without a restart."""
    script = store.script(TAKE)
    await script(["a", "b"], "1", 1)
    redis.stop()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await store.run("GET", "a")
    assert not store.available
    redis.start()
    await asyncio.sleep(CALM)
    assert await script(["a", "b"], "1", 1) == 1  # it has forgotten the script, too
    assert store.available
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["ConnectionError", "again"]


async def test_connections_of_a_server_that_was_restarted_are_no_failure(
    store: RedisStore, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asks nothing while it is down does not notice: dead connections are made anew."""
    await asyncio.gather(*(store.run("INCR", "n") for _ in range(8)))
    await asyncio.to_thread(redis.stop)
    await asyncio.to_thread(redis.start)
    assert sorted(await asyncio.gather(*(store.run("INCR", "n") for _ in range(8)))) == list(range(1, 9))
    assert not caplog.records


async def test_a_redis_that_hangs_costs_one_time_out_and_then_nothing(store: RedisStore, redis: RedisServer) -> None:
    """The call that finds out takes 0.3 s; then others fail at once, and while one tries they do not wait for it."""
    await store.run("SET", "a", "1")
    redis.pause()
    took: list[float] = []
    for wait in (0.0, 0.0, CALM):
        await asyncio.sleep(wait)
        started = time.monotonic()
        results = await asyncio.gather(
            *(store.run("GET", "a") for _ in range(1 + 3 * bool(took))), return_exceptions=True
        )
        took.append(time.monotonic() - started)
        assert {type(result) for result in results} == {StoreUnavailable}
    found_out, at_once, tried = took
    assert 0.25 < found_out < 1
    assert at_once < 0.05
    assert 0.25 < tried < 1
    redis.resume()
    await asyncio.sleep(CALM)
    assert await store.run("GET", "a") == b"1"


async def test_a_call_that_is_cancelled_leaves_nothing_for_the_next(store: RedisStore, redis: RedisServer) -> None:
    """A cancellation is never swallowed, and the answer that nobody waits for is not taken for another call's."""
    await store.run("SET", "a", "mine")
    await store.run("SET", "b", "yours")
    for steps in range(12):
        call = asyncio.create_task(store.run("GET", "a"))
        for _ in range(steps):
            await asyncio.sleep(0)
        if call.cancel():
            with pytest.raises(asyncio.CancelledError):
                await call
        assert await store.run("GET", "b") == b"yours"
    assert store.available


async def test_an_error_of_redis_holds_no_data(store: RedisStore, caplog: pytest.LogCaptureFixture) -> None:
    """A command that Redis turns down is a StoreUnavailable which tells the kind of error alone; the next is sent."""
    await store.run("SET", "secret", "of a tenant")
    with pytest.raises(StoreUnavailable) as raised:
        await store.run("INCR", "secret")
    assert str(raised.value).endswith("failed: ResponseError")
    with pytest.raises(StoreUnavailable) as raised:
        await store.run("RPUSH", "secret", "x")
    assert str(raised.value).endswith("failed: WRONGTYPE")
    assert "tenant" not in caplog.text
    assert await store.run("GET", "secret") == b"of a tenant"
    assert store.available


async def test_a_password_is_never_told(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the log nor an error has the URL's password, whether it is wrong or the URL is."""
    store = RedisStore(redis.url.replace("//", "//user:hunter2@"))
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable) as raised:
        await store.run("PING")
    await store.close()
    assert caplog.records
    assert "hunter2" not in f"{raised.value} {caplog.text}"
    for url in ("redis://user:hunter2@host:port/0", "http://user:hunter2@host", "redis://:hunter2@host/0?timeout=x"):
        with pytest.raises(ConfigError) as wrong:
            RedisStore(url)
        assert "hunter2" not in str(wrong.value)
