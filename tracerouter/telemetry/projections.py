"""Everything that is told of a request, projected from its Record: read this module as a table.

========================  =====================================================================================
:data:`FIELDS`            the facts: name in the row and the log record, and where else each is told
:data:`SPAN_ATTRIBUTES`   the attributes of each kind of span, with their types
:func:`spans`             Record -> OpenTelemetry spans
:func:`measure`           Record -> metrics
:func:`log_record`        Record -> one OpenTelemetry log record
:func:`row`               Record -> one row of the decision log
:func:`headers`           Record -> response headers
:func:`facts`             Record -> the ``tracerouter`` object in an answer's body
========================  =====================================================================================
"""

from __future__ import annotations

from math import ceil
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from tracerouter.telemetry import names
from tracerouter.telemetry.metrics import TraceRef
from tracerouter.types import NANOS, usd

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from tracerouter.telemetry.metrics import Instruments
    from tracerouter.telemetry.record import Record, Tried
    from tracerouter.telemetry.timeline import Note, Timeline


class Field(NamedTuple):
    """One fact of a request, and every place where it is told."""

    name: str
    """In the decision log's row, which is the body of the log record too."""
    type: type
    span: str | None = None
    """The attribute of the ``route`` span, and of the log record for what logs are searched by."""
    header: str | None = None
    """The response header, after ``x-tracerouter-`` where it is not a standard one."""
    fact: str | None = None
    """The key in the answer's ``tracerouter`` object."""
    read: Callable[[Record], Any] | None = None
    """How it is read, where it is not the Record's attribute of this name."""


FIELDS: Final = (
    Field("trace_id", str, fact="trace_id"),
    Field("span_id", str),
    Field("request_id", str, names.REQUEST_ID, "x-request-id", "request_id"),
    Field("tenant", str, names.TENANT),
    Field("team", str),
    Field("user", str),
    Field("task", str, names.LABEL, fact="task"),
    Field("confidence", float, names.CONFIDENCE, fact="confidence"),
    Field("threshold", float, names.THRESHOLD),
    Field("risks", tuple, names.RISKS, read=lambda r: r.risks or None),
    Field("classifier", str, names.CLASSIFIER),
    Field("route", str, names.ROUTE, "route", "route"),
    Field("outcome", str, names.OUTCOME, fact="outcome"),
    Field("reason", str, names.REASON, "reason", "reason"),
    Field("policy", str, names.POLICY, "policy", "policy"),
    Field("arm", str, names.ARM),
    Field("requested_model", str),
    Field("served_model", str, header="model", fact="model"),
    Field("provider", str),
    Field("prompt_hash", str, names.PROMPT_HASH),
    Field("prompt_tokens", int, names.TOKENS_INPUT),
    Field("completion_tokens", int, names.TOKENS_OUTPUT),
    Field("cached_tokens", int),
    Field("cost", float, names.COST, "cost", "cost", read=lambda r: _usd(r.cost_nanos)),
    Field("cost_source", str, names.COST_SOURCE, fact="cost_source"),
    Field("baseline_cost", float, names.COST_BASELINE, fact="baseline_cost", read=lambda r: _usd(r.baseline_nanos)),
    Field("latency_ms", float),
    Field("overhead_ms", float),
    Field("first_token_ms", float),
    Field("cache_key_hash", str),
    Field("cache_status", str, names.CACHE_STATUS, "cache", "cache"),
    Field("validation_status", str, names.VALIDATION_STATUS),
    Field("validation_failures", tuple, names.VALIDATION_FAILURES, read=lambda r: r.validation_failures or None),
    Field("fallback_from", str, names.FALLBACK_FROM),
    Field("fallback_to", str, names.FALLBACK_TO),
    Field("fallback_reason", str, names.FALLBACK_REASON),
    Field("quota_scope", str, names.QUOTA_SCOPE, fact="quota_scope"),
    Field("quota_headroom", float, names.QUOTA_HEADROOM),
    Field("quota_action", str, names.QUOTA_ACTION, fact="quota_action"),
    Field("confirmed", tuple, names.QUOTA_CONFIRMED, fact="confirmed", read=lambda r: r.confirmed or None),
    Field("job", str, names.JOB, fact="job"),
    Field("budget_remaining", str, header="budget-remaining", fact="budget_remaining"),
    Field("turns_dropped", int, fact="turns_dropped", read=lambda r: r.turns_dropped or None),
    Field("unvalidated", bool, fact="unvalidated", read=lambda r: r.unvalidated or None),
    Field("cache_age", float, fact="cache_age"),
    Field("attempt_count", int, names.ATTEMPTS, "attempts", "attempts", read=lambda r: len(r.attempts)),
    Field("attempts", tuple, read=lambda r: tuple(tried.told() for tried in r.attempts) or None),
    Field("classifier_calls", tuple, read=lambda r: tuple(call.told() for call in r.classifier_calls) or None),
    Field("review_id", str, names.REVIEW_ID),
    Field("error_type", str, names.ERROR_TYPE),
    Field("prompt", str),
    Field("answer", str),
)

_STAGE: Final = {
    names.TOKENS_INPUT: int,
    names.TOKENS_OUTPUT: int,
    names.COST: float,
    names.LATENCY: float,
    names.ERROR_TYPE: str,
}
_RUNG: Final = {names.COST_SOURCE: str, names.RESERVED: float}
"""Of the stages that ask a model."""

SPAN_ATTRIBUTES: Final[dict[str, dict[str, type]]] = {
    "server": {
        names.HTTP_METHOD: str, names.HTTP_ROUTE: str, names.HTTP_STATUS: int, names.URL_PATH: str,
        names.URL_SCHEME: str, names.SERVER_ADDRESS: str, names.SERVER_PORT: int, names.ERROR_TYPE: str,
        names.REQUEST_ID: str, names.KEEP: str,
    },
    "route": _STAGE | {names.KEEP: str} | {f.span: f.type for f in FIELDS if f.span},
    "cache": _STAGE | {
        names.CACHE_LAYER: str, names.CACHE_STATUS: str, names.CACHE_KEY_HASH: str, names.CACHE_AGE: float,
        names.CACHE_WAITED: float,
    },
    "classify": _STAGE | {
        names.COST_SOURCE: str,
        names.LABEL: str, names.CONFIDENCE: float, names.RISKS: tuple, names.CLASSIFIER: str,
        names.CLASSIFIER_VERSION: str, names.CLASSIFIER_CACHED: bool,
    },
    "cheap": _STAGE | _RUNG,
    "expensive": _STAGE | _RUNG,
    "fallback": _STAGE | _RUNG | {
        names.FALLBACK_FROM: str, names.FALLBACK_TO: str, names.FALLBACK_REASON: str,
    },
    "quota": _STAGE | {names.QUOTA_SCOPE: str, names.QUOTA_HEADROOM: float, names.QUOTA_ACTION: str},
    "review": _STAGE | {
        names.REVIEW_ID: str, names.REVIEW_ACTION: str, names.REVIEWER: str, names.REVIEW_WAIT: float, names.KEEP: str,
    },
    "validate": _STAGE | {names.VALIDATION_STATUS: str, names.VALIDATION_FAILURES: tuple},
    "chat": {
        names.GEN_AI_OPERATION: str, names.GEN_AI_PROVIDER: str, names.GEN_AI_REQUEST_MODEL: str,
        names.GEN_AI_RESPONSE_ID: str, names.GEN_AI_RESPONSE_MODEL: str, names.GEN_AI_FINISH_REASONS: tuple,
        names.GEN_AI_FIRST_CHUNK: float, names.GEN_AI_INPUT_TOKENS: int, names.GEN_AI_OUTPUT_TOKENS: int,
        names.GEN_AI_CACHED_TOKENS: int, names.GEN_AI_CACHE_WRITE_TOKENS: int, names.GEN_AI_REASONING_TOKENS: int,
        names.ERROR_TYPE: str,
        names.SERVER_ADDRESS: str, names.SERVER_PORT: int, names.COST: float, names.COST_SOURCE: str,
        names.GEN_AI_INPUT_MESSAGES: str, names.GEN_AI_OUTPUT_MESSAGES: str,
    },
    "embeddings": {
        names.GEN_AI_OPERATION: str, names.GEN_AI_PROVIDER: str, names.GEN_AI_REQUEST_MODEL: str,
        names.GEN_AI_RESPONSE_MODEL: str, names.GEN_AI_INPUT_TOKENS: int, names.GEN_AI_OUTPUT_TOKENS: int,
        names.GEN_AI_CACHED_TOKENS: int, names.GEN_AI_CACHE_WRITE_TOKENS: int, names.GEN_AI_REASONING_TOKENS: int,
        names.ERROR_TYPE: str,
        names.SERVER_ADDRESS: str, names.SERVER_PORT: int, names.COST: float, names.COST_SOURCE: str,
    },
}  # fmt: skip
"""By the first word of the span's name; ``server`` for the span of the HTTP request itself."""

_OK: Final = Status()
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_PLAIN: Final = tuple(f.name for f in FIELDS if f.read is None)
_read_plain: Final = attrgetter(*_PLAIN)
_COMPUTED: Final = tuple((f.name, f.read) for f in FIELDS if f.read is not None)
_SEARCHED_BY: Final = frozenset({"request_id", "tenant", "task", "route", "outcome", "reason", "policy", "error_type"})
_ROUTE_SPAN: Final = tuple((f.span, f.name) for f in FIELDS if f.span)
_LOG_ATTRIBUTES: Final = tuple((f.span, f.name) for f in FIELDS if f.span and f.name in _SEARCHED_BY)
_FACTS: Final = tuple((f.fact, f.name) for f in FIELDS if f.fact)
_HEADERS: Final = tuple(
    (f.header if f.header == "x-request-id" else f"x-tracerouter-{f.header}", f.name) for f in FIELDS if f.header
)

_MONEY: Final = frozenset({"cost", "baseline_cost"})

Row = dict[str, Any]
"""A request's row of the decision log; all that is told flat is taken from it."""


def row(record: Record) -> Row:
    """Make the request's row of the decision log. What is unknown is left out."""
    told: Row = {"time": record.time, "severity": "INFO" if record.error_type is None else "WARN"}
    told.update((name, value) for name, value in zip(_PLAIN, _read_plain(record), strict=True) if value is not None)
    told.update((name, value) for name, read in _COMPUTED if (value := read(record)) is not None)
    return told


def spans(record: Record, told: Row, keep: str, resource: Resource, scope: InstrumentationScope) -> list[ReadableSpan]:
    """Make the trace's spans, each after its children. `keep` is why they are kept."""
    timeline = record.timeline
    identities = {note.span_id: _identity(timeline, note) for note in timeline.notes}
    made = []
    for note in reversed(timeline.notes):
        parent = identities.get(note.parent_id, timeline.parent) if note.parent_id else None
        attributes = _attributes(note)
        if note is timeline.root:
            attributes = {**attributes, names.KEEP: keep, **_named(_ROUTE_SPAN, told)}
        made.append(_span(note, identities[note.span_id], parent, attributes, resource, scope))
    return made


def only_span(timeline: Timeline, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """Make the span of the only note of a timeline: of an HTTP request itself, or of a review's decision."""
    note = timeline.root
    return _span(note, _identity(timeline, note), timeline.parent, _attributes(note), resource, scope)


def measure(record: Record, keep: str | None, instruments: Instruments, tasks: Collection[str]) -> None:
    """Count the request in every metric. Labels that are not in `tasks` count as ``other``."""
    task = record.task if record.task is None or record.task in tasks else "other"
    if keep is not None:
        instruments.traces_kept.add(1, keep)
    _measure_request(record, task, keep, instruments)
    _measure_stages(record, keep, instruments)
    _measure_attempts(record, task, instruments)


def _measure_request(record: Record, task: str | None, keep: str | None, m: Instruments) -> None:
    seen_in = TraceRef(record.timeline.trace_id, record.timeline.root.span_id) if keep else None
    m.requests.add(1, record.route, record.outcome, task, record.arm)
    m.duration.record(record.latency_ms / 1e3, record.route, record.outcome, record.arm, seen_in=seen_in)
    m.overhead.record(record.overhead_ms / 1e3, record.route, seen_in=seen_in)
    for layer, result in record.cache_looked:
        m.cache.add(1, layer, result)
    if record.classifier is not None:
        m.classifications.add(1, task, record.classifier, not record.confidence)
        if record.confidence:
            m.confidence.record(record.confidence, task, seen_in=seen_in)


def _measure_stages(record: Record, keep: str | None, m: Instruments) -> None:
    for note in record.timeline.notes[1:]:
        seen_in = TraceRef(record.timeline.trace_id, note.span_id) if keep else None
        if note.kind is SpanKind.CLIENT:
            called = (note.attributes[name] for name in m.operation.attributes[:-1])
            m.operation.record(note.latency, *called, note.error_type, seen_in=seen_in)
        else:
            m.stage_duration.record(note.latency, note.name, note.error_type, seen_in=seen_in)
    for validator, status in record.checks:
        m.validations.add(1, validator, status, record.arm)
    for scope, action in record.limits_reached:
        m.quota_decisions.add(1, scope, action)
    for scope in record.confirmed:
        m.quota_decisions.add(1, scope, "confirmed")
    if record.underreserved:
        m.quota_decisions.add(record.underreserved, None, "underreserved")


def _measure_attempts(record: Record, task: str | None, m: Instruments) -> None:
    for called in (*record.classifier_calls, *record.attempts):
        m.tokens.add(called.input_tokens, called.model, "input")
        m.tokens.add(called.output_tokens, called.model, "output")
        if called.cost_nanos is not None:
            m.cost.add(called.cost_nanos, called.model, called.role, task, called.cost_source, record.arm)
        m.attempts.add(1, called.model, called.role, called.failure)
    before: Tried | None = None
    for tried in record.attempts:
        if before is not None:
            m.fallbacks.add(1, before.model, tried.model, before.failure, task, record.arm)
        before = tried
    if record.baseline_nanos:
        answered = (before.model, before.role) if before else (None, record.route)
        source = before.cost_source if before else record.cost_source
        m.baseline.add(record.baseline_nanos, *answered, task, source, record.arm)


def log_record(record: Record, told: Row) -> LogRecord:
    """Make the request's one log record (``event.name`` = ``tracerouter.decision``).

    Its body is the row of the decision log; its attributes are what logs are searched by.
    """
    root = record.timeline.root
    return LogRecord(
        timestamp=root.end_ns,
        observed_timestamp=root.end_ns,
        context=set_span_in_context(NonRecordingSpan(root.span_context)),
        severity_number=SeverityNumber.INFO if record.error_type is None else SeverityNumber.WARN,
        severity_text=told["severity"],
        body=told,
        attributes=_named(_LOG_ATTRIBUTES, told),
        event_name=names.DECISION_EVENT,
    )


def timeline_rows(record: Record) -> list[dict[str, Any]]:
    """Make the kept trace's stages as plain rows, for ``tracerouter trace``; times in ms from its start."""
    root = record.timeline.root
    return [
        {
            "name": note.name,
            "span_id": f"{note.span_id:016x}",
            "parent_id": f"{note.parent_id:016x}" if note.parent_id else None,
            "start_ms": (note.start_ns - root.start_ns) / 1e6,
            "duration_ms": note.latency * 1e3,
            "attributes": _attributes(note),
            **({"status_message": note.status_message} if note.status_message else {}),
            **({"links": [f"{link.trace_id:032x}" for link in note.links]} if note.links else {}),
            "events": [
                {"name": name, "at_ms": (at_ns - root.start_ns) / 1e6, **details}
                for name, at_ns, details in note.events
            ],
        }
        for note in record.timeline.notes
    ]


def headers(record: Record, told: Row) -> dict[str, str]:
    """Make the response headers. Money is fixed-point, in USD."""
    made = {header: str(told[name]) for header, name in _HEADERS if name in told}
    made["traceparent"] = record.timeline.root.traceparent
    if record.cost_nanos is not None:
        made["x-tracerouter-cost"] = usd(record.cost_nanos)
    for unit in ("requests", "tokens"):
        of_unit = [one for one in record.standings if one.limit.unit == unit]
        if of_unit:  # OpenAI's names; of several the one that is nearest
            limit, left, reset = min(of_unit, key=lambda one: one.left / one.limit.amount)
            made[f"x-ratelimit-limit-{unit}"] = str(limit.amount)
            made[f"x-ratelimit-remaining-{unit}"] = str(left)
            made[f"x-ratelimit-reset-{unit}"] = _duration(reset)
    return made


def facts(told: Row) -> dict[str, Any]:
    """Make the ``tracerouter`` object that an answer's body carries. Money is fixed-point, in USD."""
    made = _named(_FACTS, told)
    for name in _MONEY & made.keys():
        made[name] = usd(round(made[name] * NANOS))
    return made


def _named(pairs: tuple[tuple[str, str], ...], told: Row) -> dict[str, Any]:
    return {new: told[name] for new, name in pairs if name in told}


def _identity(timeline: Timeline, note: Note) -> SpanContext:
    return SpanContext(
        timeline.trace_id, note.span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=timeline.state
    )


def _attributes(note: Note) -> dict[str, Any]:
    """Return a note's attributes with those that every span of its kind carries."""
    if note.told is None:
        note.told = {**note.attributes, **_common(note)}
    return note.told


def _common(note: Note) -> dict[str, Any]:
    told: dict[str, Any] = {} if note.error_type is None else {names.ERROR_TYPE: note.error_type}
    if note.kind is SpanKind.SERVER:
        return told
    if note.kind is SpanKind.CLIENT:
        if note.usage is not None:
            told[names.GEN_AI_INPUT_TOKENS] = note.usage.input
            told[names.GEN_AI_OUTPUT_TOKENS] = note.usage.output
            told[names.GEN_AI_CACHED_TOKENS] = note.usage.cached
            told[names.GEN_AI_CACHE_WRITE_TOKENS] = note.usage.cache_write
            told[names.GEN_AI_REASONING_TOKENS] = note.usage.reasoning
    else:
        told[names.TOKENS_INPUT] = note.usage.input if note.usage else 0
        told[names.TOKENS_OUTPUT] = note.usage.output if note.usage else 0
        told[names.LATENCY] = note.latency
    if note.cost_nanos is not None:
        told[names.COST] = note.cost_nanos / NANOS
    return told


def _span(  # noqa: PLR0913 - what a span is made of
    note: Note,
    identity: SpanContext,
    parent: SpanContext | None,
    attributes: dict[str, Any],
    resource: Resource,
    scope: InstrumentationScope,
) -> ReadableSpan:
    return ReadableSpan(
        name=note.name,
        context=identity,
        parent=parent,
        resource=resource,
        attributes=attributes,
        links=[Link(context) for context in note.links],
        events=[Event(name, details, at_ns) for name, at_ns, details in note.events],
        kind=note.kind,
        status=Status(StatusCode.ERROR, note.status_message) if note.error_type else _OK,
        start_time=note.start_ns,
        end_time=note.end_ns,
        instrumentation_scope=scope,
    )


def _duration(seconds: float) -> str:
    """Write seconds as OpenAI does: ``12ms``, ``1.5s``, ``6m0s``."""
    if seconds < 1:
        return f"{ceil(seconds * 1e3)}ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.3g}s"
    minutes, rest = divmod(ceil(seconds), 60)
    return f"{minutes}m{rest}s"


def _usd(nanos: int | None) -> float | None:
    return None if nanos is None else nanos / NANOS
