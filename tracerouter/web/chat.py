"""OpenAI's chat completions over HTTP: a request becomes a Task, an Outcome becomes an answer or a stream."""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from aiohttp import web

from tracerouter.errors import BadRequest, CallerGone, TooLarge, TracerouterError
from tracerouter.quota.confirmations import HEADER as CONFIRM_HEADER
from tracerouter.review import HEADER as WEBHOOK_HEADER
from tracerouter.telemetry import fresh_id
from tracerouter.types import CHAT, Freshness, Outcome, Task
from tracerouter.web import errors, jobs
from tracerouter.web.events import ChatEvents, EventStream, Patience, identity

try:
    import fcntl
    import termios
except ImportError:  # not everywhere are there sockets that can be asked
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from tracerouter.router import Router
    from tracerouter.types import Call, Caller, Completion, Meter

log = logging.getLogger(__name__)

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
_IDEMPOTENCY_KEY = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
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
    """Read what the headers of a request ask for, as fields of a Task.

    Raises:
        BadRequest: Names the header that is wrong.
    """
    return {
        "hint": _name(headers, "x-tracerouter-task"),
        "freshness": _freshness(headers),
        "timeout": _timeout(headers),
        "confirm": headers.get(CONFIRM_HEADER),
        "respond_async": bool(_RESPOND_ASYNC.search(headers.get("prefer", ""))),
        "idempotency_key": _idempotency_key(headers),
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
        response = _PatientResponse(request, headers, router.write_timeout)
        await response.prepare(request)
        return response

    stream = None
    if task.body.get("stream"):
        stream = EventStream(task.request_id or "", router.policy.id, ChatEvents(task), opening)
    try:
        routing = router.route(task, stream.send if stream else None)
        outcome = await (stream.kept_alive(routing, keep_alive) if stream and keep_alive else routing)
        return await _told(task, outcome, router, service, stream)
    except (CallerGone, ConnectionError):
        if stream is None or stream.response is None:
            raise
        return stream.response
    except Exception as error:
        if stream is None or stream.response is None:
            raise
        return await stream.fail(error)


_NEVER_WAITS = 32 * 1024
"""Bytes that are taken at once where nothing else waits to be sent: asyncio lets no write wait below 64 KB."""


class _PatientResponse(web.StreamResponse):
    """A response that breaks its connection when the client has taken nothing for `limit` seconds."""

    def __init__(self, request: web.Request, headers: Mapping[str, str], limit: float) -> None:
        super().__init__(headers=headers)
        self._transport = request.transport
        self._patience = Patience(limit, self._unread, self._break)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        with self._patience:
            await super().write(data)
        if (
            self._transport is None or self._transport.is_closing()
        ):  # a wait that this ends looks like one that went well
            msg = "the client has gone"
            raise ConnectionResetError(msg)

    async def write_eof(self, data: bytes = b"") -> None:
        with self._patience:
            await super().write_eof(data)

    def _unread(self) -> int:
        return _queued(self._transport) if self._transport is not None else 0

    def _break(self) -> None:
        log.warning("a client has taken nothing of its stream for too long: its connection is closed")
        if self._transport is not None:
            self._transport.abort()


def _queued(transport: asyncio.Transport) -> int:
    """Return the bytes that wait for the client: ours, and the kernel's, which asks us for more only in large steps."""
    ours, sock = transport.get_write_buffer_size(), transport.get_extra_info("socket")
    if fcntl is None or sock is None:
        return ours
    try:
        return ours + int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:  # a kernel that does not tell, or a socket that is gone
        return ours


async def _told(
    task: Task,
    outcome: Outcome,
    router: Router,
    service: Service | None,
    stream: EventStream[web.StreamResponse] | None,
) -> web.StreamResponse:
    """Answer with what came of a task, where its answer has not left already."""
    begun = service is not None and service.response is not None and service.response.prepared
    if outcome.review is not None and not begun and (stream is None or stream.response is None):
        return _in_review(task, outcome)
    if service is not None and service.response is not None and router.ended_at_handler(outcome):
        if not service.response.prepared:
            service.response.headers.update(outcome.headers)
        return service.response
    if stream is not None and (stream.response is not None or outcome.completion is not None):
        return await stream.finish(outcome)
    return plain(outcome, "chat.completion")


def _in_review(task: Task, outcome: Outcome) -> web.Response:
    """Say that a person will answer: 202 to a caller that takes that, else an error that is not tried again."""
    if not task.respond_async:
        return plain(outcome, "chat.completion")
    facts = errors.review_facts(outcome)
    body = {**facts["review"], "object": "tracerouter.review", "state": "pending", "tracerouter": facts}
    headers = {**outcome.headers, "location": facts["review"]["url"], "preference-applied": "respond-async"}
    return web.Response(body=orjson.dumps(body), status=202, headers=headers, content_type="application/json")


def plain(outcome: Outcome, kind: str) -> web.Response:
    """Make a plain answer, or tell why there is none; `kind` is its ``object``."""
    if outcome.completion is not None:
        body = _whole(outcome, outcome.completion, kind)
        return web.Response(body=orjson.dumps(body), headers=outcome.headers, content_type="application/json")
    if outcome.job is not None:
        return jobs.accepted(outcome.job, outcome)
    return errors.response(errors.of_outcome(outcome), outcome.request_id, outcome.headers)


def later(result: Outcome | TracerouterError, operation: str) -> tuple[int, Mapping[str, Any]]:
    """Return status and body of the plain answer to a request that was run later, for ``chat`` or ``embeddings``."""
    if isinstance(result, Outcome):
        if result.completion is not None:
            return 200, _whole(result, result.completion, "chat.completion" if operation == CHAT else "list")
        problem, quoted = errors.of_outcome(result), result.request_id
    else:
        problem, quoted = errors.of_error(result), None
    return problem.status, orjson.loads(errors.body(problem, quoted))


def _whole(outcome: Outcome, completion: Completion, kind: str) -> dict[str, Any]:
    told = identity(completion.body, outcome.request_id) if kind == "chat.completion" else {}
    return {**told, "object": kind, **completion.body, "tracerouter": outcome.facts}


def _name(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if value is not None and not _NAME.fullmatch(value):
        msg = f"the header `{name}` must be a name of letters, digits and _.:-, at most 64 characters long"
        raise BadRequest(msg, name)
    return value


def _idempotency_key(headers: Mapping[str, str]) -> str | None:
    value = headers.get("idempotency-key")
    if value is not None and not _IDEMPOTENCY_KEY.fullmatch(value):
        msg = "the header `idempotency-key` must be 1 to 255 printable ASCII characters"
        raise BadRequest(msg, "idempotency-key")
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
