"""What a validator is here, and how several judge one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tracerouter.protocols import Validator as Judge
from tracerouter.types import Completion, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracerouter.types import Task


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


async def judge(validators: Iterable[Validator], task: Task, completion: Completion) -> tuple[Verdict, Completion]:
    """Ask all validators in order; what one repairs is what the next ones see, and what the caller gets.

    Of several choices (``n``) each is judged by itself.
    """
    judged = [await _judge_one(validators, task, one) for one in completion.each]
    if len(judged) == 1:
        return judged[0]
    choices = [one.body["choices"][0] for _, one in judged]
    checks = tuple(check for verdict, _ in judged for check in verdict.checks)
    return Verdict(checks), Completion({**completion.body, "choices": choices})


async def _judge_one(validators: Iterable[Validator], task: Task, completion: Completion) -> tuple[Verdict, Completion]:
    checks = []
    for validator in validators:
        check = await validator.validate(task, completion)
        checks.append(check)
        if check.repaired is not None:
            completion = check.repaired
    return Verdict(tuple(checks)), completion
