"""The gateway: OpenAI's HTTP API in front of a Router."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from tracerouter.errors import BadRequest, NotFound, StoreUnavailable, Unauthorized, place
from tracerouter.types import Caller, Task
from tracerouter.web import chat, errors, jobs, quota, reviews, tracing
from tracerouter.web.chat import REQUEST_ID

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from tracerouter.router import Router

log = logging.getLogger(__name__)

_UNTRACED = frozenset({"/healthz", "/readyz"})


class Keys(Protocol):
    """Knows API keys."""

    def caller(self, key: str) -> Caller | None:
        """Return whom `key` stands for, or None."""
        ...


def application(
    router: Router, *, keys: Keys | None, max_body: int, keep_alive: float | None = None
) -> web.Application:
    """Make the gateway's application. It closes the router when it is cleaned up.

    Args:
        router: Where requests go.
        keys: API keys; None: everybody is the tenant ``default``, with every right.
        max_body: The largest request body (bytes).
        keep_alive: Seconds of silence in a stream after which a comment is sent; None: never.
    """
    gateway = _Gateway(router, keys, max_body, keep_alive)
    app = web.Application(client_max_size=max_body, middlewares=[gateway.around])
    app.router.add_post("/v1/chat/completions", gateway.chat_completions)
    app.router.add_post("/v1/embeddings", gateway.embeddings)
    app.router.add_get("/v1/models", gateway.models)
    if router.jobs is not None:
        app.router.add_get(jobs.PATH, gateway.job)
        app.router.add_delete(jobs.PATH, gateway.cancel_job)
    quota.add_routes(app, router, gateway.identified)
    reviews.add_routes(app, router, gateway.identified)
    app.router.add_get("/healthz", gateway.healthz)
    app.router.add_get("/readyz", gateway.readyz)
    app.on_startup.append(gateway.start)
    app.on_cleanup.append(gateway.close)
    return app


class _Gateway:
    def __init__(self, router: Router, keys: Keys | None, max_body: int, keep_alive: float | None) -> None:
        self._router = router
        self._keys = keys
        self._max_body = max_body
        self._keep_alive = keep_alive

    @web.middleware
    async def around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Trace the request, and answer whatever goes wrong in OpenAI's shape."""
        request[REQUEST_ID] = request_id = chat.request_id(request)
        if request.path in _UNTRACED:
            return await handler(request)
        async with tracing.served(request, self._router.telemetry, request_id) as note:
            response = await answered(request, handler, request_id)
            if note is not None:
                note.answered(response.status)
        return response

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        caller = self._caller(request)
        task = await chat.read_task(request, caller, max_bytes=self._max_body)
        return await chat.answer(request, self._router, task, keep_alive=self._keep_alive)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/embeddings``: passed on to the model that it names."""
        caller = self._caller(request)
        task = await chat.read_task(request, caller, max_bytes=self._max_body, parse=Task.embeddings)
        return chat.plain(await self._router.embed(task), "list")

    async def models(self, request: web.Request) -> web.Response:
        """``GET /v1/models``: ``auto``, the ladders that have a name, and the models."""
        self._caller(request)
        told = [
            {"id": name, "object": "model", "created": 0, "owned_by": "tracerouter"}
            for name in (*self._router.names, *self._router.policy.embeddings)
        ]
        return web.json_response({"object": "list", "data": told}, headers={"x-request-id": request[REQUEST_ID]})

    async def job(self, request: web.Request) -> web.Response:
        """``GET /tracerouter/jobs/ID``: what has become of it; to its own caller."""
        caller, wanted = self._caller(request), request.match_info["id"]
        found = await self._router.jobs.get(wanted, caller) if self._router.jobs else None
        if found is None:
            raise NotFound(_no_job(wanted), "id")
        return web.json_response(jobs.told(found), headers={"x-request-id": request[REQUEST_ID]})

    async def cancel_job(self, request: web.Request) -> web.Response:
        """``DELETE /tracerouter/jobs/ID``: it is stopped, and all that was kept of it deleted."""
        caller, wanted = self._caller(request), request.match_info["id"]
        if self._router.jobs is None or not await self._router.jobs.cancel(wanted, caller):
            raise NotFound(_no_job(wanted), "id")
        told = {"id": wanted, "object": "tracerouter.job", "deleted": True}
        return web.json_response(told, headers={"x-request-id": request[REQUEST_ID]})

    async def healthz(self, _: web.Request) -> web.Response:
        """``GET /healthz``: the process lives."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """``GET /readyz``: it takes requests. While it shuts down it takes no connections any more."""
        return web.json_response({"status": "ready", "policy": self._router.policy.id})

    async def start(self, _: web.Application) -> None:
        """Load what the first request would have to wait for."""
        await self._router.start()
        gc.collect()
        gc.freeze()  # what is loaded by now stays: the collector need not look at half a million objects again

    async def close(self, _: web.Application) -> None:
        """Flush spans and free everything, after the last request."""
        await self._router.close()

    async def identified(self, request: web.Request) -> Caller:
        """Say who asks."""
        return self._caller(request)

    def _caller(self, request: web.Request) -> Caller:
        if self._keys is None:
            return Caller(admin=True, reviewer=True)  # the machine's owner: it listens on loopback only
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        caller = self._keys.caller(key.strip()) if scheme.lower() == "bearer" and key else None
        if caller is None:
            found = "that key is not known" if key else "none was sent"
            msg = f"an API key is needed, as `Authorization: Bearer KEY`; {found}"
            raise Unauthorized(msg, "authorization")
        return caller


def _no_job(wanted: str) -> str:
    return f"there is no job {wanted[:64]!r}: an answer is kept for a day"


async def answered(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    """Run `handler`, and answer whatever goes wrong in OpenAI's shape."""
    try:
        return await handler(request)
    except BadRequest as error:
        problem = errors.of_bad_request(error)
    except StoreUnavailable:
        problem = errors.UNAVAILABLE
    except web.HTTPException as error:
        code = "not_found" if error.status == 404 else "http_error"  # noqa: PLR2004 - HTTP's own number
        problem = errors.Problem(error.status, f"{request.method} {request.path[:128]}: {error.reason}", code)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
        log.error("request %s failed: %s", request_id, place(error))
        problem = errors.INTERNAL
    return errors.response(problem, request_id)
