"""Reading a YAML file so that an error can name its line, what was found, and the nearest right name."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from tracerouter.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MARKED = re.compile("\ue000([A-Za-z0-9_]+)\ue001")
"""Stands for ``${NAME}`` while YAML is parsed, for which braces mean something else."""

_FOR_EVER = 1e9

_NEVER_SHOWN = frozenset({"api_key", "secret"})
_SHOWN = 60
"""Characters of a wrong value that an error shows."""

Model = TypeVar("Model", bound=BaseModel)


class Written(BaseModel):
    """A part of a file that a user writes: keys that are not known are errors that name the nearest one."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, found: Any) -> Any:
        if not isinstance(found, dict):
            msg = "found {found}, but a mapping of keys and values belongs here"
            raise PydanticCustomError("not_a_mapping", msg, {"found": repr(found)})
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in found:
            if key not in known:
                msg = "is not a key here{nearest}; known are {known}"
                told = {"key": str(key), "nearest": nearest(str(key), known), "known": ", ".join(known)}
                raise PydanticCustomError("unknown_key", msg, told)
        return found


def seconds(found: object) -> float:
    """Read a duration: a number of seconds, or a number with a unit (``500ms 20s 10m 1h 7d``)."""
    if isinstance(found, (int, float)) and not isinstance(found, bool) and 0 <= found < _FOR_EVER:
        return float(found)
    match = _DURATION.fullmatch(found.strip()) if isinstance(found, str) else None
    if match is None:
        msg = "found {found}, but a duration such as 500ms, 20s, 10m, 1h or 7d belongs here"
        raise PydanticCustomError("duration", msg, {"found": repr(found)})
    return float(match[1]) * _UNITS[match[2]]


def _not_yet(_: object) -> None:
    msg = "is known, but this version does not enforce it yet: remove it, so that nobody relies on it"
    raise PydanticCustomError("not_yet", msg)


Seconds = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str)]
"""A duration, in seconds once it is read."""

NotYet = Annotated[None, BeforeValidator(_not_yet)]
"""A key of the design that a later version enforces: an error now, not a silence."""


def read(path: Path, shape: type[Model], *, variables: bool | Container[str] = False) -> Model:
    """Read the YAML file at `path` as a `shape`.

    Args:
        path: The file.
        shape: A pydantic model.
        variables: Replace ``${NAME}`` by the environment's value; everywhere, or in these keys alone.

    Raises:
        ConfigError: Names file, line, key, what was found, and the nearest right name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"{path}: can't be read ({error.strerror})"
        raise ConfigError(msg) from None
    except UnicodeDecodeError as error:
        msg = f"{path}: is not UTF-8 (byte {error.start})"
        raise ConfigError(msg) from None
    data, written, lines = _parse(path, text, variables=variables)
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=True)
        told = (_sentence(path, written, lines, dict(problem)) for problem in problems)
        raise ConfigError("\n".join(told)) from None


def _parse(path: Path, text: str, *, variables: bool | Container[str]) -> tuple[Any, Any, dict[tuple[Any, ...], int]]:
    """Return what the file says, the same as it is written, and each key's line.

    Errors show what is written: the value of a variable may be a secret.
    """
    loader = yaml.SafeLoader(_VARIABLE.sub("\ue000\\1\ue001", text) if variables else text)
    lines: dict[tuple[Any, ...], int] = {}
    try:
        node = loader.get_single_node()
        written = None if node is None else _value(path, loader, node, (), lines, variables=False)
        data = _value(path, loader, node, (), lines, variables=variables) if variables and node is not None else written
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        msg = f"{path}:{line}: is no YAML: {error.problem}"
        raise ConfigError(msg) from None
    except (yaml.YAMLError, RecursionError) as error:
        msg = f"{path}: is no YAML: {type(error).__name__}"
        raise ConfigError(msg) from None
    finally:
        loader.dispose()
    return ({} if data is None else data), written, lines


def _value(  # noqa: PLR0913 - a recursion over nodes carries its surroundings
    path: Path,
    loader: yaml.SafeLoader,
    node: yaml.Node,
    where: tuple[Any, ...],
    lines: dict[tuple[Any, ...], int],
    *,
    variables: bool | Container[str],
) -> Any:
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                msg = f"{path}:{line}: the key {key!r} must be a string; put it in quotes"
                raise ConfigError(msg)
            key = _MARKED.sub(_named, key)
            if key in found:
                msg = f"{path}:{line}: {key!r} stands here a second time"
                raise ConfigError(msg)
            lines[(*where, key)] = line
            here = variables if isinstance(variables, bool) else key in variables
            found[key] = _value(path, loader, value_node, (*where, key), lines, variables=here)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [
            _value(path, loader, item, (*where, index), lines, variables=variables)
            for index, item in enumerate(node.value)
        ]
    value = loader.construct_object(node, deep=True)
    if not isinstance(value, str):
        return value
    line = node.start_mark.line + 1
    return _MARKED.sub((lambda match: _variable(path, line, match[1])) if variables else _named, value)


def _named(match: re.Match[str]) -> str:
    return f"${{{match[1]}}}"


def _variable(path: Path, line: int, name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        msg = f"{path}:{line}: the variable {name} is not set{nearest(name, os.environ)}"
        raise ConfigError(msg)
    return value


def _sentence(path: Path, written: Any, lines: dict[tuple[Any, ...], int], problem: dict[str, Any]) -> str:
    context = problem.get("ctx") or {}
    missing = [problem["loc"][-1]] if problem["type"] == "missing" else []
    where: tuple[Any, ...] = ()
    found = written
    for part in problem["loc"]:
        if (*where, part) in lines:  # pydantic adds a union's tag and the like: only what the file has counts
            where = (*where, part)
            found = found[part]
    if problem["loc"][-1:] == ("[key]",):
        found = problem["input"]
    what = _what(problem, context, "(not shown)" if _NEVER_SHOWN.intersection(map(str, where)) else _shown(found))
    if (*where, context.get("key")) in lines:
        where = (*where, context["key"])
    name = ".".join(str(part) for part in (*where, *missing))
    return f"{path}:{lines.get(where, 1)}: {name or 'the file'}: {what}"


_WHOLE_SENTENCES = frozenset(
    {"unknown_key", "not_a_mapping", "duration", "not_yet", "not_known", "twice", "pattern", "limit", "zone", "order"}
)
"""Errors of ours that say what was found."""


def _what(problem: dict[str, Any], context: dict[str, Any], found: str) -> str:
    kind, message = problem["type"], str(problem["msg"])
    if kind == "missing":
        return "is missing"
    if kind in _WHOLE_SENTENCES:
        return message.replace(str(context["found"]), found) if "found" in context else message
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"found {found}{nearest(str(problem['input']), known)}; known are {', '.join(known)}"
    return f"found {found}; {message if message[:2].isupper() else message[0].lower() + message[1:]}"


def _shown(found: Any) -> str:
    """Return a short form of a value of the file; a mapping may hold a key in plain text."""
    if isinstance(found, dict):
        return f"a mapping of {', '.join(found)}" if found else "an empty mapping"
    text = repr(found)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
