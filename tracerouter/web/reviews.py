"""Reviews over HTTP: a caller asks what came of its own, a reviewer lists, claims and decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from tracerouter.errors import BadRequest, Forbidden, NotFound
from tracerouter.review import ACTIONS, PATH, STATES, told, told_reviewer
from tracerouter.web.chat import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Handler

    from tracerouter.review import Reviews
    from tracerouter.router import Router
    from tracerouter.store import Item
    from tracerouter.types import Caller

    Identified = Callable[[web.Request], Awaitable[Caller]]

_MOST = 1000


def add_routes(
    app: web.Application, router: Router, identified: Identified, around: Callable[[Handler], Handler] = lambda h: h
) -> None:
    """Add the endpoints, if the router has a queue.

    Args:
        app: The application.
        router: Whose reviews.
        identified: Says who asks; may raise :class:`BadRequest`.
        around: Makes answers of errors, where nothing else in the application does.
    """
    if router.reviews is None:
        return
    doors = _Reviews(router, router.reviews, identified)
    app.router.add_get(PATH, around(doors.list))
    app.router.add_get(f"{PATH}/{{id}}", around(doors.show))
    app.router.add_post(f"{PATH}/{{id}}/claim", around(doors.claim))
    for action in ACTIONS:
        app.router.add_post(f"{PATH}/{{id}}/{{action:{action}}}", around(doors.decide))


class _Reviews:
    def __init__(self, router: Router, reviews: Reviews, identified: Identified) -> None:
        self._router = router
        self._reviews = reviews
        self._identified = identified

    async def list(self, request: web.Request) -> web.Response:
        """``GET /tracerouter/reviews?state=pending&limit=100``: for reviewers, the newest first."""
        caller = await self._reviewer(request)
        states = request.query.getall("state", [])
        for state in states:
            if state not in STATES:
                msg = f"there is no state {state[:64]!r}; known are {', '.join(STATES)}"
                raise BadRequest(msg, "state")
        limit = request.query.get("limit", "100")
        if not limit.isdecimal() or not 0 < int(limit) <= _MOST:
            msg = f"`limit` must be a whole number from 1 to {_MOST}"
            raise BadRequest(msg, "limit")
        found = await self._reviews.listed(states or STATES, tenant=_scope(caller), limit=int(limit))
        return _answer(request, {"object": "list", "data": [told_reviewer(item) for item in found]})

    async def show(self, request: web.Request) -> web.Response:
        """``GET /tracerouter/reviews/ID``: to its caller, its state and answer; to a reviewer, all of it."""
        caller = await self._identified(request)
        if caller.reviewer or caller.admin:
            item = await self._reviews.get(request.match_info["id"], _scope(caller))
            return _answer(request, told_reviewer(item, await self._reviews.history(item)))
        mine_alone = self._router.policy.scope == "user"
        item = await self._reviews.get(request.match_info["id"], caller.tenant)
        if mine_alone and item.user != caller.user:
            msg = f"there is no review {item.id!r}"
            raise NotFound(msg)
        return _answer(request, told(item))

    async def claim(self, request: web.Request) -> web.Response:
        """``POST /tracerouter/reviews/ID/claim``."""
        caller = await self._reviewer(request)
        item = await self._reviews.claim(await self._found(request, caller), _name(caller))
        return _answer(request, told_reviewer(item, await self._reviews.history(item)))

    async def decide(self, request: web.Request) -> web.Response:
        """``POST /tracerouter/reviews/ID/approve``, ``/edit`` ``{"text"}``, ``/reject`` ``{"why"}``."""
        caller, action = await self._reviewer(request), request.match_info["action"]
        field = {"edit": "text", "reject": "why"}.get(action)
        text = await _text(request, field) if field else None
        item = await self._reviews.decide(await self._found(request, caller), action, _name(caller), text)
        return _answer(request, told_reviewer(item, await self._reviews.history(item)))

    async def _found(self, request: web.Request, caller: Caller) -> Item:
        return await self._reviews.get(request.match_info["id"], _scope(caller))

    async def _reviewer(self, request: web.Request) -> Caller:
        caller = await self._identified(request)
        if not (caller.reviewer or caller.admin):
            msg = 'only a key with `"reviewer": true` may list and decide reviews'
            raise Forbidden(msg, "authorization")
        return caller


def _scope(caller: Caller) -> str | None:
    """Return whose reviews a reviewer may see: those of its tenant; an admin, all."""
    return None if caller.admin else caller.tenant


def _name(caller: Caller) -> str:
    return caller.user or caller.tenant


async def _text(request: web.Request, field: str) -> str | None:
    raw = await request.read()
    if not raw:
        return None
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        msg = f"the body is no JSON: {error}"
        raise BadRequest(msg) from None
    found = body.get(field) if isinstance(body, dict) else None
    if not isinstance(body, dict) or not (found is None or isinstance(found, str)) or body.keys() - {field}:
        msg = f'the body must be {{"{field}": "…"}}'
        raise BadRequest(msg, field)
    return found


def _answer(request: web.Request, told: dict[str, Any]) -> web.Response:
    headers = {"x-request-id": request[REQUEST_ID], "cache-control": "no-store"}
    return web.Response(body=orjson.dumps(told), headers=headers, content_type="application/json")
