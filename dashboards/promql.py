"""The vocabulary of our queries, derived from the instruments: a metric or label that nobody emits is an error.

Prometheus answers a misspelt name with silence, which looks like a quiet night.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

import promql_parser as pp

from dashboards.alerts import RECORDINGS
from tracerouter.errors import nearest
from tracerouter.telemetry.metrics import CounterOf, GaugeOf, HistogramOf, Instruments, ReadCounterOf

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Labels = frozenset[str]

RESOURCE: Final[Labels] = frozenset({"job", "instance"})
"""Labels of every series: the service, and its process."""

_COLLECTOR: Final = RESOURCE | {"exporter"}
OTHERS: Final[Mapping[str, Labels]] = {
    "up": RESOURCE,
    "ALERTS": frozenset({"alertname", "alertstate", "severity", "sign"}),
    "otelcol_exporter_sent_spans_total": _COLLECTOR,
    "otelcol_exporter_sent_log_records_total": _COLLECTOR,
    "otelcol_exporter_send_failed_spans_total": _COLLECTOR,
    "otelcol_exporter_send_failed_log_records_total": _COLLECTOR,
    "otelcol_exporter_enqueue_failed_spans_total": _COLLECTOR,
    "otelcol_exporter_enqueue_failed_log_records_total": _COLLECTOR,
    "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early_total": RESOURCE,
}
"""Metrics that Prometheus and the collector make of themselves: those that we query."""

_UNITS: Final = {"s": "_seconds"}
DURATION: Final = re.compile(r"\{(\d+)(s|m|h|d)\}")
_MILLISECONDS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_GRAFANA: Final = re.compile(r"\$\{?__\w+\}?")
_VALUES: Final = re.compile(r"label_values\((?P<series>.*),\s*(?P<label>\w+)\)")


class DashboardError(Exception):
    """A query names what is not there; ``str()`` says where, what, and the nearest right name."""


def at_scale(text: str, scale: float = 1.0) -> str:
    """Write each duration in braces, such as ``{5m}``, times `scale`. Nothing else is changed."""
    return DURATION.sub(lambda found: _duration(int(found[1]), found[2], scale), text)


def check(expr: str, where: str) -> Labels:
    """Check that `expr` is PromQL and names only metrics and labels that are emitted.

    Args:
        expr: A query, or Grafana's ``label_values(series, label)``; with Grafana's intervals, or our ``{5m}``.
        where: What the error begins with: the board and the panel, or the alert.

    Returns:
        The labels of the answer.

    Raises:
        DashboardError: Names the place, the metric or label, and the nearest right one.
    """
    return _check(expr, where, vocabulary())


@cache
def vocabulary() -> Mapping[str, Labels]:
    """Return every metric's labels, by its name in Prometheus; recording rules are among them."""
    known = dict(OTHERS)
    for instrument in vars(Instruments()).values():
        known |= _series(instrument)
    for recording in RECORDINGS:
        known[recording.name] = _check(recording.expr, f"recording rule {recording.name}", known)
    return known


def _series(instrument: CounterOf | GaugeOf | HistogramOf) -> dict[str, Labels]:
    name = _underscored(instrument.name) + _UNITS.get(instrument.unit, "")
    labels = RESOURCE | {_underscored(attribute) for attribute in instrument.attributes}
    if isinstance(instrument, HistogramOf):
        return {f"{name}_bucket": labels | {"le"}, f"{name}_count": labels, f"{name}_sum": labels}
    return {f"{name}_total" if isinstance(instrument, CounterOf | ReadCounterOf) else name: labels}


def _check(expr: str, where: str, known: Mapping[str, Labels]) -> Labels:
    variable = _VALUES.fullmatch(expr)
    plain = f"count by ({variable['label']}) ({variable['series']})" if variable else expr
    try:
        parsed = pp.parse(_GRAFANA.sub("5m", at_scale(plain)))
    except ValueError as error:
        msg = f"{where}: {error}, in: {expr}"
        raise DashboardError(msg) from None
    return _Reader(where, known).labels(parsed)


class _Reader:
    """Reads an expression from the inside out: which labels each part has."""

    def __init__(self, where: str, known: Mapping[str, Labels]) -> None:
        self._where = where
        self._known = known

    def labels(self, expr: pp.Expr) -> Labels:
        """Return the labels of what `expr` answers."""
        match expr:
            case pp.VectorSelector():
                found = self._of_series(expr)
            case pp.MatrixSelector():
                found = self._of_series(expr.vector_selector)
            case pp.AggregateExpr():
                found = self._of_aggregate(expr)
            case pp.BinaryExpr():
                found = self._of_pair(expr)
            case pp.Call():
                found = self._of_call(expr)
            case pp.ParenExpr() | pp.UnaryExpr() | pp.SubqueryExpr():
                found = self.labels(expr.expr)
            case _:
                found = frozenset()
        return found

    def _of_series(self, selector: pp.VectorSelector) -> Labels:
        if selector.name is None:
            msg = f"{self._where}: a series needs the name of its metric"
            raise DashboardError(msg)
        labels = self._known.get(selector.name)
        if labels is None:
            msg = f"{self._where}: unknown metric {selector.name!r}{nearest(selector.name, self._known)}"
            raise DashboardError(msg)
        self._must_be_in(labels, (matcher.name for matcher in selector.matchers.matchers), selector.name)
        return labels

    def _of_aggregate(self, aggregate: pp.AggregateExpr) -> Labels:
        inner = self.labels(aggregate.expr)
        operator, modifier = str(aggregate.op), aggregate.modifier
        listed = frozenset(modifier.labels) if modifier else frozenset()
        self._must_be_in(inner, listed, f"what {operator} reads")
        if operator in {"topk", "bottomk"}:
            return inner
        return inner - listed if modifier and modifier.type == pp.AggModifierType.Without else listed

    def _of_pair(self, pair: pp.BinaryExpr) -> Labels:
        left, right = self.labels(pair.lhs), self.labels(pair.rhs)
        operator, modifier = str(pair.op), pair.modifier
        if modifier is None or modifier.matching is None:
            return left if operator in {"and", "unless"} else left | right
        listed, by = frozenset(modifier.matching.labels), modifier.matching.type == pp.LabelModifierType.Include
        for side, its in (("left", left), ("right", right)):
            self._must_be_in(its if by else left | right, listed, f"the {side} side of {operator}")
        if operator in {"and", "or", "unless"}:
            return left | right if operator == "or" else left
        brought = frozenset(modifier.group_labels or ())
        if modifier.card == pp.VectorMatchCardinality.ManyToOne:
            self._must_be_in(right, brought, f"the right side of {operator}")
            return left | brought
        if modifier.card == pp.VectorMatchCardinality.OneToMany:
            self._must_be_in(left, brought, f"the left side of {operator}")
            return right | brought
        return listed if by else left - listed

    def _of_call(self, call: pp.Call) -> Labels:
        name = call.func.name
        texts = [argument.val for argument in call.args if isinstance(argument, pp.StringLiteral)]
        labels = frozenset[str]().union(*(self.labels(argument) for argument in call.args))
        if name == "label_replace":
            made, _, source, _ = texts
            self._must_be_in(labels, {source} - {""}, f"what {name} reads")
            return labels | {made}
        if name == "histogram_quantile":
            self._must_be_in(labels, {"le"}, f"what {name} reads")
            return labels - {"le"}
        return frozenset() if name in {"scalar", "absent", "absent_over_time"} else labels

    def _must_be_in(self, labels: Labels, named: Iterable[str], what: str) -> None:
        for name in named:
            if name not in labels:
                msg = f"{self._where}: {what} has no label {name!r}{nearest(name, labels)}"
                raise DashboardError(msg)


def _underscored(name: str) -> str:
    return name.replace(".", "_")


def _duration(count: int, unit: str, scale: float) -> str:
    return f"{count}{unit}" if scale == 1 else f"{max(1, round(count * _MILLISECONDS[unit] * scale))}ms"
