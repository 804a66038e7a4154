"""Limits on the path of a request: what is held, what is settled, and what is done where there is no room."""

# ruff: noqa: ARG002 - stand-ins have the signatures of what they stand for

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.unit.test_router import PRICES, Rig, Scripted, rig
from tracerouter.cache import BoundedMemoryCache, OutputCache
from tracerouter.errors import StoreUnavailable
from tracerouter.quota import SqliteLedger
from tracerouter.quota.accounts import ALL, Account
from tracerouter.store import SqliteStore
from tracerouter.telemetry import names
from tracerouter.tokens import count_request
from tracerouter.types import Balance, Caller, Freshness, Reason, Reservation, Role, Spend, Status, Task
from tracerouter.web import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from tracerouter.types import Claim, Denied, Entry, Outcome

REFUSAL = "I can't help with that."
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
BOUND = PRICES["small"].most(count_request(HELLO), 10)
"""Nano-dollars that the small model may cost for HELLO, with an answer of ten tokens."""


@pytest.fixture
def ledger() -> Iterator[SqliteLedger]:
    store = SqliteStore(":memory:")
    yield SqliteLedger(store)
    store.close()


def limited(ledger: Any, *quotas: dict[str, Any], small: Any = "fine", large: Any = None, **facts: Any) -> Rig:
    """Build a router of two models whose policy has these quotas, and bounds an answer to ten tokens."""
    policy = {"quotas": [{"per": "tenant", **quota} for quota in quotas], "max_output_tokens": 10}
    return rig(small, large, policy=policy | facts.pop("policy", {}), ledger=ledger, **facts)


def balance(ledger: SqliteLedger, role: str = ALL) -> Balance:
    return ledger.balance("default", Account(ledger.calendar.period("day", time.time()), "tenant", role))


def usd(nanos: int) -> str:
    return f"{nanos / 1e9:.9f} USD/day"


async def asked(with_models: Rig, text: str = "hello", **facts: Any) -> Outcome:
    return await with_models.router.route(Task.chat(text, **facts))


async def test_the_bound_is_held_while_a_rung_is_tried(ledger: SqliteLedger) -> None:
    """Input and the most that is asked for are held on every account, and go when the truth is known."""
    with_models = limited(ledger, {"limit": "1 USD/day"}, small="hang")
    routing = asyncio.create_task(asked(with_models, timeout=0.2))
    await with_models.small.started.wait()
    assert balance(ledger) == balance(ledger, "cheap") == Balance(Spend(), Spend(BOUND, 1, count_request(HELLO) + 10))
    await routing
    assert balance(ledger).held == Spend()
    assert balance(ledger).spent.cost_nanos == with_models.row["cost"] * 1e9


async def test_nothing_is_held_where_no_limit_asks_for_it() -> None:
    """Without a limit for the caller the ledger is not asked, so that a request costs no round trip for it."""

    class Unasked:
        async def reserve(self, claim: Claim) -> Reservation:
            raise NotImplementedError

        def settle(self, entry: Entry) -> Awaitable[None]:
            return asyncio.sleep(0)

    tiers: dict[str, Any] = {"free": {}, "pro": {}}
    with_models = limited(Unasked(), {"limit": "1 USD/day", "tier": "free"}, policy={"tiers": tiers})
    outcome = await asked(with_models, caller=Caller(tier="pro"))
    assert outcome.status is Status.ANSWERED
    assert names.RESERVED not in (with_models.spans()["cheap"].attributes or {})


async def test_a_cancelled_request_holds_nothing(ledger: SqliteLedger) -> None:
    """What was held is released, and what was made is charged."""
    with_models = limited(ledger, {"limit": "1 USD/day"}, small="hang")
    routing = asyncio.create_task(asked(with_models))
    await with_models.small.started.wait()
    routing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await routing
    await ledger._store.transact(lambda _: None)  # the writer has come to it
    assert balance(ledger).held == Spend()
    assert balance(ledger).spent.cost_nanos == with_models.row["cost"] * 1e9 > 0


async def test_a_request_cancelled_while_it_reserves_holds_nothing(ledger: SqliteLedger) -> None:
    """Its owner is gone: a reservation that came about all the same is given back, not left to its lease."""
    with_models = limited(ledger, {"limit": "1 USD/day"})
    reserve, granted = ledger.reserve, asyncio.Event()

    async def late(claim: Claim) -> Reservation | Denied:
        found = await reserve(claim)
        granted.set()
        await asyncio.Event().wait()
        return found

    ledger.reserve = late  # type: ignore[method-assign]
    routing = asyncio.create_task(asked(with_models))
    await granted.wait()
    routing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await routing
    await ledger._store.transact(lambda _: None)
    assert balance(ledger) == Balance()


async def test_at_a_limit_a_request_is_refused_with_its_name(ledger: SqliteLedger) -> None:
    """No model is asked; record, span and outcome tell limit, headroom and action with one word of a reason."""
    with_models = limited(ledger, {"limit": usd(BOUND - 1)})
    outcome = await asked(with_models)
    assert (outcome.status, outcome.reason) == (Status.REFUSED, Reason.BUDGET_EXHAUSTED)
    assert not with_models.small.calls
    assert outcome.denied is not None
    assert outcome.denied.limit.name == f"tenant {usd(BOUND - 1)}"
    row = with_models.row
    assert (row["quota_scope"], row["quota_headroom"]) == (outcome.denied.limit.name, (BOUND - 1) / 1e9)
    assert (row["route"], row["quota_action"]) == ("refused", "refuse")
    quota = with_models.spans()["quota"]
    assert (quota.attributes or {})[names.QUOTA_SCOPE] == outcome.denied.limit.name
    assert [dict(event.attributes or {})[names.QUOTA_ACTION] for event in quota.events] == ["refuse"]
    assert balance(ledger) == Balance()


async def test_a_bound_that_just_fits_goes_through(ledger: SqliteLedger) -> None:
    """The limit itself may be spent."""
    outcome = await asked(limited(ledger, {"limit": usd(BOUND)}))
    assert outcome.status is Status.ANSWERED
    assert outcome.headers["x-tracerouter-budget-remaining"] == "0.000000000 USD/day"


async def test_what_is_left_is_told_of_the_tightest_limit(ledger: SqliteLedger) -> None:
    """The header tells the limit with the smallest share left."""
    outcome = await asked(limited(ledger, {"limit": "1 USD/day"}, {"limit": "4 requests/month"}))
    assert outcome.headers["x-tracerouter-budget-remaining"] == "3 requests/month"


async def test_a_request_is_downgraded_to_the_rung_below(ledger: SqliteLedger) -> None:
    """Where the expensive model has no room the cheap one answers, and the reason says why."""
    quota = {"limit": "0 requests/day", "role": "expensive", "then": ["downgrade", "refuse"]}
    with_models = limited(ledger, quota)
    outcome = await asked(with_models, hint="sql")
    assert [(one.rung.alias, one.rung.role) for one in outcome.attempts] == [("small", Role.CHEAP)]
    assert (outcome.status, outcome.reason) == (Status.ANSWERED, Reason.BUDGET_EXHAUSTED)
    assert with_models.row["quota_action"] == "downgrade"
    assert with_models.row["route"] == "cheap"


async def test_there_is_no_downgrade_from_the_lowest_rung(ledger: SqliteLedger) -> None:
    """The next action is tried, and the span tells that the first did not apply."""
    with_models = limited(ledger, {"limit": "0 requests/day", "then": ["downgrade", "refuse"]})
    outcome = await asked(with_models)
    assert outcome.status is Status.REFUSED
    events = [dict(event.attributes or {}) for event in with_models.spans()["quota"].events]
    assert events == [
        {names.QUOTA_ACTION: "downgrade", "applied": False},
        {names.QUOTA_ACTION: "refuse", "applied": True},
    ]


@pytest.mark.parametrize(
    ("fallback", "status", "answer"),
    [("accept", Status.ANSWERED, REFUSAL), ("stale", Status.REFUSED, None), ("refuse", Status.REFUSED, None)],
)
@pytest.mark.parametrize("hint", [None, "sql"])
async def test_a_fallback_without_room_is_the_policys_to_decide(
    ledger: SqliteLedger, fallback: str, status: Status, answer: str | None, hint: str | None
) -> None:
    """After a rejected cheap answer: accept it, marked; or a stale one, of which there is none here; or refuse."""
    quota = {"limit": "0 requests/day", "role": "expensive", "then": ["downgrade"], "fallback": fallback}
    with_models = limited(ledger, quota, small=REFUSAL)
    outcome = await asked(with_models, hint=hint)
    assert (outcome.status, outcome.reason) == (status, Reason.BUDGET_EXHAUSTED)
    assert (outcome.completion.text if outcome.completion else None) == answer
    assert not with_models.large.calls
    assert outcome.cost_nanos == 120
    assert outcome.facts.get("unvalidated") == (True if fallback == "accept" else None)


async def test_an_unvalidated_answer_is_not_kept(ledger: SqliteLedger) -> None:
    """What the validators turned down is nobody else's answer."""
    quota = {"limit": "0 requests/day", "role": "expensive", "fallback": "accept"}
    with_models = limited(ledger, quota, small=REFUSAL, cache=OutputCache(BoundedMemoryCache()))
    for _ in range(2):
        assert (await asked(with_models)).status is Status.ANSWERED
    assert len(with_models.small.calls) == 2


async def test_a_stale_answer_is_given_with_its_age(ledger: SqliteLedger) -> None:
    """Where there is no room an expired answer may do, and says how old it is."""
    with_models = limited(
        ledger, {"limit": "1 requests/day", "then": ["stale"]}, cache=OutputCache(BoundedMemoryCache())
    )
    await asked(with_models)
    outcome = await asked(with_models, freshness=Freshness(max_age=0))
    assert (outcome.status, outcome.reason) == (Status.STALE, Reason.BUDGET_EXHAUSTED)
    assert outcome.completion is not None
    assert outcome.completion.text == "fine"
    assert (outcome.facts["cache"], outcome.cost_nanos) == ("stale", 0)
    assert 0 <= outcome.facts["cache_age"] < 60
    assert (with_models.row["route"], with_models.row["served_model"]) == ("cached", "small")


LONG = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first " * 50},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]},
        {"role": "tool", "content": "an answer of a tool", "tool_call_id": "1"},
        {"role": "user", "content": "second " * 20},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "hello"},
    ]
}


@pytest.mark.parametrize(("room", "kept"), [(10**9, 7), (70, 4), (30, 2)])
async def test_a_conversation_is_shortened_from_its_oldest_turn(ledger: SqliteLedger, room: int, kept: int) -> None:
    """Whole turns go, oldest first, until the rest fits; system and last turn stay, and how many went is told."""
    with_models = limited(ledger, {"limit": f"{room} tokens/day", "then": ["shorten"]})
    outcome = await with_models.router.route(Task.parse(LONG))
    assert outcome.status is Status.ANSWERED
    sent = with_models.small.calls[0].body["messages"]
    assert len(sent) == kept
    assert sent[0] == LONG["messages"][0]
    assert sent[-1] == LONG["messages"][-1]
    assert outcome.facts.get("turns_dropped") == {7: None, 4: 1, 2: 2}[kept]


async def test_a_conversation_that_can_not_be_shortened_enough_is_refused_whole(ledger: SqliteLedger) -> None:
    """The last turn is never cut."""
    with_models = limited(ledger, {"limit": "20 tokens/day", "then": ["shorten"]})
    outcome = await with_models.router.route(Task.parse(LONG))
    assert outcome.status is Status.REFUSED
    assert not with_models.small.calls


async def test_an_answer_to_a_shortened_conversation_is_not_kept(ledger: SqliteLedger) -> None:
    """It answers another question."""
    with_models = limited(
        ledger, {"limit": "70 tokens/day", "then": ["shorten"]}, cache=OutputCache(BoundedMemoryCache())
    )
    await with_models.router.route(Task.parse(LONG))
    again = await with_models.router.route(Task.parse(LONG))
    assert again.status is Status.REFUSED


async def test_a_truth_above_its_bound_is_counted(ledger: SqliteLedger) -> None:
    """What was spent is booked as it is, and a metric tells that the bound was none."""
    with_models = limited(ledger, {"limit": "1 USD/day"})
    await asked(with_models)  # a scripted call uses 110 tokens, whatever was asked
    assert balance(ledger) == Balance(Spend(120, 1, 110), Spend())
    values = with_models.router.telemetry.instruments.quota_decisions.values
    assert values == {(None, "underreserved"): 1}


async def test_a_retry_that_may_be_billed_needs_room_of_its_own(ledger: SqliteLedger) -> None:
    """After a lost answer the next try is held as well; without room there is none, so that no limit is overspent."""
    for tries, limit in ((1, usd(BOUND)), (2, "1 USD/day")):
        with_models = limited(ledger, {"limit": limit, "name": str(tries)}, small=Scripted("lost", "lost"))
        model = with_models.router.models["small"]
        object.__setattr__(model, "retries", 1)
        await asked(with_models, model="small")
        assert len(with_models.small.calls) == tries
        assert balance(ledger).held == Spend()


@pytest.mark.parametrize(
    ("closed", "hint", "status"),
    [
        (["expensive"], None, Status.ANSWERED),
        (["expensive"], "sql", Status.ANSWERED),
        (["cheap", "expensive"], None, Status.REFUSED),
        ([], "sql", Status.ANSWERED),
    ],
)
async def test_without_a_ledger_policy_says_who_is_served(closed: list[str], hint: str | None, status: Status) -> None:
    """A ledger that fails closes the roles that policy names, and no others; the expensive is downgraded if it can."""

    class Gone:
        async def reserve(self, claim: Claim) -> Reservation:
            raise StoreUnavailable

        def settle(self, entry: Entry) -> Awaitable[None]:
            return asyncio.sleep(0)

    with_models = limited(Gone(), {"limit": "1 USD/day"}, policy={"without_ledger": {"closed": closed}})
    outcome = await asked(with_models, hint=hint)
    assert outcome.status is status
    served_large = bool(with_models.large.calls)
    assert served_large == (hint == "sql" and not closed)
    if closed and (hint == "sql" or "cheap" in closed):
        assert outcome.reason is Reason.LEDGER_UNAVAILABLE
        assert with_models.row["quota_scope"] == "ledger"


async def test_limits_hold_by_who_asks(ledger: SqliteLedger) -> None:
    """One user's limit is no other's, a tier's and a tenant's hold for theirs alone."""
    tiers: dict[str, Any] = {"free": {}, "pro": {}}
    with_models = limited(
        ledger,
        {"per": "user", "limit": "1 requests/day"},
        {"limit": "0 requests/month", "tier": "free"},
        {"limit": "0 requests/month", "tenant": "globex"},
        policy={"tiers": tiers},
    )

    async def status(**caller: Any) -> Status:
        return (await asked(with_models, caller=Caller(**caller))).status

    assert await status(tenant="acme", user="ada") is Status.ANSWERED
    assert await status(tenant="acme", user="ada") is Status.REFUSED
    assert await status(tenant="acme", user="bob") is Status.ANSWERED
    assert await status(tenant="acme") is Status.ANSWERED
    assert await status(tenant="acme") is Status.REFUSED
    assert await status(tenant="initech", user="ada") is Status.ANSWERED
    assert await status(tenant="initech", user="bob", tier="free") is Status.REFUSED
    assert await status(tenant="globex", user="bob") is Status.REFUSED


async def test_what_never_fits_is_not_put_off(ledger: SqliteLedger) -> None:
    """A request larger than the whole limit is refused without a time to ask again; another gets one."""
    with_models = limited(ledger, {"limit": usd(BOUND - 1)})
    never = await asked(with_models)
    assert never.denied is not None
    assert never.denied.retry_after == math.inf
    assert "retry-after" not in errors.response(errors.of_outcome(never), "r").headers
    later = limited(ledger, {"limit": usd(BOUND), "name": "later"})
    assert (await asked(later)).status is Status.ANSWERED
    full = await asked(later, "hi")
    assert full.denied is not None
    assert 0 < full.denied.retry_after <= 86_400
    told = errors.response(errors.of_outcome(full), "r")
    assert int(told.headers["retry-after"]) <= 86_400
    assert isinstance(told.body, bytes)
    assert orjson.loads(told.body)["tracerouter"]["quota_action"] == "refuse"


async def test_what_is_pinned_is_never_downgraded_past_it(ledger: SqliteLedger) -> None:
    """A caller that names a model gets that one or none; a model that stands on no ladder counts as expensive."""
    quota = {"limit": "0 requests/day", "role": "expensive", "then": ["downgrade"]}
    with_models = limited(
        ledger, quota, policy={"ladder": ["small"], "ladders": {"eu": ["large"]}, "tasks": {}, "risks": {}}
    )
    for name in ("eu", "large"):
        outcome = await asked(with_models, model=name)
        assert (outcome.status, outcome.reason) == (Status.REFUSED, Reason.BUDGET_EXHAUSTED)
    assert not with_models.small.calls
    assert not with_models.large.calls


async def test_a_downgraded_answer_is_nobody_elses(ledger: SqliteLedger) -> None:
    """Who has room is not given the lesser answer of who had none."""
    quota = {"per": "user", "limit": "1 requests/day", "role": "expensive", "then": ["downgrade"]}
    with_models = limited(ledger, quota, cache=OutputCache(BoundedMemoryCache()))
    ann, bob = Caller(user="ann"), Caller(user="bob")
    await asked(with_models, "first", hint="sql", caller=ann)
    lesser = await asked(with_models, hint="sql", caller=ann)
    assert [one.rung.alias for one in lesser.attempts] == ["small"]
    full = await asked(with_models, hint="sql", caller=bob)
    assert (full.status, [one.rung.alias for one in full.attempts]) == (Status.ANSWERED, ["large"])


async def test_a_limit_that_is_used_up_stops_what_has_no_price(ledger: SqliteLedger) -> None:
    """Where the bound of a call is not known, the least is held."""
    with_models = limited(ledger, {"limit": "0 USD/day"})
    object.__setattr__(with_models.router.models["small"], "price", None)
    assert (await asked(with_models, model="small")).status is Status.REFUSED


async def test_a_slow_ledger_costs_no_request_more_than_its_time(ledger: SqliteLedger) -> None:
    """At the deadline it counts as one that does not answer."""

    async def never(claim: Claim) -> Reservation | Denied:
        await asyncio.Event().wait()
        raise AssertionError

    with_models = limited(ledger, {"limit": "1 USD/day"}, policy={"without_ledger": {"closed": ["cheap", "expensive"]}})
    ledger.reserve = never  # type: ignore[method-assign]
    outcome = await asyncio.wait_for(asked(with_models, timeout=0.05), 5)
    assert (outcome.status, outcome.reason) == (Status.REFUSED, Reason.LEDGER_UNAVAILABLE)
