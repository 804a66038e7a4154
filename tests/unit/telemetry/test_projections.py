"""Everything that is told of a request comes from one record: names, gaps, and what must never be told."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from tests.gateway import Seen
from tests.unit.test_router import Rows, order, rig
from tracerouter.cache import BoundedMemoryCache, OutputCache
from tracerouter.telemetry import Telemetry, names, projections
from tracerouter.telemetry.metrics import Instruments
from tracerouter.types import NANOS, Caller, Outcome, Task, usd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


MARKER = "zanzibar"
"""Stands in prompts and answers, and must stand nowhere else."""


class Everything(Rows):
    """All that telemetry exports, as text."""

    def __init__(self, **facts: Any) -> None:
        super().__init__()
        self.stages: list[Any] = []
        self.seen = Seen()
        self.logs = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.instruments = Instruments()
        self.telemetry = Telemetry(
            span_processors=[self.seen], log_provider=provider, decisions=self, instruments=self.instruments, **facts
        )

    def append(self, row: Mapping[str, Any], timeline: Sequence[Mapping[str, Any]] | None) -> bool:
        self.stages.append(timeline)
        return super().append(row, timeline)

    def logged(self) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Return each log record's body and attributes."""
        found = [one.log_record for one in self.logs.get_finished_logs()]
        return [(cast("Mapping[str, Any]", one.body), one.attributes or {}) for one in found]

    def text(self) -> str:
        spans = "".join(span.to_json() for span in self.seen.spans)
        logs = "".join(one.to_json() for one in self.logs.get_finished_logs())
        metrics = "".join(repr(vars(one)) for one in (*self.instruments.histograms, *self.instruments.observed))
        return spans + logs + orjson.dumps([self.rows, self.stages]).decode() + metrics


def doubles(names_: list[str | None]) -> list[str]:
    told = [name for name in names_ if name is not None]
    return [name for name in set(told) if told.count(name) > 1]


def test_every_name_is_given_once() -> None:
    """No two facts share a name in row, span, header or answer."""
    for where in zip(*[(f.name, f.span, f.header, f.fact) for f in projections.FIELDS], strict=True):
        assert not doubles(list(where))


def test_the_response_headers_are_those_that_are_promised() -> None:
    """The headers are design.md's."""
    told = {name for name, _ in projections._HEADERS}
    promised = ("route", "reason", "model", "policy", "cost", "cache", "attempts", "budget-remaining")
    assert told == {"x-request-id", *(f"x-tracerouter-{name}" for name in promised)}


PROMISED = {
    "trace_id", "span_id", "request_id", "tenant", "team", "user", "task", "confidence", "risks", "route", "outcome",
    "reason", "policy", "arm", "requested_model", "served_model", "provider", "prompt_hash", "prompt_tokens",
    "completion_tokens", "cached_tokens", "cost", "cost_source", "baseline_cost", "latency_ms", "overhead_ms",
    "first_token_ms", "cache_key_hash", "cache_status", "validation_status", "validation_failures", "attempts",
    "quota_scope", "quota_headroom", "quota_action", "error_type",
}  # fmt: skip
"""Design.md, "Promises: the record"."""


def test_the_record_holds_what_is_promised() -> None:
    """Every fact that design.md promises of the record is a field of it."""
    assert {f.name for f in projections.FIELDS} >= PROMISED


async def test_what_is_unknown_is_left_out() -> None:
    """Nothing is told as None: not in the row, its attempts and stages, the span, the log, the facts or the headers."""
    told = Everything()
    for with_models in (
        rig("fine", telemetry=told.telemetry, cache=OutputCache(BoundedMemoryCache())),
        rig("lost", "lost", telemetry=told.telemetry),
        rig("I can't help with that.", telemetry=told.telemetry),
    ):
        for _ in range(2):
            outcome = await with_models.router.route(Task.chat("hello"))
            assert None not in outcome.facts.values()
            assert all(isinstance(value, str) for value in outcome.headers.values())
            assert "None" not in outcome.headers.values()
    text = told.text()
    rows = json.dumps([told.rows, told.stages, told.logged()], default=str)
    assert "null" not in rows.replace('"parent_id": null', "")
    assert all(None not in (span.attributes or {}).values() for span in told.seen.spans)
    assert text


async def test_all_places_tell_the_same() -> None:
    """Row, span, log record, answer and headers agree on every fact that they share."""
    told = Everything()
    with_models = rig("I can't help with that.", telemetry=told.telemetry)
    caller = Caller("acme", "web", "ann")
    outcome = await with_models.router.route(Task.chat("which dose? no: hello", caller=caller, request_id="r-1"))
    (row,), ((body, attributes),) = told.rows, told.logged()
    assert body == row
    route = dict(told.seen.spans[-1].attributes or {})
    compared = 0
    for field in projections.FIELDS:
        if field.name not in row:
            continue
        if field.span is not None and field.span in attributes:
            assert attributes[field.span] == row[field.name]
        if field.span:
            assert route[field.span] == row[field.name]
        if field.fact:
            money = field.name in {"cost", "baseline_cost"}
            told_as = usd(round(row[field.name] * NANOS)) if money else row[field.name]
            assert outcome.facts[field.fact] == told_as
        if field.header and field.header not in ("x-request-id", "cost"):
            assert outcome.headers[f"x-tracerouter-{field.header}"] == str(row[field.name])
        compared += 1
    assert compared > 25
    assert set(attributes) <= {f.span for f in projections.FIELDS}
    assert set(attributes) >= {names.REQUEST_ID, names.TENANT, names.ROUTE, names.OUTCOME, names.REASON}
    assert outcome.headers["x-request-id"] == row["request_id"] == "r-1"
    assert outcome.headers["x-tracerouter-cost"] == f"{round(row['cost'] * NANOS) / NANOS:.9f}"
    assert outcome.headers["traceparent"].split("-")[1:3] == [row["trace_id"], row["span_id"]]
    assert (row["tenant"], row["team"], row["user"]) == ("acme", "web", "ann")


async def test_the_log_record_is_the_decision_event() -> None:
    """One log record a request, an event of its own name, with trace and span id, WARN where there is no answer."""
    told = Everything()
    await rig("fine", telemetry=told.telemetry).router.route(Task.chat("hello"))
    await rig("lost", "lost", telemetry=told.telemetry).router.route(Task.chat("hello"))
    good, bad = (one.log_record for one in told.logs.get_finished_logs())
    assert good.event_name == bad.event_name == "tracerouter.decision"
    assert (good.severity_text, bad.severity_text) == ("INFO", "WARN")
    assert [f"{one.trace_id:032x}" for one in (good, bad)] == [row["trace_id"] for row in told.rows]
    assert [f"{one.span_id:016x}" for one in (good, bad)] == [row["span_id"] for row in told.rows]


async def run_everything(told: Everything) -> list[Outcome]:
    """Route requests whose prompts, answers and failures hold the marker."""
    asked = f"hello {MARKER}, my order"
    cases = (
        (rig(f"it is {MARKER}", telemetry=told.telemetry, cache=OutputCache(BoundedMemoryCache())), Task.chat(asked)),
        (rig(f"I can't help with {MARKER}.", f"so {MARKER}", telemetry=told.telemetry), Task.chat(asked)),
        (rig(f"no JSON: {MARKER}", f'{{"total": "{MARKER}"}}', telemetry=told.telemetry), order(f"extract {MARKER}")),
        (rig("lost", "429", telemetry=told.telemetry), Task.chat(asked)),
    )
    return [await with_models.router.route(task) for with_models, task in cases for _ in range(2)]


async def test_content_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """Neither prompts nor answers stand in any span, metric, log record, row, stage, header or line of the log."""
    caplog.set_level(logging.DEBUG)
    told = Everything()
    outcomes = await run_everything(told)
    assert len(told.rows) == len(outcomes) == 8
    assert MARKER not in told.text()
    assert MARKER not in str([(outcome.facts, outcome.headers) for outcome in outcomes])
    assert MARKER not in caplog.text


async def test_content_is_told_on_opt_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenTelemetry's own variable prompts and answers stand on ``chat`` spans, in the row and the log record."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "TRUE")
    told = Everything()
    await run_everything(told)
    row, (body, _) = told.rows[0], told.logged()[0]
    assert row["prompt"] == body["prompt"] == f"hello {MARKER}, my order"
    assert row["answer"] == body["answer"] == f"it is {MARKER}"
    chat = next(span for span in told.seen.spans if span.name.startswith("chat "))
    assert MARKER in str((chat.attributes or {})[names.GEN_AI_INPUT_MESSAGES])
    assert MARKER in str((chat.attributes or {})[names.GEN_AI_OUTPUT_MESSAGES])
    route = next(span for span in told.seen.spans if span.name.startswith("route "))
    assert MARKER not in str(route.attributes)


async def test_users_are_hashed_on_demand() -> None:
    """With ``hash_users`` a user is told as the same keyed hash each time, and by another key as another."""
    told = []
    for secret in (b"a", b"a", b"b"):
        one = Everything(hash_users=True, secret=secret)
        with_models = rig("fine", telemetry=one.telemetry)
        await with_models.router.route(Task.chat("hello", caller=Caller(user="ann@example.com")))
        assert "ann@example.com" not in one.text()
        told.append(one.rows[0]["user"])
    assert told[0] == told[1] != told[2]


async def test_prompts_are_hashed_with_a_key() -> None:
    """Equal prompts have equal hashes under one key, and others under another, so that nobody can look them up."""
    told = []
    for secret in (b"a", b"a", b"b"):
        one = Everything(secret=secret)
        await rig("fine", telemetry=one.telemetry).router.route(Task.chat("hello"))
        told.append(one.rows[0]["prompt_hash"])
    assert told[0] == told[1] != told[2]


async def test_stages_are_told_in_order() -> None:
    """The rows of a trace's stages have names, parents and times from the request's start."""
    told = Everything()
    await rig("I can't help with that.", telemetry=told.telemetry).router.route(Task.chat("hello"))
    (stages,) = told.stages
    found = [stage["name"].split(" ")[0] for stage in stages]
    assert found == ["route", "classify", "cheap", "chat", "validate", "fallback", "chat", "validate"]
    by_id = {stage["span_id"]: stage["name"].split(" ")[0] for stage in stages}
    parents = [by_id.get(stage["parent_id"]) for stage in stages]
    assert parents == [None, "route", "route", "cheap", "route", "route", "fallback", "route"]
    assert [stage["start_ms"] for stage in stages] == sorted(stage["start_ms"] for stage in stages)


async def test_cost_of_stages_adds_up() -> None:
    """The rungs' stages carry the cost of their calls, all others 0; the route carries the sum."""
    told = Everything()
    await rig("I can't help with that.", telemetry=told.telemetry).router.route(Task.chat("hello"))
    costs = [(s.name.split(" ")[0], round(float((s.attributes or {})[names.COST]) * NANOS)) for s in told.seen.spans]  # type: ignore[arg-type]
    assert sorted(costs) == sorted(
        [("route", 1320), ("cheap", 120), ("fallback", 1200), ("chat", 120), ("chat", 1200), ("classify", 0),
         ("validate", 0), ("validate", 0)]
    )  # fmt: skip


async def test_requests_that_ended_are_told_together() -> None:
    """With a delay nothing is told at once; 32 requests, the delay's end, a flush or closing tell all that ended."""
    told = Everything(delay=3600.0)
    with_models = rig("fine", telemetry=told.telemetry)
    for number in range(31):
        outcome = await with_models.router.route(Task.chat(f"hello {number}"))
        assert float(outcome.facts["cost"]) > 0
    assert not told.rows
    await with_models.router.route(Task.chat("hello 31"))
    assert len(told.rows) == 32
    await with_models.router.route(Task.chat("hello 32"))
    told.telemetry.flush()
    await with_models.router.route(Task.chat("hello 33"))
    told.telemetry.close()
    assert len(told.rows) == len(told.logged()) == 34
    soon = Everything(delay=0.001)
    await rig("fine", telemetry=soon.telemetry).router.route(Task.chat("hello"))
    async with asyncio.timeout(10):
        while not soon.rows:
            await asyncio.sleep(0.001)


def test_a_router_can_go_on_in_another_loop() -> None:
    """What waits when an event loop ends is told by the next one's timer, not only when 32 have come together."""
    told = Everything(delay=0.01)
    with_models = rig("fine", telemetry=told.telemetry)

    async def one(text: str, *, wait: bool) -> None:
        await with_models.router.route(Task.chat(text))
        async with asyncio.timeout(5):
            while wait and len(told.rows) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(one("hello", wait=False))
    asyncio.run(one("hello again", wait=True))


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, "0ms"),
        (0.0123, "13ms"),
        (1.0, "1s"),
        (12.345, "12.3s"),
        (59.4, "59.4s"),
        (119.7, "2m0s"),
        (3599, "59m59s"),
    ],
)
def test_how_long_a_rate_takes_is_told_as_openai_does(seconds: float, told: str) -> None:
    """Milliseconds, seconds, or minutes and seconds, and never less than it takes."""
    assert projections._duration(seconds) == told
