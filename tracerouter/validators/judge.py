"""What a validator is here, and how several judge one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tracerouter.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracerouter.types import Check, Completion, Task


class Validator(Protocol):
    """A :class:`tracerouter.protocols.Validator` that says of itself what it needs."""

    @property
    def name(self) -> str:
        """As the policy and the metrics call it."""
        ...

    @property
    def reads_text(self) -> bool:
        """Whether it must see the whole answer before any of it may go to the caller."""
        ...

    async def validate(self, task: Task, completion: Completion) -> Check:
        """Return what was found."""
        ...


async def judge(validators: Iterable[Validator], task: Task, completion: Completion) -> tuple[Verdict, Completion]:
    """Ask all validators in order; what one repairs is what the next ones see, and what the caller gets."""
    checks = []
    for validator in validators:
        check = await validator.validate(task, completion)
        checks.append(check)
        if check.repaired is not None:
            completion = check.repaired
    return Verdict(tuple(checks)), completion
