"""An answer as server-sent events, for a client of the gateway or an application in the process."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import orjson

from tracerouter.errors import BadRequest, place
from tracerouter.telemetry import current_traceparent
from tracerouter.web import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tracerouter.types import Completion, Outcome, Task

log = logging.getLogger(__name__)


class Writer(Protocol):
    """Takes the content of a response."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes; waits while their reader is slow."""
        ...

    async def write_eof(self) -> None:
        """Take note that this was all."""
        ...


class Events(Protocol):
    """How an API writes one answer as server-sent events."""

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """Write what was added to the answer, an OpenAI chunk."""
        ...

    def end(self, completion: Completion, outcome: Outcome) -> bytes:
        """Write how the answer ended: finish reasons, usage, and the request's facts."""
        ...

    def failure(self, problem: errors.Problem, facts: Mapping[str, Any]) -> bytes:
        """Write why it is no answer, or none that is whole."""
        ...


_Writer = TypeVar("_Writer", bound=Writer)


class EventStream(Generic[_Writer]):
    """An answer as server-sent events.

    It is opened with the first event or comment, so that until then an error can have a status of its own.

    Args:
        request_id: What to quote.
        policy: ``name@version``.
        events: Writes them.
        opening: Begins the response that has these headers, and returns what takes its content.
    """

    def __init__(
        self, request_id: str, policy: str, events: Events, opening: Callable[[dict[str, str]], Awaitable[_Writer]]
    ) -> None:
        self._id = request_id
        self._policy = policy
        self._events = events
        self._opening = opening
        self._starting = asyncio.Lock()
        self._last = 0.0
        self.response: _Writer | None = None

    async def send(self, chunk: Mapping[str, Any]) -> None:
        """Write one chunk; waits while the client is slow."""
        await self._write(self._events.chunk(chunk))

    async def kept_alive(self, routing: Awaitable[Outcome], interval: float) -> Outcome:
        """Wait for the outcome; whenever `interval` seconds have passed in silence, write a comment."""
        clock = asyncio.get_running_loop().time
        self._last = clock()
        routed = asyncio.ensure_future(routing)
        try:
            while not (await asyncio.wait({routed}, timeout=self._last + interval - clock()))[0]:
                if clock() - self._last >= interval:
                    await self._write(b": waiting\n\n")
        except BaseException:  # the caller left, or takes no more
            routed.cancel()
            await asyncio.gather(routed, return_exceptions=True)
            raise
        return routed.result()

    async def finish(self, outcome: Outcome) -> _Writer:
        """Write how it ended."""
        if outcome.completion is None:
            problem = errors.of_outcome(outcome)
            return await self._end(self._events.failure(problem, {"tracerouter": problem.facts or outcome.facts}))
        return await self._end(self._events.end(outcome.completion, outcome))

    async def fail(self, error: Exception) -> _Writer:
        """Write what went wrong, where the status has been told already."""
        if isinstance(error, BadRequest):
            problem = errors.of_bad_request(error)
        else:
            log.error("request %s failed: %s", self._id, place(error))
            problem = errors.INTERNAL
        return await self._end(self._events.failure(problem, {}))

    async def _end(self, content: bytes) -> _Writer:
        response = await self._write(content)
        await response.write_eof()
        return response

    async def _write(self, content: bytes) -> _Writer:
        async with self._starting:
            if self.response is None:
                self.response = await self._opening(self._headers())
        await self.response.write(content)
        self._last = asyncio.get_running_loop().time()
        return self.response

    def _headers(self) -> dict[str, str]:
        return {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "x-request-id": self._id,
            "traceparent": current_traceparent(),
            "x-tracerouter-policy": self._policy,
        }


class ChatEvents:
    """OpenAI's events."""

    def __init__(self, task: Task) -> None:
        self._id = task.request_id or ""
        self._with_usage = bool((task.body.get("stream_options") or {}).get("include_usage"))
        self._identity: dict[str, Any] = {}

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """Write one chunk."""
        self._identity = self._identity or identity(chunk, self._id)
        return _event({**self._identity, **chunk})

    def end(self, completion: Completion, outcome: Outcome) -> bytes:
        """Write the finish reasons, the usage where it was asked for, and the facts in the last chunk."""
        shell = self._identity or identity(completion.body, self._id)
        ends = [
            {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice.get("finish_reason")}
            for choice in completion.body["choices"]
        ]
        last, before = {**shell, "object": "chat.completion.chunk", "choices": ends}, b""
        if self._with_usage:
            before = _event(last)
            last = {**last, "choices": [], "usage": completion.body.get("usage")}
        return before + _event({**last, "tracerouter": outcome.facts}) + _DONE

    def failure(self, problem: errors.Problem, facts: Mapping[str, Any]) -> bytes:
        """Write the error as a chunk."""
        return _event({**orjson.loads(errors.body(problem, self._id)), **facts}) + _DONE


_DONE = b"data: [DONE]\n\n"


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


class Patience:
    """Gives up on a reader who takes nothing for too long; it is held in ``with`` while a write waits for that reader.

    Args:
        limit: Seconds without progress.
        unread: Returns how much (bytes) waits for the reader.
        give_up: Ends the wait.
    """

    def __init__(self, limit: float, unread: Callable[[], int], give_up: Callable[[], None]) -> None:
        self._pause = limit / _LOOKS
        self._unread = unread
        self._give_up = give_up
        self._waits = 0
        self._before = 0
        self._quiet = 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._waits += 1
        if self._waits == 1:
            self._before = self._quiet = 0
            self._look_later()

    def __exit__(self, *_: object) -> None:
        self._waits -= 1
        if self._waits == 0 and self._timer is not None:
            self._timer.cancel()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._look)

    def _look(self) -> None:
        unread = self._unread()
        self._quiet = 0 if unread < self._before else self._quiet + 1
        self._before = unread
        if self._quiet < _LOOKS:
            self._look_later()
        else:
            self._give_up()


_LOOKS = 4
"""How often progress is looked for within the limit."""


def identity(body: Mapping[str, Any], fallback: str) -> dict[str, Any]:
    """Return what OpenAI's clients expect every answer and chunk to have."""
    return {
        "id": body.get("id") or f"chatcmpl-{fallback}",
        "object": "chat.completion.chunk",
        "created": body.get("created") or int(time.time()),
        "model": body.get("model") or "tracerouter",
    }
