"""What a function may return, besides a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tracerouter.types import Completion, Task
from tracerouter.validators import Custom

if TYPE_CHECKING:
    from collections.abc import Iterator


def breaks() -> Iterator[str]:
    yield "a"
    raise KeyError


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (("a", "b"), [("a", "mine"), ("b", "mine")]),
        (iter(["a", ""]), [("a", "mine")]),
        ((), []),
        ("", []),
        (breaks(), [("the check itself failed", "validator_error")]),
        (True, [("the check itself failed", "validator_error")]),
    ],
)
async def test_any_iterable_will_do(found: Any, told: list[tuple[str, str]]) -> None:
    """Each thing found is a failure of its own, and an iterable that breaks is a check that failed."""
    check = await Custom("mine", lambda _task, _answer: found).validate(Task.chat("x"), Completion.of("y", model="m"))
    assert [(failure.message, failure.detail) for failure in check.failures] == told
