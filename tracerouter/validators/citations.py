"""Whether an answer cites sources, and only such as it was given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import regex

from tracerouter.policy.patterns import TIME_LIMIT
from tracerouter.types import Check, content_text
from tracerouter.validators.prose import MOST_FAILURES, only_calls, without_code, wrong

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tracerouter.types import Completion, Failure, Task

USUAL: Final = r"[\[【](\d{1,4}(?:\s?[,;–-]\s?\d{1,4})*)[\]】](?!\()"
"""[1], [2, 3], [4-6], 【7】; a link's text, [8](…), is none."""

_NUMBERS: Final = re.compile(r"\d{1,9}")
_RANGE: Final = re.compile(r"(\d{1,9})\s?[–-]\s?(\d{1,9})")
_LISTED: Final = re.compile(
    r"^[\s>*-]*(?:\[(\d{1,4})\]|【(\d{1,4})】"
    r"|(?:source|document|doc|passage|excerpt|reference|quelle)\s*#?\s*\[?(\d{1,4})\]?\s*[:.)–-])",
    re.IGNORECASE,
)
_HEADING: Final = re.compile(
    r"^\W*(?:sources?|documents?|passages?|excerpts?|references?|context|search results|quellen)\W*$", re.IGNORECASE
)
_ITEM: Final = re.compile(r"^\s*\(?(\d{1,4})[.):]\s")


class Citations:
    """The answer must cite a source; where the prompt numbers its sources, only numbers that it has.

    Sources are numbered by lines that begin with ``[1]`` or ``Source 1``, or with ``1.`` below a heading such as
    ``Sources:``, in any message but the assistant's.

    Args:
        pattern: How a citation looks. Digits in its first group (without groups: in all of it) are numbers of sources.
    """

    name = "citations"
    reads_text = True

    def __init__(self, pattern: str = USUAL) -> None:
        self._pattern = regex.compile(pattern)

    async def validate(self, task: Task, completion: Completion) -> Check:
        """Find the citations, and look each number up."""
        if only_calls(completion):
            return Check(self.name, "skipped")
        try:
            found = [*self._pattern.finditer(without_code(completion.text), timeout=TIME_LIMIT)]
        except TimeoutError:
            failure = wrong("citations_timeout", f"{self._pattern.pattern!r} took too long to be tried")
            return Check(self.name, "failed", (failure,))
        if not found:
            message = "the answer must cite its sources"
            return Check(self.name, "failed", (wrong("citations_missing", message),))
        failures = (*_unknown(found, _sources(task)),)[:MOST_FAILURES]
        return Check(self.name, "failed" if failures else "passed", failures)


def _unknown(found: Iterable[regex.Match[str]], sources: frozenset[int]) -> Iterator[Failure]:
    for match in found if sources else ():
        if not sources.issuperset(_numbers(match[1] if match.re.groups else match[0])):
            message = f"a source is cited that there is not; the sources are {_listed(sources)}"
            yield wrong("citations_unknown", message, *match.span())


def _numbers(cited: str | None) -> list[int]:
    """Return the numbers of sources in a citation: of a range, its ends and all between them."""
    numbers = [int(number) for number in _NUMBERS.findall(cited or "")]
    for first, last in _RANGE.findall(cited or ""):
        numbers += range(int(first), min(int(last), int(first) + 1000))
    return numbers


def _sources(task: Task) -> frozenset[int]:
    """Return the numbers of the sources that the prompt lists; none, where it lists none."""
    found = set()
    for message in task.messages:
        if message["role"] == "assistant":
            continue
        beneath = False
        for line in content_text(message.get("content")).splitlines():
            beneath = beneath or _HEADING.match(line) is not None
            match = _LISTED.match(line) or (_ITEM.match(line) if beneath else None)
            if match is not None:
                found.add(int(next(filter(None, match.groups()))))
    return frozenset(found)


def _listed(sources: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(sources)[:MOST_FAILURES]))
