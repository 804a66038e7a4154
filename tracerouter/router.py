"""The path of a request, from task to answer. Read :meth:`Router.route` first; all else here serves it."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from contextvars import ContextVar
from functools import wraps
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tracerouter.cache import output_key, prompt_hash
from tracerouter.errors import (
    BadRequest,
    CallerGone,
    ConfigError,
    NotNow,
    ProviderError,
    ProviderTimeout,
    StoreUnavailable,
    Unaffordable,
    UnknownModel,
    nearest,
    place,
)
from tracerouter.policy import decide
from tracerouter.providers import HandlerProvider, Model, compose
from tracerouter.quota import ENDLESS_LEASE, LEASE_MARGIN, Hold, Later, relieve, reserve
from tracerouter.quota.confirmations import HEADER as CONFIRM_HEADER
from tracerouter.telemetry import Telemetry, fresh_id, names
from tracerouter.tokens import count_request
from tracerouter.types import (
    CHAT,
    EMBEDDINGS,
    NANOS,
    Attempt,
    Call,
    Claim,
    Classification,
    Completion,
    Decision,
    Denied,
    Entry,
    Escalation,
    Freshness,
    Hit,
    Meter,
    Outcome,
    Reason,
    Review,
    Role,
    Rules,
    Rung,
    Spend,
    Status,
    Task,
    Verdict,
)
from tracerouter.validators import Custom, judge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    from tracerouter.cache import OutputCache
    from tracerouter.policy import Policy
    from tracerouter.protocols import Classifier, Ledger, Rates, Sink
    from tracerouter.quota import Confirmations, Jobs, QuotaState, Relief
    from tracerouter.review import Reviews, Webhooks
    from tracerouter.telemetry import Draft, Note
    from tracerouter.types import Caller, Check, Confirmation, Job, Reservation
    from tracerouter.validators import Checks, Validator


AUTO = "auto"
"""The model name that lets the router choose."""

HANDLER = "handler"
"""The alias of the wrapped service where the file gives it none."""

log = logging.getLogger(__name__)

_Route = TypeVar("_Route", bound="Callable[..., Coroutine[Any, Any, Outcome]]")

_classifying: ContextVar[tuple[Draft, float]] = ContextVar("classifying")
"""The request that is being classified, and its deadline: a classifier is asked with the task alone."""


def _in_flight(route: _Route) -> _Route:
    """Let what one request finds be for all equal ones at the same time: see :class:`tracerouter.cache.Flights`."""

    @wraps(route)
    async def carried(self: Router, task: Task, sink: Sink | None = None) -> Outcome:
        key = self._key(task)
        if self._cache is None or key is None:
            return await route(self, task, sink)
        # a task costs more than an answer at hand; and a wrapped handler stays in that of its own request
        apart = task.handler is None and not await self._cache.at_hand(key, task.freshness)
        return await self._cache.flights.carry(lambda taps: route(self, task, taps), sink, apart=apart)

    return cast("_Route", carried)


class Router:
    """Sends easy work to a cheap model, validates the answer, and escalates what fails or what policy reserves.

    Args:
        models: The models that the policy names, in any order.
        policy: Where a request goes.
        classifier: Says what a request is.
        checks: Makes the validators of a request.
        cache: Answers given before. None: nothing is kept.
        ledger: Where spend is reserved and booked. None: nowhere, and no limit is kept.
        quotas: How callers stand against the policy's limits, for who asks.
        rates: How fast callers ask. None: as fast as they like.
        confirmations: The tokens with which callers pass a limit. None: they can't, and the policy names no `confirm`.
        jobs: The requests that are run later. None: none are, and the policy names no `queue`.
        telemetry: Where traces, metrics and records go. By default nowhere.
        reviews: The queue of requests that wait for a person. None: there is none, and the policy asks for none.
        webhooks: Where callers may be told what came of a review. None: nowhere.
        timeout: Seconds from the start of ``route`` to the deadline, where the task names none.
        write_timeout: Seconds after which the doors over HTTP give up on who takes nothing of a stream.
        starting: Loads what the first request would have to wait for.
        closing: Frees what the rooms hold, when the router is closed.

    Raises:
        ConfigError: The policy names a model that is not there, or what nothing here can do: an action, a review.
    """

    def __init__(  # noqa: PLR0913 - its rooms, each named once
        self,
        models: Iterable[Model],
        policy: Policy,
        *,
        classifier: Classifier,
        checks: Checks,
        cache: OutputCache | None = None,
        ledger: Ledger | None = None,
        quotas: QuotaState | None = None,
        rates: Rates | None = None,
        confirmations: Confirmations | None = None,
        jobs: Jobs | None = None,
        telemetry: Telemetry | None = None,
        reviews: Reviews | None = None,
        webhooks: Webhooks | None = None,
        timeout: float = 60.0,
        write_timeout: float = 60.0,
        starting: Callable[[], Awaitable[None]] | None = None,
        closing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.models: dict[str, Model] = {model.alias: model for model in models}
        policy.check_aliases(self.models)
        for alias in policy.embeddings:
            if EMBEDDINGS not in getattr(self.models[alias].provider, "operations", ()):
                msg = f"{policy.source}: embeddings: the provider of {alias!r} makes none; `openai` does"
                raise ConfigError(msg)
        for action, needed, there in (("confirm", "confirmations", confirmations), ("queue", "jobs", jobs)):
            if action in policy.actions and there is None:
                msg = f"{policy.source}: {policy.actions[action]}: `{action}` needs the router's `{needed}`"
                raise ConfigError(msg)
        self.policy = policy
        self.telemetry = telemetry or Telemetry()
        self.write_timeout = write_timeout
        self._classifier = classifier
        self._checks = checks
        self._cache = cache if policy.caches else None
        self._keyed: tuple[Task, str | None] | None = None
        self._ledger = ledger
        self.quotas = quotas
        self._rates = rates
        self._confirmations = confirmations
        self.jobs = jobs
        self.reviews = reviews
        self._webhooks = webhooks
        self._timeout = timeout
        self._starting = starting
        self._closing = closing
        self._providers = {model.alias: model.kind for model in self.models.values()}
        self._handlers = {alias for alias, model in self.models.items() if isinstance(model.provider, HandlerProvider)}
        if not self._handlers:  # a wrapped endpoint needs no line in the file
            self._handlers.add(HANDLER)
            self.models[HANDLER] = Model(
                alias=HANDLER, name=HANDLER, provider=HandlerProvider(), kind=HANDLER, timeout=None
            )
        self._check_reviews()

    @_in_flight
    async def route(self, task: Task, sink: Sink | None = None) -> Outcome:
        """Answer `task`, as cheaply as policy and validators allow.

        Args:
            task: What is asked.
            sink: Takes the answer as OpenAI chunks while it arrives. The first one taken commits: no other rung can be
                tried after it.

        Returns:
            The Outcome, with every attempt and its cost; providers' failures are told in it.

        Raises:
            BadRequest: The task itself is wrong: an unknown model, a schema that is no schema.
            CallerGone: The sink raised.
        """
        ladder, tap = self._ladder(task), _Tap(sink)
        deadline = asyncio.get_running_loop().time() + (task.timeout or self._timeout)
        with self._draft(task, ladder) as draft:
            if not await self._admit(task, draft):
                return draft.end(*_turned_back(draft))
            self._check_webhook(task)
            pinned = self._able(task, self._pinned(task))
            ladder = ladder if pinned else self._able(task, ladder)
            hit = await self._look_up(task, deadline, draft)
            if hit.fresh:
                return await self._answer(Status.CACHED, Reason.CACHE_HIT, hit.completion, tap, draft)
            classification = await self._classify(task, deadline, draft)
            decision = self._decide(task, classification, ladder, pinned, draft)
            tap.closed = decision.review is Review.DRAFT
            validators = self._checks.of(task, decision.rules, streamed=sink is not None)
            rungs, escalation = [*decision.rungs], None
            while rungs:
                rung = rungs.pop(0)
                if tap.committed or self._passed_over(rung, decision, deadline):
                    continue
                call = self._call(task, decision, rung, escalation, deadline)
                hold = await self._reserve(rung, call, draft)
                if isinstance(hold, Denied):
                    relief = await self._relieve(hold, rung, call, task, pinned or ladder, escalation, draft)
                    if relief.status is not None:
                        return await self._answer(relief.status, hold.reason, relief.completion, tap, draft)
                    task, rungs = relief.task or task, [*relief.rungs, *rungs]
                    continue
                attempt = await self._attempt(rung, call, validators, tap, draft, hold)
                if tap.closed and attempt.completion is not None:
                    break
                if attempt.accepted:
                    await self._keep(hit, decision, attempt, draft)
                    return await self._answer(Status.ANSWERED, draft.reason, attempt.completion, tap, draft)
                escalation = _escalation(attempt, classification, hit)
            return await self._unanswered(task, classification, decision, deadline, tap, draft)

    async def embed(self, task: Task) -> Outcome:
        """Have `task` (:meth:`Task.embeddings`) answered by the model that it names, and by no other.

        Vectors of two models can't be compared, so there is nothing to route; trace, ledger and record are as ever.

        Raises:
            BadRequest: The model is none that embeds.
        """
        known, alias = self.policy.embeddings, task.model
        deadline = asyncio.get_running_loop().time() + (task.timeout or self._timeout)
        with self._draft(task, (alias,) if alias in known else ()) as draft:
            if not await self._admit(task, draft):
                return draft.end(*_turned_back(draft))
            if alias not in known:
                told = f"known are {', '.join(known)}" if known else "policy's `embeddings` names none"
                msg = f"there is no model {alias[:64]!r} for embeddings{nearest(alias, known)}; {told}"
                raise UnknownModel(msg, "model")
            allowed = alias in self.policy.embeddings_of(task.caller)
            rungs = (Rung(alias, Role.CHEAP),) if allowed else ()
            reason = Reason.PINNED if allowed else Reason.NOT_ALLOWED
            draft.decision = decision = Decision(rungs, reason, EMBEDDINGS, 0.0, Rules(), self.policy.id)
            for rung in rungs:
                call = Call({**task.body, "model": self.models[alias].name}, deadline, operation=EMBEDDINGS)
                hold = await self._reserve(rung, call, draft)
                if isinstance(hold, Denied):
                    relief = await self._relieve(hold, rung, call, task, (), None, draft)
                    return draft.end(relief.status or Status.REFUSED, hold.reason)
                attempt = await self._attempt(rung, call, (), _Tap(None), draft, hold)
                if attempt.accepted:
                    return draft.end(Status.ANSWERED, reason, attempt.completion)
            return draft.end(*_no_answer(decision, deadline, draft.attempts))

    async def explain(self, task: Task) -> tuple[Classification, Decision]:
        """Say what would be decided for `task`, without calling a model of the ladder.

        Raises:
            BadRequest: The task itself is wrong.
        """
        pinned = self._able(task, self._pinned(task))
        ladder = self._ladder(task) if pinned else self._able(task, self._ladder(task))
        found = await self._found(task, asyncio.get_running_loop().time() + self._timeout)
        return found, self._decision(task, found, ladder, pinned)

    async def ask(self, alias: str, body: Mapping[str, Any], timeout: float) -> Completion:  # noqa: ASYNC109 - of many rooms
        """Ask a model what the request is that is being classified, for a classifier; its cost is the request's.

        Args:
            alias: The model.
            body: An OpenAI chat request without ``model``; ``max_tokens`` gets the name that the model takes.
            timeout: Seconds for all tries together.

        Raises:
            LookupError: No request is being classified here.
            ProviderError: There is no answer.
        """
        draft, deadline = _classifying.get()
        model, meter, clock = self.models[alias], Meter(), asyncio.get_running_loop().time
        asked = compose(Task(body), Rules(), None, model=model.name, limit_field=model.limit_field)
        rung, call = Rung(alias, Role.CLASSIFY), Call(asked, min(deadline, clock() + timeout))
        hold = await self._reserve(rung, call, draft)
        if isinstance(hold, Denied):
            raise Unaffordable(hold.limit.name)
        completion, verdict, error, cancelled = None, None, None, False
        started = time.perf_counter()
        try:
            completion = await model.complete(hold.call, meter, draft.timeline, None)
            verdict = Verdict()
        except ProviderError as failed:
            error = failed
            raise
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            latency = time.perf_counter() - started
            attempt = Attempt(
                rung, meter.usage, meter.cost, latency, meter.asked, completion, verdict, error, cancelled, hold.held
            )
            draft.classifier_calls.append(attempt)
            booked = self._settle(attempt, draft)
        if booked is not None:
            await _durable(booked)
        return completion

    def ended_at_handler(self, outcome: Outcome) -> bool:
        """Return whether the wrapped service had the last word."""
        return self._at_handler(outcome.attempts)

    async def start(self) -> None:
        """Load what the first request would have to wait for, and begin to run what was queued before.

        It need not be called; where nothing is queued in this process, what others left waits until it is.
        """
        if self._starting is not None:
            await self._starting()
        if self.jobs is not None:
            self.jobs.start(self._run, self._has_room)

    async def close(self) -> None:
        """Free what the router was built on, if it came from a file; jobs that are being run go back into the queue."""
        if self.jobs is not None:
            await self.jobs.close()
        if self._closing is not None:
            await self._closing()

    def _at_handler(self, attempts: Sequence[Attempt]) -> bool:
        return bool(attempts) and attempts[-1].rung.alias in self._handlers

    @property
    def aliases(self) -> list[str]:
        """The models that a caller may name."""
        return [alias for alias in self.models if alias not in self._handlers]

    @property
    def names(self) -> list[str]:
        """What a chat may ask for as its ``model``: ``auto``, the ladders that have a name, the models."""
        return [AUTO, *self.policy.ladders, *(a for a in self.aliases if a not in self.policy.embeddings)]

    def _pinned(self, task: Task) -> tuple[str, ...]:
        """Return the rungs that the caller asks for by name; none where the router chooses."""
        if task.model == AUTO:
            return ()
        if task.model in self.policy.ladders:
            named = self.policy.ladders[task.model]
            return named if task.handler is not None else tuple(a for a in named if a not in self._handlers)
        if task.model in self.names:
            return (task.model,)
        if task.handler is not None:  # the wrapped service has model names of its own
            return ()
        known = self.names
        msg = f"there is no model {task.model[:64]!r}{nearest(task.model, known)}; known are {', '.join(known)}"
        raise UnknownModel(msg, "model")

    def _ladder(self, task: Task) -> tuple[str, ...]:
        """Return the rungs that this request may use: the wrapped service's handler only where there is one."""
        ladder = self.policy.ladder_of(task.caller)
        if task.handler is None:
            return tuple(alias for alias in ladder if alias not in self._handlers)
        if ladder == self.policy.ladder and self._handlers.isdisjoint(ladder):
            return (*ladder, next(iter(self._handlers)))
        return ladder

    def _able(self, task: Task, aliases: tuple[str, ...]) -> tuple[str, ...]:
        """Return those that can serve the request; a wrapped service's handler says that for itself.

        Raises:
            BadRequest: There are some, and none of them can.
        """
        asked = task.choices
        if asked > 1:
            most = {alias: min(self.models[alias].max_choices, self.policy.max_choices) for alias in aliases}
            able = tuple(alias for alias in aliases if alias in self._handlers or asked <= most[alias])
            if aliases and not able:
                allowed = max(most.values())
                why = "" if allowed == self.policy.max_choices else "; no model that may answer gives more answers"
                msg = f"`n` must be {f'a whole number from 1 to {allowed}' if allowed > 1 else 1}, not {asked}{why}"
                raise BadRequest(msg, "n")
            aliases = able
        if task.has_images:
            able = tuple(alias for alias in aliases if alias in self._handlers or self.models[alias].vision)
            if aliases and not able:
                too = f" and gives {asked} answers (`n`)" if asked > 1 else ""
                msg = f"`messages` hold an image, and no model that may answer them takes images{too}"
                raise BadRequest(msg, "messages")
            aliases = able
        return aliases

    def _draft(self, task: Task, ladder: Sequence[str]) -> Draft:
        top = self.models[ladder[-1]].price if ladder else None
        return self.telemetry.draft(
            task,
            policy=self.policy.id,
            prompt_hash=prompt_hash(task, self.telemetry.secret),
            providers=self._providers,
            baseline=top.cost if top else None,
        )

    async def _admit(self, task: Task, draft: Draft) -> bool:
        """Return whether the request comes in: its caller is not too fast, and it has not been queued before.

        Raises:
            BadRequest: What lets it pass a limit, or makes one job of equal requests, is not its own.
        """
        if task.origin is not None:  # it has been
            return True
        rates = self.policy.rates_of(task.caller)
        if self._rates is not None and rates:
            tokens = count_request(task.body) if any(rate.unit == "tokens" for rate in rates) else 0
            with suppress(StoreUnavailable):  # a rate that can't be told stops nobody
                draft.standings, denied = await self._rates.take(task.caller, rates, tokens)
                if denied is not None:
                    with draft.timeline.stage("quota") as stage:
                        stage.event(names.ACTION_EVENT, **{names.QUOTA_ACTION: "refuse", "applied": True})
                        _limited(stage, draft, denied, "refuse")
                    return False
        if self.jobs is not None and task.respond_async:
            with suppress(StoreUnavailable):
                draft.job = await self.jobs.earlier(task)
        if draft.job is None and self._confirmations is not None and task.confirm is not None:
            try:
                draft.confirmed = await self._confirmations.redeem(task.confirm, task)
            except StoreUnavailable:
                msg = "the token can't be checked now: send the request again in some seconds"
                raise NotNow(msg, CONFIRM_HEADER) from None
        return draft.job is None

    def _freshness(self, task: Task) -> Freshness:
        """Return what the caller lets the cache do, with the policy's duration for a name."""
        label, known = task.freshness.label, self.policy.freshness
        if label is None:
            return task.freshness
        if label not in known:
            names_known = ", ".join(["no-store", "max-age=SECONDS", *known])
            msg = f"there is no freshness {label[:64]!r}{nearest(label, known)}; known are {names_known}"
            raise BadRequest(msg, "x-tracerouter-cache")
        return task.freshness._replace(max_age=known[label])

    def _key(self, task: Task) -> str | None:
        """Return the key of the answer, if there may be one; when it is asked for again at once it is the same."""
        if self._cache is None:
            return None
        if self._keyed is None or self._keyed[0] is not task:
            scope, salt, normal = self.policy.scope, self.policy.salt, self.policy.normal
            self._keyed = (task, output_key(task, scope=scope, salt=salt, normal=normal))
        return self._keyed[1]

    async def _look_up(self, task: Task, deadline: float, draft: Draft) -> Hit:
        """Return what the cache holds; a miss may have waited for an equal request, or now be what others wait for."""
        freshness, key = self._freshness(task), self._key(task)
        if self._cache is None or key is None:
            return draft.hit
        with draft.timeline.stage("cache") as stage:
            draft.hit = hit = await self._cache.look_up(key, freshness, draft.timeline.root.traceparent, deadline)
            stage.attributes[names.CACHE_LAYER] = hit.layer
            stage.attributes[names.CACHE_STATUS] = hit.status
            stage.attributes[names.CACHE_KEY_HASH] = key
            if hit.age is not None:
                stage.attributes[names.CACHE_AGE] = hit.age
            if hit.leader is not None:
                stage.attributes[names.CACHE_WAITED] = hit.waited
                stage.link(hit.leader)
        return hit

    async def _classify(self, task: Task, deadline: float, draft: Draft) -> Classification:
        with draft.timeline.stage("classify") as stage:
            told, token = stage.attributes, _classifying.set((draft, deadline))
            try:
                draft.classification = found = await self._found(task, deadline)
            finally:
                _classifying.reset(token)
                draft.bill_classifying(stage)
            if found.failed:
                stage.fail(found.failed)
            told[names.LABEL] = found.label
            told[names.CONFIDENCE] = found.confidence
            told[names.CLASSIFIER] = found.classifier
            told[names.CLASSIFIER_CACHED] = found.cached
            if found.version:
                told[names.CLASSIFIER_VERSION] = found.version
            if found.risks:
                told[names.RISKS] = sorted(found.risks)
            for risk, evidence in groupby(found.evidence, lambda one: one.risk):
                stage.event(names.RISK_EVENT, **{names.RISKS: [risk], "evidence": [one.told for one in evidence]})
        return found

    async def _found(self, task: Task, deadline: float) -> Classification:
        try:
            async with asyncio.timeout_at(deadline):
                found = await self._classifier.classify(task)
        except TimeoutError:
            log.warning("a classifier took all of a request's time")
            found = Classification(failed=Reason.TIMEOUT.value)
        if task.hint is None:
            return found
        return Classification(
            task.hint, 1.0, found.risks, "hint", evidence=found.evidence
        )  # a caller knows the task, but can't deny a risk

    def _decide(
        self, task: Task, found: Classification, ladder: Sequence[str], pinned: tuple[str, ...], draft: Draft
    ) -> Decision:
        draft.decision = decision = self._decision(task, found, ladder, pinned)
        if self._cache is not None and not decision.rules.cache_ttl:
            self._cache.keep_nothing()
        return decision

    def _decision(self, task: Task, found: Classification, ladder: Sequence[str], pinned: tuple[str, ...]) -> Decision:
        limit = self.policy.task(found.label).max_input_tokens
        tokens = count_request(task.body) if limit is not None else 0
        return decide(found, task.caller, self.policy, ladder=ladder, pinned=pinned, input_tokens=tokens)

    def _check_reviews(self) -> None:
        """Check that there is a queue where the policy needs one, and a model to write each draft."""
        policy = self.policy
        if policy.reviews and self.reviews is None:
            msg = f"{policy.source}: `review` needs a queue: give the router `reviews`"
            raise ConfigError(msg)
        if Review.DRAFT in policy.reviews:
            ladders = {"ladder": policy.ladder} | {f"ladders.{name}": ladder for name, ladder in policy.ladders.items()}
            ladders |= {
                f"tiers.{name}.ladder": tuple(tier.ladder) for name, tier in policy.tiers.items() if tier.ladder
            }
            for where, ladder in ladders.items():
                if self._handlers.issuperset(ladder):
                    msg = (
                        f"{policy.source}: {where}: `review: draft` needs a model that writes the draft, and the "
                        "wrapped service is none: its answers reach the caller by themselves; put a model before it, "
                        "or say `review: after_ladder`"
                    )
                    raise ConfigError(msg)

    def _check_webhook(self, task: Task) -> None:
        if task.webhook is None:
            return
        if self._webhooks is None:
            msg = "this gateway sends no webhooks: `webhooks` of tracerouter.yaml allows no target"
            raise BadRequest(msg, "x-tracerouter-webhook")
        self._webhooks.check(task.webhook)

    def _passed_over(self, rung: Rung, decision: Decision, deadline: float) -> bool:
        """Return whether a rung is not tried.

        The time is over, except for a wrapped service, which answers however late it is, as it would by itself; or a
        draft is needed, which that service can't write: its answer reaches the caller.
        """
        if rung.alias in self._handlers:
            return decision.review is Review.DRAFT
        return _past(deadline)

    async def _unanswered(  # noqa: PLR0913 - what a reviewer is told
        self,
        task: Task,
        classification: Classification,
        decision: Decision,
        deadline: float,
        tap: _Tap,
        draft: Draft,
    ) -> Outcome:
        """End a request for which there is no answer that it may have: by a person, where policy says so."""
        status, reason = _no_answer(decision, deadline, draft.attempts)
        if decision.review is None or self.reviews is None or status is Status.REFUSED or tap.committed:
            return draft.end(status, reason)
        is_draft = decision.review is Review.DRAFT
        cause = decision.reason if is_draft else (draft.attempts[-1].reason if draft.attempts else None) or reason
        try:
            with draft.timeline.stage("review") as stage:
                trace = draft.timeline.trace_id, draft.span_id
                review = await self.reviews.add(
                    task, decision, cause, classification, draft.attempts, request_id=draft.request_id, trace=trace
                )
                draft.review_id = stage.attributes[names.REVIEW_ID] = review.id
        except StoreUnavailable:
            return draft.end(*((Status.REFUSED, Reason.REVIEW_UNAVAILABLE) if is_draft else (status, reason)))
        return draft.end(Status.IN_REVIEW, cause)

    def _call(self, task: Task, decision: Decision, rung: Rung, escalation: Escalation | None, deadline: float) -> Call:
        model = self.models[rung.alias]
        body = compose(task, decision.rules, escalation, model=model.name, limit_field=model.limit_field)
        return Call(body, deadline, handler=task.handler, escalation=escalation)

    async def _reserve(self, rung: Rung, call: Call, draft: Draft) -> Hold | Denied:
        """Hold room for the most that a call can cost, where a limit says so."""
        caller, model = draft.task.caller, self.models[rung.alias]
        limits = self.policy.limits_of(caller, rung.role)
        if self._ledger is None or not limits:
            return Hold(call)
        if self.quotas is not None:
            self.quotas.seen(caller)
        bound = model.bound(call) if any(limit.unit != "requests" for limit in limits) else Spend()
        bound = bound._replace(requests=int(rung.role is not Role.CLASSIFY))
        number = 1 + len(draft.classifier_calls) + len(draft.attempts)
        lease = ENDLESS_LEASE if model.timeout is None else call.deadline - asyncio.get_running_loop().time()
        claim = Claim(draft.id, number, draft.started, caller, rung.role, bound, limits, lease + LEASE_MARGIN)
        passed = draft.confirmed.limits if draft.confirmed and draft.confirmed.model == rung.alias else ()
        return await reserve(self._ledger, claim, call, self.policy.without_ledger, passed)

    async def _relieve(  # noqa: PLR0913 - all that an action may build on
        self,
        denied: Denied,
        rung: Rung,
        call: Call,
        task: Task,
        ladder: Sequence[str],
        escalation: Escalation | None,
        draft: Draft,
    ) -> Relief:
        """Do what the policy says of a limit that was reached; a span tells of it."""
        model, limit = self.models[rung.alias], denied.limit

        def fits(less: int) -> bool:
            return limit.unit != "requests" and limit.of(model.bound(call, less)) <= denied.left

        with draft.timeline.stage("quota") as stage:

            def told(action: str, applied: bool) -> None:  # noqa: FBT001 - of one use
                stage.event(names.ACTION_EVENT, **{names.QUOTA_ACTION: action, "applied": applied})

            rejected = escalation.rejected if escalation else None
            drafts = draft.decision is not None and draft.decision.review is Review.DRAFT
            relief = await relieve(
                denied,
                rung,
                task,
                ladder=ladder,
                hit=Hit() if drafts else draft.hit,  # only a person may answer
                rejected=rejected,
                fits=fits,
                later=self._later(denied, rung, call, draft),
                told=told,
            )
            draft.confirmation, draft.job = relief.confirmation, relief.job
            _limited(stage, draft, denied, relief.action, relief.dropped)
        return relief

    def _later(self, denied: Denied, rung: Rung, call: Call, draft: Draft) -> Later:
        """Return how the request could be confirmed, and how it could be queued; a store that fails does neither."""
        task, model, confirmed = draft.task, self.models[rung.alias], draft.confirmed

        async def offer() -> Confirmation | None:
            if self._confirmations is None or task.origin is not None:  # nobody is there to say so
                return None
            before = confirmed.limits if confirmed and confirmed.model == rung.alias else ()
            most = model.bound(call).cost_nanos if model.price is not None and model.timeout is not None else None
            try:
                return await self._confirmations.offer(task, rung.alias, (*before, denied.limit.name), most)
            except StoreUnavailable:
                return None

        async def queue() -> Job | None:
            taken = task.respond_async or task.origin is not None
            if self.jobs is None or not taken or task.handler is not None:  # a handler is gone with its request
                return None
            self.jobs.start(self._run, self._has_room)
            traceparent, seconds = draft.timeline.root.traceparent, task.timeout or self._timeout
            bound = model.bound(call)
            try:
                return await self.jobs.put(task, denied, rung.role, bound, traceparent=traceparent, time_limit=seconds)
            except StoreUnavailable:
                return None

        return Later(offer, queue)

    async def _run(self, task: Task) -> Outcome:
        """Run a job."""
        return await (self.route(task) if task.operation == CHAT else self.embed(task))

    async def _has_room(self, caller: Caller, role: Role, bound: Spend) -> bool:
        """Return whether the limits have room for so much: hold it, and let it go."""
        limits = self.policy.limits_of(caller, role)
        if self._ledger is None or not limits:
            return True
        claim = Claim(fresh_id(), 0, time.time(), caller, role, bound, limits, LEASE_MARGIN)
        if isinstance(await self._ledger.reserve(claim), Denied):
            return False
        await self._ledger.release(claim)
        return True

    async def _attempt(  # noqa: PLR0913 - what an attempt is made of
        self, rung: Rung, call: Call, validators: Sequence[Validator], tap: _Tap, draft: Draft, hold: Hold
    ) -> Attempt:
        """Try one rung, validate its answer and settle its cost, however it ends."""
        model, meter = self.models[rung.alias], Meter()
        completion, verdict, error, cancelled = None, None, None, False
        if self._cache is not None and rung.alias in self._handlers:
            self._cache.keep_nothing()
        try:
            with draft.timeline.stage(rung.role.value) as stage:
                try:
                    completion = await model.complete(hold.call, meter, draft.timeline, tap.live(validators))
                finally:
                    _describe(stage, rung, call, meter, hold.held)
            if rung.alias in self._handlers or call.operation == EMBEDDINGS:
                verdict = Verdict()  # passed on as it is
            else:
                verdict, completion = await self._validate(validators, completion, call.deadline, draft)
        except ProviderError as failed:
            error = failed
        except (asyncio.CancelledError, CallerGone):
            cancelled = True
            raise
        finally:
            attempt = Attempt(
                rung,
                meter.usage,
                meter.cost,
                stage.latency,
                meter.asked,
                completion,
                verdict,
                error,
                cancelled,
                hold.held,
            )
            draft.attempts.append(attempt)
            booked = self._settle(attempt, draft)
            rates = self.policy.rates_of(draft.task.caller)
            if self._rates is not None and rates and meter.usage is not None:
                self._rates.owe(draft.task.caller, rates, meter.usage.output)
        if booked is not None:
            await _durable(booked)
        return attempt

    async def _validate(
        self, validators: Sequence[Validator], completion: Completion, deadline: float, draft: Draft
    ) -> tuple[Verdict, Completion]:
        with draft.timeline.stage("validate") as stage:

            def told(check: Check, seconds: float) -> None:
                facts = {names.VALIDATOR: check.validator, names.VALIDATION_STATUS: check.status}
                stage.event(names.CHECK_EVENT, **facts, **{names.LATENCY: seconds})

            if any(isinstance(one, Custom) for one in validators):  # the built-in ones wait for nothing
                verdict, completion = await _in_time(deadline, judge(validators, draft.task, completion, told))
            else:
                verdict, completion = await judge(validators, draft.task, completion, told)
            stage.attributes[names.VALIDATION_STATUS] = verdict.status
            if verdict.failures:
                stage.attributes[names.VALIDATION_FAILURES] = [failure.told for failure in verdict.failures]
        return verdict, completion

    def _settle(self, attempt: Attempt, draft: Draft) -> Awaitable[None] | None:
        """Book what the attempt cost; a cancelled request does not wait until that is durable."""
        if self._ledger is None:
            return None
        entry = Entry(
            draft.id,
            draft.request_id,
            len(draft.classifier_calls) + len(draft.attempts),
            draft.started,
            draft.task.caller,
            attempt.rung.role,
            attempt.rung.alias,
            attempt.usage,
            attempt.cost,
            attempt.reservation,
        )
        try:
            return self._ledger.settle(entry)
        except Exception as error:  # noqa: BLE001 - whatever a ledger raises
            log.error(_UNBOOKED, place(error))
            return None

    async def _keep(self, hit: Hit, decision: Decision, attempt: Attempt, draft: Draft) -> None:
        ttl, kept, alias = decision.rules.cache_ttl, attempt.completion, attempt.rung.alias
        if self._cache is None or hit.key is None or not ttl or kept is None or alias in self._handlers:
            return
        if draft.limits_reached:  # it is a lesser answer, or one to another question
            return
        if (
            len(draft.attempts) > 1 and attempt.usage is not None
        ):  # its prompt held a repair, which the question does not
            asked = next((one.asked for one in draft.attempts if one.asked), attempt.usage.input)
            kept = kept.with_usage(attempt.usage._replace(input=asked))
        await self._cache.keep(hit.key, kept, ttl, alias)

    async def _answer(
        self, status: Status, reason: Reason, completion: Completion | None, tap: _Tap, draft: Draft
    ) -> Outcome:
        """Pour an answer that was held back into the caller's sink, and end the request."""
        if completion is not None and not tap.committed and not self._at_handler(draft.attempts):
            await tap.pour(completion)
        return draft.end(status, reason, completion)


class _Tap:
    """The caller's sink, if there is one, and whether anything went into it: the commit boundary."""

    def __init__(self, sink: Sink | None) -> None:
        self._sink = sink
        self.committed = False
        self.closed = False
        """Whether nothing may go into it: what comes is a draft."""

    def live(self, validators: Iterable[Validator]) -> Sink | None:
        """Return where a model may stream to: nowhere, if the whole text must be judged first."""
        return None if self._sink is None or self.closed or any(one.reads_text for one in validators) else self._take

    async def pour(self, completion: Completion) -> None:
        """Give a whole answer, one chunk a choice."""
        if self._sink is None:
            return
        told = {name: completion.body[name] for name in ("id", "created", "model") if name in completion.body}
        for choice in completion.body["choices"]:
            delta = {**choice["message"]}
            if delta.get("tool_calls"):
                delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(delta["tool_calls"])]
            piece = {"index": choice.get("index", 0), "delta": delta, "finish_reason": None}
            await self._take({**told, "object": "chat.completion.chunk", "choices": [piece]})

    async def _take(self, chunk: Mapping[str, Any]) -> None:
        if self._sink is None:
            return
        self.committed = True
        try:
            await self._sink(chunk)
        except Exception as error:
            msg = "the caller's sink took no more"
            raise CallerGone(msg) from error


def _limited(stage: Note, draft: Draft, denied: Denied, action: str, turns_dropped: int = 0) -> None:
    draft.limited(denied, action, turns_dropped)
    stage.attributes[names.QUOTA_SCOPE] = denied.limit.name
    stage.attributes[names.QUOTA_HEADROOM] = denied.headroom
    stage.attributes[names.QUOTA_ACTION] = action


def _turned_back(draft: Draft) -> tuple[Status, Reason]:
    """Return how a request ends that does not come in."""
    return (Status.QUEUED, draft.job.reason) if draft.job else (Status.REFUSED, Reason.RATE_LIMIT)


_UNBOOKED = "the cost of an attempt could not be booked: %s"


async def _durable(booked: Awaitable[None]) -> None:
    """Wait until an attempt is booked; a ledger that fails costs an entry, not the answer that was paid for."""
    try:
        await booked
    except Exception as error:  # noqa: BLE001 - as above
        log.error(_UNBOOKED, place(error))


def _describe(stage: Note, rung: Rung, call: Call, meter: Meter, held: Reservation | None) -> None:
    stage.usage, stage.cost_nanos = meter.usage, meter.cost.nanos
    if held is not None:
        stage.attributes[names.RESERVED] = held.bound.cost_nanos / NANOS
    stage.attributes[names.COST_SOURCE] = meter.cost.source.value
    if call.escalation is not None:
        stage.attributes[names.FALLBACK_FROM] = call.escalation.source
        stage.attributes[names.FALLBACK_TO] = rung.alias
        stage.attributes[names.FALLBACK_REASON] = call.escalation.reason.value


def _escalation(attempt: Attempt, classification: Classification, hit: Hit) -> Escalation:
    return Escalation(
        source=attempt.rung.alias,
        reason=attempt.reason or Reason.PROVIDER_ERROR,
        classification=classification,
        rejected=attempt.completion,
        failures=attempt.verdict.failures if attempt.verdict else (),
        stale=hit.completion,
    )


def _no_answer(decision: Decision, deadline: float, attempts: Sequence[Attempt]) -> tuple[Status, Reason]:
    last = attempts[-1].reason if attempts else None
    if last in (Reason.BAD_REQUEST, Reason.CONTEXT_TOO_LONG):  # the caller's doing, which is nobody's outage
        return Status.REFUSED, last
    if decision.rungs:
        return Status.FAILED, Reason.TIMEOUT if _past(deadline) else Reason.NO_RUNG_LEFT
    return Status.REFUSED, decision.reason


async def _in_time(deadline: float, judged: Awaitable[tuple[Verdict, Completion]]) -> tuple[Verdict, Completion]:
    try:
        async with asyncio.timeout_at(deadline):
            return await judged
    except TimeoutError:
        msg = "the validators took all of the request's time"
        raise ProviderTimeout(msg) from None


def _past(deadline: float) -> bool:
    return asyncio.get_running_loop().time() >= deadline
