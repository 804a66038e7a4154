"""Anthropic's Messages API as an application speaks it: a chat request is made of its request, a message of the answer.

==============================  ================================================================================
Messages                        OpenAI
==============================  ================================================================================
``system``                      one system message
user messages                   tool messages for the results, which come first; a user message for the rest
assistant messages              text, then ``tool_calls``
``image`` block                 ``image_url``: base64 as ``data:``, else its URL
``tools``, ``tool_choice``      functions, and auto, required, none or a function
``disable_parallel_tool_use``   ``parallel_tool_calls``
``output_config.format``        ``json_schema``
``metadata.user_id``            ``user``
``cache_control``               as it is, on text, images and tools and on the whole; on calls and results it is left
                                out, which changes no answer
``max_tokens``, ``model``,
``stream``, ``temperature``,
``top_p``                       the same
==============================  ================================================================================

All else would be lost, and with it a part of the question or of the answer that the application counts on: thinking,
documents, citations, ``top_k``, ``stop_sequences`` (which of them ended an answer can't be told), a prefilled answer,
results that are errors. Such a request is a BadRequest here, so that it goes out as the application made it. The way
back stands in ``tracerouter.providers.messages``.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any, NoReturn

import orjson
from aiohttp import web

from tracerouter.errors import BadRequest
from tracerouter.providers.http import usage_of
from tracerouter.providers.messages import arguments, call_id
from tracerouter.types import Usage, content_text
from tracerouter.web import errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tracerouter.types import Completion, Outcome, Task

    Block = dict[str, Any]

_AS_THEY_ARE = ("model", "max_tokens", "stream", "temperature", "top_p", "cache_control")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_STOPS = {"length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use"}
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def chat_request(body: object) -> dict[str, Any]:
    """Make the OpenAI chat request that says the same as a request to the Messages API.

    Raises:
        BadRequest: It holds something that the table above has not.
    """
    found = _object(
        body, "the request", (*_AS_THEY_ARE, "messages", "system", "tools", "tool_choice", "metadata", "output_config")
    )
    asked = {name: found[name] for name in _AS_THEY_ARE if found.get(name) is not None}
    asked["messages"] = [*_system(found.get("system")), *_messages(found.get("messages"))]
    if found.get("tools"):
        asked["tools"] = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(_list(found["tools"], "tools"))]
    asked |= _tool_choice(found.get("tool_choice"))
    user = _object(found.get("metadata") or {}, "metadata", ("user_id",)).get("user_id")
    if user is not None:
        asked["user"] = _text_of(user, "metadata.user_id")
    shape = _object(found.get("output_config") or {}, "output_config", ("format",)).get("format")
    if shape is not None:
        wanted = _object(shape, "output_config.format", ("type", "schema"))
        _demand(wanted.get("type") == "json_schema", "output_config.format.type")
        named = {"name": "answer", "schema": _object(wanted.get("schema"), "output_config.format.schema")}
        asked["response_format"] = {"type": "json_schema", "json_schema": named}
    return asked


def plain(outcome: Outcome) -> web.Response:
    """Make a plain answer, or tell why there is none."""
    if outcome.completion is None:
        return refusal(errors.of_outcome(outcome), outcome.request_id, outcome.headers)
    content = [*_content(outcome.completion)]
    told = {**_message(outcome.completion.body, outcome.request_id), **_end(outcome.completion)}
    usage = {"usage": _usage(outcome.completion), "tracerouter": outcome.facts}
    body = orjson.dumps({**told, "content": content, **usage})
    return web.Response(body=body, headers=outcome.headers, content_type="application/json")


def refusal(problem: errors.Problem, request_id: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Make an error answer."""
    return errors.response(problem, request_id, headers, orjson.dumps(_error(problem, request_id)))


class MessageEvents:
    """Anthropic's events: a message that starts, its blocks, each with its parts, and how it ended."""

    def __init__(self, task: Task) -> None:
        self._id = task.request_id or ""
        self._started = False
        self._blocks = 0
        self._open: int | None = None
        self._texts = False
        """Whether the open block is one of text."""
        self._calls: dict[int, int] = {}
        """Blocks by the index of their tool call."""

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """Write what was added to the answer; only text and tool calls are told."""
        delta = chunk["choices"][0]["delta"]
        return b"".join([*self._start(chunk), *self._grow(delta)])

    def end(self, completion: Completion, outcome: Outcome) -> bytes:
        """Write why the answer ended, its usage, and the facts."""
        end, usage = _end(completion), _usage(completion)
        ended = _event("message_delta", delta=end, usage=usage, tracerouter=outcome.facts)
        return b"".join([*self._start(completion.body), *self._close(), ended, _event("message_stop")])

    def failure(self, problem: errors.Problem, facts: Mapping[str, Any]) -> bytes:
        """Write the error as an event."""
        return _event("error", **{**_error(problem, self._id), **facts})

    def _start(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        if not self._started:
            self._started = True
            unknown = {"input_tokens": 0, "output_tokens": 0}  # until the end, whose counts are whole
            message = {**_message(body, self._id), "content": [], "usage": unknown}
            yield _event("message_start", message={**message, "stop_reason": None, "stop_sequence": None})

    def _grow(self, delta: Mapping[str, Any]) -> Iterator[bytes]:
        text = content_text(delta.get("content"))
        if text:
            if not self._texts:
                yield from self._begin({"type": "text", "text": ""})
                self._texts = True
            yield self._delta(self._blocks - 1, "text_delta", text=text)
        for call in delta.get("tool_calls") or ():
            index, function = call.get("index", 0), call.get("function") or {}
            if index not in self._calls:
                yield from self._begin({**_called(call), "input": {}})
                self._calls[index] = self._blocks - 1
            if function.get("arguments"):
                yield self._delta(self._calls[index], "input_json_delta", partial_json=function["arguments"])

    def _begin(self, block: Block) -> Iterator[bytes]:
        yield from self._close()
        self._open = self._blocks
        self._blocks += 1
        yield _event("content_block_start", index=self._open, content_block=block)

    def _close(self) -> Iterator[bytes]:
        if self._open is not None:
            yield _event("content_block_stop", index=self._open)
        self._open, self._texts = None, False

    def _delta(self, index: int, kind: str, **facts: str) -> bytes:
        return _event("content_block_delta", index=index, delta={"type": kind, **facts})


def _event(kind: str, **facts: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, **facts}) + b"\n\n"


# the request


def _system(given: object) -> list[Block]:
    if not given:
        return []
    return [{"role": "system", "content": _joined([_part(one, "system", ("text",)) for one in _blocks(given)])}]


def _messages(given: object) -> Iterator[Block]:
    messages = _list(given, "messages")
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        found = _object(message, at, ("role", "content"))
        role, blocks = found.get("role"), _blocks(found.get("content"))
        _demand(role in {"user", "assistant"} and blocks, at)
        yield from (_of_user if role == "user" else _of_assistant)(blocks, at)
    if not messages or messages[-1]["role"] == "assistant":
        _lost("a prefilled answer")


def _of_user(blocks: list[Block], at: str) -> Iterator[Block]:
    results = [*takewhile(lambda block: block.get("type") == "tool_result", blocks)]
    for block in results:
        found = _object(block, at, ("type", "tool_use_id", "content", "is_error", "cache_control"))
        _demand(not found.get("is_error"), f"{at}: a result that is an error")
        parts = [_part(one, at, ("text",)) for one in _blocks(found.get("content") or "")]
        yield {"role": "tool", "tool_call_id": _text_of(found.get("tool_use_id"), at), "content": _joined(parts)}
    rest = blocks[len(results) :]
    if rest:
        yield {"role": "user", "content": _joined([_part(block, at, ("text", "image")) for block in rest])}


def _of_assistant(blocks: list[Block], at: str) -> Iterator[Block]:
    texts = [*takewhile(lambda block: block.get("type") == "text", blocks)]
    message: Block = {"role": "assistant", "content": None}
    if texts:
        message["content"] = _joined([_part(block, at, ("text",)) for block in texts])
    calls = []
    for block in blocks[len(texts) :]:
        found = _object(block, at, ("type", "id", "name", "input", "cache_control"))
        _demand(found.get("type") == "tool_use", at)
        given = orjson.dumps(_object(found.get("input"), at)).decode()
        function = {"name": _text_of(found.get("name"), at), "arguments": given}
        calls.append({"id": _text_of(found.get("id"), at), "type": "function", "function": function})
    yield {**message, "tool_calls": calls} if calls else message


def _part(block: Block, at: str, kinds: tuple[str, ...]) -> Block:
    kind = block.get("type")
    _demand(kind in kinds, at)
    cache = {"cache_control": block["cache_control"]} if block.get("cache_control") else {}
    if kind == "text":
        found = _object(block, at, ("type", "text", "cache_control"))
        return {"type": "text", "text": _text_of(found.get("text"), at), **cache}
    source = _object(_object(block, at, ("type", "source", "cache_control")).get("source"), at)
    if source.get("type") == "base64":
        url = f"data:{source.get('media_type')};base64,{_text_of(source.get('data'), at)}"
    else:
        _demand(source.get("type") == "url", f"{at}: an image by {source.get('type')}")
        url = _text_of(source.get("url"), at)
    return {"type": "image_url", "image_url": {"url": url}, **cache}


def _joined(parts: list[Block]) -> str | list[Block]:
    """Return the content that a message has: plain text where it is nothing else, which all servers take."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _tool(tool: object, at: str) -> Block:
    found = _object(tool, at, ("type", "name", "description", "input_schema", "strict", "cache_control"))
    _demand(found.get("type", "custom") == "custom", f"{at}.type")
    told = {
        "name": _text_of(found.get("name"), f"{at}.name"),
        "description": found.get("description"),
        "parameters": _object(found.get("input_schema"), f"{at}.input_schema"),
        "strict": found.get("strict"),
    }
    function = {name: value for name, value in told.items() if value is not None}
    cache = {"cache_control": found["cache_control"]} if found.get("cache_control") else {}
    return {"type": "function", "function": function, **cache}


def _tool_choice(given: object) -> Block:
    if given is None:
        return {}
    found = _object(given, "tool_choice", ("type", "name", "disable_parallel_tool_use"))
    alone = {"parallel_tool_calls": False} if found.get("disable_parallel_tool_use") else {}
    if found.get("type") == "tool":
        function = {"name": _text_of(found.get("name"), "tool_choice.name")}
        return {"tool_choice": {"type": "function", "function": function}, **alone}
    _demand(found.get("type") in _CHOICES, "tool_choice.type")
    return {"tool_choice": _CHOICES[found["type"]], **alone}


def _blocks(content: object) -> list[Block]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_object(block, "a block") for block in _list(content, "content")]


def _object(found: object, where: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return `found` if it is an object, with a value for none but the `known` names."""
    if not isinstance(found, dict):
        _lost(where)
    for name, value in found.items():
        if value is not None and known is not None and name not in known:
            _lost(f"`{str(name)[:40]}` of {where}")
    return found


def _list(found: object, where: str) -> list[Any]:
    if not isinstance(found, list):
        _lost(where)
    return found


def _text_of(found: object, where: str) -> str:
    if not isinstance(found, str):
        _lost(where)
    return found


def _demand(condition: object, where: str) -> None:
    if not condition:
        _lost(where)


def _lost(where: str) -> NoReturn:
    msg = f"{where} can't be said in a chat request"
    raise BadRequest(msg)


# the answer


def _message(body: Mapping[str, Any], request_id: str) -> Block:
    told = {"id": body.get("id") or f"msg_{request_id}", "model": body.get("model") or "tracerouter"}
    return {**told, "type": "message", "role": "assistant"}


def _content(completion: Completion) -> Iterator[Block]:
    if completion.text:
        yield {"type": "text", "text": completion.text}
    for call in completion.tool_calls:
        yield {**_called(call), "input": arguments(call["function"].get("arguments") or "{}")}


def _called(call: Mapping[str, Any]) -> Block:
    name = (call.get("function") or {}).get("name") or ""
    return {"type": "tool_use", "id": call_id(call.get("id") or f"toolu_{name}"), "name": name}


def _end(completion: Completion) -> Block:
    stop = _STOPS.get(completion.finish_reasons[0], "end_turn")
    end: Block = {"stop_reason": "refusal" if completion.refusal else stop, "stop_sequence": None}
    if end["stop_reason"] == "refusal":
        end["stop_details"] = {"type": "refusal", "category": None, "explanation": completion.refusal}
    return end


def _usage(completion: Completion) -> dict[str, int]:
    usage = usage_of(completion.body.get("usage")) or Usage()
    return {
        "input_tokens": usage.input - usage.cached - usage.cache_write,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
    }


def _error(problem: errors.Problem, request_id: str) -> dict[str, Any]:
    message = problem.message.replace("response_format.json_schema.schema", "output_config.format.schema")
    told = {"type": _KINDS.get(problem.status, "api_error"), "message": f"{message} (request id {request_id})"}
    facts = {} if problem.facts is None else {"tracerouter": problem.facts}
    return {"type": "error", "error": {**told, **(problem.more or {})}, "request_id": request_id, **facts}
