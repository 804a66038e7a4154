"""One model call: time, retries, cost, and the one span that tells of it."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracerouter.errors import (
    AnswerLost,
    ContextTooLong,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    RequestRejected,
    ServerFailed,
    Unreachable,
)
from tracerouter.pricing import Price
from tracerouter.providers import Model
from tracerouter.telemetry import Timeline, names
from tracerouter.tokens import count, count_request
from tracerouter.types import Call, Completion, Cost, Meter, Source, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracerouter.protocols import Sink
    from tracerouter.telemetry import Note

PRICE = Price(1_000_000, 2_000_000, 500_000)
BODY = {"model": "toy", "messages": [{"role": "user", "content": "What does VAT stand for?"}]}
DONE = Completion.of("fine", model="toy-2026")


class Steps:
    """Does one step after the other, each a function of the meter and the sink."""

    def __init__(self, *steps: Callable[[Meter, Sink | None], Any]) -> None:
        self._steps = list(steps)
        self.calls: list[Call] = []

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        self.calls.append(call)
        meter.sent()
        found = self._steps.pop(0)(meter, sink)
        result: Completion = await found if asyncio.iscoroutine(found) else found
        return result


def fails(error: Exception, *, refused: bool = True) -> Callable[[Meter, Sink | None], Any]:
    def step(meter: Meter, _: Sink | None) -> Any:
        if refused:
            meter.refused()
        raise error

    return step


def answers(usage: Usage | None = Usage(10, 5), *, said: str = "") -> Callable[[Meter, Sink | None], Any]:  # noqa: B008
    def step(meter: Meter, _: Sink | None) -> Any:
        meter.received(said)
        if usage is not None:
            meter.reported(usage)
        return DONE

    return step


class Slept:
    """Stands for ``asyncio.sleep``: remembers, and does not wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits: list[float] = []
        monkeypatch.setattr("tracerouter.providers.model.asyncio.sleep", self)

    async def __call__(self, wait: float) -> None:
        self.waits.append(wait)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Slept:
    return Slept(monkeypatch)


async def asked(
    provider: Any, *, sink: Sink | None = None, seconds: float = 30.0, meter: Meter | None = None, **facts: Any
) -> tuple[Completion | ProviderError, Note, Meter]:
    """Ask a model once, and return what came of it, its span and its meter."""
    model = Model(alias="small", name="toy", provider=provider, **{"price": PRICE, **facts})
    timeline, meter = Timeline(), meter or Meter()
    call = Call(BODY, asyncio.get_running_loop().time() + seconds)
    result: Completion | ProviderError
    try:
        result = await model.complete(call, meter, timeline, sink)
    except ProviderError as error:
        result = error
    (note,) = timeline.notes
    return result, note, meter


async def test_one_span_tells_of_the_call() -> None:
    """The ``chat`` span has the GenAI conventions' attributes, the tokens and the cost, and its id goes upstream."""
    provider = Steps(answers(Usage(10, 5, 4, 2)))
    result, note, _ = await asked(provider, kind="openai", address="api.test", port=443)
    assert isinstance(result, Completion)
    assert note.name == "chat toy"
    assert note.attributes == {
        names.GEN_AI_OPERATION: "chat",
        names.GEN_AI_PROVIDER: "openai",
        names.GEN_AI_REQUEST_MODEL: "toy",
        names.GEN_AI_RESPONSE_MODEL: "toy-2026",
        names.GEN_AI_FINISH_REASONS: ["stop"],
        names.SERVER_ADDRESS: "api.test",
        names.SERVER_PORT: 443,
        names.COST_SOURCE: "reported",
    }
    assert (note.usage, note.cost_nanos, note.error_type) == (Usage(10, 5, 4, 2), 6 + 2 + 10, None)
    assert provider.calls[0].headers["traceparent"] == note.traceparent
    assert result.body["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


async def test_retries_are_events_of_one_span(slept: Slept) -> None:
    """Failures that may pass are tried again, each told as an event with its cause and wait; the span does not fail."""
    provider = Steps(fails(ServerFailed("500")), fails(Unreachable("gone")), answers())
    result, note, meter = await asked(provider, retries=2)
    assert isinstance(result, Completion)
    assert [(name, told[names.ERROR_TYPE], told["wait"]) for name, _, told in note.events] == [
        ("retry", "provider_error", slept.waits[0]),
        ("retry", "provider_error", slept.waits[1]),
    ]
    assert note.error_type is None
    assert [use.refused for use in meter.uses] == [True, True, False]
    assert note.cost_nanos == 20


async def test_a_readers_time_is_not_the_models() -> None:
    """A sink may let the model wait for longer than a try may take; the model's own silence and the deadline count."""

    async def slow_sink(_: Mapping[str, Any]) -> None:
        await asyncio.sleep(0.15)

    async def writes(silence: float, _: Meter, sink: Sink | None) -> Completion:
        assert sink is not None
        for _turn in range(3):
            await sink({})
        await asyncio.sleep(silence)
        return DONE

    for silence, seconds, wanted in ((0.0, 30, Completion), (0.2, 30, ProviderTimeout), (0.0, 0.3, ProviderTimeout)):
        result, _, _ = await asked(Steps(partial(writes, silence)), sink=slow_sink, timeout=0.1, seconds=seconds)
        assert isinstance(result, wanted)


async def test_waits_are_jittered_below_a_doubling_bound(slept: Slept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is anything from 0 to a bound that doubles from a quarter second to eight, so that callers spread."""
    bounds: list[float] = []

    def drawn(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return high / 3

    monkeypatch.setattr(random, "uniform", drawn)
    await asked(Steps(*[fails(ServerFailed("500"))] * 9), retries=8, seconds=1000)
    assert bounds == [0.25, 0.5, 1, 2, 4, 8, 8, 8, 8]  # one is drawn for the last failure too, and not slept
    assert slept.waits == [bound / 3 for bound in bounds[:-1]]


async def test_waits_differ(slept: Slept) -> None:
    """Two callers that fail at the same moment do not come back at the same moment."""
    for _ in range(20):
        await asked(Steps(fails(ServerFailed("500")), answers()), retries=1)
    assert len(set(slept.waits)) == 20
    assert all(0 <= wait <= 0.25 for wait in slept.waits)


async def test_retry_after_is_honoured(slept: Slept) -> None:
    """Where the provider says when to come back, it is not asked earlier."""
    result, _, _ = await asked(Steps(fails(RateLimited("429", retry_after=7.5)), answers()), retries=1)
    assert isinstance(result, Completion)
    assert slept.waits == [7.5]


async def test_no_retry_beyond_the_deadline(slept: Slept) -> None:
    """Where the wait would pass the deadline the failure is told at once, so that another model has the time."""
    provider = Steps(fails(RateLimited("429", retry_after=60)))
    result, note, _ = await asked(provider, retries=3, seconds=5)
    assert isinstance(result, RateLimited)
    assert (slept.waits, note.events, note.error_type) == ([], [], "rate_limited")


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (RateLimited("429"), 3),
        (ServerFailed("500"), 3),
        (Unreachable("gone"), 3),
        (AnswerLost("cut"), 3),
        (ProviderTimeout("late"), 1),
        (ContextTooLong("long"), 1),
        (RequestRejected("400"), 1),
    ],
)
async def test_only_what_may_pass_is_tried_again(slept: Slept, error: ProviderError, tries: int) -> None:
    """What will fail the same way the next time is not asked twice; the last failure is the one that is told."""
    provider = Steps(*[fails(error)] * 3)
    result, note, _ = await asked(provider, retries=2)
    assert result is error
    assert len(provider.calls) == tries
    assert (note.error_type, note.status_message) == (
        error.reason,
        type(error).__name__,
    )  # its words may quote a prompt


async def test_no_retry_after_a_chunk_went_out(slept: Slept) -> None:
    """A stream that breaks after its first chunk is not begun anew: the caller has half of it."""
    got: list[Any] = []

    async def sink(chunk: Mapping[str, Any]) -> None:
        got.append(chunk)

    async def breaks(meter: Meter, to: Sink) -> Completion:
        meter.first_chunk_ns = 1
        meter.received("half an")
        await to({"choices": []})
        msg = "cut"
        raise AnswerLost(msg)

    provider = Steps(lambda meter, to: breaks(meter, to or sink), answers())
    result, note, _ = await asked(provider, sink=sink, retries=3)
    assert isinstance(result, AnswerLost)
    assert len(provider.calls) == len(got) == 1
    assert note.attributes[names.COST_SOURCE] == "estimated"
    assert note.usage == Usage(count_request(BODY), count("half an"))
    assert names.GEN_AI_FIRST_CHUNK in note.attributes


async def test_input_that_was_reported_ahead_is_no_estimate() -> None:
    """Where the provider tells the input before its answer, a broken answer costs that, and the output that came."""

    async def breaks(meter: Meter) -> Completion:
        meter.begun(Usage(100, 1, cached=40))
        meter.received("half an")
        msg = "cut"
        raise AnswerLost(msg)

    _, note, _ = await asked(Steps(lambda meter, _: breaks(meter)))
    assert note.attributes[names.COST_SOURCE] == "estimated"
    assert note.usage == Usage(100, count("half an"), cached=40)


async def test_a_try_has_its_own_time_limit() -> None:
    """A model that hangs is given up after its own time limit, and what it may have used is estimated."""

    async def hang() -> Completion:
        await asyncio.Event().wait()
        raise AssertionError

    provider = Steps(lambda _, __: hang())
    result, note, _ = await asked(provider, timeout=0.01, retries=3)
    assert isinstance(result, ProviderTimeout)
    assert str(result) == "model 'small' gave no answer in time"
    assert len(provider.calls) == 1
    assert note.error_type == "timeout"
    assert (note.usage, note.attributes[names.COST_SOURCE]) == (Usage(count_request(BODY), 0), "estimated")


async def test_the_calls_deadline_is_the_earlier_limit() -> None:
    """However long a model may take, the request's deadline ends its call; one that has passed, at once."""

    async def hang() -> Completion:
        await asyncio.Event().wait()
        raise AssertionError

    for seconds in (0.01, -1.0):
        result, _, _ = await asked(Steps(lambda _, __: hang()), timeout=60, seconds=seconds)
        assert isinstance(result, ProviderTimeout)


async def test_a_cancelled_call_leaves_a_closed_span_with_its_cost() -> None:
    """When the caller goes, the span closes as cancelled and says what was sent."""
    started = asyncio.Event()

    async def hang(meter: Meter) -> Completion:
        meter.received("half")
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    model = Model(alias="small", name="toy", provider=Steps(lambda meter, _: hang(meter)), price=PRICE)
    timeline, meter = Timeline(), Meter()
    call = Call(BODY, asyncio.get_running_loop().time() + 30)
    working = asyncio.create_task(model.complete(call, meter, timeline, None))
    await started.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    (note,) = timeline.notes
    assert note.end_ns
    assert note.error_type == "cancelled"
    assert note.cost_nanos == PRICE.cost(Usage(count_request(BODY), count("half")))


async def test_lost_tries_are_billed_with_the_one_that_answered(slept: Slept) -> None:
    """A try that was lost after it was sent costs its input besides; the sum is known no better than its worst part."""
    provider = Steps(fails(AnswerLost("cut"), refused=False), answers(Usage(10, 5)))
    result, note, _ = await asked(provider, retries=1)
    assert isinstance(result, Completion)
    sent = Usage(count_request(BODY))
    assert note.usage == sent.plus(Usage(10, 5))
    assert note.cost_nanos == PRICE.cost(sent) + PRICE.cost(Usage(10, 5))
    assert note.attributes[names.COST_SOURCE] == "estimated"


def model_of(price: Price | None) -> Model:
    return Model(alias="small", name="toy", provider=Steps(), price=price)


def meter_of(usages: Sequence[Usage | None], charged: Sequence[int | None] = ()) -> Meter:
    meter = Meter()
    for at, usage in enumerate(usages):
        meter.sent()
        if usage is not None:
            meter.reported(usage)
        if at < len(charged) and charged[at] is not None:
            meter.charged(charged[at] or 0)
    return meter


TOKENS = st.integers(0, 10**6)


@given(st.lists(st.tuples(TOKENS, TOKENS), max_size=6), st.integers(0, 10**10))
def test_each_try_is_rounded_once(tries: list[tuple[int, int]], amount: int) -> None:
    """The cost is the sum of what each try costs, rounded as the upstream bills it: not the cost of the sum."""
    price = Price(amount, amount // 3, amount)
    usages = [Usage(*tokens) for tokens in tries]
    usage, cost = model_of(price).bill(meter_of(usages), BODY)
    assert cost == Cost(sum(price.cost(one) for one in usages), Source.REPORTED)
    assert usage == Usage(sum(i for i, _ in tries), sum(o for _, o in tries))


def test_two_halves_are_two_roundings() -> None:
    """Two tries of half a nano-dollar cost nothing, as each rounds to the even 0; one call of both would cost 1."""
    usage, cost = model_of(Price(500_000, 0, 500_000)).bill(meter_of([Usage(1), Usage(1)]), BODY)
    assert (usage, cost.nanos) == (Usage(2), 0)


def test_nothing_sent_costs_nothing() -> None:
    """What was not sent, or refused by the upstream, costs 0, and that is known."""
    refused = meter_of([None])
    refused.refused()
    for price in (PRICE, None):
        assert model_of(price).bill(Meter(), BODY) == (Usage(), Cost(0, Source.REPORTED))
        assert model_of(price).bill(refused, BODY) == (Usage(), Cost(0, Source.REPORTED))


def test_an_unknown_price_is_left_out() -> None:
    """Without a price the cost is None, never 0 and never a guess; the tokens are told still."""
    usage, cost = model_of(None).bill(meter_of([Usage(10, 5)]), BODY)
    assert (usage, cost) == (Usage(10, 5), Cost(None, Source.UNKNOWN))


def test_what_the_upstream_charged_wins() -> None:
    """Where the upstream says what it charged, that is the cost, with or without a price of ours."""
    for price in (PRICE, None):
        usage, cost = model_of(price).bill(meter_of([Usage(10, 5)], [77]), BODY)
        assert (usage, cost) == (Usage(10, 5), Cost(77, Source.REPORTED))
    assert model_of(None).bill(meter_of([Usage(1), Usage(1)], [77]), BODY)[1] == Cost(None, Source.UNKNOWN)


async def test_an_unknown_cost_is_not_on_the_span() -> None:
    """The span of a model without a price carries no cost, and says that it is unknown."""
    _, note, _ = await asked(Steps(answers()), price=None)
    assert (note.cost_nanos, note.attributes[names.COST_SOURCE]) == (None, "unknown")


async def test_content_stands_on_the_span_on_opt_in_only() -> None:
    """Messages and answer are on the span where the timeline may hold them, in the conventions' shape, else nowhere."""
    for capture in (False, True):
        timeline = Timeline(capture=capture)
        model = Model(alias="small", name="toy", provider=Steps(answers()), price=PRICE)
        await model.complete(Call(BODY, asyncio.get_running_loop().time() + 9), Meter(), timeline, None)
        told = timeline.notes[0].attributes
        assert ("VAT" in str(told)) == ("fine" in str(told)) == capture
    assert told[names.GEN_AI_OUTPUT_MESSAGES] == ('[{"role":"assistant","parts":[{"type":"text","content":"fine"}]}]')
