"""What is done for a request that a limit has no room for: the policy's list, in its order.

Each action either finds another way to an answer, or ends the request, or does not apply and leaves it to the next.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from tracerouter.tokens import count_request
from tracerouter.types import Completion, Role, Rung, Status, Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tracerouter.types import Confirmation, Denied, Hit, Job


class Relief(NamedTuple):
    """What is done: `rungs` are tried next, with `task`; or the request ends, with `status` and `completion`."""

    action: str
    rungs: tuple[Rung, ...] = ()
    task: Task | None = None
    """In place of the one that was asked. None: the same."""
    dropped: int = 0
    """Turns that `task` has less."""
    status: Status | None = None
    completion: Completion | None = None
    confirmation: Confirmation | None = None
    job: Job | None = None


class Later(NamedTuple):
    """What an action may do in the store: each returns None where it can't, or where the caller does not take it."""

    offer: Callable[[], Awaitable[Confirmation | None]]
    """Ask the caller whether it is worth it."""
    queue: Callable[[], Awaitable[Job | None]]
    """Run it later."""


async def relieve(  # noqa: PLR0913 - all that an action may build on
    denied: Denied,
    rung: Rung,
    task: Task,
    *,
    ladder: Sequence[str],
    hit: Hit,
    rejected: Completion | None,
    fits: Callable[[int], bool],
    later: Later,
    told: Callable[[str, bool], None],
) -> Relief:
    """Follow the limit's list until an action applies; ``refuse`` does always, and stands at the end unwritten.

    Args:
        denied: The limit that was reached.
        rung: The rung that it does not let pass.
        task: What is asked.
        ladder: The rungs that the request may use.
        hit: What the cache held.
        rejected: The answer of an earlier rung that was turned down; only where `rung` is a fallback.
        fits: Whether there were room if the request had so many tokens less.
        later: What can be done in the store.
        told: Is told each action, and whether it applied.
    """
    actions = denied.limit.then if rung.role is not Role.FALLBACK else (denied.limit.fallback,)
    for action in (*actions, "refuse"):
        if action in ("confirm", "queue"):
            found = await _put_off(action, later)
        else:
            found = _apply(action, rung, task, ladder, hit, rejected, fits)
        told(action, found is not None)
        if found is not None:
            return found
    raise AssertionError  # refuse applies


def _apply(  # noqa: PLR0913 - as above
    action: str,
    rung: Rung,
    task: Task,
    ladder: Sequence[str],
    hit: Hit,
    rejected: Completion | None,
    fits: Callable[[int], bool],
) -> Relief | None:
    if action == "downgrade":
        below = ladder[: ladder.index(rung.alias)] if rung.alias in ladder else ()
        lower = (*(Rung(alias, Role.CHEAP) for alias in below[-1:]), replace(rung, role=Role.FALLBACK))
        return Relief(action, lower) if below else None
    if action == "shorten":
        shorter, dropped = shortened(task, fits)
        return Relief(action, (rung,), shorter, dropped) if dropped else None
    if action == "stale":
        return Relief(action, status=Status.STALE, completion=hit.completion) if hit.completion else None
    if action == "accept":
        return Relief(action, status=Status.ANSWERED, completion=rejected) if rejected else None
    return Relief("refuse", status=Status.REFUSED)


async def _put_off(action: str, later: Later) -> Relief | None:
    if action == "confirm":
        offered = await later.offer()
        return Relief(action, status=Status.NEEDS_CONFIRMATION, confirmation=offered) if offered else None
    queued = await later.queue()
    return Relief(action, status=Status.QUEUED, job=queued) if queued else None


def shortened(task: Task, fits: Callable[[int], bool]) -> tuple[Task, int]:
    """Leave out the oldest turns until the rest fits, and return it with their number; 0 where that can't be reached.

    A turn is a user's message with all that follows it, up to the next. What comes before the first one, every system
    message and the last turn are kept.

    Args:
        task: What is asked.
        fits: Whether there were room if the request had so many tokens less.
    """
    messages = task.body.get("messages", ())  # embeddings have none
    starts = [at for at, message in enumerate(messages) if message["role"] == "user"]
    left_out: set[int] = set()
    saved = 0
    for dropped, (start, end) in enumerate(pairwise(starts), 1):
        turn = [at for at in range(start, end) if messages[at]["role"] not in ("system", "developer")]
        left_out.update(turn)
        saved += count_request({"messages": [messages[at] for at in turn]}) - count_request({"messages": []})
        if fits(saved):
            rest = [message for at, message in enumerate(messages) if at not in left_out]
            return replace(task, body={**task.body, "messages": rest}), dropped
    return task, 0
