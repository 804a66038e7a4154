"""Telemetry over a real socket: what a collector gets, and that one that does not answer delays nobody."""

from __future__ import annotations

import asyncio
import gzip
import logging
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.unit.test_router import rig
from tracerouter.telemetry import Keep, over_otlp
from tracerouter.telemetry.export import GRACE
from tracerouter.types import Caller, Outcome, Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.test_router import Rig


class Collector:
    """Takes OTLP over HTTP on a free port; with `hang` it never answers, with `status` it refuses."""

    def __init__(self, *, hang: bool = False, status: int = 200) -> None:
        self._hang, self._status = hang, status
        self._stop = asyncio.Event()
        self.reached = asyncio.Event()
        self.traces: list[Any] = []
        self.metrics: list[Any] = []
        self.logs: list[Any] = []
        app = web.Application(client_max_size=1 << 26)
        for path, into, kind in (
            ("traces", self.traces, ExportTraceServiceRequest),
            ("metrics", self.metrics, ExportMetricsServiceRequest),
            ("logs", self.logs, ExportLogsServiceRequest),
        ):
            app.router.add_post(f"/v1/{path}", self._taking(into, kind))
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        self.url = ""

    def _taking(self, into: list[Any], kind: Any) -> Any:
        async def take(request: web.Request) -> web.Response:
            raw = await request.read()
            raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
            self.reached.set()
            if self._hang:
                await self._stop.wait()
            if self._status == 200:
                into.append(kind.FromString(raw))
            return web.Response(status=self._status, content_type="application/x-protobuf")

        return take

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._runner.cleanup()


def scoped(requests: list[Any], outer: str, middle: str, inner: str) -> list[Any]:
    """Take the items out of OTLP's three layers."""
    return [
        item
        for request in requests
        for resource in getattr(request, outer)
        for scope in getattr(resource, middle)
        for item in getattr(scope, inner)
    ]


def attributes(item: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in item.attributes}


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """A collector that takes everything."""
    async with Collector() as running:
        yield running


async def told(collector: Collector, **facts: Any) -> tuple[Rig, Outcome]:
    """Route one request that falls back, and close the telemetry."""
    with_models = rig("I can't help with that.", telemetry=over_otlp(collector.url, **facts))
    outcome = await with_models.router.route(Task.chat("hello", caller=Caller("acme")))
    await asyncio.to_thread(with_models.router.telemetry.close)
    return with_models, outcome


async def test_spans_arrive_with_their_parents(collector: Collector) -> None:
    """A request's tree arrives whole, each span under its parent, in one trace, from one named process."""
    _, outcome = await told(collector)
    spans = scoped(collector.traces, "resource_spans", "scope_spans", "spans")
    by_id = {span.span_id: span for span in spans}
    tree = sorted(
        (by_id[span.parent_span_id].name.split(" ")[0] if span.parent_span_id else "", span.name.split(" ")[0])
        for span in spans
    )
    assert tree == [
        ("", "route"),
        ("cheap", "chat"),
        ("fallback", "chat"),
        ("route", "cheap"),
        ("route", "classify"),
        ("route", "fallback"),
        ("route", "validate"),
        ("route", "validate"),
    ]
    assert {span.trace_id.hex() for span in spans} == {outcome.facts["trace_id"]}
    assert all(0 < span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)
    route = next(span for span in spans if span.name.startswith("route"))
    assert attributes(route)["tracerouter.cost.amount"] == float(outcome.facts["cost"])
    assert attributes(route)["tracerouter.fallback.reason"] == "refusal"
    for request in collector.traces:
        (resource,) = request.resource_spans
        process = attributes(resource.resource)
        assert process["service.name"] == "tracerouter"
        assert process["service.instance.id"]
        assert {scope.scope.name for scope in resource.scope_spans} == {"tracerouter"}


async def test_close_sends_metrics_and_log_records(collector: Collector) -> None:
    """What was measured and decided is sent when the router closes, though the interval is not over."""
    _, outcome = await told(collector, metric_interval=3600)
    metrics = {m.name: m for m in scoped(collector.metrics, "resource_metrics", "scope_metrics", "metrics")}
    assert {"tracerouter.requests", "tracerouter.cost", "tracerouter.request.duration"} <= set(metrics)
    assert sum(point.as_double for point in metrics["tracerouter.cost"].sum.data_points) == pytest.approx(
        float(outcome.facts["cost"]), abs=1e-12
    )
    (exemplar,) = metrics["tracerouter.request.duration"].histogram.data_points[0].exemplars
    assert exemplar.trace_id.hex() == outcome.facts["trace_id"]
    (record,) = scoped(collector.logs, "resource_logs", "scope_logs", "log_records")
    assert record.event_name == "tracerouter.decision"
    assert record.trace_id.hex() == outcome.facts["trace_id"]
    assert record.span_id.hex() == outcome.headers["traceparent"].split("-")[2]
    assert record.severity_text == "INFO"
    assert attributes(record)["tracerouter.request_id"] == outcome.request_id


async def test_a_dropped_trace_sends_no_spans(collector: Collector) -> None:
    """A request whose trace is dropped is in metrics and log record all the same."""
    with_models = rig("fine", telemetry=over_otlp(collector.url, keep=Keep(share=0)))
    await with_models.router.route(Task.chat("hello"))
    await asyncio.to_thread(with_models.router.telemetry.close)
    assert not collector.traces
    assert collector.metrics
    assert collector.logs


async def test_a_services_own_name_wins(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names the service by OpenTelemetry's variable sees that name; each process is another instance."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    await told(collector)
    await told(collector)
    processes = [attributes(r.resource) for request in collector.traces for r in request.resource_spans]
    assert {process["service.name"] for process in processes} == {"shop"}
    assert len({process["service.instance.id"] for process in processes}) == 2


@pytest.mark.parametrize("told_to", [{"hang": True}, {"status": 503}, {"status": 400}])
async def test_a_collector_that_fails_delays_nobody(
    told_to: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests are answered while the collector hangs or refuses, more of them than traces may wait; closing ends."""
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    async with Collector(**told_to) as collector:
        with_models = rig("fine", telemetry=over_otlp(collector.url, waiting=10))
        await with_models.router.route(Task.chat("hello"))
        async with asyncio.timeout(10):
            await collector.reached.wait()
            outcomes = [await with_models.router.route(Task.chat(f"hello {n}")) for n in range(100)]
        assert all(outcome.completion for outcome in outcomes)
        assert not collector.traces  # none of them waited for the collector
        async with asyncio.timeout(2 * GRACE):
            await asyncio.to_thread(with_models.router.telemetry.close)


async def test_a_collector_that_is_not_there_delays_nobody(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With nobody listening requests are answered, and closing ends."""
    caplog.set_level(logging.CRITICAL)
    with_models = rig("fine", telemetry=over_otlp(f"http://127.0.0.1:{unused_tcp_port}/"))
    outcome = await with_models.router.route(Task.chat("hello"))
    assert outcome.completion
    async with asyncio.timeout(2 * GRACE):
        await asyncio.to_thread(with_models.router.telemetry.close)
