"""Tokens and jobs on a SQLite file and on a real Redis: what holds of one holds of the other."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tracerouter.errors import Conflict, KeyReused
from tracerouter.quota import Confirmations, Jobs
from tracerouter.store import RedisItems, RedisStore, SqliteItems, SqliteStore
from tracerouter.types import (
    Caller,
    Completion,
    Confirmed,
    Denied,
    Freshness,
    Job,
    Limit,
    Outcome,
    Reason,
    Role,
    Spend,
    Status,
    Task,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.redis_server import RedisServer
    from tracerouter.store import Items

ANN = Caller("acme", "web", "ann", "free")
DENIED = Denied(Limit("a day's", "tenant", "requests", 5, "day"), 0, 3600.0)
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(params=["sqlite", "redis"])
async def another(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], Items]]:
    """Open the same items again, as another process would."""
    async with AsyncExitStack() as closing:

        def opened() -> Items:
            if request.param == "sqlite":
                file = SqliteStore(tmp_path / "store.db")
                closing.callback(file.close)
                return SqliteItems(file)
            server: RedisServer = request.getfixturevalue("redis")
            shared = RedisStore(server.url)
            closing.push_async_callback(shared.close)
            return RedisItems(shared)

        yield opened


def task(text: str = "hello", **facts: Any) -> Task:
    return Task.chat(text, **{"caller": ANN, **facts})


class Process:
    """A worker, and what it ran."""

    def __init__(self, items: Items, *, room: bool = True, hangs: bool = False) -> None:
        self.ran: list[Task] = []
        self.asked: list[tuple[Caller, Role, Spend]] = []
        self.room = room
        self.jobs = Jobs(items, lambda _, operation: (200, {"of": operation}), look=0.05)
        self._hangs = hangs
        self.began = asyncio.Event()
        self.jobs.start(self._run, self._room)

    async def _run(self, task: Task) -> Outcome:
        self.ran.append(task)
        self.began.set()
        if self._hangs:
            await asyncio.Event().wait()
        answer = Completion.of("well", model="m")
        return Outcome(Status.ANSWERED, Reason.CONFIDENT, "r", {}, {}, completion=answer)

    async def _room(self, caller: Caller, role: Role, bound: Spend) -> bool:
        self.asked.append((caller, role, bound))
        return self.room

    async def put(self, task: Task) -> Job:
        bound = Spend(700, 1, 90)
        return await self.jobs.put(task, DENIED, Role.EXPENSIVE, bound, traceparent=TRACEPARENT, time_limit=9.0)

    async def until(self, job: Job, state: str) -> Job:
        async with asyncio.timeout(10):
            while True:
                found = await self.jobs.get(job.id, ANN)
                assert found is not None
                if found.state == state:
                    return found
                await asyncio.sleep(0.01)


async def test_a_token_is_taken_once_by_whoever_is_first(another: Callable[[], Items]) -> None:
    """Of twenty that come with it to two processes, one passes; what it is good for is what was offered."""
    here, there = Confirmations(another()), Confirmations(another())
    offered = await here.offer(task(), "large", ["first", "second"], 1_500)
    assert (offered.limit, offered.model, offered.most) == ("second", "large", 1_500)
    told = await asyncio.gather(
        *(at.redeem(offered.token, task()) for at in (here, there) for _ in range(10)), return_exceptions=True
    )
    assert [one for one in told if not isinstance(one, BaseException)] == [Confirmed("large", ("first", "second"))]
    assert sum(isinstance(one, Conflict) for one in told) == 19


async def test_a_job_is_run_as_it_was_asked(another: Callable[[], Items]) -> None:
    """Who asked, what, how, and why it waited: all of it outlives the process that took it."""
    first = Process(another(), room=False)
    asked = task(hint="sql", freshness=Freshness(max_age=60.0))
    job = await first.put(asked)
    assert (job.state, job.limit, job.reason) == ("queued", "a day's", Reason.BUDGET_EXHAUSTED)
    async with asyncio.timeout(5):
        while not first.asked:
            await asyncio.sleep(0.01)
    assert first.asked[0] == (ANN, Role.EXPENSIVE, Spend(700, 1, 90))
    await first.jobs.close()
    assert not first.ran
    second = Process(another())
    done = await second.until(job, "done")
    assert (done.status, done.answer) == (200, {"of": "chat"})
    (ran,) = second.ran
    assert (ran.body, ran.caller, ran.hint, ran.freshness) == (asked.body, ANN, "sql", Freshness(max_age=60.0))
    assert ran.timeout == 9.0
    assert ran.origin == (job.id, TRACEPARENT)
    await second.jobs.close()


async def test_two_processes_run_each_job_once(another: Callable[[], Items]) -> None:
    """However they race for them."""
    one, two = Process(another(), room=False), Process(another(), room=False)
    jobs = [await one.put(task(f"number {at}")) for at in range(20)]
    one.room = two.room = True
    for job in jobs:
        await one.until(job, "done")
    texts = [ran.text for process in (one, two) for ran in process.ran]
    assert sorted(texts) == sorted(f"number {at}" for at in range(20))
    for process in (one, two):
        await process.jobs.close()


async def test_equal_requests_are_one_job(another: Callable[[], Items]) -> None:
    """A key belongs to a tenant and a user, and to one body."""
    here, there = Process(another(), room=False), Process(another(), room=False)
    told = await asyncio.gather(*(at.put(task(idempotency_key="k")) for at in (here, there) for _ in range(5)))
    assert len({job.id for job in told}) == 1
    assert await there.jobs.earlier(task(idempotency_key="k")) == told[0]
    others = [Caller("acme", "web", "bob"), Caller("beta", "web", "ann"), Caller("acme")]
    ids = {(await here.put(task(idempotency_key="k", caller=other))).id for other in others}
    assert len(ids | {told[0].id}) == 4
    for again in (here.put(task("other", idempotency_key="k")), there.jobs.earlier(task("o", idempotency_key="k"))):
        with pytest.raises(KeyReused):
            await again
    for process in (here, there):
        await process.jobs.close()


async def test_a_job_that_is_deleted_stops(another: Callable[[], Items]) -> None:
    """In the process that runs it, whichever that is; it is nobody's to see then."""
    here, there = Process(another(), hangs=True), Process(another(), room=False)
    job = await here.put(task())
    await here.began.wait()
    assert not await there.jobs.cancel(job.id, Caller("beta", "web", "ann"))
    assert await there.jobs.cancel(job.id, ANN)
    assert await there.jobs.get(job.id, ANN) is None
    async with asyncio.timeout(5):
        while here.jobs._running:
            await asyncio.sleep(0.01)
    assert not await there.jobs.cancel(job.id, ANN)
    for process in (here, there):
        await process.jobs.close()
