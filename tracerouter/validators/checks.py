"""Which validators look at an answer: those that the caller's format and tools ask for, and the policy's."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from tracerouter.errors import BadRequest, ConfigError, nearest
from tracerouter.types import Wanted
from tracerouter.validators.arithmetic import Arithmetic
from tracerouter.validators.citations import Citations
from tracerouter.validators.custom import Custom, load
from tracerouter.validators.form import Forbids, Length, Matches
from tracerouter.validators.language import Language
from tracerouter.validators.schema import JsonObject, JsonSchema, PydanticModel, ToolArguments
from tracerouter.validators.text import Empty, Refusal, Truncated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tracerouter.types import Rules, Task
    from tracerouter.validators.judge import Validator

JSON_SCHEMA: Final = JsonSchema.name
TOOL_ARGUMENTS: Final = ToolArguments.name
_SIMPLE: Final[dict[str, Validator]] = {
    one.name: one for one in (Empty(), Truncated(), Refusal(), Citations(), Arithmetic())
}
BUILT_IN: Final = (JSON_SCHEMA, TOOL_ARGUMENTS, *_SIMPLE)
_KINDS: Final[dict[str, Callable[..., Validator]]] = {
    kind.name: kind for kind in (PydanticModel, Language, Length, Matches, Forbids, Citations)
}
"""Those that are made with arguments; the policy file's ``ValidatorOf`` has a key for each."""
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class Checks:
    """Makes the validators of a request.

    Args:
        named: The names that a policy uses: built-in ones, with arguments or without, or ``package.module:function`` of
            an owner's own.
        schemas: The policy's JSON Schemas, by the place where each is named.

    Raises:
        ConfigError: A name is neither, an argument can't be used, or a schema is none.
    """

    def __init__(
        self, named: Iterable[str | Wanted] = BUILT_IN, schemas: Mapping[str, Mapping[str, Any]] = _NONE
    ) -> None:
        for where, schema in schemas.items():
            try:
                JsonSchema(schema, param=where)
            except BadRequest as error:
                raise ConfigError(error.message) from None
        self._known: dict[str | Wanted, Validator] = dict(_SIMPLE.items())
        for name in named:
            if isinstance(name, Wanted):
                self._known[name] = _KINDS[name.validator](*name.args)
            elif ":" in name:
                self._known[name] = Custom(name, load(name))
            elif name in _KINDS and name not in BUILT_IN:
                msg = f"validate: {name!r} needs an argument, as in `{{{name}: …}}`"
                raise ConfigError(msg)
            elif name not in BUILT_IN:
                known = f"{', '.join([*BUILT_IN, *_KINDS])}, or package.module:function"
                msg = f"validate: {name!r} is no validator{nearest(name, [*BUILT_IN, *_KINDS])}; known are {known}"
                raise ConfigError(msg)

    def of(self, task: Task, rules: Rules, *, streamed: bool = False) -> Sequence[Validator]:
        """Return the validators of one request, in the policy's order.

        Where the caller gives tools, what an answer gives to them is checked last, whatever the policy says; but an
        answer that is `streamed` as it comes is not held back for that.

        Raises:
            BadRequest: A schema of the caller's is none.
        """
        asked: list[Validator] = []
        if task.schema is not None:
            asked.append(JsonSchema(task.schema))
        elif task.wants_json:
            asked.append(JsonObject())
        for name in rules.validate:
            if name == TOOL_ARGUMENTS:
                if task.tools:
                    asked.append(ToolArguments(task.tools, every=True))
            elif name != JSON_SCHEMA:
                asked.append(self._known[name])
            elif task.schema is None:
                asked.append(JsonSchema(rules.schema))
        held_back = not streamed or any(one.reads_text for one in asked)
        if task.tools and held_back and TOOL_ARGUMENTS not in rules.validate:
            asked.append(ToolArguments(task.tools, every=False))
        return asked
