"""Two replicas on two machines, with one Redis: what one of them gave or counted, the other knows."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from tests.e2e.limits.callers import asking
from tests.gateway import Gateway, openai_models, write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.e2e.limits.callers import Callers
    from tests.redis_server import RedisServer
    from tests.upstream import Upstream

FRESH = {"x_tracerouter_cache": "no-store"}


class Replicas(AsyncExitStack):
    """Gateways that share nothing but a Redis."""

    def __init__(self, folder: Path, upstream: Upstream, keys: Mapping[str, str], store: str) -> None:
        super().__init__()
        self._folder, self._url = folder, upstream.url
        self._told = {"keys": keys, "store": store}

    async def open(self, policy: Mapping[str, Any]) -> Gateway:
        folder = self._folder / str(len([*self._folder.iterdir()]))
        folder.mkdir()
        gateway = Gateway(write(folder, openai_models(self._url), policy, **self._told))
        if gateway.router.jobs is not None:
            gateway.router.jobs._look = 0.05
        opened = await self.enter_async_context(gateway)
        ledger: Any = opened.router._ledger
        async with asyncio.timeout(20):
            while not ledger.available:  # a new Redis waits for other replicas' journals
                await asyncio.sleep(0.02)
        return opened


async def test_a_rate_holds_over_replicas(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str], redis: RedisServer
) -> None:
    """The third of two requests an hour is too fast, wherever it comes to; without Redis nobody is."""
    policy = {"rates": [{"limit": "2 requests/hour"}]}
    async with Replicas(tmp_path, upstream, keys, redis.url) as replicas:
        one, other = await replicas.open(policy), await replicas.open(policy)
        told = [await callers.post(at, asking("hi [[ok]]"), **FRESH) for at in (one, other, one, other)]
        assert [said.status for said in told] == [200, 200, 429, 429]
        assert [said.headers["x-ratelimit-remaining-requests"] for said in told] == ["1", "0", "0", "0"]
        redis.stop()
        said = await callers.post(one, asking("hi [[ok]]"), **FRESH)
        assert said.status == 200
        assert "x-ratelimit-limit-requests" not in said.headers


async def test_tokens_and_jobs_go_from_one_replica_to_another(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str], redis: RedisServer
) -> None:
    """A token that one gave is taken by the other, once; what one queued the other runs."""
    full = {"quotas": [{"per": "tenant", "limit": "0 requests/day", "then": ["queue", "confirm"]}]}
    roomy = {"quotas": [{"per": "tenant", "limit": "9 requests/day", "then": ["queue"]}]}
    async with Replicas(tmp_path, upstream, keys, redis.url) as replicas:
        one, other = await replicas.open(full), await replicas.open(full)
        offered = await callers.post(one, asking("hi [[ok]]"), **FRESH)
        token = offered.body["error"]["confirmation"]["token"]
        told = [
            await callers.post(at, asking("hi [[ok]]"), x_tracerouter_confirm=token, **FRESH) for at in (other, one)
        ]
        assert [said.status for said in told] == [200, 409]
        queued = await callers.post(one, asking("ho [[ok]]"), prefer="respond-async", **FRESH)
        assert queued.status == 202
        await replicas.open(roomy)
        async with asyncio.timeout(10):
            while (said := await callers.ask("GET", other, queued.body["url"])).body["state"] != "done":
                await asyncio.sleep(0.02)
    assert said.body["status"] == 200
    assert [request.body["messages"][0]["content"] for request in upstream.requests] == ["hi [[ok]]", "ho [[ok]]"]


async def test_a_limit_holds_over_replicas_and_is_read_at_a_terminal(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str], redis: RedisServer
) -> None:
    """What one replica spends the other has less; a terminal without their journals reads the same from Redis."""
    policy = {"quotas": [{"per": "tenant", "limit": "3 requests/day"}]}
    async with Replicas(tmp_path, upstream, keys, redis.url) as replicas:
        one, other = await replicas.open(policy), await replicas.open(policy)
        told = [await callers.post(at, asking("hi [[ok]]"), **FRESH) for at in (one, other, one, other)]
        assert [said.status for said in told] == [200, 200, 200, 429]
        (tmp_path / "terminal").mkdir()
        path = write(tmp_path / "terminal", openai_models(upstream.url), policy, store=redis.url)
        command = [sys.executable, "-m", "tracerouter", "quota", "--config", str(path), "--tenant", "acme", "--json"]
        asked = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await asked.communicate()
        assert asked.returncode == 0
        (limit,) = json.loads(out)["limits"]
        assert (limit["spent"], limit["remaining"]) == (3, 0)
