"""A query that names what nobody emits is turned down, with the place, the name and the nearest right one."""

# ruff: noqa: E501 - a case a line

from __future__ import annotations

import pytest

from dashboards.alerts import RECORDINGS
from dashboards.promql import DashboardError, at_scale, check, vocabulary
from tracerouter.telemetry.metrics import CounterOf, HistogramOf, Instruments, ReadCounterOf

WHERE = "board overview, panel 'Requests'"


def test_every_instrument_is_known_by_its_name_in_prometheus() -> None:
    """The vocabulary has each instrument, with its attributes as labels, and nothing else of ours."""
    ours = {name for name in vocabulary() if name.startswith(("tracerouter_", "gen_ai_"))}
    for instrument in vars(Instruments()).values():
        name = instrument.name.replace(".", "_")
        unit = "_seconds" if instrument.unit == "s" else ""
        if isinstance(instrument, HistogramOf):
            names = {f"{name}{unit}_{part}" for part in ("bucket", "count", "sum")}
        else:
            names = {f"{name}_total" if isinstance(instrument, CounterOf | ReadCounterOf) else f"{name}{unit}"}
        assert names <= ours
        ours -= names
        for each in names:
            labels = {attribute.replace(".", "_") for attribute in instrument.attributes} | {"job", "instance"}
            assert vocabulary()[each] == labels | ({"le"} if each.endswith("_bucket") else set())
    assert not ours


def test_recording_rules_are_known_with_the_labels_of_their_answers() -> None:
    """A board may ask for a recording rule by name, and by the labels that it keeps."""
    assert vocabulary().keys() >= {recording.name for recording in RECORDINGS}
    assert vocabulary()["tracerouter:fallback_ratio:10m"] == {"task"}
    assert vocabulary()["tracerouter:requests:10m"] == set()


@pytest.mark.parametrize(
    ("expr", "labels"),
    [
        ('sum by (route) (rate(tracerouter_requests_total{task=~"$task"}[$__rate_interval]))', {"route"}),
        ("topk(5, sum by (tenant) (tracerouter_tenant_spend))", {"tenant"}),
        ("sum without (job, instance) (tracerouter_traces_kept_total)", {"reason"}),
        ("histogram_quantile(0.9, sum by (le, route) (increase(tracerouter_overhead_duration_seconds_bucket[${__range}])))", {"route"}),
        ('label_replace(sum by (model) (tracerouter_cost_total), "alias", "$1", "model", "(.+)")', {"model", "alias"}),
        ("sum by (task) (tracerouter_cost_total) / on (task) group_left (classifier) tracerouter_classifications_total", {"task", "classifier"}),
        ("sum by (task) (tracerouter_cost_total) / ignoring (task) group_left () sum(tracerouter_cost_total)", {"task"}),
        ("max_over_time(sum by (model) (increase(tracerouter_cost_total[5m]))[1h:5m])", {"model"}),
        ("sum by (task) (tracerouter_cost_total) or sum by (model) (tracerouter_cost_total)", {"task", "model"}),
        ("sum by (task) (tracerouter_cost_total) unless on () up == 0", {"task"}),
        ('-(sum by (task) (tracerouter_cost_total{source!="estimated"}))', {"task"}),
        ('label_values(tracerouter_requests_total{route="cheap"}, task)', {"task"}),
        ("increase(tracerouter:fallback_ratio:10m[{1d}])", {"task"}),
        ("vector(1)", set()),
        ("time()", set()),
    ],
)  # fmt: skip
def test_what_an_expression_answers_is_known_by_its_labels(expr: str, labels: set[str]) -> None:
    """Labels are followed from the series outwards, through Grafana's variables too."""
    assert check(expr, WHERE) == labels


@pytest.mark.parametrize(
    ("expr", "sentence"),
    [
        ("tracerouter_request_total", "unknown metric 'tracerouter_request_total' (did you mean 'tracerouter_requests_total'?)"),
        ("tracerouter_request_duration_seconds", "unknown metric 'tracerouter_request_duration_seconds' (did you mean 'tracerouter_request_duration_seconds_sum'?)"),
        ("tracerouter:fallback_ratio:5m", "unknown metric 'tracerouter:fallback_ratio:5m' (did you mean 'tracerouter:fallback_ratio:10m'?)"),
        ("zzz", "unknown metric 'zzz'"),
        ('{task="extract"}', "a series needs the name of its metric"),
        ('tracerouter_requests_total{taks="x"}', "tracerouter_requests_total has no label 'taks' (did you mean 'task'?)"),
        ('rate(tracerouter_requests_total{rout="x"}[5m] offset 1h)', "tracerouter_requests_total has no label 'rout' (did you mean 'route'?)"),
        ("sum by (modell) (tracerouter_cost_total)", "what sum reads has no label 'modell' (did you mean 'model'?)"),
        ("sum without (jobs) (tracerouter_cost_total)", "what sum reads has no label 'jobs' (did you mean 'job'?)"),
        ("sum by (task) (sum by (model) (tracerouter_cost_total))", "what sum reads has no label 'task'"),
        ("sum by (task) (tracerouter_cost_total) / on (model) sum by (model) (tracerouter_tokens_total)", "the left side of / has no label 'model'"),
        ("sum by (task) (tracerouter_cost_total) and on (model) up", "the left side of and has no label 'model'"),
        ("sum by (task) (tracerouter_cost_total) / ignoring (tenant) sum by (task) (tracerouter_cost_total)", "the left side of / has no label 'tenant'"),
        ("tracerouter_cost_total * on (model) group_left (direktion) tracerouter_tokens_total", "the right side of * has no label 'direktion' (did you mean 'direction'?)"),
        ("histogram_quantile(0.9, sum by (route) (tracerouter_overhead_duration_seconds_bucket))", "what histogram_quantile reads has no label 'le'"),
        ('label_replace(up, "a", "$1", "instanz", "(.*)")', "what label_replace reads has no label 'instanz' (did you mean 'instance'?)"),
        ("label_values(tracerouter_cost_total, modl)", "what count reads has no label 'modl' (did you mean 'model'?)"),
        ("max_over_time(sum by (modl) (tracerouter_cost_total)[1h:5m])", "what sum reads has no label 'modl' (did you mean 'model'?)"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_told_with_its_place_and_the_nearest_right_one(expr: str, sentence: str) -> None:
    """The error is one sentence: the board and the panel, what is wrong, and what was probably meant."""
    with pytest.raises(DashboardError) as raised:
        check(expr, WHERE)
    assert str(raised.value) == f"{WHERE}: {sentence}"


def test_what_is_no_promql_is_told_with_its_place() -> None:
    """A query that Prometheus could not read is not written, either."""
    with pytest.raises(DashboardError, match=r"^board overview, panel 'Requests': unclosed left parenthesis.*sum\(up$"):
        check("sum(up", WHERE)


@pytest.mark.parametrize(
    ("scale", "written"),
    [
        (1, 'rate(x{a="b"}[5m] offset 1d)'),
        (1 / 240, 'rate(x{a="b"}[1250ms] offset 360000ms)'),
        (1e-9, 'rate(x{a="b"}[1ms] offset 1ms)'),
    ],
)
def test_durations_in_braces_are_scaled(scale: float, written: str) -> None:
    """What stands in braces is multiplied, to whole milliseconds and never to none; label matchers are left alone."""
    assert at_scale('rate(x{a="b"}[{5m}] offset {1d})', scale) == written
