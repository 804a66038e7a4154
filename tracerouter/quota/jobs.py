"""Requests that are run later: kept in the store, and run by whichever process claims them first.

====================  ================================================================================================
``queued``            waits: until it is due, or until there is room for it again, which is looked for now and then
``running``           claimed by a process, for as long as its lease lasts; when that has died, another takes it over
``done``, ``failed``  has an answer, or an error, which is kept for a day; the request itself is deleted
====================  ================================================================================================
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from contextlib import suppress
from contextvars import Context
from dataclasses import asdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import orjson

from tracerouter.errors import BadRequest, KeyReused, StoreUnavailable, TracerouterError, place
from tracerouter.quota.confirmations import digest
from tracerouter.quota.hold import LEASE_MARGIN
from tracerouter.store import Item
from tracerouter.types import Caller, Freshness, Job, Origin, Reason, Role, Spend, Status, Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tracerouter.store import Items
    from tracerouter.types import Denied, Outcome

    Run = Callable[[Task], Awaitable[Outcome]]
    Room = Callable[[Caller, Role, Spend], Awaitable[bool]]
    Answer = Callable[[Outcome | TracerouterError, str], tuple[int, Mapping[str, Any]]]

log = logging.getLogger(__name__)

LOOK: Final = 5.0
"""Seconds between two looks at what waits: whether there is room again, or another process has died."""
KEPT: Final = 86_400.0
"""Seconds for which an answer is kept."""
WAITS: Final = 45 * 86_400.0
"""Seconds after which a job that never found room is given up: longer than any month."""
TRIES: Final = 3
"""Times that a job is begun, at most, where the process that runs it dies."""

_KIND: Final = "job"
_AT_ONCE: Final = 8
"""Jobs that one process runs at the same time."""
_LOOKED_AT: Final = 100
"""Jobs that one look sees, at most: those that are due first."""
_FOR_EVER: Final = 1e12


class Jobs:
    """The queue, and the worker that runs it.

    Args:
        items: Where jobs are kept.
        answer: Writes an outcome, or why there is none, as HTTP would answer a request for ``chat`` or ``embeddings``.
        look: Seconds between two looks.
    """

    def __init__(self, items: Items, answer: Answer, *, look: float = LOOK) -> None:
        self._items = items
        self._answer = answer
        self._look = look
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._bell = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._denied: dict[str, dict[str, Any]] = {}  # what those lack that were run and found no room

    def start(self, run: Run, room: Room) -> None:
        """Begin to run what waits, if that has not begun.

        Args:
            run: Routes a task.
            room: Whether every limit of a caller has room for so much in a role.
        """
        if self._worker is None or self._worker.done():
            # not in the context of the request that is the first to be queued
            self._worker = asyncio.create_task(self._work(run, room), context=Context())

    async def close(self) -> None:
        """Stop. What is being run goes back into the queue, for another process or the next start."""
        stopping = [task for task in (self._worker, *self._running.values()) if task is not None]
        for task in stopping:
            task.cancel()
        await asyncio.gather(*stopping, return_exceptions=True)
        self._worker = None

    async def earlier(self, task: Task) -> Job | None:
        """Return the job that was queued with the same idempotency key, if there is one.

        Raises:
            KeyReused: The key came with another request.
            StoreUnavailable: It can't be told.
        """
        if task.idempotency_key is None:
            return None
        found = await self._items.get(_KIND, _id(task))
        return None if found is None else _same(found, task)

    async def put(  # noqa: PLR0913 - what a job is made of
        self, task: Task, denied: Denied, role: Role, bound: Spend, *, traceparent: str, time_limit: float
    ) -> Job:
        """Queue a request, or return the one that has its idempotency key.

        Args:
            task: What is asked.
            denied: The limit that was reached.
            role: Of the rung that it did not let pass.
            bound: What that would have held.
            traceparent: Of the request.
            time_limit: Seconds that the run may take.

        Raises:
            KeyReused: The key came with another request.
            StoreUnavailable: It can't be kept.
        """
        caller, now = task.caller, time.time()
        lacks = {"limit": denied.limit.name, "reason": denied.reason, "needs": [role, list(bound)]}
        if task.origin is not None:  # it stays in the queue, and gets there when its run has ended
            self._denied[task.origin.job] = lacks
            return Job(task.origin.job, "queued", denied.limit.name, denied.reason, now, _due(denied, now))
        body = {
            "request": dict(task.body),
            "wants": digest(task),
            "caller": asdict(caller),
            "hint": task.hint,
            "webhook": task.webhook,
            "freshness": list(task.freshness),
            "timeout": time_limit,
            "traceparent": traceparent,
            "tries": 0,
            **lacks,
        }
        item = Item(
            kind=_KIND,
            id=_id(task),
            tenant=caller.tenant,
            user=caller.user,
            state="queued",
            due=_due(denied, now),
            expires=now + WAITS,
            body=body,
        )
        kept = await self._items.add(item)
        self._bell.set()
        return _same(kept, task)

    async def get(self, id: str, caller: Caller) -> Job | None:  # noqa: A002 - its name everywhere
        """Return a job of this caller's.

        Raises:
            StoreUnavailable: It can't be told.
        """
        found = await self._owned(id, caller)
        return None if found is None else _job(found)

    async def cancel(self, id: str, caller: Caller) -> bool:  # noqa: A002 - as above
        """Delete a job of this caller's, whatever its state, and stop it; False where there is none.

        Raises:
            StoreUnavailable: It can't be done.
        """
        if await self._owned(id, caller) is None or await self._items.take(_KIND, id) is None:
            return False
        running = self._running.get(id)
        if running is not None:  # another process sees it at its next look
            running.cancel()
        return True

    async def _owned(self, id: str, caller: Caller) -> Item | None:  # noqa: A002 - as above
        found = await self._items.get(_KIND, id)
        mine = found is not None and _who(Caller(**found.body["caller"])) == _who(caller)
        return found if mine else None

    async def _work(self, run: Run, room: Room) -> None:
        while True:
            self._bell.clear()
            wait = self._look
            try:
                wait = await self._step(run, room)
            except StoreUnavailable:
                log.info("jobs wait for the store")
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may fare better
                log.error("looking for jobs failed: %s", place(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._bell.wait()

    async def _step(self, run: Run, room: Room) -> float:
        """Begin what can be run now, and return the seconds until the next look."""
        now, full = time.time(), set[tuple[Any, ...]]()
        for item in await self._items.due(_KIND, ("running",), now, _LOOKED_AT):  # whose process died
            if len(self._running) < _AT_ONCE and item.id not in self._running:
                await self._claim(item, run)
        waiting = await self._items.due(_KIND, ("queued",), _FOR_EVER, _LOOKED_AT)
        for item in waiting:
            if len(self._running) >= _AT_ONCE:
                break
            role, bound = item.body["needs"]
            account = (item.tenant, item.user, role, *bound)
            if (item.due or 0.0) > now and account not in full:
                caller = Caller(**item.body["caller"])
                if not await room(caller, Role(role), Spend(*bound)):
                    full.add(account)
            if (item.due or 0.0) <= now or account not in full:
                await self._claim(item, run)
        next_due = min((item.due or 0.0 for item in waiting if item.id not in self._running), default=now + self._look)
        return min(max(next_due - time.time(), 0.05), self._look)

    async def _claim(self, item: Item, run: Run) -> None:
        """Run a job, if no other process was first; give it up where it was begun too often."""
        tries = item.body["tries"] + 1
        if tries > TRIES:
            ended = TracerouterError(f"the job was given up: the process that ran it died {TRIES} times")
            await self._finish(item, "failed", self._answer(ended, ""))
            return
        mine = await self._items.change(
            item,
            by=self._name,
            what=f"run, try {tries}",
            state="running",
            due=time.time() + item.body["timeout"] + LEASE_MARGIN,
            body={**item.body, "tries": tries},
        )
        if mine is not None:
            running = self._running[item.id] = asyncio.create_task(self._run(mine, run))
            running.add_done_callback(lambda _: self._ended(item.id))

    def _ended(self, id: str) -> None:  # noqa: A002 - as above
        del self._running[id]
        self._bell.set()

    async def _run(self, item: Item, run: Run) -> None:
        try:
            outcome = await self._watched(item, run)
        except asyncio.CancelledError:
            with suppress(StoreUnavailable):  # its lease ends
                await self._back(item, time.time(), "stopped", {"tries": item.body["tries"] - 1})
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again when its lease has ended
            log.error("job %s failed: %s", item.id, place(error))
            return
        lacks = self._denied.pop(item.id, {})
        if not isinstance(outcome, BadRequest) and outcome.status is Status.QUEUED:
            with suppress(StoreUnavailable):  # as above
                await self._back(item, _due(outcome.denied, time.time()), "no room yet", {"tries": 0, **lacks})
            return
        answered = not isinstance(outcome, BadRequest) and outcome.completion is not None
        told = self._answer(outcome, _task(item).operation)
        finishing = asyncio.ensure_future(self._finish(item, "done" if answered else "failed", told))
        try:
            await asyncio.shield(finishing)
        except asyncio.CancelledError:  # it was paid for: to run it again would cost it again
            await asyncio.wait({finishing}, timeout=_LAST_WORD)
            finishing.cancel()
            raise

    async def _watched(self, item: Item, run: Run) -> Outcome | BadRequest:
        """Route it, and stop where it has been deleted meanwhile."""
        routing = asyncio.ensure_future(run(_task(item)))
        try:
            while not (await asyncio.wait({routing}, timeout=self._look))[0]:
                with suppress(StoreUnavailable):
                    if await self._items.get(_KIND, item.id) is None:
                        raise asyncio.CancelledError  # noqa: TRY301 - as if its caller had left
        except asyncio.CancelledError:
            routing.cancel()
            await asyncio.gather(routing, return_exceptions=True)
            raise
        try:
            return routing.result()
        except BadRequest as error:
            return error

    async def _back(self, item: Item, due: float, why: str, now: Mapping[str, Any]) -> None:
        body = {**item.body, **now}
        await self._items.change(item, by=self._name, what=why, state="queued", due=due, body=body)

    async def _finish(self, item: Item, state: str, told: tuple[int, Mapping[str, Any]]) -> None:
        """Keep the answer, and forget the request; for as long as its lease lasts, the store may fail."""
        status, answer = told
        kept = {name: item.body[name] for name in ("wants", "limit", "reason", "caller")} | {
            "status": status,
            "answer": answer,
        }
        until = item.due or 0.0
        while True:
            try:
                await self._items.change(
                    item, by=self._name, what=state, state=state, due=None, expires=time.time() + KEPT, body=kept
                )
            except StoreUnavailable:
                if time.time() > until:
                    log.error("the answer of job %s could not be kept", item.id)
                    return
                await asyncio.sleep(self._look)
            else:
                return


_LAST_WORD: Final = 2.0
"""Seconds that a process which ends takes to keep an answer that is there."""


def _id(task: Task) -> str:
    """Draw an id, or make it of who asks with which idempotency key: there is one job of each."""
    if task.idempotency_key is None:
        return secrets.token_hex(16)
    caller = task.caller
    key = orjson.dumps([*_who(caller), task.idempotency_key])
    return blake2b(key, digest_size=16).hexdigest()


def _who(caller: Caller) -> tuple[str | None, ...]:
    """Return whose a job is: a user's, or where there is none an API key's."""
    return (caller.tenant, caller.team, caller.user, caller.key if caller.user is None else None)


def _same(item: Item, task: Task) -> Job:
    if item.body["wants"] != digest(task):
        msg = "this `Idempotency-Key` came with another request before: draw a new one for each request"
        raise KeyReused(msg, "idempotency-key")
    return _job(item)


def _due(denied: Denied | None, now: float) -> float:
    return now + (denied.retry_after if denied else 0.0)


def _job(item: Item) -> Job:
    told = item.body
    return Job(
        item.id,
        item.state,
        told["limit"],
        Reason(told["reason"]),
        item.created,
        item.due if item.state == "queued" else None,
        told.get("status"),
        told.get("answer"),
    )


def _task(item: Item) -> Task:
    told = item.body
    return Task(
        told["request"],
        Caller(**told["caller"]),
        hint=told["hint"],
        webhook=told.get("webhook"),
        freshness=Freshness(*told["freshness"]),
        timeout=told["timeout"],
        origin=Origin(item.id, told["traceparent"]),
    )
