"""Passing a limit by confirming what it costs, over real HTTP."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import tracerouter
from tests.e2e.limits.callers import ANN, BETA, BOB, Said, asking
from tests.gateway import CHAT, Gateway, embedding_model, nanos, openai_models, write
from tracerouter.errors import StoreUnavailable
from tracerouter.web import client_middleware, setup

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.limits.callers import Callers
    from tests.upstream import Upstream

NAME = "tenant 0 requests/day"
SPENT: dict[str, Any] = {"quotas": [{"per": "tenant", "limit": "0 requests/day", "then": ["confirm"]}]}


@pytest.fixture
def path(tmp_path: Path, upstream: Upstream, keys: dict[str, str]) -> Path:
    return write(tmp_path, openai_models(upstream.url), SPENT, keys=keys)


async def offered(callers: Callers, gateway: Gateway, body: Any, **told: str) -> dict[str, Any]:
    said = await callers.post(gateway, body, **told)
    assert (said.status, said.body["error"]["code"]) == (409, "needs_confirmation")
    confirmation: dict[str, Any] = said.body["error"]["confirmation"]
    return confirmation


def events(gateway: Gateway) -> list[tuple[Any, ...]]:
    (span,) = (span for span in gateway.seen.spans if span.name == "quota")
    return [tuple((event.attributes or {}).values()) for event in span.events]


async def test_a_limit_is_passed_by_saying_so(path: Path, callers: Callers, upstream: Upstream) -> None:
    """The caller is told what it costs at most and sends its token; it is served, and booked all the same."""
    async with Gateway(path) as gateway:
        first = await callers.post(gateway, asking("hi [[ok well]]"))
        assert (first.status, first.headers["x-should-retry"]) == (409, "false")
        assert (first.headers["x-tracerouter-route"], first.headers["x-tracerouter-reason"]) == (
            "refused",
            "budget_exhausted",
        )
        confirmation = first.body["error"]["confirmation"]
        assert first.body["tracerouter"]["confirmation"] == confirmation
        assert first.body["tracerouter"]["quota_action"] == "confirm"
        assert (confirmation["limit"], confirmation["model"]) == (NAME, "small")
        assert f"at most {confirmation['most']} USD" in first.body["error"]["message"]
        assert not upstream.requests
        assert events(gateway) == [("confirm", True)]

        second = await callers.post(gateway, asking("hi [[ok well]]"), x_tracerouter_confirm=confirmation["token"])
        assert (second.status, second.body["choices"][0]["message"]["content"]) == (200, "well")
        assert second.body["tracerouter"]["confirmed"] == [NAME]
        assert 0 < nanos(second.body["tracerouter"]["cost"]) <= nanos(confirmation["most"])
        assert gateway.router.telemetry.instruments.quota_decisions.values == {
            (NAME, "confirm"): 1,
            (NAME, "confirmed"): 1,
        }
    records = gateway.records()
    asked, served = (records[said.headers["x-request-id"]] for said in (first, second))
    assert (asked["outcome"], asked["route"], asked["quota_scope"]) == ("needs_confirmation", "refused", NAME)
    assert (served["outcome"], served["confirmed"]) == ("answered", [NAME])
    assert confirmation["token"] not in str(records)
    assert gateway.query("SELECT cost_nanos FROM entries") == [(nanos(second.body["tracerouter"]["cost"]),)]
    booked = gateway.query("SELECT sum(requests), sum(held_requests) FROM accounts WHERE scope = 'tenant'")
    assert booked == [(1, 0)]
    assert confirmation["token"] not in str(gateway.query("SELECT * FROM items"))


async def test_a_token_is_good_for_one_request_once(path: Path, callers: Callers, upstream: Upstream) -> None:
    """It is its caller's, for this very body, and goes with its use; a mistake does not use it up."""
    async with Gateway(path) as gateway:
        token = (await offered(callers, gateway, asking("hi [[ok]]")))["token"]
        wrong = {
            "no token at all": (asking("hi [[ok]]"), "abc", ANN, 400, "must be the token"),
            "nobody's": (asking("hi [[ok]]"), token[::-1], ANN, 409, "can't be used"),
            "another tenant's": (asking("hi [[ok]]"), token, BETA, 409, "can't be used"),
            "another user's": (asking("hi [[ok]]"), token, BOB, 409, "can't be used"),
            "another request's": (asking("ho [[ok]]"), token, ANN, 400, "another request"),
        }
        for case, (body, sent, key, status, part) in wrong.items():
            said = await callers.post(gateway, body, key=key, x_tracerouter_confirm=sent)
            assert (said.status, said.headers["x-should-retry"]) == (status, "false"), case
            assert part in said.body["error"]["message"], case
            assert said.body["error"]["param"] == "x-tracerouter-confirm"
        other_order = dict(reversed(asking("hi [[ok]]").items()))
        told = await asyncio.gather(
            *(callers.post(gateway, other_order, x_tracerouter_confirm=token) for _ in range(10))
        )
    assert sorted(said.status for said in told) == [200, *[409] * 9]
    assert len(upstream.requests) == 1


async def test_a_token_expires(path: Path, callers: Callers) -> None:
    """After ten minutes it is as if it had never been."""
    async with Gateway(path) as gateway:
        confirmation = await offered(callers, gateway, asking("hi [[ok]]"))
        with closing(sqlite3.connect(path.parent / "tracerouter.db")) as file:
            ((expires,),) = file.execute("SELECT expires FROM items").fetchall()
            assert int(expires) == confirmation["expires_at"]
            file.execute("UPDATE items SET expires = expires - 601")
            file.commit()
        said = await callers.post(gateway, asking("hi [[ok]]"), x_tracerouter_confirm=confirmation["token"])
    assert said.status == 409


async def test_a_token_works_at_another_process(path: Path, callers: Callers, upstream: Upstream) -> None:
    """Whichever replica the repeat comes to, it knows the token."""
    async with Gateway(path) as one, Gateway(path) as other:
        token = (await offered(callers, one, asking("hi [[ok]]")))["token"]
        said = [await callers.post(at, asking("hi [[ok]]"), x_tracerouter_confirm=token) for at in (other, one)]
    assert [one.status for one in said] == [200, 409]


async def test_two_limits_take_two_confirmations(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]
) -> None:
    """What has been confirmed once stays so in the next token."""
    limits = [
        {"per": "tenant", "limit": "0 requests/day", "then": ["confirm"]},
        {"per": "user", "limit": "0 USD/month", "then": ["confirm"]},
    ]
    async with Gateway(write(tmp_path, openai_models(upstream.url), {"quotas": limits}, keys=keys)) as gateway:
        first = await offered(callers, gateway, asking("hi [[ok]]"))
        second = await offered(callers, gateway, asking("hi [[ok]]"), x_tracerouter_confirm=first["token"])
        said = await callers.post(gateway, asking("hi [[ok]]"), x_tracerouter_confirm=second["token"])
    assert (first["limit"], second["limit"]) == (NAME, "user 0 USD/month")
    assert (said.status, said.body["tracerouter"]["confirmed"]) == (200, [NAME, "user 0 USD/month"])


async def test_what_was_confirmed_is_one_try(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]
) -> None:
    """A try that was lost and may be billed is not made again: its price was not confirmed twice."""
    models = {"small": {**openai_models(upstream.url)["small"], "retries": 3}}
    async with Gateway(write(tmp_path, models, SPENT, keys=keys)) as gateway:
        confirmation = await offered(callers, gateway, asking("hi [[drop 0]]"))
        said = await callers.post(gateway, asking("hi [[drop 0]]"), x_tracerouter_confirm=confirmation["token"])
        cost = nanos(said.headers["x-tracerouter-cost"])
    assert said.status == 502
    assert len(upstream.requests) == 1
    assert 0 < cost <= nanos(confirmation["most"])


async def test_a_stream_needs_confirmation_as_plain_json(path: Path, callers: Callers, upstream: Upstream) -> None:
    """Nothing has been sent yet; with its token the stream streams."""
    async with Gateway(path) as gateway, aiohttp.ClientSession() as http:
        confirmation = await offered(callers, gateway, asking("hi [[ok a b c]]", stream=True))
        headers = {"authorization": f"Bearer {ANN}", "x-tracerouter-confirm": confirmation["token"]}
        body = asking("hi [[ok a b c]]", stream=True)
        async with http.post(gateway.url + CHAT, json=body, headers=headers) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_embeddings_are_confirmed(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]
) -> None:
    """A limit on embeddings is passed in the same way; they have no turns that could be left out."""
    quota = {"per": "tenant", "limit": "1 tokens/day", "then": ["shorten", "downgrade", "confirm"]}
    models = openai_models(upstream.url) | embedding_model(upstream.url)
    body, where = {"model": "embed", "input": "one text"}, "/v1/embeddings"
    async with Gateway(write(tmp_path, models, {"quotas": [quota], "embeddings": ["embed"]}, keys=keys)) as gateway:
        confirmation = await offered(callers, gateway, body, path=where)
        said = await callers.post(gateway, body, path=where, x_tracerouter_confirm=confirmation["token"])
    assert (said.status, len(said.body["data"])) == (200, 1)


async def test_a_fallback_is_not_confirmed_with_it(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]
) -> None:
    """A token is good for the model that it names; the dearer one behind it has its limits still."""
    limits = [{"per": "tenant", "limit": "0 USD/day", "then": ["confirm"], "fallback": "refuse"}]
    async with Gateway(write(tmp_path, openai_models(upstream.url), {"quotas": limits}, keys=keys)) as gateway:
        body = asking("hi [[small-1=empty, large-1=ok]]")
        confirmation = await offered(callers, gateway, body)
        said = await callers.post(gateway, body, x_tracerouter_confirm=confirmation["token"])
    assert (said.status, said.headers["x-tracerouter-reason"]) == (429, "budget_exhausted")
    assert [request.body["model"] for request in upstream.requests] == ["small-1"]


async def test_without_the_store_the_next_action_is_taken(
    tmp_path: Path, callers: Callers, upstream: Upstream, keys: dict[str, str]
) -> None:
    """A token that can't be kept is not offered; one that can't be looked up is told so."""

    class Gone:
        def __getattr__(self, _: str) -> Any:
            async def gone(*_: object, **__: object) -> Any:
                raise StoreUnavailable

            return gone

    async with Gateway(write(tmp_path, openai_models(upstream.url), SPENT, keys=keys)) as gateway:
        token = (await offered(callers, gateway, asking("hi [[ok]]")))["token"]
        assert gateway.router._confirmations is not None
        gateway.router._confirmations._items = Gone()
        refused = await callers.post(gateway, asking("hi [[ok]]"))
        unknown = await callers.post(gateway, asking("hi [[ok]]"), x_tracerouter_confirm=token)
    assert (refused.status, refused.body["error"]["code"]) == (429, "budget_exhausted")
    assert gateway.records()[refused.headers["x-request-id"]]["quota_action"] == "refuse"
    assert (unknown.status, unknown.body["error"]["code"]) == (503, "store_unavailable")


async def test_around_a_service_and_under_a_client(tmp_path: Path) -> None:
    """Both other doors answer in the same way: 409 with a token, and then the service, or the original call."""

    async def service(_: web.Request) -> web.Response:
        message = {"role": "assistant", "content": "own"}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    router = tracerouter.load(write(tmp_path, {"handler": {"provider": "handler"}}, SPENT))
    app, plain = web.Application(), web.Application()
    for one in (app, plain):
        one.router.add_post(CHAT, service)
    setup(app, router, wrap=[CHAT])
    async with TestServer(app) as wrapped, TestServer(plain) as original:
        under = client_middleware(router, str(original.make_url("/v1")))
        for server, middlewares in ((wrapped, ()), (original, (under,))):
            async with aiohttp.ClientSession(middlewares=middlewares) as http:
                said = []
                headers: dict[str, str] = {}
                for _ in range(2):
                    async with http.post(server.make_url(CHAT), json=asking("hi"), headers=headers) as response:
                        said.append(Said(response.status, response.headers, await response.json()))
                    if response.status == 409:
                        confirmation = said[0].body["error"]["confirmation"]
                        assert confirmation["most"] is None
                        headers = {"x-tracerouter-confirm": confirmation["token"]}
            assert [one.status for one in said] == [409, 200]
            assert said[1].body["choices"][0]["message"]["content"] == "own"


async def test_a_call_of_anthropics_api_is_confirmed(tmp_path: Path) -> None:
    """Under a client that speaks it, the error is Anthropic's, with the same token; with that the call goes out."""

    async def service(_: web.Request) -> web.Response:
        return web.json_response({"type": "message", "content": [{"type": "text", "text": "own"}]})

    router = tracerouter.load(write(tmp_path, {"handler": {"provider": "handler"}}, SPENT))
    app = web.Application()
    app.router.add_post("/v1/messages", service)
    body = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
    async with TestServer(app) as server:
        under = client_middleware(router, anthropic_url=str(server.make_url("")).rstrip("/"))
        async with aiohttp.ClientSession(middlewares=(under,)) as http:
            url = server.make_url("/v1/messages")
            async with http.post(url, json=body) as response:
                told = await response.json()
            assert (response.status, told["type"]) == (409, "error")
            assert told["tracerouter"]["confirmation"] == told["error"]["confirmation"]
            headers = {"x-tracerouter-confirm": told["error"]["confirmation"]["token"]}
            async with http.post(url, json=body, headers=headers) as response:
                assert (await response.json())["content"][0]["text"] == "own"
    await router.close()
