"""Synthetic traffic is as mixed as it says, and what it says of the answers is what the gateway knows of them."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from benchmarks import traffic
from tests.gateway import Gateway, nanos
from tests.observability import COLLECTOR, KEYS, ROOT, Sink, free_port

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_traffic_is_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration gets every kind of request, from every tenant, and gives every route; the sums are its own."""
    shutil.copytree(COLLECTOR / "gateway", tmp_path, dirs_exist_ok=True)
    async with Sink() as sink:
        for name, value in {
            "OTLP": sink.url,
            "STORE": str(tmp_path / "tracerouter.db"),
            "METRIC_INTERVAL": "60s",
        }.items():
            monkeypatch.setenv(f"TRACEROUTER_{name}", value)
        async with Gateway(tmp_path / "tracerouter.yaml") as gateway:
            keys = traffic.read_keys(KEYS)
            lines: list[str] = []
            monkeypatch.setattr(traffic, "SAY_EVERY", 1.0)
            totals = await traffic.run(gateway.url, rate=150, duration=4, keys=keys, seed=3, say=lines.append)
    records = gateway.records().values()
    assert totals.routes == Counter(record["route"] for record in records)
    assert set(totals.routes) >= {"cheap", "expensive", "fallback", "cached", "refused"}
    assert nanos(totals.cost) == sum(nanos(record["cost"]) for record in records)
    assert totals.statuses.total() == totals.sent > 400
    assert set(totals.statuses) >= {"200", "400", "403"}
    assert {record["tenant"] for record in records} == {entry["tenant"] for entry in json.loads(KEYS.read_text())}
    assert {record.get("task") for record in records} >= set(traffic.KINDS)
    assert {record.get("cache_status") for record in records} >= {"hit", "miss", "bypass"}
    assert len(lines) >= 3


async def test_the_same_seed_sends_the_same() -> None:
    """Two runs with one seed ask the same; one in three or so is streamed, and one with another seed differs."""

    def drawn(seed: int) -> list[Any]:
        mix = traffic._Mix(["a", "b"], seed)
        return [mix.request() for _ in range(300)]

    assert drawn(1) == drawn(1) != drawn(2)
    bodies = [request.body for request in drawn(1) if isinstance(request.body, dict)]
    assert 0.2 < sum("stream" in body for body in bodies) / len(bodies) < 0.4


async def test_it_waits_for_a_gateway_that_is_away_and_ends_by_a_signal() -> None:
    """Without a gateway it counts what failed and goes on; SIGTERM ends it with a summary and status 0."""
    url = f"http://127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks", "traffic", "--url", url, "--rate", "50"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    first = await asyncio.wait_for(process.stdout.readline(), 30)
    assert b" 0 ok: -; $0.0000; ClientConnectorError " in first
    process.send_signal(signal.SIGTERM)
    rest, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    (last,) = rest.decode().splitlines()
    assert "sent, 0 ok" in last
    assert "Traceback" not in last


async def test_a_cancelled_run_leaves_nothing_open(tmp_path: Path) -> None:
    """What was under way when it is cancelled is cancelled with it, and what was sent is still told."""
    async with Sink() as sink:
        sink.hang()
        totals = traffic.Totals()
        running = asyncio.create_task(traffic.run(sink.url, rate=200, into=totals))
        while totals.sent < 20:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled()
        assert not [task for task in asyncio.all_tasks() if "_send" in repr(task)]
