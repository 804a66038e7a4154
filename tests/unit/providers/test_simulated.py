"""The simulated model does what is written down, the same with every run."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson
import pytest

from tracerouter.errors import (
    AnswerLost,
    ConfigError,
    ContextTooLong,
    ProviderError,
    RateLimited,
    RequestRejected,
    ServerFailed,
)
from tracerouter.providers.simulated import Rule, Simulated, SimulatedProvider, Spread, instance
from tracerouter.types import Call, Meter, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

PROMPT = "please count these words"


def words(text: str) -> int:
    """Count words, so that sums can be done in the head."""
    return len(text.split())


def call(text: str = PROMPT, *, seconds: float = 10.0, **body: Any) -> Call:
    """Make a call of one user message."""
    deadline = asyncio.get_running_loop().time() + seconds
    return Call({"model": "toy", "messages": [{"role": "user", "content": text}], **body}, deadline)


def provider(**told: Any) -> SimulatedProvider:
    """Make a model that counts words."""
    return SimulatedProvider(Simulated(**told), count=words)


async def test_default_answer_says_what_it_is() -> None:
    """Without a rule the answer is a line that nobody takes for a model's, and its usage is reported and billed."""
    toy, meter = provider(), Meter()
    completion = await toy.complete(call(), meter, None)
    assert completion.text == f"Simulated answer to: {PROMPT}"
    assert completion.finish_reasons == ["stop"]
    assert completion.model == "toy"
    assert [use.usage for use in meter.uses] == [Usage(3 + 3 + 1 + 4, 7)]
    assert (toy.calls, toy.input_tokens, toy.output_tokens) == (1, 11, 7)


async def test_first_matching_rule_is_said() -> None:
    """The first rule whose pattern is found in the last user message is the answer."""
    toy = provider(answers=[Rule("paris", "no"), Rule("(?i)PARIS", "yes"), Rule(".", "late")])
    assert (await toy.complete(call("Is Paris nice?"), Meter(), None)).text == "yes"


async def test_stream_is_the_same_answer_word_by_word() -> None:
    """What a sink gets adds up to the plain answer, the role comes first, and the time to the first word is noted."""
    toy, meter = provider(), Meter()
    chunks: list[Mapping[str, Any]] = []

    async def sink(chunk: Mapping[str, Any]) -> None:
        chunks.append(chunk)

    completion = await toy.complete(call(), meter, sink)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert len(deltas) == 7
    assert "".join(delta["content"] for delta in deltas) == completion.text == "".join(meter.uses[0].received)
    assert [delta.get("role") for delta in deltas] == ["assistant", *[None] * 6]
    assert meter.first_chunk_ns is not None
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("word", "error"),
    [("429", RateLimited), ("500", ServerFailed), ("404", RequestRejected), ("context_too_long", ContextTooLong)],
)
async def test_refusals_cost_nothing(word: str, error: type[ProviderError]) -> None:
    """An error status raises what it means, and is not billed."""
    toy, meter = provider(failures=[word]), Meter()
    with pytest.raises(error):
        await toy.complete(call(), meter, None)
    assert [use.refused for use in meter.uses] == [True]
    assert (toy.calls, toy.input_tokens, toy.output_tokens) == (1, 0, 0)


async def test_garbage_costs_its_input() -> None:
    """An answer that is none was still worked for: its input is billed."""
    toy, meter = provider(failures=["garbage"]), Meter()
    with pytest.raises(AnswerLost):
        await toy.complete(call(), meter, None)
    assert not meter.uses[0].refused
    assert (toy.input_tokens, toy.output_tokens) == (11, 0)


async def test_timeout_hangs_until_the_deadline() -> None:
    """A call that hangs ends with its deadline, and its input is billed."""
    toy = provider(failures=["timeout"])
    with pytest.raises(TimeoutError):
        await toy.complete(call(seconds=0.02), Meter(), None)
    assert toy.input_tokens == 11


async def test_cancelled_stream_bills_what_was_said() -> None:
    """A call that is cancelled in the middle is billed for its input and the words until then."""
    toy, meter = provider(), Meter()

    async def sink(_: Mapping[str, Any]) -> None:
        if len(meter.uses[0].received) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await toy.complete(call(), meter, sink)
    assert (toy.input_tokens, toy.output_tokens) == (11, 3)


async def test_failures_go_round() -> None:
    """The script's words are taken one a call, in order, over and over."""
    toy = provider(failures=["ok", "empty", "truncated", "no_usage"])
    seen = []
    for _ in range(8):
        meter = Meter()
        completion = await toy.complete(call(), meter, None)
        seen.append((completion.text, completion.finish_reasons[0], meter.uses[0].usage is None))
    whole = f"Simulated answer to: {PROMPT}"
    once = [
        (whole, "stop", False),
        ("", "stop", False),
        (whole[: len(whole) // 2], "length", False),
        (whole, "stop", True),
    ]
    assert seen == once * 2


async def test_latency_is_spread_over_the_stream() -> None:
    """Latency and tokens per second add up, and a stream takes as long as a plain answer."""
    toy = provider(latency=0.03, tokens_per_second=350)  # 7 tokens: 0.03 + 0.02 s

    async def sink(_: Mapping[str, Any]) -> None:
        pass

    for listening in (None, sink):
        started = time.perf_counter()
        await toy.complete(call(), Meter(), listening)
        assert time.perf_counter() - started >= 0.05


def test_latency_is_log_normal_and_repeats() -> None:
    """Latencies have the median and the p99 that were asked for, and equal seeds give equal latencies."""
    one, same, other = (provider(latency=Spread(0.2, 1.0), seed=seed) for seed in (1, 1, 2))
    drawn = [one._latency() for _ in range(4000)]
    assert drawn == [same._latency() for _ in range(4000)]
    assert drawn[0] != other._latency()
    assert statistics.median(drawn) == pytest.approx(0.2, rel=0.05)
    assert statistics.quantiles(drawn, n=100)[98] == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize(
    "told",
    [
        {"failures": ["tiemout"]},
        {"failures": ["200"]},
        {"answers": [Rule("(", "x")]},
        {"latency": Spread(2.0, 1.0)},
        {"latency": Spread(0.0, 1.0)},
    ],
)
def test_mistakes_are_found_at_the_start(told: dict[str, Any]) -> None:
    """What can't work is turned down when it is written, not when it is called."""
    with pytest.raises(ConfigError):
        Simulated(**told)


def test_unknown_word_gets_a_suggestion() -> None:
    """A misspelt failure is answered with the nearest right one."""
    with pytest.raises(ConfigError, match="did you mean 'timeout'"):
        Simulated(failures=["tiemout"])


NODE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "required": ["name", "next"],
            "properties": {
                "name": {"type": "string"},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
        },
    },
}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
        {"type": "array", "items": {"type": "integer", "minimum": 3}, "minItems": 2},
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "integer", "maximum": -2.5},
        {"type": "number", "minimum": 0.5, "maximum": 0.75},
        {"type": "number", "exclusiveMaximum": 0},
        {"type": "string", "minLength": 20},
        {"type": "string", "maxLength": 3},
        {"type": ["boolean", "null"]},
        {"enum": ["billing", "shipping"]},
        {"const": 7},
        {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        {"type": "null"},
        {},
        NODE,
    ],
)
async def test_schema_is_met(schema: dict[str, Any]) -> None:
    """A request that asks for a JSON Schema gets an instance of it."""
    jsonschema_rs.validate(schema, instance(schema))
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    completion = await provider().complete(call(response_format=wanted), Meter(), None)
    jsonschema_rs.validate(schema, orjson.loads(completion.text))


async def test_json_object_is_an_object() -> None:
    """A request that asks for any JSON object gets one."""
    completion = await provider().complete(call(response_format={"type": "json_object"}), Meter(), None)
    assert orjson.loads(completion.text) == {"answer": f"Simulated answer to: {PROMPT}"}
