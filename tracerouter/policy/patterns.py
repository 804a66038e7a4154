"""Regular expressions of the policy file that are tried on whole texts, with a bound on their time."""

from __future__ import annotations

from typing import Annotated, Final

import regex
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

TIME_LIMIT: Final = 0.02
"""Seconds of CPU that one pattern may take on one text: a nested repeat could take hours."""


def _is_bounded(found: str) -> str:
    try:
        regex.compile(found)
    except regex.error as error:
        msg = "found {found}, which is no regular expression: {why}"
        raise PydanticCustomError("pattern", msg, {"found": repr(found), "why": str(error)}) from None  # noqa: EM101
    return found


BoundedPattern = Annotated[str, AfterValidator(_is_bounded)]
"""A pattern in the dialect of the `regex` module, which reads those of `re` and takes a time limit."""
