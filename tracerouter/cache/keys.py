"""Keys of the caches: what must be equal for an answer to be the answer to another request as well."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import orjson

from tracerouter.cache.normal import normalized
from tracerouter.cache.values import FORMAT

if TYPE_CHECKING:
    from tracerouter.policy.model import Normal
    from tracerouter.types import Task

HOTTEST: Final = 0.3
"""A request that asks for a higher temperature wants a new answer each time."""

_NOT_OF_THE_ANSWER: Final = frozenset({"stream", "stream_options", "user", "metadata", "store"})


def output_key(task: Task, *, scope: str, salt: str, normal: Normal | None = None) -> str | None:
    """Return the key of an answer, or None where the request is not to be cached.

    Args:
        task: The request.
        scope: ``tenant``, or ``user``: who may be given another's answer.
        salt: Digest of all in the policy that changes what a model answers.
        normal: What of the last user message makes no difference. None: everything does.
    """
    caller, body = task.caller, task.body
    if task.freshness.no_store or (body.get("temperature") or 0) > HOTTEST or (body.get("n") or 1) > 1:
        return None
    if scope == "user" and caller.user is None:
        return None  # nobody to share with is not the same as everybody
    asked = {name: value for name, value in body.items() if name not in _NOT_OF_THE_ANSWER}
    if normal is not None:
        asked["messages"] = normalized(task.messages, normal)
    who = [caller.tenant, caller.tier, caller.user if scope == "user" else None]
    told = orjson.dumps([FORMAT, who, salt, task.hint, task.handler is not None, asked], option=orjson.OPT_SORT_KEYS)
    return blake2b(told, digest_size=16).hexdigest()


def prompt_hash(task: Task, secret: bytes) -> str:
    """Return a keyed hash of the messages or of what is to be embedded.

    Equal prompts can be found by it, but not guessed by who has only the log.
    """
    told = orjson.dumps(task.body.get("messages") or task.body["input"], option=orjson.OPT_SORT_KEYS)
    return blake2b(told, digest_size=8, key=secret[:64]).hexdigest()


def said_digest(task: Task) -> bytes:
    """Return a digest of who asks, all messages and the hint: what a classifier may look at."""
    caller = task.caller
    who = [caller.tenant, caller.team, caller.user, caller.tier]
    return blake2b(orjson.dumps([who, task.hint, task.messages]), digest_size=16).digest()
