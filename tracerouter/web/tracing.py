"""The span of an HTTP request itself, where no other instrumentation has made it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tracerouter.telemetry import Timeline, names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

    from tracerouter.telemetry import Note, Telemetry


@asynccontextmanager
async def served(request: web.Request, telemetry: Telemetry, request_id: str) -> AsyncIterator[Note | None]:
    """Trace the request under its ``traceparent``; yields the open note, to be told the response.

    A host that traces its requests has a span open already: then this makes none.
    """
    timeline = Timeline.under(request.headers)
    if timeline.in_host_span:
        yield None
        return
    resource = request.match_info.route.resource
    route = resource.canonical if resource else None
    try:
        with timeline.server(f"{request.method} {route}" if route else request.method) as note:
            told = note.attributes
            told[names.HTTP_METHOD] = request.method
            told[names.URL_PATH] = request.path
            told[names.URL_SCHEME] = request.scheme
            told[names.REQUEST_ID] = request_id
            if request.url.host:
                told[names.SERVER_ADDRESS] = request.url.host
            if request.url.port:
                told[names.SERVER_PORT] = request.url.port
            if route:
                told[names.HTTP_ROUTE] = route
            yield note
    finally:
        telemetry.server_ended(timeline)
