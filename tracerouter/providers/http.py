"""What providers over HTTP share: one POST, a bounded read, server-sent events, and a table of failures.

=============================================  =================================================
what happens                                   becomes
=============================================  =================================================
no connection (refused, DNS, TLS, too slow)    Unreachable, nothing sent
429                                            RateLimited, refused
400, 413, 422 that tell of the context         ContextTooLong, refused
another status from 300 to 499                 RequestRejected, refused
5xx                                            ServerFailed, refused
an ``error`` inside an answer                  RateLimited, ContextTooLong or ServerFailed
a broken connection, no JSON, too many bytes   AnswerLost
=============================================  =================================================

Cancellation and ``TimeoutError`` pass through, and close the connection.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol, Self

import aiohttp
import orjson

from tracerouter.errors import (
    AnswerLost,
    ContextTooLong,
    ProviderError,
    RateLimited,
    RequestRejected,
    ServerFailed,
    Unreachable,
)
from tracerouter.types import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from aiohttp.abc import AbstractStreamWriter

    from tracerouter.protocols import Sink
    from tracerouter.types import Completion, Meter

MAX_ANSWER_BYTES = 10 * 1024 * 1024
"""The largest plain answer, and the longest line of a stream (bytes, decompressed)."""

MAX_STREAM_BYTES = 64 * 1024 * 1024
"""The largest stream (bytes): more than a plain answer, since each token comes in a frame of some 300."""

_MAX_ERROR_BYTES = 64 * 1024
_MAX_TOLD = 300
_END_GRACE = 0.05

_TELLS_WHY = frozenset({400, 404, 413, 422})
_MAY_BE_TOO_LONG = frozenset({400, 413, 422})
_TOO_LONG = re.compile(
    r"context.?(length|window|size|limit)|prompt is too long|too many (input |prompt )?tokens"
    r"|reduce the length of the (messages|prompt|input)",
    re.IGNORECASE,
)


@asynccontextmanager
async def posted(
    session: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    meter: Meter,
) -> AsyncIterator[Answer]:
    """POST `body` as JSON once; the answer is open inside the block, and its status is a good one.

    `meter` is told when the body begins to be written, and when a status says that it was not served.
    On leaving, a connection whose answer was not read to its end is closed, so that the upstream stops.

    Raises:
        ProviderError: As the table above says, but for what an answer's content tells.
    """
    payload = _Payload(orjson.dumps(body), meter.sent)
    try:
        # a redirect would carry the key elsewhere, and bill a second request
        response = await session.post(url, data=payload, headers=headers, allow_redirects=False)
    except aiohttp.ConnectionTimeoutError as error:
        msg = "no connection in the time that the session gives"
        raise Unreachable(msg) from error
    except TimeoutError:
        raise
    except (aiohttp.ClientError, OSError) as error:
        if payload.begun:
            raise _lost(error) from error
        msg = f"no connection: {error}"  # nothing was sent, so there is no secret to repeat
        raise Unreachable(msg) from error
    try:
        if response.status >= 300:  # noqa: PLR2004 - all that is not 2xx
            meter.refused()
            raise failure(response.status, response.headers, await _told(response))
        yield Answer(response)
    finally:
        response.close()


class Answer:
    """The body of an answer that is still arriving, at most `limit` bytes of it."""

    def __init__(self, response: aiohttp.ClientResponse, limit: int = MAX_STREAM_BYTES) -> None:
        self._content = response.content
        self._left = limit
        self.is_json = response.content_type == "application/json"

    async def piece(self) -> bytes:
        """Return what has arrived since the last call; empty at the end.

        Raises:
            AnswerLost: The connection broke, or more than `limit` bytes came.
        """
        try:
            piece = await self._content.readany()
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise _lost(error) from error
        self._left -= len(piece)
        if self._left < 0:
            msg = "the answer is larger than what is read of one"
            raise AnswerLost(msg)
        return piece

    async def whole(self, limit: int = MAX_ANSWER_BYTES) -> bytes:
        """Return all of it.

        Raises:
            AnswerLost: The connection broke, or more than `limit` bytes came.
        """
        self._left = min(self._left, limit)
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def drain(self) -> None:
        """Take the end of an answer whose content is complete, so that its connection can be used again.

        An end that does not come at once is not waited for.
        """
        with suppress(TimeoutError, AnswerLost):
            async with asyncio.timeout(_END_GRACE):
                while await self.piece():
                    pass


class EventParser:
    """Cuts bytes into the ``data`` of server-sent events. Lines end in LF or CRLF.

    Args:
        line_limit: The longest line (bytes).
    """

    def __init__(self, line_limit: int = MAX_ANSWER_BYTES) -> None:
        self._limit = line_limit
        self._line = bytearray()
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes, cut anywhere; return the events that they complete.

        Raises:
            AnswerLost: A line is too long.
        """
        *ends, rest = piece.split(b"\n")
        events = []
        for end in ends:
            self._extend(end)
            events += self._end_line()
        self._extend(rest)
        return events

    def end(self) -> list[bytes]:
        """Return the last event, where the stream ended without the blank line that closes it."""
        return self._end_line() + self._end_line()

    def _extend(self, part: bytes) -> None:
        self._line += part
        if len(self._line) > self._limit:
            msg = f"a line of the stream is longer than {self._limit} bytes"
            raise AnswerLost(msg)

    def _end_line(self) -> list[bytes]:
        line = bytes(self._line).removesuffix(b"\r")
        self._line.clear()
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return []
        data, self._data = self._data, []
        return [b"\n".join(data)] if data else []


class Events:
    """The ``data`` of an answer's server-sent events, one after the other, for ``async for``."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._parser = EventParser()
        self._ready: deque[bytes] = deque()
        self._ended = False

    def __aiter__(self) -> Self:
        """Return itself: the events can be read once."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next event's data.

        Raises:
            AnswerLost: The connection broke, or too much came.
        """
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            piece = await self._answer.piece()
            self._ended = not piece
            self._ready.extend(self._parser.feed(piece) if piece else self._parser.end())
        return self._ready.popleft()


class Stream(Protocol):
    """Reads an answer of one API that is arriving, event by event."""

    meter: Meter
    ended: bool
    """Whether the server has said that this was all."""

    def take(self, data: bytes) -> Iterable[Mapping[str, Any]]:
        """Take an event's data; return what it adds to the answer, as OpenAI's chunks.

        Raises:
            ProviderError: It is no event of an answer, or tells of an error.
        """
        ...

    def completion(self) -> Completion:
        """Return the answer as if it had come whole.

        Raises:
            AnswerLost: It ended too early, or is none.
        """
        ...


async def streamed(answer: Answer, stream: Stream, sink: Sink) -> Completion:
    """Read an answer's events to their end, and give the sink what it gets of them.

    Raises:
        ProviderError: There is no answer, or it broke off.
    """
    async for data in Events(answer):
        for chunk in taken(stream, data):
            await sink(chunk)
        if stream.ended:
            break
    completion = stream.completion()
    await answer.drain()
    return completion


def taken(stream: Stream, data: bytes) -> Iterator[Mapping[str, Any]]:
    """Let `stream` take an event's data; the first content is timed."""
    for chunk in stream.take(data):
        if stream.meter.first_chunk_ns is None:
            stream.meter.first_chunk_ns = time.perf_counter_ns()
        yield chunk


def decoded(raw: bytes) -> dict[str, Any]:
    """Decode a JSON object that answers a request.

    Raises:
        AnswerLost: It is no JSON object in UTF-8.
        ProviderError: It is one, but tells of an error.
    """
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        msg = "the answer is no JSON"
        raise AnswerLost(msg) from None
    if not isinstance(found, dict):
        msg = "the answer is JSON, but no object"
        raise AnswerLost(msg)
    if found.get("error"):
        raise told_failure(found["error"])
    return found


def failure(status: int, headers: Mapping[str, str], raw: bytes) -> ProviderError:
    """Make the error of an answer with a bad status, by the table above.

    `raw` is its body. The upstream's own message is repeated only for statuses where it helps; that of a
    401 or 403 may hold the key.
    """
    code, said = _code_and_message(raw)
    wait = retry_after(headers)
    if status == 429:  # noqa: PLR2004
        msg = "the provider limits the rate"
        return RateLimited(msg, status=status, retry_after=wait)
    if status >= 500:  # noqa: PLR2004
        msg = f"the provider failed with status {status}"
        return ServerFailed(msg, status=status, retry_after=wait)
    if status in _MAY_BE_TOO_LONG and _TOO_LONG.search(f"{code} {said}"):
        msg = "the prompt does not fit the model"
        return ContextTooLong(msg, status=status)
    why = f": {said[:_MAX_TOLD]}" if said and status in _TELLS_WHY else ""
    msg = f"the provider turned the request down with status {status}{why}"
    return RequestRejected(msg, status=status, retry_after=wait)


def told_failure(error: object) -> ProviderError:
    """Make the error of an ``error`` object that came inside an answer of a good status."""
    told = error if isinstance(error, dict) else {}
    codes = f"{told.get('type')} {told.get('code')}".lower()
    if "429" in codes or "ratelimit" in re.sub(r"[_ -]", "", codes):
        msg = "the provider limits the rate, and said so inside its answer"
        return RateLimited(msg)
    if "context_length" in codes:
        msg = "the prompt does not fit the model"
        return ContextTooLong(msg)
    msg = "the provider reported an error inside its answer"
    return ServerFailed(msg)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that ``retry-after-ms`` or ``retry-after`` (a number or a date) asks to wait.

    None where there is no such header, or it makes no sense; 0 for a date in the past.
    """
    millis = _number(headers.get("retry-after-ms", ""))
    if millis is not None:
        return millis / 1000
    value = headers.get("retry-after", "")
    seconds = _number(value)
    if seconds is not None:
        return seconds
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - time.time())


def usage_of(told: object) -> Usage | None:
    """Read a ``usage`` object as OpenAI writes it; None where it is missing or holds nonsense."""
    if not isinstance(told, dict):
        return None
    inputs, outputs = told.get("prompt_tokens_details") or {}, told.get("completion_tokens_details") or {}
    if not isinstance(inputs, dict) or not isinstance(outputs, dict):
        return None
    usage = Usage(
        told.get("prompt_tokens", -1),
        told.get("completion_tokens", -1),
        inputs.get("cached_tokens") or 0,
        outputs.get("reasoning_tokens") or 0,
        inputs.get("cache_write_tokens") or 0,
    )
    return usage if are_counts(usage) else None


def are_counts(values: Iterable[object]) -> bool:
    """Return whether all are whole numbers of at least 0; to ``isinstance``, a bool would be one."""
    return all(type(value) is int and value >= 0 for value in values)


def are_objects(found: object) -> bool:
    """Return whether `found` is a list of JSON objects."""
    return isinstance(found, list) and all(isinstance(one, dict) for one in found)


def demand(condition: object, otherwise: str) -> None:
    """Go on with an answer only if `condition` holds.

    Raises:
        AnswerLost: "the answer `otherwise`".
    """
    if not condition:
        msg = f"the answer {otherwise}"
        raise AnswerLost(msg)


class _Payload(aiohttp.Payload):
    """A JSON body that says when it begins to be written, which is after the connection was made."""

    def __init__(self, content: bytes, begin: Callable[[], None]) -> None:
        super().__init__(content, content_type="application/json")
        self._content = content
        self._begin = begin
        self.begun = False

    @property
    def size(self) -> int:
        return len(self._content)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._content.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        if not self.begun:
            self.begun = True
            self._begin()
        await writer.write(self._content)


async def _told(response: aiohttp.ClientResponse) -> bytes:
    """Return an error answer's body; its status counts even where the body can't be read."""
    with suppress(AnswerLost):
        return await Answer(response, _MAX_ERROR_BYTES).whole(_MAX_ERROR_BYTES)
    return b""


def _code_and_message(raw: bytes) -> tuple[str, str]:
    """Return what an error body says, in any of the shapes in use; the message on one line."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return "", ""
    told = found.get("error", found) if isinstance(found, dict) else None
    if isinstance(told, str):
        told = {"message": told}
    if not isinstance(told, dict):
        return "", ""
    message = told.get("message") or told.get("detail")
    said = " ".join(message.split()) if isinstance(message, str) else ""
    return str(told.get("code") or ""), said


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _lost(error: Exception) -> AnswerLost:
    return AnswerLost(f"the connection broke before the answer was complete ({type(error).__name__})")
