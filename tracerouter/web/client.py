"""The third door: under an application's own aiohttp client, whose outgoing chat completions are routed in the process.

aiohttp has no public way to make a :class:`aiohttp.ClientResponse`; what is used of its private parts stands in
:class:`RoutedResponse` and :class:`_Flow` alone, and is pinned by a test.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tracerouter.errors import BadRequest, ProviderError, RequestRejected, ServerFailed
from tracerouter.telemetry import fresh_id
from tracerouter.types import Caller, Task
from tracerouter.web import chat, errors
from tracerouter.web.events import EventStream
from tracerouter.web.wrap import completion_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp import web

    from tracerouter.router import Router
    from tracerouter.types import Call, Completion, Meter, Outcome

OPENAI = "https://api.openai.com/v1"

_BUFFERED = 64 * 1024
"""Bytes of a stream that wait for their reader, at most; a chunk may go over."""


def client_middleware(
    router: Router, base_url: str = OPENAI, *, identify: Callable[[], Caller] = Caller
) -> aiohttp.ClientMiddlewareType:
    """Make a middleware for ``ClientSession(middlewares=[…])``.

    Every POST of the session to ``{base_url}/chat/completions`` is routed. The original call, as the application makes
    it, is the last rung of the ladder: the alias ``handler``, whose price and rules are those of a wrapped service. All
    else goes out untouched, and so does what is no chat request.

    Args:
        router: Not closed here.
        base_url: Up to and without ``/chat/completions``.
        identify: Says who asks, in the context of the call. By default everybody is the tenant ``default``.
    """
    target = URL(f"{base_url.rstrip('/')}/chat/completions")

    async def routed(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if request.method != "POST" or request.url.with_query(None) != target:
            return await handler(request)
        original = _Original(request, handler)
        try:
            asked = await _task(request, original, identify())
        except BadRequest:  # what we can't read, the service may
            return await handler(request)
        return await (_streamed if asked.body.get("stream") else _whole)(request, router, asked, original)

    return routed


async def _task(request: aiohttp.ClientRequest, original: _Original, caller: Caller) -> Task:
    """Read the request.

    Raises:
        BadRequest: It is none that can be read, or none whose body can be read twice.
    """
    payload = request.body
    if not isinstance(payload, aiohttp.BytesPayload) or "content-encoding" in request.headers:
        msg = "the body is no JSON in memory"
        raise BadRequest(msg)
    raw = await payload.as_bytes()
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        msg = f"the body is no JSON: {error}"
        raise BadRequest(msg) from None
    told = chat.wishes(request.headers)
    return Task.parse(body, max_bytes=len(raw) * 2, caller=caller, request_id=fresh_id(), handler=original, **told)


async def _whole(
    request: aiohttp.ClientRequest, router: Router, task: Task, original: _Original
) -> aiohttp.ClientResponse:
    try:
        outcome = await router.route(task)
    except BadRequest as error:
        return _answered(request, errors.response(errors.of_bad_request(error), task.request_id or ""))
    return original.last_word(router, outcome) or _answered(request, chat.plain(outcome, "chat.completion"))


async def _streamed(
    request: aiohttp.ClientRequest, router: Router, task: Task, original: _Original
) -> aiohttp.ClientResponse:
    """Return as soon as the first chunk is there; the rest is routed while the application reads."""
    opened: asyncio.Future[RoutedResponse] = asyncio.get_running_loop().create_future()

    async def opening(headers: dict[str, str]) -> _Flow:
        flow = _Flow()
        opened.set_result(RoutedResponse.made(request, 200, headers, flow.content))
        return flow

    stream = EventStream(task, router.policy.id, opening)

    async def route() -> aiohttp.ClientResponse | None:
        """Return the answer, where it is not what has been opened."""
        try:
            outcome = await router.route(task, stream.send)
            if stream.response is None:
                whole = original.last_word(router, outcome)
                if whole is not None or outcome.completion is None:
                    return whole or _answered(request, chat.plain(outcome, "chat.completion"))
            await stream.finish(outcome)
        except Exception as error:
            if stream.response is not None:
                await stream.fail(error)
                return None
            if isinstance(error, BadRequest):
                return _answered(request, errors.response(errors.of_bad_request(error), task.request_id or ""))
            raise
        return None

    routing = asyncio.create_task(route())
    try:
        either: set[asyncio.Future[Any]] = {routing, opened}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    except BaseException:
        routing.cancel()
        await asyncio.gather(routing, return_exceptions=True)
        raise
    if not opened.done():
        answer = routing.result()
        assert answer is not None  # noqa: S101 - for the type checker: nothing was opened
        return answer
    response = opened.result()
    response.routing = routing
    return response


class _Original:
    """The call as the application makes it, called as a rung. What it is answered goes to the application as it is."""

    def __init__(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> None:
        self._request = request
        self._handler = handler
        self._response: aiohttp.ClientResponse | None = None
        self._error: Exception | None = None

    async def __call__(self, call: Call, meter: Meter) -> Completion:
        """Make the call; of a stream, which the application reads, nothing is known here.

        Raises:
            ProviderError: It failed; the application gets its own error.
        """
        for name, value in call.headers.items():
            self._request.headers.setdefault(name, value)
        self._response = self._error = None
        try:
            response = self._response = await self._handler(self._request)
            raw = await response.read() if response.content_type == "application/json" else None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._error = error
            msg = f"the original call failed ({type(error).__name__})"
            raise ProviderError(msg) from error
        if response.status >= 400:  # noqa: PLR2004 - HTTP's own number
            meter.refused()
            failed = ServerFailed if response.status >= 500 else RequestRejected  # noqa: PLR2004
            msg = f"the original call was answered {response.status}"
            raise failed(msg, status=response.status)
        return completion_of(raw)

    def last_word(self, router: Router, outcome: Outcome) -> aiohttp.ClientResponse | None:
        """Return its answer, where it was asked last.

        Raises:
            Exception: Its own error, where it had one.
        """
        if outcome.review is not None or not router.ended_at_handler(outcome):
            return None
        if self._error is not None:
            raise self._error
        return self._response


def _answered(request: aiohttp.ClientRequest, answer: web.Response) -> RoutedResponse:
    """Make a response that has arrived whole."""
    flow = _Flow()
    body = answer.body
    assert isinstance(body, bytes)  # noqa: S101 - ours always is
    flow.content.feed_data(body)
    flow.content.feed_eof()
    headers = {**answer.headers, "content-length": str(len(body))}
    return RoutedResponse.made(request, answer.status, headers, flow.content)


class RoutedResponse(aiohttp.ClientResponse):
    """An answer that was routed, for an application that expects one from the network."""

    routing: asyncio.Task[Any] | None = None
    """What is still at work on it; it ends when the response is closed."""

    @classmethod
    def made(
        cls, request: aiohttp.ClientRequest, status: int, headers: Mapping[str, str], content: aiohttp.StreamReader
    ) -> RoutedResponse:
        """Make one as ``ClientRequest.send`` and ``ClientResponse.start`` do, but without a connection."""
        unsent: Any = SimpleNamespace(output_size=0)
        untimed: Any = None
        made = cls(
            request.method,
            request.original_url,
            writer=None,
            continue100=None,
            timer=untimed,
            request_info=request.request_info,
            traces=[],
            loop=asyncio.get_running_loop(),
            session=request.session,
            stream_writer=unsent,
        )
        made._closed = False
        made.version = aiohttp.HttpVersion11
        made.status = status
        made.reason = HTTPStatus(status).phrase
        made._headers = CIMultiDictProxy(CIMultiDict(headers))
        made._raw_headers = tuple((name.encode(), value.encode()) for name, value in headers.items())
        made.content = content
        return made

    def close(self) -> None:
        """Stop what is still at work, and close."""
        self._stop()
        super().close()

    def release(self) -> Any:
        """Stop what is still at work, and release."""
        self._stop()
        return super().release()

    def _stop(self) -> None:
        if self.routing is not None:
            self.routing.cancel()


class _Flow:
    """Fills a stream reader as fast as it is read: to the reader, it is a connection's protocol."""

    connected = True

    def __init__(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        protocol: Any = self
        self.content = aiohttp.StreamReader(protocol, _BUFFERED, loop=asyncio.get_running_loop())

    def pause_reading(self) -> None:
        """Let ``write`` wait; the reader calls this when it holds enough."""
        self._flowing.clear()

    def resume_reading(self, **_: bool) -> None:
        """Let ``write`` go on; the reader calls this when it has been read."""
        self._flowing.set()

    async def write(self, data: bytes) -> None:
        """Add to what can be read; waits while that is much."""
        self.content.feed_data(data)
        await self._flowing.wait()

    async def write_eof(self) -> None:
        """End it."""
        self.content.feed_eof()
