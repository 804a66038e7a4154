"""Whether an answer is JSON that a pydantic model takes."""

from __future__ import annotations

from datetime import date  # noqa: TC003 - pydantic reads it
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tracerouter.errors import ConfigError
from tracerouter.types import Check, Completion, Reason, Task
from tracerouter.validators import PydanticModel


class Line(BaseModel):
    price: Annotated[int, Field(ge=0)]


class Order(BaseModel):
    model_config = ConfigDict(strict=True)

    due: date
    lines: list[Line] = []
    note: str = ""

    @field_validator("note")
    @classmethod
    def _polite(cls, note: str) -> str:
        if note == "crash":
            raise ZeroDivisionError
        if note == "rude":
            msg = "is not polite"
            raise ValueError(msg)
        return note


Prices = list[int]


async def checked(text: str, model: str = "Order") -> Check:
    validator = PydanticModel(f"{__name__}:{model}")
    return await validator.validate(Task.chat("x"), Completion.of(text, model="m"))


async def test_what_the_model_takes_passes_as_it_is() -> None:
    """JSON that the model takes passes and is not rewritten; any type will do that pydantic can validate."""
    check = await checked('{"due": "2026-01-31", "lines": [{"price": 3}]}')
    assert (check.status, check.repaired) == ("passed", None)
    assert (await checked("[1, 2]", "Prices")).status == "passed"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", ["missing $.due"]),
        (
            '{"due": 5, "lines": [{"price": 1}, {"price": -1}]}',
            ["date_type $.due", "greater_than_equal $.lines[1].price"],
        ),
        ('{"due": "2026-01-31", "note": "rude"}', ["value_error $.note"]),
        ("It is due tomorrow.", ["not_json $"]),
        ('{"due": "2026-01-31", "note": "crash"}', ["validator_error $"]),
    ],
)
async def test_what_it_does_not_take_fails_with_pydantics_code(text: str, told: list[str]) -> None:
    """Each failure has pydantic's code and the place, under ``check_failed``; a validator that raises fails too."""
    check = await checked(text)
    assert [failure.told for failure in check.failures] == told
    assert {failure.code for failure in check.failures} == {Reason.CHECK_FAILED}


async def test_almost_json_is_repaired() -> None:
    """A fence around the JSON is taken away, and the next validator and the caller get the JSON alone."""
    check = await checked('```json\n{"due": "2026-01-31"}\n```')
    assert check.status == "repaired"
    assert check.repaired is not None
    assert check.repaired.text == '{"due":"2026-01-31"}'


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ("no.such:Model", "can't be imported"),
        (f"{__name__}:checked", "is no pyd"),
        ("math:pi", "is no pyd"),
        (f"{__name__}:PydanticModel", "is no pydantic model"),
    ],
)
def test_what_is_no_model_is_named(dotted: str, said: str) -> None:
    """A name that can't be imported, or that pydantic can't validate, is an error at start."""
    with pytest.raises(ConfigError, match=f"validate: '{dotted}' {said}"):
        PydanticModel(dotted)
