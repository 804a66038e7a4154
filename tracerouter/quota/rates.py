"""How fast callers may ask: a token bucket for each rate and whom it counts, in the process or in Redis.

A bucket refills all the time, so that what is left, and when there will be room, are known to the instant. It is kept
as one number, the time at which it will be full again. Requests take from all of their buckets or from none; tokens
that are known only afterwards are taken whether they are there or not, and what comes next waits for it.

The library ``limits`` (5.8) does neither: each of its limits is hit by itself, what exceeds one is not counted, and a
request with two rates asks Redis four times, by a client of its own that excludes redis-py 8.
"""

from __future__ import annotations

import asyncio
import logging
import time
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cachebox import LRUCache

from tracerouter.errors import StoreUnavailable
from tracerouter.quota.accounts import scope
from tracerouter.types import Admission, Denied, Reason, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracerouter.store import RedisStore
    from tracerouter.types import Caller, Limit

log = logging.getLogger(__name__)

_MICROS: Final = 1_000_000
"""Times are whole microseconds, so that sums are exact."""
_SPANS: Final = {"second": _MICROS, "minute": 60 * _MICROS, "hour": 3600 * _MICROS}
_BUCKETS: Final = 100_000
"""Buckets of one process, at most: some 20 MB. The one that was not used for longest is forgotten."""

_TAKE: Final = """
local told = redis.call('TIME')
local now = told[1] * 1000000 + told[2]
local debts, denied = {}, 0
for at, key in ipairs(KEYS) do
    debts[at] = math.max((redis.call('GET', key) or now) - now, 0)
    if denied == 0 and debts[at] + ARGV[2 * at] > tonumber(ARGV[2 * at + 1]) then denied = at end
end
if ARGV[1] == 'owed' or denied == 0 then
    denied = 0
    for at, key in ipairs(KEYS) do
        debts[at] = debts[at] + ARGV[2 * at]
        if debts[at] > 0 then
            redis.call('SET', key, string.format('%.0f', now + debts[at]), 'PX', math.ceil(debts[at] / 1000) + 1)
        end
    end
end
return {denied, unpack(debts)}
"""


class _Cost(NamedTuple):
    """What a request takes from one bucket (microseconds of its refilling)."""

    took: int
    span: int
    """In which the whole bucket refills."""


class MemoryRates:
    """Buckets of this process alone.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._full_at: LRUCache[tuple[str, ...], int] = LRUCache(_BUCKETS)
        self._clock = clock

    async def take(self, caller: Caller, rates: Sequence[Limit], tokens: int) -> Admission:
        """Take one request of `tokens` from the buckets of all `rates`, or from none."""
        costs = [_cost(rate, tokens) for rate in rates]
        debts = self._debts(caller, rates)
        short = next((at for at, cost in enumerate(costs) if debts[at] + cost.took > cost.span), None)
        if short is None:
            debts = self._add(caller, rates, debts, costs)
        return _admission(rates, costs, debts, short)

    def owe(self, caller: Caller, rates: Sequence[Limit], tokens: int) -> None:
        """Take `tokens` that were used, whether they are there or not."""
        by_token = [rate for rate in rates if rate.unit == "tokens"]
        costs = [_cost(rate, tokens) for rate in by_token]
        self._add(caller, by_token, self._debts(caller, by_token), costs)

    def _debts(self, caller: Caller, rates: Sequence[Limit]) -> list[int]:
        now = self._now()
        return [max(self._full_at.get(_bucket(rate, caller), now) - now, 0) for rate in rates]

    def _add(self, caller: Caller, rates: Sequence[Limit], debts: Sequence[int], costs: Sequence[_Cost]) -> list[int]:
        now = self._now()
        owed = [debt + cost.took for debt, cost in zip(debts, costs, strict=True)]
        for rate, debt in zip(rates, owed, strict=True):
            self._full_at.insert(_bucket(rate, caller), now + debt)
        return owed

    def _now(self) -> int:
        return int(self._clock() * _MICROS)


class RedisRates:
    """Buckets that all replicas share; one script for all of a request's, by Redis' own clock."""

    def __init__(self, store: RedisStore) -> None:
        self._script = store.script(_TAKE)
        self._owing: set[asyncio.Task[Any]] = set()

    async def take(self, caller: Caller, rates: Sequence[Limit], tokens: int) -> Admission:
        """Take one request of `tokens` from the buckets of all `rates`, or from none.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        costs = [_cost(rate, tokens) for rate in rates]
        short, *debts = await self._run("asked", caller, rates, costs)
        return _admission(rates, costs, debts, short - 1 if short else None)

    def owe(self, caller: Caller, rates: Sequence[Limit], tokens: int) -> None:
        """Take `tokens` that were used, whether they are there or not; nobody waits for it."""
        by_token = [rate for rate in rates if rate.unit == "tokens"]
        if by_token:
            owing = asyncio.create_task(self._owe(caller, by_token, tokens))
            self._owing.add(owing)
            owing.add_done_callback(self._owing.discard)

    async def _owe(self, caller: Caller, rates: Sequence[Limit], tokens: int) -> None:
        try:
            await self._run("owed", caller, rates, [_cost(rate, tokens) for rate in rates])
        except StoreUnavailable:
            log.info("tokens of a request were not counted against its rate limits")

    async def _run(self, how: str, caller: Caller, rates: Sequence[Limit], costs: Sequence[_Cost]) -> list[int]:
        keys = [f"tracerouter:{{{caller.tenant}}}:rate:{':'.join(_bucket(rate, caller)[1:])}" for rate in rates]
        found: list[int] = await self._script(keys, how, *(number for cost in costs for number in cost))
        return found


def _bucket(rate: Limit, caller: Caller) -> tuple[str, ...]:
    return caller.tenant, rate.name, scope(rate.per, caller)


def _cost(rate: Limit, tokens: int) -> _Cost:
    span = _SPANS[rate.period]
    return _Cost((tokens if rate.unit == "tokens" else 1) * span // rate.amount, span)


def _admission(rates: Sequence[Limit], costs: Sequence[_Cost], debts: Sequence[int], short: int | None) -> Admission:
    standings = tuple(
        Standing(rate, max(rate.amount - -(-debt * rate.amount // cost.span), 0), debt / _MICROS)
        for rate, debt, cost in zip(rates, debts, costs, strict=True)
    )
    if short is None:
        return Admission(standings)
    took, span = costs[short]
    wait = (debts[short] + took - span) / _MICROS if took <= span else inf
    return Admission(standings, Denied(rates[short], standings[short].left, wait, Reason.RATE_LIMIT))
