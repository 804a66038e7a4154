"""OpenAI's chat completions over HTTP: a request becomes a Task, an Outcome becomes an answer or a stream."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from aiohttp import web

from tracerouter.errors import BadRequest, CallerGone, TooLarge, place
from tracerouter.telemetry import current_traceparent, fresh_id
from tracerouter.types import Freshness, Task
from tracerouter.web import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tracerouter.router import Router
    from tracerouter.types import Call, Caller, Completion, Meter, Outcome

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
_MAX_AGE = re.compile(r"max-age=(\d{1,9})")


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
        hint=_header(request, "x-tracerouter-task", _NAME),
        freshness=_freshness(request),
        timeout=_timeout(request),
        request_id=request[REQUEST_ID],
        handler=handler,
    )


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
    stream = _Stream(request, task, router.policy.id) if task.body.get("stream") else None
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
    if service is not None and service.response is not None and router.ended_at_handler(outcome):
        if not service.response.prepared:
            service.response.headers.update(outcome.headers)
        return service.response
    if stream is not None and (stream.response is not None or outcome.completion is not None):
        return await stream.finish(outcome)
    return plain(outcome, "chat.completion")


def plain(outcome: Outcome, kind: str) -> web.Response:
    """Make a plain answer, or tell why there is none; `kind` is its ``object``."""
    completion = outcome.completion
    if completion is None:
        return errors.response(errors.of_outcome(outcome), outcome.request_id, outcome.headers)
    identity = _identity_of(completion.body, outcome.request_id) if kind == "chat.completion" else {}
    body = {**identity, "object": kind, **completion.body, "tracerouter": outcome.facts}
    return web.Response(body=orjson.dumps(body), headers=outcome.headers, content_type="application/json")


class _Stream:
    """An answer as server-sent events.

    The response starts with the first chunk, so that until then an error can have a status of its own.
    """

    def __init__(self, request: web.Request, task: Task, policy: str) -> None:
        self._request = request
        self._policy = policy
        self._id = task.request_id or ""
        self._with_usage = bool((task.body.get("stream_options") or {}).get("include_usage"))
        self._identity: dict[str, Any] = {}
        self._starting = asyncio.Lock()
        self._last = 0.0
        self.response: web.StreamResponse | None = None

    async def send(self, chunk: Mapping[str, Any]) -> None:
        """Write one chunk; waits while the client is slow."""
        self._identity = self._identity or _identity_of(chunk, self._id)
        await self._write({**self._identity, **chunk})

    async def kept_alive(self, routing: Awaitable[Outcome], interval: float) -> Outcome:
        """Wait for the outcome; whenever `interval` seconds have passed in silence, write a comment."""
        clock = asyncio.get_running_loop().time
        self._last = clock()
        routed = asyncio.ensure_future(routing)
        try:
            while not (await asyncio.wait({routed}, timeout=self._last + interval - clock()))[0]:
                if clock() - self._last >= interval:
                    await self._write_raw(b": waiting\n\n")
        except BaseException:  # the caller left, or takes no more
            routed.cancel()
            await asyncio.gather(routed, return_exceptions=True)
            raise
        return routed.result()

    async def finish(self, outcome: Outcome) -> web.StreamResponse:
        """Write how it ended: finish reasons, usage where it was asked for, and the request's facts."""
        if outcome.completion is None:
            await self._tell(errors.of_outcome(outcome), {"tracerouter": outcome.facts})
        else:
            await self._finish_choices(outcome.completion, outcome)
        return await self._end()

    async def fail(self, error: Exception) -> web.StreamResponse:
        """Write what went wrong, where the status has been told already."""
        if isinstance(error, BadRequest):
            problem = errors.of_bad_request(error)
        else:
            log.error("request %s failed: %s", self._id, place(error))
            problem = errors.INTERNAL
        await self._tell(problem, {})
        return await self._end()

    async def _tell(self, problem: errors.Problem, facts: Mapping[str, Any]) -> None:
        await self._write({**orjson.loads(errors.body(problem, self._id)), **facts})

    async def _end(self) -> web.StreamResponse:
        response = await self._started()
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _finish_choices(self, completion: Completion, outcome: Outcome) -> None:
        shell = self._identity or _identity_of(completion.body, self._id)
        ends = [
            {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice.get("finish_reason")}
            for choice in completion.body["choices"]
        ]
        last = {**shell, "object": "chat.completion.chunk", "choices": ends}
        if self._with_usage:
            await self._write(last)
            last = {**last, "choices": [], "usage": completion.body.get("usage")}
        await self._write({**last, "tracerouter": outcome.facts})

    async def _started(self) -> web.StreamResponse:
        async with self._starting:
            if self.response is None:
                self.response = await self._start()
            return self.response

    async def _start(self) -> web.StreamResponse:
        headers = {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "x-request-id": self._id,
            "traceparent": current_traceparent(),
            "x-tracerouter-policy": self._policy,
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(self._request)
        return response

    async def _write(self, chunk: Mapping[str, Any]) -> None:
        await self._write_raw(b"data: " + orjson.dumps(chunk) + b"\n\n")

    async def _write_raw(self, content: bytes) -> None:
        response = await self._started()
        await response.write(content)
        self._last = asyncio.get_running_loop().time()


def _identity_of(body: Mapping[str, Any], fallback: str) -> dict[str, Any]:
    """Return what OpenAI's clients expect every answer and chunk to have."""
    return {
        "id": body.get("id") or f"chatcmpl-{fallback}",
        "object": "chat.completion.chunk",
        "created": body.get("created") or int(time.time()),
        "model": body.get("model") or "tracerouter",
    }


def _header(request: web.Request, name: str, shape: re.Pattern[str]) -> str | None:
    value = request.headers.get(name)
    if value is not None and not shape.fullmatch(value):
        msg = f"the header `{name}` must be a name of letters, digits and _.:-, at most 64 characters long"
        raise BadRequest(msg, name)
    return value


def _freshness(request: web.Request) -> Freshness:
    value = request.headers.get("x-tracerouter-cache")
    if value is None:
        return Freshness()
    if value == "no-store":
        return Freshness(no_store=True)
    match = _MAX_AGE.fullmatch(value)
    if match is None:
        msg = "the header `x-tracerouter-cache` must be no-store or max-age=SECONDS"
        raise BadRequest(msg, "x-tracerouter-cache")
    return Freshness(max_age=float(match[1]))


def _timeout(request: web.Request) -> float | None:
    value = request.headers.get("x-tracerouter-timeout")
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
