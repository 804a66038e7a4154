"""What a validator is here, and how several judge one answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from tracerouter.protocols import Validator as Judge
from tracerouter.types import Completion, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tracerouter.types import Check, Task


class Validator(Judge, Protocol):
    """A :class:`tracerouter.protocols.Validator` that says of itself what it needs."""

    @property
    def name(self) -> str:
        """As the policy and the metrics call it."""
        ...

    @property
    def reads_text(self) -> bool:
        """Whether it must see the whole answer before any of it may go to the caller."""
        ...


async def judge(
    validators: Iterable[Validator],
    task: Task,
    completion: Completion,
    told: Callable[[Check, float], None] = lambda _check, _seconds: None,
) -> tuple[Verdict, Completion]:
    """Ask all validators in order; what one repairs is what the next ones see, and what the caller gets.

    All are asked, also after a failure, so that whoever repairs the answer knows all that is wrong with it. Of several
    choices (``n``) each is judged by itself. `told` is given each check when it is done, and how many seconds it took.
    """
    judged = [await _judge_one(validators, task, one, told) for one in completion.each]
    if len(judged) == 1:
        return judged[0]
    choices = [one.body["choices"][0] for _, one in judged]
    checks = tuple(check for verdict, _ in judged for check in verdict.checks)
    return Verdict(checks), Completion({**completion.body, "choices": choices})


async def _judge_one(
    validators: Iterable[Validator], task: Task, completion: Completion, told: Callable[[Check, float], None]
) -> tuple[Verdict, Completion]:
    checks = []
    for validator in validators:
        began = time.perf_counter()
        check = await validator.validate(task, completion)
        told(check, time.perf_counter() - began)
        checks.append(check)
        if check.repaired is not None:
            completion = check.repaired
    return Verdict(tuple(checks)), completion
