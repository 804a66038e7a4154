"""The main door: tracerouter around the endpoints of an aiohttp application, and within reach of its handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import orjson
from aiohttp import web

from tracerouter.errors import BadRequest, ConfigError, RequestRejected, ServerFailed
from tracerouter.router import Router
from tracerouter.types import NANOS, Caller, Completion, Usage
from tracerouter.web import chat, errors, reviews, tracing
from tracerouter.web.chat import REQUEST_ID
from tracerouter.web.server import answered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from decimal import Decimal

    from aiohttp.typedefs import Handler, Middleware

    from tracerouter.types import Call, Meter

    Identify = Callable[[web.Request], Caller | Awaitable[Caller]]


class Spent(NamedTuple):
    """What a wrapped handler used, where its answer does not say."""

    usage: Usage
    cost_usd: Decimal | None = None
    """None: the price of the alias in ``tracerouter.yaml``, if it has one."""


ROUTER = web.RequestKey("tracerouter.router", Router)
"""``await request[ROUTER].route(task)`` in any handler."""
USAGE = web.RequestKey("tracerouter.usage", Spent)
"""A wrapped handler may set it, so that its cost is known: ``request[USAGE] = Spent(Usage(input=9, output=3))``."""
ESCALATION = web.RequestKey("tracerouter.escalation", object)
"""Set for a wrapped handler that is called because a cheaper rung failed: a :class:`tracerouter.types.Escalation`."""


def setup(app: web.Application, router: Router, *, wrap: Iterable[str] = (), identify: Identify | None = None) -> None:
    """Put tracerouter around an application: one line.

    Run the application with ``handler_cancellation=True``, so that a client that goes away stops the model's work.

    Args:
        app: The application, not started yet.
        router: Closed when the application is cleaned up.
        wrap: Paths, as they stand in the application's routes, whose handlers take OpenAI chat requests. Each such
            handler becomes the last rung of the ladder: it answers only what the rungs before it do not.
        identify: Says who sends a request. By default everybody is the tenant ``default``.

    Raises:
        ConfigError: A path in `wrap` is none of the application's, when the application starts.
    """
    paths = frozenset(wrap)
    app.middlewares.append(middleware(router, wrap=paths, identify=identify))
    reviews.add_routes(app, router, lambda request: _caller(request, identify), _answering)

    async def start(app: web.Application) -> None:
        known = {resource.canonical for resource in app.router.resources()}
        for path in paths - known:
            msg = f"wrap: the application has no route {path!r}; it has {', '.join(sorted(known))}"
            raise ConfigError(msg)
        await router.start()

    async def name_request(request: web.Request, response: web.StreamResponse) -> None:
        if REQUEST_ID in request:  # also where the handler streams by itself
            response.headers.setdefault("x-request-id", request[REQUEST_ID])

    async def close(_: web.Application) -> None:
        await router.close()

    app.on_startup.append(start)
    app.on_response_prepare.append(name_request)
    app.on_cleanup.append(close)


def middleware(router: Router, *, wrap: Iterable[str] = (), identify: Identify | None = None) -> Middleware:
    """Make the middleware that :func:`setup` installs, for a list of your own."""
    paths = frozenset(wrap)

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[ROUTER] = router
        resource = request.match_info.route.resource
        if request.method != "POST" or resource is None or resource.canonical not in paths:
            return await handler(request)
        request[REQUEST_ID] = request_id = chat.request_id(request)
        async with tracing.served(request, router.telemetry, request_id) as note:
            response = await _routed(request, handler, router, identify, request_id)
            if note is not None:
                note.answered(response.status)
        if isinstance(response, web.HTTPException):
            raise response  # aiohttp wants its own exceptions raised, as the handler did
        return response

    return around


def _answering(handler: Handler) -> Handler:
    """Make an endpoint of ours answer as the gateway's do, whatever the application's middlewares are."""

    async def endpoint(request: web.Request) -> web.StreamResponse:
        request[REQUEST_ID] = request_id = chat.request_id(request)
        return await answered(request, handler, request_id)

    return endpoint


async def _routed(
    request: web.Request, handler: Handler, router: Router, identify: Identify | None, request_id: str
) -> web.StreamResponse:
    service = _Service(request, handler)
    caller = await _caller(request, identify)
    try:
        task = await chat.read_task(request, caller, max_bytes=request.client_max_size, handler=service)
    except BadRequest:  # what we can't read, the service may: wrapping takes nothing away
        return await service.respond()
    try:
        return await chat.answer(request, router, task, service)
    except BadRequest as error:
        return errors.response(errors.of_bad_request(error), request_id)


async def _caller(request: web.Request, identify: Identify | None) -> Caller:
    if identify is None:
        return Caller()
    found = identify(request)
    return found if isinstance(found, Caller) else await found


class _Service:
    """The wrapped handler, as a rung calls it. What it answers goes to the client as it is."""

    def __init__(self, request: web.Request, handler: Handler) -> None:
        self._request = request
        self._handler = handler
        self.response: web.StreamResponse | None = None

    async def respond(self) -> web.StreamResponse:
        """Run the handler; an answer that it raises is an answer."""
        try:
            return await self._handler(self._request)
        except web.HTTPException as answer:
            return answer

    async def __call__(self, call: Call, meter: Meter) -> Completion:
        """Run the handler as a rung.

        Raises:
            RequestRejected: It answered 4xx.
            ServerFailed: It answered 5xx.
        """
        if call.escalation is not None:
            self._request[ESCALATION] = call.escalation
        self.response = await self.respond()
        spent = self._request.get(USAGE)
        if spent is not None:
            meter.reported(spent.usage)
            if spent.cost_usd is not None:
                meter.charged(int(spent.cost_usd * NANOS))
        response, status = self.response, self.response.status
        if status >= 400:  # noqa: PLR2004 - HTTP's own number
            if spent is None:
                meter.refused()
            failed = ServerFailed if status >= 500 else RequestRejected  # noqa: PLR2004
            msg = f"the wrapped handler answered {status}"
            raise failed(msg, status=status)
        raw = response.body if isinstance(response, web.Response) else None  # what it streamed is gone
        return completion_of(raw if isinstance(raw, bytes) else None)


def completion_of(raw: bytes | None) -> Completion:
    """Read a service's answer, as far as it can be read."""
    if raw is None:
        return Completion.of("", model="handler")
    try:
        body = orjson.loads(raw)
        Completion(body).text  # noqa: B018 - raises where the shape is not a chat completion's
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return Completion.of(raw.decode("utf-8", "replace"), model="handler")
    return Completion(body)
