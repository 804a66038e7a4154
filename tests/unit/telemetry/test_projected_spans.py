"""Spans that are made afterwards equal those that the live SDK would have exported."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from tests.gateway import Seen
from tracerouter.errors import RateLimited
from tracerouter.telemetry import Draft, Note, Telemetry, Timeline, names, projections
from tracerouter.types import Reason, Task, Usage
from tracerouter.types import Status as Ended

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class _Drawn(IdGenerator):
    """Gives live spans the ids that ours have drawn, so that the exports can be compared byte for byte."""

    trace_id = span_id = 0

    def generate_span_id(self) -> int:
        return self.span_id

    def generate_trace_id(self) -> int:
        return self.trace_id


class Live:
    """A live SDK span beside each note: opened and closed when the note is, nested by the SDK's own context."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, telemetry: Telemetry) -> None:
        self.ids = _Drawn()
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(resource=telemetry.resource, id_generator=self.ids, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer(telemetry.scope.name, telemetry.scope.version)
        self.context: list[otel_context.Context] = []
        self.spans: dict[int, Span] = {}
        enter, leave = Note.__enter__, Note.__exit__

        def opened(note: Note) -> Note:
            enter(note)
            self.start(note)
            return note

        def closed(note: Note, *error: Any) -> None:
            leave(note, *error)
            self.end(note)

        monkeypatch.setattr(Note, "__enter__", opened)
        monkeypatch.setattr(Note, "__exit__", closed)

    def remote(self, traceparent: str) -> None:
        """Begin under what a ``traceparent`` names, as an instrumentation does."""
        extracted = Timeline.under({"traceparent": traceparent}).parent
        assert extracted is not None
        self.context.append(trace.set_span_in_context(NonRecordingSpan(extracted), otel_context.Context()))

    def start(self, note: Note) -> None:
        self.ids.trace_id, self.ids.span_id = note.span_context.trace_id, note.span_id
        parent = self.context[-1] if self.context else otel_context.Context()
        span = self.tracer.start_span(note.name, parent, note.kind, start_time=note.start_ns)
        assert isinstance(span, Span)
        self.spans[note.span_id] = span
        self.context.append(trace.set_span_in_context(span, otel_context.Context()))

    def end(self, note: Note) -> None:
        self.context.pop()
        span = self.spans[note.span_id]
        for name, at_ns, attributes in note.events:
            span.add_event(name, attributes, at_ns)
        if note.error_type:
            span.set_status(Status(StatusCode.ERROR, note.status_message))

    def finish(self, projected: list[ReadableSpan], timeline: Timeline) -> tuple[ReadableSpan, ...]:
        """End the live spans with the facts that the request's end brought, children first."""
        facts = {span.context.span_id: span.attributes for span in projected if span.context}
        for note in reversed(timeline.notes):
            for name, value in (facts[note.span_id] or {}).items():
                self.spans[note.span_id].set_attribute(name, value)
            self.spans[note.span_id].end(note.end_ns)
        return self.exporter.get_finished_spans()


def draft(telemetry: Telemetry) -> Draft:
    return telemetry.draft(Task.chat("hello"), policy="p@1", prompt_hash="h", providers={}, baseline=None)


def one_request(telemetry: Telemetry) -> Timeline:
    """Go through the shapes that a request's notes can have: nested, failed, cancelled, with events."""
    with draft(telemetry) as request:
        with request.timeline.stage("cache") as note:
            note.attributes[names.CACHE_STATUS] = "miss"
        with suppress(RateLimited), request.timeline.stage("cheap") as stage:
            with request.timeline.inference("small-1", "openai") as chat:
                chat.usage, chat.cost_nanos = Usage(10, 5, 1, 2), 1250
                chat.attributes[names.GEN_AI_FINISH_REASONS] = ["stop"]
                chat.event(names.RETRY_EVENT, wait=0.5)
            stage.usage, stage.cost_nanos = chat.usage, 1250
            msg = "later"
            raise RateLimited(msg)
        with suppress(asyncio.CancelledError), request.timeline.stage("validate"):
            raise asyncio.CancelledError
        request.end(Ended.FAILED, Reason.NO_RUNG_LEFT)
    return request.timeline


@pytest.fixture
def seen() -> Seen:
    """A span processor that remembers."""
    return Seen()


@pytest.mark.parametrize("traceparent", [None, TRACEPARENT])
def test_projected_spans_equal_live_ones(monkeypatch: pytest.MonkeyPatch, seen: Seen, traceparent: str | None) -> None:
    """The OTLP bytes of projected spans are those of live ones: tree, times, attributes, events, status."""
    telemetry = Telemetry(span_processors=[seen])
    live = Live(monkeypatch, telemetry)
    token = None
    if traceparent:
        live.remote(traceparent)
        token = otel_context.attach(live.context[-1])
    timeline = one_request(telemetry)
    if token:
        otel_context.detach(token)
    expected = encode_spans(live.finish(seen.spans, timeline))
    assert encode_spans(seen.spans).SerializeToString() == expected.SerializeToString()
    assert len(seen.spans) == 5


def test_a_remote_parent_is_the_routes_parent(seen: Seen) -> None:
    """``traceparent`` in: the trace id is the caller's, and the server span hangs under the caller's span."""
    timeline = Timeline.under({"traceparent": TRACEPARENT})
    with timeline.server("POST /x") as server:
        inner = Timeline()
        with inner.stage("route p@1") as route:
            pass
    assert f"{inner.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert server.parent_id == 0x00F067AA0BA902B7
    assert route.parent_id == server.span_id
    assert not inner.in_host_span


def test_traceparent_out_names_the_chat_span() -> None:
    """``traceparent`` out: what the upstream does hangs under the chat span."""
    timeline = Timeline()
    with timeline.stage("cheap"), timeline.inference("m", "openai") as chat:
        assert chat.traceparent == f"00-{timeline.trace_id:032x}-{chat.span_id:016x}-01"


def test_other_libraries_spans_and_logs_join_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    """Inside a stage, spans of other libraries have it as parent, and log records can be given its trace id."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    timeline = Timeline()
    with timeline.stage("cheap") as stage:
        with provider.get_tracer("other").start_as_current_span("query"):
            pass
        logging.getLogger("other").warning("inside %032x", trace.get_current_span().get_span_context().trace_id)
    (span,) = exporter.get_finished_spans()
    assert span.parent is not None
    assert span.parent.span_id == stage.span_id
    assert caplog.messages == [f"inside {timeline.trace_id:032x}"]


def test_an_unsampled_host_span_keeps_nothing(seen: Seen) -> None:
    """In a service with tracing of its own, a parent that is not sampled is honoured, errors included."""
    telemetry = Telemetry(span_processors=[seen])
    host = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(0)))
    token = otel_context.attach(trace.set_span_in_context(host))
    try:
        one_request(telemetry)
    finally:
        otel_context.detach(token)
    assert seen.spans == []


def test_every_note_is_closed_whatever_happens(seen: Seen) -> None:
    """A cancelled request leaves no open note, and its route says so."""
    telemetry = Telemetry(span_processors=[seen])
    with pytest.raises(asyncio.CancelledError), draft(telemetry) as request, request.timeline.stage("cheap"):
        raise asyncio.CancelledError
    assert [(span.name, span.status.status_code) for span in seen.spans] == [
        ("cheap", StatusCode.ERROR),
        ("route p@1", StatusCode.ERROR),
    ]
    assert all(span.end_time for span in seen.spans)
    assert (seen.spans[-1].attributes or {})[names.OUTCOME] == "cancelled"


def test_names_and_types_are_those_of_the_table() -> None:
    """The table of attributes names each once a kind of span, and every route fact has a place in it."""
    assert set(projections.SPAN_ATTRIBUTES) == {
        "server", "route", "cache", "classify", "cheap", "expensive", "fallback", "quota", "validate",
        "review", "chat", "embeddings",
    }  # fmt: skip
    for kind in projections.SPAN_ATTRIBUTES:
        assert names.ERROR_TYPE in projections.SPAN_ATTRIBUTES[kind]
