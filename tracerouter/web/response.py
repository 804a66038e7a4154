"""A response that aiohttp's client did not get from the network.

aiohttp has no public way to make one; what is used of its private parts stands here alone, and is pinned by a test.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from tracerouter.errors import CallerGone
from tracerouter.web.events import Patience

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

_BUFFERED = 64 * 1024
"""Bytes of a stream that wait for their reader, at most; a chunk may go over."""


class RoutedResponse(aiohttp.ClientResponse):
    """An answer that was routed, for an application that expects one from the network."""

    routing: asyncio.Task[Any] | None = None
    """What is still at work on it; it ends when the response is closed, unless that is `complete`."""
    complete = False
    """Whether all of the answer has come, though its routing is not over."""

    @classmethod
    def made(
        cls,
        request: aiohttp.ClientRequest,
        status: int,
        headers: Mapping[str, str],
        content: aiohttp.StreamReader,
        *,
        reason: str | None = None,
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
        made.reason = HTTPStatus(status).phrase if reason is None else reason
        made._headers = CIMultiDictProxy(CIMultiDict(headers))
        made._raw_headers = tuple((name.encode(), value.encode()) for name, value in headers.items())
        made._raw_cookie_headers = tuple(made._headers.getall("set-cookie", ())) or None
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
        if self.routing is not None and not self.complete:
            self.routing.cancel()


class Flow:
    """Fills a stream reader as fast as it is read: to the reader, it is a connection's protocol.

    Args:
        limit: Seconds after which an application that reads nothing counts as gone.
    """

    connected = True

    def __init__(self, limit: float) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        protocol: Any = self
        self.content = aiohttp.StreamReader(protocol, _BUFFERED, loop=asyncio.get_running_loop())
        self._patience = Patience(limit, self._unread, self._give_up)

    def pause_reading(self) -> None:
        """Let ``write`` wait; the reader calls this when it holds enough."""
        self._flowing.clear()

    def resume_reading(self, **_: bool) -> None:
        """Let ``write`` go on; the reader calls this when it has been read."""
        self._flowing.set()

    async def write(self, data: bytes, *, wait: bool = True) -> None:
        """Add to what can be read; waits while that is much, unless there is nothing to `wait` for.

        Raises:
            CallerGone: The application has read nothing of it for too long.
        """
        self.content.feed_data(data)
        if wait and not self._flowing.is_set():
            with self._patience:
                await self._flowing.wait()
        if self.content.exception() is not None:
            msg = "the application takes nothing of its stream"
            raise CallerGone(msg)

    async def write_eof(self) -> None:
        """Take note that this was all."""
        self.content.feed_eof()

    def _unread(self) -> int:
        return self.content._size  # noqa: SLF001 - it has no other way to tell

    def _give_up(self) -> None:
        log.warning("an application has read nothing of its stream for too long: it is ended")
        self.content.set_exception(aiohttp.ClientPayloadError("nothing of this stream was read for too long"))
        self._flowing.set()


def arrived(body: bytes) -> aiohttp.StreamReader:
    """Return the content of a response that has arrived whole."""
    content = Flow(0).content
    content.feed_data(body)
    content.feed_eof()
    return content
