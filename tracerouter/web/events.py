"""An answer as server-sent events in OpenAI's shape, for a client of the gateway or an application in the process."""

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


_Writer = TypeVar("_Writer", bound=Writer)


class EventStream(Generic[_Writer]):
    """An answer as server-sent events.

    It is opened with the first event or comment, so that until then an error can have a status of its own.

    Args:
        task: What is asked.
        policy: ``name@version``.
        opening: Begins the response that has these headers, and returns what takes its content.
    """

    def __init__(self, task: Task, policy: str, opening: Callable[[dict[str, str]], Awaitable[_Writer]]) -> None:
        self._policy = policy
        self._opening = opening
        self._id = task.request_id or ""
        self._with_usage = bool((task.body.get("stream_options") or {}).get("include_usage"))
        self._identity: dict[str, Any] = {}
        self._starting = asyncio.Lock()
        self._last = 0.0
        self.response: _Writer | None = None

    async def send(self, chunk: Mapping[str, Any]) -> None:
        """Write one chunk; waits while the client is slow."""
        self._identity = self._identity or identity(chunk, self._id)
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

    async def finish(self, outcome: Outcome) -> _Writer:
        """Write how it ended: finish reasons, usage where it was asked for, and the request's facts."""
        if outcome.completion is None:
            problem = errors.of_outcome(outcome)
            await self._tell(problem, {"tracerouter": problem.facts or outcome.facts})
        else:
            await self._finish_choices(outcome.completion, outcome)
        return await self._end()

    async def fail(self, error: Exception) -> _Writer:
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

    async def _end(self) -> _Writer:
        response = await self._started()
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _finish_choices(self, completion: Completion, outcome: Outcome) -> None:
        shell = self._identity or identity(completion.body, self._id)
        ends = [
            {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice.get("finish_reason")}
            for choice in completion.body["choices"]
        ]
        last = {**shell, "object": "chat.completion.chunk", "choices": ends}
        if self._with_usage:
            await self._write(last)
            last = {**last, "choices": [], "usage": completion.body.get("usage")}
        await self._write({**last, "tracerouter": outcome.facts})

    async def _started(self) -> _Writer:
        async with self._starting:
            if self.response is None:
                self.response = await self._opening(self._headers())
            return self.response

    def _headers(self) -> dict[str, str]:
        return {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "x-request-id": self._id,
            "traceparent": current_traceparent(),
            "x-tracerouter-policy": self._policy,
        }

    async def _write(self, chunk: Mapping[str, Any]) -> None:
        await self._write_raw(b"data: " + orjson.dumps(chunk) + b"\n\n")

    async def _write_raw(self, content: bytes) -> None:
        response = await self._started()
        await response.write(content)
        self._last = asyncio.get_running_loop().time()


def identity(body: Mapping[str, Any], fallback: str) -> dict[str, Any]:
    """Return what OpenAI's clients expect every answer and chunk to have."""
    return {
        "id": body.get("id") or f"chatcmpl-{fallback}",
        "object": "chat.completion.chunk",
        "created": body.get("created") or int(time.time()),
        "model": body.get("model") or "tracerouter",
    }
