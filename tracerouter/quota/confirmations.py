"""Passing a limit by saying so: a token that is good for one request, once, for some minutes."""

from __future__ import annotations

import re
import secrets
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import orjson

from tracerouter.errors import BadRequest, Conflict
from tracerouter.store import Item
from tracerouter.types import Confirmation, Confirmed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracerouter.store import Items
    from tracerouter.types import Caller, Task

HEADER: Final = "x-tracerouter-confirm"
"""Carries the token."""
LIFETIME: Final = 600.0
"""Seconds for which a token can be used."""

_KIND: Final = "confirmation"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{32}")


class Confirmations:
    """Gives and takes tokens. The store holds only their digests.

    Args:
        items: Where.
    """

    def __init__(self, items: Items) -> None:
        self._items = items

    async def offer(self, task: Task, model: str, limits: Sequence[str], most: int | None) -> Confirmation:
        """Make a token with which the same caller may send the same request once more, past `limits`.

        Args:
            task: What is asked.
            model: The alias of the model that it is good for.
            limits: The names of the limits; the last is the one that was reached now.
            most: What one call can cost (nano-dollars).

        Raises:
            StoreUnavailable: It can't be kept.
        """
        token, expires = secrets.token_urlsafe(24), time.time() + LIFETIME
        caller = task.caller
        good_for = {"caller": _who(caller), "request": digest(task), "model": model, "limits": list(limits)}
        await self._items.add(
            Item(
                kind=_KIND,
                id=_named(token),
                tenant=caller.tenant,
                user=caller.user,
                state="offered",
                expires=expires,
                body=good_for,
            )
        )
        return Confirmation(token, limits[-1], model, most, expires)

    async def redeem(self, token: str, task: Task) -> Confirmed:
        """Take a token, and return what it is good for.

        Raises:
            BadRequest: It is none, or was given for another request.
            Conflict: It was used, has expired, or was never given to this caller.
            StoreUnavailable: It can't be told.
        """
        if not _TOKEN.fullmatch(token):
            msg = f"the header `{HEADER}` must be the token that the answer 409 `needs_confirmation` held"
            raise BadRequest(msg, HEADER)
        gone = (
            f"the token in `{HEADER}` can't be used: it was used before, or has expired, which it does in "
            f"{LIFETIME / 60:.0f} minutes, or was given to another caller; send the request without it for a new one"
        )
        item = await self._items.get(_KIND, _named(token))
        if item is None or item.body["caller"] != _who(task.caller):
            raise Conflict(gone, HEADER)
        if item.body["request"] != digest(task):
            msg = f"the token in `{HEADER}` was given for another request: send the same body again"
            raise BadRequest(msg, HEADER)
        if await self._items.take(_KIND, item.id) is None:
            raise Conflict(gone, HEADER)
        return Confirmed(item.body["model"], tuple(item.body["limits"]))


def digest(task: Task) -> str:
    """Return what tells a request's body from others, whatever the order of its fields."""
    return blake2b(orjson.dumps(task.body, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def _named(token: str) -> str:
    return blake2b(token.encode(), digest_size=16).hexdigest()


def _who(caller: Caller) -> list[Any]:
    return [caller.tenant, caller.team, caller.user]
