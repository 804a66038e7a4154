"""Whether an answer has the form that a policy asks for: its length, and regular expressions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import regex

from tracerouter.policy.patterns import TIME_LIMIT
from tracerouter.tokens import count
from tracerouter.types import Check
from tracerouter.validators.prose import only_calls, wrong

if TYPE_CHECKING:
    from tracerouter.types import Completion, Failure, Task


class Length:
    """The answer must not be shorter or longer.

    Args:
        least: In `unit`; None: any.
        most: In `unit`; None: any.
        unit: ``characters``, ``words`` (what white space parts) or ``tokens`` (tiktoken's, of the text alone).
    """

    name = "length"
    reads_text = True

    def __init__(self, least: int | None, most: int | None, unit: str) -> None:
        self._least, self._most, self._unit = least or 0, most, unit

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Count."""
        if only_calls(completion):
            return Check(self.name, "skipped")
        size = self._size(completion.text)
        if size < self._least:
            found = wrong("length_min", f"the answer has {size} {self._unit}; at least {self._least} are wanted")
        elif self._most is not None and size > self._most:
            found = wrong("length_max", f"the answer has {size} {self._unit}; at most {self._most} are wanted")
        else:
            return Check(self.name, "passed")
        return Check(self.name, "failed", (found,))

    def _size(self, text: str) -> int:
        if self._unit == "tokens":
            return count(text)
        return len(text.split()) if self._unit == "words" else len(text)


class Matches:
    """A regular expression must be found in the answer; one that takes too long counts as not found."""

    name = "matches"
    reads_text = True

    def __init__(self, pattern: str) -> None:
        self._pattern = regex.compile(pattern)

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Search, for :data:`TIME_LIMIT` at most."""
        if only_calls(completion):
            return Check(self.name, "skipped")
        try:
            found = self._pattern.search(completion.text, timeout=TIME_LIMIT)
            failure = self._judged(found)
        except TimeoutError:
            failure = wrong(f"{self.name}_timeout", f"{self._pattern.pattern!r} took too long to be tried")
        return Check(self.name, "failed", (failure,)) if failure else Check(self.name, "passed")

    def _judged(self, found: regex.Match[str] | None) -> Failure | None:
        return None if found else wrong(self.name, f"the answer must match {self._pattern.pattern!r}")


class Forbids(Matches):
    """A regular expression must not be found in the answer."""

    name = "forbids"

    def _judged(self, found: regex.Match[str] | None) -> Failure | None:
        return (
            wrong(self.name, f"the answer must not match {self._pattern.pattern!r}", *found.span()) if found else None
        )
