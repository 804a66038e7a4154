"""An owner's own check, as a function."""

from __future__ import annotations

import importlib
import inspect
import logging
from typing import TYPE_CHECKING, Any

from tracerouter.errors import ConfigError, place
from tracerouter.types import Check, Failure, Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tracerouter.types import Completion, Task

    Found = None | str | Failure | Iterable[str | Failure]
    """Nothing, or what is wrong: a sentence, or a Failure with a path and a code of its own in ``detail``."""
    Function = Callable[[Task, Completion], Found | Awaitable[Found]]

_log = logging.getLogger(__name__)


class Custom:
    """A function as a validator: it returns None where all is well, else what is wrong.

    Its failures stand under the reason ``check_failed``, their own code in ``detail``. One that raises counts as
    failed: what could not be checked is not good.

    Args:
        name: As spans and metrics call it.
        function: Takes the Task and the Completion; may be async.
    """

    reads_text = True

    def __init__(self, name: str, function: Function) -> None:
        self.name = name
        self._function = function

    async def validate(self, task: Task, completion: Completion) -> Check:
        """Call the function."""
        try:
            found: Any = self._function(task, completion)
            if inspect.isawaitable(found):
                found = await found
            wrong = _each(found)  # here, since a generator may raise as well
            failures = tuple(self._failure(one) for one in wrong)
        except Exception as error:  # noqa: BLE001 - whatever an owner's function raises
            return broken(self.name, error)
        return Check(self.name, "failed" if failures else "passed", failures)

    def _failure(self, found: str | Failure) -> Failure:
        if isinstance(found, Failure):
            return Failure(Reason.CHECK_FAILED, found.message, found.path, found.detail or self.name)
        return Failure(Reason.CHECK_FAILED, str(found), detail=self.name)


def _each(found: Found) -> list[str | Failure]:
    if found is None or isinstance(found, str | Failure):
        found = (found,) if found else ()
    return [one for one in found if one]


def broken(name: str, error: Exception) -> Check:
    """Judge by a check that raised: what could not be checked is not good. The log says where it raised."""
    _log.warning("validator %s raised %s", name, place(error))
    failure = Failure(Reason.CHECK_FAILED, "the check itself failed", detail="validator_error")
    return Check(name, "failed", (failure,))


def imported(dotted: str) -> Any:
    """Import ``package.module:name``.

    Raises:
        ConfigError: It can't be imported.
    """
    module, _, name = dotted.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001 - whatever an owner's module raises while it is imported
        msg = f"validate: {dotted!r} can't be imported ({error}); it should be package.module:name"
        raise ConfigError(msg) from None


def load(dotted: str) -> Function:
    """Import ``package.module:function``.

    Raises:
        ConfigError: It can't be imported, or is no function.
    """
    found = imported(dotted)
    if not callable(found):
        msg = f"validate: {dotted!r} is no function of (task, completion)"
        raise ConfigError(msg)
    function: Function = found
    return function
