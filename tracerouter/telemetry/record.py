"""The one account of a finished request; everything told to the outside is a projection of it.

A :class:`Draft` gathers what the path of the request finds out; :class:`Record` is built of it once, at the end.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from opentelemetry.trace import SpanKind

from tracerouter.errors import BadRequest, CallerGone
from tracerouter.telemetry import names
from tracerouter.telemetry.timeline import Timeline, fresh_id
from tracerouter.types import (
    NANOS,
    Attempt,
    Classification,
    Completion,
    Decision,
    Hit,
    Outcome,
    Reason,
    Role,
    Source,
    Status,
    Task,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tracerouter.telemetry.timeline import Note
    from tracerouter.types import Confirmation, Confirmed, Denied, Job, Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One attempt, or one classifier's call of a model, as the record tells it."""

    model: str
    role: str
    latency_ms: float
    input_tokens: int
    output_tokens: int
    cost_nanos: int | None
    cost_source: str
    failure: str | None

    def told(self) -> dict[str, Any]:
        """Return it as a row of the record: what is unknown is left out."""
        told = {"model": self.model, "role": self.role, "latency_ms": self.latency_ms}
        if self.cost_nanos is not None:
            told["cost"] = self.cost_nanos / NANOS
        if self.failure is not None:
            told["failure"] = self.failure
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A finished request. None: not known, or there was no such thing; it is left out where it is told.

    Costs are nano-dollars, ``*_ms`` milliseconds, ``time`` Unix seconds of the request's start.
    """

    time: float
    trace_id: str
    span_id: str
    request_id: str
    tenant: str
    team: str | None
    user: str | None
    task: str | None
    confidence: float | None
    threshold: float | None
    risks: tuple[str, ...]
    classifier: str | None
    route: str
    outcome: str
    reason: str
    policy: str
    arm: str
    requested_model: str
    served_model: str | None
    provider: str | None
    prompt_hash: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost_nanos: int | None
    cost_source: str
    baseline_nanos: int | None
    latency_ms: float
    overhead_ms: float
    first_token_ms: float | None
    cache_key_hash: str | None
    cache_looked: tuple[tuple[str, str], ...]
    """The layers of the cache that were asked, and what each said."""
    cache_status: str
    validation_status: str | None
    """Of the last answer that was judged."""
    validation_failures: tuple[str, ...]
    """Of all attempts: why there was a fallback, too."""
    checks: tuple[tuple[str, str], ...]
    """Each validator that looked at an answer, and the status that it gave."""
    fallback_from: str | None
    fallback_to: str | None
    fallback_reason: str | None
    attempts: tuple[Tried, ...]
    classifier_calls: tuple[Tried, ...]
    """The models that classifiers asked."""
    quota_scope: str | None
    """The name of the last limit that was reached."""
    quota_headroom: float | None
    """What it had left: USD, requests or tokens."""
    quota_action: str | None
    limits_reached: tuple[tuple[str, str], ...]
    """The name of each, and what was done."""
    underreserved: int
    """Calls that cost more than was reserved for them."""
    budget_remaining: str | None
    """Of the limit that has the smallest share left, with its unit."""
    standings: tuple[Standing, ...]
    """How the caller stands against its rates."""
    confirmed: tuple[str, ...]
    """The limits that its caller has confirmed it past."""
    job: str | None
    """The job that was queued, or that it runs."""
    turns_dropped: int
    unvalidated: bool
    """Whether an answer was accepted that the validators had turned down."""
    cache_age: float | None
    review_id: str | None
    error_type: str | None
    prompt: str | None
    answer: str | None
    timeline: Timeline


class Told(NamedTuple):
    """What the request's caller is told of its Record."""

    facts: dict[str, Any]
    headers: dict[str, str]
    keep: str | None
    """Why the trace is kept; None: it is dropped."""


class Draft:
    """A Record while its request runs. Steps write to it and read nothing from it.

    As a context manager it opens the ``route`` note, and ends the request whatever happens: an exception that
    leaves the block is told as a cancelled or failed request, and goes on its way.
    """

    __slots__ = (
        "_baseline",
        "_done",
        "_finish",
        "_note",
        "_providers",
        "_started",
        "_user",
        "attempts",
        "classification",
        "classifier_calls",
        "confirmation",
        "confirmed",
        "decision",
        "denied",
        "hit",
        "job",
        "limits_reached",
        "policy",
        "prompt_hash",
        "request_id",
        "review_id",
        "standings",
        "task",
        "timeline",
        "turns_dropped",
    )

    def __init__(  # noqa: PLR0913 - the facts that are known when a request comes in, each told once
        self,
        task: Task,
        finish: Callable[[Record], Told],
        *,
        user: str | None,
        policy: str,
        prompt_hash: str,
        providers: dict[str, str],
        baseline: Callable[[Usage], int] | None,
        capture: bool,
    ) -> None:
        self.task = task
        self._user = user
        self.request_id = task.request_id or fresh_id()
        self.policy = policy
        self.prompt_hash = prompt_hash
        self.timeline = Timeline(capture=capture)
        self.hit = Hit(status="bypass")
        self.classification: Classification | None = None
        self.decision: Decision | None = None
        self.attempts: list[Attempt] = []
        self.classifier_calls: list[Attempt] = []
        self.denied: Denied | None = None
        self.limits_reached: list[tuple[str, str]] = []
        self.turns_dropped = 0
        self.standings: tuple[Standing, ...] = ()
        self.confirmed: Confirmed | None = None
        self.confirmation: Confirmation | None = None
        self.job: Job | None = None
        self.review_id: str | None = None
        self._finish = finish
        self._providers = providers
        self._baseline = baseline
        self._done = False
        self._started = time.time()
        self._note: Note = self.timeline.stage(f"route {policy}")
        if task.origin is not None:
            self._note.link(task.origin.traceparent)

    def __enter__(self) -> Self:
        self._note.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._done:
            return
        if isinstance(error, (asyncio.CancelledError, CallerGone)):
            self.end(Status.CANCELLED, Reason.CANCELLED)
        elif isinstance(error, BadRequest):
            self.end(Status.REFUSED, Reason.BAD_REQUEST)
        else:
            self.end(Status.FAILED, Reason.INTERNAL)

    @property
    def id(self) -> str:
        """An id that no caller can choose, and that no other request has."""
        return f"{self.timeline.trace_id:032x}-{self._note.span_id:016x}"

    @property
    def span_id(self) -> int:
        """That of the ``route`` span."""
        return self._note.span_id

    @property
    def started(self) -> float:
        """Unix seconds at which the request came in."""
        return self._started

    @property
    def reason(self) -> Reason:
        """The telling reason so far: a fallback's over the decision's."""
        if len(self.attempts) > 1:
            return self.attempts[-2].reason or Reason.PROVIDER_ERROR
        if self.denied is not None and self.limits_reached[-1][1] == "downgrade":
            return self.denied.reason
        return self.decision.reason if self.decision else Reason.INTERNAL

    def limited(self, denied: Denied, action: str, turns_dropped: int = 0) -> None:
        """Note a limit that was reached, and what was done."""
        self.denied = denied
        self.limits_reached.append((denied.limit.name, action))
        self.turns_dropped += turns_dropped

    def bill_classifying(self, stage: Note) -> None:
        """Note on the ``classify`` stage what the models that classifiers asked have used, if there were any."""
        if self.classifier_calls:
            stage.usage, stage.cost_nanos, source = _summed(self.classifier_calls)
            stage.attributes[names.COST_SOURCE] = source.value

    def end(self, status: Status, reason: Reason, completion: Completion | None = None) -> Outcome:
        """Close the ``route`` note, build the Record, tell it everywhere, and return the Outcome."""
        self._done = True
        if status in (Status.FAILED, Status.CANCELLED, Status.REFUSED, Status.NEEDS_CONFIRMATION):
            last = self.attempts[-1].reason if self.attempts and status is Status.FAILED else None
            self._note.fail((last or reason).value)
        self._note.__exit__(None, None, None)
        told = self._finish(self._record(status, reason, completion))
        return Outcome(
            status,
            reason,
            self.request_id,
            told.facts,
            told.headers,
            told.keep,
            completion,
            tuple(self.attempts),
            tuple(self.classifier_calls),
            self.denied,
            self.confirmation,
            self.job,
            self.review_id,
        )

    def _record(self, status: Status, reason: Reason, completion: Completion | None) -> Record:
        note, attempts, decision, found = self._note, self.attempts, self.decision, self.classification
        usage, cost, source = _summed([*self.classifier_calls, *attempts])
        note.usage, note.cost_nanos = usage, cost
        last = attempts[-1] if attempts else None
        fell_back = last is not None and last.rung.role is Role.FALLBACK
        chats = [chat for chat in self.timeline.notes if chat.kind is SpanKind.CLIENT]
        waited = sum(chat.latency for chat in chats) + self.hit.waited
        verdict = next((attempt.verdict for attempt in reversed(attempts) if attempt.verdict), None)
        caller = self.task.caller
        answered_by = last.rung.alias if last and status is Status.ANSWERED else None
        cached = status in (Status.CACHED, Status.STALE)
        served = self.hit.alias if cached else answered_by
        return Record(
            time=self._started,
            trace_id=f"{self.timeline.trace_id:032x}",
            span_id=f"{note.span_id:016x}",
            request_id=self.request_id,
            tenant=caller.tenant,
            team=caller.team,
            user=self._user,
            task=decision.label if decision else found.label if found else None,
            confidence=found.confidence if found else None,
            threshold=decision.threshold if decision and found else None,
            risks=tuple(sorted(found.risks)) if found else (),
            classifier=found.classifier if found else None,
            route=_route(status, last),
            outcome=status.value,
            reason=reason.value,
            policy=self.policy,
            arm=decision.arm if decision else "stable",
            requested_model=self.task.model,
            served_model=served,
            provider=self._providers.get(served) if served else None,
            prompt_hash=self.prompt_hash,
            prompt_tokens=usage.input,
            completion_tokens=usage.output,
            cached_tokens=usage.cached,
            cost_nanos=cost,
            cost_source=source.value,
            baseline_nanos=self._baseline_nanos(completion),
            latency_ms=note.latency * 1e3,
            overhead_ms=max(note.latency - waited, 0.0) * 1e3,
            first_token_ms=_first_token_ms(note, chats),
            cache_key_hash=self.hit.key,
            cache_looked=self.hit.looked,
            cache_status=self.hit.status,
            validation_status=verdict.status if verdict else None,
            validation_failures=tuple(f.told for a in attempts if a.verdict for f in a.verdict.failures),
            checks=tuple((c.validator, c.status) for a in attempts if a.verdict for c in a.verdict.checks),
            fallback_from=attempts[-2].rung.alias if fell_back else None,
            fallback_to=last.rung.alias if last and fell_back else None,
            fallback_reason=attempts[-2].reason.value if fell_back and attempts[-2].reason else None,
            attempts=tuple(_tried(attempt) for attempt in attempts),
            classifier_calls=tuple(_tried(call) for call in self.classifier_calls),
            quota_scope=self.denied.limit.name if self.denied else None,
            quota_headroom=self.denied.headroom if self.denied else None,
            quota_action=self.limits_reached[-1][1] if self.limits_reached else None,
            limits_reached=tuple(self.limits_reached),
            underreserved=sum(call.underreserved for call in (*self.classifier_calls, *attempts)),
            budget_remaining=_remaining(attempts, self.denied),
            standings=self.standings,
            confirmed=self.confirmed.limits if self.confirmed else (),
            job=self.job.id if self.job else self.task.origin.job if self.task.origin else None,
            turns_dropped=self.turns_dropped,
            unvalidated=status is Status.ANSWERED and last is not None and not last.accepted,
            cache_age=self.hit.age if cached else None,
            review_id=self.review_id,
            error_type=note.error_type,
            prompt=self.task.text if self.timeline.capture else None,
            answer=completion.text if self.timeline.capture and completion and "choices" in completion.body else None,
            timeline=self.timeline,
        )

    def _baseline_nanos(self, completion: Completion | None) -> int | None:
        """Return what the same tokens would have cost on the top rung, asked once and straight."""
        if self._baseline is None:
            return None
        told = (completion.body.get("usage") if completion else None) or {}
        last = self.attempts[-1].usage if self.attempts else None
        asked = next((attempt.asked for attempt in self.attempts if attempt.asked), told.get("prompt_tokens", 0))
        answered = told.get("completion_tokens", last.output if last else 0)
        return self._baseline(Usage(asked, answered))


def _summed(attempts: list[Attempt]) -> tuple[Usage, int | None, Source]:
    """Return usage and cost of all attempts; a sum is known no better than its worst part."""
    usage = Usage()
    for attempt in attempts:
        usage = usage.plus(attempt.usage or Usage())
    sources = {attempt.cost.source for attempt in attempts}
    source = next((one for one in (Source.UNKNOWN, Source.ESTIMATED) if one in sources), Source.REPORTED)
    nanos = None if source is Source.UNKNOWN else sum(attempt.cost.nanos or 0 for attempt in attempts)
    return usage, nanos, source


def _remaining(attempts: list[Attempt], denied: Denied | None) -> str | None:
    """Return what the limit with the smallest share left has, as the last attempt that was reserved for leaves it.

    Where none was, it is the limit that was reached.
    """
    last = next((attempt for attempt in reversed(attempts) if attempt.reservation), None)
    if last is None or last.reservation is None:
        known = denied is not None and denied.reason is Reason.BUDGET_EXHAUSTED
        return f"{denied.limit.told(denied.left)}/{denied.limit.period}" if denied is not None and known else None
    bound, spent = last.reservation.bound, last.spend
    rooms = [(limit, left + limit.of(bound) - limit.of(spent)) for limit, left in last.reservation.headroom]
    if not rooms:
        return None
    limit, left = min(rooms, key=lambda room: room[1] / room[0].amount if room[0].amount else 0.0)
    return f"{limit.told(max(left, 0))}/{limit.period}"


_ROUTES: Final = {
    Status.CACHED: "cached",
    Status.STALE: "cached",
    Status.IN_REVIEW: "review",
    Status.REFUSED: "refused",
    Status.NEEDS_CONFIRMATION: "refused",
    Status.QUEUED: "queued",
}


def _route(status: Status, last: Attempt | None) -> str:
    if status is Status.ANSWERED and last is not None:
        return last.rung.role.value
    return _ROUTES.get(status, "failed")


def _first_token_ms(root: Note, chats: list[Note]) -> float | None:
    for chat in reversed(chats):
        seconds: float | None = chat.attributes.get(names.GEN_AI_FIRST_CHUNK)
        if seconds is not None:
            return (chat.start_ns - root.start_ns) / 1e6 + seconds * 1e3
    return None


def _tried(attempt: Attempt) -> Tried:
    return Tried(
        model=attempt.rung.alias,
        role=attempt.rung.role.value,
        latency_ms=attempt.latency * 1e3,
        input_tokens=attempt.usage.input if attempt.usage else 0,
        output_tokens=attempt.usage.output if attempt.usage else 0,
        cost_nanos=attempt.cost.nanos,
        cost_source=attempt.cost.source.value,
        failure=attempt.reason.value if attempt.reason else None,
    )
