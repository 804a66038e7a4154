"""Who is given another's answer, to which questions, and how old it may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.test_router import Rig, Scripted, rig
from tracerouter.cache import BoundedMemoryCache, OutputCache, output
from tracerouter.errors import BadRequest
from tracerouter.types import Caller, Freshness, Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracerouter.types import Outcome

ANN, BOB, EVE = Caller("acme", user="ann"), Caller("acme", user="bob"), Caller("other", user="ann")


class Clock:
    now = 1_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(output, "time", made)
    return made


def caching(cache: Mapping[str, Any], **policy: Any) -> Rig:
    small = Scripted("first", "second", "third", "fourth", "fifth")
    return rig(small, policy={"cache": cache, **policy}, cache=OutputCache(BoundedMemoryCache()))


async def said(with_models: Rig, text: str, caller: Caller = ANN, **facts: Any) -> str:
    outcome: Outcome = await with_models.router.route(Task.chat(text, caller=caller, **facts))
    assert outcome.completion is not None
    return outcome.completion.text


async def test_a_tenants_users_share_answers() -> None:
    """Under scope ``tenant`` a tenant's users are given each other's answers, and nobody else is."""
    with_models = caching({"scope": "tenant"})
    assert [await said(with_models, "hello", who) for who in (ANN, BOB, EVE, ANN)] == [
        "first",
        "first",
        "second",
        "first",
    ]
    assert await said(with_models, "hello", Caller("acme")) == "first"


async def test_a_user_keeps_answers_for_itself() -> None:
    """Under scope ``user`` each user has its own answers, and without a user nothing is looked up or kept."""
    with_models = caching({"scope": "user"})
    assert [await said(with_models, "hello", who) for who in (ANN, BOB, EVE, ANN)] == [
        "first",
        "second",
        "third",
        "first",
    ]
    for answer in ("fourth", "fifth"):
        assert await said(with_models, "hello", Caller("acme")) == answer
        assert with_models.row["cache_status"] == "bypass"


async def test_questions_that_differ_in_form_are_one() -> None:
    """A question in other spacing, with an owner's synonym or noise, is answered before; the model sees it raw."""
    how = {"synonyms": {"invoice": "bill"}, "noise": ["^hi[,!. ]+"]}
    with_models = caching({"normalize": how})
    assert await said(with_models, "Hi!  where is my invoice?\n") == "first"
    assert with_models.small.calls[0].body["messages"][0]["content"] == "Hi!  where is my invoice?\n"
    assert await said(with_models, "where is my bill?") == "first"
    assert (with_models.row["cache_status"], with_models.row["cost"]) == ("hit", 0)
    assert await said(with_models, "where is not my bill?") == "second"


async def test_normalisation_can_be_turned_off() -> None:
    """Under ``normalize: off`` only equal questions are one."""
    with_models = caching({"normalize": "off"})
    assert [await said(with_models, text) for text in ("hello", "hello ", "hello")] == ["first", "second", "first"]


async def test_a_task_and_a_caller_name_a_freshness(clock: Clock) -> None:
    """A task's answers live as long as the freshness that it names; a caller may ask for a younger one by name."""
    with_models = caching(
        {"ttl": "daily"},
        freshness={"static": "30d", "daily": "1d", "hourly": "1h", "now": 0},
        tasks={
            "faq": {"match": ["^faq"], "cache": {"ttl": "static"}},
            "news": {"match": ["^news"], "cache": {"ttl": "now"}},
        },
    )
    hourly = Freshness(label="hourly")
    assert [await said(with_models, text) for text in ("hello", "faq", "news", "news")] == [
        "first",
        "second",
        "third",
        "fourth",
    ]
    clock.now += 7200
    assert await said(with_models, "hello") == "first"
    assert await said(with_models, "hello", freshness=hourly) == "fifth"
    clock.now += 86_400
    assert await said(with_models, "faq") == "second"
    await said(with_models, "hello")
    assert with_models.row["cache_status"] == "stale"


async def test_an_unknown_freshness_is_the_callers_mistake() -> None:
    """A name that the policy does not have is refused before a model is asked, with or without a cache."""
    for with_models in (caching({}, freshness={"daily": "1d"}), rig("fine", policy={"freshness": {"daily": "1d"}})):
        with pytest.raises(
            BadRequest, match=r"'dayly' \(did you mean 'daily'\?\); known are no-store, max-age=SECONDS, daily"
        ):
            await said(with_models, "hello", freshness=Freshness(label="dayly"))
        assert not with_models.small.calls
        assert with_models.row["reason"] == "bad_request"
