"""The path of a request, read off what the router does with models that behave as written."""

# ruff: noqa: ARG002 - stand-ins have the signatures of what they stand for

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway import Seen, cost_of
from tracerouter.cache import BoundedMemoryCache, OutputCache
from tracerouter.classifiers import Chain, RiskClassifier, RulesClassifier
from tracerouter.errors import BadRequest, CallerGone, ConfigError, RateLimited, ServerFailed, UnknownModel
from tracerouter.policy import Policy, PolicyFile
from tracerouter.pricing import Price
from tracerouter.providers import Model, Simulated, SimulatedProvider
from tracerouter.providers.simulated import Rule
from tracerouter.router import Router
from tracerouter.telemetry import Telemetry, Timeline, names
from tracerouter.types import (
    NANOS,
    Caller,
    Claim,
    Classification,
    Completion,
    Entry,
    Freshness,
    Reason,
    Reservation,
    Role,
    Source,
    Status,
    Task,
    Usage,
    usd,
)
from tracerouter.validators import Checks, Custom

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from tracerouter.protocols import Sink
    from tracerouter.types import Call, Meter

USAGE = Usage(100, 10)
PRICES = {"small": Price(1_000_000, 2_000_000, 1_000_000), "large": Price(10_000_000, 20_000_000, 10_000_000)}
"""A call of USAGE costs 120 nano-dollars at the small model, and 1,200 at the large one."""


class Scripted:
    """A model that does what is written, one word a call, and remembers what it was asked."""

    def __init__(self, *script: str) -> None:
        self._script = list(script)
        self.calls: list[Call] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        word = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        self.calls.append(call)
        meter.sent()
        self.started.set()
        if word == "hang":
            await self._hang()
        if word == "429":
            meter.refused()
            msg = "busy"
            raise RateLimited(msg, status=429)
        if word == "lost":
            msg = "the server broke"
            raise ServerFailed(msg, status=500)
        meter.reported(USAGE)
        if sink is not None:
            for at, piece in enumerate(word.split("|")):
                if piece == "hang":
                    await self._hang()
                if piece == "lost":
                    msg = "the stream broke"
                    raise ServerFailed(msg)
                meter.first_chunk_ns = meter.first_chunk_ns or 1
                meter.received(piece)
                delta = {"content": piece} | ({"role": "assistant"} if at == 0 else {})
                await sink({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        return Completion.of(word.replace("|", ""), model="scripted").with_usage(USAGE)

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Books:
    """A ledger in memory that has room for everything."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    async def reserve(self, claim: Claim) -> Reservation:
        return Reservation(claim.bound)

    def release(self, claim: Claim) -> Awaitable[None]:
        raise NotImplementedError

    def settle(self, entry: Entry) -> Awaitable[None]:
        self.entries.append(entry)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class Rows:
    """A decision log in memory."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def append(self, row: Mapping[str, Any], timeline: Sequence[Mapping[str, Any]] | None) -> bool:
        self.rows.append(row)
        return True


@dataclass
class Rig:
    """A router with all that can be looked at."""

    router: Router
    small: Any
    large: Any
    books: Books = field(default_factory=Books)
    rows: Rows = field(default_factory=Rows)
    seen: Seen = field(default_factory=Seen)

    @property
    def row(self) -> Mapping[str, Any]:
        return self.rows.rows[-1]

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name.split(" ")[0]: span for span in self.seen.spans}


POLICY: dict[str, Any] = {
    "ladder": ["small", "large"],
    "min_confidence": 0,
    "validate": ["refusal"],
    "tasks": {
        "sql": {"start": "large"},
        "extract": {"match": ["^extract"], "validate": ["json_schema"]},
        "summarize": {"match": ["^summarize"], "max_input_tokens": 50},
    },
    "risks": {
        "legal": {"match": ["contract"], "min_confidence": 0.9},
        "medical": {"match": ["dose"], "start": "large"},
    },
    "tiers": {"free": {"ladder": ["small"]}},
}


def rig(small: Any, large: Any = None, *, policy: Mapping[str, Any] | None = None, **facts: Any) -> Rig:
    """Build a router of two models; a string is a script of one word."""
    made = [Scripted(one) if isinstance(one, str) else one for one in (small, large or "the large answer")]
    policy_of = Policy.of(PolicyFile.model_validate({**POLICY, **(policy or {})}))
    books, rows, seen = Books(), Rows(), Seen()
    told = {
        "classifier": RiskClassifier(RulesClassifier(policy_of.label_patterns), policy_of.risks),
        "checks": Checks(),
        "ledger": books,
        "telemetry": Telemetry(span_processors=[seen], decisions=rows),
        **facts,
    }
    models = [
        Model(alias=alias, name=f"{alias}-1", provider=provider, price=PRICES[alias])
        for alias, provider in zip(PRICES, made, strict=True)
    ]
    return Rig(Router(models, policy_of, **told), made[0], made[1], books, rows, seen)


def collecting(into: list[str]) -> Callable[[Mapping[str, Any]], Awaitable[None]]:
    async def sink(chunk: Mapping[str, Any]) -> None:
        into.append(chunk["choices"][0]["delta"].get("content", ""))

    return sink


SCHEMA = {"type": "object", "required": ["total"], "properties": {"total": {"type": "number"}}}
ORDER = {"response_format": {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA}}}


def order(text: str = "extract the order", **facts: Any) -> Task:
    return Task.parse({"messages": [{"role": "user", "content": text}], **ORDER}, **facts)


async def test_a_cheap_answer_that_is_accepted_is_the_answer() -> None:
    """Easy work costs one call of the first rung, and nobody else is asked."""
    with_models = rig("the small answer")
    outcome = await with_models.router.route(Task.chat("hello"))
    assert (outcome.status, outcome.reason, outcome.cost_nanos) == (Status.ANSWERED, Reason.CONFIDENT, 120)
    assert outcome.completion is not None
    assert outcome.completion.text == "the small answer"
    assert [(a.rung.alias, a.rung.role, a.accepted) for a in outcome.attempts] == [("small", Role.CHEAP, True)]
    assert not with_models.large.calls
    assert (with_models.row["route"], with_models.row["served_model"]) == ("cheap", "small")


async def test_a_fallback_builds_on_what_there_is() -> None:
    """The fallback gets the question as it was, the rejected answer, each failure with its path, and the label."""
    with_models = rig('{"total": "many"}', '{"total": 3}')
    task = order()
    outcome = await with_models.router.route(task)
    asked = with_models.large.calls[0].body["messages"]
    assert asked[:-2] == task.messages
    assert asked[-2] == {"role": "assistant", "content": '{"total": "many"}'}
    repair = asked[-1]["content"]
    assert asked[-1]["role"] == "user"
    assert '- $.total: "many" is not of type "number"' in repair
    assert "classified as 'extract' with confidence 1.00" in repair
    assert "earlier answer" not in repair
    assert (outcome.status, outcome.reason) == (Status.ANSWERED, Reason.SCHEMA_INVALID)
    escalation = with_models.large.calls[0].escalation
    assert escalation.rejected.text == '{"total": "many"}'
    assert [(f.code, f.path, f.detail) for f in escalation.failures] == [(Reason.SCHEMA_INVALID, "$.total", "type")]


async def test_a_stale_answer_is_handed_over() -> None:
    """Where the cache held an answer that is too old, the fallback is shown it, marked as possibly out of date."""
    small = Scripted('{"total": 1}', "nothing of use")
    with_models = rig(small, '{"total": 3}', cache=OutputCache(BoundedMemoryCache()))
    await with_models.router.route(order())
    outcome = await with_models.router.route(order(freshness=Freshness(max_age=0)))
    assert with_models.row["cache_status"] == "stale"
    repair = with_models.large.calls[0].body["messages"][-1]["content"]
    assert 'possibly out of date:\n{"total": 1}' in repair
    assert outcome.attempts[0].completion is not None


async def test_after_a_providers_failure_the_question_is_asked_unchanged() -> None:
    """A model that gave no answer leaves nothing to repair: the next one gets the messages as they came."""
    with_models = rig("lost")
    task = Task.chat("hello")
    outcome = await with_models.router.route(task)
    assert with_models.large.calls[0].body["messages"] == task.messages
    assert with_models.large.calls[0].body["model"] == "large-1"
    assert (outcome.status, outcome.reason) == (Status.ANSWERED, Reason.PROVIDER_ERROR)
    assert with_models.row["fallback_from"] == "small"
    assert with_models.row["fallback_to"] == "large"
    assert with_models.row["fallback_reason"] == "provider_error"


async def test_every_attempt_is_told_with_its_cost() -> None:
    """Rejected, lost and accepted attempts each have usage and cost; their sum is ledger, spans, row and header."""
    with_models = rig("I can't help with that.")
    outcome = await with_models.router.route(Task.chat("hello", caller=Caller("acme", "web", "ann")))
    assert [(a.rung.role, a.cost, a.usage, a.reason) for a in outcome.attempts] == [
        (Role.CHEAP, (120, Source.REPORTED), USAGE, Reason.REFUSAL),
        (Role.FALLBACK, (1200, Source.REPORTED), USAGE, None),
    ]
    assert outcome.cost_nanos == 1320
    assert [(e.attempt, e.model, e.role, e.cost.nanos) for e in with_models.books.entries] == [
        (1, "small", Role.CHEAP, 120),
        (2, "large", Role.FALLBACK, 1200),
    ]
    assert {e.caller for e in with_models.books.entries} == {Caller("acme", "web", "ann")}
    assert {e.request_id for e in with_models.books.entries} == {outcome.request_id}
    assert outcome.headers["x-tracerouter-cost"] == "0.000001320"
    assert round(with_models.row["cost"] * NANOS) == 1320
    assert [a["model"] for a in with_models.row["attempts"]] == ["small", "large"]
    assert cost_of(with_models.seen.spans, "route") == cost_of(with_models.seen.spans, "chat") == 1320


async def test_one_deadline_holds_through_all_rungs() -> None:
    """A cheap model that eats the time leaves none for the next: the request fails, at the deadline."""
    with_models = rig("hang")
    loop = asyncio.get_running_loop()
    started = loop.time()
    outcome = await with_models.router.route(Task.chat("hello", timeout=0.05))
    assert loop.time() - started < 1
    assert (outcome.status, outcome.reason) == (Status.FAILED, Reason.TIMEOUT)
    assert [attempt.reason for attempt in outcome.attempts] == [Reason.TIMEOUT]
    assert not with_models.large.calls
    assert with_models.row["error_type"] == "timeout"
    assert with_models.books.entries[0].cost.source is Source.ESTIMATED


async def test_each_rung_is_given_the_same_deadline() -> None:
    """The deadline that a fallback is given is the first rung's, not a new one."""
    with_models = rig("lost", policy={"ladder": ["small", "large"]})
    await with_models.router.route(Task.chat("hello", timeout=30))
    assert with_models.small.calls[0].deadline == with_models.large.calls[0].deadline


async def test_a_caller_that_is_cancelled_stops_the_work() -> None:
    """Cancelling the caller cancels the model's call, closes every span, settles what was sent, and is told."""
    with_models = rig("hang")
    routing = asyncio.create_task(with_models.router.route(Task.chat("hello there")))
    await with_models.small.started.wait()
    routing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await routing
    assert with_models.small.cancelled.is_set()
    spans = with_models.spans()
    assert set(spans) == {"route", "classify", "cheap", "chat"}
    assert all(span.end_time for span in spans.values())
    assert all(not spans[name].status.is_ok for name in ("route", "cheap", "chat"))
    assert {(spans[name].attributes or {})[names.ERROR_TYPE] for name in ("route", "cheap", "chat")} == {"cancelled"}
    (entry,) = with_models.books.entries
    assert entry.cost.source is Source.ESTIMATED
    assert entry.cost.nanos is not None
    assert entry.cost.nanos > 0
    assert (with_models.row["outcome"], with_models.row["reason"]) == ("cancelled", "cancelled")
    assert round(with_models.row["cost"] * NANOS) == entry.cost.nanos
    assert with_models.row["attempts"][0]["failure"] == "cancelled"


async def test_the_first_chunk_commits() -> None:
    """Once a chunk went out no other model may answer: a stream that breaks is a failure, with no fallback."""
    with_models = rig("one |two |lost", policy={"validate": ["empty"]})
    got: list[str] = []
    outcome = await with_models.router.route(Task.chat("hello"), collecting(got))
    assert got == ["one ", "two "]
    assert (outcome.status, outcome.completion) == (Status.FAILED, None)
    assert not with_models.large.calls


async def test_before_the_first_chunk_another_model_may_answer() -> None:
    """A stream that fails before its first chunk falls back, and the caller sees the fallback's alone."""
    with_models = rig("429", "three |four", policy={"validate": ["empty"]})
    got: list[str] = []
    outcome = await with_models.router.route(Task.chat("hello"), collecting(got))
    assert got == ["three ", "four"]
    assert (outcome.status, outcome.reason) == (Status.ANSWERED, Reason.RATE_LIMITED)


async def test_validators_that_read_text_hold_the_stream_back() -> None:
    """Nothing of an answer that may be turned down reaches the caller; what is accepted is poured out whole."""
    with_models = rig("I can't help with that.", "the |large")
    got: list[str] = []
    outcome = await with_models.router.route(Task.chat("hello"), collecting(got))
    assert got == ["the large"]  # one piece, as the model was not asked to stream
    assert outcome.reason is Reason.REFUSAL


async def test_a_sink_that_raises_means_that_the_caller_is_gone() -> None:
    """When the caller takes no more, the model is stopped there, and the request counts as cancelled."""
    after = Scripted("one |two |three ")
    with_models = rig(after, policy={"validate": ["empty"]})
    got: list[str] = []

    async def sink(chunk: Mapping[str, Any]) -> None:
        got.append(chunk["choices"][0]["delta"]["content"])
        if len(got) == 2:
            raise ConnectionResetError

    with pytest.raises(CallerGone):
        await with_models.router.route(Task.chat("hello"), sink)
    assert got == ["one ", "two "]
    assert not with_models.large.calls
    assert with_models.row["outcome"] == "cancelled"
    assert with_models.books.entries[0].cost.nanos == 120
    assert all(span.end_time for span in with_models.seen.spans)


async def test_a_caller_that_leaves_between_chunks_stops_the_stream() -> None:
    """A stream in which the model pauses is stopped there when the caller goes."""
    with_models = rig("one |hang", policy={"validate": ["empty"]})
    got: list[str] = []
    first = asyncio.Event()

    async def sink(chunk: Mapping[str, Any]) -> None:
        got.append(chunk["choices"][0]["delta"]["content"])
        first.set()

    routing = asyncio.create_task(with_models.router.route(Task.chat("hello"), sink))
    await first.wait()
    routing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await routing
    assert with_models.small.cancelled.is_set()
    assert with_models.row["outcome"] == "cancelled"
    assert with_models.row["completion_tokens"] == 10


async def test_a_cached_answer_costs_nothing() -> None:
    """The second of two equal requests is answered from the cache: no model, no cost, no ledger entry."""
    with_models = rig("the small answer", cache=OutputCache(BoundedMemoryCache()))
    first = await with_models.router.route(Task.chat("hello"))
    again = await with_models.router.route(Task.chat("hello"))
    assert (again.status, again.reason, again.cost_nanos, again.attempts) == (Status.CACHED, Reason.CACHE_HIT, 0, ())
    assert again.completion == first.completion
    assert len(with_models.small.calls) == len(with_models.books.entries) == 1
    assert (with_models.row["route"], with_models.row["cache_status"]) == ("cached", "hit")
    assert with_models.row["baseline_cost"] > 0


async def test_a_cached_answer_is_poured_into_the_sink() -> None:
    """A stream that the cache answers gets the whole answer as a chunk."""
    with_models = rig("the small answer", cache=OutputCache(BoundedMemoryCache()))
    await with_models.router.route(Task.chat("hello"))
    got: list[str] = []
    outcome = await with_models.router.route(Task.chat("hello"), collecting(got))
    assert (outcome.status, got) == (Status.CACHED, ["the small answer"])


async def test_poured_tool_calls_are_numbered() -> None:
    """Tool calls of an answer that was held back are poured with the index that OpenAI's clients join them by."""
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}

    class Calls:
        async def complete(self, call_: Call, meter: Meter, sink: Sink | None) -> Completion:
            meter.sent()
            message = {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "c2"}]}
            return Completion({"id": "x", "choices": [{"message": message, "finish_reason": "tool_calls"}]})

    chunks: list[Mapping[str, Any]] = []

    async def sink(chunk: Mapping[str, Any]) -> None:
        chunks.append(chunk)

    await rig(Calls()).router.route(Task.chat("hello"), sink)
    (chunk,) = chunks
    assert (chunk["id"], chunk["object"]) == ("x", "chat.completion.chunk")
    assert [(c["index"], c["id"]) for c in chunk["choices"][0]["delta"]["tool_calls"]] == [(0, "c1"), (1, "c2")]


async def test_a_hint_names_the_task_but_hides_no_risk() -> None:
    """A caller that knows its task is believed on the label; risks are looked for all the same."""
    with_models = rig("fine")
    outcome = await with_models.router.route(Task.chat("hello", hint="sql"))
    assert (outcome.reason, with_models.row["task"]) == (Reason.FORCED_TASK, "sql")
    assert (with_models.row["classifier"], with_models.row["confidence"]) == ("hint", 1.0)
    outcome = await with_models.router.route(Task.chat("which dose?", hint="translate"))
    assert outcome.reason is Reason.RISK
    assert with_models.row["risks"] == ("medical",)


async def test_a_pinned_model_is_the_only_one() -> None:
    """Who names a model gets that one and no other, also when it fails; a tier may not use what it has not."""
    with_models = rig("fine", "lost")
    outcome = await with_models.router.route(Task.chat("hello", model="large"))
    assert (outcome.status, [a.rung.alias for a in outcome.attempts]) == (Status.FAILED, ["large"])
    assert not with_models.small.calls
    outcome = await with_models.router.route(Task.chat("hello", model="small"))
    assert (outcome.status, outcome.reason) == (Status.ANSWERED, Reason.PINNED)
    outcome = await with_models.router.route(Task.chat("hello", model="large", caller=Caller(tier="free")))
    assert (outcome.status, outcome.reason, outcome.attempts) == (Status.REFUSED, Reason.NOT_ALLOWED, ())
    with pytest.raises(UnknownModel, match=r"no model 'lrge' \(did you mean 'large'\?\); known are auto, small, large"):
        await with_models.router.route(Task.chat("hello", model="lrge"))


async def test_long_requests_start_at_the_last_rung() -> None:
    """A request above a task's bound on input tokens is not tried on the cheap model."""
    with_models = rig("fine")
    outcome = await with_models.router.route(Task.chat("summarize: " + "word " * 100))
    assert (outcome.reason, outcome.attempts[0].rung.role) == (Reason.TOO_LONG, Role.EXPENSIVE)
    outcome = await with_models.router.route(Task.chat("summarize: word"))
    assert outcome.reason is Reason.CONFIDENT


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
LOOK = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, IMAGE]}]}


def blind(with_models: Rig, *aliases: str) -> Rig:
    """Let these models take no images."""
    models = with_models.router.models
    models.update({alias: replace(models[alias], vision=False) for alias in aliases})
    return with_models


async def test_an_image_starts_at_the_first_rung_that_takes_it() -> None:
    """A request with an image goes past the rungs that take none, and says so; where none is left it is a 400."""
    outcome = await blind(rig("fine"), "small").router.route(Task.parse(LOOK))
    assert (outcome.reason, [one.rung.alias for one in outcome.attempts]) == (Reason.UNSUPPORTED, ["large"])
    sighted = rig("fine")
    assert (await sighted.router.route(Task.parse(LOOK))).reason is Reason.CONFIDENT
    nobody = blind(rig("fine"), "small", "large")
    for model in ("auto", "small"):
        with pytest.raises(BadRequest, match="no model that may answer them takes images") as raised:
            await nobody.router.route(Task.parse({**LOOK, "model": model}))
        assert raised.value.param == "messages"
    assert nobody.row["reason"] == "bad_request"
    assert not nobody.books.entries
    pinned = blind(rig("fine"), "small")
    with pytest.raises(BadRequest):
        await pinned.router.route(Task.parse({**LOOK, "model": "small"}))
    assert (await pinned.router.route(Task.parse({**LOOK, "model": "large"}))).reason is Reason.PINNED


async def test_n_has_a_bound() -> None:
    """More choices than the policy takes are a 400 that costs nothing; a wrapped service still answers them."""

    async def service(call: Call, meter: Meter) -> Completion:
        return Completion.of("all of them", model="house").with_usage(Usage(1, 1))

    with_models = rig("fine", policy={"max_choices": 2})
    assert (await with_models.router.route(Task.chat("hi", handler=None))).status is Status.ANSWERED
    many = {"n": 3, "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(BadRequest, match=r"`n` must be a whole number from 1 to 2, not 3$"):
        await with_models.router.route(Task.parse(many))
    assert len(with_models.books.entries) == 1
    outcome = await with_models.router.route(Task.parse(many, handler=service))
    assert (outcome.reason, [one.rung.alias for one in outcome.attempts]) == (Reason.UNSUPPORTED, ["handler"])


def single(with_models: Rig, *aliases: str) -> Rig:
    """Let the providers of these models give one answer a request."""
    for alias in aliases:
        provider: Any = with_models.router.models[alias].provider
        provider.max_choices = 1
    return with_models


async def test_n_starts_at_the_first_rung_that_gives_so_many() -> None:
    """A model of one answer a request is passed over beforehand; where none is left it is a 400 that costs nothing."""
    many = Task.parse({"n": 2, "messages": [{"role": "user", "content": "hi"}]})
    with_models = single(rig("fine"), "small")
    outcome = await with_models.router.route(many)
    assert (outcome.reason, [one.rung.alias for one in outcome.attempts]) == (Reason.UNSUPPORTED, ["large"])
    assert with_models.small.calls == []
    last = single(rig("", "fine"), "large")
    assert [one.rung.alias for one in (await last.router.route(many)).attempts] == ["small"]
    nobody = single(rig("fine"), "small", "large")
    for model in ("auto", "small"):
        with pytest.raises(BadRequest, match="`n` must be 1, not 2; no model that may answer gives more") as raised:
            await nobody.router.route(Task.parse({**many.body, "model": model}))
        assert raised.value.param == "n"
    assert not nobody.books.entries
    assert (await nobody.router.route(Task.parse({**many.body, "n": 1}))).status is Status.ANSWERED


async def test_a_rung_must_take_all_that_is_asked() -> None:
    """Where one model takes images, and another gives several answers, a request for both is told so."""
    torn = single(blind(rig("fine"), "small"), "large")
    with pytest.raises(BadRequest, match="no model that may answer them takes images and gives 2 answers") as raised:
        await torn.router.route(Task.parse({**LOOK, "n": 2}))
    assert raised.value.param == "messages"


async def test_a_ladders_name_pins() -> None:
    """A ladder that has a name is climbed by who asks for it, whatever the classifier says, if the tier allows it."""
    ladders = {"careful": ["large", "small"]}
    with_models = rig("the small answer", "I can't help with that.", policy={"ladders": ladders})
    assert with_models.router.names == ["auto", "careful", "small", "large"]
    outcome = await with_models.router.route(Task.chat("hello", model="careful"))
    assert [(one.rung.alias, one.rung.role) for one in outcome.attempts] == [
        ("large", Role.EXPENSIVE),
        ("small", Role.FALLBACK),
    ]
    outcome = await with_models.router.route(Task.chat("hello", model="careful", caller=Caller(tier="free")))
    assert (outcome.status, outcome.reason) == (Status.REFUSED, Reason.NOT_ALLOWED)
    with pytest.raises(ConfigError, match=r"ladders\.small: a model is called so too"):
        rig("fine", policy={"ladders": {"small": ["large"]}})
    with pytest.raises(ConfigError, match=r"ladders\.quick: no model is called 'smal' \(did you mean 'small'\?\)"):
        rig("fine", policy={"ladders": {"quick": ["smal"]}})


async def test_without_a_wrapped_service_there_is_no_handler_rung() -> None:
    """The wrapped service's handler is a rung only for requests that came in through it, and never a model to name."""

    async def service(call: Call, meter: Meter) -> Completion:
        return Completion.of("the service's own", model="house").with_usage(Usage(1, 1))

    with_models = rig("lost", "lost")
    assert with_models.router.aliases == ["small", "large"]
    outcome = await with_models.router.route(Task.chat("hello"))
    assert [attempt.rung.alias for attempt in outcome.attempts] == ["small", "large"]
    outcome = await with_models.router.route(Task.chat("hello", handler=service))
    assert [attempt.rung.alias for attempt in outcome.attempts] == ["small", "large", "handler"]
    assert with_models.router.ended_at_handler(outcome)
    assert outcome.attempts[-1].cost == (None, Source.UNKNOWN)
    assert outcome.cost_nanos is None  # a part of it is not known
    assert "x-tracerouter-cost" not in outcome.headers
    assert "cost" not in outcome.facts
    with pytest.raises(UnknownModel):
        await with_models.router.route(Task.chat("hello", model="handler"))


async def test_a_broken_ledger_does_not_fail_a_request(caplog: pytest.LogCaptureFixture) -> None:
    """A ledger that raises at once, or when it is awaited, costs an entry and a line in the log, not an answer."""

    class AtOnce:
        def settle(self, entry: Entry) -> Awaitable[None]:
            msg = "disk"
            raise OSError(msg)

    class Later:
        def settle(self, entry: Entry) -> Awaitable[None]:
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(OSError("disk"))
            return failed

    for ledger in (AtOnce(), Later()):
        outcome = await rig("fine", ledger=ledger).router.route(Task.chat("hello"))
        assert outcome.status is Status.ANSWERED
    assert caplog.text.count("the cost of an attempt could not be booked") == 2


async def test_a_broken_ledger_does_not_hide_a_cancellation() -> None:
    """Also with a ledger that raises, a cancelled request ends as cancelled and is recorded so."""

    class AtOnce:
        def settle(self, entry: Entry) -> Awaitable[None]:
            msg = "disk"
            raise OSError(msg)

    with_models = rig("hang", ledger=AtOnce())
    routing = asyncio.create_task(with_models.router.route(Task.chat("hello")))
    await with_models.small.started.wait()
    routing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await routing
    assert with_models.row["outcome"] == "cancelled"


async def test_a_broken_cache_does_not_fail_a_request() -> None:
    """A cache whose backend raises is a cache that misses."""

    class Broken(BoundedMemoryCache):
        async def _get(self, key: str, encoding: str | None = "utf-8", _conn: Any = None) -> bytes | None:
            raise OSError

        async def _set(self, *args: Any, **options: Any) -> bool:
            raise OSError

    with_models = rig("fine", cache=OutputCache(Broken()))
    outcome = await with_models.router.route(Task.chat("hello"))
    assert (outcome.status, with_models.row["cache_status"]) == (Status.ANSWERED, "miss")


async def test_broken_telemetry_does_not_fail_a_request(caplog: pytest.LogCaptureFixture) -> None:
    """An exporter or a decision log that raises costs telemetry, not an answer; facts and headers are told still."""

    class Broken(Seen):
        def on_end(self, span: ReadableSpan) -> None:
            raise OSError

    telemetry = Telemetry(span_processors=[Broken()])
    outcome = await rig("fine", telemetry=telemetry).router.route(Task.chat("hello"))
    assert outcome.status is Status.ANSWERED
    assert outcome.facts["cost"] == usd(120)
    assert "the telemetry of a request was lost" in caplog.text
    served = Timeline()
    with served.server("POST /"):
        pass
    telemetry.server_ended(served)
    assert "the span of an HTTP request was lost" in caplog.text


async def test_explain_calls_no_model() -> None:
    """What would be decided can be asked without any model of the ladder, and leaves no trace or spend."""
    with_models = rig("fine")
    found, decision = await with_models.router.explain(Task.chat("extract this contract"))
    assert (found.label, set(found.risks), decision.reason) == ("extract", {"legal"}, Reason.CONFIDENT)
    assert [rung.alias for rung in decision.rungs] == ["small", "large"]
    found, decision = await with_models.router.explain(Task.chat("hello", hint="sql", model="auto"))
    assert (found.label, decision.reason) == ("sql", Reason.FORCED_TASK)
    with pytest.raises(UnknownModel):
        await with_models.router.explain(Task.chat("hello", model="lrge"))
    assert not with_models.small.calls + with_models.large.calls + with_models.books.entries + with_models.seen.spans


async def test_a_bug_in_a_room_is_recorded_as_internal() -> None:
    """An unexpected error goes to the caller, after every span is closed and the request is on record."""

    class Buggy:
        async def classify(self, task: Task) -> Any:
            msg = "a bug"
            raise ZeroDivisionError(msg)

    with_models = rig("fine", classifier=Buggy())
    with pytest.raises(ZeroDivisionError):
        await with_models.router.route(Task.chat("hello"))
    assert (with_models.row["outcome"], with_models.row["reason"]) == ("failed", "internal")
    assert {span.name for span in with_models.seen.spans} == {"route default@1", "classify"}
    assert all(not span.status.is_ok for span in with_models.seen.spans)


async def test_a_policy_that_names_no_model_is_an_error() -> None:
    """A router can't be built on a policy whose aliases are not there."""
    with pytest.raises(ConfigError, match="no model is called 'lrge'"):
        rig("fine", policy={"ladder": ["small", "lrge"], "tasks": {}, "risks": {}, "tiers": {}})


async def test_a_repaired_answer_is_what_is_given_and_kept() -> None:
    """Almost-JSON is mended: the caller, the cache and the next validator see the mended answer."""
    with_models = rig('```json\n{"total": 3,}\n```', cache=OutputCache(BoundedMemoryCache()))
    outcome = await with_models.router.route(order())
    again = await with_models.router.route(order())
    assert outcome.completion is not None
    assert again.completion is not None
    assert outcome.completion.text == again.completion.text == '{"total":3}'
    assert with_models.rows.rows[0]["validation_status"] == "repaired"
    assert again.status is Status.CACHED


async def test_concurrent_requests_do_not_mix() -> None:
    """A hundred requests at once each get their own answer, attempts, trace and entry."""
    answers = [Rule(f"^number {n}$", f"answer {n}") for n in range(100)]
    with_models = rig(SimulatedProvider(Simulated(answers=answers, latency=0.001)))
    tasks = [Task.chat(f"number {n}", request_id=f"r{n}") for n in range(100)]
    outcomes = await asyncio.gather(*(with_models.router.route(task) for task in tasks))
    assert [o.completion.text for o in outcomes if o.completion] == [f"answer {n}" for n in range(100)]
    assert [o.request_id for o in outcomes] == [f"r{n}" for n in range(100)]
    assert len({o.facts["trace_id"] for o in outcomes}) == 100
    spans: dict[int, list[str]] = {}
    for span in with_models.seen.spans:
        assert span.context is not None
        spans.setdefault(span.context.trace_id, []).append(span.name)
    assert {tuple(found) for found in spans.values()} == {
        ("validate", "chat small-1", "cheap", "classify", "route default@1")
    }


async def test_a_validator_has_no_more_time_than_the_request() -> None:
    """A validator that takes the request's time fails the attempt: the deadline holds outside the model call too."""

    async def slow(_: Task, __: Completion) -> None:
        await asyncio.Event().wait()

    checks = Checks(())
    checks._known["slow"] = Custom("slow", slow)
    outcome = await rig("fine", checks=checks, policy={"validate": ["slow"]}).router.route(
        Task.chat("hello", timeout=0.05)
    )
    assert (outcome.status, outcome.reason) == (Status.FAILED, Reason.TIMEOUT)
    assert outcome.attempts[0].reason is Reason.TIMEOUT


async def test_a_classifier_has_no_more_time_than_the_request() -> None:
    """A classifier that hangs abstains when the time is over."""

    class Hanging:
        async def classify(self, _: Task) -> Classification:
            await asyncio.Event().wait()
            raise AssertionError

    hanging = rig("fine", classifier=Hanging())
    outcome = await hanging.router.route(Task.chat("hello", timeout=0.05))
    assert outcome.status is Status.FAILED
    assert dict(hanging.spans()["classify"].attributes or {})["error.type"] == "timeout"


async def test_a_broken_provider_is_a_failed_rung(caplog: pytest.LogCaptureFixture) -> None:
    """A provider of an owner's own that raises anything fails its rung, not the request."""

    class Broken:
        async def complete(self, *_: object) -> Completion:
            msg = "secret words"
            raise KeyError(msg)

    outcome = await rig(Broken()).router.route(Task.chat("hello"))
    assert (outcome.status, outcome.reason) == (Status.ANSWERED, Reason.PROVIDER_ERROR)
    assert "the provider of model small is broken" in caplog.text


async def test_a_log_tells_where_and_not_what(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in the log is a type and the places that led to it: its message may hold a prompt."""

    class Broken:
        async def complete(self, call: Call, *_: object) -> Completion:
            raise KeyError(call.body["messages"][0]["content"])

    await rig(Broken()).router.route(Task.chat("SECRET hello"))
    assert f"KeyError at {__file__}:" in caplog.text
    assert "SECRET" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_classifier_can_ask_a_model_only_for_a_request() -> None:
    """What a classifier asks is the request's to pay; outside of one there is nobody to charge, so nothing is asked."""
    body = {"messages": [{"role": "user", "content": "what is it?"}], "max_tokens": 9}
    seen: list[Completion] = []

    class Asking:
        async def classify(self, task: Task) -> Classification:
            seen.append(await asking.router.ask("large", body, 1.0))
            return Classification("guess", 1.0, classifier="asking")

    asking = rig("fine", classifier=Asking())
    outcome = await asking.router.route(Task.chat("hello"))
    assert [completion.text for completion in seen] == ["the large answer"]
    assert asking.large.calls[0].body == {**body, "model": "large-1"}
    assert [(call.rung.role, call.cost.nanos) for call in outcome.classifier_calls] == [(Role.CLASSIFY, 1200)]
    assert outcome.cost_nanos == 1320
    assert [(e.attempt, e.role) for e in asking.books.entries] == [(1, Role.CLASSIFY), (2, Role.CHEAP)]
    assert (asking.row["attempt_count"], asking.row["classifier_calls"][0]["model"]) == (1, "large")
    with pytest.raises(LookupError):
        await asking.router.ask("large", body, 1.0)
    assert len(asking.large.calls) == 1


async def test_a_classifiers_question_ends_with_the_requests_deadline() -> None:
    """A model that hangs while it is asked takes no more than the request's time, and what was sent is paid for."""

    class Asking:
        async def classify(self, task: Task) -> Classification:
            await asking.router.ask("large", {"messages": [{"role": "user", "content": "well?"}]}, 60)
            return Classification()

    asking = rig("fine", "hang", classifier=Asking())
    outcome = await asyncio.wait_for(asking.router.route(Task.chat("hello", timeout=0.05)), 5)
    assert (outcome.status, outcome.reason) == (Status.FAILED, Reason.TIMEOUT)
    (call,) = outcome.classifier_calls
    assert call.cost.source is Source.ESTIMATED
    assert outcome.cost_nanos == call.cost.nanos == asking.books.entries[0].cost.nanos


async def test_a_classifier_that_fails_stands_on_the_span_of_its_stage() -> None:
    """What it was passed over for is the error of the ``classify`` span; the request is none the worse in its own."""

    class Broken:
        async def classify(self, task: Task) -> Classification:
            raise KeyError(task.text)

    broken = rig("fine", classifier=Chain([Broken()]))
    outcome = await broken.router.route(Task.chat("hush"))
    assert outcome.status is Status.ANSWERED
    told = {name: dict(span.attributes or {}) for name, span in broken.spans().items()}
    assert told["classify"]["error.type"] == "KeyError"
    assert told["classify"]["tracerouter.label"] == "other"
    assert "error.type" not in told["route"]
    assert "hush" not in str(told)


async def test_a_risks_evidence_stands_on_the_span_of_its_stage() -> None:
    """Each risk is an event on the ``classify`` span, with kinds and counts; a hint changes nothing about it."""
    with_models = rig("fine", policy={"risks": {"pii": {}, "legal": {"match": ["bazaar"]}}})
    for hint in (None, "sql"):
        await with_models.router.route(Task.chat("bazaar: a@example.com b@example.com", hint=hint))
        events = with_models.spans()["classify"].events
        assert [(event.name, dict(event.attributes or {})) for event in events] == [
            ("risk", {names.RISKS: ["legal"], "evidence": ["match"]}),
            ("risk", {names.RISKS: ["pii"], "evidence": ["email x2"]}),
        ]
