"""Streams over real HTTP: what is held back, what is passed on, and who pays when one breaks."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import openai
import pytest

from tests.gateway import CHAT, Gateway, nanos, openai_models, write
from tests.upstream import Prices, Upstream
from tracerouter.types import Classification, Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PRICES = {"small-1": Prices(150_000_000, 600_000_000), "large-1": Prices(2_500_000_000, 10_000_000_000)}
SHAPE = {"type": "object", "required": ["id"]}
JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SHAPE}}}
COMMENT = b": waiting\n"


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """An upstream that does as it is told."""
    async with Upstream(prices=PRICES) as running:
        yield running


@pytest.fixture
async def gateway(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Gateway]:
    """A gateway that is soon impatient with silence."""
    path = write(tmp_path, openai_models(upstream.url, timeout=0.6), {}, keep_alive=0.1)
    async with Gateway(path) as running:
        yield running


def asking(step: str, **extra: Any) -> dict[str, Any]:
    """Make a streamed request's body."""
    return {"model": "auto", "messages": [{"role": "user", "content": f"go [[{step}]]"}], "stream": True, **extra}


async def lines(gateway: Gateway, body: dict[str, Any]) -> tuple[int, list[bytes]]:
    """Send a request, and return the status and all lines that are not blank."""
    async with aiohttp.ClientSession() as http, http.post(gateway.url + CHAT, json=body) as response:
        return response.status, [line async for line in response.content if line.strip()]


def chunks_of(found: list[bytes]) -> list[dict[str, Any]]:
    """Return the chunks among lines."""
    data = [line[6:] for line in found if line.startswith(b"data: ")]
    assert data.pop().strip() == b"[DONE]"
    return [json.loads(one) for one in data]


async def settled(gateway: Gateway, number: int = 1) -> int:
    """Wait until so many attempts are booked; return their cost (nano-dollars)."""
    async with asyncio.timeout(5):
        while True:
            ((count, cost),) = gateway.query("SELECT count(*), sum(cost_nanos) FROM entries")
            if count >= number:
                return int(cost)
            await asyncio.sleep(0.01)


async def test_comments_keep_a_held_back_stream_alive(gateway: Gateway) -> None:
    """While an answer waits to be validated the connection carries comments, which SDKs pass over; then the answer."""
    body = asking('slow 0.1 {"id": 1, "is": "valid"}', **JSON)
    status, found = await lines(gateway, body)
    assert status == 200
    first = next(at for at, line in enumerate(found) if line.startswith(b"data: "))
    assert first >= 2
    assert set(found[:first]) == {COMMENT}
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks_of(found) if c["choices"])
    assert json.loads(text) == {"id": 1, "is": "valid"}
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0) as client:
        told: Any = {**asking('slow 0.1 {"id": 2, "is": "valid"}', **JSON)}
        stream = await client.chat.completions.create(**told)
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    assert json.loads(text) == {"id": 2, "is": "valid"}


async def test_after_a_comment_another_rung_can_still_answer(gateway: Gateway, upstream: Upstream) -> None:
    """Comments commit to no rung: one that hangs or is turned down is followed by the next."""
    for step in ("small-1=hang, large-1=ok fine", 'small-1=slow 0.2 wrong, large-1=ok {"id": 3}'):
        upstream.requests.clear()
        _, found = await lines(gateway, asking(step, **(JSON if "id" in step else {})))
        assert found[0] == COMMENT
        assert chunks_of(found)[-1]["tracerouter"]["route"] == "fallback"
        assert [request.body["model"] for request in upstream.requests] == ["small-1", "large-1"]


async def test_an_error_has_its_status_until_something_was_sent(gateway: Gateway) -> None:
    """What fails at once is an HTTP error; what fails after a comment is an event with the same words."""
    status, found = await lines(gateway, asking("500"))
    assert status == 502
    plain = json.loads(found[0])
    status, found = await lines(gateway, asking("small-1=hang, large-1=500"))
    assert (status, found[0]) == (200, COMMENT)
    (told,) = chunks_of(found)
    assert told["error"]["type"] == plain["error"]["type"] == "server_error"
    assert told["error"]["code"] == plain["error"]["code"] == "no_rung_left"
    assert told["tracerouter"]["outcome"] == "failed"


class Slow:
    """A classifier that takes its time, and breaks where it is told to."""

    async def classify(self, task: Task) -> Classification:
        await asyncio.sleep(0.3)
        if "break" in task.text:
            msg = "MY-SECRET-PROMPT"
            raise ZeroDivisionError(msg)
        return Classification()


async def test_whatever_fails_after_a_comment_is_an_event(tmp_path: Path, upstream: Upstream) -> None:
    """A wrong schema and a bug of ours that show only after a comment are told in an event, without their secrets."""
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objec"}}}
    async with Gateway(write(tmp_path, openai_models(upstream.url), {}, keep_alive=0.1)) as gateway:
        gateway.router._classifier = Slow()
        for body, kind, code in (
            (asking("ok", response_format=wrong), "invalid_request_error", "invalid_request"),
            (asking("break"), "server_error", "internal"),
        ):
            status, found = await lines(gateway, body)
            assert (status, found[0]) == (200, COMMENT)
            (told,) = chunks_of(found)
            assert (told["error"]["type"], told["error"]["code"]) == (kind, code)
            assert b"MY-SECRET-PROMPT" not in b"".join(found)
    assert upstream.requests == []


@pytest.mark.parametrize("step", ["cut 3", "cut_utf8 3", "drop 3", "error_after 3", "hang_after 3"])
async def test_a_stream_that_breaks_costs_what_was_made(gateway: Gateway, upstream: Upstream, step: str) -> None:
    """After the first chunk no rung follows: the stream ends in an error event with the true partial cost."""
    _, found = await lines(gateway, asking(f"small-1={step}, large-1=ok"))
    *content, last = chunks_of(found)
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in content)
    assert text.split() == ["The", "upstream", "answers"]
    assert last["error"]["code"] in {"no_rung_left", "timeout"}
    assert last["tracerouter"]["cost_source"] == "estimated"
    assert nanos(last["tracerouter"]["cost"]) == await settled(gateway) == upstream.nanos > 0
    assert len(upstream.requests) == 1


async def test_usage_that_is_missing_is_counted(gateway: Gateway, upstream: Upstream) -> None:
    """Where the provider tells no usage the final chunk holds what was counted, marked as estimated, and never 0."""
    _, found = await lines(gateway, asking("no_usage some words", stream_options={"include_usage": True}))
    last = chunks_of(found)[-1]
    (charge,) = upstream.charges
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (charge.input, charge.output)
    assert last["tracerouter"]["cost_source"] == "estimated"
    assert nanos(last["tracerouter"]["cost"]) == upstream.nanos > 0


async def test_characters_may_be_cut_anywhere(gateway: Gateway) -> None:
    """A stream that arrives byte by byte is the same text, whatever its characters."""
    _, found = await lines(gateway, asking("bytewise Zwölf Äpfel für 日本 🍏"))
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks_of(found))
    assert text == "Zwölf Äpfel für 日本 🍏"


@pytest.mark.parametrize("held_back", [False, True])
async def test_who_leaves_pays_for_what_was_made(tmp_path: Path, upstream: Upstream, *, held_back: bool) -> None:
    """When the client goes, the provider's connection is closed at once, and what it had made by then is charged."""
    path = write(tmp_path, openai_models(upstream.url, timeout=30), {}, keep_alive=0.05)
    async with Gateway(path) as gateway, aiohttp.ClientSession() as http:
        body = asking("hang_after 3", **(JSON if held_back else {}))
        async with http.post(gateway.url + CHAT, json=body) as response:
            got = 0
            async for line in response.content:
                got += line.startswith(b": " if held_back else b"data: ")
                if got == 3:
                    break
            left = time.monotonic()
        await upstream.disconnected()
        assert time.monotonic() - left < 0.5
        assert await settled(gateway) == upstream.nanos > 0


@pytest.mark.parametrize("step", ["cut 0", "drop 0", "error_after 0", "hang_after 0", "cut_utf8 0", "garbage", "500"])
async def test_until_the_first_content_another_rung_can_answer(gateway: Gateway, upstream: Upstream, step: str) -> None:
    """A stream that begins, even with a chunk that has no content, and breaks is followed by the next rung's."""
    _, found = await lines(gateway, asking(f"small-1={step}, large-1=ok fine words"))
    chunks = chunks_of([line for line in found if line != COMMENT])
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == "fine words"
    assert chunks[-1]["tracerouter"]["route"] == "fallback"
    assert nanos(chunks[-1]["tracerouter"]["cost"]) == await settled(gateway, 2) == upstream.nanos


@asynccontextmanager
async def deaf(url: str, body: dict[str, Any]) -> AsyncIterator[socket.socket]:
    """Send a request by a socket that takes little, and reads nothing by itself."""
    loop, address = asyncio.get_running_loop(), url.removeprefix("http://").split(":")
    with socket.socket() as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        plug.settimeout(0)
        await loop.sock_connect(plug, (address[0], int(address[1])))
        sent = json.dumps(body).encode()
        kind = "host: x\r\ncontent-type: application/json"
        head = f"POST {CHAT} HTTP/1.1\r\n{kind}\r\ncontent-length: {len(sent)}\r\n\r\n"
        await loop.sock_sendall(plug, head.encode() + sent)
        yield plug


async def test_a_slow_reader_grows_no_memory(tmp_path: Path, upstream: Upstream) -> None:
    """A fast provider waits for a client that does not read; nothing piles up, and nothing is lost when it reads on."""
    steps = 3_000  # of 8 KB: more than the sockets' own buffers hold
    path = write(tmp_path, openai_models(upstream.url, timeout=60), {}, keep_alive=0.1)
    tracemalloc.start()
    async with Gateway(path) as gateway, deaf(gateway.url, asking(f"flood {steps}")) as plug:
        written, before = -1, -2
        while written != before:  # until the provider gets nothing more rid of
            await asyncio.sleep(0.5)
            written, before = sum(map(bool, upstream.charges[0].written)) if upstream.charges else -1, written
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0 < written < steps
        assert held < 12_000_000
        read = b""
        total = 0
        while b"[DONE]" not in read[-100:]:
            piece = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(plug, 1 << 20), 5)
            assert piece
            total += len(piece)
            read = (read + piece)[-100:]
        assert total > steps * 8_000
        assert await settled(gateway) == upstream.nanos


@pytest.mark.parametrize("held_back", [False, True])
async def test_who_never_reads_has_left(tmp_path: Path, upstream: Upstream, *, held_back: bool) -> None:
    """A client that takes nothing for too long is cut off: its model stops, and what was made is charged."""
    policy = {"validate": ["truncated"]} if held_back else {}  # reads the whole text before it is passed on
    path = write(tmp_path, openai_models(upstream.url, timeout=60), policy, keep_alive=0.1, write_timeout="500ms")
    async with Gateway(path) as gateway, deaf(gateway.url, asking("flood 1000" if held_back else "flood 3000")):
        if not held_back:
            await upstream.disconnected()
        cost = await settled(gateway)
        assert 0 < cost <= upstream.nanos
        async with asyncio.timeout(5):
            while not gateway.records():
                await asyncio.sleep(0.01)
        (record,) = gateway.records().values()
        assert (record["outcome"], nanos(record["cost"])) == ("cancelled", cost)
        assert (cost == upstream.nanos) or not held_back


async def test_who_reads_slowly_has_not_left(tmp_path: Path, upstream: Upstream) -> None:
    """Some progress is enough, and the time that it takes is not the model's: neither is it cut off, nor blamed."""
    path = write(tmp_path, openai_models(upstream.url, timeout=1), {}, write_timeout=0.5)
    async with Gateway(path) as gateway, deaf(gateway.url, asking("flood 1500")) as plug:
        loop, started, tail = asyncio.get_running_loop(), time.monotonic(), b""
        while time.monotonic() - started < 2.5:
            assert await loop.sock_recv(plug, 65536)
            await asyncio.sleep(0.1)
        while b"[DONE]" not in tail:
            piece = await asyncio.wait_for(loop.sock_recv(plug, 1 << 20), 5)
            assert piece
            tail = (tail + piece)[-100:]
        assert await settled(gateway) == upstream.nanos
    (record,) = gateway.records().values()
    assert record["outcome"] == "answered"
