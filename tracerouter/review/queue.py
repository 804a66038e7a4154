"""The queue of requests that wait for a person, and what may be done with them.

    pending -> claimed -> approved | edited | rejected        by a reviewer; a claim runs out and may be left out
    pending | claimed -> expired                              by the worker, when nobody decided in time

A review is an item of the store: each step is a compare-and-set, so that of two who decide one is told that it is too
late, and each is a line of its history. Prompt, draft and answer are deleted when it expires, or, once it is decided,
after as long again as it could have waited.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from tracerouter.errors import BadRequest, Conflict, NotFound
from tracerouter.store import LISTED, Depth, Item
from tracerouter.types import Completion

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from tracerouter.policy.model import ReviewPolicy
    from tracerouter.store import Happened, Items
    from tracerouter.telemetry import Telemetry
    from tracerouter.types import Attempt, Classification, Decision, Reason, Task

REVIEW: Final = "review"
"""The kind of item."""
WEBHOOK: Final = "webhook"
"""The kind of what is to be delivered to a caller."""
PATH: Final = "/tracerouter/reviews"
"""Where a gateway, or a wrapped service, answers about reviews."""
WAITING: Final = ("pending", "claimed")
ACTIONS: Final = {"approve": "approved", "edit": "edited", "reject": "rejected"}
"""What a reviewer decides, and the state that it makes."""
EXPIRED: Final = "expired"
STATES: Final = (*WAITING, *ACTIONS.values(), EXPIRED)

_GATEWAY: Final = "tracerouter"
"""Who does what nobody does by hand."""
_CONTENT: Final = ("request", "draft", "failures", "answer", "why")
"""What of a review is content, and is deleted."""
_WEBHOOK_KEPT: Final = 2 * 86_400.0
"""Seconds for which a delivery is known: a day for its tries, and one for whoever asks what became of it."""


class Reviews:
    """The queue.

    Args:
        items: Where it is kept.
        rules: How long reviews, claims and their history last. None: the queue is worked on, not added to.
        telemetry: Is told what came of a review.
        woken: Is called when there is something for the worker to do at once.
    """

    def __init__(
        self,
        items: Items,
        rules: ReviewPolicy | None = None,
        *,
        telemetry: Telemetry | None = None,
        woken: Callable[[], None] = lambda: None,
    ) -> None:
        self.items = items
        self.woken = woken
        self._rules = rules
        self._telemetry = telemetry
        self._depth = Depth()

    async def add(  # noqa: PLR0913 - what a reviewer needs to know
        self,
        task: Task,
        decision: Decision,
        reason: Reason,
        classification: Classification,
        attempts: Sequence[Attempt],
        *,
        request_id: str,
        trace: tuple[int, int],
    ) -> Item:
        """Put a request into the queue, with the last answer that there is as its draft.

        Args:
            task: What is asked.
            decision: How a person comes in.
            reason: Why.
            classification: What the request is.
            attempts: The rungs that were tried.
            request_id: To be quoted.
            trace: Trace id and span id of the request.

        Raises:
            StoreUnavailable: It could not be written.
        """
        assert self._rules is not None  # noqa: S101 - for the type checker: routers have rules
        drafted = next((one for one in reversed(attempts) if one.completion is not None), None)
        now = time.time()
        trace_id, span_id = trace
        item = Item(
            kind=REVIEW,
            tenant=task.caller.tenant,
            user=task.caller.user,
            state="pending",
            created=now,
            due=now + self._rules.expires,
            expires=now + self._rules.history,
            body={
                "how": decision.review,
                "reason": reason,
                "task": decision.label,
                "risks": sorted(classification.risks),
                "policy": decision.policy,
                "request_id": request_id,
                "trace_id": f"{trace_id:032x}",
                "span_id": f"{span_id:016x}",
                "webhook": task.webhook,
                "expires": now + self._rules.expires,
                "keeps": self._rules.expires,
                "lease": self._rules.lease,
                "request": task.body,
                "draft": drafted.completion.body if drafted and drafted.completion else None,
                "draft_model": drafted.rung.alias if drafted else None,
                "failures": [one.told for one in drafted.verdict.failures] if drafted and drafted.verdict else [],
            },
        )
        added = await self.items.add(item)
        self.woken()
        return added

    async def get(self, id: str, tenant: str | None = None, user: str | None = None) -> Item:  # noqa: A002 - its name
        """Return a review; of this tenant, and of this user, where they are given.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        item = await self.items.get(REVIEW, id)
        strange = item is None or tenant not in (None, item.tenant) or user not in (None, item.user)
        if item is None or strange:
            msg = f"there is no review {id[:64]!r}"
            raise NotFound(msg)
        return item

    async def listed(
        self, states: Collection[str], *, tenant: str | None = None, limit: int = LISTED
    ) -> Sequence[Item]:
        """Return reviews in one of `states`, the newest first; of this tenant, where one is given."""
        return await self.items.list(REVIEW, states=states, tenant=tenant, limit=limit)

    async def claim(self, item: Item, by: str) -> Item:
        """Make a review `by`'s alone for the length of a lease; who has it already has it for as long again.

        Raises:
            Conflict: It is somebody else's, is decided, or has expired.
        """
        now = self._open(item, by)
        until = min(now + float(item.body["lease"]), float(item.body["expires"]))
        body = {**item.body, "claimed_by": by, "claimed_until": until}
        return self._first(await self.items.change(item, by=by, what="claim", state="claimed", body=body))

    async def decide(self, item: Item, action: str, by: str, text: str | None = None) -> Item:
        """Decide on a review.

        Args:
            item: The review, as it was read.
            action: ``approve`` the draft, ``edit`` it, or ``reject`` the request.
            by: Who decides.
            text: The answer, of an edit; of a rejection, what the caller is told, if anything.

        Raises:
            BadRequest: An edit has no text.
            Conflict: It is claimed by somebody else, is decided, or has expired; or there is no draft to approve.
        """
        now = self._open(item, by)
        body = {**item.body, "decided_by": by, "decided_at": now, "untold": action}
        if action == "approve":
            body["answer"] = self._approved(item)
        elif action == "edit":
            body["answer"] = _edited(item, text)
        elif text:
            body["why"] = text
        state = ACTIONS[action]
        decided = self._first(await self.items.change(item, by=by, what=action, state=state, due=now, body=body))
        self.woken()
        return decided

    async def history(self, item: Item) -> Sequence[Happened]:
        """Return who did what when."""
        return await self.items.history(REVIEW, item.id)

    async def settle(self, item: Item, now: float) -> None:
        """Do what is due about a review: let it expire, tell who waits for it, or delete its content.

        All processes try; the one that is first does it.
        """
        body = dict(item.body)
        if item.state in WAITING:
            body = {**_without_content(body), "decided_at": now, "untold": "expire"}
            changed = await self.items.change(item, by=_GATEWAY, what="expire", state=EXPIRED, due=now, body=body)
            if changed is None:
                return
            item = changed
        action = body.pop("untold", None)
        if action is None:
            await self.items.change(item, by=_GATEWAY, what="forget", due=None, body=_without_content(body))
            return
        if body.get("webhook"):
            await self.items.add(_delivery(item, body.pop("webhook"), now))
        kept_until = None if item.state == EXPIRED else float(body["decided_at"]) + float(body["keeps"])
        if await self.items.change(item, by=_GATEWAY, what="tell", due=kept_until, body=body) is None:
            return
        if self._telemetry is not None:
            of = int(body["trace_id"], 16), int(body["span_id"], 16)
            self._telemetry.reviewed(item.id, action, body.get("decided_by"), item.created, of)

    async def look(self) -> None:
        """Look up what the gauges tell."""
        self._depth = await self.items.depth(REVIEW, WAITING)

    def look_away(self) -> None:
        """Let the gauges tell of nothing any more: another process looks on, and the greatest value counts."""
        self._depth = Depth()

    def depth(self) -> list[tuple[tuple[str], float]]:
        """Return how many reviews wait, as a gauge reads it."""
        return [((REVIEW,), self._depth.number)]

    def oldest_age(self) -> list[tuple[tuple[str], float]]:
        """Return for how long the oldest of them waits (seconds), as a gauge reads it."""
        oldest = self._depth.oldest
        return [((REVIEW,), 0.0 if oldest is None else max(time.time() - oldest, 0.0))]

    def _open(self, item: Item, by: str) -> float:
        """Return the time, if `by` may go on with the review now."""
        now, state = time.time(), state_of(item)
        if state not in WAITING:
            who = item.body.get("decided_by")
            msg = f"the review is {state} already{f', by {who}' if who else ''}"
            raise Conflict(msg)
        if state == "claimed" and item.body["claimed_by"] != by and item.body["claimed_until"] > now:
            left = item.body["claimed_until"] - now
            msg = f"the review is claimed by {item.body['claimed_by']} for another {left:.0f} s"
            raise Conflict(msg)
        return now

    def _first(self, changed: Item | None) -> Item:
        if changed is None:
            msg = "somebody else was first: look at the review again"
            raise Conflict(msg)
        return changed

    def _approved(self, item: Item) -> dict[str, Any]:
        draft = item.body.get("draft")
        if draft is None:
            msg = "there is no draft to approve: no model gave one; edit gives the answer itself"
            raise Conflict(msg)
        return {**_identity(item), **draft, "object": "chat.completion"}


def url(id: str) -> str:  # noqa: A002 - as above
    """Return where a review is asked for: a path, since the host's name outside is for others to know."""
    return f"{PATH}/{id}"


def state_of(item: Item) -> str:
    """Return a review's state; one whose time is over has expired, though nobody has come by yet to say so."""
    over = item.state in WAITING and time.time() >= float(item.body["expires"])
    return EXPIRED if over else item.state


def told(item: Item) -> dict[str, Any]:
    """Make what the request's caller is told of its review: never a draft."""
    body = item.body
    made = {
        "id": item.id,
        "object": "tracerouter.review",
        "state": state_of(item),
        "reason": body["reason"],
        "request_id": body["request_id"],
        "created": int(item.created),
        "expires": int(body["expires"]),
    }
    if item.state in ("approved", "edited"):
        made["completion"] = body.get("answer")  # none, once its time is over
    if item.state == "rejected" and body.get("why"):
        made["why"] = body["why"]
    return made


def told_reviewer(item: Item, history: Sequence[Happened] | None = None) -> dict[str, Any]:
    """Make what a reviewer is told of a review: all of it, or, without its `history`, what fits into a list."""
    body = item.body
    names = ("how", "task", "risks", "policy", "trace_id", "claimed_by", "claimed_until", "decided_by", "decided_at")
    made = told(item) | {name: body[name] for name in names if body.get(name) is not None}
    made |= {"tenant": item.tenant} | ({"user": item.user} if item.user is not None else {})
    if history is None:
        made.pop("completion", None)
        return made
    if state_of(item) != EXPIRED:
        made |= {name: body.get(name) for name in ("request", "draft", "draft_model", "failures")}
    return made | {"history": [one._asdict() for one in history]}


def _edited(item: Item, text: str | None) -> dict[str, Any]:
    if not text:
        msg = "`text` must be the answer"
        raise BadRequest(msg, "text")
    draft = item.body.get("draft") or {}
    answer = Completion.of(text, model=draft.get("model") or "human").body
    kept = {name: draft[name] for name in ("id", "created", "usage") if name in draft}
    return {**_identity(item), **answer, **kept}


def _identity(item: Item) -> dict[str, Any]:
    return {"id": f"chatcmpl-{item.body['request_id']}", "created": int(item.created), "model": "tracerouter"}


def _without_content(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _CONTENT}


def _delivery(item: Item, url: str, now: float) -> Item:
    return Item(
        kind=WEBHOOK,
        tenant=item.tenant,
        state="pending",
        created=now,
        due=now,
        expires=now + _WEBHOOK_KEPT,
        unique=item.id,
        body={"url": url, "review": item.id, "tries": 0},
    )
