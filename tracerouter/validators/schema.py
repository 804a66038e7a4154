"""Whether an answer, or what it gives to tools, is JSON of the right shape; an almost-JSON answer is repaired."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, get_origin

import json_repair
import jsonschema_rs
import orjson
from cachebox import LRUCache
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from tracerouter.errors import BadRequest, ConfigError
from tracerouter.types import Check, Failure, Reason
from tracerouter.validators.custom import broken, imported
from tracerouter.validators.prose import MOST_FAILURES, only_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tracerouter.types import Completion, Task

SCHEMA_PARAM: Final = "response_format.json_schema.schema"
_LONGEST_MESSAGE: Final = 200

_LONGEST_REPAIR: Final = 4_000
"""Characters that json-repair is given, at most: its time grows with their square, 0.2 s here at worst."""
_FENCED: Final = re.compile(r"```\w*\s*(.+?)\s*(?:```|$)", re.DOTALL)

_compiled: Final[LRUCache[bytes, jsonschema_rs.Validator]] = LRUCache(500)
_AN_OBJECT: Final = jsonschema_rs.validator_for({"type": "object"})


class JsonSchema:
    """The answer must be JSON that a schema accepts.

    Args:
        schema: A JSON Schema. None: there is none, and every answer is ``skipped``.
        param: The field that a wrong schema is blamed on.

    Raises:
        BadRequest: It is no schema, or has a ``$ref`` that leaves it.
    """

    name = "json_schema"
    reads_text = True

    def __init__(self, schema: Mapping[str, Any] | None, *, param: str = SCHEMA_PARAM) -> None:
        self._validator = None if schema is None else _compile(schema, param)

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Parse the answer, repair it if that helps, and check it."""
        if self._validator is None or only_calls(completion):
            return Check(self.name, "skipped")
        return _checked(self.name, completion, partial(_failures, self._validator))


class JsonObject:
    """The answer must be a JSON object, whatever is in it."""

    name = "json_schema"
    reads_text = True

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Parse the answer, repair it if that helps."""
        if only_calls(completion):
            return Check(self.name, "skipped")
        return _checked(self.name, completion, partial(_failures, _AN_OBJECT))


class ToolArguments:
    """What the answer gives to tools must be a JSON object, and fit the tool's ``parameters`` where that is asked.

    No arguments at all count as an empty object. An answer that was cut off at the limit on its tokens is ``skipped``:
    its finish reason says so, and ``truncated`` turns it down.

    Args:
        tools: The caller's.
        every: Whether all must fit their parameters, or only those that the caller marks as ``strict``.

    Raises:
        BadRequest: The parameters of a tool that must fit them are no schema.
    """

    name = "tool_arguments"
    reads_text = True

    def __init__(self, tools: Sequence[Mapping[str, Any]], *, every: bool) -> None:
        self._shapes: dict[str, jsonschema_rs.Validator] = {}
        for index, tool in enumerate(tools):
            function = tool.get("function") or {}
            parameters = function.get("parameters")
            if parameters is not None and (every or function.get("strict")):
                self._shapes[str(function.get("name"))] = _compile(parameters, f"tools[{index}].function.parameters")

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Parse the arguments of each call, and check them."""
        if not completion.tool_calls or "length" in completion.finish_reasons:
            return Check(self.name, "skipped")
        found = (self._failures(call, index) for index, call in enumerate(completion.tool_calls))
        failures = tuple(islice(chain.from_iterable(found), MOST_FAILURES))
        return Check(self.name, "failed" if failures else "passed", failures)

    def _failures(self, call: Mapping[str, Any], index: int) -> Iterator[Failure]:
        function, where = call.get("function"), ("tool_calls", index, "function", "arguments")
        if function is None:  # a custom tool's input is free text
            return
        try:
            found = orjson.loads(function.get("arguments") or "{}")
        except orjson.JSONDecodeError:
            yield _failure(Reason.SCHEMA_INVALID, "the arguments are no JSON", where, "not_json")
            return
        shape = self._shapes.get(str(function.get("name")), _AN_OBJECT)
        yield from _failures(shape, found, where)


class PydanticModel:
    """The answer must be JSON that a pydantic model takes; what the model would coerce is left as it is.

    Its failures stand under ``check_failed`` with pydantic's own code (``missing``, ``int_parsing``).

    Args:
        dotted: ``package.module:Model``; any type will do that pydantic can validate.

    Raises:
        ConfigError: It can't be imported, or is none.
    """

    name = "pydantic"
    reads_text = True

    def __init__(self, dotted: str) -> None:
        found = imported(dotted)
        msg = f"validate: {dotted!r} is no pydantic model"
        if not isinstance(found, type) and get_origin(found) is None:  # pydantic would call a function
            raise ConfigError(msg)
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(found)
        except PydanticUserError:
            raise ConfigError(msg) from None

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Parse the answer, repair it if that helps, and validate it."""
        if only_calls(completion):
            return Check(self.name, "skipped")
        try:
            return _checked(self.name, completion, self._failures)
        except Exception as error:  # noqa: BLE001 - whatever a model's own validators raise
            return broken(self.name, error)

    def _failures(self, found: Any) -> Iterator[Failure]:
        try:
            self._adapter.validate_json(orjson.dumps(found))
        except ValidationError as error:
            for one in error.errors(include_url=False, include_context=False, include_input=False)[:MOST_FAILURES]:
                yield _failure(Reason.CHECK_FAILED, one["msg"], one["loc"], one["type"])


def _checked(name: str, completion: Completion, failures_of: Callable[[Any], Iterable[Failure]]) -> Check:
    text = completion.text
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _repaired(name, completion, failures_of)
    failures = tuple(failures_of(found))
    return Check(name, "failed" if failures else "passed", failures)


def _repaired(name: str, completion: Completion, failures_of: Callable[[Any], Iterable[Failure]]) -> Check:
    found = _mended(completion.text)
    if not isinstance(found, (dict, list)):
        code = Reason.SCHEMA_INVALID if name == JsonSchema.name else Reason.CHECK_FAILED
        return Check(name, "failed", (Failure(code, "the answer is no JSON", detail="not_json"),))
    failures = tuple(failures_of(found))
    if failures:
        return Check(name, "failed", failures)
    return Check(name, "repaired", repaired=completion.with_text(orjson.dumps(found).decode()))


def _mended(text: str) -> Any:
    """Return the object or list that `text` was meant to be, or None."""
    fenced = _FENCED.search(text)
    inner = fenced[1] if fenced else text
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(inner)
    if len(inner) > _LONGEST_REPAIR:
        return None
    try:
        found = json_repair.loads(inner)
        orjson.dumps(found)
    except (RecursionError, ValueError, TypeError):
        return None
    if isinstance(found, list) and not inner.lstrip().startswith("["):
        return None  # prose with an aside [like this] is no list
    return found


def _failures(validator: jsonschema_rs.Validator, found: Any, where: Iterable[str | int] = ()) -> Iterator[Failure]:
    for error in islice(validator.iter_errors(found), MOST_FAILURES):
        yield _failure(Reason.SCHEMA_INVALID, error.message, (*where, *error.instance_path), error.kind.name)


def _failure(code: Reason, message: str, where: Iterable[str | int], detail: str) -> Failure:
    path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[: _LONGEST_MESSAGE - 3]}..."
    return Failure(code, message, path[:_LONGEST_MESSAGE], detail)


def _compile(schema: Mapping[str, Any], param: str) -> jsonschema_rs.Validator:
    try:
        key = blake2b(orjson.dumps(schema, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
    except TypeError as error:
        msg = f"`{param}` is no JSON Schema: {error}"
        raise BadRequest(msg, param) from None
    known = _compiled.get(key)
    if known is not None:
        return known
    for reference in _references(schema):
        if not reference.startswith("#"):
            msg = f"`{param}` refers to {reference[:100]!r}; only references within the schema (#…) are followed"
            raise BadRequest(msg, param)
    try:
        made = jsonschema_rs.validator_for(dict(schema), offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        told = getattr(error, "message", str(error)).splitlines()[0]
        msg = f"`{param}` is no JSON Schema: {told[:_LONGEST_MESSAGE]}"
        raise BadRequest(msg, param) from None
    _compiled.insert(key, made)
    return made


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            if name in {"$ref", "$dynamicRef", "$recursiveRef"} and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)
