"""Bounded queues before the exporters: what does not fit is dropped whole and counted, and no request waits.

The SDK's batch processors make room by dropping the oldest item, be it a span from the middle of a trace. Here a trace
is one item, and it is asked whether there is room before it is made.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

    from tracerouter.telemetry.metrics import CounterOf

TRACES: Final = 1024
"""Traces that may wait for their exporter: some 15 MB, and half a second of a busy process. Where prompts and answers
are recorded they come on top: it is the number that is bounded."""
LOGS: Final = 4096
"""Log records that may wait for theirs: as much."""
_DELAY_MS: Final = 1000
"""Until a batch that is not full is sent: less than a collector waits for the rest of a trace whose root it has."""
_TRACES_A_BATCH: Final = 64
"""About as many spans as the SDK's own default of 512."""


class Backlog:
    """How many items were handed to a batch processor and are not yet exported; counts those that were lost.

    Args:
        limit: Items that may wait.
        lost: Counts by reason: ``queue_full``, ``export_failed``.
    """

    def __init__(self, limit: int, lost: CounterOf) -> None:
        self._limit = limit
        self._lost = lost
        self._waiting = 0
        self._lock = threading.Lock()
        for reason in ("queue_full", "export_failed"):
            lost.add(0, reason)  # a counter that is there from the start shows its first loss as growth
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: (itself := forget()) and itself())

    def _forget(self) -> None:
        """Begin anew in a forked process, where the SDK's queues are empty."""
        self._waiting = 0
        self._lock = threading.Lock()

    def reserve(self) -> bool:
        """Take the room of one item; False, and counted, where there is none."""
        with self._lock:
            full = self._waiting >= self._limit
            self._waiting += not full
        if full:
            self._lost.add(1, "queue_full")
        return not full

    def exported(self, items: int, *, sent: bool) -> None:
        """Give the room of `items` back."""
        with self._lock:
            self._waiting -= items
        if not sent:
            self._lost.add(items, "export_failed")


class _Trace(NamedTuple):
    """Stands in the SDK's queue where a span would: its context is all that the processor looks at."""

    context: SpanContext
    spans: list[ReadableSpan]


class TraceQueue:
    """Hands whole traces to an exporter of spans, on the SDK's batching thread."""

    def __init__(self, exporter: SpanExporter, lost: CounterOf, limit: int = TRACES) -> None:
        self._backlog = Backlog(limit, lost)
        self._processor = BatchSpanProcessor(
            _Unpacked(exporter, self._backlog), limit, _DELAY_MS, min(limit, _TRACES_A_BATCH)
        )

    def reserve(self) -> bool:
        """Take the room of one trace; False, and counted, where there is none."""
        return self._backlog.reserve()

    def put(self, spans: list[ReadableSpan]) -> None:
        """Queue a trace that room was reserved for."""
        context = spans[0].context
        self._processor.on_end(cast("ReadableSpan", _Trace(context, spans)))

    def force_flush(self) -> None:
        """Export what waits; blocks."""
        self._processor.force_flush()

    def shutdown(self) -> None:
        """Export what waits, and stop; blocks."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


class _Unpacked(SpanExporter):
    def __init__(self, inner: SpanExporter, backlog: Backlog) -> None:
        self._inner = inner
        self._backlog = backlog

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the spans of traces; a batch that can't be sent loses each trace in it whole."""
        traces = cast("Sequence[_Trace]", spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export([span for trace in traces for span in trace.spans])
        finally:
            self._backlog.exported(len(traces), sent=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Shut the inner exporter down."""
        self._inner.shutdown()


class CountedLogs(LogRecordExporter):
    """Exports log records, and tells a backlog."""

    def __init__(self, inner: LogRecordExporter, backlog: Backlog) -> None:
        self._inner = inner
        self._backlog = backlog

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Export them."""
        result = LogRecordExportResult.FAILURE
        try:
            result = self._inner.export(batch)
        finally:
            self._backlog.exported(len(batch), sent=result is LogRecordExportResult.SUCCESS)
        return result

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the inner exporter."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Shut the inner exporter down."""
        self._inner.shutdown()  # type: ignore[no-untyped-call]
