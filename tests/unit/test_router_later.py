"""What a router does at a limit that puts a request off, read off a router in the process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.test_router import Rig, rig
from tracerouter.errors import ConfigError
from tracerouter.quota import Confirmations, Jobs, SqliteLedger
from tracerouter.store import SqliteItems, SqliteStore
from tracerouter.telemetry import Keep, names
from tracerouter.types import Completion, Status, Task
from tracerouter.web import chat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracerouter.types import Call, Meter


@pytest.fixture
def store() -> Iterator[SqliteStore]:
    made = SqliteStore(":memory:")
    yield made
    made.close()


def limited(store: SqliteStore, *then: str, limit: str = "0 requests/day") -> Rig:
    items = SqliteItems(store)
    jobs = Jobs(items, chat.later, look=0.02)
    quota = {"per": "tenant", "limit": limit, "then": list(then)}
    parts: dict[str, Any] = {"ledger": SqliteLedger(store), "confirmations": Confirmations(items), "jobs": jobs}
    return rig("fine", policy={"quotas": [quota]}, **parts)


@pytest.mark.parametrize(("action", "needed"), [("confirm", "confirmations"), ("queue", "jobs")])
def test_an_action_needs_what_does_it(action: str, needed: str) -> None:
    """A policy names no action that this router can't do: it would be a silence."""
    quota = {"per": "tenant", "limit": "1 USD/day", "then": ["stale", action]}
    with pytest.raises(ConfigError, match=rf"quotas.0.then: `{action}` needs the router's `{needed}`"):
        rig("fine", policy={"quotas": [quota]})


async def test_the_worker_starts_with_the_first_job(store: SqliteStore) -> None:
    """A router that was never started runs what it queues, in no trace but its own."""
    with_models = limited(store, "queue", limit="1 requests/day")
    await with_models.router.route(Task.chat("the one of the day"))
    outcome = await with_models.router.route(Task.chat("hello", respond_async=True))
    assert (outcome.status, outcome.completion) == (Status.QUEUED, None)
    assert outcome.job is not None
    assert with_models.router.jobs is not None
    store.read("UPDATE items SET due = 1")
    async with asyncio.timeout(5):
        while len(with_models.rows.rows) < 3:
            await asyncio.sleep(0.01)
    await with_models.router.close()
    assert [row["outcome"] for row in with_models.rows.rows] == ["answered", "queued", "queued"]
    assert [row.get("job") for row in with_models.rows.rows] == [None, outcome.job.id, outcome.job.id]
    assert len({row["trace_id"] for row in with_models.rows.rows}) == 3


async def test_what_was_put_off_is_always_kept(store: SqliteStore) -> None:
    """The trace that a run is linked to is there, and so is that of a request that is to be confirmed."""
    with_models = limited(store, "queue", "confirm")
    with_models.router.telemetry.keep = Keep(share=0.0)
    for later in (True, False):
        await with_models.router.route(Task.chat("hello", respond_async=later))
    await with_models.router.close()
    roots = [span for span in with_models.seen.spans if span.name.startswith("route")]
    assert [dict(span.attributes or {})[names.KEEP] for span in roots] == ["refusal", "refusal"]


async def test_what_needs_its_request_is_not_queued(store: SqliteStore) -> None:
    """A wrapped service's handler is gone when the request is: the next action is taken."""

    async def service(call: Call, meter: Meter) -> Completion:
        raise AssertionError

    with_models = limited(store, "queue")
    outcome = await with_models.router.route(Task.chat("hello", respond_async=True, handler=service))
    assert outcome.status is Status.REFUSED
    assert outcome.job is None
