"""Property: whatever is asked, by whom, in which order and at the same time, answers stay with those they are for."""

# ruff: noqa: ARG002 - stand-ins have the signatures of what they stand for

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.test_router import USAGE, rig
from tracerouter.cache import BoundedMemoryCache, OutputCache
from tracerouter.cache.shared import SharedCache
from tracerouter.store import RedisStore
from tracerouter.types import Caller, Completion, Freshness, Status, Task

if TYPE_CHECKING:
    from tests.redis_server import RedisServer
    from tracerouter.protocols import Sink
    from tracerouter.types import Call, Meter

CALLERS = [Caller(tenant, user=user) for tenant in ("acme", "other") for user in ("ann", "bob", None)]


class Ask(NamedTuple):
    """One request."""

    caller: Caller
    text: str
    max_age: float | None
    leaves: bool
    process: int


ASKS = st.builds(
    Ask,
    caller=st.sampled_from(CALLERS),
    text=st.sampled_from(["hello", "hello ", "bye"]),
    max_age=st.sampled_from([None, None, 0, 60]),
    leaves=st.sampled_from([False, False, False, True]),
    process=st.sampled_from([0, 1]),
)


class Signed:
    """A model whose every answer is another one. Its prompt is all that it knows."""

    def __init__(self) -> None:
        self.made = 0

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        self.made += 1
        number = self.made
        meter.sent()
        await asyncio.sleep(0.001)  # so that equal requests meet
        meter.reported(USAGE)
        return Completion.of(f"answer {number}", model="signed").with_usage(USAGE)


@pytest.mark.parametrize("scope", ["tenant", "user"])
def test_nobody_is_given_what_is_not_for_them(redis_server: RedisServer, scope: str) -> None:
    """An answer, its age and even that there is one reach the tenant (or user) that asked first, and no other."""
    redis_server.start()

    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.lists(ASKS, min_size=1, max_size=6), min_size=1, max_size=6))
    def holds(rounds: list[list[Ask]]) -> None:
        redis_server.ask("FLUSHALL")
        asyncio.run(_asked(redis_server.url, scope, rounds))

    holds()


async def _asked(url: str, scope: str, rounds: list[list[Ask]]) -> None:
    """Ask each round's requests at the same time, of two processes, and look at what everybody got."""
    stores = [RedisStore(url, timeout=5) for _ in range(2)]
    caches = [OutputCache(BoundedMemoryCache(), SharedCache(store)) for store in stores]
    model = Signed()
    policy = {"cache": {"scope": scope}, "ladder": ["small"], "tasks": {}, "risks": {}, "validate": ["empty"]}
    routers = [rig(model, policy=policy, cache=cache).router for cache in caches]
    owner: dict[str, object] = {}
    asked_before: set[object] = set()
    for together in rounds:
        tasks = [
            asyncio.create_task(
                routers[ask.process].route(
                    Task.chat(ask.text, caller=ask.caller, freshness=Freshness(max_age=ask.max_age))
                )
            )
            for ask in together
        ]
        await asyncio.sleep(0)
        for ask, task in zip(together, tasks, strict=True):
            if ask.leaves:
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        groups = [_group(scope, ask) for ask in together]
        told = [
            (group, outcome)
            for group, outcome in zip(groups, outcomes, strict=True)
            if not isinstance(outcome, BaseException)
        ]
        for group, outcome in sorted(told, key=lambda one: one[1].status is Status.CACHED):
            assert outcome.completion is not None
            text = outcome.completion.text
            if outcome.status is Status.ANSWERED:
                assert text not in owner
                owner[text] = group
            elif text in owner:  # else it was made for one that has left
                assert owner[text] == group
            if group is None:
                assert outcome.facts["cache"] == "bypass"
            elif group not in asked_before and groups.count(group) == 1:
                assert outcome.facts["cache"] == "miss"
            owner.setdefault(text, group)
        asked_before.update(groups)
    for cache, store in zip(caches, stores, strict=True):
        await cache.close()
        await store.close()


def _group(scope: str, ask: Ask) -> object:
    """Return who may share an answer; None: nobody."""
    if scope == "tenant":
        return (ask.caller.tenant, ask.text.strip())
    return None if ask.caller.user is None else (ask.caller.tenant, ask.caller.user, ask.text.strip())
