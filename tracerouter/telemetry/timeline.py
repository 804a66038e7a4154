"""What happened in a request so far, as plain notes; spans are made of them when it has ended.

A note costs a microsecond where a live SDK span costs thirty, and nothing more when the trace is dropped. Ids are
drawn ahead, and each open note stands in OpenTelemetry's current context as a non-recording span, so that a
``traceparent`` sent upstream, other libraries' spans and their log records all have the right parent.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING, Any, Final, Self

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tracerouter.errors import ProviderError
from tracerouter.telemetry import names
from tracerouter.types import CHAT, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import TraceState

    from tracerouter.types import Usage

_random: Final = random.Random()  # noqa: S311 - ids must differ, and need not be secret
os.register_at_fork(after_in_child=_random.seed)  # in forked processes too; and a host may seed its own
_draw: Final = _random.getrandbits
_propagator: Final = TraceContextTextMapPropagator()
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


def fresh_id() -> str:
    """Draw an id for a request: 32 hexadecimal digits. Not from the system's entropy, which costs 50 µs a time."""
    return f"{_draw(128):032x}"


def current_traceparent() -> str:
    """Return the W3C header of the innermost open span, be it ours or a host's."""
    context = trace.get_current_span().get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


class NoteSpan(NonRecordingSpan):
    """An open note in OpenTelemetry's current context; a type of its own tells it from a host's spans."""

    def __init__(self, note: Note) -> None:
        super().__init__(note.span_context)
        self.note = note


class Note:
    """One stage of a request: a span to be. Use it as a context manager; it closes on any exception.

    Times are nanoseconds since the epoch; 0 while open.
    """

    __slots__ = (
        "_clock_offset",
        "_state",
        "_token",
        "_trace_id",
        "attributes",
        "beneath",
        "cost_nanos",
        "end_ns",
        "error_type",
        "events",
        "flags",
        "keep",
        "kind",
        "links",
        "name",
        "parent_id",
        "span_id",
        "start_ns",
        "status_message",
        "told",
        "usage",
    )

    def __init__(self, timeline: Timeline, name: str, kind: SpanKind, parent_id: int | None) -> None:
        self._trace_id = timeline.trace_id
        self._state = timeline.state
        self._clock_offset = timeline.clock_offset_ns
        self.flags = timeline.flags
        self.name = name
        self.kind = kind
        self.parent_id = parent_id
        self.span_id = _draw(64) or 1
        self.attributes: dict[str, Any] = {}
        self.events: list[tuple[str, int, dict[str, Any]]] = []
        self.links: tuple[SpanContext, ...] = ()
        """Spans of other traces that belong to it."""
        self.usage: Usage | None = None
        self.cost_nanos: int | None = 0
        self.error_type: str | None = None
        self.status_message: str | None = None
        self.keep: str | None = None
        """Of an HTTP request's note: why the trace of what was routed in it is kept; empty: it is dropped."""
        self.beneath: list[ReadableSpan] | None = None
        """Of an HTTP request's note: the spans of what was routed in it, which leave together with its own."""
        self.told: dict[str, Any] | None = None
        """All attributes of its span, once they have been projected."""
        self.start_ns = 0
        self.end_ns = 0

    def __enter__(self) -> Self:
        self.start_ns = time.perf_counter_ns() + self._clock_offset
        span = NoteSpan(self)
        self._token: Token[Context] = otel_context.attach(trace.set_span_in_context(span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.end_ns = time.perf_counter_ns() + self._clock_offset
        otel_context.detach(self._token)
        if error is not None:
            self.fail(*_described(error))

    @property
    def span_context(self) -> SpanContext:
        """The identity of the span to be."""
        return SpanContext(
            self._trace_id, self.span_id, is_remote=False, trace_flags=self.flags, trace_state=self._state
        )

    @property
    def traceparent(self) -> str:
        """The W3C header that makes what is called from here a child of this note."""
        return f"00-{self._trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"

    @property
    def latency(self) -> float:
        """Seconds from start to end."""
        return (self.end_ns - self.start_ns) / 1e9

    def fail(self, error_type: str, message: str | None = None) -> None:
        """Close with status ERROR: `error_type` is low in cardinality, `message` without content."""
        self.error_type = error_type
        self.status_message = message

    def answered(self, status: int) -> None:
        """Note the status of the HTTP answer; 5xx is an error of ours (HTTP semantic conventions)."""
        self.attributes[names.HTTP_STATUS] = status
        if status >= 500:  # noqa: PLR2004 - HTTP's own number
            self.fail(str(status))

    def link(self, traceparent: str) -> None:
        """Note what else belongs to it: another request's span, as a W3C ``traceparent`` names it."""
        found = trace.get_current_span(_propagator.extract({"traceparent": traceparent}, otel_context.Context()))
        if found.get_span_context().is_valid:
            self.links = (*self.links, found.get_span_context())

    def event(self, name: str, **attributes: Any) -> None:
        """Note something that happened at this moment."""
        self.events.append((name, time.perf_counter_ns() + self._clock_offset, attributes))


class Timeline:
    """The notes of one request, in the order in which they were opened.

    Args:
        parent: The span that the request belongs under, as a ``traceparent`` named it; None: the one in
            OpenTelemetry's current context.
        capture: Whether notes may hold prompts and answers.
    """

    __slots__ = ("above", "capture", "clock_offset_ns", "flags", "in_host_span", "notes", "parent", "state", "trace_id")

    def __init__(self, parent: SpanContext | None = None, *, capture: bool = False) -> None:
        self.capture = capture
        current = trace.get_current_span()
        found = parent or current.get_span_context()
        self.in_host_span: bool = (
            parent is None and found.is_valid and not found.is_remote and not isinstance(current, NoteSpan)
        )
        """Whether the parent is a span of the host's own tracing, whose sampling is honoured."""
        self.above: Note | None = current.note if parent is None and isinstance(current, NoteSpan) else None
        """The note of another timeline that the request came in under: that of its HTTP request."""
        self.parent: SpanContext | None = found if found.is_valid else None
        self.trace_id: int = found.trace_id if found.is_valid else _draw(128) or 1
        self.flags: TraceFlags = found.trace_flags if found.is_valid else _SAMPLED
        self.state: TraceState | None = found.trace_state if found.is_valid else None
        self.clock_offset_ns = time.time_ns() - time.perf_counter_ns()
        self.notes: list[Note] = []

    @classmethod
    def under(cls, headers: Mapping[str, str]) -> Self:
        """Begin under the host's open span, or else under the one that a W3C ``traceparent`` names."""
        if trace.get_current_span().get_span_context().is_valid:
            return cls()
        remote = _propagator.extract(headers, otel_context.Context())
        return cls(trace.get_current_span(remote).get_span_context())

    @classmethod
    def apart(cls) -> Self:
        """Begin a trace of its own, whatever span is open."""
        return cls(INVALID_SPAN_CONTEXT)

    def server(self, name: str) -> Note:
        """Open the note of an HTTP request that is served."""
        return self.stage(name, SpanKind.SERVER)

    def stage(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> Note:
        """Open a note under the innermost one that is still open."""
        parent = next((note for note in reversed(self.notes) if not note.end_ns), None)
        if parent is not None:
            parent_id: int | None = parent.span_id
        else:
            parent_id = self.parent.span_id if self.parent is not None else None
        note = Note(self, name, kind, parent_id)
        self.notes.append(note)
        return note

    def inference(self, model: str, provider: str, operation: str = CHAT) -> Note:
        """Open the note of one model call (GenAI conventions: ``{operation} {model}``, kind CLIENT)."""
        note = self.stage(f"{operation} {model}", SpanKind.CLIENT)
        note.attributes[names.GEN_AI_OPERATION] = operation
        note.attributes[names.GEN_AI_PROVIDER] = provider
        note.attributes[names.GEN_AI_REQUEST_MODEL] = model
        return note

    @property
    def root(self) -> Note:
        """The first note, which all others stand under."""
        return self.notes[0]


def _described(error: BaseException) -> tuple[str, str]:
    if isinstance(error, asyncio.CancelledError):
        return Reason.CANCELLED.value, "the caller went away"
    if isinstance(error, ProviderError):
        status = f" {error.status}" if error.status else ""
        return error.reason, f"{type(error).__name__}{status}"  # its message may quote the upstream, and so a prompt
    return type(error).__name__, ""
