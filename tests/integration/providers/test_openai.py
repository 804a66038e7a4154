"""The OpenAI provider against a misbehaving server on a real socket."""

from __future__ import annotations

import asyncio
import socket
import time
from email.utils import formatdate
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.upstream import Upstream, count
from tracerouter.errors import (
    AnswerLost,
    ContextTooLong,
    ProviderError,
    RateLimited,
    RequestRejected,
    ServerFailed,
    Unreachable,
)
from tracerouter.providers.http import EventParser, failure, retry_after, usage_of
from tracerouter.providers.openai import OpenAIProvider
from tracerouter.tokens import count_request
from tracerouter.types import Call, Completion, Meter, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

KEY = "sk-very-secret"
BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """The misbehaving server."""
    async with Upstream() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """The session that providers share."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, connect=0.3)) as shared:
        yield shared


class Client:
    """One call after the other, and what each pushed and used."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.provider = OpenAIProvider(url, KEY, lambda: session)
        self.meter = Meter()
        self.pushed: list[Mapping[str, Any]] = []
        self.pushes = asyncio.Semaphore(0)
        """Can be acquired once for each chunk that was pushed."""

    async def ask(self, text: str, *, streamed: bool = False, **body: Any) -> Completion:
        """Ask once, with a fresh meter."""
        self.meter, self.pushed = Meter(), []
        return await self.provider.complete(call(text, **body), self.meter, self.take if streamed else None)

    async def take(self, chunk: Mapping[str, Any]) -> None:
        """Be the sink."""
        self.pushed.append(chunk)
        self.pushes.release()

    def estimate(self, text: str) -> Usage:
        """Return what this call used, as it is counted where no usage was reported."""
        (use,) = self.meter.uses
        assert use.usage is None
        assert not use.refused
        return Usage(count_request(call(text).body), count("".join(use.received)))


@pytest.fixture
def client(upstream: Upstream, session: aiohttp.ClientSession) -> Client:
    """Ask the misbehaving server."""
    return Client(upstream.url, session)


def call(text: str, **body: Any) -> Call:
    """Make a call of one user message, with ten seconds and a trace context."""
    asked = {"model": "small", "messages": [{"role": "user", "content": text}], **body}
    deadline = asyncio.get_running_loop().time() + 10
    return Call(asked, deadline, {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})


# answers


@pytest.mark.parametrize(
    "step",
    ["ok", "ok Zwölf Boxkämpfer 🥊 jagen", "tool_call", "reasoning", "refusal", "empty", "truncated", "cached"],
)
async def test_streamed_equals_plain(step: str, client: Client, upstream: Upstream) -> None:
    """A stream adds up to the body that the server would have answered plainly, and both report the usage billed."""
    plain = await client.ask(f"[[{step}]]")
    usages = [client.meter.uses[0].usage]
    streamed = await client.ask(f"[[{step}]]", streamed=True)
    usages.append(client.meter.uses[0].usage)
    assert dict(streamed.body) | {"id": None} == dict(plain.body) | {"id": None}
    for usage, charge in zip(usages, upstream.charges, strict=True):
        assert usage is not None
        assert (usage.input, usage.output, usage.cached) == (charge.input, charge.output, charge.cached)
        assert "".join(client.meter.uses[0].received) == "".join(charge.written)


async def test_streamed_equals_plain_with_choices_and_logprobs(client: Client) -> None:
    """Choices that a stream interleaves are told apart, and log-probabilities are kept."""
    asked: dict[str, Any] = {"n": 3, "logprobs": True}
    plain = await client.ask("[[ok one two three]]", **asked)
    streamed = await client.ask("[[ok one two three]]", streamed=True, **asked)
    assert len(streamed.body["choices"]) == 3
    assert streamed.body["choices"] == plain.body["choices"]
    assert [len(choice["logprobs"]["content"]) for choice in streamed.body["choices"]] == [3, 3, 3]


async def test_request_is_what_was_asked(client: Client, upstream: Upstream) -> None:
    """The body goes out unchanged, with key and trace context; only a stream adds how it is to be streamed."""
    await client.ask("[[ok]]", temperature=0.2)
    await client.ask("[[ok]]", streamed=True, temperature=0.2)
    plain, streamed = upstream.requests
    assert plain.body == call("[[ok]]", temperature=0.2).body
    assert streamed.body == {**plain.body, "stream": True, "stream_options": {"include_usage": True}}
    for request in upstream.requests:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c")
        assert request.headers["content-type"] == "application/json"


@pytest.mark.parametrize("streamed", [False, True])
async def test_cache_control_is_left_out_where_it_is_turned_down(
    client: Client, upstream: Upstream, *, streamed: bool
) -> None:
    """A server that does not know it says so, for nothing; it is asked again without, and from then on without."""
    cached: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}
    text = "[[400 Unknown parameter: 'messages[0].content[0].cache_control'. then ok well]]"
    schema = {"type": "object", "properties": {"cache_control": {"type": "string"}}}  # a field of the caller's own
    function = {"name": "look_up", "parameters": schema}
    parts = [{"type": "text", "text": text, **cached}]
    asked = {
        "messages": [{"role": "user", "content": parts}],
        "tools": [{"type": "function", "function": function, **cached}],
        **cached,
    }
    assert (await client.ask("", streamed=streamed, **asked)).text == "well"
    assert [charge.waived for charge in upstream.charges] == [True, False]
    assert upstream.requests[0].body["messages"] == [{"role": "user", "content": parts}]
    body = upstream.requests[1].body
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": text}]}]
    assert body["tools"] == [{"type": "function", "function": function}]
    await client.ask("[[ok]]", **cached)
    assert "cache_control" not in upstream.requests[-1].body
    with pytest.raises(RequestRejected):  # where there is nothing to leave out it is not asked again
        await client.ask("[[400 What is cache_control?]]")


async def test_cache_control_is_passed_on_where_it_is_taken(client: Client, upstream: Upstream) -> None:
    """Other servers get it as it came."""
    await client.ask("[[ok]]", cache_control={"type": "ephemeral"})
    assert upstream.requests[0].body["cache_control"] == {"type": "ephemeral"}


async def test_without_key_none_is_sent(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    """A server without a key gets no authorization header."""
    await OpenAIProvider(f"{upstream.url}/", None, lambda: session).complete(call("hi"), Meter(), None)
    assert "authorization" not in upstream.requests[0].headers


async def test_sink_gets_output_alone(client: Client) -> None:
    """Only chunks with output are pushed, without usage and finish reason, with the role in the first."""
    completion = await client.ask("[[reasoning]]", streamed=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in client.pushed]
    assert "".join(delta.get("content", "") for delta in deltas) == completion.text
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me think about it."
    assert [delta.get("role") for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert all("usage" not in chunk and chunk["choices"][0]["finish_reason"] is None for chunk in client.pushed)


async def test_tool_calls_are_pushed(client: Client) -> None:
    """Tool calls are output: each of their chunks is pushed."""
    completion = await client.ask('[[tool_call {"city": "Rome"}]]', streamed=True)
    assert len(client.pushed) == 3
    assert completion.tool_calls[0]["function"] == {"name": "look_up", "arguments": '{"city": "Rome"}'}
    assert completion.body["choices"][0]["message"]["content"] is None


async def test_refusal_is_not_pushed(client: Client) -> None:
    """A refusal commits to nothing: it is in the Completion, and no chunk of it went to the sink."""
    completion = await client.ask("[[refusal No, sorry.]]", streamed=True)
    assert completion.refusal == "No, sorry."
    assert client.pushed == []
    assert client.meter.first_chunk_ns is None


async def test_first_chunk_is_timed(client: Client) -> None:
    """The time of the first chunk is noted before the sink gets it, and stays."""
    noted = []

    async def sink(_: Mapping[str, Any]) -> None:
        noted.append(meter.first_chunk_ns)

    meter, started = Meter(), time.perf_counter_ns()
    await client.provider.complete(call("[[ok]]"), meter, sink)
    assert meter.first_chunk_ns is not None
    assert set(noted) == {meter.first_chunk_ns}
    assert started < meter.first_chunk_ns < time.perf_counter_ns()


@pytest.mark.parametrize("step", ["no_usage", "bad_usage"])
@BOTH
async def test_missing_usage_is_counted_as_the_upstream_bills(
    step: str, *, streamed: bool, client: Client, upstream: Upstream
) -> None:
    """Usage that is missing or nonsense counts as not reported, and what was received is what was billed."""
    completion = await client.ask(f"[[{step}]]", streamed=streamed)
    assert "usage" not in completion.body
    assert client.estimate(f"[[{step}]]")[:2] == (upstream.charges[0].input, upstream.charges[0].output)


@pytest.mark.parametrize("step", ["no_done", "no_finish"])
async def test_half_an_end_is_an_end(step: str, client: Client) -> None:
    """A stream without ``[DONE]``, or without a finish reason, is complete if it has the other."""
    assert (await client.ask(f"[[{step} all of it]]", streamed=True)).text == "all of it"


async def test_upstream_follows_its_directives(client: Client, upstream: Upstream) -> None:
    """The server that other tests rely on plays each model by its own steps, and bills each by its own count."""
    upstream.default["other"] = "ok by default"
    text = "[[small=429 then ok first, large=ok [[1]]]] please"
    with pytest.raises(RateLimited):
        await client.ask(text)
    assert (await client.ask(text)).text == (await client.ask(text)).text == "first"
    assert (await client.ask(text, model="large")).text == "[[1]]"
    assert (await client.ask(text, model="other")).text == "by default"
    used = Usage(count_request(call(text).body), count("first"))
    assert upstream.nanos_of("small") == 2 * (used.input * 1000 + used.output * 4000)


async def test_connection_is_used_again(client: Client, upstream: Upstream) -> None:
    """Answers that were read to their end, errors too, leave their connection to the next request."""
    for text, streamed in (("[[ok]]", True), ("[[ok]]", False), ("[[ok]]", True)):
        await client.ask(text, streamed=streamed)
    with pytest.raises(ServerFailed):
        await client.ask("[[500]]")
    await client.ask("[[ok]]")
    assert len({request.peer for request in upstream.requests}) == 1


# the table


@pytest.mark.parametrize(
    ("step", "error", "status", "wait"),
    [
        ("429", RateLimited, 429, None),
        ("429 7", RateLimited, 429, 7.0),
        ("429 250ms", RateLimited, 429, 0.25),
        ("context_too_long", ContextTooLong, 400, None),
        ("400 This model's maximum context length is 8192 tokens.", ContextTooLong, 400, None),
        ("413 prompt is too long: 9 tokens > 8", ContextTooLong, 413, None),
        ("422 request exceeds the available context size", ContextTooLong, 422, None),
        ("400", RequestRejected, 400, None),
        ("401", RequestRejected, 401, None),
        ("403", RequestRejected, 403, None),
        ("404", RequestRejected, 404, None),
        ("413", RequestRejected, 413, None),
        ("422", RequestRejected, 422, None),
        ("500", ServerFailed, 500, None),
        ("503", ServerFailed, 503, None),
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
    upstream: Upstream,
) -> None:
    """An error status becomes the error that the table names, and costs nothing."""
    with pytest.raises(error) as raised:
        await client.ask(f"[[{step}]]", streamed=streamed)
    assert type(raised.value) is error
    assert (raised.value.status, raised.value.retry_after) == (status, wait)
    assert [use.refused for use in client.meter.uses] == [True]
    assert client.pushed == []
    assert upstream.nanos == 0
    assert KEY not in str(raised.value)


async def test_message_is_repeated_only_where_it_helps(client: Client) -> None:
    """The upstream's own message, cut, is told for a 400 and a 404, and never for a 401 or a 403."""
    for status in (400, 404, 413, 422):
        with pytest.raises(RequestRejected) as raised:
            await client.ask(f"[[{status} not\n this {'x' * 400}]]")
        assert f": not this {'x' * 291}" in str(raised.value)
        assert "x" * 292 not in str(raised.value)
    for status in (401, 403, 409):
        with pytest.raises(RequestRejected) as raised:
            await client.ask(f"[[{status} told]]")
        assert str(raised.value) == f"the provider turned the request down with status {status}"


@pytest.mark.parametrize("step", ["garbage", "bad_utf8", "wrong", "wrong []", "wrong 7", "huge", "drop 2", "cut 2"])
@BOTH
async def test_lost_answers(step: str, *, streamed: bool, client: Client, upstream: Upstream) -> None:
    """What is no whole answer is lost, and costs what the upstream bills: its input, and the output that came."""
    with pytest.raises(AnswerLost):
        await client.ask(f"[[{step}]]", streamed=streamed)
    charge = upstream.charges[0]
    assert client.estimate(f"[[{step}]]")[:2] == (charge.input, charge.output)
    assert (charge.output > 0) == (streamed and step in {"drop 2", "cut 2"})


@pytest.mark.parametrize(
    "body",
    [
        '{"choices": {}}',
        '{"choices": [7]}',
        '{"choices": [{"index": 0, "PART": "hello"}]}',
        '{"choices": [{"index": 0, "PART": {"content": 7}}]}',
        '{"choices": [{"index": 0, "PART": {"content": ["a"]}}]}',
        '{"choices": [{"index": 0, "PART": {"tool_calls": 7}}]}',
        '{"choices": [{"index": 0, "PART": {"tool_calls": ["a"]}}]}',
        '{"choices": [{"index": 0, "PART": {"tool_calls": [{"function": "f"}]}}]}',
        '{"choices": [{"index": 0, "PART": {"tool_calls": [{"function": {"arguments": [{}]}}]}}]}',
        '{"choices": [{"index": 0, "PART": {"function_call": 7}}]}',
        '{"choices": [{"index": "0", "PART": {"content": "x"}}]}',
    ],
)
@BOTH
async def test_wrong_shapes_are_lost(body: str, *, streamed: bool, client: Client) -> None:
    """JSON that is not shaped like an answer is lost, wherever it is wrong."""
    told = body.replace("PART", "delta" if streamed else "message")
    with pytest.raises(AnswerLost):
        await client.ask(f"[[{told}]]".replace("[[", "[[wrong ", 1), streamed=streamed)


async def test_choice_without_message_is_lost(client: Client) -> None:
    """A plain answer whose choice holds no message is lost."""
    with pytest.raises(AnswerLost):
        await client.ask('[[wrong {"choices": [{"index": 0}]}]]')


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("server_error", ServerFailed),
        ("overloaded_error", ServerFailed),
        ("rate_limit_error", RateLimited),
        ("RateLimitError", RateLimited),
        ("context_length_exceeded", ContextTooLong),
    ],
)
@BOTH
async def test_errors_inside_an_answer(
    kind: str, error: type[ProviderError], *, streamed: bool, client: Client, upstream: Upstream
) -> None:
    """An error that comes with status 200 is one; what was sent before it is billed."""
    step = f"[[error_after 2 {kind}]]"
    with pytest.raises(error):
        await client.ask(step, streamed=streamed)
    charge = upstream.charges[0]
    assert client.estimate(step)[:2] == (charge.input, charge.output)
    assert len(client.pushed) == (2 if streamed else 0)


async def test_plain_json_answers_a_streamed_request(session: aiohttp.ClientSession) -> None:
    """A server that can't stream is understood: its answer is taken, its error told."""
    answers = [{"choices": [{"message": {"content": "whole"}}]}, {"error": {"message": "no", "code": 429}}]

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response(answers.pop(0))

    async with served(handler) as url:
        client = Client(url, session)
        assert (await client.ask("hi", streamed=True)).text == "whole"
        assert client.pushed == []
        with pytest.raises(RateLimited):
            await client.ask("hi", streamed=True)


async def test_redirect_is_rejected(session: aiohttp.ClientSession) -> None:
    """A redirect is not followed, because it would carry the key elsewhere."""

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"location": "http://127.0.0.1:1/"})

    async with served(handler) as url:
        client = Client(url, session)
        with pytest.raises(RequestRejected):
            await client.ask("hi")
        assert client.meter.uses[0].refused


async def test_refused_connection_costs_nothing(session: aiohttp.ClientSession) -> None:
    """Where nobody listens nothing was sent."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{bound.getsockname()[1]}", session)
        with pytest.raises(Unreachable):
            await client.ask("hi")
    assert client.meter.uses == []


async def test_unknown_host_costs_nothing(session: aiohttp.ClientSession) -> None:
    """Where the name is not known nothing was sent."""
    client = Client("http://nowhere.invalid/v1", session)
    with pytest.raises(Unreachable):
        await client.ask("hi")
    assert client.meter.uses == []


async def test_broken_tls_costs_nothing(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    """Where TLS fails nothing was sent."""
    client = Client(upstream.url.replace("http:", "https:"), session)
    with pytest.raises(Unreachable):
        await client.ask("hi")
    assert client.meter.uses == []


async def test_slow_connection_costs_nothing(session: aiohttp.ClientSession) -> None:
    """Where a connection takes longer than the session gives it nothing was sent."""
    async with deaf() as url:
        client = Client(url, session)
        with pytest.raises(Unreachable):
            await client.ask("hi")
    assert client.meter.uses == []


async def test_cancel_while_connecting_costs_nothing(session: aiohttp.ClientSession) -> None:
    """A call cancelled before its connection stands has sent nothing."""
    async with deaf() as url:
        client = Client(url, session)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.ask("hi")
    assert client.meter.uses == []


async def test_silent_server_times_out(upstream: Upstream) -> None:
    """The session's own time limit is a TimeoutError, which is for the caller to name."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_read=0.05)) as session:
        client = Client(upstream.url, session)
        for text, streamed in (("[[hang]]", False), ("[[hang_after 1]]", True)):
            with pytest.raises(TimeoutError):
                await client.ask(text, streamed=streamed)


# going away


@pytest.mark.parametrize("step", ["hang", "hang_after 2"])
@BOTH
async def test_cancel_closes_the_connection(step: str, *, streamed: bool, client: Client, upstream: Upstream) -> None:
    """A cancelled call is seen by the upstream as a disconnect, and costs its input and what was received."""
    asking = asyncio.create_task(client.ask(f"[[{step}]]", streamed=streamed))
    await upstream.received()
    for _ in range(2 if streamed and step != "hang" else 0):
        await client.pushes.acquire()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await upstream.disconnected()
    assert client.estimate(f"[[{step}]]")[:2] == (upstream.charges[0].input, upstream.charges[0].output)


@pytest.mark.parametrize("error", [aiohttp.ClientConnectionResetError("gone"), ValueError("no"), TimeoutError()])
async def test_sink_errors_pass_through(error: Exception, client: Client, upstream: Upstream) -> None:
    """What the sink raises comes out as it is, and the upstream sees that nobody listens."""

    async def sink(_: Mapping[str, Any]) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        await client.provider.complete(call("[[slow 0.01]]"), client.meter, sink)
    assert raised.value is error
    await upstream.disconnected()


# odd streams


async def test_odd_stream_is_understood(session: aiohttp.ClientSession) -> None:
    """Comments, CRLF, multi-line data, repeated and missing fields, and an end without a blank line are fine."""
    raw = (
        b": keep-alive\r\n\r\n"
        b'data: {"id": "", "choices": [], "prompt_filter_results": []}\r\n\r\n'
        b'event: message\r\ndata: {"id": "a", "provider": "x", "choices":\r\ndata: [{"delta": {"role": "assistant", '
        b'"content": "H\xc3\xa9", "mood": "gl"}}]}\r\n\r\n'
        b'data: {"id": "a", "provider": "x", "choices": [{"delta": {"role": "assistant", "content": "llo", "mood": "ad"'
        b', "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}, "finish_reason": null}]}\n\n'
        b'data: {"id": "a", "choices": [{"delta": null, "finish_reason": "stop"}], "usage": null}'
    )

    async with served(answering(raw)) as url:
        client = Client(url, session)
        completion = await client.ask("hi", streamed=True)
    message = dict(completion.message)
    assert message == {
        "role": "assistant",
        "content": "Héllo",
        "mood": "glad",
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
    }
    assert (completion.id, completion.body["provider"], completion.finish_reasons) == ("a", "x", ["stop"])
    assert client.meter.uses[0].received == ["Hé", "llo", "{}"]


async def test_deep_nesting_is_lost(session: aiohttp.ClientSession) -> None:
    """A stream nested without measure is lost, and no recursion error."""
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    event = b'data: {"choices": [{"delta": {"content": "x"}, "deep": ' + deep + b"}]}\n\n"
    async with served(answering(event * 2 + b"data: [DONE]\n\n")) as url:
        with pytest.raises(AnswerLost):
            await Client(url, session).ask("hi", streamed=True)


async def test_bogus_compression_is_lost(session: aiohttp.ClientSession) -> None:
    """A body that can't be decompressed is lost."""
    async with served(answering(b"no gzip", **{"content-encoding": "gzip"})) as url:
        for streamed in (False, True):
            with pytest.raises(AnswerLost):
                await Client(url, session).ask("hi", streamed=streamed)


@given(
    events=st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")), min_size=1)),
    cuts=st.lists(st.integers(0, 400)),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    closed=st.booleans(),
)
def test_events_do_not_depend_on_the_cuts(
    events: list[list[str]], cuts: list[int], newline: bytes, *, closed: bool
) -> None:
    """However the bytes of a stream are cut, its events are the same."""
    lines = [[b": note", *(b"data: " + line.encode() for line in event), b"id: 1"] for event in events]
    raw = (newline + newline).join(newline.join(event) for event in lines) + (newline * 2 if closed else b"")
    borders = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    parser, found = EventParser(), list[bytes]()
    for start, end in pairwise(borders):
        found += parser.feed(raw[start:end])
    found += parser.end()
    assert found == ["\n".join(event).encode() for event in events]


@given(pieces=st.lists(st.binary()))
def test_parser_takes_any_bytes(pieces: list[bytes]) -> None:
    """No bytes break the parser, and pieces give what the whole gives."""
    parser, whole = EventParser(), EventParser()
    found = [event for piece in pieces for event in parser.feed(piece)] + parser.end()
    assert found == whole.feed(b"".join(pieces)) + whole.end()


def test_lines_are_bounded() -> None:
    """A line without end is given up, however slowly it grows."""
    parser = EventParser(line_limit=100)
    parser.feed(b"x" * 100)
    with pytest.raises(AnswerLost):
        parser.feed(b"x")


# small readers


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "9", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 -0000"}, 0.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds and dates are read; nonsense is as if nothing was said."""
    assert retry_after(headers) == seconds


def test_retry_after_date() -> None:
    """A date is read as the seconds until then."""
    assert retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) == pytest.approx(60, abs=2)


@pytest.mark.parametrize("raw", [b"", b"[]", b"7", b'{"error": 7}', b'{"error": {"message": 7, "code": {}}}', b"\xff"])
def test_any_error_body_will_do(raw: bytes) -> None:
    """An error status is understood whatever its body is."""
    assert type(failure(400, {}, raw)) is RequestRejected


@pytest.mark.parametrize(
    "raw", [b'{"error": {"message": "why"}}', b'{"error": "why"}', b'{"message": "why"}', b'{"detail": "why"}']
)
def test_error_messages_are_found(raw: bytes) -> None:
    """The message is found in each of the shapes that servers use."""
    assert str(failure(400, {}, raw)).endswith(": why")


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2}, Usage(3, 2)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(3, 2)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}, Usage(3, 2, 1)),
        (
            {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cache_write_tokens": 1}},
            Usage(3, 2, cache_write=1),
        ),
        (
            {"prompt_tokens": 3, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}},
            Usage(3, 2, 0, 1),
        ),
        ({"prompt_tokens": 3}, None),
        ({"prompt_tokens": 3, "completion_tokens": True}, None),
        ({"prompt_tokens": 3, "completion_tokens": -1}, None),
        ({"prompt_tokens": 3.0, "completion_tokens": 1}, None),
        ({"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": "x"}}, None),
        ({"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": [1]}, None),
        ("many", None),
        (None, None),
    ],
)
def test_usage(told: object, usage: Usage | None) -> None:
    """Usage is read where it is whole, and else counts as not reported."""
    assert usage_of(told) == usage


# servers of one test


class served:  # noqa: N801 - reads like a function
    """Serve one handler on a free port; the base URL is what ``async with`` gives."""

    def __init__(self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
        app = web.Application()
        app.router.add_post("/chat/completions", handler)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)

    async def __aenter__(self) -> str:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


def answering(raw: bytes, **headers: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return a handler that answers these bytes as a stream of events, whatever is asked."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **headers})
        await response.prepare(request)
        await response.write(raw)
        return response

    return handler


class deaf:  # noqa: N801 - reads like a function
    """Take connections and never say a word, so that TLS is never agreed on."""

    async def __aenter__(self) -> str:
        self._done = asyncio.Event()
        self._server = await asyncio.start_server(self._wait, "127.0.0.1", 0)
        return f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _wait(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._done.wait()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self._done.set()
        self._server.close()
        await self._server.wait_closed()
