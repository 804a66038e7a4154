"""Anthropic's Messages API on a real socket, misbehaving on demand, with a bill of its own.

It is used as :class:`tests.upstream.Upstream` is, and takes the same directives, with the same meaning:

    async with AnthropicUpstream(prices={"small": Prices(3_000_000_000, 15_000_000_000)}) as upstream:
        provider = AnthropicProvider(upstream.url, "key", lambda: session)

ok, tool_call, tool_calls, empty, truncated, no_usage, bad_usage, slow, cut, drop, hang, hang_after, error_after,
garbage, bad_utf8, wrong, huge, context_too_long and NNN are there. What differs:

====================  =====================================================================================
step                  what it does (plain and streamed, unless said otherwise)
====================  =====================================================================================
cached [TEXT]         reads half of the input from the prompt cache
stored [TEXT]         reads a quarter of it, and writes half, of which half for an hour
reasoning [TEXT]      thinks first, in a block of its own
refusal [TEXT]        refuses, with TEXT as its explanation
two_tools [JSON]      says something, and calls the function ``look_up`` twice
bad_tool [TEXT]       calls it with TEXT as its arguments, JSON or not, as a stream can that was cut by its limit
context_full [TEXT]   finishes because the context window is full
paused [TEXT]         finishes as a turn that may go on
no_stop [TEXT]        ends a stream without ``message_stop``
no_delta [TEXT]       ends a stream without ``message_delta``, but with ``message_stop``
cut_utf8              ends a stream within a character (plain: within one of its text)
strange [TEXT]        has events, blocks and deltas that nobody has heard of
====================  =====================================================================================

Where the request forces a tool, TEXT is that tool's input, if it is a JSON object.

**It turns down what the API turns down**, with status 400: a field that it does not know, no ``max_tokens``, a wrong
type, roles that do not alternate (the API itself would take them as one; older servers do not), blank texts, images of
another type, tool results that do not follow their call, calls without results, a schema that is no object's. Models
in `newer` take no sampling parameters and no forced tools; with version 2026-10-21 no model takes the former.

**The bill** is as in ``tests.upstream``: each block of the system prompt counts as a message of role system, and a
message's texts as one, joined by line feeds. An image is a token for each 28 by 28 pixels, of 2576 on an edge and 4784
tokens at most; one that is linked, or can't be opened, is 4784.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from io import BytesIO
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any

from aiohttp import web
from PIL import Image

from tests.upstream import _BREAKING, _TEXT, _WORDS, Charge, Prices, Upstream, _Dropped, count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

VERSIONS = ("2023-06-01", "2026-10-21")
SAMPLING = ("temperature", "top_p", "top_k")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_RAW = {
    "garbage": b"<html>It works!</html>",
    "bad_utf8": b'{"type": "message", "content": [{"type": "text", "text": "\xff"}]}',
    "huge": b'{"padding": "' + b"x" * (10 * 1024 * 1024) + b'", "content": []}',
}
_STOPS = {
    "truncated": "max_tokens",
    "refusal": "refusal",
    "context_full": "model_context_window_exceeded",
    "paused": "pause_turn",
    "tool_call": "tool_use",
    "tool_calls": "tool_use",
    "two_tools": "tool_use",
    "bad_tool": "max_tokens",
}
_THOUGHT = "Let me think about it."
_CUT = "Zwölf Boxkämpfer 🥊 jagen"


class AnthropicUpstream(Upstream):
    """The server; use it in ``async with``.

    Args:
        newer: Models that take neither sampling parameters nor forced tools.
        facts: As for ``Upstream``.
    """

    paths = ("/v1/messages",)
    base = ""

    def __init__(self, *, newer: Iterable[str] = (), **facts: Any) -> None:
        super().__init__(**facts)
        self.newer = frozenset(newer)

    def _charge(self, request: web.Request, body: dict[str, Any]) -> Charge:
        """Open a line of the bill; a request that is turned down plays no step."""
        model = str(body.get("model"))
        prices = self.prices.get(model, Prices())
        try:
            _check(body, request.headers.get("anthropic-version"), newer=model in self.newer)
        except _Invalid as invalid:
            return Charge(model, f"400 {invalid}", prices, 0)
        return Charge(model, self._step(model, body["messages"]), prices, count_input(body))

    async def _answer(self, request: web.Request, body: dict[str, Any], charge: Charge) -> web.StreamResponse:
        return await _Answering(self, request, body, charge).act()


class _Answering:
    """One request being answered."""

    def __init__(self, upstream: Upstream, request: web.Request, body: dict[str, Any], charge: Charge) -> None:
        self._upstream = upstream
        self._request = request
        self._body = body
        self._charge = charge
        self._word, _, self._argument = charge.step.partition(" ")
        self._id = f"{len(upstream.charges):024}"
        if self._word == "cached":
            charge.cached = charge.input // 2
        if self._word == "stored":
            charge.cached, charge.stored, charge.stored_1h = charge.input // 4, charge.input // 2, charge.input // 4

    async def act(self) -> web.StreamResponse:
        if not (self._request.headers.get("x-api-key") or self._request.headers.get("authorization")):
            return self._error(401, "x-api-key header is required")
        if self._word.isdigit():
            return self._status(int(self._word), self._argument)
        if self._word == "context_too_long":
            return self._error(400, "prompt is too long: 208310 tokens > 200000 maximum")
        if self._word == "wrong":
            return self._raw(self._argument.encode() or b'{"type": "message", "content": {}}')
        if self._word in _RAW:
            return self._raw(_RAW[self._word])
        if self._word == "hang":
            await self._hang()
        return await (self._stream() if self._body.get("stream") else self._plain())

    # errors

    def _status(self, status: int, argument: str) -> web.Response:
        if status == 429:
            return self._error(429, "This request would exceed your rate limit.", {"retry-after": argument or "1"})
        told = argument or {529: "Overloaded"}.get(status, f"The upstream answers {status}.")
        if status == 401:
            told = f"invalid x-api-key: {self._request.headers.get('x-api-key')}"
        return self._error(status, told)

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
        self._charge.waived = True
        told = {"request-id": self._request_id, **(headers or {})}
        return web.json_response(self._failure(_TYPES.get(status, "api_error"), message), status=status, headers=told)

    def _failure(self, kind: str, message: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": self._request_id}

    @property
    def _request_id(self) -> str:
        return f"req_{self._id}"

    def _raw(self, content: bytes) -> web.Response:
        if self._body.get("stream"):
            return web.Response(body=b"event: x\ndata: " + content + b"\n\n", content_type="text/event-stream")
        return web.Response(body=content, content_type="application/json")

    async def _hang(self) -> None:
        await self._upstream._closing.wait()
        raise _Dropped

    def _drop(self) -> None:
        if self._request.transport is not None:
            self._request.transport.close()  # what was written is still sent
        raise _Dropped

    # what it says

    def _blocks(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Return each block as it starts, and its deltas."""
        forced = _forced(self._body)
        match self._word:
            case "empty" | "refusal":
                return
            case "tool_call" | "bad_tool":
                yield self._call("look_up", self._argument or '{"city": "Paris"}')
                return
            case "tool_calls":
                for part in self._argument.split("|"):
                    yield self._call("look_up", part.strip())
                return
            case "two_tools":
                yield self._says("I look both up.")
                yield self._call("look_up", self._argument or '{"city": "Paris"}')
                yield self._call("look_up", "")
                return
            case "reasoning":
                thinking = [{"type": "thinking_delta", "thinking": word} for word in _WORDS.findall(_THOUGHT)]
                signature = {"type": "signature_delta", "signature": "c2lnbmVk"}
                yield {"type": "thinking", "thinking": "", "signature": ""}, [*thinking, signature]
            case "strange":
                yield {"type": "hologram", "light": "green"}, [{"type": "hologram_delta", "light": "blue"}]
        yield self._call(forced, self._said) if forced and _is_object(self._said) else self._says(self._said)

    def _says(self, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return {"type": "text", "text": ""}, [{"type": "text_delta", "text": word} for word in _WORDS.findall(text)]

    def _call(self, name: str, arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return a call; its JSON comes in three parts, the first of which is empty."""
        third = -(-len(arguments) // 3)
        parts = ["", *(arguments[at : at + third] for at in range(0, len(arguments), third or 1))]
        number = len(self._charge.written)
        block = {"type": "tool_use", "id": f"toolu_{number:04}{self._id[-20:]}", "name": name, "input": {}}
        return block, [{"type": "input_json_delta", "partial_json": part} for part in parts]

    @property
    def _said(self) -> str:
        if self._word == "cut_utf8":
            return _CUT
        if self._word in _BREAKING:
            return _TEXT
        if self._word == "slow":
            return self._argument.partition(" ")[2] or _TEXT
        return self._argument or _TEXT

    @property
    def _stop(self) -> dict[str, Any]:
        forced = _forced(self._body)
        reason = _STOPS.get(self._word) or ("tool_use" if forced and _is_object(self._said) else "end_turn")
        details = None
        if reason == "refusal":
            details = {"type": "refusal", "category": "cyber", "explanation": self._argument or None}
        return {"stop_reason": reason, "stop_sequence": None, "stop_details": details}

    def _message(self, content: list[dict[str, Any]], *, usage: Mapping[str, Any] | None) -> dict[str, Any]:
        message = {
            "id": f"msg_{self._id}",
            "type": "message",
            "role": "assistant",
            "model": f"{self._body['model']}-20260101",
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
        }
        return message if usage is None else {**message, "usage": usage}

    def _usage(self, output: int) -> dict[str, Any] | None:
        charge = self._charge
        if self._word == "no_usage":
            return None
        if self._word == "bad_usage":
            return {"input_tokens": -1, "output_tokens": True, "cache_read_input_tokens": "many"}
        thought = count(_THOUGHT) if self._word == "reasoning" else 0
        return {
            "input_tokens": charge.input - charge.cached - charge.stored,
            "cache_creation_input_tokens": charge.stored,
            "cache_read_input_tokens": charge.cached,
            "cache_creation": {
                "ephemeral_5m_input_tokens": charge.stored - charge.stored_1h,
                "ephemeral_1h_input_tokens": charge.stored_1h,
            },
            "output_tokens": output,
            "output_tokens_details": {"thinking_tokens": thought},
            "service_tier": "standard",
        }

    # plain

    async def _plain(self) -> web.StreamResponse:
        if self._word == "error_after":
            kind = self._argument.partition(" ")[2] or "api_error"
            return web.json_response(self._failure(kind, "It failed."))
        if self._word in {"cut", "drop", "hang_after"}:
            return await self._part()
        said = list(self._blocks())
        blocks = [_joined(block, deltas) for block, deltas in said]
        if self._word == "slow":
            await asyncio.sleep(self._pause * len(_WORDS.findall(self._said)))
        self._charge.written += [text for _, deltas in said for delta in deltas for text in _written(delta)]
        answer = {**self._message(blocks, usage=self._usage(self._charge.output)), **self._stop}
        if self._word == "cut_utf8":
            whole = json.dumps(answer, ensure_ascii=False).encode()
            return web.Response(body=whole[: whole.index("🥊".encode()) + 2], content_type="application/json")
        return web.json_response(answer, headers={"request-id": self._request_id})

    async def _part(self) -> web.StreamResponse:
        """Send a plain answer up to where its text would begin."""
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(self._request)
        await response.write(json.dumps(self._message([], usage=None)).encode().removesuffix(b"}"))
        if self._word == "hang_after":
            await self._hang()
        if self._word == "drop":
            self._drop()
        await response.write_eof()
        return response

    # streamed

    async def _stream(self) -> web.StreamResponse:
        headers = {"content-type": "text/event-stream; charset=utf-8", "request-id": self._request_id}
        response = web.StreamResponse(headers=headers)
        await response.prepare(self._request)
        await self._event(response, "message_start", message=self._message([], usage=self._usage(1)))
        left = int(self._argument.partition(" ")[0] or 2) if self._word in _BREAKING - {"cut_utf8"} else None
        for index, (block, deltas) in enumerate(self._blocks()):
            await self._event(response, "content_block_start", index=index, content_block=block)
            if index == 0:
                await self._event(response, "ping")
            for delta in deltas:
                if left == 0:
                    return await self._break(response)
                if left is not None:
                    left -= 1
                if self._word == "slow":
                    await asyncio.sleep(self._pause)
                await self._event(response, "content_block_delta", index=index, delta=delta)
                if self._word == "cut_utf8" and "🥊" in delta.get("text", ""):
                    return await self._break(response)
                self._charge.written += _written(delta)
                self._upstream._notify()
            await self._event(response, "content_block_stop", index=index)
        return await self._end(response)

    async def _end(self, response: web.StreamResponse) -> web.StreamResponse:
        if self._word == "strange":
            await self._event(response, "weather_report", sky="blue")
        if self._word != "no_delta":
            usage = self._usage(self._charge.output)
            cumulative = {name: value for name, value in (usage or {}).items() if name not in _ONLY_AT_THE_START}
            facts = {"usage": cumulative} if usage else {}
            await self._event(response, "message_delta", delta={**self._stop, "container": None}, **facts)
        if self._word != "no_stop":
            await self._event(response, "message_stop")
        await response.write_eof()
        return response

    async def _break(self, response: web.StreamResponse) -> web.StreamResponse:
        if self._word == "hang_after":
            await self._hang()
        if self._word == "drop":
            self._drop()
        if self._word == "error_after":
            kind = self._argument.partition(" ")[2] or "api_error"
            told = {"type": kind, "message": {"overloaded_error": "Overloaded"}.get(kind, "It failed.")}
            await self._event(response, "error", error=told, request_id=self._request_id)
        await response.write_eof()
        return response

    async def _event(self, response: web.StreamResponse, kind: str, **facts: Any) -> None:
        raw = f"event: {kind}\ndata: {json.dumps({'type': kind, **facts}, ensure_ascii=False)}\n\n".encode()
        if self._word == "cut_utf8" and "🥊".encode() in raw:
            raw = raw[: raw.index("🥊".encode()) + 2]
        await response.write(raw)

    @property
    def _pause(self) -> float:
        return float(self._argument.partition(" ")[0])


_ONLY_AT_THE_START = frozenset({"cache_creation", "service_tier"})


def count_input(body: Mapping[str, Any]) -> int:
    """Count the input of a request (see the top of this file)."""
    system = body.get("system") or []
    system = [{"type": "text", "text": system}] if isinstance(system, str) else system
    said = [("system", block["text"]) for block in system]
    said += [(message["role"], _texts(message["content"])) for message in body["messages"]]
    blocks = [block for message in body["messages"] for block in _list(message["content"])]
    images = sum(_count_image(block["source"]) for block in blocks if block["type"] == "image")
    return 3 + sum(3 + count(role) + count(text) for role, text in said) + images


def _count_image(source: Mapping[str, Any]) -> int:
    try:
        with Image.open(BytesIO(base64.b64decode(source["data"]))) as image:
            width, height = image.size
    except (KeyError, OSError):  # linked, or no image
        return 4784
    for edge in range(min(2576, max(width, height)), 0, -1):
        scale = edge / max(width, height)
        tokens = ceil(max(1, round(width * scale)) / 28) * ceil(max(1, round(height * scale)) / 28)
        if tokens <= 4784:
            return tokens
    return 1


def _texts(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(block["text"] for block in content if "text" in block)


def _written(delta: Mapping[str, Any]) -> list[str]:
    """Return what of a delta is billed."""
    return [delta[name] for name in ("text", "thinking", "partial_json") if name in delta]


def _joined(block: dict[str, Any], deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a block as a plain answer has it."""
    whole = dict(block)
    for name in ("text", "thinking", "signature", "light"):
        if name in block:
            whole[name] = "".join(delta.get(name, "") for delta in deltas)
    if "input" in block:
        raw = "".join(delta["partial_json"] for delta in deltas)
        whole["input"] = json.loads(raw) if _is_object(raw) else {}
    return whole


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _forced(body: Mapping[str, Any]) -> str | None:
    choice = body.get("tool_choice") or {}
    return {"tool": choice.get("name"), "any": (body.get("tools") or [{}])[0].get("name")}.get(str(choice.get("type")))


# what the API turns down


class _Invalid(Exception):
    """A request that the API turns down; ``str()`` is what it says."""


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "max_tokens": int,
    "messages": list,
    "system": (str, list),
    "tools": list,
    "tool_choice": dict,
    "stop_sequences": list,
    "metadata": dict,
    "cache_control": dict,
    "stream": bool,
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": int,
    "thinking": dict,
    "output_config": dict,
    "service_tier": str,
}
_BLOCKS = {
    "text": {"type", "text", "cache_control", "citations"},
    "image": {"type", "source", "cache_control", "transformations"},
    "tool_use": {"type", "id", "name", "input", "cache_control", "caller"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
    "thinking": {"type", "thinking", "signature"},
}
_SOURCES = {"base64": {"type", "media_type", "data"}, "url": {"type", "url"}}
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def _check(body: dict[str, Any], version: str | None, *, newer: bool) -> None:
    _demand(version in VERSIONS, f"anthropic-version: {version!r} is not a valid version")
    for name, value in body.items():
        known = name in _FIELDS and not (version == VERSIONS[1] and name in SAMPLING)
        _demand(known, f"{name}: Extra inputs are not permitted")
        right = isinstance(value, _FIELDS[name]) and (isinstance(value, bool) == (_FIELDS[name] is bool))
        _demand(right, f"{name}: Input should be of another type")
    for name in ("model", "max_tokens", "messages"):
        _demand(name in body, f"{name}: Field required")
    _demand(body["max_tokens"] >= 1, "max_tokens: Input should be greater than or equal to 1")
    for name in SAMPLING:
        _demand(not (newer and name in body), f"`{name}` is deprecated for this model.")
    _demand(not {"temperature", "top_p"} <= set(body), "`temperature` and `top_p` cannot both be specified.")
    _demand(0 <= body.get("temperature", 1) <= 1, "temperature: range: 0..1")
    for stop in body.get("stop_sequences", ()):
        _demand(stop.strip(), "stop_sequences: each stop sequence must contain non-whitespace")
    _demand(set(body.get("metadata", ())) <= {"user_id"}, "metadata: Extra inputs are not permitted")
    _check_tools(body, newer=newer)
    system = body.get("system", [])
    for index, block in enumerate(system if isinstance(system, list) else ()):
        _demand(block.get("type") == "text", f"system.{index}: Input should be 'text'")
        _check_block(block, f"system.{index}")
    _check_messages(body["messages"])


def _check_tools(body: dict[str, Any], *, newer: bool) -> None:
    names = []
    for index, tool in enumerate(body.get("tools", ())):
        at = f"tools.{index}.custom"
        known = {"name", "description", "input_schema", "cache_control", "type", "strict"}
        _demand(set(tool) <= known, f"{at}: Extra inputs are not permitted")
        _demand(re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", tool.get("name", "")), f"{at}.name: String should match pattern")
        schema = tool.get("input_schema")
        _demand(isinstance(schema, dict), f"{at}.input_schema: Field required")
        _demand(schema.get("type") == "object", f"{at}.input_schema.type: Input should be 'object'")
        names.append(tool["name"])
    _demand(len(names) == len(set(names)), "tools: Tool names must be unique.")
    choice = body.get("tool_choice")
    if choice is None:
        return
    _demand(names, "tool_choice: may only be specified while providing tools.")
    kind = str(choice.get("type"))
    _demand(kind in {"auto", "any", "tool", "none"}, f"tool_choice: Input tag {kind!r} does not match")
    forced = kind in {"any", "tool"}
    _demand(not (newer and forced), 'tool_choice: type "tool" and "any" are not supported for this model.')
    allowed = {"type"} | ({"name"} if kind == "tool" else set())
    allowed |= set() if kind == "none" else {"disable_parallel_tool_use"}
    _demand(set(choice) <= allowed, "tool_choice: Extra inputs are not permitted")
    _demand(kind != "tool" or choice.get("name") in names, f"tool_choice: Tool {choice.get('name')!r} not found")


def _check_messages(messages: list[Any]) -> None:
    _demand(messages, "messages: at least one message is required")
    for index, message in enumerate(messages):
        at = f"messages.{index}"
        _demand(set(message) == {"role", "content"}, f"{at}: Extra inputs are not permitted")
        _demand(message["role"] in {"user", "assistant"}, f"{at}.role: Input should be 'user' or 'assistant'")
        _demand(message["content"], f"{at}: all messages must have non-empty content")
        seen_other = False
        for number, block in enumerate(_list(message["content"])):
            _check_block(block, f"{at}.content.{number}")
            kind = block["type"]
            of_user, of_assistant = {"tool_result", "image"}, {"tool_use", "thinking"}
            wrong = of_user if message["role"] == "assistant" else of_assistant
            _demand(kind not in wrong, f"{at}.content.{number}: {kind} blocks can't stand here")
            _demand(kind != "tool_result" or not seen_other, f"{at}: tool_result blocks must come first")
            seen_other = seen_other or kind != "tool_result"
    for before, after in pairwise(messages):
        _demand(before["role"] != after["role"], "messages: roles must alternate")
    for index, message in enumerate(messages):
        before = messages[index - 1] if index else {"content": []}
        after = messages[index + 1] if index + 1 < len(messages) else {"content": []}
        results = _ids(message, "tool_result", "tool_use_id")
        unknown = results - _ids(before, "tool_use", "id")
        _demand(not unknown, f"messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks")
        unanswered = _ids(message, "tool_use", "id") - _ids(after, "tool_result", "tool_use_id")
        _demand(not unanswered, f"messages.{index}: `tool_use` ids were found without `tool_result` blocks after")


def _check_block(block: dict[str, Any], at: str) -> None:
    kind = block.get("type")
    _demand(kind in _BLOCKS, f"{at}: Input tag {kind!r} does not match any of the expected tags")
    _demand(set(block) <= _BLOCKS[str(kind)], f"{at}.{kind}: Extra inputs are not permitted")
    if kind == "text":
        _demand(
            isinstance(block["text"], str) and block["text"].strip(), f"{at}: text content blocks must be non-empty"
        )
    if kind == "tool_use":
        _demand(re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"]), f"{at}.tool_use.id: String should match pattern")
        _demand(isinstance(block["input"], dict), f"{at}.tool_use.input: Input should be a valid dictionary")
    if kind == "tool_result":
        for number, inner in enumerate(_list(block.get("content", []))):
            _demand(inner["type"] in {"text", "image"}, f"{at}.content.{number}: Input tag does not match")
            _check_block(inner, f"{at}.content.{number}")
    if kind == "image":
        source = block["source"]
        _demand(
            set(source) == _SOURCES.get(str(source.get("type"))), f"{at}.image.source: Extra inputs are not permitted"
        )
        if source["type"] == "base64":
            _demand(source["media_type"] in _IMAGES, f"{at}.image.source.base64.media_type: Input should be an image's")
            try:
                base64.b64decode(source["data"], validate=True)
            except binascii.Error:
                _demand(False, f"{at}.image.source.base64: invalid base64 data")  # noqa: FBT003
        else:
            _demand(source["url"].startswith("https://"), f"{at}.image.source.url: Only HTTPS URLs are supported.")


def _ids(message: Mapping[str, Any], kind: str, name: str) -> set[str]:
    return {block[name] for block in _list(message["content"]) if block["type"] == kind}


def _list(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _demand(condition: object, otherwise: str) -> None:
    if not condition:
        raise _Invalid(otherwise)
