"""A call with the room in the ledger that is held for it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tracerouter.errors import StoreUnavailable
from tracerouter.types import Denied, Limit, Reason, Reservation, Role

if TYPE_CHECKING:
    from collections.abc import Collection

    from tracerouter.policy.model import WithoutLedger
    from tracerouter.protocols import Ledger
    from tracerouter.types import Call, Claim

LEASE_MARGIN: Final = 10.0
"""Seconds after a call's deadline for which its reservation still stands."""
ENDLESS_LEASE: Final = 3600.0
"""Seconds for which the reservation of a call without deadline stands: a wrapped service's."""
RETRY_AFTER: Final = 10.0
"""Seconds after which to ask again where no limit could be checked."""


class Hold:
    """A call, and what is reserved for it: nothing, where no limit asks for it."""

    def __init__(self, call: Call, held: Reservation | None = None) -> None:
        self.call = call
        self.held = held


async def reserve(
    ledger: Ledger, claim: Claim, call: Call, without: WithoutLedger, passed: Collection[str] = ()
) -> Hold | Denied:
    """Hold the claim's bound for `call`; each further try that may be billed besides holds as much again.

    Args:
        ledger: Where.
        claim: What is to be held.
        call: What it is held for.
        without: What is done where the ledger can't tell.
        passed: The names of limits that need no room for it, since the caller has confirmed what it costs: that is one
            try, so that a further one does need it.
    """
    try:
        limits = tuple(limit for limit in claim.limits if limit.name not in passed)
        found = await _reserved(ledger, replace(claim, limits=limits), call.deadline)
    except StoreUnavailable:
        role = Role.EXPENSIVE if claim.role is Role.FALLBACK else claim.role
        if role.value not in without.closed:
            return Hold(call)
        any_limit = Limit("ledger", "tenant", "requests", 0, "day", then=tuple(without.then), fallback=without.fallback)
        return Denied(any_limit, 0, RETRY_AFTER, Reason.LEDGER_UNAVAILABLE)
    if isinstance(found, Denied):
        never = 0 < found.limit.amount < found.limit.of(claim.bound)  # one of 0 is closed until somebody opens it
        return replace(found, retry_after=math.inf) if never else found
    hold, again = Hold(call, found), replace(claim, bound=claim.bound._replace(requests=0))

    async def room() -> bool:
        try:
            more = await _reserved(ledger, again, call.deadline)
        except StoreUnavailable:
            return False
        if isinstance(more, Denied) or hold.held is None:
            return False
        hold.held = Reservation(hold.held.bound.plus(again.bound), more.headroom)
        return True

    hold.call = replace(call, room=room)
    return hold


async def _reserved(ledger: Ledger, claim: Claim, deadline: float) -> Reservation | Denied:
    try:
        async with asyncio.timeout_at(deadline):
            return await ledger.reserve(claim)
    except asyncio.CancelledError:
        ledger.release(claim)  # it may have come about all the same
        raise
    except TimeoutError:
        ledger.release(claim)  # likewise
        msg = "the ledger did not answer before the request's deadline"
        raise StoreUnavailable(msg) from None
