"""Every recording rule and alert: one entry holds its query, its tests and its section of the runbook.

To add an alert, add an :class:`Alert` to :data:`ALERTS` and run ``python -m dashboards``. Durations are written in
braces, such as ``{5m}``, so that a drill can shorten them all by one setting. Floors are written ``>= n``, thresholds
``> n``: tests change each to see that it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

# Floors: below them a ratio is the work of two or three requests, and nobody should be woken for those.
REQUESTS: Final = 50
"""Requests in the window that is looked at."""
SOME: Final = 30
"""Requests of one task, validator or model."""
CLASSIFIED: Final = 150
"""Classifications in an hour: with eight labels, chance alone moves their stability by 0.2 once in a hundred times."""
HISTORY: Final = 200
"""Of the day before. With fewer there is no "usual", and the absolute threshold alone decides."""
USD: Final = 1
"""USD in an hour."""
TENS: Final = 3
"""Of minutes, for which there is data of the day before."""

# Thresholds.
SERVED: Final = 0.995
"""The share of requests that is to be served."""
WORKING: Final = 0.99
"""The share of a model's calls that is to succeed, and to be faster than `SLOW`."""
BURN: Final = 14.4
"""Times the tolerable share of failures: a month's worth would be used up in two days."""
SLOW: Final = "10|10[.]0"
"""Seconds from which a model call is slow: a bucket's bound, however the exporter spells it."""
FELL_BACK: Final = 0.25
STORM: Final = 0.6
"""The share of fallbacks that is a storm, whatever the day before was like."""
INVALID: Final = 0.3
BROKEN: Final = 0.8
"""The share of failed validations that is a fault, whatever the day before was like."""
GROWN: Final = 2
"""Times the day before."""
DEARER: Final = 3
"""Times the day before, in cost an hour: the busiest hours of a usual day reach twice its mean."""
DEAR: Final = 20
"""USD an hour, where there is no day before to compare with."""
ONE_TENANT: Final = 0.5
MORE_OF_ALL: Final = 0.25
"""The share of all spend by which a tenant's own has grown since the day before."""
CACHED: Final = 0.1
"""The share of requests from which the cache is worth a ticket."""
UNSTABLE: Final = 0.25
"""Population stability index from which two distributions are commonly held to differ."""
LESS_SURE: Final = 0.15
ONE_LABEL: Final = 0.95
CLASSIFIER_FAILED: Final = 0.05
"""The share of classifications in which a classifier failed, and no other was sure."""
OVERHEAD: Final = 0.1
"""Seconds."""
WAITING: Final = 20
"""Reviews that wait, for half an hour without a break."""
OLD: Final = 14_400
"""Seconds that one review waits: a sixth of the time after which it expires, by default."""
LOST: Final = 0.05
"""The share of traces, log records or rows."""
NEARLY: Final = 0.9
"""The share of a budget from which it is nearly used up."""
LIMITED: Final = 0.05
"""The share of all requests that one limit refuses."""

Phases = tuple[tuple[float, int], ...]
"""The life of a series, from 0 on: growth a minute, and for how many minutes."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A query that is answered ahead, for boards and alerts to share."""

    name: str
    """Ends in its window; ``:1d`` is the day that ends where the current window begins."""
    expr: str
    about: str


@dataclass(frozen=True, slots=True)
class Case:
    """What Prometheus sees in a test of one alert."""

    about: str
    series: Mapping[str, Phases]
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the alert, besides its severity."""
    thin: int = 0
    """The first of the phases that have a thousandth of the traffic in the test of the floor."""


@dataclass(frozen=True, slots=True)
class Change:
    """Lines that confine an alert's damage. Names of tasks, models and tiers are examples."""

    why: str
    lines: Mapping[str, Any]
    """Merged into the file; a list replaces what was there."""
    file: Literal["policy.yaml", "tracerouter.yaml"] = "policy.yaml"

    def applied(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the file's `document` with the lines in it."""
        return _merged(document, self.lines)


@dataclass(frozen=True, slots=True)
class Command:
    """A command that confines an alert's damage."""

    why: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert, whole."""

    name: str
    severity: Literal["page", "ticket"]
    expr: str | Mapping[str, str]
    """One query; or one for each sign of the same trouble, told apart by the label ``sign``."""
    hold: str
    """How long it must hold before it fires."""
    summary: str
    """One line; Prometheus fills in labels."""
    description: str
    """The value, in words; Prometheus fills it in."""
    meaning: str
    panel: tuple[str, str]
    """Board and title."""
    query: str
    """What to ask Prometheus to see more."""
    confine: tuple[Change | Command, ...]
    """What stops the damage, the likeliest first. It need not repair the cause."""
    then: str
    """Where to look for the cause."""
    fires: tuple[Case, ...]
    silent: tuple[Case, ...]

    @property
    def signs(self) -> Mapping[str, str]:
        """The queries by sign; the only one has none."""
        return {"": self.expr} if isinstance(self.expr, str) else self.expr


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        inner = merged.get(key)
        merged[key] = _merged(inner if isinstance(inner, dict) else {}, value) if isinstance(value, dict) else value
    return merged


def _grown(series: str, window: str, by: str = "", offset: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}(increase({series}[{{{window}}}]{offset}))"


def _share(part: str, whole: str, window: str, by: str = "") -> str:
    """Write `part` / `whole`: 0 where nothing of `part` was ever counted, absent where nothing of `whole` was."""
    of = _grown(whole, window, by)
    return f"({_grown(part, window, by)} or {of} * 0) / ({of} > 0)"


def _share_before(part: str, whole: str, window: str, by: str = "") -> str:
    """Write the same share of the day before the current `window`, absent where that day has too little history."""
    offset = f" offset {{{window}}}"
    of = _grown(whole, "1d", by, offset)
    return f"({_grown(part, '1d', by, offset)} or {of} * 0) / ({of} >= {HISTORY})"


def _beside_its_day(name: str, part: str, whole: str, about: str, by: str = "") -> tuple[Recording, ...]:
    return (
        Recording(f"{name}:10m", _share(part, whole, "10m", by), about),
        Recording(f"{name}:1d", _share_before(part, whole, "10m", by), about),
    )


def _two_windows(name: str, part: str, whole: str, about: str, by: str = "") -> tuple[Recording, ...]:
    return tuple(Recording(f"{name}:{window}", _share(part, whole, window, by), about) for window in ("5m", "1h"))


def _burns(name: str, objective: float) -> str:
    """Write that the short window and the long one are both above: it is bad now, and not by a moment's chance."""
    limit = f"{BURN * (1 - objective):.4g}"
    return f"{name}:5m > {limit} and {name}:1h > {limit}"


def _outgrew(name: str, limit: float, always: float) -> str:
    """Write that a share is above `limit` and was not so the day before, or is above `always`.

    A fault that is there from the first day on becomes the day before's usual, hence `always`.
    """
    return f"({name}:10m > {limit} unless {name}:10m <= {GROWN} * {name}:1d or {name}:10m > {always})"


_TO_MODELS: Final = 'tracerouter_requests_total{route!~"cached|queued|refused"}'
_JUDGED: Final = 'tracerouter_validations_total{status!="skipped"}'
_BY_CLASSIFIER: Final = 'tracerouter_classifications_total{classifier!="hint"}'
_RUNGS: Final = 'tracerouter_attempts_total{role!="classify"}'
_PROVIDER_FAILED: Final = (
    'tracerouter_attempts_total{role!="classify", error_type=~"timeout|rate_limited|provider_error"}'
)
_CHATS: Final = 'tracerouter_requests_total{task!="embeddings"}'
_CLASSIFYING: Final = 'tracerouter_stage_duration_seconds_count{stage="classify", error_type!="cancelled"}'
_PASSED_OVER: Final = 'tracerouter_stage_duration_seconds_count{stage="classify", error_type!~"|cancelled"}'
_REFUSED_BY_LIMIT: Final = 'tracerouter_quota_decisions_total{action="refuse", scope!="ledger"}'
_SPEND: Final = 'tracerouter_tenant_spend{period="day"}'
_CALLS: Final = "gen_ai_client_operation_duration_seconds"
_TOO_EARLY: Final = "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early_total"
_NOT_SENT: Final = (
    "otelcol_exporter_send_failed_spans_total",
    "otelcol_exporter_send_failed_log_records_total",
    "otelcol_exporter_enqueue_failed_spans_total",
    "otelcol_exporter_enqueue_failed_log_records_total",
)
_SENT: Final = ("otelcol_exporter_sent_spans_total", "otelcol_exporter_sent_log_records_total")


def _slow_calls(window: str, offset: str = "", least: str = "> 0") -> str:
    calls = _grown(f"{_CALLS}_count", window, "gen_ai_request_model", offset)
    fast = _grown(f'{_CALLS}_bucket{{le=~"{SLOW}"}}', window, "gen_ai_request_model", offset)
    return f"1 - {fast} / ({calls} {least})"


def _confidence(window: str, offset: str = "", least: str = "> 0") -> str:
    name = "tracerouter_classifier_confidence"
    return f"{_grown(f'{name}_sum', window, '', offset)} / ({_grown(f'{name}_count', window, '', offset)} {least})"


def _labels(window: str, offset: str = "", least: str = "> 0") -> str:
    each = _grown(_BY_CLASSIFIER, window, "task", offset)
    return f"{each} / ignoring (task) group_left () ({_grown(_BY_CLASSIFIER, window, '', offset)} {least})"


def _label_or_a_thousandth(now: str, other: str) -> str:
    return f"clamp_min(tracerouter:label_share:{now} or tracerouter:label_share:{other} * 0, 0.001)"


_NOW, _BEFORE = _label_or_a_thousandth("1h", "1d"), _label_or_a_thousandth("1d", "1h")

RECORDINGS: Final[tuple[Recording, ...]] = (
    Recording("tracerouter:requests:10m", _grown("tracerouter_requests_total", "10m"), "Requests that ended."),
    Recording("tracerouter:requests:1h", _grown("tracerouter_requests_total", "1h"), "Requests that ended."),
    Recording("tracerouter:requests:1d", _grown("tracerouter_requests_total", "1d"), "Requests of the last day."),
    *_two_windows(
        "tracerouter:failed_ratio",
        'tracerouter_requests_total{outcome="failed"}',
        'tracerouter_requests_total{outcome!="cancelled"}',
        "Share of requests that were not answered; callers who left are not counted.",
    ),
    *_beside_its_day(
        "tracerouter:fallback_ratio",
        "tracerouter_fallbacks_total",
        _TO_MODELS,
        "Fallbacks for each request that went to a model.",
        "task",
    ),
    *_beside_its_day(
        "tracerouter:cached_ratio",
        'tracerouter_requests_total{route="cached"}',
        _CHATS,
        "Share of all requests that the cache answered: it falls too when nothing is looked up any more. Embeddings, "
        "which are never looked up, are not counted.",
    ),
    *_beside_its_day(
        "tracerouter:validation_failure_ratio",
        'tracerouter_validations_total{status="failed"}',
        _JUDGED,
        "Share of the answers that a validator judged and turned down.",
        "validator",
    ),
    *_two_windows(
        "tracerouter:provider_error_ratio",
        _PROVIDER_FAILED,
        _RUNGS,
        "Share of attempts at which the provider failed; prompts that are too long are the caller's doing, and what "
        "classifiers ask has an alert of its own.",
        "model",
    ),
    Recording("tracerouter:slow_call_ratio:5m", _slow_calls("5m"), "Share of model calls slower than 10 s."),
    Recording("tracerouter:slow_call_ratio:1h", _slow_calls("1h"), "Share of model calls slower than 10 s."),
    Recording(
        "tracerouter:slow_call_ratio:1d",
        _slow_calls("1d", " offset {1h}", f">= {HISTORY}"),
        "Share of model calls slower than 10 s.",
    ),
    Recording(
        "tracerouter:overhead_p95:10m",
        f"histogram_quantile(0.95, {_grown('tracerouter_overhead_duration_seconds_bucket', '10m', 'le')})",
        "Seconds that 95 % of requests do not exceed, less the wait for providers.",
    ),
    Recording("tracerouter:cost_per_hour:10m", f"{_grown('tracerouter_cost_total', '10m')} * 6", "USD an hour."),
    Recording("tracerouter:cost_per_hour:1h", _grown("tracerouter_cost_total", "1h"), "USD an hour."),
    Recording(
        "tracerouter:cost_per_hour:1d",
        "avg_over_time(tracerouter:cost_per_hour:10m[{1d}] offset {1h}) "
        f"and count_over_time(tracerouter:cost_per_hour:10m[{{1d}}:{{10m}}] offset {{1h}}) >= {TENS}",
        "USD an hour of the day before; absent at first, when a mean would be of too little.",
    ),
    Recording(
        "tracerouter:tenant_cost:1h",
        f"max by (tenant) (increase({_SPEND}[{{1h}}]))",
        "USD of a tenant. Every replica reads the same ledger, hence max; midnight's reset is as a counter's.",
    ),
    Recording(
        "tracerouter:tenant_share:1h",
        f"tracerouter:tenant_cost:1h / on () group_left () ({_grown('tracerouter_cost_total', '1h')} > 0)",
        "A tenant's share of the spend.",
    ),
    Recording(
        "tracerouter:tenant_share:1d",
        f"max by (tenant) (increase({_SPEND}[{{1d}}] offset {{1h}})) / on () group_left () "
        f"({_grown('tracerouter_cost_total', '1d', '', ' offset {1h}')} >= {USD})",
        "A tenant's share of the spend.",
    ),
    Recording("tracerouter:classifications:1h", _grown(_BY_CLASSIFIER, "1h"), "Labels that no caller gave."),
    Recording("tracerouter:label_share:1h", _labels("1h"), "A label's share of the classifications."),
    Recording(
        "tracerouter:label_share:1d",
        _labels("1d", " offset {1h}", f">= {HISTORY}"),
        "A label's share of the classifications.",
    ),
    Recording(
        "tracerouter:label_stability:1h",
        f"sum(({_NOW} - {_BEFORE}) * ln({_NOW} / {_BEFORE})) "
        "and on () tracerouter:label_share:1h and on () tracerouter:label_share:1d",
        "Population stability index of the labels against the day before: 0 is the same, 0.25 another population.",
    ),
    Recording("tracerouter:confidence:1h", _confidence("1h"), "Mean confidence of the classifications."),
    Recording(
        "tracerouter:confidence:1d",
        _confidence("1d", " offset {1h}", f">= {HISTORY}"),
        "Mean confidence of the classifications.",
    ),
)

_REQUESTS_NOW: Final = f"and on () tracerouter:requests:10m >= {REQUESTS}"
_REQUESTS_TODAY: Final = f"and on () tracerouter:requests:1d >= {REQUESTS}"


def _dropped(counter: str) -> str:
    return f"{_grown(counter, '10m')} / tracerouter:requests:10m > {LOST} {_REQUESTS_NOW}"


def _together(series: tuple[str, ...]) -> str:
    """Add up counters of which some may not be there yet; `or` needs a label to tell them apart."""
    each = (f'label_replace(increase({one}[{{10m}}]), "counted", "{one}", "", "")' for one in series)
    return f"sum by (exporter) ({' or '.join(each)})"


_TRACES: Final = (
    f"({_grown('tracerouter_traces_kept_total', '10m')} + {_grown('tracerouter_traces_dropped_total', '10m')})"
)


# What Prometheus sees in the tests.


def _after_calm(calm: float, now: float, minutes: int = 30) -> Phases:
    """Three hours that grow by `calm` a minute, then `minutes` that grow by `now` a minute."""
    return ((calm, 180), (now, minutes))


def _requests(route: str, outcome: str = "answered", task: str = "extract") -> str:
    return f'tracerouter_requests_total{{route="{route}", outcome="{outcome}", task="{task}"}}'


def _attempts(model: str, failure: str = "", role: str = "cheap") -> str:
    return f'tracerouter_attempts_total{{model="{model}", role="{role}", error_type="{failure}"}}'


def _classifying(failure: str = "") -> str:
    return f'tracerouter_stage_duration_seconds_count{{stage="classify", error_type="{failure}"}}'


def _classified(task: str, classifier: str = "examples") -> str:
    return f'tracerouter_classifications_total{{task="{task}", classifier="{classifier}", abstained="false"}}'


def _validated(status: str) -> str:
    return f'tracerouter_validations_total{{validator="json_schema", status="{status}"}}'


def _spends(tenants: Mapping[str, Phases], total: Phases) -> dict[str, Phases]:
    """What each tenant has spent today, beside the cost of all."""
    each = {f'tracerouter_tenant_spend{{tenant="{name}", period="day"}}': life for name, life in tenants.items()}
    return {**each, 'tracerouter_cost_total{model="large", role="expensive"}': total}


def _mix(extract: float, summarize: float, classifier: str = "examples") -> dict[str, Phases]:
    """Two labels that are given 60 times a minute each, then these shares of 120 for an hour and more."""
    shares = {"extract": extract, "summarize": summarize}
    return {_classified(task, classifier): _after_calm(60, 120 * share, 70) for task, share in shares.items()}


def _confidence_of(now: float) -> dict[str, Phases]:
    """A mean confidence of 0.9, then one of `now`."""
    name = "tracerouter_classifier_confidence"
    lives = {"count": _after_calm(120, 120, 70), "sum": _after_calm(108, 120 * now, 70)}
    return {f'{name}_{part}{{task="extract"}}': life for part, life in lives.items()} | _mix(0.5, 0.5)


def _durations(name: str, labels: str, bounds: tuple[str, str], *phases: tuple[float, float, int]) -> dict[str, Phases]:
    """A histogram: so many a minute within the first bound, so many between it and the second, and for how long."""
    within = tuple((few, minutes) for few, _, minutes in phases)
    both = tuple((few + more, minutes) for few, more, minutes in phases)
    lives = {bounds[0]: within, bounds[1]: both, "+Inf": both}
    buckets = {f'{name}_bucket{{{labels}, le="{bound}"}}': life for bound, life in lives.items()}
    return buckets | {f"{name}_count{{{labels}}}": both}


def _calls(*phases: tuple[float, float, int]) -> dict[str, Phases]:
    return _durations(_CALLS, 'gen_ai_request_model="gpt-5-nano"', ("10.0", "20.0"), *phases)


def _overheads(within: float, slower: float) -> dict[str, Phases]:
    name, phases = "tracerouter_overhead_duration_seconds", ((60, 0, 180), (within, slower, 30))
    return _durations(name, 'route="cheap"', ("0.1", "0.25"), *phases) | {_requests("cheap"): _after_calm(60, 60)}


def _costs(*phases: tuple[float, int]) -> dict[str, Phases]:
    """So many USD an hour, and for how many minutes."""
    return {'tracerouter_cost_total{model="large", role="expensive"}': tuple((usd / 60, for_) for usd, for_ in phases)}


def _budget(usd: float, left: float, tenant: str = "acme") -> dict[str, Phases]:
    """What a tenant may spend in a month, and what it has left."""
    lives = {"limit": usd, "remaining": left}
    return {
        f'tracerouter_budget_{name}{{tenant="{tenant}", period="month"}}': ((amount, 1), (0, 59))
        for name, amount in lives.items()
    }


def _limited(action: str, growth: float, minutes: int = 30, scope: str = "user 20 requests/day") -> dict[str, Phases]:
    """Sixty requests a minute, of which a limit lets so many not pass."""
    reached = f'tracerouter_quota_decisions_total{{scope="{scope}", action="{action}"}}'
    return {_requests("cheap"): _after_calm(60, 60, minutes), reached: _after_calm(0, growth, minutes)}


def _up(*phases: tuple[float, int]) -> dict[str, Phases]:
    return {'up{job="tracerouter", instance="collector:8889"}': ((1, 1), *phases)}


_LITTLE: Final = _after_calm(0.01, 0.01, 70)
_THEN_MUCH: Final = _after_calm(0.01, 0.1, 70)
_STEADY: Final = {_requests("cheap"): _after_calm(60, 60)}
_NONE_LOST: Final = {
    **_STEADY,
    **_up((0, 209)),
    'tracerouter_traces_kept_total{reason="share"}': _after_calm(6, 6),
    'tracerouter_traces_dropped_total{reason="queue_full"}': _after_calm(0, 0),
    'tracerouter_logs_dropped_total{reason="export_failed"}': _after_calm(0, 0),
    'tracerouter_decisions_dropped_total{reason="queue_full"}': _after_calm(0, 0),
    'tracerouter_ledger_lost_total{reason="disk"}': _after_calm(0, 0),
    'otelcol_exporter_sent_spans_total{exporter="otlp_http/traces"}': _after_calm(40, 40),
    'otelcol_exporter_send_failed_spans_total{exporter="otlp_http/traces"}': _after_calm(0, 0),
}

_ONE_TRACE_LOST: Final[dict[str, Phases]] = {
    'tracerouter_traces_kept_total{reason="share"}': _after_calm(0.3, 0.3),
    'tracerouter_traces_dropped_total{reason="queue_full"}': ((0, 200), (1, 1), (0, 9)),
}

_DEPTH: Final = 'tracerouter_review_depth{queue="review"}'
_AGE: Final = 'tracerouter_review_oldest_age_seconds{queue="review"}'

ALERTS: Final[tuple[Alert, ...]] = (
    Alert(
        name="RequestsFailing",
        severity="page",
        expr=f"{_burns('tracerouter:failed_ratio', SERVED)} and tracerouter:requests:1h >= {2 * REQUESTS}",
        hold="{2m}",
        summary="Requests end without an answer",
        description="{{ $value | humanizePercentage }} of the requests of the last {5m} failed.",
        meaning="Users get errors. A month's worth of tolerable failures would be used up in two days.",
        panel=("overview", "Failed requests"),
        query='sum by (task) (increase(tracerouter_requests_total{outcome="failed"}[{10m}]))',
        confine=(
            Change(
                "If the last rung is the one that fails, let the cheap model answer alone. A `start: large` of a "
                "task, a risk or a tier must go too: `policy check` names them, one at a time.",
                {"ladder": ["small"]},
            ),
            Change(
                "If requests run out of time (reason `timeout`), give them more.",
                {"timeout": "180s"},
                "tracerouter.yaml",
            ),
        ),
        then="`tracerouter trace --last failed`: its attempts tell which rung failed, and why. The reason "
        "`bad_request` is a caller's mistake, `internal` is a bug: the log has its place, by request id.",
        fires=(
            Case(
                "one request in five fails",
                {_requests("cheap"): _after_calm(60, 48), _requests("failed", "failed"): _after_calm(0, 12)},
            ),
            Case("every request fails, from the first one on", {_requests("failed", "failed"): ((60, 30),)}),
        ),
        silent=(
            Case(
                "one in fifty fails",
                {_requests("cheap"): _after_calm(60, 59), _requests("failed", "failed"): _after_calm(0, 1)},
            ),
            Case(
                "callers leave",
                {_requests("cheap"): _after_calm(60, 54), _requests("failed", "cancelled"): _after_calm(0, 6)},
            ),
            Case(
                "it is over",
                {
                    _requests("cheap"): ((60, 180), (30, 20), (60, 10)),
                    _requests("failed", "failed"): ((0, 180), (30, 20), (0, 10)),
                },
            ),
            Case(
                "it lasts ten minutes",
                {_requests("cheap"): _after_calm(60, 48, 10), _requests("failed", "failed"): _after_calm(0, 12, 10)},
            ),
        ),
    ),
    Alert(
        name="FallbackStorm",
        severity="page",
        expr=f"{_outgrew('tracerouter:fallback_ratio', FELL_BACK, STORM)} "
        f"and {_grown(_TO_MODELS, '10m', 'task')} >= {SOME}",
        hold="{2m}",
        summary="Task {{ $labels.task }} falls back far more often than usual",
        description="{{ $value | humanizePercentage }} of the requests of task {{ $labels.task }} fell back in the "
        "last {10m}.",
        meaning="The cheap rung's answers are turned down, or it gives none, so that each request is paid for twice "
        "and takes twice as long. Users are still served.",
        panel=("fallback-storms", "Fallback ratio"),
        query='sum by (from, to, reason) (increase(tracerouter_fallbacks_total{task="extract"}[{10m}]))',
        confine=(
            Change(
                "Send the task straight to the last rung: answered once, at what it would have cost without us.",
                {"tasks": {"extract": {"start": "large"}}},
            ),
            Change(
                "If the reason is `schema_invalid` or `check_failed` and the schema or the check is what is wrong, "
                "take it off the task until it is repaired.",
                {"tasks": {"extract": {"validate": ["empty"]}}},
            ),
        ),
        then="If the reason is `timeout`, `rate_limited` or `provider_error`, see ProviderErrors: no task is at fault. "
        "Else `tracerouter trace --last fallback`: `tracerouter.validation.failures` names the keyword and the path "
        "that failed. Did a prompt, a schema or the model change?",
        fires=(
            Case(
                "half of the requests fall back, after a day at one in twenty",
                {
                    _requests("cheap"): _after_calm(57, 30),
                    _requests("fallback"): _after_calm(3, 30),
                    'tracerouter_fallbacks_total{reason="schema_invalid", task="extract"}': _after_calm(3, 30),
                },
                {"task": "extract"},
            ),
            Case(
                "nearly all fall back, from the first one on",
                {
                    _requests("fallback"): ((60, 240),),
                    'tracerouter_fallbacks_total{reason="empty", task="extract"}': ((55, 240),),
                },
                {"task": "extract"},
            ),
        ),
        silent=(
            Case(
                "one in five falls back",
                {
                    _requests("cheap"): _after_calm(57, 48),
                    'tracerouter_fallbacks_total{reason="schema_invalid", task="extract"}': _after_calm(3, 12),
                    _requests("fallback"): _after_calm(3, 12),
                },
            ),
            Case(
                "four in ten, as the day before",
                {
                    _requests("cheap"): _after_calm(60, 60),
                    'tracerouter_fallbacks_total{reason="schema_invalid", task="extract"}': _after_calm(24, 24),
                },
            ),
            Case(
                "only another task falls back, of which there are few",
                {
                    _requests("cheap"): _after_calm(60, 60),
                    _requests("fallback", task="invoice"): _after_calm(0, 1),
                    'tracerouter_fallbacks_total{reason="empty", task="invoice"}': _after_calm(0, 1),
                },
            ),
        ),
    ),
    Alert(
        name="CostBurn",
        severity="page",
        expr=f"(tracerouter:cost_per_hour:10m > {DEARER} * tracerouter:cost_per_hour:1d "
        f"and tracerouter:cost_per_hour:1h > {DEARER} * tracerouter:cost_per_hour:1d "
        f"or (tracerouter:cost_per_hour:1h > {DEAR} unless tracerouter:cost_per_hour:1d)) "
        f"and tracerouter:cost_per_hour:1h >= {USD}",
        hold="{5m}",
        summary="Money is spent several times as fast as the day before",
        description="{{ $value | humanize }} USD an hour.",
        meaning="Over ten minutes and over an hour, models cost more than three times an hour's mean of the day "
        "before.",
        panel=("overview", "Cost per hour"),
        query="sum by (model, role, task) (increase(tracerouter_cost_total[{1h}]))",
        confine=(
            Change(
                "Let the cheap model try everything first that no task, risk or tier reserves. Validators still "
                "stand behind it.",
                {"min_confidence": 0.0},
            ),
            Change("Keep the expensive model for those who pay for it.", {"tiers": {"free": {"ladder": ["small"]}}}),
        ),
        then="`tracerouter trace --last expensive`, and `--last fallback`. More requests, longer prompts, or another "
        "route? The boards `cost-tenants` and `route-mix` tell them apart.",
        fires=(
            Case("five times the cost", _costs((6, 180), (30, 60))),
            Case("40 USD in the first hour ever", _costs((40, 75))),
        ),
        silent=(
            Case("twice the cost", _costs((6, 180), (12, 60))),
            Case("ten times the cost for ten minutes", _costs((6, 180), (60, 10))),
            Case("it is over", _costs((6, 180), (48, 60), (6, 15))),
            Case("5 USD in the first hour ever", _costs((5, 75))),
        ),
    ),
    Alert(
        name="CostBurnTenant",
        severity="ticket",
        expr=f'(tracerouter:tenant_share:1h{{tenant!="other"}} > {ONE_TENANT} '
        f"unless tracerouter:tenant_share:1h - {MORE_OF_ALL} < tracerouter:tenant_share:1d) "
        f"and tracerouter:tenant_cost:1h >= {USD} "
        "and on () (count(tracerouter:tenant_share:1d) or count(tracerouter:tenant_cost:1h > 0) > 2)",
        hold="{10m}",
        summary="Tenant {{ $labels.tenant }} spends more than all others together",
        description="Tenant {{ $labels.tenant }} has {{ $value | humanizePercentage }} of the spend of the last {1h}.",
        meaning="It has more than half of an hour's spend, and of all spend a quarter more than the day before; where "
        "there is no day before, more than half among at least three tenants.",
        panel=("cost-tenants", "Spend by tenant, today"),
        query='topk(5, max by (tenant) (increase(tracerouter_tenant_spend{period="day"}[{1h}])))',
        confine=(
            Change(
                "Let the tier of the tenant's key use the cheap model only. It holds for the whole tier: give the "
                "tenant's key a tier of its own, if others must not feel it.",
                {"tiers": {"free": {"ladder": ["small"]}}},
            ),
        ),
        then="`tracerouter trace --last acme`, with the tenant's name. A loop at a client looks like many equal "
        "prompt hashes.",
        fires=(
            Case(
                "one of four tenants spends ten times as much",
                _spends({"acme": _THEN_MUCH, "b": _LITTLE, "c": _LITTLE, "d": _LITTLE}, _after_calm(0.04, 0.13, 70)),
                {"tenant": "acme"},
            ),
            Case(
                "one of two tenants, though one of those below the 20 has just risen among them",
                _spends(
                    {"acme": _THEN_MUCH, "b": _LITTLE, "other": ((0.1, 190), (-19, 1), (0.01, 59))},
                    _after_calm(0.03, 0.12, 70),
                ),
                {"tenant": "acme"},
            ),
            Case(
                "there is no day before",
                _spends({"acme": ((0.1, 65),), "b": ((0.01, 65),), "c": ((0.01, 65),)}, ((0.12, 65),)),
                {"tenant": "acme"},
            ),
        ),
        silent=(
            Case(
                "it always spends most",
                _spends({"acme": _after_calm(0.1, 0.1, 70), "b": _LITTLE, "c": _LITTLE}, _after_calm(0.12, 0.12, 70)),
            ),
            Case(
                "only two spend, and there is no day before",
                _spends({"acme": ((0.1, 65),), "b": ((0.01, 65),), "c": ((0, 65),)}, ((0.11, 65),)),
            ),
            Case(
                "the small tenants together",
                _spends({"other": _THEN_MUCH, "b": _LITTLE, "c": _LITTLE, "d": _LITTLE}, _after_calm(0.04, 0.13, 70)),
            ),
            Case(
                "midnight",
                _spends(dict.fromkeys("abcd", ((0.1, 190), (-19, 1), (0.1, 29))), ((0.4, 220),)),
            ),
            Case(
                "from a tenth of the spend to four",
                _spends(
                    {"acme": _after_calm(0.005, 0.035, 70), **dict.fromkeys("bcde", _LITTLE)},
                    _after_calm(0.045, 0.075, 70),
                ),
            ),
        ),
    ),
    Alert(
        name="CacheCollapse",
        severity="ticket",
        expr=f"tracerouter:cached_ratio:10m < tracerouter:cached_ratio:1d / {GROWN} "
        f"and tracerouter:cached_ratio:1d > {CACHED} and tracerouter:requests:10m >= {REQUESTS}",
        hold="{10m}",
        summary="The cache answers less than half as often as usual",
        description="The cache answered {{ $value | humanizePercentage }} of the requests of the last {10m}.",
        meaning="What was answered for nothing is paid for again. A restart empties the cache in memory, and looks "
        "like this for as long as it takes to fill; with a redis:// store that is short, unless Redis does not answer "
        "(`error`), or was emptied by `tracerouter cache clear`.",
        panel=("cache", "Cache hit ratio"),
        query="sum by (layer, result) (increase(tracerouter_cache_operations_total[{10m}]))",
        confine=(
            Change(
                "If a new policy turned it off or shortened it, put it back. Look at the tasks' own `cache` lines too.",
                {"cache": {"ttl": "10m", "scope": "tenant"}},
            ),
        ),
        then="`tracerouter trace --last cached` and `--last cheap`: `tracerouter.cache.status` tells `miss` from "
        "`bypass`, which a caller asks for. A changed prompt, schema, ladder or validator changes every key, and the "
        "cache fills again by itself.",
        fires=(
            Case(
                "from four hits in ten requests to none",
                {_requests("cached", "cached"): _after_calm(40, 0), _requests("cheap"): _after_calm(60, 100)},
                thin=1,
            ),
        ),
        silent=(
            Case(
                "from four in ten to three",
                {_requests("cached", "cached"): _after_calm(40, 30), _requests("cheap"): _after_calm(60, 70)},
            ),
            Case(
                "a job asks for embeddings, which are never cached",
                {
                    _requests("cached", "cached", ""): _after_calm(40, 40),
                    _requests("cheap"): _after_calm(60, 60),
                    _requests("cheap", task="embeddings"): _after_calm(0, 400),
                },
            ),
            Case(
                "it never answered much",
                {_requests("cached", "cached"): _after_calm(5, 0), _requests("cheap"): _after_calm(95, 100)},
            ),
            Case("there is no day before", {_requests("cheap"): ((100, 30),)}),
        ),
    ),
    Alert(
        name="ClassifierDrift",
        severity="ticket",
        expr={
            "mix": f"tracerouter:label_stability:1h > {UNSTABLE} and tracerouter:classifications:1h >= {CLASSIFIED}",
            "confidence": f"tracerouter:confidence:1d - tracerouter:confidence:1h > {LESS_SURE} "
            f"and tracerouter:classifications:1h >= {CLASSIFIED}",
            "one_label": f"(tracerouter:label_share:1h > {ONE_LABEL} unless tracerouter:label_share:1d > {ONE_LABEL}) "
            f"and on () tracerouter:classifications:1h >= {CLASSIFIED}",
        },
        hold="{10m}",
        summary="The classifier sees another world than the day before: {{ $labels.sign }}",
        description="{{ $labels.sign }}: {{ $value | humanize }}{{ with $labels.task }} of label {{ . }}{{ end }}.",
        meaning="Its labels are distributed otherwise (`mix`: their population stability index is above 0.25), it is "
        "less sure of them (`confidence`), or gives nearly everything one label (`one_label`). The traffic has "
        "changed, or the classifier is wrong, and then requests go the wrong way.",
        panel=("classifier-validation", "Drift"),
        query="sort_desc(tracerouter:label_share:1h) or tracerouter:confidence:1h or tracerouter:label_stability:1h",
        confine=(
            Change(
                "Send the label that has grown to the last rung, whatever the classifier's confidence.",
                {"tasks": {"summarize": {"start": "large"}}},
            ),
            Change(
                "Or ask for more confidence: whatever it is less sure of goes to the last rung.",
                {"min_confidence": 0.9},
            ),
        ),
        then='`tracerouter trace --last summarize` with the label, and `tracerouter explain "…"` with a prompt that '
        "you know. The alert lasts until the mix is the usual one again, or has been so for a day.",
        fires=(
            Case("from half and half to nine in ten", _mix(0.1, 0.9), {"sign": "mix"}, thin=1),
            Case("a mean confidence of 0.6 instead of 0.9", _confidence_of(0.6), {"sign": "confidence"}, thin=1),
            Case("one label, after a day of two", _mix(0, 1), {"sign": "one_label", "task": "summarize"}, thin=1),
            Case(
                "one label, from the first request on",
                {_classified("summarize"): ((20, 60),)},
                {"sign": "one_label", "task": "summarize"},
            ),
        ),
        silent=(
            Case("from half and half to six in ten", _mix(0.4, 0.6)),
            Case("a mean confidence of 0.85 instead of 0.9", _confidence_of(0.85)),
            Case("callers name other tasks themselves", _mix(0.1, 0.9, "hint")),
            Case("a service that has one label", {_classified("summarize"): ((60, 300),)}),
        ),
    ),
    Alert(
        name="ClassifierFailing",
        severity="ticket",
        expr=f"{_grown(_PASSED_OVER, '10m')} / {_grown(_CLASSIFYING, '10m')} > {CLASSIFIER_FAILED} "
        f"and {_grown(_CLASSIFYING, '10m')} >= {REQUESTS}",
        hold="{5m}",
        summary="A classifier fails, and no other is sure",
        description="For {{ $value | humanizePercentage }} of the requests that were classified in the last {10m}, a "
        "classifier failed and no other was sure.",
        meaning="The model that a classifier asks fails or is too slow, or a classifier of your own raises. Users are "
        "served, after they have waited for it; but what nobody is sure of goes to the last rung, at its price.",
        panel=("classifier-validation", "Failed classifying"),
        query='sum by (model, error_type) (increase(tracerouter_attempts_total{role="classify"}[{10m}])) or '
        'sum by (error_type) (increase(tracerouter_stage_duration_seconds_count{stage="classify"}[{10m}]))',
        confine=(
            Change(
                "If the query names a model, let the classifier ask another one.",
                {"classifier": ["rules", "examples", {"llm": "large"}]},
                "tracerouter.yaml",
            ),
            Change(
                "Or leave the classifier out: nobody waits for it any more.",
                {"classifier": ["rules", "examples"]},
                "tracerouter.yaml",
            ),
            Change(
                "While nobody is sure, let the cheap model try first what no task, risk or tier reserves. Validators "
                "still stand behind it.",
                {"min_confidence": 0.0},
            ),
        ),
        then="`tracerouter trace --last abstained` (or `low_confidence`): the `classify` span has `error.type`, and so "
        "has the `chat` span beneath it, with the server's address, if a model was asked. If none was, the log names "
        "the classifier's class and the exception. A model that answers without a label does not count here: it "
        "abstains.",
        fires=(
            Case(
                "the model that is asked about one request in five is too slow",
                {_classifying(): _after_calm(60, 48), _classifying("timeout"): _after_calm(0, 12)},
            ),
            Case(
                "a classifier of one's own raises from the first request on",
                {_classifying("ImportError"): ((60, 30),)},
            ),
        ),
        silent=(
            Case(
                "one in fifty is passed over",
                {_classifying(): _after_calm(60, 58.8), _classifying("timeout"): _after_calm(0, 1.2)},
            ),
            Case(
                "callers leave while they wait",
                {_classifying(): _after_calm(60, 30), _classifying("cancelled"): _after_calm(0, 30)},
            ),
            Case(
                "it is over",
                {
                    _classifying(): ((60, 180), (30, 20), (60, 15)),
                    _classifying("timeout"): ((0, 180), (30, 20), (0, 15)),
                },
            ),
        ),
    ),
    Alert(
        name="ValidationFailureSpike",
        severity="ticket",
        expr=f"{_outgrew('tracerouter:validation_failure_ratio', INVALID, BROKEN)} "
        f"and {_grown(_JUDGED, '10m', 'validator')} >= {SOME}",
        hold="{5m}",
        summary="Validator {{ $labels.validator }} turns down far more answers than usual",
        description="Validator {{ $labels.validator }} turned down {{ $value | humanizePercentage }} of the answers "
        "of the last {10m}.",
        meaning="A schema, a check, a prompt or a model has changed, and they no longer fit each other.",
        panel=("classifier-validation", "Validation failure ratio"),
        query="sum by (validator, status) (increase(tracerouter_validations_total[{10m}]))",
        confine=(
            Change(
                "If the schema changed, put the one before back (here it is called `ticket.json`).",
                {"tasks": {"extract": {"schema": "schemas/ticket.json"}}},
            ),
            Change(
                "If there is none to put back, take the validator off the task.",
                {"tasks": {"extract": {"validate": ["empty"]}}},
            ),
        ),
        then="`tracerouter trace --last schema_invalid` (or `empty`, `refusal`, `truncated`, `check_failed`): "
        "`tracerouter.validation.failures` names the keyword and the path.",
        fires=(
            Case(
                "six answers in ten are turned down, after a day at one in twenty",
                {_validated("passed"): _after_calm(57, 24), _validated("failed"): _after_calm(3, 36)},
                {"validator": "json_schema"},
            ),
            Case(
                "nine in ten, from the first answer on",
                {_validated("passed"): ((6, 240),), _validated("failed"): ((54, 240),)},
                {"validator": "json_schema"},
            ),
        ),
        silent=(
            Case(
                "two in ten are turned down",
                {_validated("passed"): _after_calm(57, 48), _validated("failed"): _after_calm(3, 12)},
            ),
            Case(
                "six in ten, as the day before",
                {_validated("passed"): _after_calm(24, 24), _validated("failed"): _after_calm(36, 36)},
            ),
            Case(
                "they are repaired",
                {_validated("passed"): _after_calm(57, 24), _validated("repaired"): _after_calm(3, 36)},
            ),
        ),
    ),
    Alert(
        name="ProviderErrors",
        severity="page",
        expr=f"{_burns('tracerouter:provider_error_ratio', WORKING)} and {_grown(_RUNGS, '1h', 'model')} >= {SOME}",
        hold="{2m}",
        summary="Model {{ $labels.model }} fails",
        description="{{ $value | humanizePercentage }} of the attempts at model {{ $labels.model }} failed in the "
        "last {5m}.",
        meaning="The provider times out, answers 429 or 5xx, or can't be reached. If it is the cheap model, others "
        "answer at their price; if it is the last rung, users get errors.",
        panel=("providers", "Provider error ratio by model"),
        query="sum by (model, role, error_type) "
        '(increase(tracerouter_attempts_total{error_type=~"timeout|rate_limited|provider_error"}[{10m}]))',
        confine=(
            Change(
                "If the cheap model fails, leave it out: no request waits for it. A tier with a `ladder` of its own "
                "keeps that: change it too. A ladder's only rung counts as `cheap`, so the route mix says little.",
                {"ladder": ["large"]},
            ),
            Change(
                "If the expensive model fails, leave it out: users are still answered. A `start: large` of a task, a "
                "risk or a tier must go too: `policy check` names them, one at a time.",
                {"ladder": ["small"]},
            ),
            Change(
                "If it is a model for embeddings, no other can stand in for it, since vectors of two models can't be "
                "compared. Ask the same model where else it is served.",
                {"models": {"embed": {"base_url": "https://elsewhere.example.com/v1"}}},
                "tracerouter.yaml",
            ),
        ),
        then="`tracerouter trace --last provider_error` (or `timeout`, `rate_limited`): the `chat` or `embeddings` "
        "span has `error.type`, the server's address and the retries. Then the provider's status page.",
        fires=(
            Case(
                "a third of the attempts time out",
                {_attempts("small"): _after_calm(60, 40, 60), _attempts("small", "timeout"): _after_calm(0, 20, 60)},
                {"model": "small"},
            ),
            Case(
                "a model that is asked seldom fails each time",
                {_attempts("small"): _after_calm(60, 60), _attempts("large", "provider_error"): _after_calm(0, 2)},
                {"model": "large"},
                thin=1,
            ),
            Case(
                "a model for embeddings fails",
                {
                    _attempts("small"): _after_calm(60, 60),
                    _attempts("embed"): _after_calm(60, 0),
                    _attempts("embed", "provider_error"): _after_calm(0, 60),
                },
                {"model": "embed"},
            ),
        ),
        silent=(
            Case(
                "it fails those who ask it what a request is",
                {
                    _attempts("small"): _after_calm(60, 60),
                    _attempts("small", "timeout", "classify"): _after_calm(0, 40),
                },
            ),
            Case(
                "a third times out for ten minutes",
                {_attempts("small"): _after_calm(60, 40, 10), _attempts("small", "timeout"): _after_calm(0, 20, 10)},
            ),
            Case(
                "it is over",
                {
                    _attempts("small"): ((60, 180), (20, 30), (60, 10)),
                    _attempts("small", "timeout"): ((0, 180), (40, 30), (0, 10)),
                },
            ),
            Case(
                "one attempt in twenty times out",
                {_attempts("small"): _after_calm(60, 57), _attempts("small", "timeout"): _after_calm(0, 3)},
            ),
            Case(
                "its answers are turned down",
                {_attempts("small"): _after_calm(60, 30), _attempts("small", "schema_invalid"): _after_calm(0, 30)},
            ),
            Case(
                "prompts are too long",
                {_attempts("small"): _after_calm(60, 30), _attempts("small", "context_too_long"): _after_calm(0, 30)},
            ),
        ),
    ),
    Alert(
        name="ProviderLatency",
        severity="ticket",
        expr=f"({_burns('tracerouter:slow_call_ratio', WORKING)} "
        f"unless tracerouter:slow_call_ratio:5m <= {GROWN} * tracerouter:slow_call_ratio:1d) "
        f"and {_grown(f'{_CALLS}_count', '1h', 'gen_ai_request_model')} >= {SOME}",
        hold="{5m}",
        summary="Model {{ $labels.gen_ai_request_model }} is slow",
        description="{{ $value | humanizePercentage }} of the calls of {{ $labels.gen_ai_request_model }} in the "
        "last {5m} took more than 10 s.",
        meaning="Users wait longer than the day before. The label is the provider's name of the model; `models` in "
        "`tracerouter.yaml` has its alias.",
        panel=("providers", "Slow calls by model"),
        query="histogram_quantile(0.95, sum by (le, gen_ai_request_model) "
        "(increase(gen_ai_client_operation_duration_seconds_bucket[{10m}])))",
        confine=(
            Change(
                "Give up sooner: the next rung answers. What was asked is paid for all the same.",
                {"models": {"small": {"timeout": "5s", "retries": 0}}},
                "tracerouter.yaml",
            ),
            Change("Or leave the model out; a tier's own `ladder` too.", {"ladder": ["large"]}),
        ),
        then='`tracerouter trace --last timeout`, and the panel "Call latency by model": its exemplars are the '
        "traces of slow calls. Longer answers, or a slower provider?",
        fires=(
            Case(
                "a third of the calls take longer",
                _calls((58, 2, 180), (40, 20, 60)),
                {"gen_ai_request_model": "gpt-5-nano"},
            ),
        ),
        silent=(
            Case("one call in twenty takes longer", _calls((60, 0, 180), (57, 3, 60))),
            Case("a model that thinks, as the day before", _calls((20, 40, 300))),
            Case("a third takes longer for ten minutes", _calls((60, 0, 180), (40, 20, 10))),
            Case("it is over", _calls((60, 0, 180), (20, 40, 30), (57, 3, 10))),
        ),
    ),
    Alert(
        name="OverheadHigh",
        severity="ticket",
        expr=f"tracerouter:overhead_p95:10m > {OVERHEAD} {_REQUESTS_NOW}",
        hold="{5m}",
        summary="The router itself takes long",
        description="One request in twenty spends {{ $value | humanizeDuration }} or more besides waiting for a "
        "provider.",
        meaning="The time goes into the cache, the classifier, validators or the event loop, not into models. A busy "
        "processor is the usual cause.",
        panel=("telemetry-health", "Overhead"),
        query="histogram_quantile(0.95, sum by (le, stage) "
        "(increase(tracerouter_stage_duration_seconds_bucket[{10m}])))",
        confine=(
            Change(
                "Keep fewer traces. Errors, fallbacks, refusals, slow and dear requests are kept all the same.",
                {"telemetry": {"keep": {"share": 0.01}}},
                "tracerouter.yaml",
            ),
            Command(
                "Start another replica behind the same address. A replica is one process.",
                "tracerouter serve --config tracerouter.yaml --port 8081",
            ),
        ),
        then="`tracerouter trace --last cheap`: which stage is long? A check of your own that waits for the network "
        "shows as `validate`.",
        fires=(Case("one request in ten takes longer", _overheads(54, 6)),),
        silent=(Case("one in a hundred takes longer", _overheads(59.4, 0.6)),),
    ),
    Alert(
        name="TelemetryLoss",
        severity="page",
        expr={
            "traces": f"{_grown('tracerouter_traces_dropped_total', '10m')} / ({_TRACES} >= {SOME}) > {LOST}",
            "logs": _dropped("tracerouter_logs_dropped_total"),
            "rows": _dropped("tracerouter_decisions_dropped_total"),
            "ledger": f"{_grown('tracerouter_ledger_lost_total', '10m')} > 0 {_REQUESTS_NOW}",
            "collector": f"{_together(_NOT_SENT)} / {_together((*_NOT_SENT, *_SENT))} > {LOST} {_REQUESTS_NOW}",
            "sampler": f"{_grown(_TOO_EARLY, '10m')} / ({_grown('tracerouter_traces_kept_total', '10m')} >= {SOME}) "
            f"> {LOST}",
            "down": f'up{{job="tracerouter"}} == 0 {_REQUESTS_TODAY}',
            "absent": f"tracerouter:requests:1d >= {REQUESTS} unless on () tracerouter_traces_dropped_total "
            'unless on () up{job="tracerouter"} == 0',
        },
        hold="{2m}",
        summary="Telemetry gets lost: {{ $labels.sign }}",
        description="{{ $labels.sign }}: {{ $value | humanize }}.",
        meaning="While it fires, other alerts may be silent because they see nothing. Requests are answered as "
        "before. By sign: `traces`, `logs` and `rows` of the decision log were dropped by the router, and `ledger` "
        "entries were not written; the `collector` could not pass on what it had, or its tail `sampler` had no room "
        "for a trace until it was whole; it is `down`; or it is up, and the routers' metrics are `absent`.",
        panel=("telemetry-health", "What gets lost"),
        query='up{job="tracerouter"} or tracerouter_traces_dropped_total or tracerouter_logs_dropped_total '
        "or tracerouter_decisions_dropped_total or tracerouter_ledger_lost_total "
        "or otelcol_exporter_send_failed_spans_total or otelcol_exporter_enqueue_failed_spans_total",
        confine=(
            Change(
                "`traces`, `logs`: send less. Errors, fallbacks, refusals, slow and dear requests are kept all the "
                "same.",
                {"telemetry": {"keep": {"share": 0.01}}},
                "tracerouter.yaml",
            ),
            Command(
                "`collector`, `down`, `absent`: look whether it runs and reaches its backends; restart it.",
                "docker compose --file collector/compose.yaml restart collector",
            ),
        ),
        then="`tracerouter trace --last failed` still works: the decision log is in the store and needs no "
        "collector. The reason `queue_full` says that more comes than can be sent, `export_failed` that the "
        "collector does not take it. `rows` and `ledger` are about that store: is its disk full or slow? The router's "
        "log says why.",
        fires=(
            Case(
                "no trace reaches the collector",
                _NONE_LOST | {'tracerouter_traces_dropped_total{reason="export_failed"}': _after_calm(0, 6)},
                {"sign": "traces"},
            ),
            Case(
                "a third of the log records are dropped",
                _NONE_LOST | {'tracerouter_logs_dropped_total{reason="queue_full"}': _after_calm(0, 20)},
                {"sign": "logs"},
            ),
            Case(
                "a third of the rows are dropped",
                _NONE_LOST | {'tracerouter_decisions_dropped_total{reason="queue_full"}': _after_calm(0, 20)},
                {"sign": "rows"},
            ),
            Case(
                "an entry of the ledger is lost now and then",
                _NONE_LOST | {'tracerouter_ledger_lost_total{reason="queue_full"}': _after_calm(0, 0.5)},
                {"sign": "ledger"},
            ),
            Case(
                "the collector can't reach where traces go",
                _NONE_LOST
                | {
                    'otelcol_exporter_sent_spans_total{exporter="otlp_http/traces"}': _after_calm(40, 0),
                    'otelcol_exporter_send_failed_spans_total{exporter="otlp_http/traces"}': _after_calm(0, 40),
                },
                {"sign": "collector", "exporter": "otlp_http/traces"},
            ),
            Case(
                "where traces go is slow, and the collector's queue full",
                _NONE_LOST
                | {'otelcol_exporter_enqueue_failed_spans_total{exporter="otlp_http/traces"}': _after_calm(0, 20)},
                {"sign": "collector", "exporter": "otlp_http/traces"},
            ),
            Case(
                "traces are dropped before they are whole",
                _NONE_LOST | {_TOO_EARLY: _after_calm(0, 2)},
                {"sign": "sampler"},
            ),
            Case(
                "the collector is down",
                {_requests("cheap"): ((60, 180),)} | _up((0, 179), (-1, 1), (0, 9)),
                {"sign": "down", "instance": "collector:8889", "job": "tracerouter"},
            ),
            Case(
                "the routers say nothing more",
                {_requests("cheap"): ((60, 180),)} | _up((0, 199)),
                {"sign": "absent"},
            ),
        ),
        silent=(
            Case("nothing is lost", _NONE_LOST),
            Case(
                "one log record in a hundred is dropped",
                _NONE_LOST | {'tracerouter_logs_dropped_total{reason="queue_full"}': _after_calm(0, 0.6)},
            ),
            Case("nobody asks anything", _NONE_LOST | {_requests("cheap"): _after_calm(60, 0)}),
            Case(
                "one trace in a hundred is dropped before it is whole", _NONE_LOST | {_TOO_EARLY: _after_calm(0, 0.06)}
            ),
            Case("one trace of the few that are kept", _NONE_LOST | _ONE_TRACE_LOST),
            Case(
                "a new process that has not been asked anything yet, after a day of requests",
                {
                    f"{_requests('cheap')}": ((60, 180),),
                    'tracerouter_traces_dropped_total{reason="queue_full"}': ((0, 200),),
                }
                | _up((0, 199)),
            ),
        ),
    ),
    Alert(
        name="BudgetExhaustion",
        severity="ticket",
        expr={
            "nearly_used_up": "(1 - max by (tenant, period) (tracerouter_budget_remaining) "
            f"/ (max by (tenant, period) (tracerouter_budget_limit) >= {USD})) > {NEARLY}",
            "refused": f"{_grown(_REFUSED_BY_LIMIT, '10m', 'scope')} "
            f"/ on () group_left () tracerouter:requests:10m > {LIMITED} {_REQUESTS_NOW}",
        },
        hold="{10m}",
        summary="Limits on spend are reached: {{ $labels.sign }}",
        description="{{ $labels.sign }}: {{ $value | humanizePercentage }}{{ with $labels.tenant }} of the budget of "
        "tenant {{ . }}{{ end }}{{ with $labels.period }} for the {{ . }}{{ end }}{{ with $labels.scope }} of all "
        "requests, by the limit {{ . }}{{ end }}.",
        meaning="A tenant has less than a tenth of its budget left (`nearly_used_up`), or one limit refuses more than "
        "one request in twenty (`refused`): those users get the status 429. Policy wants it so; whether it is a "
        "runaway job or growth is for a person to say. It ends by itself with the day or month.",
        panel=("cost-tenants", "Used and refused"),
        query="sum by (scope, action) (increase(tracerouter_quota_decisions_total[{1h}]))",
        confine=(
            Change(
                "If the spend is wanted, raise the limit. `quotas` is a list: leave the other ones in it.",
                {"quotas": [{"per": "tenant", "limit": "500 USD/month", "then": ["downgrade", "stale", "refuse"]}]},
            ),
            Change(
                "Or limit the expensive models alone, so that cheap answers go on.",
                {
                    "quotas": [
                        {
                            "per": "tenant",
                            "role": "expensive",
                            "limit": "50 USD/month",
                            "then": ["downgrade", "stale", "refuse"],
                            "fallback": "accept",
                        }
                    ]
                },
            ),
            Command(
                "If it is not wanted, see which user or team it is, and withdraw its key.",
                "tracerouter quota --config tracerouter.yaml --tenant acme --user ann",
            ),
        ),
        then="`tracerouter trace --last budget_exhausted`: the `quota` span names the limit, what it had left and each "
        'action that was tried. CostBurnTenant at the same time: a runaway job. The panel "Calls that cost more than '
        'was held" above zero: a limit can be passed by those.',
        fires=(
            Case(
                "a tenant has used 95 of 100 USD",
                _budget(100, 5),
                {"sign": "nearly_used_up", "tenant": "acme", "period": "month"},
            ),
            Case(
                "a tenant has used all",
                _budget(100, 0) | _budget(100, 60, "globex"),
                {"sign": "nearly_used_up", "tenant": "acme", "period": "month"},
            ),
            Case(
                "a limit refuses one request in ten",
                _limited("refuse", 6),
                {"sign": "refused", "scope": "user 20 requests/day"},
            ),
        ),
        silent=(
            Case("a tenant has used 85 of 100 USD", _budget(100, 15)),
            Case("a limit refuses one request in fifty", _limited("refuse", 1.2)),
            Case("a limit refuses one request in ten for five minutes", _limited("refuse", 6, 5)),
            Case("a limit sends one request in ten to the cheap model", _limited("downgrade", 6)),
            Case("no limit can be checked", _limited("refuse", 30, scope="ledger")),
        ),
    ),
    Alert(
        name="ReviewBacklog",
        severity="ticket",
        expr={
            "depth": f"max by (queue) (min_over_time(tracerouter_review_depth[{{30m}}])) >= {WAITING}",
            "age": f"max by (queue) (tracerouter_review_oldest_age_seconds) > {OLD} "
            "and max by (queue) (tracerouter_review_depth) >= 1",
        },
        hold="{10m}",
        summary="Requests wait too long for a person: {{ $labels.sign }}",
        description="{{ $labels.sign }}: {{ $value | humanize }}.",
        meaning="More requests go to review than reviewers decide on (`depth`), or one is forgotten (`age`, in "
        "seconds). Callers wait for their answers; what nobody decides on expires, and then they get none.",
        panel=("route-mix", "Reviews waiting"),
        query='sum by (task) (increase(tracerouter_requests_total{route="review"}[{30m}]))',
        confine=(
            Command(
                "Decide, the oldest first, which the list has at its end: `claim`, then `approve`, `edit` or `reject`.",
                "tracerouter review list --config tracerouter.yaml",
            ),
            Change(
                "If a model's answer may go out once validators have accepted it, let people see only what no model "
                "could answer. It holds for new requests; those that wait have still to be decided on.",
                {"risks": {"legal": {"review": "after_ladder"}}},
            ),
        ),
        then="`tracerouter trace --last in_review`: its reason tells what sends it there. `risk`: what was found, as "
        "`risk` events on the `classify` span. `forced_task`: the task's own `review`. `low_confidence`, `abstained`: "
        "`review.low_confidence`, so see ClassifierDrift. Another one: every rung failed, see RequestsFailing.",
        fires=(
            Case("one more waits each minute", {_DEPTH: ((0, 180), (1, 90))}, {"sign": "depth", "queue": "review"}),
            Case(
                "one is forgotten for thirteen hours",
                {_AGE: ((60, 780),), _DEPTH: ((0, 1), (1, 1), (0, 778))},
                {"sign": "age", "queue": "review"},
                thin=1,
            ),
        ),
        silent=(
            Case("ten wait", {_DEPTH: ((0, 180), (10, 1), (0, 60))}),
            Case("fifty come together, and are decided on", {_DEPTH: ((0, 180), (50, 1), (0, 25), (-2, 25))}),
            Case("the oldest has waited for three hours", {_AGE: ((60, 180),), _DEPTH: ((1, 1), (0, 179))}),
            Case("nothing waits", {_DEPTH: ((0, 240),), _AGE: ((0, 240),)}),
        ),
    ),
    Alert(
        name="LedgerUnavailable",
        severity="page",
        expr=f"sum(1 - tracerouter_ledger_available) > 0 {_REQUESTS_NOW}",
        hold="{1m}",
        summary="Limits can't be checked",
        description="{{ $value | humanize }} processes do not reach the ledger, or wait until it is rebuilt.",
        meaning="The ledger's store does not answer, or has lost its state and is being rebuilt from the replicas' "
        "journals, which takes seconds. Requests go on; those that policy keeps closed meanwhile "
        "(`without_ledger.closed`, by default the expensive ones) are served by a cheaper model, from the cache, or "
        "not at all, with the reason `ledger_unavailable`. What is spent is written down, and booked when the store "
        "is back: nothing has to be repaired by hand.",
        panel=("telemetry-health", "Processes that can't check limits"),
        query="tracerouter_ledger_available or tracerouter_ledger_waiting",
        confine=(
            Change(
                "Users need the expensive model more than you need its limits: serve it unchecked until the store is "
                "back.",
                {"without_ledger": {"closed": []}},
            ),
            Command(
                "Look whether Redis runs, and restart it. It may come back empty.",
                "docker compose --file collector/compose.yaml restart redis",
            ),
        ),
        then="The router's log names the store and the kind of error: `TimeoutError` is a Redis that hangs or is out "
        "of CPU, `OOM` one that is full, `READONLY` a replica that is no primary. `{instance}` tells whether it is one "
        "process or all. If the state is lost again and again, Redis evicts keys: set `maxmemory-policy noeviction`.",
        fires=(
            Case(
                "one of two processes does not reach it",
                _STEADY
                | {
                    'tracerouter_ledger_available{instance="a"}': ((1, 1), (0, 199), (-1, 1), (0, 9)),
                    'tracerouter_ledger_available{instance="b"}': ((1, 1), (0, 209)),
                },
            ),
        ),
        silent=(
            Case("all of them do", _STEADY | {"tracerouter_ledger_available": ((1, 1), (0, 209))}),
            Case(
                "Redis was restarted",
                _STEADY | {"tracerouter_ledger_available": ((1, 1), (0, 206), (-1, 1), (1, 1), (0, 1))},
            ),
        ),
    ),
)
