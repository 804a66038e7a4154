"""Under a client of Anthropic's: its own SDK, put over aiohttp, is routed in the process, and it can't tell."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import anthropic
import httpx2
import pytest
from pydantic import BaseModel

import tracerouter
from tests.anthropic_upstream import AnthropicUpstream
from tests.e2e.test_client_middleware import Accounts
from tests.gateway import openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter.web import client_middleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from anthropic.types import MessageParam, ToolParam

PRICE = {"input": 3, "output": 15, "cached_input": "0.3", "cache_write": "3.75", "cache_write_1h": 6}
PRICES = {"claude": Prices(3_000_000_000, 15_000_000_000, 300_000_000, 3_750_000_000, 6_000_000_000)}
LOOK_UP: ToolParam = {
    "name": "look_up",
    "description": "Looks up a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
FALLS = "small-1=500, claude="
"""Before a step of the original call."""


class OverAiohttp(httpx2.AsyncBaseTransport):
    """Sends what the SDK asks through an aiohttp session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = {name: value for name, value in request.headers.items() if name != "accept-encoding"}
        response = await self._session.request(
            request.method, str(request.url), data=await request.aread(), headers=headers
        )
        return httpx2.Response(response.status, headers=list(response.headers.items()), stream=Body(response))


class Body(httpx2.AsyncByteStream):
    """The body of an aiohttp response, as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._response.content.iter_any():
            yield piece

    async def aclose(self) -> None:
        self._response.close()


class Application:
    """An application that calls Anthropic by its SDK, and what stands around it."""

    def __init__(
        self, cheap: Upstream, claude: AnthropicUpstream, session: aiohttp.ClientSession, accounts: Accounts
    ) -> None:
        self.cheap, self.claude, self.session, self.accounts = cheap, claude, session, accounts
        self.sdk = anthropic.AsyncAnthropic(
            base_url=claude.url,
            api_key="mine",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=OverAiohttp(session)),
            _strict_response_validation=True,
        )

    async def ask(self, text: str, *, streamed: bool = False, **extra: Any) -> Any:
        body: dict[str, Any] = {"model": "claude", "max_tokens": 99, "messages": [user(text)], **extra}
        if not streamed:
            return await self.sdk.messages.create(**body)
        async with self.sdk.messages.stream(**body) as stream:
            return await stream.get_final_message()


def user(text: str) -> MessageParam:
    return {"role": "user", "content": text}


@asynccontextmanager
async def running(
    folder: Path, cheap: type[Upstream] = Upstream, policy: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Application]:
    """Run an application whose cheap model is of one provider or the other."""
    async with (
        cheap(prices={"small-1": Prices(150_000_000, 600_000_000)}) as small,
        AnthropicUpstream(prices=PRICES) as claude,
    ):
        models = {"small": openai_models(small.url, timeout=2)["small"]}
        if cheap is AnthropicUpstream:
            models["small"] |= {"provider": "anthropic", "api_key": "ours"}
        models["handler"] = {"provider": "handler", "price": PRICE}
        path = write(folder, models, {"ladder": ["small", "handler"], **(policy or {})}, **settings)
        router = tracerouter.load(path)
        accounts = Accounts(router, folder)
        routed = client_middleware(router, anthropic_url=claude.url)
        async with aiohttp.ClientSession(middlewares=[routed]) as session:
            yield Application(small, claude, session, accounts)
        await router.close()


@pytest.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    """An application whose cheap model is OpenAI's."""
    async with running(tmp_path) as app:
        yield app


@BOTH
@pytest.mark.parametrize("cheap", [Upstream, AnthropicUpstream])
async def test_the_cheap_model_answers(tmp_path: Path, cheap: type[Upstream], *, streamed: bool) -> None:
    """What the cheap model answers is a message like any other, and the call never leaves for Anthropic."""
    async with running(tmp_path, cheap) as app:
        message = await app.ask("[[stored Zwölf 🥊]]", streamed=streamed, system="Be brief.")
        (charge,) = app.cheap.charges
        assert message.content[0].text == "Zwölf 🥊"
        assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
        usage = message.usage
        plain = charge.input - charge.cached - charge.stored
        assert (usage.input_tokens, usage.output_tokens) == (plain, charge.output)
        assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (charge.cached, charge.stored)
        assert charge.stored > 0
        assert app.claude.requests == []
        assert app.cheap.requests[0].body["max_tokens"] == 99
        await app.accounts.agree("answered", "cheap")


@BOTH
@pytest.mark.parametrize("cheap", [Upstream, AnthropicUpstream])
async def test_tools(tmp_path: Path, cheap: type[Upstream], *, streamed: bool) -> None:
    """Tools are called and answered in Anthropic's shape, whoever calls them."""
    async with running(tmp_path, cheap) as app:
        question = 'Warm? [[tool_calls {"city": "Rom"} | {"city": "Oslo"} then ok Ja.]]'
        first = await app.ask(question, streamed=streamed, tools=[LOOK_UP])
        assert first.stop_reason == "tool_use"
        assert [(one.type, one.name, one.input) for one in first.content] == [
            ("tool_use", "look_up", {"city": city}) for city in ("Rom", "Oslo")
        ]
        results = [{"type": "tool_result", "tool_use_id": one.id, "content": "31 °C"} for one in first.content]
        history = [
            user(question),
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": results},
        ]
        second = await app.ask("", streamed=streamed, tools=[LOOK_UP], messages=history)
        assert second.content[0].text == "Ja."
        assert app.claude.requests == []


async def test_text_before_tools(tmp_path: Path) -> None:
    """A call after a text is a block of its own; a call without arguments has an empty object."""
    async with running(tmp_path, AnthropicUpstream) as app:
        for streamed in (False, True):
            message = await app.ask("[[two_tools]]", streamed=streamed, tools=[LOOK_UP])
            assert [one.type for one in message.content] == ["text", "tool_use", "tool_use"]
            assert [one.input for one in message.content[1:]] == [{"city": "Paris"}, {}]


class Order(BaseModel):
    """What is asked for."""

    id: int


async def test_a_schema_is_validated_and_repaired(application: Application) -> None:
    """The SDK's own structured output is checked: what is wrong goes out as the original call."""
    said: dict[str, Any] = {"model": "claude", "max_tokens": 9, "output_format": Order}
    right = await application.sdk.messages.parse(**said, messages=[user('[[ok {"id": 7}]]')])
    assert right.parsed_output == Order(id=7)
    assert application.claude.requests == []
    wrong = '[[small-1=ok {"id": "x"}, claude=ok {"id": 8}]]'
    repaired = await application.sdk.messages.parse(**said, messages=[user(wrong)])
    assert repaired.parsed_output == Order(id=8)
    assert application.claude.requests[0].body["messages"] == [user(wrong)]


@BOTH
@pytest.mark.parametrize("step", ["ok Zwölf 🥊", "stored", "reasoning", "two_tools", "refusal no", "truncated"])
async def test_the_original_call_is_the_last_rung(application: Application, step: str, *, streamed: bool) -> None:
    """When the cheap model fails, the call goes out as it was made, and its own answer comes back, cost and all."""
    message = await application.ask(f"[[{FALLS}{step}]]", streamed=streamed, system="Be brief.", tools=[LOOK_UP])
    (request,) = application.claude.requests
    assert request.headers["authorization"] == "Bearer mine"
    assert request.body["system"] == "Be brief."
    assert message.id.startswith("msg_0")
    cost = await application.accounts.agree("answered", "fallback", source="reported")
    assert cost == application.claude.nanos > 0


@BOTH
async def test_an_original_without_usage_is_counted(application: Application, *, streamed: bool) -> None:
    """Where the provider tells no usage it is counted, and marked as estimated: never 0."""
    async with application.session.post(
        f"{application.claude.url}/v1/messages",
        json={"model": "claude", "max_tokens": 9, "stream": streamed, "messages": [user(f"[[{FALLS}no_usage Ja.]]")]},
        headers={"x-api-key": "mine", "anthropic-version": "2023-06-01"},
    ) as response:
        assert b"Ja." in await response.read()
    cost = await application.accounts.agree("answered", "fallback", source="estimated")
    assert cost == application.claude.nanos > 0


@pytest.mark.parametrize("step", ["cut 3", "drop 3", "error_after 3 overloaded_error", "cut_utf8", "garbage"])
async def test_an_original_stream_that_breaks(application: Application, step: str) -> None:
    """The application sees what it would have seen without us; what was made is paid for."""
    body = {"model": "claude", "max_tokens": 9, "stream": True, "messages": [user(f"[[{FALLS}{step}]]")]}
    async with aiohttp.ClientSession() as bare:
        seen = [await read(session, application.claude.url, body) for session in (bare, application.session)]
    assert seen[0] == seen[1]
    cost = await application.accounts.agree("failed", "failed", source="estimated")
    assert cost == application.claude.charges[1].nanos > 0


async def read(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[bytes, str | None]:
    """Return what is read of an answer, but for its numbers, and the error that ends it."""
    seen, headers = b"", {"x-api-key": "mine", "anthropic-version": "2023-06-01"}
    async with session.post(f"{url}/v1/messages", json=body, headers=headers) as response:
        try:
            async for piece in response.content.iter_any():
                seen += piece
        except aiohttp.ClientError as error:
            return re.sub(rb"[0-9]{24}", b"", seen), type(error).__name__
    return re.sub(rb"[0-9]{24}", b"", seen), None


async def test_an_error_event_of_the_original_is_the_sdks_own(application: Application) -> None:
    """The SDK raises for it and closes: that is a failure of the provider, and nobody's leaving."""
    with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        await application.ask(f"[[{FALLS}error_after 3 overloaded_error]]", streamed=True)
    assert await application.accounts.agree("failed", "failed") == application.claude.nanos > 0


async def test_who_leaves_an_original_stream_pays_for_what_was_made(application: Application) -> None:
    """Leaving the SDK's stream stops Anthropic's answer at once."""
    body: dict[str, Any] = {"model": "claude", "max_tokens": 99, "messages": [user(f"[[{FALLS}hang_after 3]]")]}
    async with application.sdk.messages.stream(**body) as stream:
        got = 0
        async for _ in stream.text_stream:
            got += 1
            if got == 3:
                break
        left = time.monotonic()
    await application.claude.disconnected()
    assert time.monotonic() - left < 0.5
    cost = await application.accounts.agree("cancelled", source="estimated")
    assert cost == application.claude.nanos > 0


@pytest.mark.parametrize(
    "extra",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"top_k": 5},
        {"stop_sequences": ["END"]},
        {"system": [{"type": "text", "text": "Be brief.", "citations": None}], "thinking": {"type": "disabled"}},
        {"output_config": {"effort": "low"}},
        {"messages": [user("[[ok Ja.]]"), {"role": "assistant", "content": [{"type": "text", "text": "Well,"}]}]},
    ],
)
async def test_what_cannot_be_said_goes_out_untouched(application: Application, extra: dict[str, Any]) -> None:
    """A request with more than a chat request can hold is not looked at: nothing of it is lost."""
    body = {"model": "claude", "max_tokens": 99, "messages": [user("[[ok Ja.]]")], **extra}
    headers = {"x-api-key": "mine", "anthropic-version": "2023-06-01"}
    async with application.session.post(f"{application.claude.url}/v1/messages", json=body, headers=headers) as answer:
        assert (await answer.json())["content"][0]["text"] == "Ja."
    (request,) = application.claude.requests
    assert request.body == body
    assert "traceparent" not in request.headers
    assert application.cheap.requests == []
    assert application.accounts.spans == []


@BOTH
async def test_the_originals_errors_are_its_own(application: Application, *, streamed: bool) -> None:
    """What Anthropic turns down is the SDK's own error, and costs nothing."""
    with pytest.raises(anthropic.RateLimitError, match="exceed your rate limit") as told:
        await application.ask(f"[[{FALLS}429 7]]", streamed=streamed)
    assert told.value.response.headers["retry-after"] == "7"
    assert await application.accounts.agree("failed", "failed") == 0


@BOTH
async def test_our_errors_are_in_anthropics_shape(tmp_path: Path, *, streamed: bool) -> None:
    """What is refused here is an error that the SDK knows, with the request id to quote, and names its own field."""
    async with running(tmp_path, policy={"tiers": {"free": {"ladder": ["small"]}}}) as app:
        shape = {"format": {"type": "json_schema", "schema": {"type": "objec"}}}
        with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format\.schema") as told:
            await app.ask("[[ok]]", streamed=streamed, output_config=shape)
        error: Any = told.value.body
        assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
        assert told.value.request_id == error["request_id"]
        assert app.claude.requests == app.cheap.requests == []


@pytest.mark.parametrize(
    ("step", "status", "error"),
    [("500", 502, anthropic.InternalServerError), ("429", 429, anthropic.RateLimitError)],
)
@BOTH
async def test_when_the_original_may_not_be_asked(
    tmp_path: Path, step: str, status: int, error: type[anthropic.APIStatusError], *, streamed: bool
) -> None:
    """A tier without the original call gets the cheap model's failure, as Anthropic would tell it."""
    tiers = {"free": {"ladder": ["small"]}}
    async with running(tmp_path, policy={"tiers": tiers}) as app:
        free = client_middleware(
            app.accounts.router, anthropic_url=app.claude.url, identify=lambda: tracerouter.Caller(tier="free")
        )
        async with aiohttp.ClientSession(middlewares=[free]) as session:
            poor = Application(app.cheap, app.claude, session, app.accounts)
            with pytest.raises(error) as told:
                await poor.ask(f"[[{step}]]", streamed=streamed)
        assert told.value.status_code == status
        assert app.claude.requests == []


async def test_a_cheap_stream_that_breaks_is_an_error_event(application: Application) -> None:
    """After the first chunk a failure is Anthropic's error event, with the facts and the true partial cost in it."""
    body = {"model": "claude", "max_tokens": 9, "stream": True, "messages": [user("[[small-1=cut_utf8 3, claude=ok]]")]}
    headers = {"x-api-key": "mine"}
    async with application.session.post(
        f"{application.claude.url}/v1/messages", json=body, headers=headers
    ) as response:
        events = (await response.text()).strip().split("\n\n")
    kind, data = events[-1].split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert (kind, told["error"]["type"]) == ("event: error", "api_error")
    assert told["tracerouter"]["cost_source"] == "estimated"
    assert [event.split("\n")[0] for event in events[:2]] == ["event: message_start", "event: content_block_start"]
    assert await application.accounts.agree("failed", "failed", source="estimated") == application.cheap.nanos > 0
    with pytest.raises(anthropic.APIStatusError):
        await application.ask("[[small-1=error_after 3, claude=ok]]", streamed=True)
    assert application.claude.requests == []


async def test_an_answer_of_the_cache_is_a_message(application: Application) -> None:
    """An equal question is answered from the cache, plain and streamed, by whichever door it was asked before."""
    for streamed in (False, True):
        message = await application.ask("[[ok Ja.]]", streamed=streamed)
        assert (message.content[0].text, message.stop_reason) == ("Ja.", "end_turn")
    assert len(application.cheap.requests) == 1


async def test_both_apis_in_one_session(tmp_path: Path) -> None:
    """One middleware routes calls of both, each in its own shape."""
    async with running(tmp_path) as app:
        async with Upstream() as other:
            both = client_middleware(app.accounts.router, other.url, app.claude.url)
            async with aiohttp.ClientSession(middlewares=[both]) as session:
                body = {"model": "gpt-5", "messages": [user("[[ok Ja.]]")]}
                async with session.post(f"{other.url}/chat/completions", json=body) as response:
                    assert (await response.json())["choices"][0]["message"]["content"] == "Ja."
                message = await Application(app.cheap, app.claude, session, app.accounts).ask("[[ok Nein.]]")
                assert message.content[0].text == "Nein."
        assert other.requests == app.claude.requests == []


async def test_parallel_requests_do_not_mix(application: Application) -> None:
    """Twenty streams at once, some by the cheap model and some by the original, are each their own."""

    async def one(number: int) -> None:
        step = f"ok number {number}" if number % 2 else f"{FALLS}ok number {number}"
        assert (await application.ask(f"[[{step}]]", streamed=True)).content[0].text == f"number {number}"

    await asyncio.gather(*(one(number) for number in range(20)))
