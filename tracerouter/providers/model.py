"""A model of the file: one provider, with its price, time, retries, and the only place that makes ``chat`` spans."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import orjson

from tracerouter.errors import ProviderError, ProviderTimeout, TracerouterError, place
from tracerouter.telemetry import names
from tracerouter.tokens import count, count_request
from tracerouter.types import CHAT, Cost, Source, Spend, Usage, content_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracerouter.pricing import Price
    from tracerouter.protocols import Provider, Sink
    from tracerouter.telemetry import Note, Timeline
    from tracerouter.types import Call, Completion, Meter, Use

log = logging.getLogger(__name__)

_FIRST_WAIT = 0.25
_LONGEST_WAIT = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One alias of ``tracerouter.yaml``."""

    alias: str
    name: str
    """As the provider names it."""
    provider: Provider
    kind: str = "custom"
    """``gen_ai.provider.name``."""
    price: Price | None = None
    """None: what it costs is not known, and is left out."""
    timeout: float | None = 60.0
    """Seconds for one try. None: neither this nor the deadline ends it, and what it raises is not ours to translate."""
    retries: int = 0
    """Further tries after a failure that may pass."""
    limit_field: str = "max_tokens"
    """The name under which it takes the bound on its answer."""
    vision: bool = True
    """Whether it takes images."""
    address: str | None = None
    port: int | None = None

    @property
    def max_choices(self) -> float:
        """The most answers that one request can ask for (``n``), as its provider says."""
        return getattr(self.provider, "max_choices", math.inf)

    def count_input(self, body: Mapping[str, Any]) -> int:
        """Count the input tokens of a request where nobody reports them; images as its provider counts them."""
        own = getattr(self.provider, "image_tokens", None)
        return count_request(body) if own is None else count_request(body, partial(own, model=self.name))

    async def complete(self, call: Call, meter: Meter, timeline: Timeline, sink: Sink | None) -> Completion:
        """Ask the model, within the deadline, and try again where that may help; one span tells of it.

        `meter` says at any time what it has used, also when this raises.

        Raises:
            ProviderError: There is no answer.
        """
        is_chat = call.operation == CHAT
        with timeline.inference(self.name, self.kind, call.operation) as note:
            if self.address is not None:
                note.attributes[names.SERVER_ADDRESS] = self.address
            if self.port is not None:
                note.attributes[names.SERVER_PORT] = self.port
            if timeline.capture and is_chat:
                note.attributes[names.GEN_AI_INPUT_MESSAGES] = _told(call.body["messages"])
            started_ns = time.perf_counter_ns()
            try:
                headers = {**call.headers, "traceparent": note.traceparent}
                completion = await self._tries(replace(call, headers=headers), meter, note, sink)
            finally:
                meter.usage, meter.cost = self.bill(meter, call.body)
                note.usage, note.cost_nanos = meter.usage, meter.cost.nanos
                note.attributes[names.COST_SOURCE] = meter.cost.source.value
                if meter.first_chunk_ns is not None:
                    note.attributes[names.GEN_AI_FIRST_CHUNK] = (meter.first_chunk_ns - started_ns) / 1e9
            if is_chat:
                note.attributes[names.GEN_AI_FINISH_REASONS] = completion.finish_reasons
            if completion.model:
                note.attributes[names.GEN_AI_RESPONSE_MODEL] = completion.model
            if completion.id:
                note.attributes[names.GEN_AI_RESPONSE_ID] = completion.id
            if timeline.capture and is_chat:
                note.attributes[names.GEN_AI_OUTPUT_MESSAGES] = _told([completion.message])
        if completion.body.get("usage") or meter.usage is None:
            return completion
        return completion.with_usage(meter.usage)

    def bound(self, call: Call, less: int = 0) -> Spend:
        """Return the most that one try of `call` can use, had its input `less` tokens less.

        That is its input and the bound on its answer that is sent along. The input is counted as :meth:`count_input`
        does: exactly for OpenAI's models. Where no bound is known, as of a wrapped service's call or of a model without
        a price, it is the least there is, so that at least a limit that is used up lets it not pass.
        """
        if self.timeout is None:
            return Spend(1, 1, 1)
        asked = max(self.count_input(call.body) - less, 0)
        answered = (call.body.get(self.limit_field) or 0) * (call.body.get("n") or 1)
        return Spend(self.price.most(asked, answered) if self.price else 1, 1, asked + answered)

    def bill(self, meter: Meter, body: Mapping[str, Any]) -> tuple[Usage | None, Cost]:
        """Return the tokens and the cost of all that was sent; each try is rounded once, as an upstream bills it."""
        usage, nanos, source = Usage(), 0, Source.REPORTED
        known = True
        for use in meter.uses:
            if use.refused:
                continue
            used, reported = self._used(use, body)
            known = known and used is not None
            usage = usage.plus(used or Usage())
            meter.asked = meter.asked or usage.input
            if use.charged_nanos is not None:
                nanos += use.charged_nanos
            elif self.price is None or used is None:
                source = Source.UNKNOWN
            else:
                nanos += self.price.cost(used)
                source = source if reported else Source.ESTIMATED
        cost = Cost(None if source is Source.UNKNOWN else nanos, source)
        return usage if known else None, cost

    def _used(self, use: Use, body: Mapping[str, Any]) -> tuple[Usage | None, bool]:
        """Return a try's usage, and whether it is the provider's own word; None: there is nothing to count by."""
        if use.usage is not None:
            return use.usage, True
        if use.unknowable and use.begun is None:
            return None, False
        asked = use.begun or Usage(self.count_input(body))
        return asked._replace(output=count("".join(use.received))), False

    async def _tries(self, call: Call, meter: Meter, note: Note, sink: Sink | None) -> Completion:
        tries = 0
        while True:
            try:
                return await self._try(call, meter, sink)
            except ProviderError as error:
                wait = _wait(tries, error.retry_after)
                committed = sink is not None and meter.first_chunk_ns is not None
                in_time = asyncio.get_running_loop().time() + wait < call.deadline
                if committed or not error.retryable or tries >= self.retries or not in_time:
                    raise
                may_be_billed = bool(meter.uses) and not meter.uses[-1].refused
                if may_be_billed and call.room is not None and not await call.room():
                    raise
                note.event(names.RETRY_EVENT, **{names.ERROR_TYPE: error.reason, "wait": wait})
                tries += 1
            await asyncio.sleep(wait)

    async def _try(self, call: Call, meter: Meter, sink: Sink | None) -> Completion:
        if self.timeout is None:
            return await self.provider.complete(call, meter, sink)
        try:
            async with asyncio.timeout_at(call.deadline) as timer:
                with _Stopwatch(self.timeout, timer) as watch:
                    return await self.provider.complete(call, meter, sink and watch.stopped(sink))
        except TimeoutError:
            msg = f"model {self.alias!r} gave no answer in time"
            raise ProviderTimeout(msg) from None
        except TracerouterError:
            raise
        except Exception as error:
            log.error("the provider of model %s is broken: %s", self.alias, place(error))
            msg = f"the provider of model {self.alias!r} raised {type(error).__name__}"
            raise ProviderError(msg) from error


class _Stopwatch:
    """Times one try: it stands still while a slow reader lets the model wait, and makes `timer` ring when it runs out.

    It looks at the clock now and then, since to set a timer for each chunk would cost more than the chunk.
    """

    def __init__(self, seconds: float, timer: asyncio.Timeout) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = timer
        self._until = self._loop.time() + seconds
        self._stopped_at: float | None = None

    def __enter__(self) -> Self:
        self._look_at(self._until)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()

    def stopped(self, sink: Sink) -> Sink:
        """Return `sink`, whose time does not count."""
        clock = self._loop.time

        async def take(chunk: Mapping[str, Any]) -> None:
            self._stopped_at = started = clock()
            await sink(chunk)
            self._stopped_at = None
            self._until += clock() - started

        return take

    def _look_at(self, when: float) -> None:
        self._handle = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        left = self._until - (self._stopped_at or now)
        if left > 0:
            self._look_at(now + max(left, _GRAIN))
        elif not self._timer.expired():  # the deadline may have been first
            self._timer.reschedule(now)


_GRAIN = 0.01
"""Seconds between two looks at the clock, at least."""


def _wait(tries: int, asked: float | None) -> float:
    """Return the seconds to wait: full jitter on a doubling bound, and no less than the provider asks for.

    Full jitter: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    bound = min(_LONGEST_WAIT, _FIRST_WAIT * 2**tries)
    return max(random.uniform(0, bound), asked or 0.0)  # noqa: S311 - spreads load, keeps no secret


def _told(messages: Sequence[Mapping[str, Any]]) -> str:
    """Write messages as the GenAI conventions do: a role, and parts with their type."""
    told = [
        {"role": message.get("role"), "parts": [{"type": "text", "content": content_text(message.get("content"))}]}
        for message in messages
    ]
    return orjson.dumps(told).decode()
