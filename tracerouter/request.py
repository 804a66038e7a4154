"""The shape of an OpenAI request, checked by hand: it stands on the hot path, and its errors name the field."""

from __future__ import annotations

from typing import Any

from tracerouter.errors import BadRequest

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def checked(body: object) -> dict[str, Any]:
    """Return `body` if it has the shape of an OpenAI chat request, as far as it matters here.

    Raises:
        BadRequest: Names the field that is wrong.
    """
    if not isinstance(body, dict):
        msg = f"the request must be a JSON object, not {_kind(body)}"
        raise BadRequest(msg)
    _check_messages(body.get("messages"))
    for name, kind, low, high in _NUMBERS:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            limit = f"at least {low}" if high == _ANY else f"from {low} to {high}"
            msg = f"`{name}` must be {what} {limit}, not {_shown(value)}"
            raise BadRequest(msg, name)
    for name, shape in (
        ("model", str),
        ("stream", bool),
        ("tools", list),
        ("response_format", dict),
        ("stream_options", dict),
    ):
        value = body.get(name)
        if value is not None and not isinstance(value, shape):
            msg = f"`{name}` must be {_SHAPES[shape]}, not {_kind(value)}"
            raise BadRequest(msg, name)
    _check_tools(body.get("tools") or [])
    _check_response_format(body.get("response_format"))
    return body


def checked_embeddings(body: object) -> dict[str, Any]:
    """Return `body` if it has the shape of an OpenAI request for embeddings, as far as it matters here.

    Raises:
        BadRequest: Names the field that is wrong.
    """
    if not isinstance(body, dict):
        msg = f"the request must be a JSON object, not {_kind(body)}"
        raise BadRequest(msg)
    model, given = body.get("model"), body.get("input")
    if not isinstance(model, str) or not model:
        msg = f"`model` must name a model, not be {_shown(model)}"
        raise BadRequest(msg, "model")
    inputs = given if isinstance(given, list) and not _is_tokens(given) else [given]
    if not inputs or not all((isinstance(one, str) and one) or _is_tokens(one) for one in inputs):
        msg = "`input` must be a text, a list of tokens, or a list of such; none may be empty"
        raise BadRequest(msg, "input")
    return body


def _is_tokens(found: object) -> bool:
    return isinstance(found, list) and bool(found) and all(type(one) is int for one in found)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else _kind(messages)
        msg = f"`messages` must be a list of at least one message, not {found}"
        raise BadRequest(msg, "messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            msg = f"`{where}` must be an object with `role` and `content`, not {_kind(message)}"
            raise BadRequest(msg, where)
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            known = ", ".join(sorted(_ROLES))
            msg = f"`{where}.role` must be one of {known}, not {_shown(role)}"
            raise BadRequest(msg, f"{where}.role")
        calls = message.get("tool_calls")
        if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
            msg = f"`{where}.tool_calls` must be a list of objects, not {_kind(calls)}"
            raise BadRequest(msg, f"{where}.tool_calls")
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            continue
        if isinstance(content, str) or (content is None and role == "assistant"):
            continue
        msg = f"`{where}.content` must be a string or a list of parts, not {_kind(content)}"
        raise BadRequest(msg, f"{where}.content")


def _check_tools(tools: list[Any]) -> None:
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, dict) or not isinstance(tool.get("function") or {}, dict):
            msg = f"`{where}` must be an object with `type` and `function`, not {_shown(tool)}"
            raise BadRequest(msg, where)
        parameters = (tool.get("function") or {}).get("parameters")
        if not isinstance(parameters or {}, dict):
            msg = f"`{where}.function.parameters` must be a JSON Schema, not {_kind(parameters)}"
            raise BadRequest(msg, f"{where}.function.parameters")


def _check_response_format(wanted: dict[str, Any] | None) -> None:
    if wanted is None:
        return
    kinds = ("text", "json_object", "json_schema")
    if wanted.get("type") not in kinds:
        msg = f"`response_format.type` must be one of {', '.join(kinds)}, not {_shown(wanted.get('type'))}"
        raise BadRequest(msg, "response_format.type")
    if wanted["type"] == "json_schema":
        named = wanted.get("json_schema")
        if not isinstance(named, dict) or not isinstance(named.get("schema", {}), dict):
            msg = "`response_format.json_schema` must be an object with `name` and `schema`"
            raise BadRequest(msg, "response_format.json_schema")


_SHOWN = 40
_ANY = float("inf")
_NUMBERS: tuple[tuple[str, Any, float, float], ...] = (
    ("max_tokens", int, 1, _ANY),
    ("max_completion_tokens", int, 1, _ANY),
    ("n", int, 1, 128),
    ("temperature", (int, float), 0, 2),
    ("top_p", (int, float), 0, 1),
)
_SHAPES: dict[type, str] = {str: "a string", bool: "true or false", list: "a list", dict: "an object"}


def _kind(value: object) -> str:
    names = {type(None): "null", int: "a number", float: "a number", **_SHAPES}
    return names.get(type(value), type(value).__name__)


def _shown(value: object) -> str:
    """Return a short form of a value for an error message; long ones may hold a prompt."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
