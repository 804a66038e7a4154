"""A model without a model, for demos, benchmarks and users' tests: what it does is written down beforehand."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from dataclasses import dataclass
from itertools import cycle
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from tracerouter.errors import AnswerLost, ConfigError, ContextTooLong, nearest
from tracerouter.providers.http import failure
from tracerouter.tokens import count as count_tokens
from tracerouter.types import Completion, Usage, content_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracerouter.protocols import Sink
    from tracerouter.types import Call, Meter

_WORDS = ("ok", "timeout", "garbage", "empty", "truncated", "no_usage", "context_too_long")
_STATUS = re.compile(r"[45]\d\d")
_Z99 = NormalDist().inv_cdf(0.99)
_QUOTED_WORDS = 8
_DEEP = 12


class Spread(NamedTuple):
    """A log-normal latency (seconds)."""

    median: float
    p99: float


class Rule(NamedTuple):
    """What is said to a prompt."""

    match: str
    """Regular expression, searched for in the last user message's text."""
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """How a simulated model behaves.

    Raises:
        ConfigError: A failure's word or a rule's pattern is wrong, or a latency is impossible.
    """

    latency: float | Spread = 0.0
    """Seconds, before what `tokens_per_second` adds; a stream spreads all of it evenly over its words."""
    tokens_per_second: float | None = None
    """None: an answer's length costs no time."""
    failures: Sequence[str] = ()
    """One word a call, over and over: ``ok``, an error status such as ``429`` or ``500``, ``timeout`` (hangs until
    the deadline), ``garbage`` (no answer, but its input is billed), ``empty``, ``truncated``, ``no_usage``,
    ``context_too_long``. Empty: always ``ok``."""
    answers: Sequence[Rule] = ()
    """The first that matches is said; else an instance of the schema that the request asks for, or a plain line."""
    seed: int = 0

    def __post_init__(self) -> None:
        for word in self.failures:
            if word not in _WORDS and not _STATUS.fullmatch(word):
                msg = f"failures: {word!r} is not known{nearest(word, _WORDS)}; known are {', '.join(_WORDS)}, 4xx, 5xx"
                raise ConfigError(msg)
        for rule in self.answers:
            try:
                re.compile(rule.match)
            except re.error as error:
                msg = f"answers: {rule.match!r} is no regular expression: {error}"
                raise ConfigError(msg) from None
        spread = self.latency
        if isinstance(spread, Spread) and not 0 < spread.median <= spread.p99:
            msg = f"latency: median {spread.median} must be above 0 and no more than p99 {spread.p99}"
            raise ConfigError(msg)


class SimulatedProvider:
    """Answers as :class:`Simulated` says, the same with every run, and keeps its own bill.

    Args:
        simulated: How it behaves.
        count: Counts the tokens of a text; by default tiktoken's o200k_base.
    """

    max_choices = 1

    def __init__(self, simulated: Simulated | None = None, *, count: Callable[[str], int] = count_tokens) -> None:
        self._simulated = simulated or Simulated()
        self._count = count
        self._random = random.Random(self._simulated.seed)  # noqa: S311 - simulates, keeps no secret
        self._failures = cycle(self._simulated.failures or ("ok",))
        self.calls = 0
        self.input_tokens = 0
        """Billed: an error status costs nothing; a hang, garbage or a cancelled call its input and what was said."""
        self.output_tokens = 0

    async def complete(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        """Answer, or fail, whatever is next.

        Raises:
            ProviderError: The failure script says so.
            TimeoutError: It says ``timeout``, and the call's deadline has passed.
        """
        self.calls += 1
        number, word, latency = self.calls, next(self._failures), self._latency()
        meter.sent()
        if _STATUS.fullmatch(word) or word == "context_too_long":
            await asyncio.sleep(latency)
            meter.refused()
            raise _refusal(word)
        prompt = self._input(call.body)
        self.input_tokens += prompt
        if word == "timeout":
            async with asyncio.timeout_at(call.deadline):
                await asyncio.Event().wait()
        if word == "garbage":
            await asyncio.sleep(latency)
            msg = "the simulated answer was no JSON"
            raise AnswerLost(msg)
        text, finish = self._answer(call.body, word)
        completion = Completion.of(text, model=str(call.body.get("model", "simulated")), finish_reason=finish)
        completion = Completion({"id": f"simulated-{number}", **completion.body})
        await self._say(completion, latency, meter, sink)
        usage = Usage(prompt, self._count(text))
        if word == "no_usage":
            return completion
        meter.reported(usage)
        return completion.with_usage(usage)

    async def _say(self, completion: Completion, latency: float, meter: Meter, sink: Sink | None) -> None:
        """Say the text word by word where somebody listens, at once where not; bill what was said."""
        words = re.findall(r"\s*\S+\s*", completion.text) or [completion.text]
        if sink is None:
            words = [completion.text]
        rate = self._simulated.tokens_per_second
        pause = (latency + (self._count(completion.text) / rate if rate else 0.0)) / len(words)
        said: list[str] = []
        try:
            for word in words:
                await asyncio.sleep(pause)
                said.append(word)
                meter.received(word)
                if sink is not None and word:
                    await self._push(completion, word, meter, sink, first=len(said) == 1)
        finally:
            self.output_tokens += self._count("".join(said))

    @staticmethod
    async def _push(completion: Completion, word: str, meter: Meter, sink: Sink, *, first: bool) -> None:
        if meter.first_chunk_ns is None:
            meter.first_chunk_ns = time.perf_counter_ns()
        delta = {"role": "assistant", "content": word} if first else {"content": word}
        head = {"id": completion.id, "object": "chat.completion.chunk", "model": completion.model}
        await sink({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def _latency(self) -> float:
        latency = self._simulated.latency
        if isinstance(latency, Spread):
            sigma = math.log(latency.p99 / latency.median) / _Z99
            return latency.median * math.exp(sigma * self._random.gauss(0, 1))
        return latency

    def _input(self, body: Mapping[str, Any]) -> int:
        """Count the prompt by OpenAI's convention for chat models: 3 tokens a message and 3 that open the answer."""
        total = 3
        for message in body["messages"]:
            total += 3 + self._count(message["role"]) + self._count(content_text(message.get("content")))
            total += 1 + self._count(message["name"]) if message.get("name") else 0
        return total

    def _answer(self, body: Mapping[str, Any], word: str) -> tuple[str, str]:
        """Return the text and its finish reason."""
        if word == "empty":
            return "", "stop"
        asked = [message for message in body["messages"] if message["role"] == "user"] or body["messages"]
        prompt = content_text(asked[-1].get("content"))
        matching = (rule.answer for rule in self._simulated.answers if re.search(rule.match, prompt))
        text = next(matching, None) or _unscripted(prompt, body.get("response_format") or {})
        if word == "truncated":
            return text[: len(text) // 2], "length"
        return text, "stop"


def instance(schema: Mapping[str, Any]) -> Any:
    """Make a small instance of a JSON Schema.

    It knows ``$ref`` within the schema, ``const``, ``enum``, ``anyOf`` and ``oneOf`` (the first option; the last
    where schemas nest without end), ``type``, ``required``, ``minItems``, ``minLength``, ``maxLength``,
    ``minimum``, ``maximum`` and the exclusive bounds. What else a schema demands, such as ``pattern``, is not met.
    """
    return _instance(schema, schema, 0)


def _instance(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    fixed = [schema["const"]] if "const" in schema else schema.get("enum")
    if fixed:
        return fixed[0]
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return _instance(options[-1 if depth > _DEEP else 0], root, depth + 1)
    if "$ref" in schema:
        return _instance(_referred(schema["$ref"], root), root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "null")
    kind = kind if isinstance(kind, str) else kind[0]
    if kind == "object":
        known = schema.get("properties", {})
        return {name: _instance(known.get(name, {}), root, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        item = schema.get("items", {})
        return [_instance(item, root, depth + 1) for _ in range(schema.get("minItems", 0))]
    return _SCALARS[kind](schema)


def _string(schema: Mapping[str, Any]) -> str:
    return "simulated".ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]


def _number(schema: Mapping[str, Any], step: float = 0.5) -> float:
    """Return the number nearest to 0 within the bounds, `step` away from one that is exclusive."""
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if "exclusiveMinimum" in schema:
        low = max(low, schema["exclusiveMinimum"] + step)
    if "exclusiveMaximum" in schema:
        high = min(high, schema["exclusiveMaximum"] - step)
    found: float = min(max(0, low), high)
    return found


def _integer(schema: Mapping[str, Any]) -> int:
    found = _number(schema, 1)
    return math.ceil(found) if found > 0 else math.floor(found)


_SCALARS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda _: False,
    "null": lambda _: None,
}


def _referred(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found = root
    for name in reference.removeprefix("#").split("/")[1:]:
        found = found.get(name, {})
    return found


def _unscripted(prompt: str, wanted: Mapping[str, Any]) -> str:
    line = "Simulated answer to: " + " ".join(prompt.split()[:_QUOTED_WORDS])
    if wanted.get("type") == "json_schema":
        return orjson.dumps(instance(wanted["json_schema"].get("schema") or {})).decode()
    if wanted.get("type") == "json_object":
        return orjson.dumps({"answer": line}).decode()
    return line


def _refusal(word: str) -> Exception:
    if word == "context_too_long":
        msg = "the prompt does not fit the simulated model"
        return ContextTooLong(msg, status=400)
    return failure(int(word), {}, b"")
