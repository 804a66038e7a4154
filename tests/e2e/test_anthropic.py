"""A model of Anthropic's behind the gateway, asked by OpenAI's own client, which knows nothing of it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pydantic import BaseModel

from tests.anthropic_upstream import AnthropicUpstream
from tests.gateway import Gateway, cost_of, nanos, openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter.telemetry import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

PRICES = {"haiku": Prices(1_000_000_000, 5_000_000_000, 100_000_000, 1_250_000_000, 2_000_000_000)}
MODEL = {
    "provider": "anthropic",
    "model": "haiku",
    "api_key": "sk-ant-secret",
    "retries": 1,
    "price": {"input": 1, "output": 5, "cached_input": "0.1", "cache_write": "1.25", "cache_write_1h": 2},
}
LOOK_UP: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": False},
        "strict": True,
    },
}


@pytest.fixture
async def upstream() -> AsyncIterator[AnthropicUpstream]:
    """A misbehaving Messages API."""
    async with AnthropicUpstream(prices=PRICES) as running:
        yield running


@pytest.fixture
async def gateway(tmp_path: Path, upstream: AnthropicUpstream) -> AsyncIterator[Gateway]:
    """A gateway with nothing but a model there."""
    async with Gateway(write(tmp_path, {"haiku": {**MODEL, "base_url": upstream.url}}, {})) as running:
        yield running


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client, by base URL alone."""
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


async def test_plain(client: openai.AsyncOpenAI, gateway: Gateway, upstream: AnthropicUpstream) -> None:
    """A plain answer is OpenAI's, its usage and cost are the bill's, and its span tells the true provider."""
    answer = await client.chat.completions.create(model="auto", messages=user("[[stored Grüße 🥊]]"))
    (charge,) = upstream.charges
    assert answer.choices[0].message.content == "Grüße 🥊"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.prompt_tokens_details
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (charge.input, charge.output)
    assert answer.usage.prompt_tokens_details.cached_tokens == charge.cached > 0
    facts: Any = answer.model_extra
    assert nanos(facts["tracerouter"]["cost"]) == charge.nanos
    (chat,) = [span for span in gateway.seen.spans if span.name == "chat haiku"]
    told = chat.attributes or {}
    assert told[names.GEN_AI_PROVIDER] == "anthropic"
    assert told[names.GEN_AI_INPUT_TOKENS] == charge.input
    assert (told[names.GEN_AI_CACHED_TOKENS], told[names.GEN_AI_CACHE_WRITE_TOKENS]) == (charge.cached, charge.stored)
    assert told[names.SERVER_ADDRESS] == "127.0.0.1"


async def test_answers_are_bounded(tmp_path: Path, upstream: AnthropicUpstream) -> None:
    """The bound that the API asks for is the policy's, or the caller's if that is lower."""
    path = write(tmp_path, {"haiku": {**MODEL, "base_url": upstream.url}}, {"max_output_tokens": 100})
    async with (
        Gateway(path) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
    ):
        for limit in (None, 20, 200):
            await client.chat.completions.create(model="auto", messages=user("[[ok]]"), max_completion_tokens=limit)
    assert [request.body["max_tokens"] for request in upstream.requests] == [100, 20, 100]


async def test_streamed(client: openai.AsyncOpenAI, upstream: AnthropicUpstream) -> None:
    """A stream comes in OpenAI's chunks while the model writes, with the bill's usage in the last."""
    stream = await client.chat.completions.create(
        model="auto",
        messages=user("[[reasoning eins zwei 🥊]]"),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    (charge,) = upstream.charges
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert texts == ["eins ", "zwei ", "🥊"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (charge.input, charge.output)
    facts: Any = chunks[-1].model_extra
    assert nanos(facts["tracerouter"]["cost"]) == charge.nanos


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
async def test_tools(*, streamed: bool, client: openai.AsyncOpenAI, upstream: AnthropicUpstream) -> None:
    """A tool is called and answered as with any model of OpenAI's."""
    asked = user('Warm? [[tool_call {"city":"Rom"} then ok Ja.]]')
    if streamed:
        async with client.chat.completions.stream(model="auto", messages=asked, tools=[LOOK_UP]) as stream:
            first = await stream.get_final_completion()
    else:
        first = await client.chat.completions.parse(model="auto", messages=asked, tools=[LOOK_UP])
    assert first.choices[0].finish_reason == "tool_calls"
    called = (first.choices[0].message.tool_calls or [])[0]
    assert (called.function.name, json.loads(called.function.arguments)) == ("look_up", {"city": "Rom"})
    history: Any = [
        *asked,
        first.choices[0].message.model_dump(include={"role", "content", "tool_calls"}),
        {"role": "tool", "tool_call_id": called.id, "content": "31 °C"},
    ]
    second = await client.chat.completions.create(model="auto", messages=history, tools=[LOOK_UP])
    assert second.choices[0].message.content == "Ja."
    assert [one["content"][0]["type"] for one in upstream.requests[1].body["messages"]] == [
        "text",
        "tool_use",
        "tool_result",
    ]


class Order(BaseModel):
    """What is asked for."""

    id: int


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
async def test_structured_output(*, streamed: bool, client: openai.AsyncOpenAI, upstream: AnthropicUpstream) -> None:
    """The SDK's own structured output parses what the forced tool was given."""
    asked: dict[str, Any] = {"model": "auto", "messages": user('[[ok {"id": 7}]]'), "response_format": Order}
    if streamed:
        async with client.chat.completions.stream(**asked) as stream:
            answer = await stream.get_final_completion()
    else:
        answer = await client.chat.completions.parse(**asked)
    assert answer.choices[0].message.parsed == Order(id=7)
    assert upstream.requests[0].body["tool_choice"]["name"] == "Order"


async def test_an_overload_passes(client: openai.AsyncOpenAI, gateway: Gateway, upstream: AnthropicUpstream) -> None:
    """An overload is tried again; one that stays is a 502 that shows no key."""
    answer = await client.chat.completions.create(model="auto", messages=user("[[529 then ok well]]"))
    assert answer.choices[0].message.content == "well"
    assert [charge.waived for charge in upstream.charges] == [True, False]
    (chat,) = [span for span in gateway.seen.spans if span.name == "chat haiku"]
    assert [event.name for event in chat.events] == [names.RETRY_EVENT]
    with pytest.raises(openai.InternalServerError) as failed:
        await client.chat.completions.create(model="auto", messages=user("[[529]]"))
    assert failed.value.status_code == 502
    assert "sk-ant-secret" not in str(failed.value.response.text)


@pytest.mark.parametrize("step", ["error_after 3 overloaded_error", "cut_utf8"])
async def test_a_stream_that_breaks(
    step: str, client: openai.AsyncOpenAI, gateway: Gateway, upstream: AnthropicUpstream
) -> None:
    """A stream that fails midway ends in an error after what came, whole characters all, at the cost of the bill."""
    stream = await client.chat.completions.create(model="auto", messages=user(f"[[{step}]]"), stream=True)
    texts: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError):
        await read()
    assert "".join(texts) == "".join(upstream.charges[0].written)
    assert len(texts) >= 2
    async with asyncio.timeout(5):
        while not gateway.seen.spans:
            await asyncio.sleep(0.01)
    assert cost_of(gateway.seen.spans, "chat") == upstream.nanos > 0


async def test_what_it_cannot_do_is_told(client: openai.AsyncOpenAI, upstream: AnthropicUpstream) -> None:
    """Several choices are a 400 that names the field, and so is a part that it does not know: nothing is sent."""
    with pytest.raises(openai.BadRequestError, match="`n` must be 1, not 2") as raised:
        await client.chat.completions.create(model="auto", messages=user("[[ok]]"), n=2)
    assert raised.value.param == "n"
    heard: Any = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]
    with pytest.raises(openai.BadRequestError, match=r"`messages\[0\].content\[0\].type` can't be sent to Anthropic"):
        await client.chat.completions.create(model="auto", messages=heard)
    assert upstream.requests == []


async def test_several_choices_start_at_a_rung_that_gives_them(tmp_path: Path, upstream: AnthropicUpstream) -> None:
    """In a ladder that begins here, ``n`` goes to the next model at once, and says why."""
    async with Upstream() as other:
        models = {"haiku": {**MODEL, "base_url": upstream.url}, "large": openai_models(other.url)["large"]}
        async with (
            Gateway(write(tmp_path, models, {})) as gateway,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
        ):
            answer = await client.chat.completions.create(model="auto", messages=user("[[ok two]]"), n=2)
    assert [choice.message.content for choice in answer.choices] == ["two", "two"]
    facts: Any = answer.model_extra
    assert (facts["tracerouter"]["reason"], facts["tracerouter"]["attempts"]) == ("unsupported", 1)
    assert upstream.requests == []


async def test_two_system_prompts_and_broken_arguments(client: openai.AsyncOpenAI, upstream: AnthropicUpstream) -> None:
    """A history that OpenAI would take is taken: prompts are kept in order, arguments that are no JSON as they are."""
    called = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Ro'}}
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Warm? [[ok Ja.]]"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": "no JSON"},
        {"role": "developer", "content": "Be kind."},
    ]
    answer = await client.chat.completions.create(model="auto", messages=messages, tools=[LOOK_UP])
    assert answer.choices[0].message.content == "Ja."
    body = upstream.requests[0].body
    assert [block["text"] for block in body["system"]] == ["Be brief.", "Be kind."]
    assert body["messages"][1]["content"][0]["input"] == {"arguments": '{"city": "Ro'}


async def test_it_repairs_what_another_provider_wrote(tmp_path: Path, upstream: AnthropicUpstream) -> None:
    """A ladder may lead from one provider to the other, with an image, a schema, and what was wrong with the answer."""
    async with Upstream() as cheap:
        models = {"small": openai_models(cheap.url)["small"], "haiku": {**MODEL, "base_url": upstream.url}}
        text = 'What is it? [[small-1=ok {"id": "x"}, haiku=ok {"id": 7}]]'
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": text}, image]}]
        async with (
            Gateway(write(tmp_path, models, {})) as gateway,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
        ):
            answer = await client.chat.completions.parse(model="auto", messages=messages, response_format=Order)
        assert answer.choices[0].message.parsed == Order(id=7)
        facts: Any = answer.model_extra
        assert (facts["tracerouter"]["route"], facts["tracerouter"]["reason"]) == ("fallback", "schema_invalid")
    asked, rejected, repair = upstream.requests[0].body["messages"]
    assert asked["content"][1]["source"]["type"] == "base64"
    assert rejected == {"role": "assistant", "content": [{"type": "text", "text": '{"id": "x"}'}]}
    assert "$.id" in repair["content"][0]["text"]


async def test_it_repairs_a_call_that_another_provider_made(tmp_path: Path, upstream: AnthropicUpstream) -> None:
    """Arguments that do not fit a strict tool are turned down, and the call is made again here, as a call."""
    async with Upstream() as cheap:
        models = {"small": openai_models(cheap.url)["small"], "haiku": {**MODEL, "base_url": upstream.url}}
        asked = user('Warm? [[small-1=tool_call {"city": 7}, haiku=tool_call {"city": "Rome"}]]')
        async with (
            Gateway(write(tmp_path, models, {})) as gateway,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
        ):
            answer = await client.chat.completions.create(model="auto", messages=asked, tools=[LOOK_UP])
    called: Any = (answer.choices[0].message.tool_calls or [])[0]
    assert json.loads(called.function.arguments) == {"city": "Rome"}
    facts: Any = answer.model_extra
    assert (facts["tracerouter"]["route"], facts["tracerouter"]["reason"]) == ("fallback", "schema_invalid")
    _, rejected, repair = upstream.requests[0].body["messages"]
    assert '{\\"city\\": 7}' in rejected["content"][0]["text"]
    assert "$.tool_calls[0].function.arguments.city" in repair["content"][0]["text"]
    assert upstream.requests[0].body["tools"][0]["name"] == "look_up"
