"""The nouns: what is taken as a request, and what they say of themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracerouter.errors import BadRequest, TooLarge
from tracerouter.types import (
    Attempt,
    Caller,
    Check,
    Classification,
    Completion,
    Cost,
    Failure,
    Meter,
    Reason,
    Role,
    Rung,
    Source,
    Task,
    Usage,
    Verdict,
    content_text,
)

USER = [{"role": "user", "content": "hi"}]
SIZE = len('{"messages":[{"role":"user","content":"hi"}]}')
PARTS = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "data:"}}, {"text": "two"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": USER, **fields}


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **fields}]}


@pytest.mark.parametrize(
    "asked",
    [
        body(),
        body(model="auto", stream=True, stream_options={"include_usage": True}, tools=[]),
        body(temperature=0, top_p=1, n=1, max_tokens=1, max_completion_tokens=10**9),
        body(temperature=2.0, response_format={"type": "text"}),
        body(response_format={"type": "json_object"}),
        body(response_format={"type": "json_schema", "json_schema": {"name": "x"}}),
        body(model=None, temperature=None, tools=None, response_format=None),
        body(something_new={"a": [1, None]}),
        message(content=PARTS),
        message(content=[]),
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "42"}]},
        {"messages": [{"role": role, "content": ""} for role in ("system", "developer", "assistant", "function")]},
    ],
)
def test_what_openai_takes_is_taken(asked: dict[str, Any]) -> None:
    """A well-formed request becomes a Task whose body is the request as it came, unknown fields included."""
    assert Task.parse(asked).body == asked


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        (None, None, "must be a JSON object, not null"),
        ([1], None, "must be a JSON object, not a list"),
        ("hi", None, "must be a JSON object, not a string"),
        ({}, "messages", "at least one message, not null"),
        ({"messages": []}, "messages", "not an empty list"),
        ({"messages": "hi"}, "messages", "not a string"),
        ({"messages": ["hi"]}, "messages[0]", "an object with `role` and `content`, not a string"),
        ({"messages": [*USER, {"content": "x"}]}, "messages[1].role", "must be one of assistant, developer,"),
        (message(role="usr"), "messages[0].role", "not 'usr'"),
        (message(role=["user"]), "messages[0].role", "not ['user']"),
        (message(content=None), "messages[0].content", "a string or a list of parts, not null"),
        (message(content=7), "messages[0].content", "not a number"),
        (message(content=["hi"]), "messages[0].content", "a list of parts, not a list"),
        (body(temperature=2.1), "temperature", "a number from 0 to 2, not 2.1"),
        (body(temperature=True), "temperature", "not True"),
        (body(temperature="hot"), "temperature", "not 'hot'"),
        (body(temperature=float("nan")), "temperature", "not nan"),
        (body(top_p=-1), "top_p", "from 0 to 1, not -1"),
        (body(max_tokens=0), "max_tokens", "a whole number at least 1, not 0"),
        (body(max_completion_tokens=1.5), "max_completion_tokens", "a whole number"),
        (body(n=129), "n", "from 1 to 128"),
        (body(model=7), "model", "must be a string, not a number"),
        (body(stream="yes"), "stream", "must be true or false, not a string"),
        (body(stream_options=True), "stream_options", "must be an object, not true or false"),
        (body(tools={}), "tools", "must be a list, not an object"),
        (body(tools=[{"type": "custom"}, "f"]), "tools[1]", "an object with `type` and `function`, not 'f'"),
        (body(tools=[{"function": "f"}]), "tools[0]", "must be an object with `type` and `function`"),
        (body(tools=[{"function": {"parameters": 7}}]), "tools[0].function.parameters", "a JSON Schema, not a number"),
        (body(response_format="json"), "response_format", "must be an object"),
        (body(response_format={}), "response_format.type", "text, json_object, json_schema, not None"),
        (body(response_format={"type": "json_schema"}), "response_format.json_schema", "`name` and `schema`"),
        (
            body(response_format={"type": "json_schema", "json_schema": {"schema": []}}),
            "response_format.json_schema",
            "must be an object",
        ),
        (body(metadata={1, 2}), None, "can't be written as JSON"),
    ],
)
def test_a_wrong_request_names_the_field(asked: Any, param: str | None, said: str) -> None:
    """What is wrong is named by its path and said in a sentence, and is the caller's fault."""
    with pytest.raises(BadRequest) as raised:
        Task.parse(asked)
    assert raised.value.param == param
    assert said in raised.value.message
    assert raised.value.status == 400


def test_errors_do_not_quote_at_length() -> None:
    """A prompt in the wrong place is not repeated in the error, beyond a few words."""
    with pytest.raises(BadRequest) as raised:
        Task.parse(body(temperature="secret " * 100))
    assert len(raised.value.message) < 120


def test_size_is_bounded_on_the_byte() -> None:
    """A request of just the bytes that are taken is taken; one more is too large."""
    task = Task.parse(body(), max_bytes=SIZE)
    assert task.text == "hi"
    with pytest.raises(TooLarge, match=f"has {SIZE} bytes; at most {SIZE - 1} are taken") as raised:
        Task.parse(body(), max_bytes=SIZE - 1)
    assert (raised.value.status, raised.value.param) == (413, "messages")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("model", "temperature", "n", "stream", "tools", "response_format", "stream_options", "max_tokens")
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]) | JSON, "content": st.text() | JSON}, optional={"name": JSON}
)


@given(st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3) | JSON}, optional=dict.fromkeys(FIELDS, JSON)))
def test_any_json_is_taken_or_turned_down(asked: dict[str, Any]) -> None:
    """Whatever JSON comes, it is a BadRequest, or a Task whose every accessor works."""
    try:
        task = Task.parse(asked)
    except BadRequest:
        return
    assert isinstance(task.text, str)
    assert isinstance(task.model, str)
    assert task.messages == asked["messages"]
    assert task.schema is None or isinstance(task.schema, dict)
    assert task.wants_json in (True, False)
    assert task.max_output_tokens is None or task.max_output_tokens > 0


def test_chat_is_the_short_form() -> None:
    """``Task.chat`` asks one question of the router's choice, as whoever is named."""
    task = Task.chat("hello", caller=Caller("acme"), hint="sql")
    assert task.body == {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    assert (task.caller.tenant, task.hint, task.text, task.model) == ("acme", "sql", "hello", "auto")


def test_the_text_is_what_the_user_said_last() -> None:
    """The text is that of the last user message, all its text parts; without a user, that of the last message."""
    asked = [*USER, {"role": "user", "content": PARTS}, {"role": "assistant", "content": "no"}]
    assert Task.parse({"messages": asked}).text == "one\ntwo"
    assert Task.parse({"messages": [{"role": "system", "content": "be brief"}]}).text == "be brief"
    assert content_text(None) == content_text(7) == ""


def test_accessors_of_the_answer_that_is_asked_for() -> None:
    """Schema, JSON mode and the bound on the answer are read from where OpenAI puts them."""
    schema = {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert Task.parse(body(response_format=wanted)).schema == schema
    assert Task.parse(body(response_format={"type": "json_object"})).wants_json
    assert Task.parse(body()).schema is None
    assert not Task.parse(body()).wants_json
    assert Task.parse(body(max_tokens=5)).max_output_tokens == 5
    assert Task.parse(body(max_tokens=5, max_completion_tokens=6)).max_output_tokens == 6
    assert Task.parse(body()).max_output_tokens is None


def test_a_completion_reads_itself() -> None:
    """A completion tells text, model and finish reasons, and a copy with other text or usage leaves it as it was."""
    said = Completion.of("well", model="toy", finish_reason="length")
    assert (said.text, said.model, said.finish_reasons, said.tool_calls, said.refusal, said.id) == (
        "well",
        "toy",
        ["length"],
        [],
        None,
        None,
    )
    changed = said.with_text("better").with_usage(Usage(3, 4, 2, 1, 1))
    assert changed.text == "better"
    assert changed.body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    assert said.text == "well"
    assert "usage" not in said.body


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([], "skipped"),
        (["skipped"], "skipped"),
        (["skipped", "passed"], "passed"),
        (["passed", "repaired"], "repaired"),
        (["repaired", "failed", "passed"], "failed"),
    ],
)
def test_a_verdict_has_the_telling_state(states: list[str], status: str) -> None:
    """Of several validators the worst state is told, and only a failure turns an answer down."""
    wrong = Failure(Reason.EMPTY, "empty")
    verdict = Verdict(tuple(Check(s, s, (wrong,) if s == "failed" else ()) for s in states))
    assert verdict.status == status
    assert verdict.accepted == (status != "failed")


def test_an_attempt_without_verdict_is_not_accepted() -> None:
    """Only a verdict makes an answer; a cancelled attempt says so."""
    cancelled = Attempt(Rung("a", Role.CHEAP), Usage(), Cost(), 0.0, cancelled=True)
    assert not cancelled.accepted
    assert cancelled.reason is Reason.CANCELLED
    assert Attempt(Rung("a", Role.CHEAP), Usage(), Cost(), 0.0, verdict=Verdict()).reason is None


def test_abstaining_is_other_without_confidence() -> None:
    """``other`` with some confidence is a label; with none, nobody could tell."""
    assert Classification().abstained
    assert not Classification("other", 0.6).abstained
    assert not Classification("sql", 0.0).abstained


def test_a_meter_keeps_each_try_apart() -> None:
    """What is noted belongs to the newest try; a refusal before any was sent is nobody's."""
    meter = Meter()
    meter.refused()
    meter.sent()
    meter.refused()
    meter.sent()
    meter.received("a")
    meter.reported(Usage(1, 1))
    meter.reported(Usage(2, 2))
    meter.charged(7)
    assert [use.refused for use in meter.uses] == [True, False]
    assert (meter.uses[1].usage, meter.uses[1].charged_nanos, meter.uses[1].received) == (Usage(2, 2), 7, ["a"])


def test_codes_are_words() -> None:
    """A reason, role, status or source prints as the word that is grepped."""
    assert [str(Reason.SCHEMA_INVALID), f"{Role.CHEAP}", str(Source.REPORTED)] == [
        "schema_invalid",
        "cheap",
        "reported",
    ]
