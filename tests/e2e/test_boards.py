"""Every query that we ship, asked of a real Prometheus while a real gateway serves mixed traffic with faults."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import shutil
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import promql_parser as pp
import yaml

from benchmarks import traffic
from dashboards import queries, resolve
from dashboards.alerts import ALERTS, RECORDINGS, Change
from dashboards.promql import at_scale, vocabulary
from dashboards.rules import rules
from tests.e2e.drills.drill import SCALE
from tests.gateway import embedding_model
from tests.observability import DEMO, KEYS, Collector, Prometheus, Serve, Sink
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Told
    from tests.observability import Sample

HEALTHY = 28.0
"""Seconds before the faults: a day before, at the rules' scale."""
RECENT = "90s"
"""All of the run."""
PATIENCE = 45.0
ONLY_WHEN_FULL = "otelcol_exporter_enqueue_failed_"
"""Series that the collector has once its queue was full, which test_collector.py sees to."""


async def test_every_query_returns_data(tmp_path: Path, told: Told) -> None:
    """Panels, variables, annotations and rules parse and have data; what is sent is what is promised, and no more."""
    (tmp_path / "rules.yaml").write_text(rules(SCALE))
    shutil.copytree(DEMO.parent, tmp_path / "gateway")
    config, policy = tmp_path / "gateway" / "tracerouter.yaml", tmp_path / "gateway" / "policy.yaml"
    async with (
        Upstream() as upstream,
        Sink() as sink,
        Collector(tmp_path, sink) as collector,
        Prometheus(tmp_path, collector, tmp_path / "rules.yaml") as prometheus,
        _serving(config, policy, upstream, collector) as gateway,
    ):
        keys = traffic.read_keys(KEYS)
        sending = asyncio.gather(
            traffic.run(gateway.url, rate=60, keys=keys, seed=1), _images_and_embeddings(gateway.url, keys[0])
        )
        try:
            await asyncio.sleep(HEALTHY)
            await _exemplars_name_kept_traces(prometheus, sink)
            assert _told(sink, "reason") >= {"confident", "cache_hit", "pinned", "unsupported", "low_confidence"}
            sink.status = 400  # what the collector can't pass on now is lost, and counted
            _change(config, models={"small": {"failures": ["500"]}})
            await gateway.stop()
            await gateway.start()
            await prometheus.firing("ProviderErrors")
            sink.status = 200
            await _boards_have_data(prometheus, told)
            await _rules_have_data(prometheus, told)
            await _labels_are_promised(prometheus)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def _serving(config: Path, policy: Path, upstream: Upstream, collector: Collector) -> Serve:
    """The demonstration's gateway with a model for embeddings; half a minute of it costs what a day does."""
    _change(config, models={**embedding_model(upstream.url), "large": {"price": {"input": 500, "output": 2000}}})
    _change(policy, embeddings=["embed"])
    return Serve(config.parent.parent, config, collector)


def _change(path: Path, **lines: Any) -> None:
    path.write_text(yaml.safe_dump(Change("", lines).applied(yaml.safe_load(path.read_text()))))


async def _images_and_embeddings(url: str, key: str) -> None:
    """Ask for embeddings, of which one in five fails, and about images, which the small model does not take."""
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session:
        for number in itertools.count():
            texts = ["[[500]]" if number % 5 == 0 else f"note {number}", "another"]
            parts = [
                {"type": "text", "text": f"What is on photo {number}?"},
                {"type": "image_url", "image_url": {"url": "https://images.example.com/photo.png"}},
            ]
            for path, body in (
                ("embeddings", {"model": "embed", "input": texts}),
                ("chat/completions", {"model": "auto", "messages": [{"role": "user", "content": parts}]}),
            ):
                with contextlib.suppress(aiohttp.ClientError):  # a gateway that restarts
                    async with session.post(f"{url}/v1/{path}", json=body) as response:
                        await response.read()
            await asyncio.sleep(0.2)


def _told(sink: Sink, name: str) -> set[Any]:
    return {log.body[name] for log in sink.logs if log.event == "tracerouter.decision"}


async def _boards_have_data(prometheus: Prometheus, told: Told) -> None:
    asked = [query for query in queries() if query.kind == "promql"]
    by_place = {
        f"{query.board} / {query.panel} {query.ref}: {query.expr}": resolve(query.expr, interval=RECENT, period=RECENT)
        for query in asked
    }
    assert not (empty := await _unanswered(prometheus, by_place)), "\n".join(["nothing is answered to:", *empty])
    told.count("queries of boards", len(asked))


async def _unanswered(prometheus: Prometheus, asked: dict[str, str]) -> list[str]:
    """Ask until each was answered once; a scrape that fails under load leaves a gap of a moment."""
    left = list(asked)
    until = time.monotonic() + PATIENCE
    while left and time.monotonic() < until:
        left = [where for where in left if not any(map(_known, await prometheus.query(asked[where])))]
    return left


def _known(sample: Sample) -> bool:
    return not math.isnan(sample.value)


async def _rules_have_data(prometheus: Prometheus, told: Told) -> None:
    """Every recording rule has values; every series that an alert looks at is there, whether it fires or not."""
    (groups,) = [(await prometheus.get("rules"))["groups"]]
    broken = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]
    assert not broken
    looked_at = {
        f"alert {alert.name} {sign}: {selector}": selector
        for alert in ALERTS
        for sign, expr in alert.signs.items()
        for selector in _selectors(pp.parse(at_scale(expr, SCALE)))
        if not selector.startswith(ONLY_WHEN_FULL)
    }
    looked_at |= {f"recording rule {one.name}": one.name for one in RECORDINGS}
    by_place = {where: f"last_over_time({selector}[{RECENT}])" for where, selector in looked_at.items()}
    assert not (empty := await _unanswered(prometheus, by_place)), "\n".join(["there is no data for:", *empty])
    told.count("recording rules", len(RECORDINGS))
    told.count("alert rules", sum(len(alert.signs) for alert in ALERTS))


def _selectors(expr: pp.Expr) -> Iterator[str]:
    """Find the series that an expression reads, without offsets and windows."""
    match expr:
        case pp.VectorSelector():
            matchers = ", ".join(str(one) for one in expr.matchers.matchers)
            yield f"{expr.name}{{{matchers}}}" if matchers else str(expr.name)
        case pp.MatrixSelector():
            yield from _selectors(expr.vector_selector)
        case pp.BinaryExpr():
            yield from _selectors(expr.lhs)
            yield from _selectors(expr.rhs)
        case pp.Call():
            for argument in expr.args:
                yield from _selectors(argument)
        case pp.AggregateExpr() | pp.ParenExpr() | pp.UnaryExpr() | pp.SubqueryExpr():
            yield from _selectors(expr.expr)


async def _labels_are_promised(prometheus: Prometheus) -> None:
    """No series of ours has a label that its instrument does not declare."""
    for sample in await prometheus.query('count by (__name__) ({__name__=~"(tracerouter|gen_ai)_.+"})'):
        name = sample.labels["__name__"]
        for one in await prometheus.query(name):
            assert one.labels.keys() - {"__name__"} <= vocabulary()[name], f"{name}: {sorted(one.labels)}"


async def _exemplars_name_kept_traces(prometheus: Prometheus, sink: Sink) -> None:
    """An exemplar's trace is one that arrived where traces are kept."""
    found = await prometheus.exemplars('{__name__=~"(tracerouter|gen_ai)_.+_bucket"}')
    named = {one["labels"]["trace_id"] for one in found}
    assert len(named) > 20
    await sink.until(lambda sink: named <= sink.traces.keys())
