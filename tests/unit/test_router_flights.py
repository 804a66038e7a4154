"""Equal requests at the same time: one does the work, the others wait, and no failure of one is that of all."""

# ruff: noqa: ARG002 - stand-ins have the signatures of what they stand for

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.test_router import USAGE, rig
from tracerouter.cache import BoundedMemoryCache, OutputCache
from tracerouter.errors import CallerGone, ServerFailed
from tracerouter.telemetry import names
from tracerouter.types import Caller, Completion, Freshness, Reason, Status, Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tracerouter.protocols import Sink
    from tracerouter.types import Call, Meter, Outcome

COST = 120
"""Nano-dollars of one call of the small model."""


class Gated:
    """A model that answers when it may, after so many failures, and counts the calls that run at the same time."""

    def __init__(self, failures: float) -> None:
        self.failures = failures
        self.gate = asyncio.Event()
        self.calls = self.running = self.most = 0
        self.cancelled = 0

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        self.calls += 1
        number = self.calls
        self.running += 1
        self.most = max(self.most, self.running)
        meter.sent()
        try:
            if sink is not None:
                meter.received("Be")
                await sink({"choices": [{"index": 0, "delta": {"content": "Be"}, "finish_reason": None}]})
            await self.gate.wait()
            if sink is not None:
                await sink({"choices": [{"index": 0, "delta": {"content": "gun"}, "finish_reason": None}]})
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if number <= self.failures:
            msg = "the server broke"
            raise ServerFailed(msg, status=500)
        meter.reported(USAGE)
        return Completion.of(f"answer {number}", model="gated").with_usage(USAGE)


class Flown:
    """A router with a cache, before one gated model."""

    def __init__(self, *, failures: float = 0, patience: float = 60.0, tasks: Mapping[str, Any] | None = None) -> None:
        self.model = Gated(failures)
        self.cache = OutputCache(BoundedMemoryCache(), patience=patience)
        policy = {"ladder": ["small"], "tasks": tasks or {}, "risks": {}, "validate": ["empty"]}
        made = rig(self.model, policy=policy, cache=self.cache)
        self.router, self.books, self.seen = made.router, made.books, made.seen
        self.rows = made.rows.rows

    @property
    def waiting(self) -> int:
        return sum(flight.waiting for flight in self.cache.flights._by_key.values())

    async def until(self, waiting: int, running: int = 1) -> None:
        """Wait until so many requests wait, and so many calls run."""
        async with asyncio.timeout(5):
            while (self.waiting, self.model.running) != (waiting, running):
                await asyncio.sleep(0)

    def asked(self, many: int, text: str = "hello", **facts: Any) -> list[asyncio.Task[Outcome]]:
        return [asyncio.create_task(self.router.route(Task.chat(text, **facts))) for _ in range(many)]


@pytest.fixture
async def flying() -> AsyncIterator[Flown]:
    made = Flown()
    yield made
    assert not made.cache.flights._by_key
    assert not made.cache.flights._led
    assert not made.cache.flights._alone
    await made.cache.close()


async def test_a_hundred_equal_requests_ask_once(flying: Flown) -> None:
    """One pays; the others are ``cached`` at cost 0, wait under their ``cache`` span, and are linked to its trace."""
    asked = flying.asked(100)
    await flying.until(waiting=99)
    flying.model.gate.set()
    first, *others = await asyncio.gather(*asked)
    assert flying.model.calls == 1
    assert (first.status, first.cost_nanos) == (Status.ANSWERED, COST)
    assert {(one.status, one.reason, one.cost_nanos) for one in others} == {(Status.CACHED, Reason.CACHE_HIT, 0)}
    assert {one.completion.text for one in (first, *others) if one.completion} == {"answer 1"}
    assert len({id(one.completion.body) for one in others if one.completion}) == 99
    assert sum(entry.cost.nanos or 0 for entry in flying.books.entries) == COST

    looked = [span for span in flying.seen.spans if span.name == "cache" and span.links]
    assert len(looked) == 99
    for span in looked:
        assert [f"{link.context.trace_id:032x}" for link in span.links] == [first.facts["trace_id"]]
        assert span.attributes is not None
        assert span.attributes[names.CACHE_STATUS] == "hit"
        assert span.attributes[names.CACHE_WAITED] > 0  # type: ignore[operator]
    counted = flying.router.telemetry.instruments.cache.values
    assert counted == {("memory", "miss"): 1, ("memory", "hit"): 99}


async def test_waiting_for_another_is_no_overhead_of_ours(flying: Flown) -> None:
    """The time that a request waits is the provider's, not the router's."""
    asked = flying.asked(2)
    await flying.until(waiting=1)
    await asyncio.sleep(0.2)  # the time that is measured
    flying.model.gate.set()
    await asyncio.gather(*asked)
    assert all(row["latency_ms"] > 150 > row["overhead_ms"] for row in flying.rows)


async def test_the_one_whose_client_leaves_goes_on_for_the_others(flying: Flown) -> None:
    """It ends for its own caller at once; its work goes on, is kept and booked, and its record tells what it cost."""
    first, *others = flying.asked(3)
    await flying.until(waiting=2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert flying.model.running == 1
    flying.model.gate.set()
    assert [one.status for one in await asyncio.gather(*others)] == [Status.CACHED] * 2
    await flying.until(waiting=0, running=0)
    assert (flying.model.calls, flying.model.cancelled) == (1, 0)
    assert sorted(row["outcome"] for row in flying.rows) == ["answered", "cached", "cached"]
    assert [entry.cost.nanos for entry in flying.books.entries] == [COST]
    assert (await flying.router.route(Task.chat("hello"))).status is Status.CACHED


async def test_the_work_dies_with_its_last_waiter(flying: Flown) -> None:
    """While one waits the call runs; when the last has left it stops at once, and is booked as cancelled."""
    first, second, third = flying.asked(3)
    await flying.until(waiting=2)
    for leaves in (first, second):
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        assert flying.model.running == 1
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    await flying.until(waiting=0, running=0)
    assert flying.model.cancelled == 1
    async with asyncio.timeout(5):
        while len(flying.rows) < 3:
            await asyncio.sleep(0)
    assert {row["outcome"] for row in flying.rows} == {"cancelled"}
    assert len(flying.books.entries) == 1


async def test_nobody_waits_so_the_call_stops_with_its_caller(flying: Flown) -> None:
    """A request that nobody else wants is cancelled as ever: its account is closed when its caller is told."""
    (only,) = flying.asked(1)
    await flying.until(waiting=0)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    assert (flying.model.cancelled, flying.rows[-1]["outcome"]) == (1, "cancelled")


async def test_when_the_one_fails_the_others_try_one_at_a_time() -> None:
    """Nobody is given another's failure, and they do not all fall upon the provider at once."""
    flying = Flown(failures=inf)
    asked = flying.asked(8)
    await flying.until(waiting=7)
    flying.model.gate.set()
    outcomes = await asyncio.gather(*asked)
    assert {one.status for one in outcomes} == {Status.FAILED}
    assert all(len(one.attempts) == 1 for one in outcomes)
    assert (flying.model.calls, flying.model.most) == (8, 1)


async def test_the_first_success_is_everybodys_who_still_waits() -> None:
    """After two failures the third answers for all the others."""
    flying = Flown(failures=2)
    asked = flying.asked(5)
    await flying.until(waiting=4)
    flying.model.gate.set()
    ends = [one.status for one in await asyncio.gather(*asked)]
    assert [ends.count(end) for end in (Status.FAILED, Status.ANSWERED, Status.CACHED)] == [2, 1, 2]
    assert (flying.model.calls, flying.model.most) == (3, 1)


async def test_what_is_not_to_be_kept_is_nobody_elses() -> None:
    """As soon as it is known that an answer will not be kept, all who wait ask for their own, at the same time."""
    flying = Flown(tasks={"news": {"match": ["news"], "cache": {"ttl": 0}}})
    asked = flying.asked(6, "the news")
    await flying.until(waiting=0, running=6)
    flying.model.gate.set()
    outcomes = await asyncio.gather(*asked)
    assert {one.completion.text for one in outcomes if one.completion} == {f"answer {n}" for n in range(1, 7)}


async def test_a_flight_that_takes_too_long_is_given_up_by_one() -> None:
    """After the patience of those who wait one of them asks again, and the others wait for that one: no herd."""
    flying = Flown(patience=0.2)
    asked = flying.asked(10)
    await flying.until(waiting=9)
    await flying.until(waiting=8, running=2)
    flying.model.gate.set()
    outcomes = await asyncio.gather(*asked)
    assert flying.model.calls == 2
    assert [one.status for one in outcomes].count(Status.CACHED) == 8


async def test_who_waits_has_a_deadline_of_its_own(flying: Flown) -> None:
    """It ends as it would by itself, and the one goes on."""
    (first,) = flying.asked(1)
    await flying.until(waiting=0)
    (hasty,) = flying.asked(1, timeout=0.05)
    outcome = await hasty
    assert (outcome.status, outcome.reason) == (Status.FAILED, Reason.TIMEOUT)
    assert not outcome.attempts
    flying.model.gate.set()
    assert (await first).status is Status.ANSWERED


async def test_streams_share_too(flying: Flown) -> None:
    """The one streams as it comes; who waits gets the whole, as from the cache."""
    told: list[list[str]] = [[], []]

    def into(number: int) -> Sink:
        async def take(chunk: Mapping[str, Any]) -> None:
            told[number].append(chunk["choices"][0]["delta"]["content"])

        return take

    first = asyncio.create_task(flying.router.route(Task.chat("hello"), into(0)))
    await flying.until(waiting=0)
    second = asyncio.create_task(flying.router.route(Task.chat("hello"), into(1)))
    await flying.until(waiting=1)
    assert told == [["Be"], []]
    flying.model.gate.set()
    assert [one.status for one in await asyncio.gather(first, second)] == [Status.ANSWERED, Status.CACHED]
    assert told == [["Be", "gun"], ["answer 1"]]


@pytest.mark.parametrize("others", [0, 1])
async def test_a_stream_whose_reader_is_gone_goes_on_only_for_others(flying: Flown, others: int) -> None:
    """Its own caller is told at once; without others the call stops."""
    taken: list[str] = []

    async def take(chunk: Mapping[str, Any]) -> None:
        taken.append(chunk["choices"][0]["delta"]["content"])
        if len(taken) == 2:
            raise ConnectionResetError

    first = asyncio.create_task(flying.router.route(Task.chat("hello"), take))
    await flying.until(waiting=0)
    waiting = flying.asked(others)
    await flying.until(waiting=others)
    flying.model.gate.set()
    with pytest.raises(CallerGone):
        await first
    outcomes = await asyncio.gather(*waiting)
    assert [one.completion.text for one in outcomes if one.completion] == ["answer 1"] * others
    await flying.until(waiting=0, running=0)
    assert sorted(row["outcome"] for row in flying.rows) == (["answered", "cached"] if others else ["cancelled"])


async def test_nobody_waits_for_another_tenant_or_for_a_caller_who_wants_none(flying: Flown) -> None:
    """Tenants wait for their own; ``no-store`` neither waits nor is waited for; ``max-age=0`` takes what is made."""
    mine = flying.asked(2, caller=Caller("acme"))
    theirs = flying.asked(2, caller=Caller("other"))
    alone = flying.asked(2, caller=Caller("acme"), freshness=Freshness(no_store=True))
    young = flying.asked(1, caller=Caller("acme"), freshness=Freshness(max_age=0))
    await flying.until(waiting=3, running=4)
    flying.model.gate.set()
    answers = [
        [one.completion.text for one in await asyncio.gather(*group) if one.completion]
        for group in (mine, theirs, alone, young)
    ]
    assert answers[0] == [answers[3][0]] * 2
    assert len({*answers[0], *answers[1], *answers[2]}) == 4


async def test_who_comes_after_the_cache_was_emptied_waits_for_nothing_older(flying: Flown) -> None:
    """What is under way then goes on for those who wait, and is kept for nobody."""
    before = flying.asked(2)
    await flying.until(waiting=1)
    await flying.cache.invalidate()
    after = flying.asked(1)
    await flying.until(waiting=0, running=2)
    flying.model.gate.set()
    assert [one.completion.text for one in await asyncio.gather(*before, *after) if one.completion] == [
        "answer 1",
        "answer 1",
        "answer 2",
    ]
    outcome = await flying.router.route(Task.chat("hello"))
    assert outcome.completion is not None
    assert outcome.completion.text == "answer 2"


async def test_a_wrapped_handler_is_nobody_elses() -> None:
    """When the cheap rung has failed and the wrapped service is asked, all who wait ask their own."""
    flying = Flown(failures=inf)
    gate, running = asyncio.Event(), 0

    async def handler(call: Call, meter: Meter) -> Completion:
        nonlocal running
        running += 1
        await gate.wait()
        return Completion.of("by hand", model="handler")

    flying.model.gate.set()
    asked = flying.asked(5, handler=handler)
    async with asyncio.timeout(5):
        while running < 5:
            await asyncio.sleep(0)
    gate.set()
    assert {one.completion.text for one in await asyncio.gather(*asked) if one.completion} == {"by hand"}
