"""Metrics are those that design.md promises, agree with the records, and name no trace that was dropped."""

# ruff: noqa: ARG002 - stand-ins have the signatures of what they stand for

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    Sum,
)
from opentelemetry.sdk.resources import Resource

from tests.unit.test_router import Rig, Rows, Scripted, rig
from tracerouter.cache import BoundedMemoryCache, OutputCache
from tracerouter.classifiers import Chain
from tracerouter.policy import Policy, PolicyFile
from tracerouter.quota import QuotaState, SqliteLedger
from tracerouter.store import SqliteStore
from tracerouter.telemetry import Keep, Telemetry
from tracerouter.telemetry.export import scope
from tracerouter.telemetry.metrics import CounterOf, HistogramOf, Instruments, TraceRef, meter_provider
from tracerouter.telemetry.queues import Backlog
from tracerouter.types import NANOS, Caller, Classification, Task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import Metric

PROMISED: dict[str, tuple[str, str, set[str], set[str]]] = {
    "tracerouter.requests": ("counter", "{request}", {"route", "outcome", "policy.arm"}, {"task"}),
    "tracerouter.request.duration": ("histogram", "s", {"route", "outcome", "policy.arm"}, set()),
    "tracerouter.stage.duration": ("histogram", "s", {"stage"}, {"error.type"}),
    "tracerouter.overhead.duration": ("histogram", "s", {"route"}, set()),
    "tracerouter.attempts": ("counter", "{attempt}", {"model", "role"}, {"error.type"}),
    "tracerouter.fallbacks": ("counter", "{fallback}", {"from", "to", "reason", "task", "policy.arm"}, set()),
    "tracerouter.validations": ("counter", "{validation}", {"validator", "status", "policy.arm"}, set()),
    "tracerouter.cache.operations": ("counter", "{operation}", {"layer", "result"}, set()),
    "tracerouter.tokens": ("counter", "{token}", {"model", "direction"}, set()),
    "tracerouter.cost": ("counter", "{USD}", {"model", "role", "task", "source", "policy.arm"}, set()),
    "tracerouter.cost.baseline": ("counter", "{USD}", {"role", "source", "policy.arm"}, {"model", "task"}),
    "tracerouter.classifications": ("counter", "{classification}", {"task", "classifier", "abstained"}, set()),
    "tracerouter.classifier.confidence": ("histogram", "1", {"task"}, set()),
    "tracerouter.quota.decisions": ("counter", "{decision}", {"action"}, {"scope"}),
    "tracerouter.tenant.spend": ("gauge", "{USD}", {"tenant", "period"}, set()),
    "tracerouter.budget.limit": ("gauge", "{USD}", {"tenant", "period"}, set()),
    "tracerouter.budget.remaining": ("gauge", "{USD}", {"tenant", "period"}, set()),
    "tracerouter.review.depth": ("gauge", "{review}", {"queue"}, set()),
    "tracerouter.review.oldest_age": ("gauge", "s", {"queue"}, set()),
    "tracerouter.traces.kept": ("counter", "{trace}", {"reason"}, set()),
    "tracerouter.traces.dropped": ("counter", "{trace}", {"reason"}, set()),
    "tracerouter.logs.dropped": ("counter", "{record}", {"reason"}, set()),
    "tracerouter.decisions.dropped": ("counter", "{row}", {"reason"}, set()),
    "tracerouter.ledger.lost": ("counter", "{entry}", {"reason"}, set()),
    "gen_ai.client.operation.duration": (
        "histogram",
        "s",
        {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"},
        {"error.type"},
    ),
}
"""Design.md, "Promises: metrics", those built today, and what is lost: kind, unit, attributes, and those that only some
points have."""

KINDS = {Sum: "counter", Histogram: "histogram", Gauge: "gauge"}


class Collected(MetricExporter):
    """Remembers the newest export."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, Metric] = {}
        self.resources: set[str] = set()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        for told in metrics_data.resource_metrics:
            self.resources.add(str(told.resource.attributes.get("service.name")))
            for scoped in told.scope_metrics:
                assert scoped.scope.name == "tracerouter"
                for metric in scoped.metrics:
                    self.metrics[metric.name] = metric
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        pass

    def points(self, name: str) -> list[Any]:
        return list(self.metrics[name].data.data_points)

    def total(self, name: str, **attributes: Any) -> float:
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}
        found = (p for p in self.points(name) if wanted.items() <= dict(p.attributes).items())
        return float(sum(point.value if hasattr(point, "value") else point.count for point in found))


@dataclass
class Measured:
    """Routers that share their instruments, and what was exported of them."""

    keep: Keep = field(default_factory=Keep)
    instruments: Instruments = field(default_factory=Instruments)
    out: Collected = field(default_factory=Collected)
    rows: Rows = field(default_factory=Rows)

    def rig(self, *models: Any, **facts: Any) -> Rig:
        with_models = rig(*models, **facts)
        with_models.router.telemetry = Telemetry(
            span_processors=[with_models.seen],
            instruments=self.instruments,
            decisions=self.rows,
            keep=self.keep,
            tasks=frozenset(with_models.router.policy.tasks),
        )
        return with_models

    def provider(self) -> MeterProvider:
        resource = Resource({"service.name": "tested"})
        return meter_provider(self.out, self.instruments, resource, scope(), 3600)

    def collect(self) -> Collected:
        provider = self.provider()
        provider.force_flush()
        provider.shutdown()
        return self.out


async def drive(measured: Measured) -> None:
    """Take every way that counts something."""
    cached = measured.rig("fine", cache=OutputCache(BoundedMemoryCache()))
    for _ in range(3):
        await cached.router.route(Task.chat("hello", hint="sql"))
    cheap = measured.rig(Scripted("fine", "I can't help with that.", "429", "lost", "fine"))
    for _ in range(5):
        await cheap.router.route(Task.chat("summarize this"))
    failing = measured.rig("lost", "429")
    await failing.router.route(Task.chat("hello"))
    await failing.router.route(Task.chat("hello", model="large", caller=Caller(tier="free")))
    store = SqliteStore(":memory:")
    policy = {"max_output_tokens": 1, "quotas": [{"per": "tenant", "limit": "30 tokens/day"}]}
    limited = measured.rig("fine", policy=policy, ledger=SqliteLedger(store))
    for _ in range(2):
        await limited.router.route(Task.chat("hello"))
    store.close()
    hanging = measured.rig("hang")
    routing = asyncio.create_task(hanging.router.route(Task.chat("hello", hint="not a task of the policy's")))
    await hanging.small.started.wait()
    routing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await routing


@pytest.fixture
async def measured() -> Measured:
    """What was measured of requests of every kind."""
    found = Measured()
    found.instruments.tenant_spend.read = lambda: [(("acme", "day"), 1.5), (("other", "month"), 2.5)]
    found.instruments.budget_limit.read = lambda: [(("acme", "day"), 2.0)]
    found.instruments.budget_remaining.read = lambda: [(("acme", "day"), 0.5)]
    found.instruments.decisions_dropped.read = lambda: [(("queue_full",), 3)]
    found.instruments.entries_lost.read = lambda: [(("write_failed",), 0)]
    found.instruments.review_depth.read = lambda: [(("review",), 2)]
    found.instruments.review_age.read = lambda: [(("review",), 7.5)]
    for lost in (found.instruments.traces_dropped, found.instruments.logs_dropped):
        Backlog(1, lost)
    await drive(found)
    return found


async def test_metrics_are_those_that_are_promised(measured: Measured) -> None:
    """Names, kinds, units and attributes are design.md's, none missing and none besides."""
    out = measured.collect()
    assert set(out.metrics) == set(PROMISED)
    for name, (kind, unit, always, sometimes) in PROMISED.items():
        metric = out.metrics[name]
        keys = [set(point.attributes) for point in out.points(name)]
        assert (KINDS[type(metric.data)], metric.unit, set.intersection(*keys)) == (kind, unit, always), name
        assert set.union(*keys) == always | sometimes, name
        assert metric.description
    assert out.resources == {"tested"}


async def test_counters_grow_and_are_cumulative(measured: Measured) -> None:
    """Counters are monotonic sums, histograms cumulative; a gauge is what is read when it is collected."""
    out = measured.collect()
    for name, metric in out.metrics.items():
        if isinstance(metric.data, Sum):
            assert metric.data.is_monotonic, name
        if not isinstance(metric.data, Gauge):
            assert metric.data.aggregation_temporality is AggregationTemporality.CUMULATIVE, name
    assert {
        (p.attributes["tenant"], p.attributes["period"]): p.value for p in out.points("tracerouter.tenant.spend")
    } == {
        ("acme", "day"): 1.5,
        ("other", "month"): 2.5,
    }


def tried(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [attempt for row in rows for attempt in row.get("attempts", ())]


async def test_sums_equal_the_records(measured: Measured) -> None:
    """Requests, attempts, tokens, cost and baseline of the metrics are exactly those of the decision rows."""
    out, rows = measured.collect(), measured.rows.rows
    assert out.total("tracerouter.requests") == len(rows) == 13
    for route, number in Counter(row["route"] for row in rows).items():
        assert out.total("tracerouter.requests", route=route) == number
        assert out.total("tracerouter.overhead.duration", route=route) == number
    cost = sum(round(row["cost"] * NANOS) for row in rows)
    assert round(out.total("tracerouter.cost") * NANOS) == cost > 0
    for model in ("small", "large"):
        of_model = sum(round(attempt["cost"] * NANOS) for attempt in tried(rows) if attempt["model"] == model)
        assert round(out.total("tracerouter.cost", model=model) * NANOS) == of_model
        assert out.total("tracerouter.attempts", model=model) == sum(a["model"] == model for a in tried(rows))
    baseline = sum(round(row.get("baseline_cost", 0) * NANOS) for row in rows)
    assert round(out.total("tracerouter.cost.baseline") * NANOS) == baseline > cost
    assert out.total("tracerouter.tokens", direction="input") == sum(row["prompt_tokens"] for row in rows)
    assert out.total("tracerouter.tokens", direction="output") == sum(row["completion_tokens"] for row in rows)
    assert out.total("tracerouter.fallbacks") == len(tried(rows)) - sum("attempts" in row for row in rows)
    assert out.total("tracerouter.cache.operations", result="hit") == 2
    durations = out.points("tracerouter.request.duration")
    assert sum(p.sum for p in durations) == pytest.approx(sum(row["latency_ms"] for row in rows) / 1e3)


async def test_what_classifiers_ask_is_told_by_model_role_and_failure() -> None:
    """A classifier's model that fails can be told from a rung's, though both are one; its failure is the stage's."""
    measured = Measured()

    class Asking:
        async def classify(self, _: Task) -> Classification:
            await asking.router.ask("small", {"messages": [{"role": "user", "content": "well?"}]}, 1.0)
            return Classification("sql", 0.9, classifier="asking")

    asking = measured.rig(Scripted("429", "fine", "lost", "fine", "fine"), classifier=Chain([Asking()]))
    for text in ("a", "b", "c"):
        await asking.router.route(Task.chat(text))
    out = measured.collect()
    told = {
        (p.attributes["model"], p.attributes["role"], p.attributes.get("error.type")): p.value
        for p in out.points("tracerouter.attempts")
    }
    assert told == {
        ("small", "classify", "rate_limited"): 1,
        ("small", "classify", "provider_error"): 1,
        ("small", "classify", None): 1,
        ("small", "cheap", None): 2,
        ("large", "expensive", None): 1,
    }
    assert out.total("tracerouter.stage.duration", stage="classify") == 3
    assert out.total("tracerouter.stage.duration", stage="classify", error_type="rate_limited") == 1
    assert out.total("tracerouter.classifications", classifier="none", abstained=True) == 2
    assert out.total("tracerouter.cost", role="classify") > 0
    assert [row["attempt_count"] for row in measured.rows.rows] == [1, 1, 1]


async def test_labels_are_clamped_to_the_policys(measured: Measured) -> None:
    """A label that a caller made up counts as ``other``: no caller can make a new series."""
    out = measured.collect()
    tasks = {p.attributes["task"] for name in out.metrics for p in out.points(name) if "task" in p.attributes}
    assert tasks == {"sql", "summarize", "other"}
    assert "not a task of the policy's" in {row.get("task") for row in measured.rows.rows}


async def test_no_metric_names_a_person_or_a_request() -> None:
    """Neither user, tenant nor request id is an attribute of any counter or histogram, nor a prompt a value."""
    measured = Measured()
    with_models = measured.rig("fine")
    await with_models.router.route(Task.chat("hush hush", caller=Caller("acme", "web", "ann"), request_id="r-17"))
    out = measured.collect()
    values = {str(v) for name in out.metrics for p in out.points(name) for v in p.attributes.values()}
    assert values.isdisjoint({"acme", "web", "ann", "r-17", "hush hush"})


async def test_exemplars_name_kept_traces_alone() -> None:
    """Where only failures are kept, a histogram's exemplars name their traces, and none that was dropped."""
    measured = Measured(keep=Keep(share=0))
    dropped = measured.rig("fine")
    for _ in range(3):
        await dropped.router.route(Task.chat("hello"))
    assert not [
        p.exemplars for h in measured.instruments.histograms for p in h.collect(0, 1).data.data_points if p.exemplars
    ]
    failing = measured.rig("lost", "lost")
    kept = await failing.router.route(Task.chat("hello"))
    out = measured.collect()
    exemplars = {e.trace_id for n in out.metrics for p in out.points(n) for e in getattr(p, "exemplars", ())}
    assert {f"{trace_id:032x}" for trace_id in exemplars} == {kept.facts["trace_id"]}
    spans = {span.context.span_id for span in failing.seen.spans if span.context}
    named = {e.span_id for n in out.metrics for p in out.points(n) for e in getattr(p, "exemplars", ())}
    assert named <= spans


def test_a_histogram_counts_by_upper_bound() -> None:
    """A value on a bound counts below it; sum, least and greatest are kept, and the newest exemplar of a bucket."""
    histogram = HistogramOf("x", "s", ("a",), "about", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.record(value, "k", seen_in=TraceRef(int(value * 10), 7))
    found = histogram.collect(1, 2).data
    assert isinstance(found, Histogram)
    (point,) = found.data_points
    assert (point.bucket_counts, point.count, point.sum, point.min, point.max) == ([2, 1, 1], 4, 12.0, 0.5, 9.0)
    assert point.explicit_bounds == (1.0, 2.0)
    assert [e.trace_id for e in point.exemplars] == [10, 15, 90]
    assert dict(point.attributes or {}) == {"a": "k"}


def test_money_is_summed_in_nanos() -> None:
    """A cost counter adds whole nano-dollars, so that a million small costs lose nothing."""
    counter = CounterOf("x", "{USD}", (), "about", nanos=True)
    for _ in range(1_000_000):
        counter.add(1)
    (found,) = counter._observe(None)  # type: ignore[arg-type]
    assert found.value == 0.001


async def test_a_gauge_that_cannot_be_read_tells_nothing(measured: Measured, caplog: pytest.LogCaptureFixture) -> None:
    """A store that is gone takes its own gauges away, without a word a collection, and no other metric."""
    store = SqliteStore(":memory:")
    policy = Policy.of(
        PolicyFile.model_validate({"ladder": ["small"], "quotas": [{"per": "tenant", "limit": "1 USD/day"}]})
    )
    quotas = QuotaState(SqliteLedger(store), policy)
    found = measured.instruments
    found.tenant_spend.read, found.budget_limit.read = quotas.spend, quotas.budgets
    store.close()
    assert PROMISED.keys() - measured.collect().metrics.keys() == {
        "tracerouter.tenant.spend",
        "tracerouter.budget.limit",
    }
    assert not caplog.records


async def test_an_idle_process_exports_no_empty_series() -> None:
    """Before the first request there is nothing to tell, and closing is quiet."""
    measured = Measured()
    assert measured.collect().metrics == {}
