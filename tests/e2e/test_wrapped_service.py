"""A service that is wrapped in one line: its own handler answers only when the cheap rung fails."""

from __future__ import annotations

import asyncio
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

import tracerouter
from tests.e2e.test_streams import asking, deaf
from tests.gateway import Seen, nanos, openai_models, write
from tests.upstream import Upstream
from tracerouter.errors import ConfigError
from tracerouter.telemetry import names
from tracerouter.types import Caller, Usage
from tracerouter.web import ESCALATION, ROUTER, USAGE, Spent, setup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SERVICE_ANSWER = {
    "id": "service-1",
    "object": "chat.completion",
    "created": 1,
    "model": "house-model",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "the service's own"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
}


class Service:
    """An LLM service as they are: an aiohttp application with one endpoint."""

    def __init__(self) -> None:
        self.calls = 0
        self.escalations: list[Any] = []
        self.spent: Spent | None = None
        self.pause = 0.0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        self.escalations.append(request.get(ESCALATION))
        if self.spent is not None:
            request[USAGE] = self.spent
        body = await request.json()
        if body["messages"][-1]["content"] == "conflict":
            raise web.HTTPConflict
        if body["messages"][-1]["content"] == "unavailable":
            return web.Response(status=503)
        await asyncio.sleep(self.pause)
        if body.get("stream"):
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": "own stream"}}]}\n\n')
            await response.write(b"data: [DONE]\n\n")
            return response
        return web.json_response(SERVICE_ANSWER, headers={"x-service": "yes"})

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/plain", self.plain)
        return app

    async def plain(self, request: web.Request) -> web.Response:
        outcome = await request[ROUTER].route(tracerouter.Task.chat("hello [[ok inside]]"))
        assert outcome.completion
        return web.json_response({"said": outcome.completion.text, "cost": outcome.facts["cost"]})


class Wrapped:
    """The service, served with tracerouter around it."""

    def __init__(self, service: Service, upstream: Upstream, url: str, seen: Seen) -> None:
        self.service, self.upstream, self.url, self.seen = service, upstream, url, seen

    async def ask(self, text: str, **extra: Any) -> tuple[int, Any, Any]:
        body = {"model": "whatever-the-service-calls-it", "messages": [{"role": "user", "content": text}], **extra}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/v1/chat/completions", json=body) as response,
        ):
            content = await response.read()
            told = await response.json() if response.content_type == "application/json" else content.decode()
            return response.status, response.headers, told


@pytest.fixture
async def wrapped(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that serves a wrapped service; all are stopped afterwards."""
    started: list[Any] = []

    async def serve(
        models: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **options: Any
    ) -> Wrapped:
        upstream = await Upstream().__aenter__()
        small = {"small": openai_models(upstream.url, timeout=2)["small"]}
        path = write(tmp_path, {**small, **(models or {})}, {"ladder": ["small", *(models or {})]}, **(settings or {}))
        service, app = Service(), None
        app = service.app()
        router = tracerouter.load(path)
        seen = Seen()
        router.telemetry.span_processors = [seen]
        router.telemetry.delay = 0
        setup(app, router, wrap=["/v1/chat/completions"], **options)  # the one line
        server = TestServer(app)
        await server.start_server()
        started.extend([server.close, upstream.__aexit__])
        return Wrapped(service, upstream, str(server.make_url("")).rstrip("/"), seen)

    yield serve
    for stop in started:
        await stop()


async def test_the_cheap_rung_answers_and_the_handler_does_not(wrapped: Callable[..., Any]) -> None:
    """While the cheap model answers well the handler is never called."""
    served = await wrapped()
    status, headers, told = await served.ask("hello [[ok a fine answer]]")
    assert (status, told["choices"][0]["message"]["content"]) == (200, "a fine answer")
    assert headers["x-tracerouter-route"] == "cheap"
    assert served.service.calls == 0


async def test_the_handler_answers_when_the_cheap_rung_fails(wrapped: Callable[..., Any]) -> None:
    """When the cheap model fails the handler's own response reaches the client, with our headers beside its own."""
    served = await wrapped()
    status, headers, told = await served.ask("hello [[500]]")
    assert (status, told) == (200, SERVICE_ANSWER)
    assert headers["x-service"] == "yes"
    assert headers["x-tracerouter-route"] == "fallback"
    assert headers["x-tracerouter-reason"] == "provider_error"
    assert served.service.calls == 1


async def test_a_stream_is_the_cheap_models_or_the_handlers(wrapped: Callable[..., Any]) -> None:
    """A streamed request is answered by the cheap model's stream, and by the handler's when that fails."""
    served = await wrapped()
    _, _, told = await served.ask("hello [[ok one two three]]", stream=True)
    assert told.count("data: ") > 3
    assert "[DONE]" in told
    assert served.service.calls == 0
    _, headers, told = await served.ask("hello [[500]]", stream=True)
    assert "own stream" in told
    assert told.count("[DONE]") == 1
    assert "x-request-id" in headers
    assert served.service.calls == 1


async def test_a_real_sdk_can_not_tell(wrapped: Callable[..., Any]) -> None:
    """OpenAI's own client works against the wrapped service, plain and streamed."""
    served = await wrapped()
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k", max_retries=0)
    messages: Any = [{"role": "user", "content": "hi [[ok from the cheap one]]"}]
    answer = await client.chat.completions.create(model="gpt-4o", messages=messages)
    assert answer.choices[0].message.content == "from the cheap one"
    pieces = [
        chunk.choices[0].delta.content or ""
        async for chunk in await client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
        if chunk.choices
    ]
    assert "".join(pieces) == "from the cheap one"
    await client.close()


async def test_the_handler_learns_why_it_is_called(wrapped: Callable[..., Any]) -> None:
    """The handler finds the rejected answer and the validators' failures in the request."""
    served = await wrapped()
    schema = {"type": "object", "required": ["id"]}
    await served.ask(
        'hi [[ok {"no": 1}]]', response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    )
    (escalation,) = served.service.escalations
    assert escalation.rejected.text == '{"no": 1}'
    assert [(failure.code, failure.detail) for failure in escalation.failures] == [("schema_invalid", "required")]


async def test_the_handlers_cost_is_known_or_left_out(wrapped: Callable[..., Any]) -> None:
    """Without a price the handler's cost is left out of its span, never 0; with ``USAGE`` it is what it says."""
    served = await wrapped()
    await served.ask("hello [[500]]")
    chats = [span for span in served.seen.spans if span.name == "chat handler"]
    assert names.COST not in chats[-1].attributes
    assert chats[-1].attributes[names.COST_SOURCE] == "unknown"
    assert chats[-1].attributes[names.GEN_AI_INPUT_TOKENS] == 100
    served.service.spent = Spent(Usage(7, 3), Decimal("0.0125"))
    _, headers, _ = await served.ask("hello again [[500]]")
    assert nanos(headers["x-tracerouter-cost"]) == 12_500_000


async def test_the_handlers_price_in_the_file_counts(wrapped: Callable[..., Any]) -> None:
    """An alias of provider ``handler`` with a price prices the usage of the handler's answer."""
    served = await wrapped({"service": {"provider": "handler", "price": {"input": 1, "output": 2}}})
    _, headers, _ = await served.ask("hello [[500]]")
    assert headers["x-tracerouter-model"] == "service"
    assert nanos(headers["x-tracerouter-cost"]) == 100 * 1000 + 10 * 2000


async def test_what_the_service_refuses_stays_refused(wrapped: Callable[..., Any]) -> None:
    """An HTTP error that the handler raises reaches the client as it is."""
    served = await wrapped(None)
    served.upstream.default["small-1"] = "500"
    status, _, _ = await served.ask("conflict")
    assert status == 409


@pytest.mark.parametrize("body", [b"no json", b'{"messages": []}', b'{"other": "protocol"}'])
async def test_what_we_can_not_read_goes_to_the_handler(wrapped: Callable[..., Any], body: bytes) -> None:
    """Wrapping takes nothing away: a body that is no chat request is the handler's to answer."""
    served = await wrapped()
    async with aiohttp.ClientSession() as session:
        await session.post(f"{served.url}/v1/chat/completions", data=body)
    assert served.service.calls == 1
    assert served.upstream.requests == []


async def test_other_endpoints_can_route(wrapped: Callable[..., Any]) -> None:
    """Any handler finds the router in its request; endpoints that are not wrapped are left alone."""
    served = await wrapped()
    async with aiohttp.ClientSession() as session, session.post(f"{served.url}/plain") as response:
        told = await response.json()
    assert told["said"] == "inside"
    assert float(told["cost"]) > 0


async def test_identify_says_who_asks(wrapped: Callable[..., Any]) -> None:
    """The caller is what ``identify`` returns, sync or async, and nothing that a header says."""

    async def identify(_: web.Request) -> Caller:
        return Caller(tenant="acme", tier="gold")

    served = await wrapped(identify=identify)
    await served.ask("hi [[ok]]")
    route = next(span for span in served.seen.spans if span.name.startswith("route"))
    assert route.attributes[names.TENANT] == "acme"


async def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    """``wrap`` with a path that the application has not is an error at start."""
    app = Service().app()
    router = tracerouter.load(write(tmp_path, openai_models("http://127.0.0.1:9/v1"), {}))
    setup(app, router, wrap=["/v1/chat"])
    with pytest.raises(ConfigError, match="no route '/v1/chat'"):
        await TestServer(app).start_server()
    await router.close()


async def test_a_handler_takes_as_long_as_it_takes(wrapped: Callable[..., Any]) -> None:
    """The deadline ends no handler: what the service would have answered late, it answers late."""
    served = await wrapped()
    served.service.pause = 0.3
    body = {"model": "x", "messages": [{"role": "user", "content": "hello [[500]]"}]}
    async with aiohttp.ClientSession() as session:
        headers = {"x-tracerouter-timeout": "0.1"}
        async with session.post(f"{served.url}/v1/chat/completions", json=body, headers=headers) as response:
            assert (response.status, await response.json()) == (200, SERVICE_ANSWER)


@pytest.mark.parametrize("leaves", [False, True])
async def test_who_takes_nothing_stops_the_model(wrapped: Callable[..., Any], *, leaves: bool) -> None:
    """A client that goes or reads nothing ends its cheap stream, in a service that does not cancel handlers, too."""
    served = await wrapped(settings={"write_timeout": 0.3})
    async with deaf(served.url, asking("flood 3000")) as plug:
        await served.upstream.until(lambda: bool(served.upstream.charges) and any(served.upstream.charges[0].written))
        if leaves:
            plug.close()
        await served.upstream.disconnected()
        async with asyncio.timeout(5):
            while not any(span.name.startswith("route") for span in served.seen.spans):
                await asyncio.sleep(0.01)
    route = next(span for span in served.seen.spans if span.name.startswith("route"))
    assert route.attributes[names.OUTCOME] == "cancelled"
    assert 0 < nanos(route.attributes[names.COST]) <= served.upstream.nanos
    assert served.service.calls == 0


async def test_what_is_held_back_leaves_the_handler_its_status(wrapped: Callable[..., Any]) -> None:
    """While a cheap answer is validated nothing is sent, no comment either: the handler may still answer as it is."""
    served = await wrapped(settings={"keep_alive": 0.05})
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    status, headers, told = await served.ask("[[slow 0.1 no JSON here]]", stream=True, response_format=shape)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert told.startswith("data: ")
    assert "own stream" in told


async def test_a_handler_is_called_once(wrapped: Callable[..., Any]) -> None:
    """What the service answers is its answer, a 5xx too: it is not asked again, whatever the file says."""
    served = await wrapped({"service": {"provider": "handler"}})
    served.upstream.default["small-1"] = "500"
    status, _, _ = await served.ask("unavailable")
    assert (status, served.service.calls) == (503, 1)
    server = next(span for span in served.seen.spans if span.kind.name == "SERVER")
    assert server.attributes["http.response.status_code"] == 503


async def test_a_client_error_is_no_error_of_the_server_span(wrapped: Callable[..., Any]) -> None:
    """A 4xx that the handler raises leaves the server span without error, with its status (HTTP conventions)."""
    served = await wrapped()
    served.upstream.default["small-1"] = "500"
    await served.ask("conflict")
    server = next(span for span in served.seen.spans if span.kind.name == "SERVER")
    assert server.attributes["http.response.status_code"] == 409
    assert server.status.is_unset


async def test_a_service_of_under_30_lines(tmp_path: Path, unused_tcp_port: int) -> None:
    """A small service in a process of its own, wrapped in one line, answers itself only when the cheap rung fails."""
    program = Path(__file__).parent / "small_service.py"
    assert len(program.read_text().splitlines()) < 30
    async with Upstream() as upstream, aiohttp.ClientSession() as session:
        small = openai_models(upstream.url)["small"]
        path = write(tmp_path, {"small": small}, {})
        command = (sys.executable, "-u", str(program), str(path), str(unused_tcp_port))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout
        try:
            await asyncio.wait_for(process.stdout.readline(), 20)  # aiohttp says that it runs

            async def ask(step: str, *, stream: bool) -> tuple[str, str]:
                body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": f"hi [[{step}]]"}]}
                url = f"http://127.0.0.1:{unused_tcp_port}/v1/chat/completions"
                async with session.post(url, json=body) as response:
                    return response.content_type, await response.text()

            for stream, kind in ((False, "application/json"), (True, "text/event-stream")):
                cheap, own = await ask("ok cheap words", stream=stream), await ask("500", stream=stream)
                assert cheap[0] == own[0] == kind
                assert "cheap" in cheap[1]
                assert "from the service itself" not in cheap[1]
                assert "from the service itself" in own[1]
        finally:
            process.terminate()
            await process.wait()
        assert process.returncode == 0


@pytest.mark.parametrize("sampled", [True, False])
async def test_a_service_that_traces_itself(tmp_path: Path, *, sampled: bool) -> None:
    """Our spans stand under the service's own, leave by its processor as of its process, and follow its sampler."""
    exported = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exported)
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), sampler=ALWAYS_ON if sampled else ALWAYS_OFF)
    provider.add_span_processor(processor)

    @web.middleware
    async def traced(request: web.Request, handler: Any) -> web.StreamResponse:
        with provider.get_tracer("shop").start_as_current_span("POST /v1/chat/completions"):
            response: web.StreamResponse = await handler(request)
        return response

    async with Upstream() as upstream:
        path = write(tmp_path, {"small": openai_models(upstream.url)["small"]}, {"ladder": ["small"]})
        router = tracerouter.load(path, span_processors=[processor], resource=provider.resource)
        app = web.Application(middlewares=[traced])
        service = Service()
        app.router.add_post("/v1/chat/completions", service.chat)
        setup(app, router, wrap=["/v1/chat/completions"])
        async with TestClient(TestServer(app)) as client:
            for prompt in ("hello [[ok]]", "hello [[500]]"):
                body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
                async with client.post("/v1/chat/completions", json=body) as response:
                    assert response.status == 200
    spans = exported.get_finished_spans()
    if not sampled:
        assert not spans
        return
    host = {span.context.span_id: span for span in spans if span.name.startswith("POST")}
    routes = [span for span in spans if span.name.startswith("route ")]
    assert len(host) == len(routes) == 2
    for route in routes:
        assert route.parent is not None
        assert host[route.parent.span_id].context.trace_id == route.context.trace_id
    assert {span.resource.attributes["service.name"] for span in spans} == {"shop"}
