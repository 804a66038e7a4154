"""What is sent to a model: the caller's request, the policy's shape, and what there is to repair."""

from __future__ import annotations

from typing import Any

from tracerouter.providers import compose
from tracerouter.types import Classification, Completion, Escalation, Failure, Reason, Rules, Task

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "how many?"}]
FOUND = Classification("extract", 0.91)
REJECTED = Completion.of('{"total": "3"}', model="small")


def task(**body: Any) -> Task:
    return Task.parse({"model": "auto", "messages": MESSAGES, **body})


def composed(
    asked: Task, rules: Rules | None = None, escalation: Escalation | None = None, field: str = "max_tokens"
) -> dict[str, Any]:
    return compose(asked, rules or Rules(), escalation, model="toy", limit_field=field)


def escalated(**facts: Any) -> list[dict[str, Any]]:
    """Return what an escalation adds to the messages."""
    told = {"source": "small", "reason": Reason.SCHEMA_INVALID, "classification": FOUND, **facts}
    added: list[dict[str, Any]] = composed(task(), escalation=Escalation(**told))["messages"][len(MESSAGES) :]
    return added


def test_a_request_passes_through() -> None:
    """What the caller asks for goes on as it came, unknown fields included; model and stream are the router's."""
    asked = task(temperature=0.2, seed=7, something_new=[1], stream=True, stream_options={"include_usage": True})
    assert composed(asked) == {
        "model": "toy",
        "messages": MESSAGES,
        "temperature": 0.2,
        "seed": 7,
        "something_new": [1],
    }


def test_the_callers_request_is_not_changed() -> None:
    """Composing leaves the Task as it is, whatever is added for the model."""
    asked = task()
    rules = Rules(prompt="extract", schema={"type": "object"}, max_output_tokens=5)
    composed(asked, rules, Escalation("small", Reason.EMPTY, FOUND, REJECTED))
    assert asked.body == {"model": "auto", "messages": MESSAGES}


def test_the_lower_bound_on_the_answer_holds() -> None:
    """Of the caller's bound and the policy's the lower one is sent, under the name that the model takes."""
    for mine, theirs, sent in ((10, 20, 10), (20, 10, 10), (None, 10, 10), (20, None, 20)):
        asked = task(max_completion_tokens=mine)
        assert composed(asked, Rules(max_output_tokens=theirs), field="max_out")["max_out"] == sent
    body = composed(task(max_tokens=9), field="max_completion_tokens")
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body
    assert "max_tokens" not in composed(task())


def test_the_policys_prompt_stands_first() -> None:
    """A task's instructions come before the caller's own messages."""
    messages = composed(task(), Rules(prompt="Extract."))["messages"]
    assert messages == [{"role": "system", "content": "Extract."}, *MESSAGES]


def test_the_callers_format_wins_over_the_policys_schema() -> None:
    """The policy's schema is asked for where the caller asks for no format of its own."""
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert composed(task(), Rules(schema=schema))["response_format"] == wanted
    own = {"type": "json_object"}
    assert composed(task(response_format=own), Rules(schema=schema))["response_format"] == own


def test_a_rejected_answer_is_handed_over_with_its_failures() -> None:
    """The repairing model sees the answer, what is wrong where, and what the request is."""
    failures = (Failure(Reason.SCHEMA_INVALID, "is no number", "$.total"), Failure(Reason.CHECK_FAILED, "sum"))
    answer, repair = escalated(rejected=REJECTED, failures=failures)
    assert answer == {"role": "assistant", "content": '{"total": "3"}'}
    assert repair["role"] == "user"
    assert repair["content"].split("\n\n") == [
        "Automatic checks turned that answer down:\n- $.total: is no number\n- $: sum",
        "The request was classified as 'extract' with confidence 0.91.",
        "Answer the request again in full. Keep what was right, and reply with the answer alone.",
    ]


def test_a_stale_answer_is_handed_over_as_such() -> None:
    """An answer that the cache held too long is quoted, and called out of date."""
    (repair,) = escalated(stale=Completion.of("It was 2.", model="small"))
    assert "possibly out of date:\nIt was 2." in repair["content"]
    assert "turned that answer down" not in repair["content"]


def test_where_there_is_nothing_to_build_on_nothing_is_added() -> None:
    """After a provider's failure without any answer, the question is asked again as it was."""
    assert escalated(reason=Reason.TIMEOUT) == []


def test_an_abstaining_classifier_is_not_quoted() -> None:
    """Where nobody could say what the request is, nothing is said of it."""
    _, repair = escalated(rejected=REJECTED, classification=Classification())
    assert "classified" not in repair["content"]


def test_long_answers_are_quoted_in_part() -> None:
    """An earlier answer of any length takes no more than 20,000 characters of the next prompt."""
    long = Completion.of("x" * 100_000, model="small")
    answer, repair = escalated(rejected=long, stale=long)
    assert len(answer["content"]) == 20_000
    assert len(repair["content"]) < 20_500


def test_rejected_tool_calls_are_quoted_as_json() -> None:
    """An answer that only calls tools is quoted as the JSON of its calls."""
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}
    answer, repair = escalated(rejected=Completion({"choices": [{"message": message}]}))
    assert answer["content"] == '[{"id":"c1"}]'
    assert repair["content"].endswith("make the right ones, don't write them.")
