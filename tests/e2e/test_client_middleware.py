"""Under a client: an application's own calls through aiohttp are routed in the process, and it can't tell."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

import tracerouter
from tests.gateway import Seen, nanos, openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter.telemetry import names
from tracerouter.types import Caller
from tracerouter.web import client_middleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tracerouter.router import Router

PRICES = {"gpt-5": Prices(1_000_000_000, 4_000_000_000)}
HANDLER = {"handler": {"provider": "handler", "price": {"input": 1, "output": 4}}}


@dataclass
class Application:
    """An application that calls OpenAI, and what stands around it."""

    router: Router
    cheap: Upstream
    """The cheap model."""
    openai: Upstream
    """What it calls."""
    session: aiohttp.ClientSession
    seen: Seen

    def asking(self, step: str, **extra: Any) -> Any:
        body = {"model": "gpt-5", "messages": [{"role": "user", "content": f"go [[{step}]]"}], **extra}
        headers = {"authorization": "Bearer mine", "x-own": "1"}
        return self.session.post(f"{self.openai.url}/chat/completions", json=body, headers=headers)


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
    async with Upstream() as cheap, Upstream(prices=PRICES) as openai:
        small = {"small": openai_models(cheap.url, timeout=2)["small"]}
        path = write(tmp_path, {**small, **HANDLER}, {"ladder": ["small", "handler"]})
        router = tracerouter.load(path)
        seen = Seen()
        router.telemetry.span_processors, router.telemetry.delay = [seen], 0
        routed = client_middleware(router, openai.url, identify=lambda: Caller(tenant="acme"))
        async with aiohttp.ClientSession(middlewares=[routed]) as session:
            yield Application(router, cheap, openai, session, seen)
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
    route = next(span for span in application.seen.spans if span.name.startswith("route"))
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
    chat = next(span for span in application.seen.spans if span.name == "chat handler")
    assert chat.context
    assert request.headers["traceparent"].split("-")[2] == f"{chat.context.span_id:016x}"
    route = next(span for span in application.seen.spans if span.name.startswith("route"))
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
        while not any(span.name.startswith("route") for span in application.seen.spans):
            await asyncio.sleep(0.01)
    route = next(span for span in application.seen.spans if span.name.startswith("route"))
    assert route.attributes
    assert route.attributes[names.OUTCOME] == "cancelled"
    assert nanos(route.attributes[names.COST]) > 0


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
    assert application.seen.spans == []


def test_private_parts_of_aiohttp() -> None:
    """An answer of ours has all that aiohttp itself gives one; if this fails, look at `RoutedResponse` and `_Flow`."""
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
    ours = {"_closed", "version", "status", "reason", "_headers", "_raw_headers", "content"}
    of_a_connection = {"_protocol", "_connection", "_continue", "_raw_cookie_headers"}
    assert given == ours | of_a_connection
    reads = inspect.getsource(aiohttp.StreamReader)
    asked = {
        node.attr
        for node in ast.walk(ast.parse(reads))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "_protocol"
    }
    assert asked == {"pause_reading", "resume_reading", "connected"}
