"""Requests that are run later, over real HTTP: queued at a limit, run when there is room, asked for by their caller."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.e2e.limits.callers import ANN, BETA, BOB, asking
from tests.gateway import Gateway, embedding_model, nanos, openai_models, write
from tests.observability import free_port
from tests.upstream import Prices, Upstream
from tracerouter.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from tests.e2e.limits.callers import Callers, Said

LATER = {"prefer": "respond-async, wait=5"}
FULL = {"per": "tenant", "limit": "0 requests/day", "then": ["queue"]}
ROOMY = {**FULL, "limit": "100 requests/day"}
ONE_AT_A_TIME = {"per": "tenant", "limit": "0.02 USD/day", "role": "expensive", "then": ["queue"]}
"""A call of the large model holds some 0.01 USD of it, until it has ended."""


def policy(*quotas: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"quotas": list(quotas), **more}


class Here:
    """Gateways of one folder, whose limits may change from one to the next."""

    def __init__(self, folder: Path, url: str, keys: Mapping[str, str]) -> None:
        self._folder, self._keys = folder, keys
        self.models = openai_models(url)

    def path(self, *quotas: Mapping[str, Any], **more: Any) -> Path:
        return write(self._folder, self.models, policy(*quotas, **more), keys=self._keys)

    def open(self, *quotas: Mapping[str, Any], **more: Any) -> Gateway:
        gateway = Gateway(self.path(*quotas, **more))
        assert gateway.router.jobs is not None
        gateway.router.jobs._look = 0.05
        return gateway

    def execute(self, sql: str) -> None:
        with closing(sqlite3.connect(self._folder / "tracerouter.db")) as file:
            file.execute(sql)
            file.commit()


@pytest.fixture
def here(tmp_path: Path, upstream: Upstream, keys: dict[str, str]) -> Here:
    return Here(tmp_path, upstream.url, keys)


async def until(callers: Callers, gateway: Gateway | str, job: Mapping[str, Any], *states: str, key: str = ANN) -> Any:
    """Ask for a job until it is in one of `states`."""
    async with asyncio.timeout(20):
        while (said := await callers.ask("GET", gateway, job["url"], key=key)).body["state"] not in states:
            await asyncio.sleep(0.02)
    return said.body


async def queued(callers: Callers, gateway: Gateway | str, body: Any, **told: str) -> Any:
    said = await callers.post(gateway, body, **{**LATER, **told})
    assert said.status == 202, said.body
    return said.body


async def test_a_request_waits_for_the_budget(here: Here, callers: Callers, upstream: Upstream) -> None:
    """It is 202 with where to ask; when the limit was raised it is run, once, as a request of its own."""
    async with here.open(FULL) as gateway:
        said = await callers.post(gateway, asking("hi [[ok well]]"), prefer="respond-async")
        assert (said.status, said.headers["preference-applied"]) == (202, "respond-async")
        job = said.body
        assert said.headers["location"] == job["url"] == f"/tracerouter/jobs/{job['id']}"
        assert (said.headers["x-tracerouter-route"], said.headers["x-tracerouter-reason"]) == (
            "queued",
            "budget_exhausted",
        )
        assert (job["object"], job["state"], job["limit"]) == (
            "tracerouter.job",
            "queued",
            "tenant 0 requests/day",
        )
        assert 0 < job["due_at"] - job["created_at"] <= 86_400
        assert job["tracerouter"]["quota_action"] == "queue"
        first = next(span for span in gateway.seen.spans if span.name.startswith("route"))
        assert (await until(callers, gateway, job, "queued"))["state"] == "queued"
        assert not upstream.requests
    async with here.open(ROOMY) as gateway:
        done = await until(callers, gateway, job, "done", "failed")
        assert (done["state"], done["status"]) == ("done", 200)
        answer = done["answer"]
        assert (answer["object"], answer["choices"][0]["message"]["content"]) == ("chat.completion", "well")
        assert answer["tracerouter"]["job"] == job["id"]
        run = next(span for span in gateway.seen.spans if span.name.startswith("route"))
        assert run.parent is None
        assert first.context
        assert run.context
        assert [link.context.span_id for link in run.links] == [first.context.span_id]
        assert [link.context.trace_id for link in run.links] == [first.context.trace_id]
        assert run.context.trace_id != first.context.trace_id
    assert len(upstream.requests) == 1
    records = gateway.records()
    asked, ran = records[said.headers["x-request-id"]], records[answer["tracerouter"]["request_id"]]
    assert (asked["outcome"], asked["route"], asked["job"], asked["cost"]) == ("queued", "queued", job["id"], 0)
    assert (ran["outcome"], ran["route"], ran["job"], ran["user"]) == ("answered", "cheap", job["id"], "ann")
    entries = gateway.query("SELECT request_id, tenant, user, cost_nanos FROM entries")
    assert entries == [(ran["request_id"], "acme", "ann", nanos(ran["cost"]))]


async def test_a_request_waits_for_what_others_hold(here: Here, callers: Callers, upstream: Upstream) -> None:
    """When a reservation is released it runs, and not only at the day's end; the request itself is then forgotten."""
    async with here.open(ONE_AT_A_TIME, max_output_tokens=1500) as gateway:
        holding = asyncio.create_task(callers.post(gateway, asking("a [[slow 0.3 one two]]") | {"model": "large"}))
        await upstream.received()
        job = await queued(callers, gateway, asking("my secret [[ok]]") | {"model": "large"})
        await holding
        done = await until(callers, gateway, job, "done")
    assert done["status"] == 200
    assert len(upstream.requests) == 2
    ((kept,),) = gateway.query("SELECT body FROM items")
    assert "secret" not in kept
    costs = sum(cost for (cost,) in gateway.query("SELECT cost_nanos FROM entries"))
    assert costs == sum(nanos(record["cost"]) for record in gateway.records().values())


async def test_only_who_prefers_it_is_queued(here: Here, callers: Callers, upstream: Upstream) -> None:
    """To all others the action does not apply."""
    async with here.open(FULL) as gateway:
        for prefer in ("", "wait=10", "respond-asynchronously"):
            said = await callers.post(gateway, asking("hi"), prefer=prefer)
            assert (said.status, said.body["error"]["code"]) == (429, "budget_exhausted")
        said = await callers.post(gateway, asking("hi", stream=True), prefer="return=minimal; foo, Respond-Async")
        assert (said.status, said.headers["content-type"]) == (202, "application/json")


async def test_a_job_is_its_callers_own(here: Here, callers: Callers) -> None:
    """Another's, be it of the same tenant or a user of that name elsewhere, is not there: 404."""
    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi [[ok]]"))
        for method in ("GET", "DELETE"):
            for key in (BOB, BETA):
                said = await callers.ask(method, gateway, job["url"], key=key)
                assert (said.status, said.body["error"]["code"]) == (404, "not_found")
            assert (await callers.ask(method, gateway, "/tracerouter/jobs/nothing")).status == 404
        assert (await callers.ask("GET", gateway, job["url"], key="nobody's-key")).status == 401
        assert (await callers.ask("GET", gateway, job["url"])).status == 200


async def test_an_idempotency_key_makes_one_job(here: Here, callers: Callers, upstream: Upstream) -> None:
    """The same key and body are the same job, when it is done, too; for another body, or caller, they are not."""
    key = {"idempotency_key": "order-1", "x_tracerouter_cache": "no-store"}
    async with here.open(FULL) as gateway:
        told = await asyncio.gather(*(queued(callers, gateway, asking("hi [[ok]]"), **key) for _ in range(5)))
        assert len({job["id"] for job in told}) == 1
        others = [await queued(callers, gateway, asking("hi [[ok]]"), key=other, **key) for other in (BOB, BETA)]
        assert len({job["id"] for job in (*told, *others)}) == 3
        said = await callers.post(gateway, asking("ho [[ok]]"), **LATER, **key)
        assert (said.status, said.headers["x-should-retry"]) == (422, "false")
        assert (said.body["error"]["type"], said.body["error"]["code"], said.body["error"]["param"]) == (
            "invalid_request_error",
            "idempotency_key_reused",
            "idempotency-key",
        )
        said = await callers.post(gateway, asking("hi"), **LATER, idempotency_key="x" * 256)
        assert (said.status, said.body["error"]["param"]) == (400, "idempotency-key")
    async with here.open(ROOMY) as gateway:
        await until(callers, gateway, told[0], "done")
        again = await queued(callers, gateway, asking("hi [[ok]]"), **key)
        assert (again["id"], again["state"], again["status"]) == (told[0]["id"], "done", 200)
        for job, owner in zip(others, (BOB, BETA), strict=True):
            await until(callers, gateway, job, "done", key=owner)
    assert len(upstream.requests) == 3


async def test_a_job_is_cancelled(here: Here, callers: Callers, upstream: Upstream) -> None:
    """One that waits is never run; one that runs is stopped at once, and what it cost is booked; both are deleted."""
    async with here.open(FULL) as gateway:
        waiting = await queued(callers, gateway, asking("hi [[ok]]"))
        said = await callers.ask("DELETE", gateway, waiting["url"])
        assert (said.status, said.body["deleted"]) == (200, True)
        assert (await callers.ask("GET", gateway, waiting["url"])).status == 404
        running = await queued(callers, gateway, asking("hi [[hang]]"))
    async with here.open(ROOMY) as gateway:
        await upstream.received()
        assert (await until(callers, gateway, running, "running"))["state"] == "running"
        assert (await callers.ask("DELETE", gateway, running["url"])).status == 200
        await upstream.disconnected()
        assert gateway.query("SELECT count(*) FROM items") == [(0,)]
    assert len(upstream.requests) == 1
    (record,) = (one for one in gateway.records().values() if one["outcome"] == "cancelled")
    assert record["job"] == running["id"]
    assert gateway.query("SELECT cost_nanos FROM entries") == [(nanos(record["cost"]),)]


async def test_another_process_sees_that_a_job_was_cancelled(here: Here, callers: Callers, upstream: Upstream) -> None:
    """Whichever replica is told, the one that runs it stops."""
    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi [[hang]]"))
    async with here.open(ROOMY) as running, here.open(ROOMY) as other:
        await upstream.received()
        elsewhere = other if job["id"] in running.router.jobs._running else running  # type: ignore[union-attr]
        assert (await callers.ask("DELETE", elsewhere, job["url"])).status == 200
        await upstream.disconnected()


async def test_a_job_that_fails_says_why(here: Here, callers: Callers) -> None:
    """It ends as the request would have: with the status and the error that its caller would have been answered."""
    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi [[500]]"))
    async with here.open(ROOMY) as gateway:
        failed = await until(callers, gateway, job, "done", "failed")
    assert (failed["state"], failed["status"]) == ("failed", 502)
    assert (failed["answer"]["error"]["type"], failed["answer"]["error"]["code"]) == ("server_error", "no_rung_left")
    assert "request id" in failed["answer"]["error"]["message"]


async def test_a_job_whose_request_is_wrong_by_now(here: Here, callers: Callers) -> None:
    """A model that has gone meanwhile is an error of the job's, and not of the worker's."""
    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi") | {"model": "large"})
    here.models.pop("large")
    async with here.open(ROOMY) as gateway:
        failed = await until(callers, gateway, job, "done", "failed")
        assert (failed["state"], failed["status"]) == ("failed", 404)
        assert failed["answer"]["error"]["code"] == "model_not_found"


async def test_embeddings_are_queued(here: Here, callers: Callers) -> None:
    """They are run as what they are."""
    body = {"model": "embed", "input": "one text"}
    url = here.models["small"]["base_url"]
    here.models |= embedding_model(url)
    async with here.open(FULL, embeddings=["embed"]) as gateway:
        job = await queued(callers, gateway, body, path="/v1/embeddings")
    async with here.open(ROOMY, embeddings=["embed"]) as gateway:
        done = await until(callers, gateway, job, "done")
    assert (done["answer"]["object"], len(done["answer"]["data"])) == ("list", 1)


async def test_replicas_run_each_job_once(here: Here, callers: Callers, upstream: Upstream) -> None:
    """Of two processes that look at the same time one runs it, and the bill is that of the ledger."""
    async with here.open(FULL) as gateway:
        jobs = [await queued(callers, gateway, asking(f"number {at} [[ok]]")) for at in range(20)]
    async with here.open(ROOMY) as one, here.open(ROOMY) as other:
        for at, job in enumerate(jobs):
            await until(callers, (one, other)[at % 2], job, "done")
    assert len(upstream.requests) == 20
    costs = gateway.query("SELECT count(*), count(DISTINCT request_id) FROM entries")
    assert costs == [(20, 20)]


async def test_a_job_that_finds_no_room_after_all_goes_back(here: Here, callers: Callers, upstream: Upstream) -> None:
    """One that is due, and is denied once more, waits for the next day, and does not run in circles."""
    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi [[ok]]"))
        here.execute("UPDATE items SET due = 1")
        async with asyncio.timeout(10):
            while not (rows := [one for one in gateway.records().values() if one["outcome"] == "queued"])[1:]:
                await asyncio.sleep(0.02)
        again = await until(callers, gateway, job, "queued")
        assert again["due_at"] > again["created_at"]
        await asyncio.sleep(0.3)  # some looks: there is nothing to be awaited, as nothing is to happen
    assert len(rows) == 2
    assert len(gateway.records()) == 2
    assert not upstream.requests


async def test_a_run_is_not_asked_to_confirm(here: Here, callers: Callers) -> None:
    """Nobody is there to say so: where a limit stops it, what stands behind that in the list is done."""
    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi [[ok]]"))
    here.execute("UPDATE items SET due = 1")
    async with here.open({**FULL, "then": ["confirm", "queue"]}) as gateway:
        async with asyncio.timeout(10):
            while not gateway.seen.spans:
                await asyncio.sleep(0.02)
        (quota,) = (span for span in gateway.seen.spans if span.name == "quota")
        assert (await until(callers, gateway, job, "queued"))["state"] == "queued"
    assert [tuple((event.attributes or {}).values()) for event in quota.events] == [("confirm", False), ("queue", True)]


SERVE = (sys.executable, "-m", "tracerouter", "serve")


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run the gateway in a process of its own."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *SERVE, "--config", str(path), "--port", str(port), stderr=asyncio.subprocess.DEVNULL, env=dict(os.environ)
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield url, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_job_outlives_the_death_of_its_process(here: Here, callers: Callers, upstream: Upstream) -> None:
    """Killed between queueing and running, and again in the middle of it: it is run all the same, and all is booked."""
    async with served(here.path(FULL)) as (url, process):
        job = await queued(callers, url, asking("hi [[hang then ok at last]]"))
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with served(here.path(ROOMY)) as (url, process):
        await upstream.received()
        assert (await until(callers, url, job, "running"))["state"] == "running"
        process.send_signal(signal.SIGKILL)
        await process.wait()
    here.execute("UPDATE items SET due = 1")  # its lease has ended
    async with here.open(ROOMY) as gateway:
        done = await until(callers, gateway, job, "done", "failed")
        assert done["answer"]["choices"][0]["message"]["content"] == "at last"
    assert len(upstream.requests) == 2
    history = [what for (what,) in gateway.query("SELECT what FROM item_history ORDER BY rowid")]
    assert history == ["run, try 1", "run, try 2", "done"]


async def test_a_job_that_kills_its_process_is_given_up(here: Here, callers: Callers, upstream: Upstream) -> None:
    """After three tries nobody begins it again."""
    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi [[ok]]"))
    body = "json_set(body, '$.tries', 3)"
    here.execute(f"UPDATE items SET state = 'running', due = 1, body = {body}")  # noqa: S608 - no values
    async with here.open(ROOMY) as gateway:
        failed = await until(callers, gateway, job, "failed")
    assert (failed["status"], failed["answer"]["error"]["code"]) == (500, "internal")
    assert "given up" in failed["answer"]["error"]["message"]
    assert not upstream.requests


async def test_a_restart_puts_back_what_runs(here: Here, callers: Callers, upstream: Upstream) -> None:
    """A process that is told to end gives its jobs back at once, and that is no failed try."""
    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi [[hang then ok]]"))
    async with here.open(ROOMY):
        await upstream.received()
    ((state, body),) = gateway.query("SELECT state, body FROM items")
    assert (state, orjson.loads(body)["tries"]) == ("queued", 0)
    async with here.open(ROOMY) as gateway:
        assert (await until(callers, gateway, job, "done"))["status"] == 200


async def test_without_the_store_the_next_action_is_taken(here: Here, callers: Callers) -> None:
    """A request that can't be kept is refused, and not promised; what was promised can't be told for the moment."""

    class Gone:
        def __getattr__(self, _: str) -> Callable[..., Awaitable[Any]]:
            async def gone(*_: object, **__: object) -> Any:
                raise StoreUnavailable

            return gone

    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi"))
        assert gateway.router.jobs is not None
        gateway.router.jobs._items = Gone()  # type: ignore[assignment]
        said: list[Said] = [
            await callers.post(gateway, asking("hi"), **LATER, idempotency_key="a"),
            await callers.ask("GET", gateway, job["url"]),
        ]
    assert [one.status for one in said] == [429, 503]


async def test_an_answer_is_kept_for_a_day(here: Here, callers: Callers) -> None:
    """After that it is gone."""
    async with here.open(FULL) as gateway:
        job = await queued(callers, gateway, asking("hi [[ok]]"))
    async with here.open(ROOMY) as gateway:
        await until(callers, gateway, job, "done")
        ((left,),) = gateway.query("SELECT expires - strftime('%s', 'now') FROM items")
        assert 86_300 < left <= 86_401
        here.execute("UPDATE items SET expires = 1")
        assert (await callers.ask("GET", gateway, job["url"])).status == 404


async def test_cost_is_exact_whatever_becomes_of_it(here: Here, callers: Callers) -> None:
    """The upstream's bill is the sum of the ledger and of the records: a fallback, a failure and an answer."""
    prices = {"small-1": Prices(150_000_000, 600_000_000), "large-1": Prices(2_500_000_000, 10_000_000_000)}
    async with Upstream(prices=prices) as billing:
        here.models = openai_models(billing.url)
        steps = ["ok a b", "small-1=empty, large-1=ok c", "no_usage d", "500"]
        async with here.open(FULL) as gateway:
            jobs = [await queued(callers, gateway, asking(f"q [[{step}]]")) for step in steps]
        async with here.open(ROOMY) as gateway:
            for job in jobs:
                await until(callers, gateway, job, "done", "failed")
        ((booked,),) = gateway.query("SELECT sum(cost_nanos) FROM entries")
        assert booked == billing.nanos == sum(nanos(record["cost"]) for record in gateway.records().values())
