"""Whether an answer has the length and the form that a policy asks for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tracerouter.types import Check, Completion, Task
from tracerouter.validators import Forbids, Length, Matches

if TYPE_CHECKING:
    from tracerouter.validators import Validator

TASK = Task.chat("x")
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}


async def checked(validator: Validator, text: str) -> Check:
    return await validator.validate(TASK, Completion.of(text, model="m"))


async def told(validator: Validator, text: str) -> list[str]:
    return [failure.told for failure in (await checked(validator, text)).failures]


@pytest.mark.parametrize(
    ("unit", "text", "size"),
    [
        ("characters", "a\u0308 b", 4),
        ("words", "one  two\nthree", 3),
        ("words", "", 0),
        ("tokens", "The quick brown fox", 4),
    ],
)
async def test_length_counts_in_its_unit(unit: str, text: str, size: int) -> None:
    """Bounds are inclusive, in characters, words or tokens; each has its own code, and the message says the size."""
    assert (await checked(Length(size, size, unit), text)).status == "passed"
    assert await told(Length(size + 1, None, unit), text) == ["length_min $"]
    (failure,) = (await checked(Length(size + 1, None, unit), text)).failures
    assert failure.message == f"the answer has {size} {unit}; at least {size + 1} are wanted"
    if size:
        assert await told(Length(None, size - 1, unit), text) == ["length_max $"]


async def test_matches_must_be_found() -> None:
    """An expression is searched for, so that anchors say whether it is the whole answer."""
    digits = Matches(r"^\d+$")
    assert (await checked(digits, "4711")).status == "passed"
    assert await told(digits, "4711 or so") == ["matches $"]
    assert await told(Matches(r"\d"), "none") == ["matches $"]


async def test_forbids_must_not_be_found_and_says_where_it_is() -> None:
    """What is forbidden fails with the characters where it stands, and is not quoted."""
    forbids = Forbids("(?i)as an ai")
    assert (await checked(forbids, "Fine.")).status == "passed"
    check = await checked(forbids, "Well, As an AI I …")
    assert [failure.told for failure in check.failures] == ["forbids $[6:14]"]
    assert "As an AI" not in check.failures[0].message


@pytest.mark.parametrize("kind", [Matches, Forbids])
async def test_an_expression_has_a_time_limit(kind: type[Matches]) -> None:
    """An expression that would take for ever is given up, and what could not be checked is not good."""
    began = time.process_time()
    assert await told(kind("^(a|aa)+$"), "a" * 5000 + "b") == [f"{kind.name}_timeout $"]
    assert time.process_time() - began < 1


@pytest.mark.parametrize("validator", [Length(1, 2, "words"), Matches("x"), Forbids("x")])
async def test_tool_calls_have_no_text_to_look_at(validator: Validator) -> None:
    """An answer that only calls tools is skipped."""
    calls = Completion({"choices": [{"index": 0, "message": CALLS, "finish_reason": "tool_calls"}]})
    assert (await validator.validate(TASK, calls)).status == "skipped"
