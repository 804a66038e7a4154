"""OpenAI's chat completions over HTTP: a request becomes a Task, an Outcome becomes an answer or a stream."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from aiohttp import web

from tracerouter.errors import BadRequest, CallerGone, TooLarge
from tracerouter.review import HEADER as WEBHOOK_HEADER
from tracerouter.telemetry import fresh_id
from tracerouter.types import Freshness, Task
from tracerouter.web import errors
from tracerouter.web.events import EventStream, identity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracerouter.router import Router
    from tracerouter.types import Call, Caller, Completion, Meter, Outcome

REQUEST_ID = web.RequestKey("tracerouter.request_id", str)
"""What to quote."""


class Service(Protocol):
    """A wrapped handler, called as a rung, which may have answered already."""

    response: web.StreamResponse | None

    async def __call__(self, call: Call, meter: Meter) -> Completion:
        """Run the handler."""
        ...


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_RESPOND_ASYNC = re.compile(r"(^|[,;])\s*respond-async\s*($|[,;])", re.IGNORECASE)
_FRESHNESS = re.compile(r"max-age=(\d{1,9})|([a-z][a-z0-9_]{0,31})")


def request_id(request: web.Request) -> str:
    """Return the caller's request id if it is well-formed, or a new one."""
    asked = request.headers.get("x-request-id", "")
    return asked if _REQUEST_ID.fullmatch(asked) else fresh_id()


async def read_task(
    request: web.Request,
    caller: Caller,
    *,
    max_bytes: int,
    handler: Service | None = None,
    parse: Callable[..., Task] = Task.parse,
) -> Task:
    """Read a request, by default one for a chat completion.

    Raises:
        BadRequest: Names the field or header that is wrong.
        TooLarge: The body is larger than `max_bytes`.
    """
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        msg = f"the body is larger than the {max_bytes} bytes that are taken"
        raise TooLarge(msg, "messages" if parse == Task.parse else "input") from None
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        msg = f"the body is no JSON: {error}"
        raise BadRequest(msg) from None
    return parse(
        body,
        max_bytes=max_bytes,
        caller=caller,
        request_id=request[REQUEST_ID],
        handler=handler,
        **wishes(request.headers),
    )


def wishes(headers: Mapping[str, str]) -> dict[str, Any]:
    """Read what the ``x-tracerouter-…`` headers of a request ask for, as fields of a Task.

    Raises:
        BadRequest: Names the header that is wrong.
    """
    return {
        "hint": _name(headers, "x-tracerouter-task"),
        "freshness": _freshness(headers),
        "timeout": _timeout(headers),
        "webhook": headers.get(WEBHOOK_HEADER),
    }


async def answer(
    request: web.Request,
    router: Router,
    task: Task,
    service: Service | None = None,
    *,
    keep_alive: float | None = None,
) -> web.StreamResponse:
    """Route `task` and answer as OpenAI does: plain, or as server-sent events where the task asks for a stream.

    Where a wrapped `service` had the last word, its own response is the answer.

    Args:
        request: The HTTP request.
        router: Where it goes.
        task: What it asks.
        service: The wrapped handler, if there is one; it may begin the response, so that nothing else may.
        keep_alive: Seconds of silence in a stream after which a comment is sent. The first one settles the status: an
            error after it is told in an event. None: no comments.

    Raises:
        BadRequest: The task itself is wrong, and nothing has been answered yet.
    """

    async def opening(headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        return response

    stream = EventStream(task, router.policy.id, opening) if task.body.get("stream") else None
    try:
        routing = router.route(task, stream.send if stream else None)
        outcome = await (stream.kept_alive(routing, keep_alive) if stream and keep_alive else routing)
    except CallerGone:
        if stream is None or stream.response is None:
            raise
        return stream.response
    except Exception as error:
        if stream is None or stream.response is None:
            raise
        return await stream.fail(error)
    begun = service is not None and service.response is not None and service.response.prepared
    if outcome.review is not None and not begun and (stream is None or stream.response is None):
        return in_review(request, outcome)
    if service is not None and service.response is not None and router.ended_at_handler(outcome):
        if not service.response.prepared:
            service.response.headers.update(outcome.headers)
        return service.response
    if stream is not None and (stream.response is not None or outcome.completion is not None):
        return await stream.finish(outcome)
    return plain(outcome, "chat.completion")


def in_review(request: web.Request, outcome: Outcome) -> web.Response:
    """Say that a person will answer: 202 to a caller that takes that, else an error that is not tried again."""
    if not _RESPOND_ASYNC.search(",".join(request.headers.getall("prefer", []))):
        return plain(outcome, "chat.completion")
    facts = errors.review_facts(outcome)
    body = {**facts["review"], "object": "tracerouter.review", "state": "pending", "tracerouter": facts}
    headers = {**outcome.headers, "location": facts["review"]["url"], "preference-applied": "respond-async"}
    return web.Response(body=orjson.dumps(body), status=202, headers=headers, content_type="application/json")


def plain(outcome: Outcome, kind: str) -> web.Response:
    """Make a plain answer, or tell why there is none; `kind` is its ``object``."""
    completion = outcome.completion
    if completion is None:
        return errors.response(errors.of_outcome(outcome), outcome.request_id, outcome.headers)
    told = identity(completion.body, outcome.request_id) if kind == "chat.completion" else {}
    body = {**told, "object": kind, **completion.body, "tracerouter": outcome.facts}
    return web.Response(body=orjson.dumps(body), headers=outcome.headers, content_type="application/json")


def _name(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if value is not None and not _NAME.fullmatch(value):
        msg = f"the header `{name}` must be a name of letters, digits and _.:-, at most 64 characters long"
        raise BadRequest(msg, name)
    return value


def _freshness(headers: Mapping[str, str]) -> Freshness:
    value = headers.get("x-tracerouter-cache")
    if value is None:
        return Freshness()
    if value == "no-store":
        return Freshness(no_store=True)
    match = _FRESHNESS.fullmatch(value)
    if match is None:
        msg = (
            "the header `x-tracerouter-cache` must be no-store, max-age=SECONDS, or a name of the policy's `freshness`"
        )
        raise BadRequest(msg, "x-tracerouter-cache")
    return Freshness(label=match[2]) if match[2] else Freshness(max_age=float(match[1]))


def _timeout(headers: Mapping[str, str]) -> float | None:
    value = headers.get("x-tracerouter-timeout")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 86_400:  # noqa: PLR2004 - a day; also turns down nan and inf
        msg = "the header `x-tracerouter-timeout` must be a number of seconds, above 0 and at most 86400"
        raise BadRequest(msg, "x-tracerouter-timeout")
    return seconds
