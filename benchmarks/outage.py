"""What a failing collector costs a request: latency, CPU and memory of the gateway, beside one whose collector answers.

Each gateway is a process of its own and exports everything; the load is the same, over HTTP, in interleaved rounds. A
collector that hangs takes connections and never answers; one that is gone refuses them. More requests are made than
traces may wait, so that whole traces are dropped while it is measured.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.paths import AT_ONCE, Subject, circumstances, measure_rounds, wording
from benchmarks.servers import serving

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.servers import Server

ANSWERS = "answers"
HANGS = "hangs"
GONE = "gone"


@dataclass(frozen=True)
class Row:
    """One gateway, measured: microseconds of wall time and CPU a request, and its memory (MB) when all was done."""

    collector: str
    p50_us: float
    p99_us: float
    cpu_us: float
    memory_mb: float
    p99_ratio: float
    """To the p99 of the one whose collector answers."""


def run(*, requests: int, rounds: int, json_file: Path | None) -> None:
    """Measure, show the table, and write the rows.

    Args:
        requests: Of each gateway in each round.
        rounds: How often all are measured in turn.
        json_file: Where to write ``{"machine", "versions", "commit", "rows"}``.
    """
    console = Console()
    rows = asyncio.run(_measure(requests, rounds, console))
    table = Table("the collector", "p50 µs", "p99 µs", "p99 ratio", "CPU µs", "memory MB")
    for row in rows:
        table.add_row(
            row.collector, f"{row.p50_us:.0f}", f"{row.p99_us:.0f}", f"{row.p99_ratio:.2f}", f"{row.cpu_us:.0f}",
            f"{row.memory_mb:.0f}",
        )  # fmt: skip
    console.print(table)
    if json_file is not None:
        told = circumstances() | {"requests": requests, "rounds": rounds, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


async def _measure(requests: int, rounds: int, console: Console) -> list[Row]:
    with ExitStack() as running:
        upstream = running.enter_context(serving("upstream"))
        collectors = {
            ANSWERS: running.enter_context(serving("sink")).url,
            HANGS: running.enter_context(serving("sink", hang=True)).url,
            GONE: "http://127.0.0.1:9",  # the port of "discard", where nobody listens
        }
        servers = {
            name: running.enter_context(serving("gateway", upstream=upstream.url, otlp=url))
            for name, url in collectors.items()
        }
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            subjects = [_subject(name, server, session) for name, server in servers.items()]
            await measure_rounds(subjects, requests, rounds, console)
        memory = {name: server.memory for name, server in servers.items()}
    p99 = {one.name: statistics.quantiles(one.wall_us, n=100)[98] for one in subjects}
    return [
        Row(
            collector=one.name,
            p50_us=statistics.median(one.wall_us),
            p99_us=p99[one.name],
            cpu_us=statistics.median(one.cpu_us),
            memory_mb=memory[one.name],
            p99_ratio=p99[one.name] / p99[ANSWERS],
        )
        for one in subjects
    ]


def _subject(name: str, server: Server, session: aiohttp.ClientSession) -> Subject:
    async def one(number: int) -> None:
        headers = {"x-tracerouter-cache": "no-store"}
        url = f"{server.url}/v1/chat/completions"
        async with session.post(url, json=wording(number), headers=headers) as response:
            response.raise_for_status()
            await response.read()

    return Subject(name, one, lambda: server.cpu, AT_ONCE)
