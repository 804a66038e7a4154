"""Rate limits over real HTTP: who is too fast is told so before anything is done for it, and by when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

import tracerouter
from tests.e2e.limits.callers import BETA, BOB, asking
from tests.gateway import CHAT, Gateway, embedding_model, openai_models, write
from tracerouter import Caller, Task
from tracerouter.errors import StoreUnavailable
from tracerouter.web import setup

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.limits.callers import Callers
    from tests.upstream import Upstream


async def test_who_is_too_fast(tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]) -> None:
    """The third of two requests a minute is a 429 that names the limit; no model was asked, and its record says so."""
    policy = {"tiers": {"free": {}}, "rates": [{"limit": "2 requests/minute", "tier": "free"}]}
    async with Gateway(write(tmp_path, openai_models(upstream.url), policy, keys=keys)) as gateway:
        for left in (1, 0):
            status, headers, _ = await callers.post(gateway, asking("hi [[ok]]"))
            assert status == 200
            assert headers["x-ratelimit-limit-requests"] == "2"
            assert headers["x-ratelimit-remaining-requests"] == str(left)
        asked = len(upstream.requests)
        status, headers, told = await callers.post(gateway, asking("hi [[ok]]"))
        assert (status, headers["x-should-retry"]) == (429, "false")
        assert 25 < int(headers["retry-after"]) <= 30
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-ratelimit-reset-requests"].endswith("s")
        assert (told["error"]["type"], told["error"]["code"]) == ("rate_limit_error", "rate_limit")
        assert "'free key 2 requests/minute'" in told["error"]["message"]
        assert (headers["x-tracerouter-route"], headers["x-tracerouter-reason"]) == ("refused", "rate_limit")
        assert len(upstream.requests) == asked
        for key in (BOB, BETA):  # another tier, another tenant
            assert (await callers.post(gateway, asking("hi [[ok]]"), key=key))[0] == 200
        assert gateway.router.telemetry.instruments.quota_decisions.values == {
            ("free key 2 requests/minute", "refuse"): 1
        }
        (span,) = (span for span in gateway.seen.spans if span.name == "quota")
        assert span.attributes
        assert span.attributes["tracerouter.quota.scope"] == "free key 2 requests/minute"
    record = gateway.records()[headers["x-request-id"]]
    facts = {name: record[name] for name in ("outcome", "route", "reason", "quota_action", "quota_headroom", "cost")}
    assert facts == {
        "outcome": "refused",
        "route": "refused",
        "reason": "rate_limit",
        "quota_action": "refuse",
        "quota_headroom": 0.0,
        "cost": 0.0,
    }


async def test_tokens_a_minute(tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]) -> None:
    """The question counts when it comes in, the answer when it is known; a fallback's question counts once."""
    policy = {"rates": [{"limit": "1000 tokens/minute", "per": "user"}, {"limit": "50 requests/second"}]}
    models = openai_models(upstream.url)
    async with Gateway(write(tmp_path, models, policy, keys=keys)) as gateway:
        _, headers, told = await callers.post(gateway, asking("hi [[small-1=empty, large-1=ok one two three]]"))
        assert told["tracerouter"]["route"] == "fallback"
        asked = upstream.charges[0].input
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert headers["x-ratelimit-remaining-tokens"] == str(1000 - asked)
        written = sum(charge.output for charge in upstream.charges)
        _, headers, _ = await callers.post(gateway, asking("hi [[small-1=empty, large-1=ok one two three]]"))
        left = int(headers["x-ratelimit-remaining-tokens"])
        assert 0 <= left - (1000 - 2 * asked - written) <= 10  # some have come back meanwhile
        status, headers, told = await callers.post(gateway, asking("hi " * 1000))
        assert (status, "retry-after" in headers) == (429, False)
        assert "it never has so much" in told["error"]["message"]


async def test_embeddings_count(tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]) -> None:
    """A request for embeddings is one as any other."""
    policy = {"embeddings": ["embed"], "rates": [{"limit": "1 requests/minute"}]}
    models = openai_models(upstream.url) | embedding_model(upstream.url)
    async with Gateway(write(tmp_path, models, policy, keys=keys)) as gateway:
        body = {"model": "embed", "input": "one text"}
        told = [await callers.post(gateway, body, path="/v1/embeddings") for _ in range(2)]
    assert [status for status, _, _ in told] == [200, 429]
    assert told[1][2]["error"]["code"] == "rate_limit"
    assert len(upstream.requests) == 1


async def test_a_stream_that_is_too_fast_is_plain_json(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]
) -> None:
    """Nothing of a stream has been sent, so that its error has a status."""
    policy = {"rates": [{"limit": "1 requests/minute"}]}
    async with Gateway(write(tmp_path, openai_models(upstream.url), policy, keys=keys)) as gateway:
        await callers.post(gateway, asking("hi [[ok]]"))
        status, headers, told = await callers.post(gateway, asking("hi [[ok]]", stream=True))
    assert (status, headers["content-type"]) == (429, "application/json")
    assert told["error"]["code"] == "rate_limit"


async def test_a_cached_answer_counts(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]
) -> None:
    """A rate stands before the cache: it is about requests, not about what they cost."""
    policy = {"rates": [{"limit": "2 requests/minute"}]}
    async with Gateway(write(tmp_path, openai_models(upstream.url), policy, keys=keys)) as gateway:
        told = [await callers.post(gateway, asking("hi [[ok]]")) for _ in range(3)]
    assert [headers["x-tracerouter-route"] for _, headers, _ in told] == ["cheap", "cached", "refused"]


async def test_a_wrapped_service_is_not_asked(tmp_path: Path, upstream: Upstream) -> None:
    """A wrapped service counts by whom ``identify`` names, and is spared what comes too fast."""
    served = []

    async def service(request: web.Request) -> web.Response:
        served.append(await request.json())
        return web.json_response({"choices": [{"index": 0, "message": {"role": "assistant", "content": "own"}}]})

    policy = {"rates": [{"limit": "1 requests/minute", "per": "tenant"}]}
    router = tracerouter.load(write(tmp_path, {"small": openai_models(upstream.url)["small"]}, policy))
    app = web.Application()
    app.router.add_post(CHAT, service)
    setup(app, router, wrap=[CHAT], identify=lambda request: Caller(request.headers["x-org"]))
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        told = []
        for org in ("acme", "acme", "beta"):
            body = asking("hi [[500]]")
            async with http.post(server.make_url(CHAT), json=body, headers={"x-org": org}) as response:
                told.append((response.status, response.headers["x-ratelimit-remaining-requests"]))
    assert told == [(200, "0"), (429, "0"), (200, "0")]
    assert len(served) == 2


async def test_rates_that_cannot_be_told_stop_nobody(tmp_path: Path, upstream: Upstream) -> None:
    """Where the store of rates fails, requests go on, without headers that nobody knows."""

    class Gone:
        async def take(self, *_: object) -> Any:
            raise StoreUnavailable

        def owe(self, *_: object) -> None:
            pass

    policy = {"rates": [{"limit": "1 requests/minute"}]}
    router = tracerouter.load(write(tmp_path, openai_models(upstream.url), policy))
    router._rates = Gone()
    told = [await router.route(Task.chat("hi [[ok]]")) for _ in range(2)]
    await router.close()
    assert [one.facts["outcome"] for one in told] == ["answered", "cached"]
    assert not any(name.startswith("x-ratelimit") for one in told for name in one.headers)
