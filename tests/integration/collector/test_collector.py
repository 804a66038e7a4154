"""The committed configuration of the collector, run by the collector that is built from ``builder.yaml``."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from benchmarks.traffic import read_keys
from tests.observability import (
    COLLECTOR,
    DEMO,
    KEYS,
    OTELCOL,
    PROMTOOL,
    Collector,
    Prometheus,
    Serve,
    Sink,
    binary,
    built_collector,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = COLLECTOR / "collector.yaml"


@dataclass(kw_only=True)
class Trace:
    """A trace as a router or another service sends it: a root, and a span below it."""

    keep: str | None = None
    failed: bool = False
    service: str = "tracerouter"
    trace_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    parent_id: bytes = b""

    @property
    def hex(self) -> str:
        return self.trace_id.hex()

    def request(self) -> ExportTraceServiceRequest:
        """Return it as OTLP."""
        made = ExportTraceServiceRequest()
        of_resource = made.resource_spans.add()
        of_resource.resource.attributes.append(_text("service.name", self.service))
        now = time.time_ns()
        root, below = secrets.token_bytes(8), secrets.token_bytes(8)
        common: dict[str, Any] = {"trace_id": self.trace_id, "start_time_unix_nano": now, "end_time_unix_nano": now}
        spans = [
            Span(span_id=root, parent_span_id=self.parent_id, name="route", **common),
            Span(span_id=below, parent_span_id=root, name="chat", **common),
        ]
        if self.keep:
            spans[0].attributes.append(_text("tracerouter.keep", self.keep))
        if self.failed:
            spans[1].status.code = Status.STATUS_CODE_ERROR
        of_resource.scope_spans.add().spans.extend(spans)
        return made


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


async def send(collector: Collector, *traces: Trace) -> None:
    """Send traces, each in a request of its own."""
    headers = {"content-type": "application/x-protobuf"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for trace in traces:
            body = trace.request().SerializeToString()
            async with session.post(f"{collector.otlp}/v1/traces", data=body) as response:
                assert response.status == 200, await response.text()


async def decided(collector: Collector, traces: int) -> None:
    """Wait until so many traces have been decided upon."""
    metric = "otelcol_processor_tail_sampling_global_count_traces_sampled_total"

    async def all_of_them() -> bool:
        return await collector.own(metric) >= traces

    await until(all_of_them, f"decision on {traces} traces")


async def said(*command: str | Path) -> tuple[int, str]:
    """Run a command to its end, and return its status and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_the_configuration_is_valid() -> None:
    """The collector that is built from the manifest finds no error in the configuration, and nothing that is old."""
    built = built_collector()
    if built is None:
        pytest.skip(f"the collector has not been built: {OTELCOL.install}")
    assert await said(built, "validate", f"--config={CONFIG}") == (0, "")


async def test_it_starts_without_a_warning(tmp_path: Path) -> None:
    """Nothing in the configuration is deprecated: a collector says that when it starts, not when it validates."""
    async with Sink() as sink, Collector(tmp_path, sink) as collector:
        pass
    assert collector.log() == ""


def test_the_manifest_has_what_the_configuration_uses_and_no_more() -> None:
    """Each component of the configuration is built in; nothing else is."""
    config = yaml.safe_load(CONFIG.read_text())
    kinds = ("receivers", "processors", "exporters", "extensions")
    used = {(kind, name.partition("/")[0].replace("_", "")) for kind in kinds for name in config[kind]}
    manifest = yaml.safe_load((COLLECTOR / "builder.yaml").read_text())
    built = {
        (kind, one["gomod"].split()[0].rpartition("/")[2].removesuffix(kind.removesuffix("s")))
        for kind in kinds
        for one in manifest[kind]
    }
    assert built == used
    for name, pipeline in config["service"]["pipelines"].items():
        assert pipeline["processors"][0] == "memory_limiter", f"{name}: nothing protects the memory before it is full"


@pytest.mark.parametrize("share", [0, 100])
async def test_what_is_sampled(tmp_path: Path, share: int) -> None:
    """What the router chose passes, and so does an error; only where nothing was chosen does the share decide."""
    chosen = [Trace(keep=keep) for keep in ("error", "fallback", "review", "refusal", "slow", "dear", "share")]
    error = Trace(keep="all", failed=True)
    unchosen = [Trace(keep="all"), Trace(service="shop")]
    sampled = {trace.hex for trace in [*chosen, error, *(unchosen if share else [])]}
    async with Sink() as sink, Collector(tmp_path, sink, share=share) as collector:
        await send(collector, *chosen, error, *unchosen)
        await decided(collector, 10)
        await sink.until(lambda sink: len(sink.traces) >= len(sampled))
    assert set(sink.traces) == sampled
    assert all(len(spans) == 2 for spans in sink.traces.values())


async def test_a_trace_is_sampled_whole(tmp_path: Path) -> None:
    """The spans of other services are kept or dropped with the router's, whichever comes first, and however late."""
    kept, dropped = Trace(keep="fallback", parent_id=b"A" * 8), Trace(keep="all", parent_id=b"A" * 8)
    async with Sink() as sink, Collector(tmp_path, sink, share=0) as collector:
        for trace in (kept, dropped):
            await send(collector, Trace(service="shop", trace_id=trace.trace_id), trace)
        await decided(collector, 2)
        for trace in (kept, dropped):
            await send(collector, Trace(service="mail", trace_id=trace.trace_id, parent_id=b"A" * 8))
        await sink.until(lambda sink: len(sink.spans) >= 6)
        assert await collector.own("otelcol_processor_tail_sampling_early_releases_from_cache_decision_total") == 4
    assert set(sink.traces) == {kept.hex}
    assert {span.service for span in sink.spans} == {"tracerouter", "shop", "mail"}


async def test_an_exemplar_leads_to_a_trace(tmp_path: Path) -> None:
    """All three signals arrive; each exemplar in Prometheus, and each log record, names a trace that is there."""
    async with (
        Sink() as sink,
        Collector(tmp_path, sink, share=0) as collector,
        Prometheus(tmp_path, collector) as prometheus,
        Serve(tmp_path, DEMO, collector) as gateway,
    ):
        answers = await asyncio.gather(*(ask(gateway, f"Extract the scanned order {number}.") for number in range(10)))
        await prometheus.until("sum(tracerouter_requests_total) == 10")
        told = {traceparent.split("-")[1]: request_id for traceparent, request_id in answers}
        await sink.until(lambda sink: len(sink.traces) >= 10 and len(sink.logs) >= 10)
        exemplars = await prometheus.exemplars("tracerouter_request_duration_seconds_bucket")
        (series,) = await prometheus.query("tracerouter_requests_total")
    assert exemplars
    assert {one["labels"]["trace_id"] for one in exemplars} <= set(sink.traces) == set(told)
    logged = {log.trace_id: log.body["request_id"] for log in sink.logs if log.event == "tracerouter.decision"}
    assert logged == told
    assert {span.service for span in sink.spans} == {series.labels["job"]} == {"tracerouter"}
    assert "otel_scope_name" not in series.labels


async def ask(gateway: Serve, text: str) -> tuple[str, str]:
    """Send a request that falls back, and return its trace and its id."""
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    headers = {"authorization": f"Bearer {read_keys(KEYS)[0]}"}
    url = f"{gateway.url}/v1/chat/completions"
    async with aiohttp.ClientSession(headers=headers) as session, session.post(url, json=body) as response:
        assert (response.status, response.headers["x-tracerouter-route"]) == (200, "fallback")
        return response.headers["traceparent"], response.headers["x-request-id"]


async def test_what_was_sampled_outlives_an_outage(tmp_path: Path) -> None:
    """While the store of traces fails or is away, what is sampled waits; afterwards all of it arrives, once."""
    traces = [Trace(keep="fallback") for _ in range(20)]
    async with Sink(status=503) as sink, Collector(tmp_path, sink) as collector:
        await send(collector, *traces)
        await sink.until(lambda sink: sink.refused >= 2)
        await sink.stop()
        assert await waiting(collector) == 40
        sink.status = 200
        await sink.start()
        await sink.until(lambda sink: len(sink.traces) >= 20)
        await until(lambda: sent(collector, 40), "account of what was sent")
        assert await waiting(collector) == await collector.own("otelcol_exporter_send_failed_spans_total") == 0
    assert len(sink.spans) == 40
    assert set(sink.traces) == {trace.hex for trace in traces}


async def sent(collector: Collector, spans: float) -> bool:
    """Return whether so many spans have been sent on."""
    return await collector.own("otelcol_exporter_sent_spans_total") == spans


async def waiting(collector: Collector) -> float:
    """Return how many spans wait to be sent on."""
    return await collector.own("otelcol_exporter_queue_size", exporter="otlp_http/traces")


async def test_a_full_queue_is_counted(tmp_path: Path) -> None:
    """What does not fit into the queue is lost, and the collector's own metrics say how much."""
    queue = {"queue_size": 10, "num_consumers": 1, "batch": {"min_size": 1, "max_size": 10}}
    more = {"exporters": {"otlp_http/traces": {"sending_queue": queue}}}
    async with Sink(status=503) as sink, Collector(tmp_path, sink, more=more) as collector:
        await send(collector, *(Trace(keep="fallback") for _ in range(100)))
        await until(lambda: collector.own("otelcol_exporter_enqueue_failed_spans_total"), "span that is lost")


async def test_prometheus_accepts_its_configuration() -> None:
    """The committed file, with the rules beside it, is what ``promtool`` calls valid."""
    status, told = await said(binary(PROMTOOL), "check", "config", COLLECTOR / "prometheus" / "prometheus.yaml")
    assert status == 0, told
