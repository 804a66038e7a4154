"""What a model's answer gives to tools."""

from __future__ import annotations

from typing import Any

import pytest

from tracerouter.errors import BadRequest
from tracerouter.types import Check, Completion, Reason, Task
from tracerouter.validators import ToolArguments

TASK = Task.chat("Is it warm in Rome?")
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PLACE, **more}}


TOOLS = [tool("look_up"), tool("book", strict=True), {"type": "function", "function": {"name": "now"}}]


def calling(*calls: tuple[Any, Any], finish: str = "tool_calls") -> Completion:
    told = [
        {"id": f"c{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": None, "tool_calls": told}
    return Completion({"choices": [{"index": 0, "message": message, "finish_reason": finish}]})


async def checked(answer: Completion, *, every: bool = False) -> Check:
    return await ToolArguments(TOOLS, every=every).validate(TASK, answer)


async def found(*calls: tuple[Any, Any], every: bool = False) -> list[tuple[str, str | None]]:
    check = await checked(calling(*calls), every=every)
    assert check.status == ("failed" if check.failures else "passed")
    assert {failure.code for failure in check.failures} <= {Reason.SCHEMA_INVALID}
    return [(failure.path, failure.detail) for failure in check.failures]


FIRST, SECOND = "$.tool_calls[0].function.arguments", "$.tool_calls[1].function.arguments"


@pytest.mark.parametrize("arguments", ['{"city', "{'city': 'Rome'}", "Rome", '{"city": "\ud800"}', "{}{}", "  "])
async def test_what_is_no_json_is_turned_down(arguments: str) -> None:
    """Arguments must be JSON as they stand: nothing is guessed where a guess would act."""
    assert await found(("look_up", arguments)) == [(FIRST, "not_json")]


@pytest.mark.parametrize("arguments", ["[]", "1", "null", '"Rome"'])
async def test_what_is_no_object_is_turned_down(arguments: str) -> None:
    """A function takes an object, known to the caller or not."""
    for name in ("look_up", "book", "now", "unheard of", None, ["f"]):
        assert await found((name, arguments)) == [(FIRST, "type")]


async def test_parameters_are_the_strict_tools_or_all_of_them() -> None:
    """By itself only what the caller marks as strict must fit its parameters; where the policy asks, all must."""
    wrong = '{"city": 7}'
    assert await found(("look_up", wrong), ("book", wrong)) == [(f"{SECOND}.city", "type")]
    both = [(f"{FIRST}.city", "type"), (f"{SECOND}.city", "type")]
    assert await found(("look_up", wrong), ("book", wrong), every=True) == both
    assert await found(("book", "{}")) == [(FIRST, "required")]
    assert await found(("now", '{"any": 1}'), every=True) == []
    assert await found(("look_up", '{"city": "Rome"}'), ("book", '{"city": "Rome"}'), every=True) == []


@pytest.mark.parametrize("arguments", ["", None])
async def test_no_arguments_are_an_empty_object(arguments: str | None) -> None:
    """Servers leave out what a tool without parameters is given; one that needs some has not got them."""
    assert await found(("now", arguments)) == []
    assert await found(("book", arguments)) == [(FIRST, "required")]


async def test_there_may_be_nothing_to_look_at() -> None:
    """Text alone is skipped, and so are calls that the limit on tokens has cut; a custom tool takes free text."""
    assert (await checked(Completion.of("Warm.", model="m"))).status == "skipped"
    assert (await checked(calling(("look_up", '{"city'), finish="length"))).status == "skipped"
    custom = {"id": "c", "type": "custom", "custom": {"name": "run", "input": "print(1"}}
    message = {"role": "assistant", "content": None, "tool_calls": [custom]}
    assert (await checked(Completion({"choices": [{"message": message}]}))).status == "passed"


async def test_a_call_by_the_older_field_is_looked_at() -> None:
    """What stands in ``function_call`` is a call like any other."""
    message = {"role": "assistant", "content": None, "function_call": {"name": "look_up", "arguments": "{"}}
    assert (await checked(Completion({"choices": [{"message": message}]}))).status == "failed"


async def test_failures_are_bounded() -> None:
    """A thousand wrong calls do not make a thousand failures."""
    assert len(await found(*[("look_up", "{")] * 1000)) == 20


def test_parameters_that_are_no_schema_are_the_callers_mistake() -> None:
    """Where they must fit, a wrong schema is refused before a model is asked, by the field's name."""
    wrong = [tool("ok"), tool("odd", parameters={"type": "strnig"}, strict=True)]
    with pytest.raises(BadRequest) as raised:
        ToolArguments(wrong, every=False)
    assert raised.value.param == "tools[1].function.parameters"
    ToolArguments([tool("odd", parameters={"type": "strnig"})], every=False)
