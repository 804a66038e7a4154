"""Requests that a person answers, over real HTTP: who gets what, who may decide, and what is told of it."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
from contextlib import asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks.webhooks import Webhook

from tests.e2e.test_cli import tracerouter
from tests.gateway import CHAT, Gateway, openai_models, write
from tests.upstream import Upstream
from tracerouter import load
from tracerouter.cli import main
from tracerouter.review import queue, webhooks
from tracerouter.telemetry import names
from tracerouter.types import Caller
from tracerouter.web import setup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.redis_server import RedisServer

REVIEWS = "/tracerouter/reviews"
KEYS: dict[str, dict[str, Any]] = {
    "caller-key": {"tenant": "acme", "user": "cara"},
    "colleague-key": {"tenant": "acme", "user": "carl"},
    "key-of-ann": {"tenant": "acme", "user": "ann", "reviewer": True},
    "key-of-bob": {"tenant": "acme", "user": "bob", "reviewer": True},
    "stranger-key": {"tenant": "other", "user": "cara"},
    "strange-reviewer": {"tenant": "other", "user": "ann", "reviewer": True},
    "admin-key": {"tenant": "house", "user": "root", "admin": True},
}
POLICY: dict[str, Any] = {
    "tasks": {
        "check": {"match": ["^check"], "review": "after_ladder"},
        "sign": {"match": ["^sign"], "review": "draft"},
    },
    "risks": {"legal": {"match": ["contract"], "detect": False, "review": "draft"}},
}
SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"


class Callers:
    """Everybody who asks the gateway something."""

    def __init__(self, http: aiohttp.ClientSession, gateway: Gateway) -> None:
        self.http, self.gateway = http, gateway

    async def ask(self, text: str, key: str = "caller-key", **headers: Any) -> tuple[int, Any, Any]:
        body: dict[str, Any] = {"model": headers.pop("model", "auto"), "messages": [{"role": "user", "content": text}]}
        body["stream"] = headers.pop("stream", False)
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        told["authorization"] = f"Bearer {key}"
        async with self.http.post(self.gateway.url + CHAT, json=body, headers=told) as response:
            raw = await response.read()
            return response.status, response.headers, json.loads(raw) if response.content_type.endswith("json") else raw

    async def review(self, text: str, **headers: Any) -> str:
        """Ask for what goes into review, and return its id."""
        status, _, told = await self.ask(text, **headers)
        assert status == 409, told
        identity: str = told["tracerouter"]["review"]["id"]
        return identity

    async def look(self, path: str, key: str = "caller-key") -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {key}"}
        async with self.http.get(f"{self.gateway.url}{REVIEWS}{path}", headers=headers) as response:
            return response.status, await response.json()

    async def act(self, path: str, key: str = "key-of-ann", body: Any = None) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {key}"}
        sent: dict[str, Any] = {} if body is None else {"json": body}
        async with self.http.post(f"{self.gateway.url}{REVIEWS}{path}", headers=headers, **sent) as response:
            return response.status, await response.json()

    async def until(self, path: str, holds: Callable[[Any], bool], key: str = "caller-key") -> Any:
        async with asyncio.timeout(10):
            while True:
                _, told = await self.look(path, key)
                if holds(told):
                    return told
                await asyncio.sleep(0.02)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@pytest.fixture(params=["sqlite", "redis"])
def server(request: pytest.FixtureRequest) -> RedisServer | None:
    """Return the Redis that the queue is in; None: it is in the file."""
    found: RedisServer | None = request.getfixturevalue("redis") if request.param == "redis" else None
    return found


@pytest.fixture
def opened(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, server: RedisServer | None
) -> Callable[..., Any]:
    """Open a gateway with reviews; what it has besides goes to its policy and settings."""
    store = {"store": server.url, "journal": "tracerouter.db"} if server else {}
    monkeypatch.setenv("REVIEW_KEYS", json.dumps([{"key": key, **who} for key, who in KEYS.items()]))

    @asynccontextmanager
    async def opening(review: Any = None, policy: Any = None, **settings: Any) -> AsyncIterator[Callers]:
        told = {**POLICY, **(policy or {})} | ({"review": review} if review else {})
        path = write(tmp_path, openai_models(upstream.url), told, keys={"env": "REVIEW_KEYS"}, **store, **settings)
        async with Gateway(path) as gateway, aiohttp.ClientSession() as http:
            yield Callers(http, gateway)

    return opening


@pytest.fixture
async def callers(opened: Callable[..., Any]) -> AsyncIterator[Callers]:
    async with opened() as running:
        yield running


async def test_a_draft_goes_to_a_person_and_not_to_the_caller(callers: Callers, upstream: Upstream) -> None:
    """The cheap model writes it once, the caller is told where to ask, and gets what the reviewer approves."""
    status, headers, told = await callers.ask("is the contract valid? [[ok it is void]]")
    assert status == 409
    assert headers["x-should-retry"] == "false"
    assert "void" not in json.dumps(told)
    error, facts = told["error"], told["tracerouter"]
    assert (error["code"], error["type"], error["param"]) == ("in_review", "conflict_error", None)
    assert (facts["route"], facts["outcome"], facts["reason"]) == ("review", "in_review", "risk")
    assert headers["x-tracerouter-route"] == "review"
    assert "x-tracerouter-model" not in headers
    review = facts["review"]
    assert review["url"] == f"{REVIEWS}/{review['id']}" in error["message"]
    assert [one.body["model"] for one in upstream.requests] == ["small-1"]

    status, waiting = await callers.look(f"/{review['id']}")
    assert (status, waiting["state"]) == (200, "pending")
    assert "void" not in json.dumps(waiting)
    status, shown = await callers.look(f"/{review['id']}", "key-of-ann")
    assert shown["request"]["messages"][0]["content"].startswith("is the contract")
    assert shown["draft"]["choices"][0]["message"]["content"] == "it is void"
    assert (shown["risks"], shown["how"], shown["draft_model"]) == (["legal"], "draft", "small")

    status, approved = await callers.act(f"/{review['id']}/approve")
    assert (status, approved["state"]) == (200, "approved")
    _, answered = await callers.look(f"/{review['id']}")
    completion = answered["completion"]
    assert completion["object"] == "chat.completion"
    assert completion["choices"][0]["message"]["content"] == "it is void"
    assert completion["usage"]["total_tokens"] > 0
    async with asyncio.timeout(5):
        while not (records := callers.gateway.records()):
            await asyncio.sleep(0.02)
    (record,) = records.values()
    assert (record["outcome"], record["review_id"], record["cost"] > 0) == ("in_review", review["id"], True)


async def test_respond_async_is_202(callers: Callers) -> None:
    """A caller that prefers to come back later is told where to."""
    status, headers, told = await callers.ask("the contract", prefer="wait=5, respond-async")
    assert status == 202
    assert (headers["location"], headers["preference-applied"]) == (told["url"], "respond-async")
    assert (told["object"], told["state"]) == ("tracerouter.review", "pending")
    assert told["tracerouter"]["review"] == {"id": told["id"], "url": told["url"]}


async def test_a_stream_holds_no_draft(callers: Callers) -> None:
    """Not one chunk of a draft is streamed, though nothing holds the stream back; and nothing else is."""
    status, _, told = await callers.ask("the contract [[ok void]]", stream=True)
    assert (status, told["error"]["code"]) == (409, "in_review")


async def test_a_stream_that_was_kept_alive_is_told_in_an_event(opened: Callable[..., Any]) -> None:
    """Where a comment has settled the status, the review is told in an event, and no draft."""
    async with opened(keep_alive="50ms") as callers:
        status, _, raw = await callers.ask("the contract [[slow 0.3 void]]", stream=True)
    assert status == 200
    events = [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: {")]
    assert [one["error"]["code"] for one in events] == ["in_review"]
    assert events[0]["tracerouter"]["review"]["url"].startswith(REVIEWS)
    assert b"void" not in raw


async def test_the_openai_sdk_does_not_retry(callers: Callers, upstream: Upstream) -> None:
    """An SDK with retries asks once, and its error has the review."""
    client = openai.AsyncOpenAI(base_url=f"{callers.gateway.url}/v1", api_key="caller-key", max_retries=3)
    with pytest.raises(openai.ConflictError) as raised:
        await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "a contract"}])
    assert raised.value.code == "in_review"
    assert raised.value.response.json()["tracerouter"]["review"]["id"]
    assert len(upstream.requests) == 1
    await client.close()


async def test_a_caller_cannot_get_around_it(callers: Callers) -> None:
    """Neither a pinned model, a hint, nor an equal question that was answered before lets a draft out."""
    for facts in ({"model": "large"}, {"x_tracerouter_task": "chat"}, {"x_tracerouter_cache": "max-age=600"}):
        status, _, told = await callers.ask("the contract [[ok void]]", **facts)
        assert (status, told["error"]["code"]) == (409, "in_review")
        assert "void" not in json.dumps(told)


async def test_a_draft_that_fails_is_written_by_the_next_model(callers: Callers) -> None:
    """A draft that validators turn down is a draft; where a model gives none, the next one writes it, or nobody."""
    empty = await callers.review("contract 1 [[empty]]")
    _, shown = await callers.look(f"/{empty}", "key-of-ann")
    assert (shown["draft_model"], shown["failures"]) == ("small", ["empty $"])
    by_large = await callers.review("contract 2 [[small-1=500, large-1=ok by large]]")
    _, shown = await callers.look(f"/{by_large}", "key-of-ann")
    assert (shown["draft_model"], shown["draft"]["choices"][0]["message"]["content"]) == ("large", "by large")
    nobody = await callers.review("contract 3 [[500]]")
    _, shown = await callers.look(f"/{nobody}", "key-of-ann")
    assert shown["draft"] is None
    status, told = await callers.act(f"/{nobody}/approve")
    assert (status, told["error"]["code"]) == (409, "conflict")
    assert "no draft to approve" in told["error"]["message"]
    status, _ = await callers.act(f"/{nobody}/edit", body={"text": "by ann"})
    _, told = await callers.look(f"/{nobody}")
    assert (told["state"], told["completion"]["choices"][0]["message"]["content"]) == ("edited", "by ann")
    assert told["completion"]["choices"][0]["finish_reason"] == "stop"


async def test_what_is_the_callers_mistake_is_no_review(callers: Callers) -> None:
    """A prompt that fits no model is refused."""
    status, _, told = await callers.ask("contract [[context_too_long]]")
    assert (status, told["error"]["code"]) == (400, "context_length_exceeded")
    assert (await callers.look("", "key-of-ann"))[1]["data"] == []


async def test_after_the_ladder(callers: Callers) -> None:
    """What a rung answers reaches the caller; only what no rung could is reviewed, with the last answer as draft."""
    status, _, told = await callers.ask("check one [[ok fine]]")
    assert (status, told["choices"][0]["message"]["content"]) == (200, "fine")
    status, headers, told = await callers.ask("check two [[small-1=500, large-1=empty]]")
    assert (status, told["tracerouter"]["reason"]) == (409, "empty")
    assert headers["x-tracerouter-attempts"] == "2"
    _, shown = await callers.look(f"/{told['tracerouter']['review']['id']}", "key-of-ann")
    assert (shown["how"], shown["draft_model"], shown["failures"]) == ("after_ladder", "large", ["empty $"])
    spans = callers.gateway.spans_by_request()[told["tracerouter"]["request_id"]]
    route = next(span for span in spans if span.name.startswith("route"))
    assert (route.attributes or {})[names.KEEP] == "review"
    stage = next(span for span in spans if span.name == "review")
    assert (stage.attributes or {})[names.REVIEW_ID] == told["tracerouter"]["review"]["id"]
    assert stage.parent == route.context


async def test_a_begun_stream_is_never_taken_back(callers: Callers) -> None:
    """After its first chunk a failure ends a stream in an error, and nobody reviews it."""
    _, _, raw = await callers.ask("check [[small-1=drop 2, large-1=ok never]]", stream=True)
    assert b"in_review" not in raw
    assert (await callers.look("", "key-of-ann"))[1]["data"] == []


async def test_low_confidence(opened: Callable[..., Any]) -> None:
    """What the classifier is not sure of goes to a person, as the policy says; what it is sure of does not."""
    policy = {"min_confidence": 0.5, "tasks": {"sure": {"match": ["^sure"]}}, "risks": {}}
    async with opened({"low_confidence": "draft"}, policy) as callers:
        status, _, told = await callers.ask("sure [[ok yes]]")
        assert status == 200
        status, _, told = await callers.ask("hm [[ok maybe]]")
        assert (status, told["tracerouter"]["reason"]) == (409, "abstained")
        _, shown = await callers.look(f"/{told['tracerouter']['review']['id']}", "key-of-ann")
        assert shown["draft_model"] == "small"


async def test_who_may_see_and_decide(callers: Callers) -> None:
    """A caller sees its own tenant's, without draft; reviewers their tenant's, an admin all; others find nothing."""
    mine = await callers.review("the contract [[ok void]]")
    assert (await callers.look(f"/{mine}", "colleague-key"))[0] == 200
    for key in ("stranger-key", "strange-reviewer"):
        status, told = await callers.look(f"/{mine}", key)
        assert (status, told["error"]["code"]) == (404, "not_found")
        assert "acme" not in json.dumps(told)
    for key in ("caller-key", "colleague-key", "stranger-key"):
        for action in ("claim", "approve", "edit", "reject"):
            status, told = await callers.act(f"/{mine}/{action}", key, {"text": "x"} if action == "edit" else None)
            assert (status, told["error"]["code"]) == (403, "forbidden")
        assert (await callers.look("", key))[0] == 403
    assert (await callers.act(f"/{mine}/approve", "strange-reviewer"))[0] == 404
    assert (await callers.look("", "strange-reviewer"))[1]["data"] == []
    for key in ("key-of-ann", "admin-key"):
        (listed,) = (await callers.look("", key))[1]["data"]
        assert (listed["id"], listed["tenant"], listed["user"]) == (mine, "acme", "cara")
        assert "void" not in json.dumps(listed)
    status, told = await callers.look("/nothing", "admin-key")
    assert status == 404
    assert (await callers.look(f"/{mine}", "no-such-key"))[0] == 401
    assert (await callers.act(f"/{mine}/approve", "admin-key"))[1]["decided_by"] == "root"


async def test_under_scope_user_a_review_is_its_users(opened: Callable[..., Any]) -> None:
    """Where users do not share answers, they do not share reviews; a reviewer sees them all the same."""
    async with opened(policy={"cache": {"scope": "user"}}) as callers:
        mine = await callers.review("the contract")
        assert (await callers.look(f"/{mine}"))[0] == 200
        assert (await callers.look(f"/{mine}", "colleague-key"))[0] == 404
        assert (await callers.look(f"/{mine}", "key-of-ann"))[0] == 200


async def test_a_claim_is_one_reviewers(callers: Callers) -> None:
    """Who has claimed a review decides it; another is told who has it, and how long."""
    mine = await callers.review("the contract [[ok void]]")
    assert (await callers.act(f"/{mine}/claim"))[1]["state"] == "claimed"
    for action, body in (("claim", None), ("approve", None), ("edit", {"text": "x"}), ("reject", None)):
        status, told = await callers.act(f"/{mine}/{action}", "key-of-bob", body)
        assert status == 409
        assert "claimed by ann for another" in told["error"]["message"]
    assert (await callers.act(f"/{mine}/claim"))[0] == 200
    status, told = await callers.act(f"/{mine}/reject", body={"why": "ask a lawyer"})
    assert status == 200
    history = [(one["by"], one["what"]) for one in told["history"]]
    assert history == [("ann", "claim"), ("ann", "claim"), ("ann", "reject")]
    _, told = await callers.look(f"/{mine}")
    assert (told["state"], told["why"]) == ("rejected", "ask a lawyer")
    assert "void" not in json.dumps(told)


async def test_a_claim_runs_out(opened: Callable[..., Any]) -> None:
    """After its lease another reviewer may go on."""
    async with opened({"lease": 1}) as callers:
        mine = await callers.review("the contract [[ok void]]")
        await callers.act(f"/{mine}/claim")
        assert (await callers.act(f"/{mine}/claim", "key-of-bob"))[0] == 409
        async with asyncio.timeout(5):
            while (await callers.act(f"/{mine}/claim", "key-of-bob"))[0] == 409:
                await asyncio.sleep(0.05)
        assert (await callers.act(f"/{mine}/approve"))[0] == 409
        assert (await callers.act(f"/{mine}/approve", "key-of-bob"))[0] == 200


async def test_of_many_decisions_one_counts(callers: Callers) -> None:
    """All others are told 409, at once and later, and the answer is the first one's."""
    mine = await callers.review("the contract [[ok void]]")
    told = await asyncio.gather(
        *(
            callers.act(f"/{mine}/edit", key, {"text": f"{key} {n}"})
            for key in ("key-of-ann", "key-of-bob")
            for n in range(8)
        )
    )
    (first,) = [body for status, body in told if status == 200]
    assert {body["error"]["code"] for status, body in told if status != 200} == {"conflict"}
    status, late = await callers.act(f"/{mine}/reject")
    assert (status, "edited already" in late["error"]["message"]) == (409, True)
    _, answered = await callers.look(f"/{mine}")
    assert answered["completion"] == first["completion"]
    assert [one["what"] for one in first["history"]] == ["edit"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("edit", None, "`text` must be the answer"),
        ("edit", {"text": ""}, "`text` must be the answer"),
        ("edit", {"text": 3}, "the body must be"),
        ("edit", {"tekst": "x"}, "the body must be"),
        ("edit", ["x"], "the body must be"),
        ("reject", {"text": "x"}, "the body must be"),
    ],
)
async def test_a_wrong_body_is_named(callers: Callers, path: str, body: Any, said: str) -> None:
    """A decision that can't be read is 400, and decides nothing."""
    mine = await callers.review("the contract")
    status, told = await callers.act(f"/{mine}/{path}", body=body)
    assert status == 400
    assert said in told["error"]["message"]
    assert (await callers.look(f"/{mine}"))[1]["state"] == "pending"


async def test_lists_by_state(callers: Callers) -> None:
    """Those asked for, the newest first; a wrong state or number is named."""
    made = [await callers.review(f"contract {number}") for number in range(3)]
    await callers.act(f"/{made[0]}/reject")
    await callers.act(f"/{made[1]}/claim")

    async def listed(query: str) -> list[str]:
        return [one["id"] for one in (await callers.look(query, "key-of-ann"))[1]["data"]]

    assert await listed("") == made[::-1]
    assert await listed("?state=pending&state=claimed") == [made[2], made[1]]
    assert await listed("?state=rejected") == [made[0]]
    assert await listed("?limit=1") == [made[2]]
    for query in ("?state=pendign", "?limit=0", "?limit=x", "?limit=9999"):
        assert (await callers.look(query, "key-of-ann"))[0] == 400


async def test_a_review_expires_and_its_text_is_deleted(opened: Callable[..., Any], tmp_path: Path) -> None:
    """Nobody decides in time: the caller is told, what was asked is gone from the file, and who did what stays."""
    async with opened({"expires": 1}) as callers:
        mine = await callers.review("the contract of Mr Secretive [[ok the secret draft]]")
        await callers.act(f"/{mine}/claim")
        told = await callers.until(f"/{mine}", lambda told: told["state"] == "expired")
        assert "completion" not in told
        done = await callers.until(f"/{mine}", lambda told: len(told["history"]) == 3, "key-of-ann")
        assert [(one["by"], one["what"]) for one in done["history"]] == [
            ("ann", "claim"), ("tracerouter", "expire"), ("tracerouter", "tell"),
        ]  # fmt: skip
        assert "request" not in done
        for action, body in (("claim", None), ("approve", None), ("edit", {"text": "x"})):
            status, refused = await callers.act(f"/{mine}/{action}", body=body)
            assert (status, "expired already" in refused["error"]["message"]) == (409, True)
    held = b"".join(file.read_bytes() for file in tmp_path.glob("tracerouter.db*"))  # noqa: ASYNC240 - a small one
    assert b"Secretive" not in held
    assert b"secret draft" not in held


async def test_a_decided_review_is_forgotten(opened: Callable[..., Any]) -> None:
    """The answer is kept for as long again as the review could wait; then its state alone is."""
    async with opened({"expires": 1}) as callers:
        mine = await callers.review("the contract [[ok void]]")
        await callers.act(f"/{mine}/approve")
        assert (await callers.look(f"/{mine}"))[1]["completion"]
        told = await callers.until(f"/{mine}", lambda told: told["completion"] is None)
        assert told["state"] == "approved"
        _, shown = await callers.look(f"/{mine}", "key-of-ann")
        assert (shown["request"], shown["draft"]) == (None, None)
        assert [one["what"] for one in shown["history"]] == ["approve", "tell", "forget"]


async def test_the_decision_is_a_trace_of_its_own(opened: Callable[..., Any]) -> None:
    """It is linked to the request's, costs nothing, and says who did what after how long; a user is hashed."""
    async with opened(telemetry={"hash_users": True}) as callers:
        seen = callers.gateway.seen
        _, _, told = await callers.ask("the contract [[ok void]]")
        route = next(span for span in seen.spans if span.name.startswith("route"))
        mine = told["tracerouter"]["review"]["id"]
        await callers.act(f"/{mine}/approve")
        async with asyncio.timeout(5):
            while not (found := [span for span in seen.spans if span.name == "review decision"]):
                await asyncio.sleep(0.01)
    (span,) = found
    (link,) = span.links
    assert route.context
    assert (link.context.trace_id, link.context.span_id) == (route.context.trace_id, route.context.span_id)
    assert span.context
    assert span.context.trace_id != route.context.trace_id
    assert span.parent is None
    told = dict(span.attributes or {})
    assert len(told.pop(names.REVIEWER)) == 16
    wait = told.pop(names.REVIEW_WAIT)
    assert 0 < told.pop(names.LATENCY) == wait < 60
    assert told == {
        names.REVIEW_ID: mine, names.REVIEW_ACTION: "approve", names.KEEP: "review",
        names.TOKENS_INPUT: 0, names.TOKENS_OUTPUT: 0, names.COST: 0,
    }  # fmt: skip


async def test_the_gauges_tell_the_queue(opened: Callable[..., Any]) -> None:
    """How many wait, and for how long the oldest has; a process that has ended says that nothing does."""
    async with opened() as callers, asyncio.timeout(10):
        told = callers.gateway.router.telemetry.instruments
        made = [await callers.review(f"contract {number}") for number in range(3)]
        await callers.act(f"/{made[0]}/reject")
        while told.review_depth.read() != [(("review",), 2)]:
            await asyncio.sleep(0.01)
        ((queue_name, age),) = told.review_age.read()
        assert queue_name == ("review",)
        assert 0 < age < 60
    assert told.review_depth.read() == [(("review",), 0)]
    assert told.review_age.read() == [(("review",), 0)]


@contextmanager
def failing(server: RedisServer | None, path: Path) -> Iterator[None]:
    """Let the store of the queue fail."""
    if server is not None:
        server.stop()
        yield
        server.start()
        return
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_a_store_that_fails_lets_no_draft_out(
    callers: Callers, tmp_path: Path, server: RedisServer | None
) -> None:
    """A draft is refused with its own code; after the ladder a request fails as it would without reviews."""
    mine = await callers.review("the contract [[ok void]]")
    with failing(server, tmp_path / "tracerouter.db"):
        status, headers, told = await callers.ask("the contract [[ok void]]")
        assert (status, told["error"]["code"]) == (503, "review_unavailable")
        assert (headers["x-should-retry"], headers["x-tracerouter-route"]) == ("false", "refused")
        assert "void" not in json.dumps(told)
        status, headers, told = await callers.ask("check [[empty]]")
        assert (status, told["error"]["code"]) == (502, "no_rung_left")
        assert headers["x-tracerouter-route"] == "failed"
        status, _, told = await callers.ask("hello [[ok hi]]")
        assert status == 200
        status, told = await callers.act(f"/{mine}/approve")
        assert (status, told["error"]["code"]) == (503, "store_unavailable")
    async with asyncio.timeout(10):
        while (await callers.ask(f"the contract at {time.time()}"))[0] != 409:
            await asyncio.sleep(0.1)


class Receiver:
    """Takes webhooks, or answers with what is written, one status a call."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[tuple[dict[str, str], bytes]] = []
        app = web.Application()
        app.router.add_post("/hooks/{rest:.*}", self._take)
        self.server = TestServer(app)

    async def _take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 204
        return web.Response(status=status, headers={"location": "/hooks/elsewhere"} if status == 307 else {})

    async def until(self, number: int) -> None:
        async with asyncio.timeout(15):
            while len(self.got) < number:
                await asyncio.sleep(0.02)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.server.start_server()
    yield made
    await made.server.close()


def allowing(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"allow": [str(receiver.server.make_url("/hooks"))], "secret": SECRET, "private": True, **more}


@pytest.mark.parametrize("action", ["approve", "edit", "reject"])
async def test_a_webhook_tells_what_the_poll_tells(opened: Callable[..., Any], receiver: Receiver, action: str) -> None:
    """It is signed by the convention, and holds the same as the poll's answer."""
    async with opened(webhooks=allowing(receiver)) as callers:
        target = str(receiver.server.make_url("/hooks/acme?x=1"))
        mine = await callers.review("the contract [[ok void]]", x_tracerouter_webhook=target)
        await callers.act(f"/{mine}/{action}", body={"edit": {"text": "by ann"}}.get(action))
        await receiver.until(1)
        _, polled = await callers.look(f"/{mine}")
    headers, body = receiver.got[0]
    told = Webhook(SECRET).verify(body, {name.lower(): value for name, value in headers.items()})
    assert told["data"] == polled
    assert told["type"] == f"review.{polled['state']}"
    assert headers["webhook-id"] == mine
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(SECRET).verify(body + b" ", {name.lower(): value for name, value in headers.items()})
    assert len(receiver.got) == 1


async def test_a_webhook_tells_of_expiry(opened: Callable[..., Any], receiver: Receiver) -> None:
    """Nobody has to ask in vain for ever."""
    async with opened({"expires": 1}, webhooks=allowing(receiver)) as callers:
        target = str(receiver.server.make_url("/hooks/acme"))
        await callers.review("the contract", x_tracerouter_webhook=target)
        await receiver.until(1)
    assert json.loads(receiver.got[0][1])["type"] == "review.expired"


async def test_a_webhook_is_tried_again_and_survives_a_restart(
    opened: Callable[..., Any], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not taken is sent again, by the next process too, with the same id; redirects are not followed."""
    monkeypatch.setattr(webhooks, "_FIRST_PAUSE", 0.5)
    receiver.statuses = [500, 307, 204]
    target = str(receiver.server.make_url("/hooks/acme"))
    async with opened(webhooks=allowing(receiver)) as callers:
        mine = await callers.review("the contract [[ok void]]", x_tracerouter_webhook=target)
        await callers.act(f"/{mine}/approve")
        await receiver.until(1)
    async with opened(webhooks=allowing(receiver)) as callers:
        await receiver.until(3)
        items = callers.gateway.router.reviews.items
        async with asyncio.timeout(5):
            while not (sent := await items.list(queue.WEBHOOK, states=["delivered"])):
                await asyncio.sleep(0.02)
        happened = [one.what for one in await items.history(queue.WEBHOOK, sent[0].id)]
    assert happened == ["try", "fail: 500", "try", "fail: 307", "try", "deliver"]
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {mine}


@pytest.mark.parametrize("status", [410, 500])
async def test_a_webhook_is_given_up(
    opened: Callable[..., Any], receiver: Receiver, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """By a receiver that wants no more at once; else after a day."""
    monkeypatch.setattr(webhooks, "GIVE_UP", 0.0 if status == 500 else webhooks.GIVE_UP)
    receiver.statuses = [status] * 9
    async with opened(webhooks=allowing(receiver)) as callers:
        target = str(receiver.server.make_url("/hooks/acme"))
        mine = await callers.review("the contract [[ok void]]", x_tracerouter_webhook=target)
        await callers.act(f"/{mine}/approve")
        items = callers.gateway.router.reviews.items
        async with asyncio.timeout(5):
            while not await items.list(queue.WEBHOOK, states=["given_up"]):
                await asyncio.sleep(0.02)
        assert (await callers.look(f"/{mine}"))[1]["completion"]
    assert len(receiver.got) == 1


async def test_only_allowed_targets_are_taken(opened: Callable[..., Any], receiver: Receiver) -> None:
    """Another target is 400 before any model is asked; so is every target where none is allowed."""
    async with opened(webhooks=allowing(receiver)) as callers:
        good = str(receiver.server.make_url("/hooks/acme"))
        for target in (
            good.replace("/hooks", "/other"),
            "https://example.com/hooks",
            f"{good}/../../other",
            "nonsense",
        ):
            status, _, told = await callers.ask("hello", x_tracerouter_webhook=target)
            assert (status, told["error"]["param"]) == (400, "x-tracerouter-webhook")
    async with opened() as callers:
        status, _, told = await callers.ask("hello", x_tracerouter_webhook=good)
        assert (status, "sends no webhooks" in told["error"]["message"]) == (400, True)


async def test_a_private_address_is_not_called(
    opened: Callable[..., Any], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that stands for a loopback address is resolved, refused, and nothing is sent there."""
    port = receiver.server.port
    async with opened(webhooks={"allow": [f"http://localhost:{port}/hooks"], "secret": SECRET}) as callers:
        target = f"http://localhost:{port}/hooks/acme"
        mine = await callers.review("the contract [[ok void]]", x_tracerouter_webhook=target)
        await callers.act(f"/{mine}/approve")
        items = callers.gateway.router.reviews.items
        async with asyncio.timeout(5):
            while (
                not (waiting := await items.list(queue.WEBHOOK))
                or len(await items.history(queue.WEBHOOK, waiting[0].id)) < 2
            ):
                await asyncio.sleep(0.02)
        assert (await items.history(queue.WEBHOOK, waiting[0].id))[1].what.startswith("fail: ")
    assert receiver.got == []


async def test_the_terminal(
    opened: Callable[..., Any], receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands act on the store, and the gateway tells the caller what they decided."""
    config = ("--config", str(tmp_path / "tracerouter.yaml"))

    async def review(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ["review", *arguments, *config])
        return (code, *capsys.readouterr())

    async with opened(webhooks=allowing(receiver)) as callers:
        target = str(receiver.server.make_url("/hooks/acme"))
        made = [
            await callers.review(f"contract {number} \x1b[31m[[ok void {number}]]", x_tracerouter_webhook=target)
            for number in range(4)
        ]
        code, out, _ = await tracerouter("review", "list", *config, "--json")
        assert (code, [one["id"] for one in json.loads(out)]) == (0, made[::-1])
        code, out, _ = await review("list")
        assert (code, len(out.splitlines())) == (0, 4)
        code, out, _ = await review("show", made[0][:12])
        assert code == 0
        assert "contract 0" in out
        assert "draft by small:\nvoid 0" in out
        assert "\x1b" not in out
        code, out, _ = await review("claim", made[0], "--as", "eve")
        assert (code, out.startswith("claimed")) == (0, True)
        code, _, err = await review("approve", made[0], "--as", "mallory")
        assert (code, "claimed by eve" in err) == (2, True)
        code, out, _ = await review("approve", made[0], "--as", "eve", "--json")
        assert (code, json.loads(out)["decided_by"]) == (0, "eve")
        code, _, err = await review("approve", made[0], "--as", "eve")
        assert (code, "approved already, by eve" in err) == (2, True)
        code, out, _ = await review("edit", made[1], "--as", "eve", "--text", "no")
        assert (code, "answer by eve:\nno" in out) == (0, True)
        code, _, _ = await review("reject", made[2], "--as", "eve", "--why", "ask")
        assert code == 0
        code, _, err = await review("show", "zzz")
        assert (code, "no review" in err) == (1, True)
        await receiver.until(3)
        told = {json.loads(body)["data"]["id"]: json.loads(body)["data"] for _, body in receiver.got}
        assert [told[one]["state"] for one in made[:3]] == ["approved", "edited", "rejected"]
        assert told[made[0]]["completion"]["choices"][0]["message"]["content"] == "void 0"
        assert (await callers.look(f"/{made[2]}"))[1]["why"] == "ask"


async def test_a_wrapped_service(tmp_path: Path, upstream: Upstream) -> None:
    """A draft is never the handler's; what fails after it goes to a person; and its callers can ask for the answer."""
    called = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal called
        called += 1
        return web.json_response({"error": "no"}, status=500)

    models = {"small": openai_models(upstream.url)["small"]}
    router = load(write(tmp_path, models, POLICY))
    app = web.Application()
    app.router.add_post(CHAT, handler)
    setup(app, router, wrap=[CHAT], identify=lambda request: Caller(tenant=request.headers["x-who"]))
    async with TestServer(app) as server, aiohttp.ClientSession() as http:

        async def ask(text: str, **more: Any) -> tuple[int, Any]:
            body = {"messages": [{"role": "user", "content": text}], **more}
            async with http.post(server.make_url(CHAT), json=body, headers={"x-who": "acme"}) as response:
                return response.status, await response.json()

        status, told = await ask("the contract [[500]]")
        assert (status, told["error"]["code"], called) == (409, "in_review", 0)
        status, told = await ask("check this [[500]]")
        assert (status, told["error"]["code"], called) == (409, "in_review", 1)
        url = server.make_url(told["tracerouter"]["review"]["url"])
        for who, wanted in (("acme", 200), ("other", 404)):
            async with http.get(url, headers={"x-who": who}) as response:
                assert response.status == wanted
                found = await response.json()
        async with http.get(server.make_url(REVIEWS), headers={"x-who": "acme"}) as response:
            assert response.status == 403
        assert found["error"]["type"] == "invalid_request_error"


async def test_with_no_keys_who_is_on_this_machine_reviews(tmp_path: Path, upstream: Upstream) -> None:
    """The loopback caller asks, and decides."""
    async with (
        Gateway(write(tmp_path, openai_models(upstream.url), POLICY)) as gateway,
        aiohttp.ClientSession() as http,
    ):
        callers = Callers(http, gateway)
        mine = await callers.review("the contract [[ok void]]")
        status, told = await callers.act(f"/{mine}/approve")
        assert (status, told["decided_by"]) == (200, "default")
