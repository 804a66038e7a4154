"""Processes that race for one budget, and processes that die: through real routers, against an upstream's own bill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.gateway import NANOS, openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter import config
from tracerouter.quota.accounts import ALL, Account

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.conftest import Told
    from tracerouter.quota import RedisLedger, SqliteLedger
    from tracerouter.types import Balance

ROOT = Path(__file__).parents[3]
PROCESSES, CALLERS = 4, 250
PRICES = {"small-1": Prices(150_000_000, 600_000_000), "large-1": Prices(2_500_000_000, 10_000_000_000)}
SIXTEEN = "truncated one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
"""An answer that takes all the tokens that it may: so the bound is the truth."""


@pytest.fixture(params=["sqlite", "redis"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> list[tuple[Path, str]]:
    """Return a folder for each process's files, with its store: Redis's processes share a journal by twos."""
    if request.param == "sqlite":
        return [(tmp_path, "sqlite:///tracerouter.db")] * PROCESSES
    found = []
    for number in range(PROCESSES):
        folder = tmp_path / f"machine{number // 2}"
        folder.mkdir(exist_ok=True)
        found.append((folder, request.getfixturevalue("redis").url))
    return found


class Callers:
    """The processes; use it in ``async with``."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.round_trips = 0
        self._told: dict[int, dict[str, bool]] = {}
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        command = (sys.executable, "-m", "tests.integration.quota.callers")
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        for pid, told in self._told.items():
            if not told.keys() & {"end", "killed"}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            if "forked" in told:
                self._told.setdefault(told["forked"], {})
            elif "name" in told:
                self.answers.append(told)
            else:
                self._told.setdefault(told["pid"], {}).update(told)
                self.round_trips += told.get("end", 0)
            self._changed.set()
            self._changed = asyncio.Event()

    async def fork(self, path: Path, asks: Iterable[tuple[str, str, str]], go: Path, **facts: Any) -> int:
        """Fork a process, and return its id when it is ready."""
        assert self._process.stdin is not None
        known = set(self._told)
        told = {"config": str(path), "asks": list(asks), "go": str(go), "margin": 10.0, "timeout": 60.0, **facts}
        self._process.stdin.write(json.dumps(told).encode() + b"\n")
        await self.until(lambda: any("ready" in told for pid, told in self._told.items() if pid not in known))
        return next(iter(self._told.keys() - known))

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await self._changed.wait()

    async def ended(self, number: int) -> None:
        await self.until(lambda: sum("end" in told for told in self._told.values()) == number)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self._told[pid]["killed"] = True


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteLedger | RedisLedger]:
    """Open the ledger that a file names, as one more process would."""
    router = config.load(path).router
    await router.start()
    ledger: Any = router._ledger
    try:
        async with asyncio.timeout(15):
            while not ledger.available:
                await asyncio.sleep(0.05)
        yield ledger
    finally:
        await router.close()


def balance(ledger: SqliteLedger | RedisLedger) -> Balance:
    return ledger.balance("default", Account(ledger.calendar.period("month", time.time()), "tenant", ALL))


def in_journals(folders: list[tuple[Path, str]], sql: str) -> list[int]:
    """Ask every SQLite file that there is."""
    found = []
    for path in {*(file for folder, _ in folders for file in folder.glob("*.db"))}:
        with closing(sqlite3.connect(path)) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found.append(file.execute(sql).fetchone()[0])
    return found


async def test_four_processes_spend_a_budget_and_no_nano_dollar_more(
    folders: list[tuple[Path, str]], tmp_path: Path, told: Told
) -> None:
    """Of 1,000 requests at once as many are served as the budget pays for: ledger, records and bill say so."""
    async with Upstream(prices=PRICES, default={"small-1": SIXTEEN}) as upstream, Callers() as callers:
        cost, served = 12 * 150 + 16 * 600, 600
        budget = served * cost + cost // 2
        quota = {"per": "tenant", "limit": f"{budget / NANOS:.9f} USD/month"}
        policy = {"ladder": ["small"], "max_output_tokens": 16, "cache": "never", "quotas": [quota]}
        models = {"small": openai_models(upstream.url)["small"]}
        go = tmp_path / "go"
        for number, (folder, store) in enumerate(folders):
            asks = [
                (f"r{name}", f"question number {name}", "auto")
                for name in range(1000 + number * 250, 1250 + number * 250)
            ]
            await callers.fork(write(folder, models, policy, store=store), asks, go)
        async with opened(folders[0][0] / "tracerouter.yaml"):
            pass  # it is ready
        began = time.monotonic()
        go.touch()
        await callers.ended(PROCESSES)
        took = time.monotonic() - began
        async with opened(folders[0][0] / "tracerouter.yaml") as ledger:
            booked = balance(ledger)
    by_reason: dict[str, int] = {}
    for answer in callers.answers:
        by_reason[answer["reason"]] = by_reason.get(answer["reason"], 0) + 1
    assert by_reason == {"confident": served, "budget_exhausted": PROCESSES * CALLERS - served}
    assert len(upstream.charges) == served
    assert upstream.nanos == served * cost <= budget
    assert booked.spent.cost_nanos == upstream.nanos
    assert booked.held.cost_nanos == 0
    assert sum(answer["cost"] for answer in callers.answers) == upstream.nanos
    assert sum(in_journals(folders, "SELECT sum(cost_nanos) FROM decisions")) == upstream.nanos
    assert sum(in_journals(folders, "SELECT sum(cost_nanos) FROM entries")) == upstream.nanos
    kind = folders[0][1].partition(":")[0]
    seconds = sorted(answer["seconds"] for answer in callers.answers)
    told.say(
        f"quota: {PROCESSES} times {CALLERS} callers on {kind}: overspend {max(0, upstream.nanos - budget)}, "
        f"{took:.1f} s, median {seconds[len(seconds) // 2]:.2f} s, {callers.round_trips} round trips"
    )


KILLS, LEASE = 20, 3.0


async def test_twenty_kills_charge_nothing_twice_and_leave_nothing_held(
    folders: list[tuple[Path, str]], tmp_path: Path
) -> None:
    """What died processes held comes back with its lease; what they had settled is booked once; files are whole."""
    folder, store = folders[0]
    hang = {"large-1": "hang", "small-1": SIXTEEN}
    async with Upstream(prices=PRICES, default=hang) as upstream, Callers() as callers:
        quota = {"per": "tenant", "limit": "1 USD/month"}
        policy = {"max_output_tokens": 16, "cache": "never", "quotas": [quota]}
        path = write(folder, openai_models(upstream.url), policy, store=store)
        go = tmp_path / "go"
        go.touch()
        async with opened(path):
            pass  # it is ready
        for turn in range(KILLS):
            names = [(f"r{turn}-{number}", "small" if number < 4 else "large") for number in range(8)]
            asks = [(name, f"question of {name}", model) for name, model in names]
            pid = await callers.fork(path, asks, go, margin=0.5, timeout=LEASE - 0.5)
            await upstream.until(partial(hangs, upstream, 4 * (turn + 1)), timeout=15)
            if turn % 2:  # or while the cheap ones are being answered and settled
                await callers.until(partial(answered, callers, f"r{turn}-", 4))
            callers.kill(pid)
        killed_at = time.monotonic()
        async with opened(path) as ledger:
            assert balance(ledger).held.cost_nanos
            while balance(ledger).held.cost_nanos:
                assert time.monotonic() - killed_at < LEASE + 5
                await asyncio.sleep(0.05)
            booked = balance(ledger)
        sent = {
            request.body["messages"][-1]["content"]: charge.nanos for request, charge in paired(upstream, "small-1")
        }
    (entries,) = in_journals(folders[:1], "SELECT sum(cost_nanos) FROM entries")
    (ids,) = in_journals(folders[:1], "SELECT count(DISTINCT request_id) - count(*) FROM entries")
    assert ids == 0
    assert booked.spent.cost_nanos == entries == sum(costs_of(folder, sent))
    told = {answer["name"] for answer in callers.answers}
    assert told <= set(names_of(folder))
    assert len(told) >= KILLS // 2 * 4


def hangs(upstream: Upstream, number: int) -> bool:
    return len([request for request in upstream.requests if request.body["model"] == "large-1"]) == number


def answered(callers: Callers, name: str, number: int) -> bool:
    return len([answer for answer in callers.answers if answer["name"].startswith(name)]) == number


def paired(upstream: Upstream, model: str) -> list[tuple[Any, Any]]:
    pairs = zip(upstream.requests, upstream.charges, strict=True)
    return [(request, charge) for request, charge in pairs if charge.model == model]


def names_of(folder: Path) -> list[str]:
    with closing(sqlite3.connect(next(folder.glob("*.db")))) as file:
        return [name for (name,) in file.execute("SELECT request_id FROM entries")]


def costs_of(folder: Path, sent: dict[str, int]) -> list[int]:
    """Return what the upstream billed for each request that is in the file."""
    return [sent[f"question of {name}"] for name in names_of(folder)]
