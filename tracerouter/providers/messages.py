"""An OpenAI chat request as Anthropic's Messages API takes it.

==============================  ================================================================================
OpenAI                          Messages
==============================  ================================================================================
system, developer               ``system``, in their order; instructions alone are the user's message
user, assistant, tool           ``messages``; those of one side that follow each other are one
``tool_calls``                  ``tool_use`` blocks; arguments that are no JSON object are wrapped in one
tool message                    ``tool_result`` block
``image_url``                   ``image`` block: ``data:`` as base64, anything else by its URL
``temperature``, ``top_p``      at most 1; with a temperature ``top_p`` is left out, as the API takes one of the two
``stop``                        ``stop_sequences``, without those of whitespace alone, which the API turns down
``user``, ``safety_identifier`` ``metadata.user_id``
``tool_choice``                 auto, none, required and a function: auto, none, any, tool
``parallel_tool_calls``         ``disable_parallel_tool_use``
``json_schema``                 one tool that must be called: its input is the answer. Where the caller has tools of its
                                own, the schema's root is no object, or the model turns down forced tools: an
                                instruction
``json_object``                 an instruction
``cache_control``               as it is, on text, images and tools and on the whole
==============================  ================================================================================

What the API does not know is left out. What can't be left out without changing the question, such as ``n`` above 1,
audio and files, is a RequestRejected before anything is sent, so that another model can answer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import orjson

from tracerouter.errors import RequestRejected

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    Block = dict[str, Any]

MAX_TOKENS = 16_384
"""The bound on an answer where neither caller nor policy says one: the API asks for it. Thinking counts towards it."""

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.DOTALL)
_NOT_IN_AN_ID = re.compile(r"[^a-zA-Z0-9_-]")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}
_JSON = "Reply with one JSON {} and nothing else: no code fence, no words around it."


class Translated(NamedTuple):
    """A request to the Messages API."""

    body: dict[str, Any]
    answer_tool: str | None = None
    """The tool that the model must call with its answer."""


def translated(body: Mapping[str, Any], turned_down: Collection[str] = ()) -> Translated:
    """Translate an OpenAI chat request.

    Args:
        body: Its ``model`` as Anthropic names it.
        turned_down: What the model does not take: ``temperature``, ``top_p``, or ``tool_choice`` for forced tools.

    Raises:
        RequestRejected: It asks for something that the API can't do.
    """
    if (body.get("n") or 1) != 1:
        _reject("n", "the model gives one answer a request")
    system, messages = _messages(body["messages"])
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.get("tools") or ())]
    choice = _tool_choice(body) if tools else None
    answer_tool = None
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        named = wanted["json_schema"]
        schema = named.get("schema") or {}
        if tools or schema.get("type") != "object" or "tool_choice" in turned_down:
            written = orjson.dumps(schema).decode()
            system.append(_text(f"{_JSON.format('value')} It must be valid against this JSON Schema:\n{written}"))
        else:
            name = named.get("name")
            answer_tool = name if isinstance(name, str) and _TOOL_NAME.fullmatch(name) else "answer"
            about = named.get("description") or "Takes your answer."
            tools = [{"name": answer_tool, "description": str(about), "input_schema": schema}]
            choice = {"type": "tool", "name": answer_tool, "disable_parallel_tool_use": True}
    elif wanted.get("type") == "json_object":
        system.append(_text(_JSON.format("object")))
    if not messages:
        system, messages = [], [{"role": "user", "content": system}]
    asked = {
        "model": body["model"],
        "max_tokens": body.get("max_completion_tokens") or body.get("max_tokens") or MAX_TOKENS,
        "messages": messages,
        "system": system,
        "tools": tools,
        "tool_choice": choice,
        "cache_control": body.get("cache_control"),
        "stop_sequences": _stops(body.get("stop")),
        "metadata": _metadata(body),
        **_sampling(body, turned_down),
    }
    return Translated({name: value for name, value in asked.items() if value not in (None, [])}, answer_tool)


def _messages(given: list[dict[str, Any]]) -> tuple[list[Block], list[dict[str, Any]]]:
    """Return the system prompt and the conversation."""
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(given):
        role, blocks = message["role"], list(_blocks(message, f"messages[{index}]"))
        side = role if role == "assistant" else "user"
        if role in {"system", "developer"}:
            system += blocks
        elif turns and turns[-1]["role"] == side:
            turns[-1]["content"] += blocks
        elif blocks:  # the API takes no empty message
            turns.append({"role": side, "content": blocks})
    return system, turns


def _blocks(message: Mapping[str, Any], where: str) -> Iterator[Block]:
    if message["role"] == "function" or message.get("function_call"):
        _reject(where, "function calls without an id are not known here; use `tool_calls`")
    parts = list(_parts(message.get("content"), f"{where}.content"))
    if message["role"] == "tool":
        result: Block = {"type": "tool_result", "tool_use_id": _id(message.get("tool_call_id"), where)}
        yield {**result, "content": parts} if parts else result
        return
    yield from parts
    if message.get("refusal"):
        yield _text(_string(message["refusal"], f"{where}.refusal"))
    for number, call in enumerate(message.get("tool_calls") or ()):
        at = f"{where}.tool_calls[{number}]"
        function = _object(call.get("function"), f"{at}.function")
        name = _string(function.get("name"), f"{at}.function.name")
        given = _string(function.get("arguments") or "{}", f"{at}.function.arguments")
        yield {"type": "tool_use", "id": _id(call.get("id"), at), "name": name, "input": arguments(given)}


def _parts(content: object, where: str) -> Iterator[Block]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for index, part in enumerate(parts if isinstance(parts, list) else ()):
        at = f"{where}[{index}]"
        cache = {"cache_control": part["cache_control"]} if part.get("cache_control") else {}
        match part.get("type"):
            case "text" | "refusal" as kind:
                text = _string(part.get(kind), f"{at}.{kind}")
                if text.strip():  # the API turns down blank ones
                    yield {**_text(text), **cache}
            case "image_url":
                image = part.get("image_url")
                url = image if isinstance(image, str) else _object(image, f"{at}.image_url").get("url")
                yield {"type": "image", "source": _source(_string(url, f"{at}.image_url.url"), at), **cache}
            case kind:
                _reject(f"{at}.type", f"parts of type {str(kind)[:40]!r} are not known here")


def _source(url: str, where: str) -> Block:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    found = _DATA_URL.fullmatch(url)
    if found is None:
        _reject(where, "a data: URL must be in base64 and name its media type")
    return {"type": "base64", "media_type": found[1], "data": found[2]}


def arguments(given: str) -> dict[str, Any]:
    """Return a tool call's arguments as the object that the API asks for; others are told as they were."""
    try:
        found = orjson.loads(given)
    except orjson.JSONDecodeError:
        found = given
    return found if isinstance(found, dict) else {"arguments": found}


def _tool(tool: object, where: str) -> Block:
    found = _object(tool, where)
    if found.get("type") != "function":
        _reject(f"{where}.type", "only functions are known here")
    function = _object(found.get("function"), f"{where}.function")
    parameters = _object(function.get("parameters") or {}, f"{where}.function.parameters")
    told = {
        "name": _string(function.get("name"), f"{where}.function.name"),
        "description": function.get("description"),
        "input_schema": {"type": "object", "properties": {}, **parameters},
        "cache_control": found.get("cache_control"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _tool_choice(body: Mapping[str, Any]) -> Block | None:
    asked, alone = body.get("tool_choice"), body.get("parallel_tool_calls") is False
    if asked is None and not alone:
        return None
    choice: Block
    if isinstance(asked, dict) and asked.get("type") == "function":
        function = _object(asked.get("function"), "tool_choice.function")
        choice = {"type": "tool", "name": _string(function.get("name"), "tool_choice.function.name")}
    elif asked is None or (isinstance(asked, str) and asked in _CHOICES):
        choice = {"type": _CHOICES[asked or "auto"]}
    else:
        _reject("tool_choice", f"only {', '.join(_CHOICES)} and a function are known here")
    return {**choice, "disable_parallel_tool_use": True} if alone and asked != "none" else choice


def _sampling(body: Mapping[str, Any], turned_down: Collection[str]) -> dict[str, float]:
    for name in ("temperature", "top_p"):
        if body.get(name) is not None:
            return {} if name in turned_down else {name: min(body[name], 1)}
    return {}


def _stops(asked: object) -> list[str]:
    found = [asked] if isinstance(asked, str) else asked or []
    if not isinstance(found, list):
        _reject("stop", "it must be a string or a list of strings")
    return [stop for stop in found if _string(stop, "stop").strip()]


def _metadata(body: Mapping[str, Any]) -> dict[str, str] | None:
    user = body.get("safety_identifier") or body.get("user")
    return {"user_id": _string(user, "user")} if user else None


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def call_id(found: str) -> str:
    """Return a tool call's id in the letters that the API takes; other providers use more of them."""
    return _NOT_IN_AN_ID.sub("_", found)


def _id(found: object, where: str) -> str:
    return call_id(_string(found, f"{where}.id"))


def _object(found: object, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        _reject(where, "it must be an object")
    return found


def _string(found: object, where: str) -> str:
    if not isinstance(found, str):
        _reject(where, "it must be a string")
    return found


def _reject(where: str, why: str) -> NoReturn:
    msg = f"`{where}` can't be sent to Anthropic: {why}"
    raise RequestRejected(msg, status=400)
