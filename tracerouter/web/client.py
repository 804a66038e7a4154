"""The third door: under an application's own aiohttp client, whose outgoing chats are routed in the process."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import orjson
from yarl import URL

from tracerouter.errors import AnswerLost, BadRequest, CallerGone, ProviderError, RequestRejected, ServerFailed
from tracerouter.providers import anthropic, openai
from tracerouter.providers.http import Answer, EventParser, taken
from tracerouter.providers.images import image_tokens
from tracerouter.telemetry import fresh_id
from tracerouter.tokens import count_request, gpt_image_tokens
from tracerouter.types import Caller, Completion, Task, Usage
from tracerouter.web import chat, errors, messages
from tracerouter.web.events import ChatEvents, EventStream
from tracerouter.web.response import Flow, RoutedResponse, arrived

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiohttp import web

    from tracerouter.providers.http import Stream
    from tracerouter.router import Router
    from tracerouter.types import Call, Meter, Outcome
    from tracerouter.web.events import Events

OPENAI = "https://api.openai.com/v1"
ANTHROPIC = "https://api.anthropic.com"


class _Api(NamedTuple):
    """What applications speak to the models that they call."""

    path: str
    asked: Callable[[object], object]
    """Makes an OpenAI chat request of a request. Raises BadRequest for what can't be said in one."""
    events: Callable[[Task], Events]
    plain: Callable[[Outcome], web.Response]
    refusal: Callable[[errors.Problem, str], web.Response]
    read: Callable[[bytes, Meter], Completion]
    """Reads an answer of the API itself that came whole, as `stream` does one that arrives."""
    stream: Callable[[Meter], Stream]
    image_tokens: Callable[..., int]
    """Counts an image, by its part of a chat request and the model's name."""


_CHAT = _Api(
    "/chat/completions",
    lambda body: body,
    ChatEvents,
    lambda outcome: chat.plain(outcome, "chat.completion"),
    errors.response,
    openai.plain,
    openai.Stream,
    lambda part, model: gpt_image_tokens(part),  # noqa: ARG005 - one formula for all of them
)
_MESSAGES = _Api(
    "/v1/messages",
    messages.chat_request,
    messages.MessageEvents,
    messages.plain,
    messages.refusal,
    anthropic.plain,
    anthropic.Stream,
    image_tokens,
)


def client_middleware(
    router: Router,
    openai_url: str = OPENAI,
    anthropic_url: str = ANTHROPIC,
    *,
    identify: Callable[[], Caller] = Caller,
) -> aiohttp.ClientMiddlewareType:
    """Make a middleware for ``ClientSession(middlewares=[…])``.

    Every POST of the session to ``{openai_url}/chat/completions`` and ``{anthropic_url}/v1/messages`` is routed, and
    answered in the API's own shape. The original call, as the application makes it, is the last rung of the ladder: the
    alias ``handler``, whose price and rules are those of a wrapped service. All else goes out untouched, and so does
    what is no chat request, or can't be said in one.

    Args:
        router: Not closed here.
        openai_url: Up to and without ``/chat/completions``.
        anthropic_url: Up to and without ``/v1/messages``.
        identify: Says who asks, in the context of the call. By default everybody is the tenant ``default``.
    """
    bases = ((openai_url, _CHAT), (anthropic_url, _MESSAGES))
    apis = {URL(f"{base.rstrip('/')}{api.path}"): api for base, api in bases}

    async def routed(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        api = apis.get(request.url.with_query(None)) if request.method == "POST" else None
        if api is None:
            return await handler(request)
        original = _Original(request, handler, api, router.write_timeout)
        try:
            task = await _task(original, identify())
        except BadRequest:  # what we can't read, the service may
            return await handler(request)
        return await (_streamed if task.body.get("stream") else _whole)(router, task, original)

    return routed


async def _task(original: _Original, caller: Caller) -> Task:
    """Read the request.

    Raises:
        BadRequest: It is none that can be read, or none whose body can be read twice.
    """
    request = original.request
    payload = request.body
    if not isinstance(payload, aiohttp.BytesPayload) or "content-encoding" in request.headers:
        msg = "the body is no JSON in memory"
        raise BadRequest(msg)
    raw = await payload.as_bytes()
    try:
        body = original.api.asked(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        msg = f"the body is no JSON: {error}"
        raise BadRequest(msg) from None
    told = chat.wishes(request.headers)
    task = Task.parse(body, max_bytes=len(raw) * 2, caller=caller, request_id=fresh_id(), handler=original, **told)
    original.asked = task.body
    return task


async def _whole(router: Router, task: Task, original: _Original) -> aiohttp.ClientResponse:
    try:
        outcome = await router.route(task)
    except BadRequest as error:
        return _refused(error, task, original)
    return _settled(router, outcome, original)


async def _streamed(router: Router, task: Task, original: _Original) -> aiohttp.ClientResponse:
    """Return as soon as the first chunk is there; the rest is routed while the application reads."""
    opened: asyncio.Future[RoutedResponse] = asyncio.get_running_loop().create_future()
    original.opened = opened

    async def opening(headers: dict[str, str]) -> Flow:
        if opened.done():
            msg = "the application reads another stream already, that of the original call"
            raise CallerGone(msg)
        flow = Flow(router.write_timeout)
        opened.set_result(RoutedResponse.made(original.request, 200, _quoted(headers), flow.content))
        return flow

    stream = EventStream(task.request_id or "", router.policy.id, original.api.events(task), opening)
    routing = asyncio.create_task(_filled(stream, router, task, original))
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


async def _filled(
    stream: EventStream[Flow], router: Router, task: Task, original: _Original
) -> aiohttp.ClientResponse | None:
    """Route the task into `stream`; return the answer, where that has not been opened."""
    try:
        outcome = await router.route(task, stream.send)
        if stream.response is None and (outcome.completion is None or router.ended_at_handler(outcome)):
            return _settled(router, outcome, original)
        await stream.finish(outcome)
    except CallerGone:  # who reads no more is told nothing more
        return None
    except Exception as error:
        if stream.response is not None:
            await stream.fail(error)
            return None
        if isinstance(error, BadRequest):
            return _refused(error, task, original)
        raise
    finally:
        original.end()
    return None


def _settled(router: Router, outcome: Outcome, original: _Original) -> aiohttp.ClientResponse:
    """Return the original call's answer, or raise its error, where it had the last word; else what was routed."""
    if outcome.review is None and router.ended_at_handler(outcome):
        if original.error is not None:
            raise original.error
        if original.response is not None:
            return original.response
    return _answered(original.request, original.api.plain(outcome))


def _refused(error: BadRequest, task: Task, original: _Original) -> aiohttp.ClientResponse:
    return _answered(original.request, original.api.refusal(errors.of_bad_request(error), task.request_id or ""))


class _Original:
    """The call as the application makes it, called as a rung. What it is answered goes to the application as it is."""

    asked: Mapping[str, Any]
    """The chat request that it is."""
    opened: asyncio.Future[RoutedResponse] | None = None
    """Where the application waits for a stream, if it does."""

    def __init__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType, api: _Api, write_timeout: float
    ) -> None:
        self.request = request
        self._handler = handler
        self.api = api
        self._write_timeout = write_timeout
        self.response: aiohttp.ClientResponse | None = None
        self._flow: Flow | None = None
        self.error: Exception | None = None

    async def __call__(self, call: Call, meter: Meter) -> Completion:
        """Make the call. A stream is read along while the application reads it.

        Raises:
            ProviderError: It failed; the application gets its own error.
            CallerGone: The application takes nothing of the stream.
        """
        for name, value in call.headers.items():
            self.request.headers.setdefault(name, value)
        legible = True
        try:
            response = self.response = await self._handler(self.request)
            kind = response.content_type
            if "content-encoding" in response.headers and not self.request.session.auto_decompress:
                kind = "packed"
            if kind == "application/json" or response.status >= 400:  # noqa: PLR2004 - HTTP's own number
                raw = await response.read()
                response.content = arrived(raw)  # the application may read it from there, too
            if response.status >= 400:  # noqa: PLR2004
                meter.refused()
                failed = ServerFailed if response.status >= 500 else RequestRejected  # noqa: PLR2004
                msg = f"the original call was answered {response.status}"
                raise failed(msg, status=response.status)
            if kind == "application/json":
                return self.api.read(raw, meter)
            if kind == "text/event-stream" and self.opened is not None:
                return await self._passed_on(response, self.opened, self.api.stream(meter))
            legible = False
            return Completion.of("", model="handler")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.error = error
            if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
                meter.refused()
            msg = f"the original call failed ({type(error).__name__})"
            raise ProviderError(msg) from error
        finally:
            use = meter.uses[-1]
            if legible and not use.refused and use.usage is None and use.begun is None:
                images = partial(self.api.image_tokens, model=str(self.asked.get("model")))
                meter.begun(Usage(count_request(self.asked, images)))

    async def _passed_on(
        self, response: aiohttp.ClientResponse, opened: asyncio.Future[RoutedResponse], stream: Stream
    ) -> Completion:
        """Let the application read the stream as it comes, and read it along; nobody waits for its end here."""
        flow = self._flow = Flow(self._write_timeout)
        made = RoutedResponse.made(
            self.request, response.status, response.headers, flow.content, reason=response.reason
        )
        opened.set_result(made)
        parser, error, over = EventParser(), None, False
        try:
            while not over and (piece := await response.content.readany()):
                try:
                    _read(stream, parser.feed(piece) if error is None else ())
                except ProviderError as found:
                    error = found
                told = error is not None and not isinstance(error, AnswerLost)  # else we can't read it, but it goes on
                over = made.complete = stream.ended or told
                await flow.write(piece, wait=not over)
            if error is None:
                _read(stream, parser.end())
            await Answer(response).drain()
        finally:
            response.close()
        if error is not None:
            raise error
        return stream.completion()

    def end(self) -> None:
        """End the stream that was passed on, if one was: only now, since who has read all of it may close it."""
        if self._flow is None:
            return
        if self.error is not None:
            self._flow.content.set_exception(self.error)
        else:
            self._flow.content.feed_eof()


def _read(stream: Stream, events: Iterable[bytes]) -> None:
    for data in events:
        if not stream.ended:
            for _ in taken(stream, data):
                pass


def _answered(request: aiohttp.ClientRequest, answer: web.Response) -> RoutedResponse:
    """Make a response that has arrived whole."""
    body = answer.body
    assert isinstance(body, bytes)  # noqa: S101 - ours always is
    headers = {**_quoted(answer.headers), "content-length": str(len(body))}
    return RoutedResponse.made(request, answer.status, headers, arrived(body))


def _quoted(headers: Mapping[str, str]) -> dict[str, str]:
    """Return our headers, with the request id under the name that Anthropic's SDK looks for, too."""
    return {**headers, "request-id": headers["x-request-id"]}
