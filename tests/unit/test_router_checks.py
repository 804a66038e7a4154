"""What a policy's validators turn down, and how that is told."""

from __future__ import annotations

import re
from typing import Any

from tests.unit.test_router import Rig, rig
from tracerouter.cli.waterfall import render
from tracerouter.policy import Policy, PolicyFile
from tracerouter.telemetry import names
from tracerouter.types import Reason, Status, Task
from tracerouter.validators import Checks

VALIDATE: list[Any] = ["empty", {"length": {"max": 6, "unit": "words"}}, "arithmetic", {"forbids": "(?i)secret"}]


def validating(small: str, large: str, **more: Any) -> Rig:
    policy = {"validate": VALIDATE, **more}
    named = Policy.of(PolicyFile.model_validate({"ladder": ["small", "large"], **policy})).validators
    return rig(small, large, policy=policy, checks=Checks(named))


async def test_each_check_is_an_event_of_the_validate_span() -> None:
    """The span tells each validator in the policy's order, what it said and how long it took, failures or not."""
    with_models = validating("The SECRET sum is 2 + 2 = 5", "2 + 2 = 4")
    outcome = await with_models.router.route(Task.chat("hello"))
    assert (outcome.status, outcome.reason) == (Status.ANSWERED, Reason.CHECK_FAILED)
    cheap, fallback = [span for span in reversed(with_models.seen.spans) if span.name == "validate"]
    told: list[list[tuple[Any, Any]]] = []
    for span in (cheap, fallback):
        assert {event.name for event in span.events} == {"check"}
        facts: list[dict[str, Any]] = [{**(event.attributes or {})} for event in span.events]
        assert all(set(one) == {names.VALIDATOR, names.VALIDATION_STATUS, names.LATENCY} for one in facts)
        whole: Any = (span.attributes or {})[names.LATENCY]
        assert 0 < sum(one[names.LATENCY] for one in facts) <= whole
        told.append([(one[names.VALIDATOR], one[names.VALIDATION_STATUS]) for one in facts])
    assert told == [
        [("empty", "passed"), ("length", "failed"), ("arithmetic", "failed"), ("forbids", "failed")],
        [("empty", "passed"), ("length", "passed"), ("arithmetic", "passed"), ("forbids", "passed")],
    ]
    failures = ["length_max $", "arithmetic $[18:27]", "forbids $[4:10]"]
    attributes: Any = cheap.attributes
    assert attributes[names.VALIDATION_FAILURES] == failures
    assert list(with_models.row["validation_failures"]) == failures
    assert with_models.row["attempts"][0]["failure"] == "check_failed"
    assert "SECRET" not in str([span.to_json() for span in with_models.seen.spans])


async def test_the_fallback_is_told_all_that_is_wrong() -> None:
    """The model that repairs gets every validator's failure with its place."""
    with_models = validating("The SECRET sum is 2 + 2 = 5", "2 + 2 = 4")
    await with_models.router.route(Task.chat("hello"))
    repair = with_models.large.calls[0].body["messages"][-1]["content"]
    for point in (
        "- $: the answer has 9 words; at most 6 are wanted",
        "- $[18:27]: the calculation in line 1 does not come out",
        "- $[4:10]: the answer must not match '(?i)secret'",
    ):
        assert point in repair


async def test_a_task_has_validators_of_its_own() -> None:
    """A task's list stands instead of the policy's."""
    tasks = {"sum": {"match": ["^sum"], "validate": [{"matches": r"^\d+$"}]}}
    with_models = validating("2 + 2 = 5", "4", tasks=tasks)
    await with_models.router.route(Task.chat("sum"))
    assert list(with_models.row["validation_failures"]) == ["matches $"]
    await with_models.router.route(Task.chat("hello"))
    assert list(with_models.row["validation_failures"]) == ["arithmetic $[0:9]"]


async def test_the_waterfall_shows_each_check() -> None:
    """``tracerouter trace`` shows the checks of an answer in order, with their time."""
    kept: list[Any] = []

    class Rows:
        def append(self, row: Any, timeline: Any) -> bool:
            kept.append((row, timeline))
            return True

    with_models = validating("2 + 2 = 5", "2 + 2 = 4")
    with_models.router.telemetry.decisions = Rows()
    await with_models.router.route(Task.chat("hello"))
    ((row, timeline),) = kept
    line = next(line for line in render(row, timeline).splitlines() if "validate" in line)
    took = r"[\d.]+ ms; "
    told = rf"failed; arithmetic \$\[0:9\]; empty passed {took}length passed {took}arithmetic failed {took}forbids"
    assert re.search(told, line)
