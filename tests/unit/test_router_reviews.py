"""How a request gets to a person, with models that behave as written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.test_router import Scripted, rig
from tracerouter.classifiers import RulesClassifier
from tracerouter.errors import BadRequest, ConfigError
from tracerouter.policy import Policy, PolicyFile
from tracerouter.policy.model import ReviewPolicy
from tracerouter.providers import HandlerProvider, Model
from tracerouter.review import Reviews
from tracerouter.router import Router
from tracerouter.store import SqliteItems, SqliteStore
from tracerouter.types import Completion, Reason, Status, Task
from tracerouter.validators import Checks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tracerouter.types import Call, Meter

DRAFTS = {"risks": {"legal": {"match": ["contract"], "review": "draft"}}}
AFTER = {"risks": {"legal": {"match": ["contract"], "review": "after_ladder"}}}


@pytest.fixture
async def reviews() -> AsyncIterator[Reviews]:
    store = SqliteStore(":memory:")
    yield Reviews(SqliteItems(store), ReviewPolicy())
    await asyncio.to_thread(store.close)


async def body_of(reviews: Reviews, review: str | None) -> dict[str, Any]:
    return dict((await reviews.get(review or "")).body)


async def test_a_draft_is_paid_for_once(reviews: Reviews) -> None:
    """One rung is tried; the outcome has no completion; the record and the ledger have the draft's cost."""
    with_models = rig("fine", policy=DRAFTS, reviews=reviews)
    outcome = await with_models.router.route(Task.chat("a contract"))
    assert (outcome.status, outcome.reason, outcome.completion) == (Status.IN_REVIEW, Reason.RISK, None)
    assert (await body_of(reviews, outcome.review))["draft"]["choices"][0]["message"]["content"] == "fine"
    assert with_models.large.calls == []
    assert [entry.cost.nanos for entry in with_models.books.entries] == [outcome.cost_nanos] == [120]
    assert (with_models.row["route"], with_models.row["cost"]) == ("review", 120 / 1e9)
    assert with_models.spans()["review"].status.is_ok


async def test_no_chunk_of_a_draft_reaches_a_sink(reviews: Reviews) -> None:
    """Though nothing else holds the stream back."""
    got: list[Any] = []

    async def sink(chunk: Any) -> None:
        got.append(chunk)

    with_models = rig("one|two", policy={**DRAFTS, "validate": ["empty"]}, reviews=reviews)
    outcome = await with_models.router.route(Task.chat("a contract"), sink)
    assert outcome.status is Status.IN_REVIEW
    assert got == []
    await with_models.router.route(Task.chat("a song"), sink)
    assert len(got) == 2


async def test_after_a_chunk_nobody_reviews(reviews: Reviews) -> None:
    """A stream that breaks after its first chunk has failed."""

    async def sink(_: Any) -> None: ...

    with_models = rig("one|lost", policy={**AFTER, "validate": ["empty"]}, reviews=reviews)
    outcome = await with_models.router.route(Task.chat("a contract"), sink)
    assert (outcome.status, outcome.review) == (Status.FAILED, None)


async def test_after_the_ladder_the_last_answer_is_the_draft(reviews: Reviews) -> None:
    """The reason is why the last rung's was turned down, and each rung is paid for."""
    refusal = "I can't help with that."
    with_models = rig(refusal, refusal, policy=AFTER, reviews=reviews)
    outcome = await with_models.router.route(Task.chat("a contract"))
    assert (outcome.status, outcome.reason, len(outcome.attempts)) == (Status.IN_REVIEW, Reason.REFUSAL, 2)
    body = await body_of(reviews, outcome.review)
    assert (body["draft_model"], body["failures"]) == ("large", ["refusal $"])
    assert sum(entry.cost.nanos or 0 for entry in with_models.books.entries) == 1320
    answered = rig(refusal, "yes", policy=AFTER, reviews=reviews)
    assert (await answered.router.route(Task.chat("a contract"))).status is Status.ANSWERED


async def test_what_is_late_goes_to_a_person_too(reviews: Reviews) -> None:
    """A deadline that passes is no answer either."""
    with_models = rig("hang", policy=AFTER, reviews=reviews)
    outcome = await with_models.router.route(Task.chat("a contract", timeout=0.05))
    assert (outcome.status, outcome.reason) == (Status.IN_REVIEW, Reason.TIMEOUT)


async def test_a_draft_in_review_is_not_kept_in_the_cache(reviews: Reviews) -> None:
    """The next equal request is reviewed as well."""
    with_models = rig("fine", policy={**DRAFTS, "cache": {"ttl": "1h"}}, reviews=reviews)
    for _ in range(2):
        assert (await with_models.router.route(Task.chat("a contract"))).status is Status.IN_REVIEW


async def test_a_wrapped_handler_writes_no_draft(reviews: Reviews) -> None:
    """What it answers would reach the caller; without another model a person writes the answer."""
    called = False

    async def handler(_: Call, __: Meter) -> Completion:
        nonlocal called
        called = True
        return Completion.of("mine", model="handler")

    with_models = rig(Scripted("429"), Scripted("429"), policy=DRAFTS, reviews=reviews)
    outcome = await with_models.router.route(Task.chat("a contract", handler=handler))
    assert (outcome.status, called) == (Status.IN_REVIEW, False)
    assert (await body_of(reviews, outcome.review))["draft"] is None


async def test_a_webhook_needs_a_target_that_is_allowed(reviews: Reviews) -> None:
    """In the process as over HTTP, and before anything is spent."""
    with_models = rig("fine", policy=DRAFTS, reviews=reviews)
    with pytest.raises(BadRequest, match="sends no webhooks"):
        await with_models.router.route(Task.chat("a contract", webhook="https://example.com/"))
    assert with_models.small.calls == []


@pytest.mark.parametrize(
    ("policy", "where"),
    [
        ({"ladder": ["handler"]}, "ladder"),
        ({"ladders": {"own": ["handler"]}}, "ladders.own"),
        ({"tiers": {"free": {"ladder": ["handler"]}}}, "tiers.free.ladder"),
    ],
)
def test_drafts_need_a_model(reviews: Reviews, policy: dict[str, Any], where: str) -> None:
    """A ladder of the wrapped service alone could write none: the error names the ladder and the fix."""
    written = PolicyFile.model_validate({"ladder": ["small", "handler"], **DRAFTS, **policy})
    models = [
        Model(alias="small", name="small-1", provider=Scripted("fine")),
        Model(alias="handler", name="handler", provider=HandlerProvider()),
    ]
    facts: dict[str, Any] = {"classifier": RulesClassifier({}), "checks": Checks(), "reviews": reviews}
    with pytest.raises(ConfigError, match=rf"policy: {where}: `review: draft` needs a model .* put a model before it"):
        Router(models, Policy.of(written), **facts)
    Router(models, Policy.of(written.model_copy(update={"risks": {}})), **facts)


def test_reviews_need_a_queue() -> None:
    """A policy that asks for reviews can't be served without one."""
    with pytest.raises(ConfigError, match="`review` needs a queue"):
        rig("fine", policy=DRAFTS)
    rig("fine")
