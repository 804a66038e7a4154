"""What the validators of an answer's text share: where there is nothing to read, where something is wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tracerouter.types import Failure, Reason

if TYPE_CHECKING:
    from tracerouter.types import Completion

MOST_FAILURES: Final = 20
"""Failures that one validator tells of one answer, at most."""

_FENCED: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_INLINE: Final = re.compile(r"`[^`\n]*`")


def only_calls(completion: Completion) -> bool:
    """Return whether the answer calls tools and says nothing, so that there is no text to look at."""
    return bool(completion.tool_calls) and not completion.text


def without_fences(text: str) -> str:
    """Return `text` with its blocks of code blanked out; every other character keeps its place."""
    return _FENCED.sub(_blank, text) if "```" in text else text


def without_code(text: str) -> str:
    """Return `text` with its blocks and its spans of code blanked out."""
    text = without_fences(text)
    return _INLINE.sub(_blank, text) if "`" in text else text


def wrong(detail: str, message: str, start: int | None = None, end: int | None = None) -> Failure:
    """Make a failure with a code of its own, and the characters of the answer where it is. It quotes none of them."""
    return Failure(Reason.CHECK_FAILED, message, "$" if start is None else f"$[{start}:{end}]", detail)


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])
