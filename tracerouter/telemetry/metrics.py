"""Counters, histograms and gauges as plain dictionaries, read by OpenTelemetry's SDK when it collects.

The SDK's own instruments cost 9 to 13 µs a measurement, and a request makes about twenty; these cost a fraction of
one. Counters and gauges are the SDK's observable ones. The SDK has no observable histogram, so those are added at
export as its public data classes; in return they know whether a request's trace is kept, so that an exemplar never
names a trace that was dropped.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import Exemplar, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
)

from tracerouter.errors import StoreUnavailable
from tracerouter.types import NANOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.metrics import CallbackOptions, Meter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

Key = tuple[str | bool | None, ...]
"""Attribute values, in the order of the instrument's attribute names. None leaves the attribute out."""

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
TENTHS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class TraceRef(NamedTuple):
    """The trace that an exemplar names."""

    trace_id: int
    span_id: int


class CounterOf:
    """A sum that only grows. With `nanos`, amounts are nano-dollars and are exported as USD."""

    def __init__(self, name: str, unit: str, attributes: tuple[str, ...], about: str, *, nanos: bool = False) -> None:
        self.name, self.unit, self.attributes, self.about = name, unit, attributes, about
        self._scale = NANOS if nanos else 1
        self.values: dict[Key, int] = {}

    def add(self, amount: int, *key: str | bool | None) -> None:
        """Add `amount` to the series with these attribute values."""
        self.values[key] = self.values.get(key, 0) + amount

    def register(self, meter: Meter) -> None:
        """Let the SDK read it."""
        meter.create_observable_counter(self.name, [self._observe], self.unit, self.about)

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        for key, value in list(self.values.items()):
            yield Observation(value if self._scale == 1 else value / self._scale, _named(self.attributes, key))


class _Series:
    __slots__ = ("buckets", "exemplars", "highest", "lowest", "total")

    def __init__(self, size: int) -> None:
        self.buckets = [0] * size
        self.total = 0.0
        self.lowest = float("inf")
        self.highest = float("-inf")
        self.exemplars: dict[int, tuple[float, int, TraceRef]] = {}


class HistogramOf:
    """Values counted by upper bound, with one exemplar a bucket: the newest value of a kept trace."""

    def __init__(
        self, name: str, unit: str, attributes: tuple[str, ...], about: str, bounds: tuple[float, ...] = SECONDS
    ) -> None:
        self.name, self.unit, self.attributes, self.about = name, unit, attributes, about
        self.bounds = bounds
        self.series: dict[Key, _Series] = {}

    def record(self, value: float, *key: str | bool | None, seen_in: TraceRef | None = None) -> None:
        """Count `value`; `seen_in` is the trace that shows it, if that is kept."""
        series = self.series.get(key)
        if series is None:
            series = self.series[key] = _Series(len(self.bounds) + 1)
        bucket = bisect_left(self.bounds, value)
        series.buckets[bucket] += 1
        series.total += value
        series.lowest = min(series.lowest, value)
        series.highest = max(series.highest, value)
        if seen_in is not None:
            series.exemplars[bucket] = (value, time.time_ns(), seen_in)

    def collect(self, start_ns: int, now_ns: int) -> Metric:
        """Return the metric as it stands."""
        points = []
        for key, series in list(self.series.items()):
            buckets = list(series.buckets)
            exemplars = [
                Exemplar({}, value, at_ns, ref.span_id, ref.trace_id)
                for value, at_ns, ref in list(series.exemplars.values())
            ]
            points.append(
                HistogramDataPoint(
                    _named(self.attributes, key), start_ns, now_ns, sum(buckets), series.total, buckets,
                    self.bounds, series.lowest, series.highest, exemplars,
                )
            )  # fmt: skip
        return Metric(self.name, self.about, self.unit, Histogram(points, AggregationTemporality.CUMULATIVE))


class GaugeOf:
    """A value that is read where it lives, when it is collected."""

    def __init__(
        self,
        name: str,
        unit: str,
        attributes: tuple[str, ...],
        about: str,
        read: Callable[[], Iterable[tuple[Key, float]]] = tuple,
    ) -> None:
        self.name, self.unit, self.attributes, self.about = name, unit, attributes, about
        self.read = read

    def register(self, meter: Meter) -> None:
        """Let the SDK read it."""
        meter.create_observable_gauge(self.name, [self._observe], self.unit, self.about)

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        try:
            found = self.read()
        except StoreUnavailable:  # what is not known is not told
            return
        for key, value in found:
            yield Observation(value, _named(self.attributes, key))


class ReadCounterOf(GaugeOf):
    """A sum that only grows, and is kept elsewhere."""

    def register(self, meter: Meter) -> None:
        """Let the SDK read it."""
        meter.create_observable_counter(self.name, [self._observe], self.unit, self.about)


class Instruments:
    """Every metric that is emitted: design.md's table, as code."""

    def __init__(self) -> None:
        self.requests = CounterOf(
            "tracerouter.requests", "{request}", ("route", "outcome", "task", "policy.arm"),
            "Requests that ended.")  # fmt: skip
        self.duration = HistogramOf(
            "tracerouter.request.duration", "s", ("route", "outcome", "policy.arm"),
            "From a request's start to its end.")  # fmt: skip
        self.stage_duration = HistogramOf(
            "tracerouter.stage.duration", "s", ("stage", "error.type"),
            "Of one stage of a request.")  # fmt: skip
        self.overhead = HistogramOf(
            "tracerouter.overhead.duration", "s", ("route",),
            "A request's duration less the time spent waiting on providers.")  # fmt: skip
        self.attempts = CounterOf(
            "tracerouter.attempts", "{attempt}", ("model", "role", "error.type"),
            "Rungs tried, and models asked by classifiers (role classify).")  # fmt: skip
        self.fallbacks = CounterOf(
            "tracerouter.fallbacks", "{fallback}", ("from", "to", "reason", "task", "policy.arm"),
            "Rungs tried because an earlier one failed.")  # fmt: skip
        self.validations = CounterOf(
            "tracerouter.validations", "{validation}", ("validator", "status", "policy.arm"),
            "Answers looked at by a validator.")  # fmt: skip
        self.cache = CounterOf(
            "tracerouter.cache.operations", "{operation}", ("layer", "result"),
            "Cache look-ups.")  # fmt: skip
        self.tokens = CounterOf(
            "tracerouter.tokens", "{token}", ("model", "direction"),
            "Tokens of model calls.")  # fmt: skip
        self.cost = CounterOf(
            "tracerouter.cost", "{USD}", ("model", "role", "task", "source", "policy.arm"),
            "What model calls cost.", nanos=True)  # fmt: skip
        self.baseline = CounterOf(
            "tracerouter.cost.baseline", "{USD}", ("model", "role", "task", "source", "policy.arm"),
            "What the same tokens would have cost on the top rung.", nanos=True)  # fmt: skip
        self.classifications = CounterOf(
            "tracerouter.classifications", "{classification}", ("task", "classifier", "abstained"),
            "Requests classified.")  # fmt: skip
        self.confidence = HistogramOf(
            "tracerouter.classifier.confidence", "1", ("task",),
            "Confidence of classifications that did not abstain.", TENTHS)  # fmt: skip
        self.operation = HistogramOf(
            "gen_ai.client.operation.duration", "s",
            ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "error.type"),
            "Of one model call, retries included.")  # fmt: skip
        self.quota_decisions = CounterOf(
            "tracerouter.quota.decisions", "{decision}", ("scope", "action"),
            "Limits reached, by what was done; underreserved: a call cost more than was held for it.")  # fmt: skip
        self.tenant_spend = GaugeOf(
            "tracerouter.tenant.spend", "{USD}", ("tenant", "period"),
            "Spend in the current period: the 20 tenants that spend most, and other.")  # fmt: skip
        self.budget_limit = GaugeOf(
            "tracerouter.budget.limit", "{USD}", ("tenant", "period"),
            "What a tenant may spend in the current period, by its limit in USD on all roles.")  # fmt: skip
        self.budget_remaining = GaugeOf(
            "tracerouter.budget.remaining", "{USD}", ("tenant", "period"),
            "What is left of that; what is reserved counts as spent.")  # fmt: skip
        self.review_depth = GaugeOf(
            "tracerouter.review.depth", "{review}", ("queue",),
            "Reviews that wait for a person.")  # fmt: skip
        self.review_age = GaugeOf(
            "tracerouter.review.oldest_age", "s", ("queue",),
            "Age of the oldest of them.")  # fmt: skip
        self.traces_kept = CounterOf(
            "tracerouter.traces.kept", "{trace}", ("reason",),
            "Traces kept, by why.")  # fmt: skip
        self.traces_dropped = CounterOf(
            "tracerouter.traces.dropped", "{trace}", ("reason",),
            "Traces that were to be kept and got lost on their way to the collector.")  # fmt: skip
        self.logs_dropped = CounterOf(
            "tracerouter.logs.dropped", "{record}", ("reason",),
            "Log records that got lost on their way to the collector.")  # fmt: skip
        self.decisions_dropped = ReadCounterOf(
            "tracerouter.decisions.dropped", "{row}", ("reason",),
            "Rows of the decision log that were not written.")  # fmt: skip
        self.entries_lost = ReadCounterOf(
            "tracerouter.ledger.lost", "{entry}", ("reason",),
            "Entries of the ledger that were not written: money that was spent and is not booked.")  # fmt: skip
        self.entries_waiting = GaugeOf(
            "tracerouter.ledger.waiting", "{entry}", (),
            "Entries of the ledger that wait for its store.")  # fmt: skip
        self.ledger_available = GaugeOf(
            "tracerouter.ledger.available", "{process}", (),
            "Whether limits can be checked: 0 while the ledger's store fails or is rebuilt.")  # fmt: skip

    @property
    def histograms(self) -> list[HistogramOf]:
        """The histograms."""
        return [one for one in vars(self).values() if isinstance(one, HistogramOf)]

    @property
    def observed(self) -> list[CounterOf | GaugeOf]:
        """The counters and gauges."""
        return [one for one in vars(self).values() if not isinstance(one, HistogramOf)]


class MergedExporter(MetricExporter):
    """Adds our histograms to what the SDK's reader has collected, and passes the whole on."""

    def __init__(self, inner: MetricExporter, histograms: Sequence[HistogramOf], scope: InstrumentationScope) -> None:
        super().__init__()
        self._inner = inner
        self._histograms = histograms
        self._scope = scope
        self._start_ns = time.time_ns()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Export both. A reader that collected nothing does not come here: no request, no histogram."""
        now_ns = time.time_ns()
        ours = [histogram.collect(self._start_ns, now_ns) for histogram in self._histograms if histogram.series]
        first, *others = metrics_data.resource_metrics
        scopes = [told for told in first.scope_metrics if told.scope != self._scope]
        counted = [metric for told in first.scope_metrics if told.scope == self._scope for metric in told.metrics]
        # in one scope of one resource: OTLP's encoder keeps only the last of two that are equal
        scopes.append(ScopeMetrics(self._scope, [*counted, *ours], ""))
        merged = [ResourceMetrics(first.resource, scopes, first.schema_url), *others]
        return self._inner.export(MetricsData(merged), timeout_millis=timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the inner exporter."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Shut the inner exporter down."""
        self._inner.shutdown(timeout_millis, **kwargs)


def meter_provider(
    exporter: MetricExporter, instruments: Instruments, resource: Resource, scope: InstrumentationScope, interval: float
) -> MeterProvider:
    """Export `instruments` every `interval` seconds, and once more when the provider is shut down."""
    merged = MergedExporter(exporter, instruments.histograms, scope)
    reader = PeriodicExportingMetricReader(merged, export_interval_millis=interval * 1e3)
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    meter = provider.get_meter(scope.name, scope.version)
    for instrument in instruments.observed:
        instrument.register(meter)
    return provider


def _named(names: tuple[str, ...], key: Key) -> dict[str, Any]:
    return {name: value for name, value in zip(names, key, strict=True) if value is not None}
