"""The Anthropic provider against a misbehaving server on a real socket."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import anthropic
import pytest

from tests.anthropic_upstream import AnthropicUpstream
from tests.upstream import Prices, count
from tracerouter.errors import (
    AnswerLost,
    ContextTooLong,
    ProviderError,
    RateLimited,
    RequestRejected,
    ServerFailed,
    Unreachable,
)
from tracerouter.pricing import Price
from tracerouter.providers import AnthropicProvider, Model
from tracerouter.providers.messages import MAX_TOKENS
from tracerouter.telemetry import Timeline
from tracerouter.types import Call, Completion, Meter, Source, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

KEY = "sk-ant-very-secret"
BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
PRICES = Prices(3_000_000_000, 15_000_000_000, 300_000_000, 3_750_000_000, 6_000_000_000)
SCHEMA = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "order", "description": "An order.", "schema": SCHEMA}}
LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
PIXEL = base64.b64encode(b"\x89PNG\r\n").decode()


@pytest.fixture
async def upstream() -> AsyncIterator[AnthropicUpstream]:
    """The misbehaving server, where `new` is a newer model."""
    async with AnthropicUpstream(newer=["new"], prices={"small": PRICES}) as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """The session that providers share."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, connect=0.3)) as shared:
        yield shared


class Client:
    """One call after the other, and what each pushed and used."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.provider = AnthropicProvider(url, KEY, lambda: session)
        self.meter = Meter()
        self.pushed: list[Mapping[str, Any]] = []
        self.pushes = asyncio.Semaphore(0)
        """Can be acquired once for each chunk that was pushed."""

    async def ask(self, text: str | list[dict[str, Any]], *, streamed: bool = False, **body: Any) -> Completion:
        """Ask once, with a fresh meter; `text` is the user's message, or all messages."""
        self.meter, self.pushed = Meter(), []
        return await self.provider.complete(call(text, **body), self.meter, self.take if streamed else None)

    async def take(self, chunk: Mapping[str, Any]) -> None:
        """Be the sink."""
        self.pushed.append(chunk)
        self.pushes.release()

    @property
    def deltas(self) -> list[dict[str, Any]]:
        return [chunk["choices"][0]["delta"] for chunk in self.pushed]

    def cost(self, text: str) -> tuple[int | None, Source]:
        """Return what this call cost, at the prices of the bill."""
        price = Price(
            PRICES.input, PRICES.output, 300_000_000, cache_write=PRICES.stored, cache_write_1h=PRICES.stored_1h
        )
        model = Model(alias="small", name="small", provider=self.provider, price=price)
        _, cost = model.bill(self.meter, call(text).body)
        return cost.nanos, cost.source


@pytest.fixture
def client(upstream: AnthropicUpstream, session: aiohttp.ClientSession) -> Client:
    """Ask the misbehaving server."""
    return Client(upstream.url, session)


def call(text: str | list[dict[str, Any]], **body: Any) -> Call:
    """Make a call with ten seconds and a trace context."""
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    deadline = asyncio.get_running_loop().time() + 10
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    return Call({"model": "small", "messages": messages, **body}, deadline, headers)


# the server that these tests rely on speaks the true wire format


async def test_anthropics_own_client_understands_the_server(upstream: AnthropicUpstream) -> None:
    """Anthropic's SDK, checking what it reads, finds texts, calls, usage and errors where the API has them."""
    client = anthropic.AsyncAnthropic(
        base_url=upstream.url, api_key=KEY, max_retries=0, _strict_response_validation=True
    )

    def asked(text: str) -> Any:
        tools = [{"name": "look_up", "input_schema": {"type": "object"}}]
        return {"model": "small", "max_tokens": 10, "tools": tools, "messages": [{"role": "user", "content": text}]}

    for step in ("ok Zwölf 🥊", "two_tools", "reasoning", "stored", "refusal no", "truncated", "empty"):
        plain = await client.messages.create(**asked(f"[[{step}]]"))
        async with client.messages.stream(**asked(f"[[{step}]]")) as stream:
            streamed = await stream.get_final_message()
        same = {"content", "stop_reason", "stop_details", "model", "role"}
        strip = {"content": {"__all__": {"id", "parsed_output"}}}
        assert streamed.model_dump(include=same, exclude=strip) == plain.model_dump(include=same, exclude=strip)
        assert streamed.usage.input_tokens == plain.usage.input_tokens
        assert streamed.usage.output_tokens == plain.usage.output_tokens
    errors: list[tuple[str, type[anthropic.APIStatusError]]] = [
        ("529", anthropic.OverloadedError),
        ("429", anthropic.RateLimitError),
        ("401", anthropic.AuthenticationError),
        ("400", anthropic.BadRequestError),
    ]
    for step, error in errors:
        with pytest.raises(error):
            await client.messages.create(**asked(f"[[{step}]]"))
    with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        async with client.messages.stream(**asked("[[error_after 2 overloaded_error]]")) as stream:
            await stream.get_final_message()
    await client.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"seed": 7}, "seed: Extra inputs are not permitted"),
        ({"temperature": 1.5}, "temperature: range"),
        ({"messages": []}, "at least one message is required"),
        ({"messages": [{"role": "system", "content": "a"}]}, "Input should be 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "roles must alternate"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "must be non-empty"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
            "unexpected `tool_use_id`",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}
                ]
            },
            "`tool_use` ids were found without",
        ),
        ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "input_schema.type: Input should be 'object'"),
        ({"tool_choice": {"type": "any"}}, "may only be specified while providing tools"),
    ],
)
async def test_the_server_turns_down_what_the_api_does(
    body: dict[str, Any], said: str, upstream: AnthropicUpstream, session: aiohttp.ClientSession
) -> None:
    """The server that these tests rely on is strict: a request that the API would turn down gets its 400."""
    sent = {"model": "small", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}], **body}
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    async with session.post(f"{upstream.url}/v1/messages", json=sent, headers=headers) as response:
        told = await response.json()
    assert (response.status, told["error"]["type"]) == (400, "invalid_request_error")
    assert said in told["error"]["message"]


# answers


@pytest.mark.parametrize(
    "step",
    [
        "ok",
        "ok Zwölf Boxkämpfer 🥊 jagen",
        'tool_call {"city":"Köln"}',
        'two_tools {"city":"Rom"}',
        "reasoning",
        "refusal It is about weapons.",
        "empty",
        "truncated",
        "context_full",
        "paused",
        "cached",
        "stored",
        "strange",
    ],
)
async def test_streamed_equals_plain(step: str, client: Client, upstream: AnthropicUpstream) -> None:
    """A stream adds up to the body that the server would have answered plainly, and both cost what is billed."""
    answers = []
    for streamed in (False, True):
        answers.append(dict((await client.ask(f"[[{step}]]", streamed=streamed, tools=[LOOK_UP])).body))
        charge = upstream.charges[-1]
        usage = client.meter.uses[0].usage
        assert usage is not None
        assert usage[:3] == (charge.input, charge.output, charge.cached)
        assert usage[4:] == (charge.stored, charge.stored_1h)
        assert "".join(client.meter.uses[0].received) == "".join(charge.written)
        assert client.cost(step) == (charge.nanos, Source.REPORTED)
        message = answers[-1]["choices"][0]["message"]
        for called in message.get("tool_calls", ()):
            assert called.pop("id").startswith("toolu_")
    assert answers[0] | {"id": None} == answers[1] | {"id": None}
    text = "".join(delta.get("content") or "" for delta in client.deltas)
    assert text == (answers[1]["choices"][0]["message"]["content"] or "")


@pytest.mark.parametrize(
    ("step", "finish"),
    [
        ("ok", "stop"),
        ("paused", "stop"),
        ("truncated", "length"),
        ("context_full", "length"),
        ("tool_call", "tool_calls"),
        ("refusal no", "content_filter"),
    ],
)
async def test_finish_reasons(step: str, finish: str, client: Client) -> None:
    """Every reason to stop has one of OpenAI's names."""
    assert (await client.ask(f"[[{step}]]", tools=[LOOK_UP])).finish_reasons == [finish]


async def test_the_answer_is_openais(client: Client, upstream: AnthropicUpstream) -> None:
    """An answer is a chat completion, with ids, model and usage where OpenAI's clients look for them."""
    completion = await client.ask("[[stored well]]")
    charge = upstream.charges[0]
    assert completion.body == {
        "id": "msg_000000000000000000000001",
        "object": "chat.completion",
        "model": "small-20260101",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "well", "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": charge.input,
            "completion_tokens": charge.output,
            "total_tokens": charge.input + charge.output,
            "prompt_tokens_details": {"cached_tokens": charge.cached, "cache_write_tokens": charge.stored},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    assert 0 < charge.cached < charge.stored < charge.input


async def test_thinking_is_billed_and_not_told(client: Client, upstream: AnthropicUpstream) -> None:
    """Thinking is part of the output and of no text, and its tokens are told apart."""
    completion = await client.ask("[[reasoning So it is.]]", streamed=True)
    assert completion.text == "So it is."
    assert [delta.get("content") for delta in client.deltas] == ["So ", "it ", "is."]
    assert client.meter.uses[0].usage is not None
    assert client.meter.uses[0].usage.output == upstream.charges[0].output > count("So it is.")
    assert client.meter.uses[0].usage.reasoning == count("Let me think about it.")


async def test_a_refusal_says_why(client: Client) -> None:
    """What the API explains of a refusal stands in ``refusal``, and nothing of it was pushed."""
    completion = await client.ask("[[refusal It is about weapons.]]", streamed=True)
    assert (completion.refusal, completion.text, client.pushed) == ("It is about weapons.", "", [])


async def test_tool_calls_are_pushed_as_openai_does(client: Client) -> None:
    """A call's id and name come first, then its arguments in pieces; calls are numbered among themselves."""
    completion = await client.ask('[[two_tools {"city": "Rome"}]]', streamed=True, tools=[LOOK_UP])
    called = [one for delta in client.deltas for one in delta.get("tool_calls", ())]
    heads = [one for one in called if "id" in one]
    assert [(one["index"], one["function"]) for one in heads] == [
        (0, {"name": "look_up", "arguments": ""}),
        (1, {"name": "look_up", "arguments": ""}),
    ]
    arguments = ["", ""]
    for one in called:
        arguments[one["index"]] += one["function"]["arguments"]
    assert arguments == ['{"city": "Rome"}', "{}"]
    assert [one["function"]["arguments"] for one in completion.tool_calls] == arguments
    assert [one["id"] for one in heads] == [one["id"] for one in completion.tool_calls]
    assert [delta.get("role") for delta in client.deltas] == ["assistant", *[None] * (len(client.deltas) - 1)]
    assert completion.text == "I look both up."


async def test_arguments_that_are_no_json_come_as_they_are(client: Client, upstream: AnthropicUpstream) -> None:
    """Arguments that were cut are handed on, as OpenAI does: whoever runs the tool sees that they are no JSON."""
    completion = await client.ask('[[bad_tool {"city": "Ro]]', streamed=True, tools=[LOOK_UP])
    assert completion.tool_calls[0]["function"]["arguments"] == '{"city": "Ro'
    assert completion.finish_reasons == ["length"]
    assert client.cost("") == (upstream.nanos, Source.REPORTED)


@pytest.mark.parametrize("step", ["no_stop", "no_delta"])
async def test_half_an_end_is_an_end(step: str, client: Client) -> None:
    """A stream without ``message_stop``, or without ``message_delta``, is complete if it has the other."""
    assert (await client.ask(f"[[{step} all of it]]", streamed=True)).text == "all of it"


@pytest.mark.parametrize("step", ["no_usage", "bad_usage"])
@BOTH
async def test_missing_usage_is_counted_as_the_upstream_bills(
    step: str, *, streamed: bool, client: Client, upstream: AnthropicUpstream
) -> None:
    """Usage that is missing or nonsense counts as not reported, and what was received is what was billed."""
    completion = await client.ask(f"[[{step}]]", streamed=streamed)
    assert "usage" not in completion.body
    assert client.cost(f"[[{step}]]") == (upstream.nanos, Source.ESTIMATED)


async def test_connection_is_used_again(client: Client, upstream: AnthropicUpstream) -> None:
    """Answers that were read to their end, errors too, leave their connection to the next request."""
    for text, streamed in (("[[ok]]", True), ("[[ok]]", False), ("[[ok]]", True)):
        await client.ask(text, streamed=streamed)
    with pytest.raises(ServerFailed):
        await client.ask("[[529]]")
    await client.ask("[[ok]]")
    assert len({request.peer for request in upstream.requests}) == 1


# requests


async def test_a_request_in_full(client: Client, upstream: AnthropicUpstream) -> None:
    """What OpenAI's request says is said in the API's words, with its headers; what it does not know is left out."""
    await client.ask(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Where is it warm?"},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind.", "cache_control": EPHEMERAL}]},
        ],
        max_completion_tokens=77,
        temperature=1.7,
        top_p=0.5,
        stop=["END", "\n"],
        user="u-1",
        tools=[LOOK_UP],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=7,
        logprobs=True,
        frequency_penalty=1,
        metadata={"a": "b"},
        service_tier="flex",
    )
    (request,) = upstream.requests
    assert request.body == {
        "model": "small",
        "max_tokens": 77,
        "system": [
            {"type": "text", "text": "Be brief."},
            {"type": "text", "text": "Be kind.", "cache_control": EPHEMERAL},
        ],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Where is it warm?"}]}],
        "temperature": 1,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
        "tools": [
            {
                "name": "look_up",
                "description": "Looks up a city.",
                "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
            }
        ],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    assert request.headers["x-api-key"] == KEY
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c")
    assert "authorization" not in request.headers


EPHEMERAL = {"type": "ephemeral", "ttl": "1h"}


async def test_only_a_stream_asks_for_one(client: Client, upstream: AnthropicUpstream) -> None:
    """A stream is asked for by ``stream`` and differs in nothing else; the bound on the answer is always there."""
    for streamed in (False, True):
        await client.ask("[[ok]]", streamed=streamed)
    plain, stream = (request.body for request in upstream.requests)
    assert plain["max_tokens"] == MAX_TOKENS
    assert stream == {**plain, "stream": True}


async def test_without_key_none_is_sent(upstream: AnthropicUpstream, session: aiohttp.ClientSession) -> None:
    """A server without a key gets no key, and one that asks for it says so."""
    with pytest.raises(RequestRejected):
        await AnthropicProvider(f"{upstream.url}/", None, lambda: session).complete(call("hi"), Meter(), None)
    assert "x-api-key" not in upstream.requests[0].headers


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": True}, None),
        (
            {"tool_choice": {"type": "function", "function": {"name": "look_up"}}},
            {"type": "tool", "name": "look_up"},
        ),
    ],
)
async def test_tool_choices(asked: Any, sent: Any, client: Client, upstream: AnthropicUpstream) -> None:
    """Each choice of OpenAI's has its like."""
    await client.ask("[[ok]]", tools=[LOOK_UP], **asked)
    assert upstream.requests[0].body.get("tool_choice") == sent


async def test_tools_both_ways(client: Client, upstream: AnthropicUpstream) -> None:
    """Calls and results of the history go back as blocks: results together, before what the user adds."""
    first = await client.ask('[[two_tools {"city": "Rome"}]]', tools=[LOOK_UP])
    one, two = first.tool_calls
    answer = await client.ask(
        [
            {"role": "user", "content": "Rome?"},
            dict(first.message),
            {"role": "tool", "tool_call_id": one["id"], "content": "31 °C"},
            {"role": "tool", "tool_call_id": two["id"], "content": ""},
            {"role": "user", "content": "And now? [[ok warm]]"},
        ],
        tools=[LOOK_UP],
    )
    assert answer.text == "warm"
    user, assistant, results = upstream.requests[1].body["messages"]
    assert user == {"role": "user", "content": [{"type": "text", "text": "Rome?"}]}
    assert assistant == {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "I look both up."},
            {"type": "tool_use", "id": one["id"], "name": "look_up", "input": {"city": "Rome"}},
            {"type": "tool_use", "id": two["id"], "name": "look_up", "input": {}},
        ],
    }
    assert results == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": one["id"], "content": [{"type": "text", "text": "31 °C"}]},
            {"type": "tool_result", "tool_use_id": two["id"]},
            {"type": "text", "text": "And now? [[ok warm]]"},
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ('{"city": "Rome"}', {"city": "Rome"}),
        ("", {}),
        ('{"city": "Ro', {"arguments": '{"city": "Ro'}),
        ("[1, 2]", {"arguments": [1, 2]}),
        ("Rome", {"arguments": "Rome"}),
    ],
)
async def test_arguments_of_the_history(arguments: str, sent: Any, client: Client, upstream: AnthropicUpstream) -> None:
    """Arguments that are no JSON object, which the API would turn down, are told in one as they were."""
    called = {"id": "call:1", "type": "function", "function": {"name": "look_up", "arguments": arguments}}
    history: list[dict[str, Any]] = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call:1", "content": "no such city"},
    ]
    assert (await client.ask(history, tools=[LOOK_UP])).text
    (block,) = upstream.requests[0].body["messages"][1]["content"]
    assert (block["id"], block["input"]) == ("call_1", sent)


async def test_messages_of_one_side_are_one(client: Client, upstream: AnthropicUpstream) -> None:
    """Messages of one side that follow each other are one, blank ones none, and system prompts stand together."""
    await client.ask(
        [
            {"role": "system", "content": "First."},
            {"role": "user", "content": "a"},
            {"role": "system", "content": "Second."},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "assistant", "content": None, "refusal": "d"},
            {"role": "user", "content": "  "},
            {"role": "user", "content": [{"type": "text", "text": "e"}]},
        ]
    )
    body = upstream.requests[0].body
    assert [block["text"] for block in body["system"]] == ["First.", "Second."]
    assert [(one["role"], [block["text"] for block in one["content"]]) for one in body["messages"]] == [
        ("user", ["a", "b"]),
        ("assistant", ["c", "d"]),
        ("user", ["e"]),
    ]


async def test_instructions_alone_are_the_users_message(client: Client, upstream: AnthropicUpstream) -> None:
    """A prompt of instructions alone, which OpenAI answers, is asked as the user's."""
    assert (await client.ask([{"role": "system", "content": "Say hi. [[ok hi]]"}])).text == "hi"
    assert "system" not in upstream.requests[0].body


async def test_images(client: Client, upstream: AnthropicUpstream) -> None:
    """An image goes as base64 or as its URL, in a user's message and in a tool's result."""
    here = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}}
    there = {"type": "image_url", "image_url": {"url": "https://img.example/a.png"}, "cache_control": EPHEMERAL}
    called = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    await client.ask(
        [
            {"role": "user", "content": [{"type": "text", "text": "Which? [[ok]]"}, here, there]},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "c1", "content": [here]},
        ],
        tools=[LOOK_UP],
    )
    user, _, result = upstream.requests[0].body["messages"]
    embedded = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    linked = {"type": "url", "url": "https://img.example/a.png"}
    assert user["content"][1:] == [embedded, {"type": "image", "source": linked, "cache_control": EPHEMERAL}]
    assert result["content"][0]["content"] == [embedded]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"n": 2}, "`n` can't be sent to Anthropic: the model gives one answer a request"),
        ({"tools": [{"type": "web_search"}]}, "`tools[0].type`"),
        ({"tools": ["look_up"]}, "`tools[0]` can't be sent to Anthropic: it must be an object"),
        ({"tools": [{"type": "function", "function": {"name": 7}}]}, "`tools[0].function.name`"),
        ({"tools": [LOOK_UP], "tool_choice": {"type": "allowed_tools"}}, "`tool_choice`"),
        ({"tools": [LOOK_UP], "tool_choice": ["auto"]}, "`tool_choice`"),
        ({"stop": 7}, "`stop`"),
        ({"user": 7}, "`user`"),
        ({"content": [{"type": "input_audio", "input_audio": {}}]}, "parts of type 'input_audio'"),
        ({"content": [{"type": "image_url", "image_url": {"url": "data:,hello"}}]}, "must be in base64"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "`messages[0].content[0].image_url.url`"),
        ({"content": [{"type": "text", "text": 7}]}, "`messages[0].content[0].text`"),
        ({"role": "function", "name": "a", "content": "b"}, "`messages[0]`"),
        ({"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": "a"}}]}, "tool_calls[0].id`"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "`messages[0].tool_calls[0].function`"),
    ],
)
async def test_what_cannot_be_asked_is_not_sent(
    body: dict[str, Any], said: str, client: Client, upstream: AnthropicUpstream
) -> None:
    """What the API can't do is told by field, before anything is sent, so that another model can be asked."""
    fields = {"role", "content", "name", "tool_calls"}
    message = {"role": "user", "content": "a"} | {name: body[name] for name in fields & set(body)}
    rest = {name: value for name, value in body.items() if name not in fields}
    with pytest.raises(RequestRejected) as raised:
        await client.ask([message], **rest)
    assert said in str(raised.value)
    assert raised.value.status == 400
    assert (client.meter.uses, upstream.requests) == ([], [])


# answers to a schema


@BOTH
async def test_a_schema_is_a_tool_that_must_be_called(
    *, streamed: bool, client: Client, upstream: AnthropicUpstream
) -> None:
    """An answer to a schema is the input of a forced tool, told as the text that OpenAI would have answered."""
    completion = await client.ask('[[ok {"id": 7}]]', streamed=streamed, response_format=AS_SCHEMA)
    assert json.loads(completion.text) == {"id": 7}
    assert (completion.tool_calls, completion.finish_reasons) == ([], ["stop"])
    body = upstream.requests[0].body
    assert body["tools"] == [{"name": "order", "description": "An order.", "input_schema": SCHEMA}]
    assert body["tool_choice"] == {"type": "tool", "name": "order", "disable_parallel_tool_use": True}
    assert "".join(delta["content"] for delta in client.deltas) == (completion.text if streamed else "")
    assert client.cost("") == (upstream.nanos, Source.REPORTED)


@BOTH
async def test_a_forced_tool_may_not_be_called(*, streamed: bool, client: Client) -> None:
    """A model that writes text instead is understood; that text is not streamed, since JSON may follow."""
    completion = await client.ask("[[ok I would rather not.]]", streamed=streamed, response_format=AS_SCHEMA)
    assert completion.text == "I would rather not."
    assert client.pushed == []


@pytest.mark.parametrize(
    "asked",
    [
        {"tools": [LOOK_UP], "response_format": AS_SCHEMA},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}}},
        {"response_format": {"type": "json_object"}},
    ],
)
async def test_a_schema_may_be_an_instruction(
    asked: dict[str, Any], client: Client, upstream: AnthropicUpstream
) -> None:
    """With tools of the caller's own, with a schema of no object, or with none, JSON is asked for in words."""
    completion = await client.ask([{"role": "system", "content": "Be brief."}, USER], **asked)
    assert completion.text == "[1]"
    body = upstream.requests[0].body
    assert "tool_choice" not in body
    own, added = body["system"]
    assert own["text"] == "Be brief."
    assert added["text"].startswith("Reply with one JSON ")
    if asked["response_format"]["type"] == "json_schema":
        assert json.dumps(asked["response_format"]["json_schema"]["schema"]).replace(" ", "") in added["text"]


USER = {"role": "user", "content": "[[ok [1]]]"}


@BOTH
async def test_newer_models_turn_down_forced_tools(
    *, streamed: bool, client: Client, upstream: AnthropicUpstream
) -> None:
    """A model that takes no forced tool is asked in words, at no cost, and from then on at once."""
    for _ in range(2):
        completion = await client.ask('[[ok {"id": 7}]]', streamed=streamed, model="new", response_format=AS_SCHEMA)
        assert completion.text == '{"id": 7}'
    assert ["tools" in request.body for request in upstream.requests] == [True, False, False]
    assert [use.refused for use in client.meter.uses] == [False]
    assert [charge.waived for charge in upstream.charges] == [True, False, False]


async def test_newer_models_turn_down_sampling(client: Client, upstream: AnthropicUpstream) -> None:
    """A model that takes no temperature is asked without, and from then on at once; so for ``top_p``."""
    for asked in ({"temperature": 0}, {"temperature": 0.5, "top_p": 0.5}, {"top_p": 0.5}, {"top_p": 0.1}):
        assert (await client.ask("[[ok]]", model="new", **asked)).text
    sent = [set(request.body) & {"temperature", "top_p"} for request in upstream.requests]
    assert sent == [{"temperature"}, set(), set(), {"top_p"}, set(), set()]


async def test_a_callers_own_choice_is_not_dropped(client: Client, upstream: AnthropicUpstream) -> None:
    """Where the caller itself forces a tool, a model that does not take that is no model for it."""
    with pytest.raises(RequestRejected, match="not supported for this model"):
        await client.ask("[[ok]]", model="new", tools=[LOOK_UP], tool_choice="required")
    assert len(upstream.requests) == 1


# the table


@pytest.mark.parametrize(
    ("step", "error", "status", "wait"),
    [
        ("429 7", RateLimited, 429, 7.0),
        ("context_too_long", ContextTooLong, 400, None),
        (
            "400 input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length",
            ContextTooLong,
            400,
            None,
        ),
        ("400", RequestRejected, 400, None),
        ("401", RequestRejected, 401, None),
        ("402", RequestRejected, 402, None),
        ("403", RequestRejected, 403, None),
        ("404", RequestRejected, 404, None),
        ("413 Request exceeds the maximum size", RequestRejected, 413, None),
        ("500", ServerFailed, 500, None),
        ("529", ServerFailed, 529, None),
    ],
)
@BOTH
async def test_error_statuses(
    step: str,
    error: type[ProviderError],
    status: int,
    wait: float | None,
    *,
    streamed: bool,
    client: Client,
    upstream: AnthropicUpstream,
) -> None:
    """An error status becomes the error that the table names, and costs nothing."""
    with pytest.raises(error) as raised:
        await client.ask(f"[[{step}]]", streamed=streamed)
    assert type(raised.value) is error
    assert (raised.value.status, raised.value.retry_after) == (status, wait)
    assert raised.value.retryable == (status in {429, 500, 529})
    assert [use.refused for use in client.meter.uses] == [True]
    assert (client.pushed, upstream.nanos) == ([], 0)
    assert KEY not in str(raised.value)


async def test_overloaded_then_ok(client: Client, upstream: AnthropicUpstream) -> None:
    """An overload passes: the model is asked again, and only the answer is billed."""
    model = Model(alias="small", name="small", provider=client.provider, retries=2, price=Price(10**9, 10**9, 10**9))
    meter, timeline = Meter(), Timeline()
    completion = await model.complete(call("[[529 then 529 then ok well]]"), meter, timeline, None)
    assert completion.text == "well"
    assert [charge.waived for charge in upstream.charges] == [True, True, False]
    assert meter.usage == Usage(upstream.charges[2].input, upstream.charges[2].output)


@pytest.mark.parametrize("step", ["garbage", "bad_utf8", "wrong", "wrong []", "huge", "drop 2", "cut 2", "cut_utf8"])
@BOTH
async def test_lost_answers(step: str, *, streamed: bool, client: Client, upstream: AnthropicUpstream) -> None:
    """What is no whole answer is lost, and costs what the upstream bills: its input, and the output that came."""
    with pytest.raises(AnswerLost):
        await client.ask(f"[[{step}]]", streamed=streamed)
    charge = upstream.charges[0]
    if step == "cut_utf8" and not streamed:
        assert client.meter.uses[0].received == []  # what came of it can't be read
        return
    assert client.cost(f"[[{step}]]") == (charge.nanos, Source.ESTIMATED)
    assert (charge.output > 0) == (streamed and step in {"drop 2", "cut 2", "cut_utf8"})


async def test_a_cut_stream_keeps_the_input_that_was_told(client: Client, upstream: AnthropicUpstream) -> None:
    """The input of a stream that breaks is what the server told at its start, whatever we would have counted."""
    told = {"input_tokens": 50, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 20, "output_tokens": 1}
    start = {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": told}}
    with pytest.raises(AnswerLost):
        await client.ask(f"[[wrong {json.dumps(start)}]]", streamed=True)
    assert client.meter.uses[0].begun == Usage(100, 0, 30, 0, 20)
    assert client.meter.uses[0].usage is None


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded_error", ServerFailed),
        ("api_error", ServerFailed),
        ("rate_limit_error", RateLimited),
    ],
)
@BOTH
async def test_errors_inside_an_answer(
    kind: str, error: type[ProviderError], *, streamed: bool, client: Client, upstream: AnthropicUpstream
) -> None:
    """An error in the middle of a stream is one, and may pass; what was sent before it is billed."""
    step = f"[[error_after 2 {kind}]]"
    with pytest.raises(error) as raised:
        await client.ask(step, streamed=streamed)
    assert raised.value.retryable
    assert client.cost(step) == (upstream.nanos, Source.ESTIMATED)
    assert len(client.pushed) == (2 if streamed else 0)


@pytest.mark.parametrize(
    "body",
    [
        '{"type": "message", "content": "hi"}',
        '{"type": "message", "content": ["hi"]}',
        '{"type": "message", "content": [{}]}',
        '{"type": "message", "content": [{"type": "text", "text": 7}]}',
        '{"type": "message", "content": [{"type": "tool_use", "id": 7}]}',
    ],
)
async def test_wrong_shapes_are_lost(body: str, client: Client) -> None:
    """JSON that is not shaped like an answer is lost."""
    with pytest.raises(AnswerLost):
        await client.ask(f"[[wrong {body}]]")


@pytest.mark.parametrize(
    "event",
    [
        '{"type": "message_start"}',
        '{"type": "content_block_start", "index": 0}',
        '{"type": "content_block_start", "index": "0", "content_block": {"type": "text"}}',
        '{"type": "content_block_start", "index": 0, "content_block": {"type": 7}}',
        '{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}',
        '{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": 7}}',
        '{"type": "message_delta"}',
        '{"type": "ping"}',
    ],
)
async def test_wrong_events_are_lost(event: str, client: Client) -> None:
    """A stream of events that are wrong, or that end before the answer does, is lost."""
    with pytest.raises(AnswerLost):
        await client.ask(f"[[wrong {event}]]", streamed=True)


async def test_refused_connection_costs_nothing(session: aiohttp.ClientSession) -> None:
    """Where nobody listens nothing was sent."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{bound.getsockname()[1]}", session)
        with pytest.raises(Unreachable):
            await client.ask("hi")
    assert client.meter.uses == []


@pytest.mark.parametrize("step", ["hang", "hang_after 2"])
@BOTH
async def test_cancel_closes_the_connection(
    step: str, *, streamed: bool, client: Client, upstream: AnthropicUpstream
) -> None:
    """A cancelled call is seen by the upstream as a disconnect, and costs its input and what was received."""
    asking = asyncio.create_task(client.ask(f"[[{step}]]", streamed=streamed))
    await upstream.received()
    for _ in range(2 if streamed and step != "hang" else 0):
        await client.pushes.acquire()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await upstream.disconnected()
    assert client.cost(f"[[{step}]]") == (upstream.nanos, Source.ESTIMATED)


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError()])
async def test_sink_errors_pass_through(error: Exception, client: Client, upstream: AnthropicUpstream) -> None:
    """What the sink raises comes out as it is, and the upstream sees that nobody listens."""

    async def sink(_: Mapping[str, Any]) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        await client.provider.complete(call("[[slow 0.01]]"), client.meter, sink)
    assert raised.value is error
    await upstream.disconnected()
