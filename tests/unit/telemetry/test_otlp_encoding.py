"""What is encoded by hand is what OpenTelemetry's own encoder makes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from tracerouter.telemetry import otlp
from tracerouter.types import Reason

RESOURCE = Resource({"service.name": "test", "number": 7})
SCOPE = InstrumentationScope("tracerouter", "1.2")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
PLAIN = st.one_of(TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
VALUE = PLAIN | st.lists(TEXT, max_size=5).map(tuple)
ATTRIBUTES = st.dictionaries(TEXT.filter(bool), VALUE, max_size=8)
NESTED = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
CONTEXTS = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    is_remote=st.booleans(),
    trace_flags=st.just(TraceFlags(1)),
    trace_state=st.sampled_from([None, TraceState([("vendor", "a"), ("other", "b")])]),
)
TIMES = st.integers(0, 2**63)
SPANS = st.builds(
    ReadableSpan,
    name=TEXT,
    context=CONTEXTS,
    parent=st.none() | CONTEXTS,
    resource=st.just(RESOURCE),
    attributes=ATTRIBUTES,
    events=st.lists(st.builds(Event, TEXT, ATTRIBUTES, TIMES), max_size=2),
    links=st.lists(st.builds(Link, CONTEXTS), max_size=2),
    kind=st.sampled_from(SpanKind),
    status=st.sampled_from([Status(), Status(StatusCode.OK), Status(StatusCode.ERROR, "why")]),
    start_time=TIMES,
    end_time=TIMES,
    instrumentation_scope=st.just(SCOPE),
)


class Sent:
    """Stands where the exporter's HTTP client is, and keeps what it is given."""

    success = True

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def export(self, body: bytes) -> Sent:
        self.bodies.append(body)
        return self

    def shutdown(self) -> None: ...


@given(st.lists(SPANS, min_size=1, max_size=3))
def test_spans(spans: list[ReadableSpan]) -> None:
    """Whatever a span holds, its message is the one that the SDK's encoder makes."""
    exporter = otlp.SpanExporter("http://127.0.0.1:9/v1/traces")
    exporter._client = sent = Sent()  # type: ignore[assignment]
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert ExportTraceServiceRequest.FromString(sent.bodies[0]) == encode_spans(spans)


@given(ATTRIBUTES, st.dictionaries(TEXT, NESTED, max_size=5), CONTEXTS, TIMES)
def test_log_records(attributes: dict[str, Any], body: dict[str, Any], context: SpanContext, at_ns: int) -> None:
    """Whatever a log record holds, its message is the one that the SDK's encoder makes."""
    record = LogRecord(
        timestamp=at_ns,
        observed_timestamp=at_ns,
        context=set_span_in_context(NonRecordingSpan(context)),
        severity_number=SeverityNumber.WARN,
        severity_text="WARN",
        body=body,
        attributes=attributes,
        event_name="tracerouter.decision",
    )
    told = [ReadableLogRecord(record, RESOURCE, SCOPE)]
    exporter = otlp.LogExporter("http://127.0.0.1:9/v1/logs")
    exporter._client = sent = Sent()  # type: ignore[assignment]
    exporter.export(told)
    assert ExportLogsServiceRequest.FromString(sent.bodies[0]) == encode_logs(told)


def test_an_enum_is_told_as_its_text() -> None:
    """A subclass of a known type is encoded as that type."""
    assert otlp._value(Reason.TIMEOUT) == otlp._value("timeout")


@pytest.mark.parametrize("value", [object(), None])
def test_what_has_no_encoding_is_empty(value: object) -> None:
    """A value of an unknown type is an empty one, and breaks nothing."""
    assert otlp._value(value) == b""


def test_the_private_part_that_is_used_is_there() -> None:
    """The SDK's exporters still have the client that sends encoded bytes, which ours rely on."""
    for exporter in (otlp.SpanExporter("http://127.0.0.1:9/v1/traces"), otlp.LogExporter("http://127.0.0.1:9/v1/logs")):
        assert callable(exporter._client.export)
        exporter.shutdown()  # type: ignore[no-untyped-call]
