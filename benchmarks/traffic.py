"""Mixed synthetic traffic for a gateway: what dashboards, alerts and drills look at when there are no users.

Requests come at random moments, at a mean rate that does not wait for answers, from several tenants: prompts of several
kinds, some asked again and again (so that they are cached), some streamed, some with a hint, some not to be cached,
some of another model than the tier allows, some that are no request at all. It ends after `duration`, or by a signal,
and says what came back.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

SAY_EVERY = 5.0
"""Seconds between two summaries."""

_AT_ONCE = 500
"""Requests that may be under way; more are not sent, and counted, so that a gateway that hangs does not fill memory."""
_TIMEOUT = aiohttp.ClientTimeout(total=150)
_KNOWN = 300
"""Prompts that are asked again, the first of them most often."""
_ASKED_AGAIN = 0.45
_STREAMED = 0.30
_HINTED = 0.20
_NO_STORE = 0.05
_PINNED = 0.02
_BAD = 0.02
_OK = "200"

_THINGS = ("the garden chair", "a desk lamp", "my coffee grinder", "the blue backpack", "a bicycle pump", "two mugs")
_PLACES = ("Leeds", "Porto", "Ghent", "Turin", "Malmö", "Graz", "Cork", "Brno")
_MATTERS = ("arrived late", "has a scratch", "does not fit", "was charged twice", "came without a manual")
_TOPICS = ("the warehouse move", "next year's budget", "the new shift plan", "the returns policy", "the safety audit")
_WORDS = ("weekly", "urgent", "first", "revised", "final", "internal", "short", "second")

KINDS: Mapping[str, tuple[float, Sequence[str]]] = {
    "chat": (
        0.16,
        [
            "Hello! I am in {place} and have a question about {thing}.",
            "Thanks, that helped with {thing}. Bye for now!",
            "Good morning, are you there? It is about number {number}.",
        ],
    ),
    "answer_question": (
        0.22,
        [
            "How long does delivery to {place} take for order {number}?",
            "What is the warranty on {thing}?",
            "Do you have a shop in {place}, and when is it open?",
        ],
    ),
    "summarize": (
        0.20,
        [
            "Summarise item {number} of the {word} notes on {topic}: the lease ends in May, the vans are undecided.",
            "tl;dr of thread {number}: {thing} {matter}, {place} wrote three times, a new one is on its way.",
        ],
    ),
    "extract": (
        0.14,
        [
            "Extract the order: hi, this is about order B-{number}, {thing} for 41.50 in all, to {place} please.",
            "Extract order B-{number} from this mail: please send {thing} to {place}, as last time, I paid 28.00.",
            "Extract what I want: {thing}, order B-{number}. It {matter}, so send a new one to {place}.",
            "Extract the order as JSON: B-{number}; {thing}; 99.90; {place}; the {word} one.",
            "Extract the order from this scanned form: 0rder S-{number} .. {thing} .. t0tal 19,50",
        ],
    ),
    "draft_reply": (
        0.12,
        [
            "Draft a reply to the customer in {place}: {thing} {matter}, case {number}. Offer a new one.",
            "Write an email to the supplier in {place}: {thing} {matter}, and we need order {number} by Friday.",
            "Answer for me: no, we do not ship {thing} to {place}, but case {number} will be looked into.",
            "Draft a {word} reminder to a customer in {place} that invoice {number} for {thing} is unpaid.",
            "Write a polite answer to this complaint, in which a lawyer is mentioned: {thing} {matter}, case {number}.",
        ],
    ),
    "translate": (0.06, ["Translate into German: parcel {number} for {place} arrives on Monday between 8 and 12."]),
    "reasoning": (
        0.06,
        [
            "Step by step: a van leaves {place} at 9:15 with {number} parcels and unloads 12 an hour. When is it done?",
            "Tom has twice as many parcels as Nia. Together they have {number}. How many has Nia? Step by step.",
        ],
    ),
    "legal_review": (
        0.04,
        ["Review clause {number} of the {word} contract on {topic}: who is liable when {thing} {matter}?"],
    ),
}
"""By label: its share of the traffic, and prompts."""


@dataclass
class Totals:
    """What came back."""

    sent: int = 0
    left_out: int = 0
    """Not sent, since too many were under way."""
    statuses: Counter[str] = field(default_factory=Counter)
    """By HTTP status, or by the error's type where there was none."""
    routes: Counter[str] = field(default_factory=Counter)
    """By ``x-tracerouter-route``, in a stream by the facts in its last chunk."""
    cost: Decimal = Decimal(0)
    """USD, as the gateway told it."""
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return one line."""
        routes = " ".join(f"{name} {count}" for name, count in self.routes.most_common())
        other = [f"{name} {count}" for name, count in sorted(self.statuses.items()) if name != _OK]
        other += [f"left out {self.left_out}"] if self.left_out else []
        told = f"{self.seconds:6.0f} s  {self.sent} sent, {self.statuses[_OK]} ok: {routes or '-'}; ${self.cost:.4f}"
        return "; ".join([told, " ".join(other)]) if other else told


@dataclass(frozen=True)
class _Request:
    body: dict[str, Any] | str
    """A string is sent as it is: it is no JSON."""
    headers: dict[str, str]


class _Mix:
    """Draws requests; the same ones for the same seed."""

    def __init__(self, keys: Sequence[str], seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - synthetic traffic keeps no secret
        self._keys = keys
        self._known = [self._prompt() for _ in range(_KNOWN)]
        self._zipf = list(accumulate(1 / rank for rank in range(1, _KNOWN + 1)))
        self._key_weights = [1 / rank for rank in range(1, len(keys) + 1)]

    def pause(self, rate: float) -> float:
        """Return the seconds until the next request."""
        return self._random.expovariate(rate)

    def request(self) -> _Request:
        """Draw one."""
        draw = self._random
        headers = {}
        if self._keys:
            (key,) = draw.choices(self._keys, self._key_weights)
            headers["authorization"] = f"Bearer {key}"
        if draw.random() < _BAD:
            return _Request(draw.choice(["{", '{"messages": []}', '{"model": "auto"}']), headers)
        label, text = self._again() if draw.random() < _ASKED_AGAIN else self._prompt()
        if draw.random() < _HINTED:
            headers["x-tracerouter-task"] = label
        if draw.random() < _NO_STORE:
            headers["x-tracerouter-cache"] = "no-store"
        body: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        if draw.random() < _PINNED:
            body["model"] = "large"
        if draw.random() < _STREAMED:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return _Request(body, headers)

    def _again(self) -> tuple[str, str]:
        return self._known[bisect.bisect(self._zipf, self._random.random() * self._zipf[-1])]

    def _prompt(self) -> tuple[str, str]:
        draw = self._random
        (label,) = draw.choices(list(KINDS), [share for share, _ in KINDS.values()])
        text = draw.choice(KINDS[label][1]).format(
            thing=draw.choice(_THINGS),
            place=draw.choice(_PLACES),
            matter=draw.choice(_MATTERS),
            topic=draw.choice(_TOPICS),
            word=draw.choice(_WORDS),
            number=draw.randrange(1000, 100_000),
        )
        return label, text


async def run(  # noqa: PLR0913 - each is a knob that the command has too
    url: str,
    *,
    rate: float = 20.0,
    duration: float | None = None,
    keys: Sequence[str] = (),
    seed: int = 0,
    say: Callable[[str], object] | None = None,
    into: Totals | None = None,
) -> Totals:
    """Send traffic to the gateway at `url` until `duration` has passed, or until it is cancelled.

    Args:
        url: Without ``/v1``.
        rate: Requests a second, in the mean.
        duration: Seconds.
        keys: API keys; the first ask most.
        seed: The same seed, the same requests.
        say: Is told a summary every few seconds.
        into: Counts what comes back, for whoever looks meanwhile, or cancels.
    """
    mix, start = _Mix(keys, seed), time.monotonic()
    totals = Totals() if into is None else into
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session, asyncio.TaskGroup() as sending:
        next_at, said = start, 1 - SAY_EVERY  # the first summary soon: it shows whether there is an answer at all
        while duration is None or next_at - start < duration:
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            next_at += mix.pause(rate)
            if totals.sent - totals.statuses.total() < _AT_ONCE:
                totals.sent += 1
                sending.create_task(_send(session, url, mix.request(), totals))
            else:
                totals.left_out += 1
            totals.seconds = time.monotonic() - start
            if say and totals.seconds - said >= SAY_EVERY:
                said = totals.seconds
                say(str(totals))
    return totals


async def _send(session: aiohttp.ClientSession, url: str, request: _Request, totals: Totals) -> None:
    raw = request.body if isinstance(request.body, str) else json.dumps(request.body)
    headers = {"content-type": "application/json", **request.headers}
    try:
        async with session.post(f"{url}/v1/chat/completions", data=raw, headers=headers) as response:
            answer = await response.read()
            totals.statuses[str(response.status)] += 1
            route, cost = response.headers.get("x-tracerouter-route"), response.headers.get("x-tracerouter-cost")
            if route is None and response.content_type == "text/event-stream":
                route, cost = _told_in_stream(answer)
    except (aiohttp.ClientError, TimeoutError) as error:
        totals.statuses[type(error).__name__] += 1
        return
    if route is not None:
        totals.routes[route] += 1
    totals.cost += Decimal(cost or 0)


def _told_in_stream(answer: bytes) -> tuple[str | None, str | None]:
    """Return route and cost from the chunk that has our facts."""
    for line in reversed(answer.splitlines()):
        if line.startswith(b"data: {"):
            told = json.loads(line.removeprefix(b"data: ")).get("tracerouter")
            if told:
                return told.get("route"), told.get("cost")
    return None, None


def read_keys(path: Path) -> list[str]:
    """Return the keys of a file such as the gateway's ``keys: {file: …}`` names."""
    return [entry["key"] for entry in json.loads(path.read_text(encoding="utf-8"))]


async def main(url: str, *, rate: float, duration: float | None, keys: Path | None, seed: int) -> None:
    """Send traffic until `duration` has passed or a signal ends it, and print summaries."""

    def say(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a command's output

    told, totals = read_keys(keys) if keys else [], Totals()
    facts: dict[str, Any] = {"rate": rate, "duration": duration, "keys": told, "seed": seed}
    sending = asyncio.create_task(run(url.rstrip("/"), **facts, say=say, into=totals))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, sending.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    say(str(totals))
