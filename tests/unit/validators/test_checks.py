"""Which validators look at an answer, an owner's own among them, and how they judge together."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tracerouter.errors import BadRequest, ConfigError
from tracerouter.types import Check, Completion, Failure, Reason, Rules, Task, Wanted
from tracerouter.validators import BUILT_IN, Checks, Custom, Empty, JsonSchema, Truncated, judge
from tracerouter.validators.custom import load

if TYPE_CHECKING:
    from pathlib import Path

    from tracerouter.validators import Validator

TASK = Task.chat("How much is it?")
ANSWER = Completion.of("The secret number is 4711.", model="m")
OBJECT = {"type": "object"}


def nothing(task: Task, completion: Completion) -> None:
    return None


def too_short(task: Task, completion: Completion) -> str | None:
    return None if len(completion.text) > 100 else "the answer is too short"


def asks_for(wanted: dict[str, Any]) -> Task:
    return Task.parse({"messages": [{"role": "user", "content": "x"}], "response_format": wanted})


STRICT = {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT}}


async def failures_of(found: object) -> tuple[Failure, ...]:
    async def later(task: Task, completion: Completion) -> Any:
        return found

    def at_once(task: Task, completion: Completion) -> Any:
        return found

    now = await Custom("mine", at_once).validate(TASK, ANSWER)
    assert now == await Custom("mine", later).validate(TASK, ANSWER)
    assert now.status == ("failed" if now.failures else "passed")
    return now.failures


async def test_a_function_that_finds_nothing_passes() -> None:
    """None, and a list without anything in it, mean that all is well; a function may be async or not."""
    assert await failures_of(None) == ()
    assert await failures_of([]) == ()


async def test_what_a_function_finds_stands_under_its_name() -> None:
    """A sentence is a failure with the function's name; a Failure keeps its path and its own code."""
    assert await failures_of("too dear") == (Failure(Reason.CHECK_FAILED, "too dear", detail="mine"),)
    own = Failure(Reason.TIMEOUT, "too dear", "$.price", "price")
    assert await failures_of(own) == (replace(own, code=Reason.CHECK_FAILED),)
    assert await failures_of(["a", own, "b"]) == (
        Failure(Reason.CHECK_FAILED, "a", detail="mine"),
        replace(own, code=Reason.CHECK_FAILED),
        Failure(Reason.CHECK_FAILED, "b", detail="mine"),
    )


async def test_a_function_sees_task_and_answer() -> None:
    """The function is given what was asked and what was answered."""
    seen: list[tuple[Task, Completion]] = []
    await Custom("mine", lambda task, completion: seen.append((task, completion))).validate(TASK, ANSWER)
    assert seen == [(TASK, ANSWER)]


async def test_a_function_that_raises_fails_the_answer_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """What could not be checked is not good; the log names function and error, and quotes no answer."""

    def raising(task: Task, completion: Completion) -> str:
        raise ValueError(completion.text)

    async def raising_later(task: Task, completion: Completion) -> str:
        raise LookupError(completion.text)

    for function, error in ((raising, "ValueError"), (raising_later, "LookupError")):
        caplog.clear()
        check = await Custom("shop:price", function).validate(TASK, ANSWER)
        assert check.status == "failed"
        assert [failure.detail for failure in check.failures] == ["validator_error"]
        assert caplog.messages[0].startswith(f"validator shop:price raised {error} at {__file__}:")
        assert "4711" not in caplog.text + repr(check)


def test_load_imports_a_function() -> None:
    """``package.module:function`` is imported."""
    assert load(f"{__name__}:too_short") is too_short


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ("no.such.module:check", "No module named 'no'"),
        ("json:no_such_function", "no attribute 'no_such_function'"),
        ("json:", "can't be imported"),
        (":check", "can't be imported"),
        ("..json:check", "can't be imported"),
        ("math:pi", "is no function of"),
    ],
)
def test_load_says_what_is_wrong(dotted: str, said: str) -> None:
    """What can't be imported, or is no function, is a mistake in the file that names what stands there."""
    with pytest.raises(ConfigError) as raised:
        load(dotted)
    assert str(raised.value).startswith(f"validate: {dotted!r} ")
    assert said in str(raised.value)


@pytest.mark.parametrize("source", ["def check(:", "raise RuntimeError('no licence')"])
def test_a_module_that_breaks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """A module of the owner's that fails while it is imported is the owner's mistake too."""
    (tmp_path / "tr_broken_checks.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'tr_broken_checks:check' can't be imported"):
        load("tr_broken_checks:check")
    assert "tr_broken_checks" not in sys.modules


def names(task: Task, rules: Rules, *named: str) -> list[str]:
    return [validator.name for validator in Checks(named).of(task, rules)]


def test_the_policys_order_holds() -> None:
    """Validators stand in the policy's order, an owner's own between the built-in ones."""
    own = f"{__name__}:nothing"
    order = ("refusal", own, "empty", "json_schema", "truncated")
    assert names(TASK, Rules(validate=order, schema=OBJECT), *order) == list(order)
    assert names(TASK, Rules(), *BUILT_IN) == []


def test_validators_with_arguments_stand_in_the_order_too() -> None:
    """What a policy asks for with arguments is made once, and stands where the policy has it."""
    order = (Wanted("length", (None, 9, "words")), "empty", Wanted("matches", ("a",)), Wanted("matches", ("b",)))
    checks = Checks(order)
    made = checks.of(TASK, Rules(validate=order))
    assert [one.name for one in made] == ["length", "empty", "matches", "matches"]
    assert [id(one) for one in checks.of(TASK, Rules(validate=order))] == [id(one) for one in made]
    assert [str(one) for one in order] == ["length(any, 9, words)", "empty", "matches(a)", "matches(b)"]


def test_what_needs_an_argument_says_so() -> None:
    """A validator that is nothing without an argument is an error that shows how it is written."""
    with pytest.raises(ConfigError, match=r"validate: 'language' needs an argument, as in `\{language: …\}`"):
        Checks(["language"])


def test_what_the_caller_asks_for_is_always_checked() -> None:
    """The caller's own ``response_format`` is checked first, whatever the policy says."""
    assert names(asks_for(STRICT), Rules(validate=("empty",))) == ["json_schema", "empty"]
    assert names(asks_for({"type": "json_object"}), Rules()) == ["json_schema"]
    assert names(asks_for({"type": "text"}), Rules()) == []


def test_what_tools_are_given_is_checked_unless_that_would_hold_a_stream_back() -> None:
    """With tools the check comes last by itself; in a stream only if that is held back anyway, or the policy asks."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    asking = Task.parse({**TASK.body, "tools": tools})
    formed = Task.parse({**asks_for(STRICT).body, "tools": tools})
    plain, asked = Rules(validate=("empty",)), Rules(validate=("tool_arguments", "empty"))
    checks = Checks(("tool_arguments", "empty"))

    def named(task: Task, rules: Rules, *, streamed: bool) -> list[str]:
        return [one.name for one in checks.of(task, rules, streamed=streamed)]

    assert named(asking, plain, streamed=False) == ["empty", "tool_arguments"]
    assert named(asking, plain, streamed=True) == ["empty"]
    assert named(formed, plain, streamed=True) == ["json_schema", "empty", "tool_arguments"]
    for streamed in (False, True):
        assert named(asking, asked, streamed=streamed) == ["tool_arguments", "empty"]
        assert named(TASK, asked, streamed=streamed) == ["empty"]
        assert named(TASK, plain, streamed=streamed) == ["empty"]


async def test_the_callers_schema_wins_over_the_policys() -> None:
    """Where both have a schema there is one check, by the caller's."""
    rules = Rules(validate=("json_schema",), schema={"type": "array"})
    (only,) = Checks().of(asks_for(STRICT), rules)
    assert (await only.validate(TASK, Completion.of("{}", model="m"))).status == "passed"
    (only,) = Checks().of(TASK, rules)
    assert (await only.validate(TASK, Completion.of("{}", model="m"))).status == "failed"


async def test_a_policy_without_a_schema_has_nothing_to_check() -> None:
    """``json_schema`` in a policy is skipped for a task of which no schema is known."""
    (only,) = Checks().of(TASK, Rules(validate=("json_schema",)))
    assert (await only.validate(TASK, ANSWER)).status == "skipped"


def test_a_wrong_schema_of_the_callers_is_refused() -> None:
    """A caller's schema that is none is refused before a model is asked."""
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strnig"}}}
    with pytest.raises(BadRequest) as raised:
        Checks().of(asks_for(wrong), Rules())
    assert raised.value.param == "response_format.json_schema.schema"


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    """A misspelt validator is an error that names the one that was meant."""
    with pytest.raises(ConfigError, match=r"'refusals' is no validator \(did you mean 'refusal'\?\); known are "):
        Checks(["empty", "refusals"])
    with pytest.raises(ConfigError, match="can't be imported"):
        Checks(["no.such.module:check"])


async def test_later_validators_see_the_repaired_answer() -> None:
    """What one validator repairs is what the next ones judge, and what the caller gets."""
    seen: list[str] = []
    own = Custom("own", lambda _, completion: seen.append(completion.text))
    broken = Completion.of("```json\n{'a': 1}\n```", model="m")
    verdict, answer = await judge([own, JsonSchema(OBJECT), own, Empty()], TASK, broken)
    assert seen == [broken.text, '{"a":1}']
    assert answer.text == '{"a":1}'
    assert (verdict.accepted, verdict.status) == (True, "repaired")
    assert [check.status for check in verdict.checks] == ["passed", "repaired", "passed", "passed"]


async def test_every_validator_has_its_say() -> None:
    """A failure does not end the judging: all failures are told, in order."""
    cut = Completion.of("", model="m", finish_reason="length")
    verdict, answer = await judge([Empty(), JsonSchema(OBJECT), Truncated()], TASK, cut)
    assert answer is cut
    assert (verdict.accepted, verdict.status) == (False, "failed")
    assert [failure.code for failure in verdict.failures] == [Reason.EMPTY, Reason.SCHEMA_INVALID, Reason.TRUNCATED]


async def test_each_check_is_told_in_order_with_its_time() -> None:
    """Whoever listens is told each check when it is done, and how many seconds it took."""
    heard: list[tuple[str, str, bool]] = []

    async def slow(task: Task, completion: Completion) -> str:
        await asyncio.sleep(0.02)
        return "no"

    asked: list[Validator] = [Empty(), Custom("slow", slow), Truncated()]
    await judge(asked, TASK, ANSWER, lambda check, took: heard.append((check.validator, check.status, took >= 0.02)))
    assert heard == [("empty", "passed", False), ("slow", "failed", True), ("truncated", "passed", False)]


async def test_without_validators_an_answer_is_accepted() -> None:
    """Nobody to object is no objection."""
    verdict, answer = await judge([], TASK, ANSWER)
    assert (verdict.accepted, verdict.status, answer) == (True, "skipped", ANSWER)
    assert verdict.checks == ()
    assert Check("x", "passed").failures == ()


async def test_each_of_several_choices_is_judged() -> None:
    """With ``n`` above 1 a bad choice fails the answer, and each choice is repaired by itself."""
    choices = [
        {"index": at, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for at, text in enumerate(('{"a": 1}', "```json\n[2]\n```", "no"))
    ]
    schema = JsonSchema({"type": ["object", "array"]})
    verdict, _ = await judge([schema], TASK, Completion({"choices": choices}))
    assert [check.status for check in verdict.checks] == ["passed", "repaired", "failed"]
    verdict, judged = await judge([schema], TASK, Completion({"choices": choices[:2]}))
    assert verdict.accepted
    assert [choice["message"]["content"] for choice in judged.body["choices"]] == ['{"a": 1}', "[2]"]
