"""A drill: a real gateway before a misbehaving provider, a fault, and what on-call sees of it.

    async with Drill(folder) as drill, drill.traffic(requests):
        await drill.calm("ProviderErrors")
        drill.upstream.default["small-1"] = "429"
        await drill.fires("ProviderErrors", model="small")
        await drill.panel_shows("ProviderErrors")
        await drill.trace_names("rate_limited")
        await drill.confine("ProviderErrors")

The rules are those of ``python -m dashboards`` with every duration times :data:`SCALE`, and nothing else changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import pytest
import yaml

from dashboards import queries, resolve
from dashboards.alerts import ALERTS, Change
from dashboards.rules import rules
from tests.gateway import embedding_model, openai_models, write
from tests.observability import Collector, Prometheus, Serve, Sink
from tests.upstream import Upstream
from tracerouter.telemetry import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from dashboards.alerts import Alert
    from tests.observability import Sample, Span

SCALE: Final = 1 / 240
"""Ten minutes are 2.5 seconds, an hour is 15, and a day is 6 minutes."""
RATE: Final = 50
"""Requests a second: the floors are counts, and 2.5 seconds must reach them."""
HEALTHY: Final = 10.0
"""Seconds of healthy traffic before the fault: longer than every `for`, and enough for most to be the day before."""
PATIENCE: Final = 60.0

TICKET: Final = {"type": "object", "required": ["total"], "properties": {"total": {"type": "number"}}}
POLICY: Final[dict[str, Any]] = {
    "ladder": ["small", "large"],
    "embeddings": ["embed"],
    "min_confidence": 0.5,
    "max_output_tokens": 64,
    "validate": ["empty"],
    "cache": {"ttl": "10m"},
    "tasks": {
        "extract": {"match": ["^extract"], "validate": ["json_schema"], "schema": "schemas/ticket.json"},
        "summarize": {"match": ["^summarise"]},
        "answer": {"match": ["^when"]},
    },
    "risks": {"legal": {"match": ["^is this contract"], "detect": False, "review": "draft"}},
}

Request = dict[str, Any]
"""``text``, and what else is asked: ``task`` and ``key``, or more of the body; or ``input``, for embeddings."""

_drawn = random.Random(3)


class Drill:
    """Everything that a drill runs on; use it in ``async with``.

    Args:
        folder: Where its files go.
        models: What `small`, `large` and `embed` have besides; another alias is a model as `small` is.
        settings: What ``tracerouter.yaml`` has besides.
    """

    def __init__(self, folder: Path, *, models: Mapping[str, Any] | None = None, **settings: Any) -> None:
        self.folder = folder
        self.upstream = Upstream()
        self.sink = Sink()
        self.answers: list[str] = []
        """By which route each came."""
        self._models = dict(models or {})
        self._settings = settings
        self._stack = AsyncExitStack()
        self._injected = 0.0
        self.row: dict[str, Any] = {}
        """What is told of it at the end: alert, seconds, panel, reason code."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        enter = self._stack.enter_async_context
        await enter(self.upstream)
        await enter(self.sink)
        rules_file = self.folder / "rules.yaml"
        rules_file.write_text(rules(SCALE))
        self.collector = await enter(Collector(self.folder, self.sink))
        self.prometheus = await enter(Prometheus(self.folder, self.collector, rules_file))
        models = openai_models(self.upstream.url) | embedding_model(self.upstream.url)
        for alias, more in self._models.items():
            models[alias] = {**models.get(alias, models["small"]), **more}
        telemetry = {"otlp": self.collector.otlp, "metric_interval": "200ms", "keep": {"share": 0.05}}
        self.write_schema(TICKET)
        self.config = write(self.folder, models, POLICY, telemetry=telemetry, **self._settings)
        self.gateway = await enter(Serve(self.folder, self.config, self.collector))
        self._session = await enter(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))

    # --- traffic -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def traffic(self, *kinds: Callable[[int], Request], rate: float = RATE) -> AsyncIterator[None]:
        """Send `rate` requests a second, whatever becomes of them; each is made by one of `kinds`, from its number."""
        self.kinds = list(kinds)
        under_way: set[asyncio.Task[None]] = set()

        async def send() -> None:
            started = asyncio.get_running_loop().time()
            for number in itertools.count():
                made = _drawn.choice(self.kinds)(number)
                task = asyncio.create_task(self._ask(made))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                await asyncio.sleep(max(0.0, started + (number + 1) / rate - asyncio.get_running_loop().time()))

        sending = asyncio.create_task(send())
        try:
            yield
        finally:
            for task in (sending, *under_way):
                task.cancel()
            await asyncio.gather(sending, *under_way, return_exceptions=True)

    async def _ask(self, made: Request) -> None:
        told = dict(made)
        headers = {"authorization": f"Bearer {told.pop('key')}"} if "key" in told else {}
        if "task" in told:
            headers["x-tracerouter-task"] = told.pop("task")
        if "input" in told:
            path, body = "embeddings", {"model": "embed", **told}
        else:
            asked = {"model": "auto", "messages": [{"role": "user", "content": told.pop("text")}]}
            path, body = "chat/completions", {**asked, **told}
        with contextlib.suppress(aiohttp.ClientError):  # a gateway that restarts
            async with self._session.post(f"{self.gateway.url}/v1/{path}", json=body, headers=headers) as response:
                await response.read()
                self.answers.append(response.headers.get("x-tracerouter-route", ""))

    # --- what on-call sees -------------------------------------------------------------------------------------------

    async def calm(self, alert: str, seconds: float = HEALTHY) -> None:
        """Let healthy traffic run, and see that the alert was silent all the time."""
        await self.prometheus.until("sum(tracerouter_requests_total) > 0")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert not await self.prometheus.alerts(alert), f"{alert} is not silent before the fault"
            await asyncio.sleep(0.2)

    def inject(self) -> None:
        """Say that the fault begins now."""
        self._injected = time.time()

    async def fires(self, alert: str, **labels: str) -> dict[str, Any]:
        """Wait until the alert fires with these labels, and return it."""
        found = await self.prometheus.firing(alert, PATIENCE)
        seconds = time.time() - self._injected
        fired = [one for one in found if labels.items() <= one["labels"].items()]
        assert fired, f"{alert} fires with {[one['labels'] for one in found]}, not with {labels}"
        entry = entry_of(alert)
        self.row |= {"alert": alert, **labels, "seconds": round(seconds, 1), "panel": " / ".join(entry.panel)}
        return fired[0]

    async def panel_shows(self, alert: str, holds: Callable[[list[Sample]], bool]) -> None:
        """Ask what the panel that the runbook names asks, until one of its queries shows the trouble."""
        board, title = entry_of(alert).panel
        asked = [resolve(query.expr, interval="3s") for query in queries() if query[:2] == (board, title)]
        assert asked, f"{alert} names a panel {board} / {title}, which has no query"
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            shown = [await self.prometheus.query(expr) for expr in asked]
            if any(holds(samples) for samples in shown):
                return
            await asyncio.sleep(0.2)
        pytest.fail(f"{board} / {title} shows {shown}")

    async def trace_names(self, reason: str, keep: str = "fallback", **told: Any) -> Span:
        """Wait for a kept trace of a request after the fault, whose route span has the reason code; return that span.

        Args:
            reason: The reason code.
            keep: Why the trace is kept.
            told: What else the span must tell, such as ``tenant``.
        """
        wanted = {names.REASON: reason, names.KEEP: keep, **{f"tracerouter.{name}": it for name, it in told.items()}}

        def route() -> Iterator[Span]:
            for span in self.sink.spans:
                after = span.name.startswith("route ") and span.start >= self._injected
                if after and wanted.items() <= span.attributes.items():
                    yield span

        await self.sink.until(lambda _: any(route()), PATIENCE)
        self.row["reason"] = reason
        return next(route())

    async def confine(self, alert: str, which: int = 0, *, resolves: bool = True) -> None:
        """Do what the runbook says: put its lines into the file, check them, restart; and wait for silence.

        Args:
            alert: Whose runbook.
            which: Of the ways that it gives.
            resolves: Whether the alert ends by it; else it is the damage that ends, which is for the drill to look at.
        """
        change = entry_of(alert).confine[which]
        assert isinstance(change, Change), f"{alert}: {change} is a command, not lines of a file"
        path = self.folder / change.file
        path.write_text(yaml.safe_dump(change.applied(yaml.safe_load(path.read_text())), sort_keys=False))
        await self.restart()
        if resolves:
            await self.prometheus.resolved(alert, PATIENCE)

    async def restart(self) -> None:
        """Check the files as the runbook says, end the gateway by SIGTERM, and start it again."""
        check = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tracerouter", "policy", "check", str(self.folder / "policy.yaml")),
            *("--config", str(self.config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await check.communicate()
        assert check.returncode == 0, said.decode()
        await self.gateway.stop()
        await self.gateway.start()

    async def reject_all(self) -> None:
        """Decide on every review that waits, as a reviewer does."""
        url = f"{self.gateway.url}/tracerouter/reviews"
        while True:
            async with self._session.get(url, params={"state": "pending", "limit": "1000"}) as response:
                waiting = (await response.json())["data"]
            if not waiting:
                return
            for review in waiting:
                async with self._session.post(f"{url}/{review['id']}/reject") as response:
                    assert response.status == 200

    def write_schema(self, schema: Mapping[str, Any]) -> None:
        """Write what extractions are validated by."""
        (self.folder / "schemas").mkdir(exist_ok=True)
        (self.folder / "schemas" / "ticket.json").write_text(json.dumps(schema))

    def change(self, file: str, **lines: Any) -> None:
        """Put lines into a file, as a hasty colleague would."""
        path = self.folder / file
        path.write_text(yaml.safe_dump(Change("", lines).applied(yaml.safe_load(path.read_text())), sort_keys=False))

    async def routes(self, number: int = 50) -> set[str]:
        """Return by which routes the next `number` requests are answered."""
        seen = len(self.answers)
        async with asyncio.timeout(PATIENCE):
            while len(self.answers) < seen + number:
                await asyncio.sleep(0.05)
        return set(self.answers[seen:])


def entry_of(alert: str) -> Alert:
    """Return an alert's entry."""
    return next(one for one in ALERTS if one.name == alert)


def above(limit: float, **labels: str) -> Callable[[list[Sample]], bool]:
    """Hold of samples of which one with these labels is above a limit."""
    return lambda samples: any(one.value > limit and labels.items() <= one.labels.items() for one in samples)
