"""The local provider with the real small model."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson
import pytest

from tracerouter.errors import ConfigError, ContextTooLong, ProviderError, ProviderTimeout, RequestRejected
from tracerouter.providers.local import LocalProvider, check_installed
from tracerouter.providers.weights import weights
from tracerouter.types import Call, Completion, Meter, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

STORY = "Tell me a long story about a river."
LONG = "word " * 1500
"""A prompt that takes the model some 13 s to read, and fits."""


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The weights, or a skip."""
    try:
        check_installed()
        return weights()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture
async def model(gguf: Path) -> AsyncIterator[LocalProvider]:
    """The model, not loaded yet."""
    provider = LocalProvider(gguf)
    yield provider
    await provider.close()


def call(text: str, *, seconds: float = 100, **body: Any) -> Call:
    """Make a call that always gets the same answer."""
    asked = {"model": "smollm2", "messages": [{"role": "user", "content": text}], "temperature": 0, **body}
    return Call(asked, asyncio.get_running_loop().time() + seconds)


async def ask(model: LocalProvider, text: str, **facts: Any) -> tuple[Completion, Usage]:
    """Ask once, and return the usage that was reported."""
    meter = Meter()
    completion = await model.complete(call(text, **facts), meter, None)
    (use,) = meter.uses
    assert use.usage is not None
    return completion, use.usage


class Listener:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.chunks: list[Mapping[str, Any]] = []
        self.first = asyncio.Event()

    async def __call__(self, chunk: Mapping[str, Any]) -> None:
        """Take a chunk."""
        self.chunks.append(chunk)
        self.first.set()

    @property
    def text(self) -> str:
        """What came so far."""
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in self.chunks)


async def test_plain_answers_have_text_and_usage(model: LocalProvider) -> None:
    """A plain answer is an OpenAI completion that keeps to the caller's bound, with the model's own token counts."""
    completion, usage = await ask(model, STORY, max_completion_tokens=12)
    assert completion.text
    assert completion.body["object"] == "chat.completion"
    assert completion.finish_reasons == ["length"]
    assert usage.input > 0
    assert usage.output == 12
    assert completion.body["usage"]["completion_tokens"] == 12


async def test_streamed_equals_plain(model: LocalProvider) -> None:
    """At temperature 0 chunks, streamed answer and plain answer hold the same text, and no chunk is empty."""
    plain, _ = await ask(model, STORY, max_tokens=30)
    meter, sink = Meter(), Listener()
    streamed = await model.complete(call(STORY, max_tokens=30), meter, sink)
    assert sink.text == streamed.text == plain.text == "".join(meter.uses[0].received)
    assert len(sink.chunks) > 5
    for chunk in sink.chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert "usage" not in chunk
        (choice,) = chunk["choices"]
        assert choice["delta"]["content"]
        assert choice["finish_reason"] is None
    assert meter.first_chunk_ns is not None


async def test_a_schema_is_kept(model: LocalProvider) -> None:
    """An answer under a `json_schema` response format is valid by that schema."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}}
    completion, _ = await ask(model, "Name a city.", response_format=wanted, max_tokens=60)
    jsonschema_rs.validate(schema, orjson.loads(completion.text))


async def test_stop_words_end_the_answer(model: LocalProvider) -> None:
    """An answer ends before the first of the caller's stop words."""
    whole, _ = await ask(model, STORY, max_tokens=30)
    word = whole.text.split()[5]
    completion, _ = await ask(model, STORY, max_tokens=30, stop=[word])
    assert completion.text == whole.text[: whole.text.index(word)]
    assert completion.finish_reasons == ["stop"]


async def test_cancelling_stops_the_generation(model: LocalProvider) -> None:
    """After a cancelled answer the next is served at once, and the meter holds what the first had written."""
    await ask(model, "hi", max_tokens=1)
    meter, sink = Meter(), Listener()
    asked = asyncio.create_task(model.complete(call(STORY, max_tokens=1500), meter, sink))
    await sink.first.wait()
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()
    started = time.perf_counter()
    await ask(model, "hi", max_tokens=1)
    assert time.perf_counter() - started < 3  # the whole story takes some 20 s
    (use,) = meter.uses
    assert not use.refused
    assert use.usage is None
    assert "".join(use.received).startswith(sink.text)


async def test_cancelling_stops_the_reading(model: LocalProvider) -> None:
    """A call that is cancelled while its prompt is being read holds the next one up for seconds at most."""
    await ask(model, "hi", max_tokens=1)
    asked = asyncio.create_task(model.complete(call(LONG), Meter(), None))
    await asyncio.sleep(0.5)
    asked.cancel()
    started = time.perf_counter()
    await ask(model, "hi", max_tokens=1)
    assert time.perf_counter() - started < 5  # all of it takes some 13 s


async def test_calls_at_the_same_time_wait_in_line(model: LocalProvider) -> None:
    """Of calls made together all are served, and one that is cancelled in line was never sent."""
    meter = Meter()
    together = [asyncio.create_task(ask(model, f"Say {number}.", max_tokens=8)) for number in range(4)]
    given_up = asyncio.create_task(model.complete(call(STORY), meter, None))
    await asyncio.sleep(0.01)
    given_up.cancel()
    assert all(usage.output > 0 for _, usage in await asyncio.gather(*together))
    assert given_up.cancelled()
    assert meter.uses == []


async def test_weights_that_are_still_on_their_way_are_waited_for(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While weights are fetched the event loop is free and a deadline counts; the next call takes them."""
    fetched = []

    def slow() -> Path:
        fetched.append(gguf)
        time.sleep(0.5)
        return gguf

    monkeypatch.setattr("tracerouter.providers.local.weights", slow)
    provider, meter, started = LocalProvider(), Meter(), time.perf_counter()
    with pytest.raises(ProviderTimeout):
        await provider.complete(call("hi", seconds=0.1), meter, None)
    assert time.perf_counter() - started < 0.4
    assert meter.uses == []
    await ask(provider, "hi", max_tokens=1)
    await provider.close()
    assert fetched == [gguf]


async def test_a_prompt_beyond_the_context_is_told_apart(model: LocalProvider) -> None:
    """A prompt that does not fit is `ContextTooLong`, refused, and so costs nothing."""
    meter = Meter()
    with pytest.raises(ContextTooLong):
        await model.complete(call("word " * 3000), meter, None)
    assert [use.refused for use in meter.uses] == [True]


async def test_what_llama_cpp_does_not_take_is_rejected(model: LocalProvider) -> None:
    """A request that the server turns down is `RequestRejected`, refused, and so costs nothing."""
    meter = Meter()
    with pytest.raises(RequestRejected):
        await model.complete(call("hi", n=2), meter, None)
    assert [use.refused for use in meter.uses] == [True]


async def test_the_deadline_ends_a_call(model: LocalProvider) -> None:
    """A call whose deadline passes ends then, as `ProviderTimeout`, and what had come is on the meter."""
    await ask(model, "hi", max_tokens=1)
    meter, started = Meter(), time.perf_counter()
    with pytest.raises(ProviderTimeout):
        await model.complete(call(STORY, seconds=1.5, max_tokens=1500), meter, None)
    assert time.perf_counter() - started < 2.5
    assert meter.uses[0].received


async def test_the_sinks_own_errors_pass_through(model: LocalProvider) -> None:
    """What the sink raises comes out unchanged, even where it is a `TimeoutError`."""
    raised = TimeoutError("the reader is gone")

    async def sink(_: Mapping[str, Any]) -> None:
        raise raised

    with pytest.raises(TimeoutError) as caught:
        await model.complete(call(STORY, max_tokens=50), Meter(), sink)
    assert caught.value is raised


async def test_signals_stay_the_processs_own(model: LocalProvider) -> None:
    """A signal handler that was set before the model was loaded is the one that is called after."""
    arrived = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, arrived.set)
    try:
        await ask(model, "hi", max_tokens=1)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(1):
            await arrived.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_a_closed_model_is_loaded_again(model: LocalProvider) -> None:
    """Closing frees the model, and a later call loads it anew."""
    await ask(model, "hi", max_tokens=1)
    await model.close()
    _, usage = await ask(model, "hi", max_tokens=1)
    assert usage.cached == 0


async def test_weights_that_are_none_are_told(tmp_path: Path, gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file that is no GGUF is a `ProviderError` that names it; nothing was sent, and llama.cpp prints nothing."""
    (path := tmp_path / "none.gguf").write_bytes(b"no weights")
    provider, meter = LocalProvider(path), Meter()
    with pytest.raises(ProviderError, match=r"none\.gguf"):
        await provider.complete(call("hi"), meter, None)
    await provider.close()
    assert meter.uses == []
    assert capfd.readouterr() == ("", "")
