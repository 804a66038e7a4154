"""What must be equal for an answer to be the answer to another request as well."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracerouter.cache import output_key, prompt_hash
from tracerouter.types import Caller, Freshness, Task

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}),
    min_size=1,
    max_size=4,
)
TOOLS = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXTS})}),
    max_size=2,
)
FORMATS = st.sampled_from(
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}},
    ]
)
BODIES = st.fixed_dictionaries(
    {"messages": MESSAGES},
    optional={
        "model": TEXTS,
        "temperature": st.floats(0, 0.3),
        "tools": TOOLS,
        "response_format": FORMATS,
        "max_tokens": st.integers(1, 9),
        "seed": st.integers(0, 9),
    },
)
IRRELEVANT = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.booleans(),
        "user": TEXTS,
        "metadata": st.dictionaries(TEXTS, TEXTS, max_size=2),
        "stream_options": st.just({"include_usage": True}),
    },
)
NAMES = st.text("ab\x00\",[]'", max_size=4)
CALLERS = st.builds(Caller, NAMES, st.none() | NAMES, st.none() | NAMES, st.none() | NAMES)
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "model": "auto"}


def key_of(body: dict[str, Any], *, scope: str = "tenant", salt: str = "s", **facts: Any) -> str | None:
    return output_key(Task.parse(body, **facts), scope=scope, salt=salt)


@given(BODIES, BODIES)
def test_a_key_is_equal_only_if_the_question_is(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Any difference in messages, model, temperature, tools or response format makes another key."""
    if one != other:
        assert key_of(one) != key_of(other)
    assert key_of(one) == key_of(copy.deepcopy(one))


@given(
    body=BODIES,
    changed=st.one_of(
        st.tuples(st.just("messages"), MESSAGES),
        st.tuples(st.just("model"), TEXTS),
        st.tuples(st.just("temperature"), st.floats(0, 0.3)),
        st.tuples(st.just("tools"), TOOLS),
        st.tuples(st.just("response_format"), FORMATS),
        st.tuples(st.text("xyz", min_size=1), JSON),
    ),
)
def test_one_changed_field_changes_the_key(body: dict[str, Any], changed: tuple[str, Any]) -> None:
    """A field that is changed or added changes the key, known here or not."""
    name, value = changed
    after = {**body, name: value}
    if after != body:
        assert key_of(after) != key_of(body)


@given(body=BODIES, more=IRRELEVANT)
def test_what_does_not_change_the_answer_does_not_change_the_key(body: dict[str, Any], more: dict[str, Any]) -> None:
    """Streaming, the user field and metadata leave the key as it is, and so does the order of the fields."""
    mixed = dict(reversed({**more, **copy.deepcopy(body)}.items()))
    assert key_of(mixed) == key_of(body)


def test_how_a_request_is_to_be_served_is_not_in_the_key() -> None:
    """Timeout, id and ``max-age`` leave the key as it is."""
    facts: dict[str, Any] = {"timeout": 3.0, "request_id": "r", "freshness": Freshness(max_age=1)}
    assert key_of(BODY, **facts) == key_of(BODY)


@given(CALLERS, CALLERS)
def test_no_two_tenants_or_tiers_share_a_key(one: Caller, other: Caller) -> None:
    """Callers share a key only within a tenant and a tier; under scope ``user`` only with themselves."""
    first, second = (key_of(BODY, caller=caller) for caller in (one, other))
    assert (first == second) is ((one.tenant, one.tier) == (other.tenant, other.tier))
    first, second = (key_of(BODY, caller=caller, scope="user") for caller in (one, other))
    if one.user is not None and other.user is not None:
        same = (one.tenant, one.tier, one.user) == (other.tenant, other.tier, other.user)
        assert (first == second) is same
    assert (first is None) is (one.user is None)


@given(CALLERS)
def test_the_scopes_are_apart(caller: Caller) -> None:
    """What was kept for one user is never found by a tenant, nor the other way round."""
    if caller.user is not None:
        assert key_of(BODY, caller=caller) != key_of(BODY, caller=caller, scope="user")


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ({"temperature": 0.31}, {}),
        ({"temperature": 2}, {}),
        ({"n": 2}, {}),
        ({}, {"freshness": Freshness(no_store=True)}),
        ({}, {"scope": "user"}),
        ({"user": "u"}, {"scope": "user"}),
    ],
)
def test_what_is_not_to_be_cached_has_no_key(body: dict[str, Any], facts: dict[str, Any]) -> None:
    """A hot request, several choices, ``no-store``, and a scope of users without a user are not cached."""
    assert key_of({**BODY, **body}, **facts) is None


@pytest.mark.parametrize("body", [{"temperature": 0.3}, {"temperature": 0}, {"temperature": None}, {"n": 1}, {}])
def test_what_may_be_cached_has_a_key(body: dict[str, Any]) -> None:
    """A cool request for one choice has a key."""
    assert len(key_of({**BODY, **body}) or "") == 32


async def _handler(call: Any, meter: Any) -> Any:
    raise NotImplementedError


def test_salt_hint_and_handler_are_in_the_key() -> None:
    """Another policy, another task's label or another service's answer has another key."""
    keys = {key_of(BODY), key_of(BODY, salt="t"), key_of(BODY, hint="x"), key_of(BODY, handler=_handler)}
    assert len(keys) == 4


@given(one=MESSAGES, other=MESSAGES)
def test_a_prompt_hash_tells_equal_prompts_from_others(one: Any, other: Any) -> None:
    """Equal messages have equal hashes under one secret, other messages have others."""
    first, second = (prompt_hash(Task.parse({"messages": messages}), b"k" * 32) for messages in (one, other))
    assert (first == second) is (one == other)


def test_a_prompt_hash_depends_on_the_secret() -> None:
    """Who has only the log can't guess a prompt: another secret, another hash; the model does not matter."""
    task = Task.chat("Hello")
    hashes = {prompt_hash(task, secret) for secret in (b"", b"a", b"b" * 32, b"c" * 64)}
    assert len(hashes) == 4
    assert prompt_hash(Task.chat("Hello", model="other"), b"a") in hashes
    assert all(len(found) == 16 for found in hashes)
