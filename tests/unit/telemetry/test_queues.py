"""What waits for an exporter: whole traces, a bounded number of them, and each that is lost is counted."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tests.unit.test_router import rig
from tracerouter.telemetry import Telemetry, Timeline
from tracerouter.telemetry.metrics import Instruments
from tracerouter.telemetry.queues import Backlog, TraceQueue
from tracerouter.types import Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.unit.test_router import Rig


class Exporter(SpanExporter):
    """Remembers what it is given; can be held up, and can fail."""

    def __init__(self) -> None:
        self.batches: list[list[ReadableSpan]] = []
        self.entered = threading.Event()
        self.may_go = threading.Event()
        self.may_go.set()
        self.fails: type[Exception] | bool = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.may_go.wait(10)
        if self.fails is True:
            return SpanExportResult.FAILURE
        if self.fails:
            raise self.fails
        self.batches.append(list(spans))
        return SpanExportResult.SUCCESS

    def traces(self) -> dict[int, list[str]]:
        """Return the names of each trace's spans."""
        found: dict[int, list[str]] = {}
        for span in (span for batch in self.batches for span in batch):
            assert span.context
            found.setdefault(span.context.trace_id, []).append(span.name.split(" ")[0])
        return found


class Told:
    """A telemetry before an exporter under our control."""

    def __init__(self, limit: int) -> None:
        self.exporter = Exporter()
        self.instruments = Instruments()
        self.queue = TraceQueue(self.exporter, self.instruments.traces_dropped, limit)
        self.telemetry = Telemetry(traces=self.queue, instruments=self.instruments)

    @property
    def lost(self) -> dict[str, int]:
        return {str(reason): n for (reason,), n in self.instruments.traces_dropped.values.items() if n}


@pytest.fixture
def told() -> Iterator[Told]:
    """A queue with room for five traces."""
    made = Told(5)
    yield made
    made.exporter.may_go.set()
    made.queue.shutdown()


WHOLE = ["chat", "cheap", "classify", "route", "validate"]


async def test_a_full_queue_drops_whole_traces_and_counts_them(told: Told) -> None:
    """While the exporter hangs no request waits; what finds no room is dropped whole, and all that arrives is whole."""
    told.exporter.may_go.clear()
    with_models = rig("fine", telemetry=told.telemetry)
    outcomes = [await with_models.router.route(Task.chat(f"hello {n}")) for n in range(20)]
    assert all(outcome.completion for outcome in outcomes)
    assert told.lost == {"queue_full": 15}
    told.exporter.may_go.set()
    told.queue.force_flush()
    arrived = told.exporter.traces()
    assert [sorted(spans) for spans in arrived.values()] == [WHOLE] * 5
    await with_models.router.route(Task.chat("and after"))  # there is room again
    told.queue.force_flush()
    assert len(told.exporter.traces()) == 6
    assert told.lost == {"queue_full": 15}


@pytest.mark.parametrize("fails", [True, RuntimeError])
async def test_what_could_not_be_sent_is_counted_and_makes_room(told: Told, fails: Any) -> None:
    """A collector that refuses costs the traces of each batch, counted; the queue does not fill up with them."""
    told.exporter.fails = fails
    with_models = rig("fine", telemetry=told.telemetry)
    for n in range(12):
        await with_models.router.route(Task.chat(f"hello {n}"))
        told.queue.force_flush()
    assert told.lost == {"export_failed": 12}
    assert not told.exporter.batches


async def test_exemplars_name_no_trace_that_was_lost(told: Told) -> None:
    """A trace that found no room is named by no exemplar, and does not count as kept; the request is measured."""
    told.exporter.may_go.clear()
    with_models = rig("fine", telemetry=told.telemetry)
    outcomes = [await with_models.router.route(Task.chat(f"hello {n}")) for n in range(9)]
    told.exporter.may_go.set()
    told.queue.force_flush()
    named = {
        ref.trace_id
        for histogram in told.instruments.histograms
        for series in histogram.series.values()
        for _, _, ref in series.exemplars.values()
    }
    assert named
    assert named <= set(told.exporter.traces())
    assert sum(told.instruments.requests.values.values()) == len(outcomes)
    assert told.instruments.traces_kept.values == {("all",): 5}


async def test_the_span_of_an_http_request_leaves_with_what_was_routed_in_it(told: Told) -> None:
    """Route and server span are one item of the queue, so that neither arrives without the other."""
    with_models = rig("fine", telemetry=told.telemetry)
    timeline = Timeline()
    with timeline.server("POST /"):
        await with_models.router.route(Task.chat("one"))
        await with_models.router.route(Task.chat("two"))
        told.queue.force_flush()
        assert not told.exporter.batches
    told.telemetry.server_ended(timeline)
    told.queue.force_flush()
    assert sorted(told.exporter.traces()[timeline.trace_id]) == sorted([*WHOLE, *WHOLE, "POST"])


async def test_where_a_trace_is_lost_its_http_request_is_too(told: Told) -> None:
    """With no room for what was routed, the span of the HTTP request is not told alone."""
    told.exporter.may_go.clear()
    with_models = rig("fine", telemetry=told.telemetry)
    for n in range(5):
        await with_models.router.route(Task.chat(f"hello {n}"))
    timeline = Timeline()
    with timeline.server("POST /"):
        await with_models.router.route(Task.chat("no room"))
    told.exporter.may_go.set()
    told.queue.force_flush()  # there would be room for one span now
    told.telemetry.server_ended(timeline)
    told.queue.force_flush()
    assert timeline.trace_id not in told.exporter.traces()
    assert told.lost == {"queue_full": 1}


async def test_a_trace_without_room_is_lost_whole_though_a_part_of_it_came_later(told: Told) -> None:
    """Of two requests under one HTTP request the second is not sent alone when the first found no room."""
    told.exporter.may_go.clear()
    with_models = rig("fine", telemetry=told.telemetry)
    for n in range(5):
        await with_models.router.route(Task.chat(f"hello {n}"))
    timeline = Timeline()
    with timeline.server("POST /"):
        await with_models.router.route(Task.chat("no room"))
        told.exporter.may_go.set()
        told.queue.force_flush()
        await with_models.router.route(Task.chat("room again"))
    told.telemetry.server_ended(timeline)
    told.queue.force_flush()
    assert timeline.trace_id not in told.exporter.traces()


async def test_what_breaks_on_the_way_takes_no_room(told: Told) -> None:
    """A host's processor that raises costs its own spans: the queue does not fill up with what never went into it."""
    told.telemetry.span_processors = [Breaking()]
    with_models = rig("fine", telemetry=told.telemetry)
    for n in range(20):
        await with_models.router.route(Task.chat(f"hello {n}"))
        told.queue.force_flush()
    assert not told.lost
    assert len(told.exporter.traces()) == 20


class Breaking(SpanProcessor):
    """A processor with a fault."""

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError(span.name)


def test_a_forked_process_begins_with_an_empty_queue() -> None:
    """What waited in the parent does not take the child's room: the SDK's queues are empty there."""
    backlog = Backlog(1, Instruments().logs_dropped)
    assert backlog.reserve()
    child = os.fork()
    if not child:
        os._exit(0 if backlog.reserve() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not backlog.reserve()


async def test_work_that_outlives_its_http_request_is_told(told: Told) -> None:
    """A task that goes on after the answer has its spans told by themselves."""
    with_models = rig("fine", telemetry=told.telemetry)
    timeline = Timeline()
    with timeline.server("POST /"):
        of_the_request = contextvars.copy_context()
    told.telemetry.server_ended(timeline)
    told.queue.force_flush()
    await asyncio.create_task(_routed(with_models, "later"), context=of_the_request)
    told.queue.force_flush()
    assert sorted(told.exporter.traces()[timeline.trace_id]) == sorted([*WHOLE, "POST"])


async def _routed(with_models: Rig, text: str) -> None:
    await with_models.router.route(Task.chat(text))


def test_a_backlog_shows_its_losses_from_the_start() -> None:
    """Its counters stand at 0 before anything is lost, so that the first loss is seen as growth."""
    lost = Instruments().logs_dropped
    backlog = Backlog(1, lost)
    assert lost.values == {("queue_full",): 0, ("export_failed",): 0}
    assert backlog.reserve()
    assert not backlog.reserve()
    backlog.exported(1, sent=False)
    assert backlog.reserve()
    assert lost.values == {("queue_full",): 1, ("export_failed",): 1}
