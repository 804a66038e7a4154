"""Σ chat spans = route span = ledger = header or final chunk = record = the bill that the upstream kept by itself."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.gateway import CHAT, Gateway, cost_of, embedding_model, nanos, openai_models, write
from tests.upstream import Prices, Upstream

if TYPE_CHECKING:
    from pathlib import Path

PRICES = {
    "small-1": Prices(150_000_000, 600_000_000),
    "large-1": Prices(2_500_000_000, 10_000_000_000),
    "embed-1": Prices(20_000_000, 0),
}
SCHEMA = {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}
JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}
STREAM = {"stream": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
GONE = "gone"
"""Marks a request whose client goes away."""
EMBED = {"model": "embed"}
IMAGES = "images"
"""Marks a request with so many images."""
CALLS = 'tool_calls {"city": "Paris"} | {"city": "Rome"}'

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "accepted": ("ok", {}),
    "accepted with cached tokens": ("cached", {}),
    "accepted json": ('ok {"id": 1}', JSON),
    "repaired json": ('ok ```json\n{"id": 2}\n```', JSON),
    "rejected": ('small-1=ok {"id": "x"}, large-1=ok {"id": 3}', JSON),
    "rejected twice": ('ok {"id": "x"}', JSON),
    "empty": ("small-1=empty, large-1=ok", {}),
    "rate limited": ("small-1=429, large-1=ok", {}),
    "server error": ("small-1=500, large-1=ok", {}),
    "both fail": ("500", {}),
    "timeout": ("small-1=hang, large-1=ok", {}),
    "hang in the body": ("small-1=hang_after 2, large-1=ok", {}),
    "garbage": ("small-1=garbage, large-1=ok", {}),
    "wrong shape": ("small-1=wrong, large-1=ok", {}),
    "no usage": ("no_usage", {}),
    "bad usage": ("bad_usage", {}),
    "cut": ("small-1=cut 2, large-1=ok", {}),
    "dropped": ("small-1=drop 2, large-1=ok", {}),
    "tool call": ("tool_call", {}),
    "streamed": ("ok", STREAM),
    "streamed with usage": ("ok", USAGE),
    "streamed without upstream usage": ("no_usage", USAGE),
    "streamed, held back": ('ok {"id": 4}', {**JSON, **USAGE}),
    "streamed, rejected": ('small-1=ok nothing, large-1=ok {"id": 5}', {**JSON, **STREAM}),
    "streamed, cheap fails first": ("small-1=500, large-1=ok", USAGE),
    "streamed, cut after commit": ("small-1=cut 3", USAGE),
    "streamed, error after commit": ("small-1=error_after 2", STREAM),
    "streamed, hang after commit": ("small-1=hang_after 3", USAGE),
    "cancelled": ("hang", {GONE: 0}),
    "cancelled in a stream": ("hang_after 3", {**STREAM, GONE: 3}),
    "cancelled in the fallback": ("small-1=500, large-1=hang", {GONE: 0}),
    "two choices": ("ok", {"n": 2}),
    "two choices, streamed": ("ok", {"n": 2, **USAGE}),
    "two choices, streamed, without upstream usage": ("no_usage", {"n": 2, **USAGE}),
    "parallel tool calls, streamed": (CALLS, USAGE),
    "tool calls that are cut": ("small-1=tool_call {, large-1=ok", {}),
    "images": ("ok", {IMAGES: 2}),
    "images without upstream usage": ("no_usage", {IMAGES: 2}),
    "images, cheap fails first": ("small-1=hang_after 2, large-1=ok", {IMAGES: 1, **USAGE}),
    "cut in a character": ("small-1=cut_utf8 2", USAGE),
    "embeddings": ("ok", EMBED),
    "embeddings without upstream usage": ("no_usage", EMBED),
    "embeddings refused": ("429", EMBED),
    "embeddings cut": ("cut", EMBED),
    "embeddings, hang": ("hang", EMBED),
    "embeddings, cancelled": ("hang", {**EMBED, GONE: 0}),
}


class Client:
    """Sends the requests, and notes what each was told to have cost."""

    def __init__(self, gateway: Gateway, upstream: Upstream, session: aiohttp.ClientSession) -> None:
        self._base = gateway.url
        self._upstream = upstream
        self._session = session
        self.told: dict[str, int | None] = {}

    async def send(self, request_id: str, step: str, extra: dict[str, Any]) -> None:
        """Send one request, and read its answer as a client does."""
        text = f"{request_id} [[{step}]]"
        body: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": text}], **extra}
        url = self._base + CHAT
        if extra.get("model") == "embed":
            body, url = {"input": text, **extra}, f"{self._base}/v1/embeddings"
        going, images = body.pop(GONE, None), body.pop(IMAGES, 0)
        if images:
            shown = [{"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}] * images
            body["messages"][0]["content"] = [{"type": "text", "text": text}, *shown]
        headers = {"x-request-id": request_id}
        if going is not None:
            await self._leave(url, body, headers, going)
            self.told[request_id] = None
            return
        async with self._session.post(url, json=body, headers=headers) as response:
            if response.content_type == "text/event-stream":
                self.told[request_id] = nanos(await self._last_chunk(response))
            else:
                await response.read()
                self.told[request_id] = nanos(response.headers["x-tracerouter-cost"])

    async def _last_chunk(self, response: aiohttp.ClientResponse) -> float:
        events = [line[6:] async for line in response.content if line.startswith(b"data: ")]
        assert events[-1].strip() == b"[DONE]"
        return float(json.loads(events[-2])["tracerouter"]["cost"])

    async def _leave(self, url: str, body: dict[str, Any], headers: dict[str, str], chunks: int) -> None:
        """Go away once the upstream is at work, or after some chunks."""
        mine, sent = headers["x-request-id"], json.dumps(body)

        async def ask() -> None:
            async with self._session.post(url, json=body, headers=headers) as response:
                got = 0
                async for line in response.content:
                    got += line.startswith(b"data: ")
                    if got == chunks:
                        return
                await asyncio.Event().wait()

        def hanging() -> bool:
            seen = [r.body for r in self._upstream.requests if f"{mine} " in json.dumps(r.body)]
            wanted = "large-1" if "large-1=hang" in sent else "embed-1" if "embed" in sent else "small-1"
            return any(request["model"] == wanted for request in seen)

        asking = asyncio.create_task(ask())
        if chunks == 0:
            await self._upstream.until(hanging)
            asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def models(upstream: Upstream, *, timeout: float) -> dict[str, Any]:
    """Return the models of both tests."""
    embed = embedding_model(upstream.url)
    embed["embed"]["timeout"] = timeout
    return openai_models(upstream.url, timeout=timeout) | embed


async def test_500_mixed_requests_cost_what_the_upstream_bills(tmp_path: Path) -> None:
    """For every request all accounts of its cost agree, and together they are the upstream's bill."""
    mixed = random.Random(7)
    kinds = [name for name in KINDS for _ in range(11)]
    mixed.shuffle(kinds)
    async with Upstream(prices=PRICES) as upstream:
        path = write(tmp_path, models(upstream, timeout=0.6), {"embeddings": ["embed"]})
        async with Gateway(path) as gateway, aiohttp.ClientSession() as session:
            client = Client(gateway, upstream, session)
            queue = iter([(f"r{number}", *KINDS[kind]) for number, kind in enumerate(kinds)])

            async def worker() -> None:
                for request in queue:
                    await client.send(*request)

            await asyncio.gather(*(worker() for _ in range(24)))
            again = [number for number, kind in enumerate(kinds) if kind == "accepted"]
            for number in again:  # equal requests, so the cache answers
                body = {"model": "auto", "messages": [{"role": "user", "content": f"r{number} [[ok]]"}]}
                headers = {"x-request-id": f"again{number}"}
                async with session.post(gateway.url + CHAT, json=body, headers=headers) as response:
                    assert response.headers["x-tracerouter-route"] == "cached"
                    client.told[f"again{number}"] = nanos(response.headers["x-tracerouter-cost"])
            wanted = len(kinds) + len(again)
            assert wanted >= 500
            async with asyncio.timeout(10):
                while len(gateway.spans_by_request()) < wanted:  # cancelled ones end after their client left
                    await asyncio.sleep(0.01)
            spans = gateway.spans_by_request()
    records = gateway.records()
    ledger = dict(gateway.query("SELECT request_id, sum(cost_nanos) FROM entries GROUP BY request_id"))
    assert len(records) == len(spans) == wanted
    kind_of = {f"r{number}": kind for number, kind in enumerate(kinds)}
    for request_id, told in client.told.items():
        chats = cost_of(spans[request_id], "chat") + cost_of(spans[request_id], "embeddings")
        accounts = {
            "chat spans": chats,
            "route span": cost_of(spans[request_id], "route"),
            "rungs' spans": sum(cost_of(spans[request_id], role) for role in ("cheap", "expensive", "fallback")),
            "ledger": ledger.get(request_id, 0),
            "record": nanos(records[request_id]["cost"]),
            "told": chats if told is None else told,
        }
        assert len(set(accounts.values())) == 1, (kind_of.get(request_id, "cached"), accounts)
    assert sum(nanos(record["cost"]) for record in records.values()) == upstream.nanos
    assert sum(ledger.values()) == upstream.nanos
    routes = {record["route"] for record in records.values()}
    outcomes = {record["outcome"] for record in records.values()}
    assert routes == {"cheap", "fallback", "cached", "failed"}
    assert outcomes == {"answered", "cached", "failed", "cancelled"}


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_alone_costs_what_the_upstream_bills(tmp_path: Path, kind: str) -> None:
    """One request of each kind is billed as the upstream bills it."""
    async with Upstream(prices=PRICES) as upstream:
        path = write(tmp_path, models(upstream, timeout=0.4), {"embeddings": ["embed"]})
        async with Gateway(path) as gateway, aiohttp.ClientSession() as session:
            await Client(gateway, upstream, session).send("one", *KINDS[kind])
            async with asyncio.timeout(5):
                while "one" not in gateway.spans_by_request():
                    await asyncio.sleep(0.01)
    assert nanos(gateway.records()["one"]["cost"]) == upstream.nanos
