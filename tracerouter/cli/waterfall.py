"""One request as text: its stages as a waterfall, with reasons, tokens and cost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tracerouter.telemetry import names
from tracerouter.types import NANOS, Role, usd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_BAR: Final = 28
"""Columns of the time axis."""
_RUNGS: Final = frozenset(role.value for role in Role if role is not Role.CLASSIFY)
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def render(row: Mapping[str, Any], timeline: Sequence[Mapping[str, Any]] | None) -> str:
    """Draw one request.

    Args:
        row: Its row of the decision log.
        timeline: Its stages; None where its trace was not kept.
    """
    lines = list(_heading(row))
    if timeline is None:
        cache = row.get("cache_status", "not asked")
        lines += ["", f"its trace was not kept; cache {cache}, overhead {row['overhead_ms']:.1f} ms"]
        asked = [*(row.get("classifier_calls") or ()), *(row.get("attempts") or ())]
        lines += [f"  {tried['role']} {tried['model']}: {_attempt(tried)}" for tried in asked]
    else:
        lines += ["", *_stages(row, timeline)]
    return "\n".join(lines)


def _heading(row: Mapping[str, Any]) -> Iterator[str]:
    how = row["outcome"] if row["route"] in {row["outcome"], "failed"} else f"{row['outcome']} by {row['route']}"
    why = row["reason"]
    if row.get("fallback_from"):
        why += f"; {row['fallback_from']} → {row['fallback_to']}: {row['fallback_reason']}"
    yield f"{how}: {why}"
    cost = f"{_usd(row['cost'])} ({row['cost_source']})" if "cost" in row else "unknown"
    if row.get("baseline_cost"):
        cost += f"; always-expensive {_usd(row['baseline_cost'])}"
    yield f"cost {cost}"
    label = row.get("task") or "not classified"
    if "confidence" in row:
        label += f" {row['confidence']:.2f}, threshold {row.get('threshold', 0):.2f}, by {row.get('classifier')}"
    who = ", ".join(f"{name} {row[name]}" for name in ("tenant", "team", "user") if name in row)
    yield f"task {label}; {who}; policy {row['policy']}"
    when = datetime.fromtimestamp(row["time"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield f"at {when}; prompt {row['prompt_hash']}; request {row['request_id']}; trace {row['trace_id']}"


def _stages(row: Mapping[str, Any], timeline: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    whole = max(float(timeline[0]["duration_ms"]), 0.001)
    drawn = list(_tree(timeline, timeline[0]["span_id"], ""))
    models = iter([tried["model"] for tried in row.get("attempts") or ()])
    told = []
    for branch, note in [("", timeline[0]), *drawn]:
        alias = f" {next(models, '')}" if note["name"] in _RUNGS else ""
        told.append((f"{branch}{note['name']}{alias}", note))
    width = max(len(name) for name, _ in told)
    for name, note in told:
        bar = _bar(float(note["start_ms"]) / whole, float(note["duration_ms"]) / whole)
        yield f"{name:<{width}} {bar} {note['duration_ms']:>9.1f} ms  {_detail(note)}".rstrip()


def _tree(timeline: Sequence[Mapping[str, Any]], parent: str, margin: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    children = [note for note in timeline if note["parent_id"] == parent]
    for note in children:
        last = note is children[-1]
        yield margin + ("└ " if last else "├ "), note
        yield from _tree(timeline, note["span_id"], margin + ("  " if last else "│ "))


def _bar(start: float, share: float) -> str:
    before = min(round(start * _BAR * 8), _BAR * 8 - 1)
    length = max(1, min(round(share * _BAR * 8), _BAR * 8 - before))
    full, rest = divmod(length, 8)
    return f"{' ' * (before // 8)}{'█' * full}{_EIGHTHS[rest].strip()}"[:_BAR].ljust(_BAR)


def _detail(note: Mapping[str, Any]) -> str:
    told = note["attributes"]
    parts = []
    if names.CACHE_STATUS in told and note["name"] == "cache":
        parts.append(told[names.CACHE_STATUS])
        parts += [f"waited for trace {one}" for one in note.get("links", ())]
    if note["name"] == "classify" and names.LABEL in told:  # the caller may have left before there was one
        parts.append(f"{told[names.LABEL]} {told[names.CONFIDENCE]:.2f}")
        parts += [f"risks {', '.join(told[names.RISKS])}"] if names.RISKS in told else []
        parts += [
            f"{', '.join(event[names.RISKS])} by {', '.join(event['evidence'])}"
            for event in note["events"]
            if event["name"] == names.RISK_EVENT
        ]
    if names.FALLBACK_REASON in told and note["name"] == "fallback":
        parts.append(f"{told[names.FALLBACK_FROM]} → {told[names.FALLBACK_TO]}: {told[names.FALLBACK_REASON]}")
    if names.REVIEW_ID in told and note["name"] == "review":
        parts.append(told[names.REVIEW_ID])
    if note["name"] == "validate":
        parts.append(told[names.VALIDATION_STATUS])
        parts += told.get(names.VALIDATION_FAILURES, ())
    used_in = told.get(names.GEN_AI_INPUT_TOKENS, 0)
    used_out = told.get(names.GEN_AI_OUTPUT_TOKENS, 0)
    if used_in or used_out:
        parts.append(
            f"{used_in} in, {used_out} out, {_usd(told[names.COST]) if names.COST in told else 'cost unknown'}"
        )
    if names.ERROR_TYPE in told:
        said = note.get("status_message")
        parts.append(f"ERROR {told[names.ERROR_TYPE]}{f' ({said})' if said else ''}")
    parts += [_event(event) for event in note["events"] if event["name"] != names.RISK_EVENT]
    return "; ".join(parts)


def _event(event: Mapping[str, Any]) -> str:
    if event["name"] == names.CHECK_EVENT:
        return f"{event[names.VALIDATOR]} {event[names.VALIDATION_STATUS]} {event[names.LATENCY] * 1e3:.1f} ms"
    return f"{event['name']} at {event['at_ms']:.0f} ms ({event.get(names.ERROR_TYPE)})"


def _attempt(tried: Mapping[str, Any]) -> str:
    cost = _usd(tried["cost"]) if "cost" in tried else "cost unknown"
    return f"{tried.get('failure', 'accepted')}, {tried['latency_ms']:.0f} ms, {cost}"


def _usd(amount: float) -> str:
    return f"${usd(round(amount * NANOS))}"
