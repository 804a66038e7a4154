"""``/v1/embeddings``: passed on to the model that it names, traced, recorded and charged as a chat is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.gateway import Gateway, embedding_model, nanos, openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter import config
from tracerouter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEYS = [{"key": "key-of-acme", "tenant": "acme"}, {"key": "key-of-free", "tenant": "free", "tier": "free"}]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """An upstream that does as it is told."""
    async with Upstream(prices={"embed-1": Prices(20_000_000, 0)}) as running:
        yield running


@pytest.fixture
async def gateway(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A gateway whose free tier may not embed."""
    monkeypatch.setenv("TR_KEYS", json.dumps(KEYS))
    models = openai_models(upstream.url) | embedding_model(upstream.url)
    policy = {"embeddings": ["embed"], "tiers": {"free": {"embeddings": []}}}
    async with Gateway(write(tmp_path, models, policy, keys={"env": "TR_KEYS"})) as running:
        yield running


async def embed(
    gateway: Gateway, body: Any, key: str = "key-of-acme", path: str = "embeddings"
) -> tuple[int, Any, Any]:
    """Send a request for embeddings."""
    headers = {"authorization": f"Bearer {key}", "x-request-id": "mine"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{gateway.url}/v1/{path}", json=body, headers=headers) as response,
    ):
        return response.status, response.headers, await response.json()


async def test_embeddings_are_passed_on_and_accounted_for(gateway: Gateway, upstream: Upstream) -> None:
    """The answer is the upstream's; span tree, header, body and ledger have the same cost, which is its bill."""
    asked = {"model": "embed", "input": ["one", "two words"], "dimensions": 3, "user": "u-1", "x_new": True}
    status, headers, told = await embed(gateway, asked)
    assert (status, told["object"], len(told["data"]), told["usage"]["prompt_tokens"]) == (200, "list", 2, 3)
    assert upstream.requests[0].body == {**asked, "model": "embed-1"}
    spans = {span.name: span for span in gateway.seen.spans}
    server, route, rung, call = (
        spans[name] for name in ("POST /v1/embeddings", "route default@1", "cheap", "embeddings embed-1")
    )
    assert [span.parent.span_id for span in (route, rung, call) if span.parent] == [
        span.context.span_id for span in (server, route, rung) if span.context
    ]
    assert call.attributes
    assert call.attributes["gen_ai.operation.name"] == "embeddings"
    assert len(spans) == 4
    (record,) = gateway.query("SELECT cost_nanos, input_tokens, output_tokens, model, tenant FROM entries")
    assert record == (upstream.nanos, 3, 0, "embed", "acme")
    assert nanos(headers["x-tracerouter-cost"]) == nanos(told["tracerouter"]["cost"]) == upstream.nanos > 0
    assert told["tracerouter"]["baseline_cost"] == told["tracerouter"]["cost"]  # nothing was saved, and nothing lost
    assert told["tracerouter"]["reason"] == "pinned"
    gateway.router.telemetry.flush()
    assert told["tracerouter"]["task"] == "embeddings"
    assert gateway.router.telemetry.instruments.requests.values == {("cheap", "answered", "embeddings", "stable"): 1}


BAD: dict[str, tuple[Any, int, str | None]] = {
    "no object": ([1], 400, None),
    "no model": ({"input": "a"}, 400, "model"),
    "auto": ({"model": "auto", "input": "a"}, 404, "model"),
    "a chat model": ({"model": "small", "input": "a"}, 404, "model"),
    "no input": ({"model": "embed"}, 400, "input"),
    "an empty text": ({"model": "embed", "input": ""}, 400, "input"),
    "no inputs": ({"model": "embed", "input": []}, 400, "input"),
    "an empty one among them": ({"model": "embed", "input": ["a", ""]}, 400, "input"),
    "a number": ({"model": "embed", "input": 7}, 400, "input"),
    "a token that is none": ({"model": "embed", "input": [1, True]}, 400, "input"),
    "2 MB": ({"model": "embed", "input": "a " * 1_000_000}, 413, "input"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input(gateway: Gateway, upstream: Upstream, name: str) -> None:
    """Bad input is a 4xx that names the field, and costs nothing."""
    body, status, param = BAD[name]
    found, _, told = await embed(gateway, body)
    assert (found, told["error"]["param"]) == (status, param), told
    assert upstream.requests == []
    assert gateway.query("SELECT count(*) FROM entries") == [(0,)]


async def test_tokens_are_counted_where_the_upstream_does_not(gateway: Gateway, upstream: Upstream) -> None:
    """A text, a list of tokens and lists of them are counted as they are, where no usage is reported."""
    upstream.default["embed-1"] = "no_usage"
    for given in ("three more words", [1, 2, 3, 4, 5], [[1, 2], [3]], ["a", "b"]):
        before = upstream.nanos
        _, headers, told = await embed(gateway, {"model": "embed", "input": given})
        assert nanos(headers["x-tracerouter-cost"]) == upstream.nanos - before > 0
        assert told["tracerouter"]["cost_source"] == "estimated"


async def test_a_tier_may_be_kept_from_it(gateway: Gateway, upstream: Upstream) -> None:
    """A tier whose `embeddings` do not hold the model is refused it."""
    status, headers, told = await embed(gateway, {"model": "embed", "input": "a"}, key="key-of-free")
    assert (status, told["error"]["code"], headers["x-tracerouter-route"]) == (403, "not_allowed", "refused")
    assert upstream.requests == []


async def test_a_chat_can_not_ask_for_it(gateway: Gateway) -> None:
    """A model that embeds is none that a chat may name."""
    body = {"model": "embed", "messages": [{"role": "user", "content": "hi"}]}
    status, _, told = await embed(gateway, body, path="chat/completions")
    assert (status, told["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("step", "status"), [("500", 502), ("429 7", 429), ("garbage", 502), ('wrong {"data": 1}', 502), ("400 no", 400)]
)
async def test_failures_are_told_as_a_chats_are(gateway: Gateway, upstream: Upstream, step: str, status: int) -> None:
    """What the upstream does wrong has the status that a chat's failure has."""
    found, headers, told = await embed(gateway, {"model": "embed", "input": f"a [[{step}]]"})
    assert found == status
    assert headers["x-tracerouter-route"] == ("refused" if status == 400 else "failed")
    assert nanos(headers["x-tracerouter-cost"]) == upstream.nanos
    assert "embed: " in told["error"]["message"]


def test_a_model_that_can_not_embed_is_named(tmp_path: Path) -> None:
    """A policy that lets a model embed whose provider can't is an error at start; so is a tier with another model."""
    models = {"small": {"provider": "simulated"}, "embed": {"provider": "simulated"}}
    with pytest.raises(ConfigError, match="embeddings: the provider of 'embed' makes none"):
        config.load(write(tmp_path, models, {"embeddings": ["embed"]}, store="memory:"))
    with pytest.raises(ConfigError, match="embeddings: no model is called 'embd' \\(did you mean 'embed'"):
        config.load(write(tmp_path, models, {"ladder": ["small"], "embeddings": ["embd"]}, store="memory:"))
    policy = {"embeddings": ["embed"], "tiers": {"free": {"embeddings": ["embd"]}}}
    with pytest.raises(ConfigError, match=r"tiers\.free\.embeddings: 'embd' is not among the policy's `embeddings`"):
        config.load(write(tmp_path, models, policy, store="memory:"))


def test_prices_of_known_models(tmp_path: Path) -> None:
    """A model of OpenAI's that embeds needs no price in the file: its output costs nothing."""
    models = {"small": {"provider": "simulated"}, "embed": {"provider": "openai", "model": "text-embedding-3-small"}}
    built = config.load(write(tmp_path, models, {"embeddings": ["embed"]}, store="memory:"))
    price = built.router.models["embed"].price
    assert price
    assert (price.input, price.output) == (20_000_000, 0)
