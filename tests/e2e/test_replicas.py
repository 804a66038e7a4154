"""Several gateways on one Redis: what one has found, or is about to find, is everybody's."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest

from tests.gateway import CHAT, nanos, openai_models, write
from tests.observability import Serve, until
from tests.upstream import Prices, Upstream
from tracerouter.cli import main

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.redis_server import RedisServer

PRICES = {"small-1": Prices(150_000_000, 600_000_000)}


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(prices=PRICES) as server:
        yield server


@pytest.fixture
async def replicas(tmp_path: Path, redis: RedisServer, upstream: Upstream) -> AsyncIterator[list[Serve]]:
    """Three processes."""
    path = write(tmp_path, openai_models(upstream.url), {}, store=redis.url, journal="journal.db")
    three = [Serve(tmp_path, path) for _ in range(3)]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(one) for one in three))
        yield three


async def ask(session: aiohttp.ClientSession, url: str, text: str, *, stream: bool = False) -> dict[str, Any]:
    """Return what the answer says of itself, and its text."""
    body = {"messages": [{"role": "user", "content": text}], "stream": stream}
    async with session.post(url + CHAT, json=body) as response:
        assert response.status == 200, await response.text()
        raw = await response.read()
    if not stream:
        told = orjson.loads(raw)
        return {**told["tracerouter"], "text": told["choices"][0]["message"]["content"]}
    chunks = [orjson.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    said = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
    return {**chunks[-1]["tracerouter"], "text": said}


async def test_a_hundred_equal_requests_to_three_processes_ask_once(replicas: list[Serve], upstream: Upstream) -> None:
    """Plain and streamed, one of them pays, and the bill is what they all say together."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        told = await asyncio.gather(
            *(ask(session, replicas[n % 3].url, "[[slow 1 Paris]]", stream=n % 2 == 0) for n in range(100))
        )
    assert len(upstream.requests) == 1
    assert {one["text"] for one in told} == {"Paris"}
    assert sorted(one["route"] for one in told) == ["cached"] * 99 + ["cheap"]
    assert sum(nanos(one["cost"]) for one in told) == upstream.nanos


async def test_when_the_one_is_killed_another_takes_over(replicas: list[Serve], upstream: Upstream) -> None:
    """Those of the process that died are lost; the others' are answered by one more call, and no third."""
    first, *others = replicas
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        lost = [asyncio.create_task(ask(session, first.url, "[[slow 2 Paris]]")) for _ in range(33)]
        await until(lambda: _of(len(upstream.requests) == 1), "call")
        asked = [asyncio.create_task(ask(session, others[n % 2].url, "[[slow 2 Paris]]")) for n in range(67)]
        await asyncio.sleep(0.5)  # until they wait
        assert len(upstream.requests) == 1
        await first.kill()
        told = await asyncio.gather(*asked)
        assert all(isinstance(one, aiohttp.ClientError) for one in await asyncio.gather(*lost, return_exceptions=True))
    assert len(upstream.requests) == 2
    assert sorted(one["route"] for one in told) == ["cached"] * 66 + ["cheap"]


async def test_emptying_by_command_reaches_every_process(
    replicas: list[Serve], upstream: Upstream, tmp_path: Path
) -> None:
    """``tracerouter cache clear`` makes all of them ask again, once."""
    async with aiohttp.ClientSession() as session:
        for one in (*replicas, *replicas):
            await ask(session, one.url, "hello")
        assert len(upstream.requests) == 1
        command = ["-m", "tracerouter", "cache", "clear", "--config", str(tmp_path / "tracerouter.yaml")]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
        said, _ = await process.communicate()
        assert process.returncode == 0
        assert said.startswith(b"the cache is empty")

        async def asks_again() -> bool:
            return bool((await ask(session, replicas[0].url, "hello"))["route"] == "cheap")

        await until(asks_again, "new answer", patience=2)
        await asyncio.sleep(1)  # the others have heard by then
        assert [(await ask(session, one.url, "hello"))["route"] for one in replicas] == ["cached"] * 3
    assert len(upstream.requests) == 2


def test_emptying_needs_a_shared_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where each process has a cache of its own the command says what to do instead; a Redis that is away is told."""
    path = write(tmp_path, openai_models("http://127.0.0.1:9/v1"), {}, store="memory:")
    assert main(["cache", "clear", "--config", str(path)]) == 2
    assert "a restart empties it" in capsys.readouterr().err
    path = write(tmp_path, openai_models("http://127.0.0.1:9/v1"), {}, store="redis://:hunter2@127.0.0.1:9/0")
    assert main(["cache", "clear", "--config", str(path)]) == 2
    told = capsys.readouterr().err
    assert "redis://127.0.0.1:9/0 failed" in told
    assert "hunter2" not in told


async def _of(found: object) -> object:
    return found
