"""No code is for show: every reason, status and route word is reached by a real request, and told in its record."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.test_router import LOOK, Rig, Scripted, blind, order, rig
from tracerouter.cache import BoundedMemoryCache, OutputCache
from tracerouter.classifiers import Chain, RiskClassifier
from tracerouter.errors import BadRequest
from tracerouter.policy import Policy, PolicyFile
from tracerouter.policy.model import ReviewPolicy
from tracerouter.providers import Simulated, SimulatedProvider
from tracerouter.quota import Confirmations, Jobs, MemoryRates, SqliteLedger
from tracerouter.review import Reviews
from tracerouter.store import SqliteItems, SqliteStore
from tracerouter.types import Caller, Classification, Freshness, Outcome, Reason, Status, Task
from tracerouter.validators import Checks
from tracerouter.web import chat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUTES = {"cached", "cheap", "expensive", "fallback", "review", "queued", "refused", "failed"}
"""Design.md's words for a route, those built today."""


def picky(task: Task, completion: Any) -> str | None:
    """Turn down whatever does not say please."""
    return None if "please" in completion.text else "it does not say please"


def simulated(*failures: str) -> SimulatedProvider:
    return SimulatedProvider(Simulated(failures=failures))


async def routed(with_models: Rig, *tasks: Task) -> list[Outcome]:
    return [await with_models.router.route(task) for task in tasks]


async def confident() -> Rig:
    with_models = rig("fine", cache=OutputCache(BoundedMemoryCache()))
    await routed(with_models, Task.chat("hello"), Task.chat("hello"), Task.chat("hello", model="small"))
    return with_models


async def thresholds() -> Rig:
    policy = {"min_confidence": 0.5, "risks": {"legal": {"match": ["contract"], "min_confidence": 0.9}}}

    class Guess:
        async def classify(self, task: Task) -> Classification:
            return Classification("guess", 0.6 if "contract" in task.text else 0.4, classifier="guess")

    made = Policy.of(PolicyFile.model_validate({"ladder": ["small", "large"], **policy}))
    with_models = rig("fine", policy=policy, classifier=RiskClassifier(Chain([Guess()]), made.risks))
    await routed(with_models, Task.chat("hello"), Task.chat("a contract"))
    nobody = rig("fine", policy=policy)
    await routed(nobody, Task.chat("hello"))
    with_models.rows.rows += nobody.rows.rows
    return with_models


async def rules() -> Rig:
    with_models = rig("fine", policy={"tiers": {"free": {"ladder": ["small"]}}})
    free = Caller(tier="free")
    await routed(
        with_models,
        Task.chat("hello", hint="sql"),
        Task.chat("hello", hint="sql", caller=free),
        Task.chat("hello", model="large", caller=free),
        Task.chat("summarize: " + "word " * 100),
    )
    return with_models


async def unsupported() -> Rig:
    with_models = blind(rig("fine"), "small")
    await routed(with_models, Task.parse(LOOK))
    return with_models


async def rejected() -> Rig:
    checks = Checks(["tests.unit.test_reasons:picky", "empty", "truncated", "refusal"])
    names = ["empty", "truncated", "refusal", "tests.unit.test_reasons:picky"]
    small = Scripted("", "I can't help with that.", "nothing polite")
    with_models = rig(small, "yes, please", checks=checks, policy={"validate": names})
    await routed(with_models, *[Task.chat("hello")] * 3)
    cut = rig(simulated("truncated"), "yes, please", checks=checks, policy={"validate": names})
    await routed(cut, Task.chat("hello"))
    wrong = rig('{"total": "many"}', '{"total": 1}')
    await routed(wrong, order())
    with_models.rows.rows += cut.rows.rows + wrong.rows.rows
    return with_models


async def lost() -> Rig:
    with_models = rig(simulated("429", "500", "context_too_long"), "lost")
    await routed(with_models, *[Task.chat("hello")] * 3)
    late = rig("hang")
    await routed(late, Task.chat("hello", timeout=0.01))
    with_models.rows.rows += late.rows.rows
    return with_models


async def reviewed() -> Rig:
    store = SqliteStore(":memory:")
    reviews = Reviews(SqliteItems(store), ReviewPolicy())
    policy = {"risks": {"legal": {"match": ["contract"], "review": "draft"}}}
    with_models = rig("fine", policy=policy, reviews=reviews)
    await routed(with_models, Task.chat("a contract"))
    store.close()
    await routed(with_models, Task.chat("a contract"))
    return with_models


async def ended() -> Rig:
    with_models = rig("hang")
    routing = asyncio.create_task(with_models.router.route(Task.chat("hello")))
    await with_models.small.started.wait()
    routing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await routing
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(BadRequest):
        await routed(
            with_models, Task.parse({"messages": [{"role": "user", "content": "a"}], "response_format": wrong})
        )

    class Buggy:
        async def classify(self, _: Task) -> Any:
            raise ZeroDivisionError

    buggy = rig("fine", classifier=Buggy())
    with pytest.raises(ZeroDivisionError):
        await routed(buggy, Task.chat("hello"))
    with_models.rows.rows += buggy.rows.rows
    return with_models


async def limits() -> Rig:
    store = SqliteStore(":memory:")
    quota = {"per": "tenant", "limit": "1 requests/day", "then": ["stale"]}
    cache = OutputCache(BoundedMemoryCache())
    with_models = rig("fine", policy={"quotas": [quota]}, ledger=SqliteLedger(store), cache=cache)
    old = Task.chat("hello", freshness=Freshness(max_age=0))
    await routed(with_models, Task.chat("hello"), old, Task.chat("hi"))
    store.close()
    closed = rig("fine", policy={"quotas": [quota]}, ledger=SqliteLedger(store))
    await routed(closed, Task.chat("hello", hint="sql"), Task.chat("hello", model="large"))
    with_models.rows.rows += closed.rows.rows
    return with_models


async def later() -> Rig:
    store = SqliteStore(":memory:")
    items = SqliteItems(store)
    parts = {
        "ledger": SqliteLedger(store),
        "rates": MemoryRates(),
        "confirmations": Confirmations(items),
        "jobs": Jobs(items, chat.later),
    }
    full = {"per": "tenant", "limit": "0 requests/day", "then": ["queue", "confirm"]}
    rates = [{"limit": "2 requests/hour"}]
    with_models = rig("fine", policy={"quotas": [full], "rates": rates}, **parts)
    await routed(with_models, Task.chat("hello", respond_async=True), Task.chat("hello"), Task.chat("hello"))
    await with_models.router.close()
    store.close()
    return with_models


DRIVES: list[Callable[[], Awaitable[Rig]]] = [
    confident,
    thresholds,
    rules,
    unsupported,
    rejected,
    lost,
    reviewed,
    ended,
    limits,
    later,
]


@pytest.fixture
async def rows() -> list[dict[str, Any]]:
    """The decision rows of requests that take every turn there is."""
    return [dict(row) for drive in DRIVES for row in (await drive()).rows.rows]


async def test_every_code_is_reached(rows: list[dict[str, Any]]) -> None:
    """Real requests emit every reason, every status and every route word, and none besides."""
    told = {row["reason"] for row in rows} | {row["fallback_reason"] for row in rows if "fallback_reason" in row}
    told |= {tried["failure"] for row in rows for tried in row.get("attempts", ()) if "failure" in tried}
    assert told == set(Reason)
    assert {row["outcome"] for row in rows} == set(Status)
    assert {row["route"] for row in rows} == ROUTES


async def test_codes_agree_within_a_row(rows: list[dict[str, Any]]) -> None:
    """A fallback's reason is the reason, and is the failure of the attempt before it; a refusal tried nothing."""
    for row in rows:
        if row["outcome"] == "answered" and "fallback_reason" in row:
            assert row["route"] == "fallback"
            assert row["reason"] == row["fallback_reason"] == row["attempts"][-2]["failure"]
        if row["outcome"] in ("refused", "cached", "stale", "queued", "needs_confirmation"):
            other = {"stale": "cached", "needs_confirmation": "refused"}
            assert row["route"] == other.get(row["outcome"], row["outcome"])
        if row["reason"] == "review_unavailable":
            assert row["attempt_count"] == 1  # the draft was paid for when the queue turned out to be closed
        elif row["outcome"] in ("refused", "cached", "stale", "queued", "needs_confirmation"):
            assert row["attempt_count"] == 0
            assert row["cost"] == 0
        assert (
            ("error_type" in row)
            == (row["outcome"] in ("failed", "refused", "needs_confirmation", "cancelled"))
            == (row["severity"] == "WARN")
        )
