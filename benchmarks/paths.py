"""What one request costs on each path, in CPU and in time, beside its floor in the same run.

Floors: `bare` is an aiohttp POST (in process) or an aiohttp proxy (over HTTP) that does nothing else; `naive` is the
same with as many live SDK spans of as many attributes as our request had, all exported over OTLP like ours. Ours also
keep a ledger, a decision log, metrics and log records, which the floors do not; where it says `spans exported`, they
have the floor's telemetry and no more. In `cheap accepted` the words have been classified before. CPU is that of the
process under test, all of its threads, until what it measured is exported. Rounds are interleaved, medians are told,
and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from opentelemetry.sdk.trace import SpanProcessor
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.servers import live_tracer, make_live_spans, serving, write_deployment
from tracerouter import config
from tracerouter.cache import CachedClassifier
from tracerouter.classifiers import Chain, ExamplesClassifier, RulesClassifier
from tracerouter.policy import Policy, PolicyFile
from tracerouter.pricing import Price
from tracerouter.providers import Model, OpenAIProvider
from tracerouter.router import Router
from tracerouter.telemetry import Telemetry
from tracerouter.telemetry.metrics import Instruments
from tracerouter.telemetry.otlp import SpanExporter
from tracerouter.telemetry.queues import TraceQueue
from tracerouter.types import Freshness, Task
from tracerouter.validators import Checks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from benchmarks.servers import Server

CHEAP = "cheap accepted"
CHEAP_NEW = "cheap accepted, classified anew"
HIT = "cache hit"

EVERYTHING = "all exported"
SPANS = "spans exported"
"""As of the floor: no ledger, decision log, metrics or log records."""

AT_ONCE = 16
"""Connections of the load over HTTP."""


@dataclass(frozen=True)
class Row:
    """One path, measured. Microseconds of CPU and of wall time a request; `ratio` is to the floor's CPU."""

    path: str
    door: str
    telemetry: str
    floor: str
    cpu_us: float
    p50_us: float
    p99_us: float
    floor_cpu_us: float
    ratio: float
    spread: float
    """Of the rounds' ratios: highest less lowest."""


@dataclass
class Subject:
    """Something that is measured: how to make one request of it, and whose CPU counts."""

    name: str
    one: Callable[[int], Awaitable[None]]
    cpu: Callable[[], float]
    at_once: int = 1
    flush: Callable[[], object] = lambda: None
    """Sends what waits to be exported, so that it counts here and not with what is measured next."""
    telemetry: str = EVERYTHING
    cpu_us: list[float] = field(default_factory=list)
    wall_us: list[float] = field(default_factory=list)

    async def measure(self, requests: int, first: int) -> None:
        """Make `requests` of it, numbered from `first`."""
        numbers = iter(range(first, first + requests))
        before = self.cpu()

        async def worker() -> None:
            for number in numbers:
                start = time.perf_counter()
                await self.one(number)
                self.wall_us.append((time.perf_counter() - start) * 1e6)

        await asyncio.gather(*(worker() for _ in range(self.at_once)))
        self.flush()
        self.cpu_us.append((self.cpu() - before) / requests * 1e6)


def run(*, requests: int, rounds: int, json_file: Path | None) -> None:
    """Measure every path, show the table, and write the rows.

    Args:
        requests: Of each subject in each round.
        rounds: How often all subjects are measured in turn.
        json_file: Where to write ``{"machine", "versions", "commit", "rows"}``.
    """
    console = Console()
    rows = asyncio.run(_measure(requests, rounds, console))
    table = Table("path", "door", "telemetry", "floor", "ratio", "± spread", "CPU µs", "floor µs", "p50 µs", "p99 µs")
    for row in rows:
        table.add_row(
            row.path, row.door, row.telemetry, row.floor, f"{row.ratio:.2f}", f"{row.spread:.2f}",
            f"{row.cpu_us:.0f}", f"{row.floor_cpu_us:.0f}", f"{row.p50_us:.0f}", f"{row.p99_us:.0f}",
        )  # fmt: skip
    console.print(table)
    if json_file is not None:
        told = circumstances() | {"requests": requests, "rounds": rounds, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


async def _measure(requests: int, rounds: int, console: Console) -> list[Row]:
    with serving("upstream") as upstream, serving("sink") as sink, tempfile.TemporaryDirectory() as folder:
        write_deployment(Path(folder), upstream.url, sink.url)
        router = config.load(Path(folder) / "tracerouter.yaml").router
        spans = await _spans_of_one_request(router)
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        try:
            tracer, provider = live_tracer(sink.url)
            inside = _in_process(router, session, upstream, tracer, spans[:-1])
            inside[1].flush = provider.force_flush
            lean = _lean(upstream, sink, session)
            inside.append(Subject(CHEAP, _cheap(lean, wording), time.process_time, telemetry=SPANS))
            inside[-1].flush = lean.telemetry.force_flush
            with (
                serving("proxy", upstream=upstream.url) as bare,
                serving("proxy", upstream=upstream.url, spans=spans, otlp=sink.url) as naive,
                serving("gateway", upstream=upstream.url, otlp=sink.url) as ours,
            ):
                outside = _over_http(session, bare, naive, ours)
                await measure_rounds([*inside, *outside], requests, rounds, console)
            provider.shutdown()  # while the sink still takes what is left
            lean.telemetry.close()
        finally:
            await session.close()
            await router.close()
    return [*_rows("in process", inside), *_rows("http", outside)]


def _in_process(
    router: Router, session: aiohttp.ClientSession, upstream: Server, tracer: Any, spans: list[dict[str, Any]]
) -> list[Subject]:
    """Return the floors, then our paths; all of this process."""

    async def bare(number: int) -> None:
        async with session.post(f"{upstream.url}/v1/chat/completions", json=_body(number)) as response:
            await response.json()

    async def naive(number: int) -> None:
        make_live_spans(tracer, spans)
        await bare(number)

    async def hit(_: int) -> None:
        await router.route(Task.parse(_body(0)))

    floors = [Subject(name, one, time.process_time) for name, one in (("bare", bare), ("naive", naive))]
    ours = {CHEAP: _cheap(router, wording), CHEAP_NEW: _cheap(router, _body), HIT: hit}
    flush = router.telemetry.force_flush
    return [*floors, *(Subject(name, one, time.process_time, flush=flush) for name, one in ours.items())]


def _cheap(router: Router, body: Callable[[int], dict[str, Any]]) -> Callable[[int], Awaitable[None]]:
    async def one(number: int) -> None:
        await router.route(Task.parse(body(number), freshness=Freshness(no_store=True)))

    return one


def _lean(upstream: Server, sink: Server, session: aiohttp.ClientSession) -> Router:
    """Make a router that exports spans, as the naive floor does, and keeps nothing else."""
    provider = OpenAIProvider(f"{upstream.url}/v1", None, lambda: session)
    price = Price(100_000_000, 400_000_000, 100_000_000)
    models = [
        Model(alias=name, name=name, provider=provider, kind="openai", price=price) for name in ("small", "large")
    ]
    policy = Policy.of(PolicyFile.model_validate({"ladder": ["small", "large"], "min_confidence": 0}))
    classifier = CachedClassifier(Chain([RulesClassifier({}), ExamplesClassifier.packaged()]))
    instruments = Instruments()
    traces = TraceQueue(SpanExporter(f"{sink.url}/v1/traces"), instruments.traces_dropped)
    telemetry = Telemetry(traces=traces, instruments=instruments, delay=config.TELEMETRY_DELAY)
    return Router(models, policy, classifier=classifier, checks=Checks(), telemetry=telemetry)


def _over_http(session: aiohttp.ClientSession, bare: Server, naive: Server, ours: Server) -> list[Subject]:
    """Return the floors, then our paths; each a server process."""

    def subject(name: str, server: Server, body: Callable[[int], dict[str, Any]], headers: dict[str, str]) -> Subject:
        async def one(number: int) -> None:
            url = f"{server.url}/v1/chat/completions"
            async with session.post(url, json=body(number), headers=headers) as response:
                response.raise_for_status()
                await response.read()

        return Subject(name, one, lambda: server.cpu, AT_ONCE)

    no_store = {"x-tracerouter-cache": "no-store"}
    return [
        subject("bare", bare, _body, {}),
        subject("naive", naive, _body, {}),
        subject(CHEAP, ours, wording, no_store),
        subject(CHEAP_NEW, ours, _body, no_store),
        subject(HIT, ours, lambda _: _body(0), {}),
    ]


async def measure_rounds(subjects: Sequence[Subject], requests: int, rounds: int, console: Console) -> None:
    """Measure all subjects in turn, after one round that only warms them."""
    with Progress(console=console) as progress:
        bar = progress.add_task("measuring", total=(rounds + 1) * len(subjects))
        first = 0
        for turn in range(rounds + 1):
            for subject in subjects:
                await subject.measure(requests, first)
                first += requests
                progress.advance(bar)
                if turn == 0:  # connections, caches and imports are warm now
                    subject.cpu_us.clear()
                    subject.wall_us.clear()


def _rows(door: str, subjects: Sequence[Subject]) -> list[Row]:
    bare, naive, *ours = subjects
    rows = []
    for subject in ours:
        for floor in (naive, bare):
            ratios = [mine / theirs for mine, theirs in zip(subject.cpu_us, floor.cpu_us, strict=True) if theirs]
            walls = statistics.quantiles(subject.wall_us, n=100)
            rows.append(
                Row(
                    path=subject.name,
                    door=door,
                    telemetry=subject.telemetry,
                    floor=floor.name,
                    cpu_us=statistics.median(subject.cpu_us),
                    p50_us=walls[49],
                    p99_us=walls[98],
                    floor_cpu_us=statistics.median(floor.cpu_us),
                    ratio=statistics.median(ratios),
                    spread=max(ratios) - min(ratios),
                )
            )
    return rows


async def _spans_of_one_request(router: Router) -> list[dict[str, Any]]:
    """Route one request and return what its spans are called and carry, the request's own span last."""
    seen: list[ReadableSpan] = []
    telemetry = router.telemetry
    telemetry.span_processors = [_Seen(seen)]
    await router.route(Task.parse(_body(-1), freshness=Freshness(no_store=True)))
    telemetry.flush()
    telemetry.span_processors = ()
    told = [{"name": span.name, "attributes": dict(span.attributes or {})} for span in reversed(seen)]
    server = {"name": "POST /v1/chat/completions", "attributes": {f"http.attribute.{n}": "value" for n in range(6)}}
    return [*told, server]


class _Seen(SpanProcessor):
    """A span processor that remembers."""

    def __init__(self, seen: list[ReadableSpan]) -> None:
        self._seen = seen

    def on_end(self, span: ReadableSpan) -> None:
        """Remember it."""
        self._seen.append(span)


def _body(number: int) -> dict[str, Any]:
    text = f"Please write a short reply to customer {number}, who asks when the parcel arrives."
    return {"model": "auto", "messages": [{"role": "user", "content": text}]}


def wording(number: int) -> dict[str, Any]:
    """Make one of a few requests, so that its words have been classified before."""
    return _body(number % 50)


def circumstances() -> dict[str, Any]:
    """Tell of machine, versions and commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    packages = ("tracerouter", "aiohttp", "opentelemetry-sdk")
    return {
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": commit.stdout.strip() or None,
    }
