"""Where telemetry goes: OTLP over HTTP, the console, processors of the host's own, or nowhere."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
import uuid
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Protocol

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from tracerouter.errors import place
from tracerouter.telemetry import names, projections
from tracerouter.telemetry.keep import Keep
from tracerouter.telemetry.metrics import Instruments, meter_provider
from tracerouter.telemetry.queues import LOGS, TRACES, Backlog, CountedLogs, TraceQueue
from tracerouter.telemetry.record import Draft, Told
from tracerouter.telemetry.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

    from tracerouter.telemetry.record import Record
    from tracerouter.telemetry.timeline import Note
    from tracerouter.types import Task, Usage

_TOGETHER = 32
"""Requests that are told together, at most: some milliseconds of the event loop."""

GRACE = 3.0
"""Seconds that exporters have to send what is left when the process ends."""

LOST: Final[list[ReadableSpan]] = []
"""Stands for the spans beneath an HTTP request's that found no room."""

CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

log = logging.getLogger(__name__)


class Exporter(Protocol):
    """What all exporters of the SDK have."""

    def shutdown(self) -> None:
        """End what is under way."""
        ...


class DecisionLog(Protocol):
    """Takes one row a request, without delaying it; False where it had to be dropped."""

    def append(self, row: Mapping[str, Any], timeline: Sequence[Mapping[str, Any]] | None) -> bool:
        """Queue one row, with the stages of its trace where that is kept."""
        ...


@dataclass(kw_only=True)
class Telemetry:
    """Turns finished Records into spans, metrics, a log record and a row of the decision log.

    Nothing here raises into a request: an exporter that fails costs telemetry, not an answer.
    """

    keep: Keep = field(default_factory=Keep)
    span_processors: Sequence[SpanProcessor] = ()
    """Take the kept traces' spans. A service with a TracerProvider names its own processor here."""
    traces: TraceQueue | None = None
    """Takes the kept traces whole, for an exporter of our own."""
    log_provider: LoggerProvider | None = None
    log_backlog: Backlog | None = None
    """Knows how many log records wait for their exporter."""
    meter_provider: MeterProvider | None = None
    exporters: Sequence[Exporter] = ()
    """Whose retries ``close`` may have to end."""
    instruments: Instruments = field(default_factory=Instruments)
    decisions: DecisionLog | None = None
    tasks: Collection[str] = ()
    """The labels that metrics may carry; all others count as ``other``."""
    capture_content: bool = field(default_factory=lambda: os.environ.get(CAPTURE_VARIABLE, "").lower() == "true")
    """Tell prompts and answers."""
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """Keys the hashes of prompts, and of users where those are hashed."""
    hash_users: bool = False
    delay: float = 0.0
    """Seconds for which requests that have ended may wait, to be told together, which costs half as much each."""
    resource: Resource = field(default_factory=lambda: this_process())  # noqa: PLW0108 - it is defined further down

    def __post_init__(self) -> None:
        self.scope = scope()
        self._finished: list[tuple[Record, projections.Row, str | None]] = []
        self._served: list[Timeline] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        provider = self.log_provider
        self._logger = provider.get_logger(self.scope.name, self.scope.version) if provider else None

    def draft(
        self,
        task: Task,
        *,
        policy: str,
        prompt_hash: str,
        providers: dict[str, str],
        baseline: Callable[[Usage], int] | None,
    ) -> Draft:
        """Begin the account of one request; `baseline` prices tokens on the top rung (nano-dollars)."""
        return Draft(
            task,
            self._finish,
            user=task.caller.user and self.told_user(task.caller.user),
            policy=policy,
            prompt_hash=prompt_hash,
            providers=providers,
            baseline=baseline,
            capture=self.capture_content,
        )

    def told_user(self, user: str) -> str:
        """Return how a user is told: hashed, where users are."""
        return blake2b(user.encode(), key=self.secret, digest_size=8).hexdigest() if self.hash_users else user

    def reviewed(self, review: str, action: str, reviewer: str | None, since: float, of: tuple[int, int]) -> None:
        """Tell what came of a review, as a trace of its own that is always kept.

        Args:
            review: Its id.
            action: What was done: ``approve``, ``edit``, ``reject`` or ``expire``.
            reviewer: Who did it, if anybody did.
            since: Unix seconds from which it waited: its span begins there.
            of: Trace id and span id of the request's ``route`` span, which it is linked to.
        """
        trace_id, span_id = of
        timeline = Timeline.apart()
        with timeline.stage("review decision") as note:
            note.start_ns = min(int(since * 1e9), note.start_ns)
            note.links = (SpanContext(trace_id, span_id, is_remote=True, trace_flags=timeline.flags),)
            note.attributes[names.REVIEW_ID] = review
            note.attributes[names.REVIEW_ACTION] = action
            note.attributes[names.KEEP] = "review"
            if reviewer is not None:
                note.attributes[names.REVIEWER] = self.told_user(reviewer)
        note.attributes[names.REVIEW_WAIT] = note.latency
        self._served.append(timeline)
        self._soon()

    def server_ended(self, timeline: Timeline) -> None:
        """Tell the span of an HTTP request, if the trace of what was routed in it is kept, or if it failed itself."""
        note = timeline.root
        if not note.keep:  # nothing was routed in it, or nothing that is kept: its own verdict
            rest = self.keep.of_the_rest(timeline.trace_id) if note.keep is None else None
            note.keep = "error" if note.error_type else rest
            if note.keep is None or self.keep.left_to_parent(timeline):
                return
            note.attributes[names.KEEP] = note.keep
        self._served.append(timeline)
        self._soon()

    def flush(self) -> None:
        """Tell of every request that has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        finished, self._finished = self._finished, []
        served, self._served = self._served, []
        to_come = {timeline.root for timeline in served}
        for record, told, keep in finished:
            try:
                self._tell(record, told, keep, to_come)
            except Exception as error:  # noqa: BLE001 - telemetry may fail, requests may not
                log.error("the telemetry of a request was lost: %s", place(error))
        for timeline in served:
            try:
                self._tell_served(timeline)
            except Exception as error:  # noqa: BLE001 - as above
                log.error("the span of an HTTP request was lost: %s", place(error))

    def force_flush(self) -> None:
        """Flush, and export what waits; blocks while it is sent."""
        self.flush()
        for processor in self.span_processors:
            processor.force_flush()
        if self.traces is not None:
            self.traces.force_flush()
        if self.log_provider is not None:
            self.log_provider.force_flush()

    def close(self) -> None:
        """Flush and stop every exporter; blocks while they send, about :data:`GRACE` where they can't."""
        self.flush()
        told = (*self.span_processors, self.traces, self.log_provider, self.meter_provider)
        stopping = [threading.Thread(target=one.shutdown, daemon=True) for one in told if one is not None]
        for thread in stopping:
            thread.start()
        until = time.monotonic() + GRACE
        for thread in stopping:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in stopping):  # what waits for a hung collector ends with the process
            for exporter in self.exporters:
                exporter.shutdown()  # no retries from here on
            log.warning("telemetry that could not be sent in %.0f s is lost", GRACE)

    def _finish(self, record: Record) -> Told:
        told, keep = projections.row(record), self.keep.why(record)
        if record.timeline.above is not None:
            record.timeline.above.keep = keep or record.timeline.above.keep or ""
        self._finished.append((record, told, keep))
        self._soon()
        return Told(projections.facts(told), projections.headers(record, told), keep)

    def _soon(self) -> None:
        """Flush now, when enough have come together, or after the delay."""
        if not self.delay or len(self._finished) >= _TOGETHER:
            self.flush()
            return
        loop = asyncio.get_running_loop()
        if self._timer is None or self._loop is not loop:  # a loop that has ended took its timer with it
            self._timer, self._loop = loop.call_later(self.delay, self.flush), loop

    def _tell(self, record: Record, told: projections.Row, keep: str | None, to_come: Collection[Note]) -> None:
        """Tell of one request; `to_come` are the HTTP requests whose own span is told right after."""
        if record.error_type is not None:
            tried = ", ".join(f"{one.model} {one.failure or 'accepted'}" for one in record.attempts)
            log.warning(
                "request %s %s: %s (%s)", record.request_id, record.outcome, record.reason, tried or "none tried"
            )
        if self.decisions is not None:
            self.decisions.append(told, projections.timeline_rows(record) if keep else None)
        if self._logger is not None:
            said = projections.log_record(record, told)
            if self.log_backlog is None or self.log_backlog.reserve():
                self._logger.emit(said)
        made = None if keep is None else projections.spans(record, told, keep, self.resource, self.scope)
        above = record.timeline.above
        if above is not None and above.end_ns and above not in to_come:
            above = None  # it has been told: this is the work of a task that outlived it
        queued = made is not None and self._queue(made, above)
        # an exemplar must not name a trace that is lost
        projections.measure(record, keep if queued else None, self.instruments, self.tasks)
        if made is not None:
            self._process(made)

    def _queue(self, made: list[ReadableSpan], above: Note | None) -> bool:
        """Queue a trace, or keep it until the HTTP request `above` has ended; False where it is lost."""
        if self.traces is None:
            return True
        if above is None:
            room = self.traces.reserve()
            if room:
                self.traces.put(made)
            return room
        if above.beneath is None:  # the first that was routed in it takes the room for all
            above.beneath = [] if self.traces.reserve() else LOST
        if above.beneath is LOST:
            return False
        above.beneath += made
        return True

    def _tell_served(self, timeline: Timeline) -> None:
        note = timeline.root
        made = projections.only_span(timeline, self.resource, self.scope)
        self._process([made])
        if self.traces is None or note.beneath is LOST:
            return  # what it stands above is lost, and it would stand alone
        if note.beneath or self.traces.reserve():
            self.traces.put([*(note.beneath or ()), made])

    def _process(self, made: list[ReadableSpan]) -> None:
        for processor in self.span_processors:
            for span in made:
                processor.on_end(span)


def over_otlp(endpoint: str, *, metric_interval: float = 60.0, waiting: int = TRACES, **facts: Any) -> Telemetry:
    """Send traces, metrics and logs to an OTLP/HTTP `endpoint` such as ``http://127.0.0.1:4318``.

    Where `facts` name span processors of the host's own, traces go to those alone.

    Args:
        endpoint: Without the ``/v1/…`` paths.
        metric_interval: Seconds between two exports of metrics.
        waiting: Traces that may wait to be sent; what comes then is dropped, whole, and counted.
        facts: The other fields of :class:`Telemetry`.
    """
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    from tracerouter.telemetry.otlp import LogExporter, SpanExporter

    base = endpoint.rstrip("/")
    exporters = (
        SpanExporter(f"{base}/v1/traces"),
        LogExporter(f"{base}/v1/logs"),
        OTLPMetricExporter(f"{base}/v1/metrics"),
    )
    return _batched(exporters, metric_interval, waiting, facts)


def to_console(*, metric_interval: float = 60.0, **facts: Any) -> Telemetry:
    """Write traces, metrics and logs to standard output. `facts` are the other fields of :class:`Telemetry`."""
    from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    exporters = ConsoleSpanExporter(), ConsoleLogRecordExporter(), ConsoleMetricExporter()
    return _batched(exporters, metric_interval, TRACES, facts)


def _batched(
    exporters: tuple[SpanExporter, LogRecordExporter, MetricExporter],
    metric_interval: float,
    waiting: int,
    facts: dict[str, Any],
) -> Telemetry:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    to_spans, to_logs, to_metrics = exporters
    process = facts.setdefault("resource", this_process())
    instruments = facts.setdefault("instruments", Instruments())
    backlog = Backlog(LOGS, instruments.logs_dropped)
    logs = LoggerProvider(process, shutdown_on_exit=False)
    logs.add_log_record_processor(BatchLogRecordProcessor(CountedLogs(to_logs, backlog), max_queue_size=LOGS))
    return Telemetry(
        traces=None if facts.get("span_processors") else TraceQueue(to_spans, instruments.traces_dropped, waiting),
        log_provider=logs,
        log_backlog=backlog,
        exporters=exporters,
        meter_provider=meter_provider(to_metrics, instruments, process, scope(), metric_interval),
        **facts,
    )


def scope() -> InstrumentationScope:
    """Name this library, as spans, metrics and log records name it."""
    return InstrumentationScope("tracerouter", version("tracerouter"))


def this_process() -> Resource:
    """Describe this process; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win over our name."""
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    told = {"service.instance.id": str(uuid.uuid4())} | ({} if named else {"service.name": "tracerouter"})
    return Resource.create(told)
