"""Under a client: an application's own calls through aiohttp are routed in the process, and it can't tell."""

from __future__ import annotations

import ast
import asyncio
import gzip
import inspect
import json
import sqlite3
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import tracerouter
from tests.gateway import Seen, cost_of, nanos, openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter.telemetry import names
from tracerouter.types import Caller
from tracerouter.web import client_middleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from tracerouter.router import Router

PRICES = {"gpt-5": Prices(1_000_000_000, 4_000_000_000)}
CHEAP = {"small-1": Prices(150_000_000, 600_000_000)}
HANDLER = {"handler": {"provider": "handler", "price": {"input": 1, "output": 4}}}


class Accounts:
    """What is told of a router's requests: its spans, its ledger, its records."""

    def __init__(self, router: Router, folder: Path) -> None:
        self.router = router
        self._folder = folder
        self._seen = Seen()
        router.telemetry.span_processors, router.telemetry.delay = [self._seen], 0

    @property
    def spans(self) -> list[ReadableSpan]:
        return self._seen.spans

    async def agree(self, outcome: str, route: str | None = None, *, source: str | None = None, number: int = 1) -> int:
        """Wait for the `number`-th request's end; return its cost (nano-dollars), on which all accounts agree."""

        def routes() -> list[ReadableSpan]:
            return [span for span in self.spans if span.name.startswith("route ")]

        async with asyncio.timeout(5):
            while len(routes()) < number:
                await asyncio.sleep(0.01)
            while len(self._rows("SELECT record FROM decisions")) < number:
                await asyncio.sleep(0.01)
        (last,) = routes()[number - 1 : number]
        assert last.context
        assert last.attributes
        trace = [span for span in self.spans if span.context and span.context.trace_id == last.context.trace_id]
        request_id = str(last.attributes[names.REQUEST_ID])
        ((booked,),) = self._rows(f"SELECT sum(cost_nanos) FROM entries WHERE request_id = '{request_id}'")  # noqa: S608
        ((told,),) = self._rows(f"SELECT record FROM decisions WHERE request_id = '{request_id}'")  # noqa: S608
        record = json.loads(told)
        cost = nanos(last.attributes[names.COST])
        assert cost == cost_of(trace, "chat") == (booked or 0) == nanos(record["cost"])
        assert record["outcome"] == outcome
        assert route in {None, record["route"]}
        assert source in {None, record["cost_source"]}
        return cost

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self._folder / "tracerouter.db")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


@dataclass
class Application:
    """An application that calls OpenAI, and what stands around it."""

    accounts: Accounts
    cheap: Upstream
    """The cheap model."""
    openai: Upstream
    """What it calls."""
    session: aiohttp.ClientSession

    @property
    def spans(self) -> list[ReadableSpan]:
        return self.accounts.spans

    def asking(self, step: str, **extra: Any) -> Any:
        headers = {"authorization": "Bearer mine", "x-own": "1"}
        return self.session.post(f"{self.openai.url}/chat/completions", json=asked(step, **extra), headers=headers)


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def asked(step: str, **extra: Any) -> dict[str, Any]:
    return {"model": "gpt-5", "messages": [said(f"go [[{step}]]")], **extra}


async def test_what_a_person_will_answer_is_told_instead_of_the_original_error(tmp_path: Path) -> None:
    """Where the original call fails and its request goes to review, the application is told where to ask."""
    async with Upstream() as cheap, Upstream(prices=PRICES) as openai:
        small = {"small": openai_models(cheap.url)["small"]}
        policy = {"ladder": ["small", "handler"], "tasks": {"go": {"match": ["^go"], "review": "after_ladder"}}}
        router = tracerouter.load(write(tmp_path, {**small, **HANDLER}, policy))
        async with aiohttp.ClientSession(middlewares=[client_middleware(router, openai.url)]) as session:
            body = {"model": "gpt-5", "messages": [{"role": "user", "content": "go [[500]]"}]}
            async with session.post(f"{openai.url}/chat/completions", json=body) as response:
                told = await response.json()
                assert (response.status, told["error"]["code"]) == (409, "in_review")
        assert len(openai.requests) == 1
        await router.close()


@pytest.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    """The application, with tracerouter under its session."""
    async with Upstream(prices=CHEAP) as cheap, Upstream(prices=PRICES) as openai:
        small = {"small": openai_models(cheap.url, timeout=2)["small"]}
        path = write(tmp_path, {**small, **HANDLER}, {"ladder": ["small", "handler"]})
        router = tracerouter.load(path)
        accounts = Accounts(router, tmp_path)
        routed = client_middleware(router, openai.url, identify=lambda: Caller(tenant="acme"))
        async with aiohttp.ClientSession(middlewares=[routed]) as session:
            yield Application(accounts, cheap, openai, session)
        await router.close()


async def test_the_cheap_model_answers(application: Application) -> None:
    """What the cheap model answers well is a response like any other, and the call never leaves for OpenAI."""
    async with application.asking("ok a fine answer") as response:
        assert (response.status, response.reason, response.content_type) == (200, "OK", "application/json")
        assert response.headers["x-tracerouter-route"] == "cheap"
        told = await response.json()
        assert told["choices"][0]["message"]["content"] == "a fine answer"
        assert json.loads(await response.text()) == json.loads(await response.read()) == told
        assert dict(response.raw_headers)[b"x-tracerouter-route"] == b"cheap"
        assert (response.method, response.url, response.ok) == ("POST", response.request_info.url, True)
        response.raise_for_status()
    assert response.closed
    assert application.openai.requests == []
    route = next(span for span in application.spans if span.name.startswith("route"))
    assert route.attributes
    assert route.attributes[names.TENANT] == "acme"


async def test_the_original_call_is_the_last_rung(application: Application) -> None:
    """When the cheap model fails the call goes out as the application made it, and its own answer comes back."""
    async with application.asking("small-1=500, gpt-5=ok the dear answer", x_new=1) as response:
        told = await response.json()
    assert told["choices"][0]["message"]["content"] == "the dear answer"
    assert "tracerouter" not in told
    (request,) = application.openai.requests
    assert (request.body["model"], request.body["x_new"], request.headers["x-own"]) == ("gpt-5", 1, "1")
    assert request.headers["authorization"] == "Bearer mine"
    chat = next(span for span in application.spans if span.name == "chat handler")
    assert chat.context
    assert request.headers["traceparent"].split("-")[2] == f"{chat.context.span_id:016x}"
    route = next(span for span in application.spans if span.name.startswith("route"))
    assert route.attributes
    assert nanos(route.attributes[names.COST]) == application.openai.nanos + application.cheap.nanos


@pytest.mark.parametrize("step", ["ok one two three", "small-1=500, gpt-5=ok one two three"])
async def test_streams(application: Application, step: str) -> None:
    """A stream is a stream, whoever answers: lines as they come, up to the end."""
    async with application.asking(step, stream=True) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        lines = [line async for line in response.content if line.strip()]
    assert lines.pop().strip() == b"data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == "one two three"


async def test_chunks_arrive_as_they_come_and_closing_stops_the_model(application: Application) -> None:
    """The first chunks are read while the model still works; an application that closes then stops it at once."""
    response = await application.asking("hang_after 3", stream=True)
    got = 0
    async for line in response.content:
        got += line.startswith(b"data: ")
        if got == 3:
            break
    left = time.monotonic()
    response.close()
    await application.cheap.disconnected()
    assert time.monotonic() - left < 0.5
    async with asyncio.timeout(5):
        while not any(span.name.startswith("route") for span in application.spans):
            await asyncio.sleep(0.01)
    route = next(span for span in application.spans if span.name.startswith("route"))
    assert route.attributes
    assert route.attributes[names.OUTCOME] == "cancelled"
    assert nanos(route.attributes[names.COST]) > 0


USAGE = {"stream": True, "stream_options": {"include_usage": True}}
FALLS = "small-1=500, gpt-5="
"""Before a step of the original call."""


@pytest.mark.parametrize(
    ("step", "extra", "source"),
    [
        ("ok one two", USAGE, "reported"),
        ("cached one two", USAGE, "reported"),
        ("reasoning one two", USAGE, "reported"),
        ("bytewise Zwölf Äpfel 🍏", USAGE, "reported"),
        ("tool_calls {} | {}", USAGE, "reported"),
        ("ok one two", {"stream": True}, "estimated"),
        ("no_usage one two", USAGE, "estimated"),
        ("bad_usage one two", USAGE, "estimated"),
        ("no_done one two", {"stream": True}, "estimated"),
        ("ok one two", {"stream": True, "n": 2}, "estimated"),
        ("ok one two", {}, "reported"),
        ("no_usage one two", {}, "estimated"),
        ("bad_usage one two", {}, "estimated"),
    ],
)
async def test_the_originals_usage_is_read_or_counted(
    application: Application, step: str, extra: dict[str, Any], source: str
) -> None:
    """What the original call cost is known, plain and streamed: by its own word, or counted, which is said."""
    async with application.asking(FALLS + step, **extra) as response:
        assert response.status == 200
        await response.read()
    cost = await application.accounts.agree("answered", "fallback", source=source)
    assert cost == application.openai.nanos > 0
    chat = next(span for span in application.spans if span.name == "chat handler")
    assert chat.attributes
    assert chat.attributes[names.GEN_AI_RESPONSE_MODEL] == "gpt-5-2026-01-01"
    assert (names.GEN_AI_FIRST_CHUNK in chat.attributes) == bool(extra)


@pytest.mark.parametrize("step", ["cut 3", "drop 3", "error_after 3", "cut_utf8 3", "garbage", "wrong"])
async def test_an_original_stream_that_breaks(application: Application, step: str) -> None:
    """The application sees what it would have seen without us; what was made is paid for."""
    url, body = f"{application.openai.url}/chat/completions", asked(FALLS + step, stream=True)

    async def read(session: aiohttp.ClientSession) -> tuple[bytes, str | None]:
        seen = b""
        async with session.post(url, json=body) as response:
            try:
                async for piece in response.content.iter_any():
                    seen += piece
            except aiohttp.ClientError as error:
                return seen.replace(b"-2", b"-1"), type(error).__name__
        return seen.replace(b"-2", b"-1"), None

    async with aiohttp.ClientSession() as bare:
        assert await read(bare) == await read(application.session)
    cost = await application.accounts.agree("failed", "failed", source="estimated")
    assert cost == application.openai.charges[1].nanos > 0


async def test_who_leaves_an_original_stream_pays_for_what_was_made(application: Application) -> None:
    """Its chunks are read while it is being written; closing it stops the provider at once."""
    response = await application.asking(f"{FALLS}hang_after 3", stream=True)
    got = 0
    async for line in response.content:
        got += b'"content": ""' not in line and line.startswith(b"data: ")
        if got == 3:
            break
    left = time.monotonic()
    response.close()
    await application.openai.disconnected()
    assert time.monotonic() - left < 0.5
    cost = await application.accounts.agree("cancelled", source="estimated")
    assert cost == application.openai.nanos > 0


async def test_who_leaves_after_the_end_has_not_left(application: Application) -> None:
    """SDKs close a stream at its last event: by then the answer is whole, and so it is told."""
    response = await application.asking(f"{FALLS}ok one two", **USAGE)
    async for line in response.content:
        if line.strip() == b"data: [DONE]":
            response.close()
            break
    cost = await application.accounts.agree("answered", "fallback", source="reported")
    assert cost == application.openai.nanos > 0
    async with application.asking(f"{FALLS}ok three", **USAGE) as again:
        await again.read()
    peers = {request.peer for request in application.openai.requests}
    assert len(peers) == 1  # the connection was used again


async def test_who_leaves_before_the_original_answers(application: Application) -> None:
    """A call that was sent and given up costs its input."""
    for number, stream in enumerate((False, True), 1):
        asking = asyncio.create_task(application.asking(f"{FALLS}hang", stream=stream).__aenter__())
        await application.openai.received(number)
        asking.cancel()
        await application.openai.disconnected(number)
        cost = await application.accounts.agree("cancelled", source="estimated", number=number)
        assert cost == application.openai.nanos / number > 0


async def test_who_does_not_read_an_original_stream_slows_it(application: Application) -> None:
    """An original stream is passed on, not held: what the application does not read, the provider does not write."""
    async with application.asking(f"{FALLS}flood 3000", stream=True) as response:
        written, before = -1, -2
        while written != before:
            await asyncio.sleep(0.3)
            written, before = len(application.openai.charges[0].written), written
        assert 0 < written < 3000
        assert response.content.total_bytes < 400_000
        total = 0
        async for piece in response.content.iter_any():
            total += len(piece)
    assert total > 3_000 * 8_000
    await application.accounts.agree("answered", "fallback", source="estimated")


@pytest.mark.parametrize("step", ["flood 3000", f"{FALLS}flood 3000"])
async def test_an_application_that_never_reads_has_left(application: Application, step: str) -> None:
    """A stream of which nothing is read for too long stops its model, and is charged for what was made."""
    application.accounts.router.write_timeout = 0.4
    model = application.openai if step.startswith(FALLS) else application.cheap
    response = await application.asking(step, stream=True)
    await model.disconnected()
    cost = await application.accounts.agree("cancelled", source="estimated")
    assert 0 < cost <= model.nanos
    with pytest.raises(aiohttp.ClientPayloadError, match="was read for too long"):
        await response.read()


@pytest.mark.parametrize("step", ["slow_reader", f"{FALLS}slow_reader"])
async def test_an_application_that_reads_slowly_has_not_left(application: Application, step: str) -> None:
    """A little now and then is enough, however long it takes in all: longer than the model may take itself."""
    application.accounts.router.write_timeout = 0.5
    response = await application.asking(step.replace("slow_reader", "flood 600"), stream=True)
    started = time.monotonic()
    while time.monotonic() - started < 2.5:
        assert await response.content.read(1024)
        await asyncio.sleep(0.1)
    rest = await response.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    await application.accounts.agree("answered")


async def test_the_original_need_not_be_the_last(tmp_path: Path) -> None:
    """Another rung may follow the original call, but not where the application has begun to read its stream."""
    async with Upstream(prices=CHEAP) as other, Upstream(prices=PRICES) as openai:
        models = {**HANDLER, "small": openai_models(other.url)["small"]}
        router = tracerouter.load(write(tmp_path, models, {"ladder": ["handler", "small"]}))
        routed = client_middleware(router, openai.url)
        async with aiohttp.ClientSession(middlewares=[routed]) as session:
            url = f"{openai.url}/chat/completions"
            for stream in (False, True):
                async with session.post(url, json=asked("gpt-5=500, small-1=ok fine", stream=stream)) as response:
                    assert b"fine" in await response.read()
            async with session.post(url, json=asked("gpt-5=cut 3, small-1=ok fine", stream=True)) as response:
                assert b"fine" not in await response.read()
            async with session.post(url, json=asked("gpt-5=ok mine")) as response:
                assert b"mine" in await response.read()
        await router.close()
    assert len({request.peer for request in openai.requests}) == 1  # what nobody reads holds no connection


async def test_an_original_that_is_out_of_reach_costs_nothing(tmp_path: Path, unused_tcp_port: int) -> None:
    """Where no connection can be made nothing was sent: that is known, and no guess."""
    async with Upstream(default={"small-1": "500"}) as cheap:
        small = {"small": openai_models(cheap.url)["small"]}
        router = tracerouter.load(write(tmp_path, {**small, **HANDLER}, {"ladder": ["small", "handler"]}))
        accounts, url = Accounts(router, tmp_path), f"http://127.0.0.1:{unused_tcp_port}/v1"
        async with aiohttp.ClientSession(middlewares=[client_middleware(router, url)]) as session:
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.post(f"{url}/chat/completions", json=asked("500"))
        assert await accounts.agree("failed", source="reported") == 0
        await router.close()


async def test_an_original_answer_is_left_as_it_is(tmp_path: Path) -> None:
    """Status, reason, headers and cookies stay; what can't be read here is not touched, and its cost is not known."""

    async def answer(request: web.Request) -> web.StreamResponse:
        kind = (await request.json())["messages"][0]["content"]
        if kind == "stream":
            response = web.StreamResponse(status=203, reason="So it is", headers={"content-type": "text/event-stream"})
            response.set_cookie("seen", "1")
            await response.prepare(request)
            await response.write(b"data: [DONE]\n\n")
            return response
        packed = web.Response(body=b'{"some": "body"}', content_type="application/json" if kind == "packed" else "x/y")
        if kind == "packed":
            packed.enable_compression(web.ContentCoding.gzip)
        return packed

    app = web.Application()
    app.router.add_post("/chat/completions", answer)
    async with TestServer(app) as server, Upstream(default={"small-1": "500"}) as cheap:
        url = str(server.make_url("")).rstrip("/")
        small = {"small": openai_models(cheap.url)["small"]}
        router = tracerouter.load(write(tmp_path, {**small, **HANDLER}, {"ladder": ["small", "handler"]}))
        accounts = Accounts(router, tmp_path)
        jar = aiohttp.CookieJar(unsafe=True)
        routed = [client_middleware(router, url)]
        async with aiohttp.ClientSession(middlewares=routed, cookie_jar=jar, auto_decompress=False) as session:
            path = f"{url}/chat/completions"
            async with session.post(
                path, json={**asked("x"), "messages": [said("stream")], "stream": True}
            ) as response:
                assert (response.status, response.reason, response.cookies["seen"].value) == (203, "So it is", "1")
                assert await response.read() == b"data: [DONE]\n\n"
            assert [cookie.key for cookie in jar] == ["seen"]
            async with session.post(path, json={"messages": [said("packed")]}) as response:
                assert gzip.decompress(await response.read()) == b'{"some": "body"}'
            async with session.post(path, json={"messages": [said("other")], "stream": True}) as response:
                assert [piece async for piece in response.content.iter_any()] == [b'{"some": "body"}']
        routes = [dict(span.attributes or {}) for span in accounts.spans if span.name.startswith("route ")]
        assert [(told[names.OUTCOME], names.COST in told) for told in routes[1:]] == [("answered", False)] * 2
        await router.close()


async def test_an_application_that_is_cancelled_stops_the_model(application: Application) -> None:
    """Cancelling the call cancels the model, before the first chunk too."""
    for stream in (False, True):
        asking = asyncio.create_task(application.asking("hang", stream=stream).__aenter__())
        await application.cheap.received(1 + stream)
        asking.cancel()
        await application.cheap.disconnected(1 + stream)


async def test_a_slow_application_slows_the_model(application: Application) -> None:
    """What an application does not read is not asked of the model; then it gets all of it."""
    async with application.asking("flood 3000", stream=True) as response:
        written, before = -1, -2
        while written != before:
            await asyncio.sleep(0.3)
            written, before = len(application.cheap.charges[0].written), written
        assert response.content.total_bytes < 200_000
        total = 0
        async for piece in response.content.iter_any():
            total += len(piece)
    assert total > 3_000 * 8_000


@pytest.mark.parametrize(("step", "status"), [("429 3", 429), ("500", 500), ("400 No.", 400)])
async def test_the_originals_errors_are_its_own(application: Application, step: str, status: int) -> None:
    """When the original call is turned down too, the application sees what it was told, and no more."""
    for stream in (False, True):
        async with application.asking(f"small-1=500, gpt-5={step}", stream=stream) as response:
            assert response.status == status
            assert (await response.json())["error"]["type"] == "upstream_error"


async def test_a_connection_that_fails_raises_as_ever(tmp_path: Path, unused_tcp_port: int) -> None:
    """Where OpenAI can't be reached the application gets aiohttp's own error."""
    async with Upstream(default={"small-1": "500"}) as cheap:
        router = tracerouter.load(write(tmp_path, {"small": openai_models(cheap.url)["small"]}, {}))
        url = f"http://127.0.0.1:{unused_tcp_port}/v1"
        async with aiohttp.ClientSession(middlewares=[client_middleware(router, url)]) as session:
            for stream in (False, True):
                body = {"messages": [{"role": "user", "content": "hi"}], "stream": stream}
                with pytest.raises(aiohttp.ClientConnectorError):
                    await session.post(f"{url}/chat/completions", json=body)
        await router.close()


async def test_what_is_ours_to_refuse_does_not_go_out(application: Application) -> None:
    """A schema that is none is answered here, in OpenAI's shape; a session that raises for a status does so."""
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objec"}}}
    for stream in (False, True):
        async with application.asking("ok", response_format=wrong, stream=stream) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "response_format.json_schema.schema"
    application.session._raise_for_status = True
    with pytest.raises(aiohttp.ClientResponseError, match="400"):
        await application.asking("ok", response_format=wrong)
    assert application.openai.requests == application.cheap.requests == []


async def test_all_else_goes_out_untouched(application: Application) -> None:
    """Other addresses and methods, bodies that are no chat and those that can be read but once are not looked at."""
    url = application.openai.url

    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps({"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]}).encode()

    async with application.session.post(f"{url}/embeddings", json={"model": "e", "input": "a"}) as response:
        assert response.status == 200
    async with application.session.get(f"{url}/chat/completions") as response:
        assert response.status == 405
    async with application.session.post(f"{url}/chat/completions", data=b"no JSON") as response:
        assert response.status == 500  # as that server has it
    async with application.session.post(f"{url}/chat/completions", data=pieces()) as response:
        assert response.status == 200
    assert len(application.openai.requests) == 2
    assert application.cheap.requests == []
    assert application.spans == []


def test_private_parts_of_aiohttp() -> None:
    """An answer of ours has all that aiohttp itself gives one; if this fails, look at `web/response.py`."""
    made = inspect.signature(aiohttp.ClientResponse.__init__).parameters
    assert list(made) == [
        "self", "method", "url", "writer", "continue100", "timer", "request_info", "traces", "loop", "session",
        "stream_writer",
    ]  # fmt: skip
    source = textwrap.dedent(inspect.getsource(aiohttp.ClientResponse.start))
    given = {
        target.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute)
    }
    ours = {"_closed", "version", "status", "reason", "_headers", "_raw_headers", "_raw_cookie_headers", "content"}
    of_a_connection = {"_protocol", "_connection", "_continue"}
    assert given == ours | of_a_connection
    reads = inspect.getsource(aiohttp.StreamReader)
    asked = {
        node.attr
        for node in ast.walk(ast.parse(reads))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "_protocol"
    }
    assert asked == {"pause_reading", "resume_reading", "connected"}
    assert "self._size += data_len" in reads
    assert "self._size -= data_len" in reads
