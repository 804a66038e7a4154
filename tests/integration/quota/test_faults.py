"""A Redis that stops, hangs and forgets under load: requests go on, expensive ones fail closed, and nothing is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from functools import partialmethod
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import aiohttp

from tests.gateway import CHAT, Gateway, openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter import config
from tracerouter.quota import RedisLedger
from tracerouter.quota.accounts import ALL, Account
from tracerouter.types import Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from tests.redis_server import RedisServer

PRICES = {"small-1": Prices(150_000_000, 600_000_000), "large-1": Prices(2_500_000_000, 10_000_000_000)}
EXPENSIVE = 60
"""What the policy allows of them in a day."""
POLICY: dict[str, Any] = {
    "tasks": {"puzzle": {"match": ["^puzzle"], "start": "large"}},
    "max_output_tokens": 32,
    "cache": "never",
    "quotas": [
        {"per": "tenant", "role": "expensive", "limit": f"{EXPENSIVE} requests/day"},
        {"per": "tenant", "limit": "100 USD/day"},
    ],
    "without_ledger": {"closed": ["expensive"], "then": ["refuse"]},
}
FAULT = 1.5
"""Seconds that each lasts."""


class Answer(NamedTuple):
    """What a client got."""

    sent: float
    seconds: float
    kind: str
    status: int
    code: str | None


class Traffic:
    """Clients that ask without a pause; use it in ``async with``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        self._asking = [asyncio.create_task(self._ask(client)) for client in range(8)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ending = True
        await asyncio.gather(*self._asking)
        await self._session.close()

    _ending = False

    async def _ask(self, client: int) -> None:
        number = 0
        while not self._ending:
            number += 1
            kind = "puzzle" if (number + client) % 3 == 0 else "question"
            body = {"model": "auto", "messages": [{"role": "user", "content": f"{kind} {number} of client {client}"}]}
            sent = time.monotonic()
            async with self._session.post(self._url + CHAT, json=body) as response:
                told = await response.json()
            code = told["error"]["code"] if "error" in told else None
            self.answers.append(Answer(sent, time.monotonic() - sent, kind, response.status, code))
            await asyncio.sleep(0.15)

    async def until(self, holds: Callable[[Answer], bool]) -> None:
        """Wait for an answer, to what is asked from now on."""
        now = time.monotonic()
        async with asyncio.timeout(10):
            while not any(answer.sent > now and holds(answer) for answer in self.answers):
                await asyncio.sleep(0.02)

    def since(self, moment: float) -> list[Answer]:
        return [answer for answer in self.answers if answer.sent >= moment]


def served(answer: Answer) -> bool:
    return answer.kind == "puzzle" and answer.status == 200


async def test_a_request_with_caches_takes_four_round_trips(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look-up, reservation, settling and keeping are one each; a hit in memory is none, one in Redis is one."""
    monkeypatch.setattr(RedisLedger, "__init__", partialmethod(RedisLedger.__init__, window=0))
    async with Upstream(prices=PRICES) as upstream:
        path = write(tmp_path, openai_models(upstream.url), {**POLICY, "cache": {"ttl": "10m"}}, store=redis.url)
        one, other = config.load(path).router, config.load(path).router
        trips = []
        for router, number in ((one, 1), (other, 2), (one, 3), (one, 3), (other, 3)):
            ledger: Any = router._ledger
            while not ledger._rebuilt:
                await ledger.start()
                await asyncio.sleep(0.02)
            ledger._watching.cancel()  # it asks, too
            before = ledger._store.round_trips
            outcome = await router.route(Task.chat(f"question {number}"))
            assert outcome.completion is not None
            trips.append(ledger._store.round_trips - before)
        await one.close()
        await other.close()
    assert trips[2:] == [4, 0, 1]
    assert len(upstream.requests) == 3


async def test_redis_stops_hangs_and_forgets_under_load(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cheap requests are served throughout; expensive ones when limits can be checked, and never more than allowed."""
    monkeypatch.setattr(RedisLedger, "__init__", partialmethod(RedisLedger.__init__, window=1.2))
    async with Upstream(prices=PRICES) as upstream:
        path = write(tmp_path, openai_models(upstream.url), POLICY, store=redis.url)
        async with Gateway(path) as gateway, Traffic(gateway.url) as traffic:
            ledger: Any = gateway.router._ledger
            await traffic.until(served)
            faults: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
                "stopped": (redis.stop, redis.start),
                "hangs": (redis.pause, redis.resume),
                "flushed": (lambda: redis.ask("FLUSHALL"), lambda: None),
            }
            for fault, (begin, end) in faults.items():
                await asyncio.to_thread(begin)
                began = time.monotonic()
                await traffic.until(lambda answer: answer.code == "ledger_unavailable")
                await asyncio.sleep(FAULT if fault != "flushed" else 0)
                if fault != "flushed":
                    late = [answer for answer in traffic.since(began + 0.7) if served(answer)]
                    assert not late, fault
                    assert not ledger.available
                await asyncio.to_thread(end)
                await traffic.until(served)
                asked = traffic.since(began)
                assert {answer.status for answer in asked if answer.kind == "question"} == {200}, fault
                puzzles = {(answer.status, answer.code) for answer in asked if answer.kind == "puzzle"}
                assert puzzles == {(200, None), (503, "ledger_unavailable")}, fault
                assert max(answer.seconds for answer in asked) < 2.5, fault
            await traffic.until(lambda answer: answer.code == "budget_exhausted")
        booked = ledger.balance("default", Account(ledger.calendar.day(time.time()), "tenant", ALL))
    large = [charge for charge in upstream.charges if charge.model == "large-1"]
    assert len(large) == EXPENSIVE
    assert booked.spent.cost_nanos == upstream.nanos
    assert booked.held.cost_nanos == 0
    with closing(sqlite3.connect(tmp_path / "tracerouter-journal.db")) as file:
        (entries,) = file.execute("SELECT sum(cost_nanos) FROM entries").fetchone()
        (records,) = file.execute("SELECT sum(cost_nanos) FROM decisions").fetchone()
        reasons = {reason for (reason,) in file.execute("SELECT DISTINCT reason FROM decisions")}
    assert entries == records == upstream.nanos
    assert {"ledger_unavailable", "budget_exhausted"} <= reasons
