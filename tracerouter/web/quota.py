"""Quota state over HTTP: a caller asks for its own limits, an admin for any tenant's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from tracerouter.errors import BadRequest, NotFound, nearest
from tracerouter.types import Caller
from tracerouter.web.chat import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tracerouter.quota import QuotaState
    from tracerouter.router import Router

    Identified = Callable[[web.Request], Awaitable[Caller]]

PATH: Final = "/tracerouter/quota"
_WHOSE: Final = ("tenant", "team", "user", "tier")
_PAGE: Final = ("after", "limit")
_MOST: Final = 1000
"""Tenants in one answer."""


def add_routes(app: web.Application, router: Router, identified: Identified) -> None:
    """Add the endpoint, if the router has a ledger to ask.

    Args:
        app: The application.
        router: Whose ledger.
        identified: Says who asks; may raise :class:`BadRequest`.
    """
    if router.quotas is None:
        return
    quotas = router.quotas

    async def show(request: web.Request) -> web.Response:
        """``GET /tracerouter/quota``."""
        caller = await identified(request)
        told = await asyncio.to_thread(_told, quotas, caller, dict(request.query))
        return web.json_response(told, headers={"x-request-id": request[REQUEST_ID], "cache-control": "no-store"})

    app.router.add_get(PATH, show)


def _told(quotas: QuotaState, caller: Caller, asked: dict[str, str]) -> dict[str, Any]:
    """Answer `asked`. Blocks.

    Raises:
        BadRequest: Names the parameter that is wrong.
        NotFound: It is another's, and the caller is no admin.
        StoreUnavailable: The ledger can't be read.
    """
    known = (*_WHOSE, *(_PAGE if caller.admin and "tenant" not in asked else ()))
    for name in asked:
        if name not in known:
            msg = f"there is no parameter `{name[:64]}` here{nearest(name, known)}; known are {', '.join(known)}"
            raise BadRequest(msg, name[:64])
    whose: dict[str, Any] = {name: asked[name] for name in _WHOSE if name in asked}
    if not caller.admin:
        if replace(caller, **whose) != caller:
            msg = "there is no such quota"
            raise NotFound(msg)
        return quotas.of(caller)
    if "tenant" in whose:
        return quotas.of_tenant(Caller(**whose))
    if whose:
        msg = f"`{next(iter(whose))}` needs `tenant` beside it"
        raise BadRequest(msg, "tenant")
    found, more = quotas.page(asked.get("after", ""), _limit(asked))
    return {"object": "list", "data": found, "has_more": more}


def _limit(asked: dict[str, str]) -> int:
    written = asked.get("limit", "100")
    if not (written.isascii() and written.isdigit() and 1 <= int(written[:9]) <= _MOST):
        msg = f"`limit` must be a whole number from 1 to {_MOST}"
        raise BadRequest(msg, "limit")
    return int(written)
