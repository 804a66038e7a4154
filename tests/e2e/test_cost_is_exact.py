"""Σ chat spans = route span = ledger = header or final chunk = record = the bill that the upstream kept by itself."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.anthropic_upstream import AnthropicUpstream
from tests.gateway import CHAT, Gateway, cost_of, embedding_model, nanos, openai_models, write
from tests.upstream import Prices, Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

PRICES = {
    "small-1": Prices(150_000_000, 600_000_000, 15_000_000, 187_500_000, 300_000_000),
    "large-1": Prices(2_500_000_000, 10_000_000_000, 250_000_000, 3_125_000_000, 5_000_000_000),
    "tiny-1": Prices(50_000_000, 400_000_000),
    "embed-1": Prices(20_000_000, 0),
}
SERVERS: dict[str, type[Upstream]] = {"openai": Upstream, "anthropic": AnthropicUpstream}
SCHEMA = {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}
JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}
STREAM = {"stream": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
GONE = "gone"
"""Marks a request whose client goes away."""
EMBED = {"model": "embed"}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
IMAGES = "images"
"""Marks a request with so many images."""
LINKED = "linked"
"""Marks a request whose images lie behind a URL."""
TOOLS = {"tools": [{"type": "function", "function": {"name": "look_up"}}]}
CALLS = 'tool_calls {"city": "Paris"} | {"city": "Rome"}'

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "accepted": ("ok", {}),
    "accepted with cached tokens": ("cached", {}),
    "accepted with tokens written to the prompt cache": ("stored", {}),
    "accepted after thought": ("reasoning", {}),
    "accepted json": ('ok {"id": 1}', JSON),
    "repaired json": ('ok ```json\n{"id": 2}\n```', JSON),
    "rejected": ('small-1=ok {"id": "x"}, large-1=ok {"id": 3}', JSON),
    "rejected twice": ('ok {"id": "x"}', JSON),
    "empty": ("small-1=empty, large-1=ok", {}),
    "rate limited": ("small-1=429, large-1=ok", {}),
    "overloaded": ("small-1=529, large-1=ok", {}),
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
    "streamed with tokens written to the prompt cache": ("stored", USAGE),
    "streamed tool call": ("tool_call", USAGE),
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
    "tool arguments that are turned down": ("small-1=tool_call [1], large-1=ok", TOOLS),
    "tool arguments that are streamed": ("small-1=tool_call [1], large-1=ok", {**TOOLS, **USAGE}),
    "images": ("ok", {IMAGES: 2}),
    "images without upstream usage": ("no_usage", {IMAGES: 2}),
    "images, nothing comes back": ("small-1=hang, large-1=ok", {IMAGES: 2}),
    "an image that is linked": ("no_usage", {IMAGES: 1, LINKED: True}),
    "images, cheap fails first": ("small-1=hang_after 2, large-1=ok", {IMAGES: 1, **USAGE}),
    "cut in a character": ("small-1=cut_utf8 2", USAGE),
    "embeddings": ("ok", EMBED),
    "embeddings without upstream usage": ("no_usage", EMBED),
    "embeddings refused": ("429", EMBED),
    "embeddings cut": ("cut", EMBED),
    "embeddings, hang": ("hang", EMBED),
    "embeddings, cancelled": ("hang", {**EMBED, GONE: 0}),
}


class Ladder:
    """A gateway over two servers, and their bill."""

    def __init__(self, servers: Mapping[str, Upstream], gateway: Gateway) -> None:
        self.servers = servers
        """By the model that each serves."""
        self.gateway = gateway

    @property
    def nanos(self) -> int:
        """The bill of both."""
        return sum(server.nanos for server in {*self.servers.values()})


@asynccontextmanager
async def ladder(folder: Path, small: str, large: str, timeout: float) -> AsyncIterator[Ladder]:  # noqa: ASYNC109
    """Run a gateway whose two rungs are at servers of these providers."""
    async with SERVERS[small](prices=PRICES) as cheap, SERVERS[large](prices=PRICES) as expensive:
        models = openai_models("", timeout=timeout, api_key="key-of-the-upstream")
        servers = {"small-1": cheap, "large-1": expensive}
        for provider, model, server in zip((small, large), models.values(), servers.values(), strict=True):
            prices = PRICES[model["model"]]
            names = ("input", "output", "cached_input", "cache_write", "cache_write_1h")
            price = {name: f"{(amount or 0) / 1e9:f}" for name, amount in zip(names, prices, strict=True)}
            model |= {"provider": provider, "base_url": server.url, "price": price}
        policy = {}
        for provider, server in ((small, cheap), (large, expensive)):
            if provider == "openai":  # the other has no embeddings
                servers["embed-1"], policy["embeddings"] = server, ["embed"]
                models |= {"embed": embedding_model(server.url)["embed"] | {"timeout": timeout}}
        async with Gateway(write(folder, models, policy)) as gateway:
            yield Ladder(servers, gateway)


LABEL = '{"label": "poem", "confidence": 0.9}'
CLASSIFIED: dict[str, tuple[str, dict[str, Any]]] = {
    "labelled": (f"tiny-1=ok {LABEL}, small-1=ok", {}),
    "labelled, streamed": (f"tiny-1=ok {LABEL}, small-1=ok", USAGE),
    "labelled, rejected": (f'tiny-1=ok {LABEL}, small-1=ok {{"id": "x"}}, large-1=ok {{"id": 3}}', JSON),
    "labelled, all fail": (f"tiny-1=ok {LABEL}, small-1=500, large-1=500", {}),
    "labelled, then cancelled": (f"tiny-1=ok {LABEL}, small-1=hang, large-1=ok", {GONE: 0}),
    "labelled, then cancelled in a stream": (f"tiny-1=ok {LABEL}, small-1=hang_after 3", {**STREAM, GONE: 3}),
    "none of the tasks": ('tiny-1=ok {"label": "other", "confidence": 1}, large-1=ok', {}),
    "no label": ("tiny-1=ok I would say a poem, large-1=ok", {}),
    "label without usage": (f"tiny-1=no_usage {LABEL}, small-1=ok", {}),
    "classifier fails": ("tiny-1=500, large-1=ok", {}),
    "classifier is limited": ("tiny-1=429, large-1=ok", {}),
    "classifier hangs": ("tiny-1=hang, large-1=ok", {}),
    "classifier hangs in the body": ("tiny-1=hang_after 2, large-1=ok", {}),
    "classifier is cut": ("tiny-1=cut 2, large-1=ok", {}),
    "classifier is dropped": ("tiny-1=drop 2, large-1=ok", {}),
    "classifier says garbage": ("tiny-1=garbage, large-1=ok", {}),
    "cancelled while classified": ("tiny-1=hang, small-1=ok", {GONE: 0}),
}
"""Kinds that a model of its own classifies; what it does not label goes straight to the large one."""


class Client:
    """Sends the requests, and notes what each was told to have cost."""

    def __init__(self, ladder: Ladder, session: aiohttp.ClientSession) -> None:
        self._base = ladder.gateway.url
        self._servers = ladder.servers
        self._session = session
        self.told: dict[str, int | None] = {}

    async def send(self, request_id: str, step: str, extra: dict[str, Any]) -> None:
        """Send one request, and read its answer as a client does."""
        text = f"{request_id} [[{step}]]"
        body: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": text}], **extra}
        url = self._base + CHAT
        if extra.get("model") == "embed":
            body, url = {"input": text, **extra}, f"{self._base}/v1/embeddings"
        going, images, linked = body.pop(GONE, None), body.pop(IMAGES, 0), body.pop(LINKED, False)
        if images:
            shown_at = "https://img.example/a.png" if linked else f"data:image/png;base64,{PIXEL}"
            shown = [{"type": "image_url", "image_url": {"url": shown_at}}] * images
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
                nothing = "0" if response.status == 400 else None  # what is turned down beforehand has no cost to tell
                self.told[request_id] = nanos(response.headers.get("x-tracerouter-cost", nothing))

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

        first = "embed-1" if "input" in body else "small-1"
        wanted = next((model for model in ("tiny-1", "large-1") if f"{model}=hang" in sent), first)
        server = self._servers[wanted]

        def hanging() -> bool:
            seen = [request.body for request in server.requests]
            return any(one["model"] == wanted and f"{mine} " in json.dumps(one) for one in seen)

        asking = asyncio.create_task(ask())
        if chunks == 0:
            await server.until(hanging)
            asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def agree(kind: str, spans: list[ReadableSpan], booked: int, record: dict[str, Any], told: int | None) -> None:
    """All accounts of one request's cost are equal; `told` is None where the client did not wait for it."""
    chats = cost_of(spans, "chat") + cost_of(spans, "embeddings")
    accounts = {
        "chat spans": chats,
        "route span": cost_of(spans, "route"),
        "stages that ask": sum(cost_of(spans, stage) for stage in ("classify", "cheap", "expensive", "fallback")),
        "ledger": booked,
        "record": nanos(record["cost"]),
        "told": chats if told is None else told,
    }
    assert len(set(accounts.values())) == 1, (kind, accounts)


@pytest.mark.parametrize(("small", "large"), [("openai", "openai"), ("openai", "anthropic"), ("anthropic", "openai")])
async def test_500_mixed_requests_cost_what_the_upstreams_bill(tmp_path: Path, small: str, large: str) -> None:
    """For every request all accounts of its cost agree, and together they are the upstreams' bill."""
    mixed = random.Random(7)
    kinds = [name for name in KINDS for _ in range(11)]
    mixed.shuffle(kinds)
    async with ladder(tmp_path, small, large, 1.5) as rungs, aiohttp.ClientSession() as session:
        gateway, client = rungs.gateway, Client(rungs, session)
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
        agree(
            kind_of.get(request_id, "cached"), spans[request_id], ledger.get(request_id, 0), records[request_id], told
        )
    assert sum(nanos(record["cost"]) for record in records.values()) == rungs.nanos
    assert sum(ledger.values()) == rungs.nanos
    assert all(server.nanos for server in rungs.servers.values())
    routes = {record["route"] for record in records.values()}
    outcomes = {record["outcome"] for record in records.values()}
    assert routes == {"cheap", "fallback", "cached", "failed"}
    assert outcomes == {"answered", "cached", "failed", "cancelled"}


@pytest.mark.parametrize(
    ("kind", "provider"),
    [
        (kind, provider)
        for kind, (_, extra) in KINDS.items()
        for provider in SERVERS
        if provider == "openai" or extra.get("model") != "embed"
    ],
)
async def test_each_kind_alone_costs_what_the_upstream_bills(tmp_path: Path, kind: str, provider: str) -> None:
    """One request of each kind is billed as the upstream bills it."""
    async with ladder(tmp_path, provider, provider, 1.0) as rungs, aiohttp.ClientSession() as session:
        await Client(rungs, session).send("one", *KINDS[kind])
        async with asyncio.timeout(5):
            while "one" not in rungs.gateway.spans_by_request():
                await asyncio.sleep(0.01)
    assert nanos(rungs.gateway.records()["one"]["cost"]) == rungs.nanos
    free = kind in {"both fail", "embeddings refused"}
    alone = provider == "anthropic" and kind.startswith("two choices")  # its API gives one answer a request
    assert (rungs.nanos == 0) == (free or alone)


def with_classifier(folder: Path, upstream: Upstream, timeout: float) -> Path:
    """Write a deployment that asks a model what nobody else can label, and sends on only what it labels."""
    models = openai_models(upstream.url, timeout=2)
    tiny = {**models["small"], "model": "tiny-1", "price": {"input": "0.05", "output": "0.4"}}
    policy = {"ladder": ["small", "large"], "min_confidence": 0.5, "tasks": {"poem": {}}, "cache": "never"}
    return write(folder, {**models, "tiny": tiny}, policy, classifier=["rules", {"llm": "tiny", "timeout": timeout}])


async def test_what_a_classifier_asks_is_the_requests_cost(tmp_path: Path) -> None:
    """However a classifier's call ends, it is in every account of its request, and together they are the bill."""
    mixed = random.Random(8)
    kinds = [name for name in CLASSIFIED for _ in range(8)]
    mixed.shuffle(kinds)
    async with (
        Upstream(prices=PRICES) as upstream,
        Gateway(with_classifier(tmp_path, upstream, 0.5)) as gateway,
        aiohttp.ClientSession() as session,
    ):
        client = Client(Ladder(dict.fromkeys(PRICES, upstream), gateway), session)
        queue = iter([(f"r{number}.", *CLASSIFIED[kind]) for number, kind in enumerate(kinds)])

        async def worker() -> None:
            for request in queue:
                await client.send(*request)

        await asyncio.gather(*(worker() for _ in range(12)))
        async with asyncio.timeout(10):
            while len(gateway.spans_by_request()) < len(kinds):
                await asyncio.sleep(0.01)
        spans = gateway.spans_by_request()
        instruments = gateway.router.telemetry.instruments
    records = gateway.records()
    ledger = dict(gateway.query("SELECT request_id, sum(cost_nanos) FROM entries GROUP BY request_id"))
    for number, kind in enumerate(kinds):
        name = f"r{number}."
        agree(kind, spans[name], ledger.get(name, 0), records[name], client.told[name])
        routed = "large" if not kind.startswith("labelled") and "label without" not in kind else "small"
        (tried, *_) = records[name].get("attempts", [{"model": routed}])
        assert tried["model"] == routed, kind
        assert len(records[name]["classifier_calls"]) == 1
    assert sum(ledger.values()) == sum(nanos(record["cost"]) for record in records.values()) == upstream.nanos
    by_role = dict(gateway.query("SELECT role, sum(cost_nanos) FROM entries GROUP BY role"))
    assert by_role["classify"] == upstream.nanos_of("tiny-1") > 0
    told = dict.fromkeys(by_role, 0)
    for (_, role, *_), value in instruments.cost.values.items():
        told[str(role)] += value
    assert told == by_role
    assert {key[1] for key in instruments.attempts.values} == by_role.keys()
    asked = {key: calls for key, calls in instruments.attempts.values.items() if key[1] == "classify"}
    assert sum(asked.values()) == len(kinds)
    assert {failure for _, _, failure in asked} > {None, "timeout", "provider_error"}


@pytest.mark.parametrize("kind", CLASSIFIED)
async def test_each_classified_kind_alone_costs_what_the_upstream_bills(tmp_path: Path, kind: str) -> None:
    """One request of each kind is billed as the upstream bills it; the call's span stands beneath its stage."""
    async with Upstream(prices=PRICES) as upstream:
        path = with_classifier(tmp_path, upstream, 0.3)
        async with Gateway(path) as gateway, aiohttp.ClientSession() as session:
            await Client(Ladder(dict.fromkeys(PRICES, upstream), gateway), session).send("one.", *CLASSIFIED[kind])
            async with asyncio.timeout(5):
                while "one." not in gateway.spans_by_request():
                    await asyncio.sleep(0.01)
            spans = gateway.spans_by_request()["one."]
    assert nanos(gateway.records()["one."]["cost"]) == upstream.nanos
    stage = next(span for span in spans if span.name == "classify")
    (chat,) = [span for span in spans if span.name == "chat tiny-1"]
    assert chat.parent is not None
    assert stage.context is not None
    assert chat.parent.span_id == stage.context.span_id
    assert cost_of([stage], "classify") == upstream.nanos_of("tiny-1")


async def test_a_repeated_prompt_is_classified_once(tmp_path: Path) -> None:
    """The classification cache stands before the model: an equal prompt costs no second call, labelled or not."""
    async with Upstream(prices=PRICES) as upstream:
        path = with_classifier(tmp_path, upstream, 2)
        async with Gateway(path) as gateway, aiohttp.ClientSession() as session:
            client = Client(Ladder(dict.fromkeys(PRICES, upstream), gateway), session)
            for kind in ("labelled", "none of the tasks", "no label"):
                for _ in range(3):
                    await client.send("same.", *CLASSIFIED[kind])
    assert sum(charge.model == "tiny-1" for charge in upstream.charges) == 3
    assert len(upstream.charges) == 3 + 9
