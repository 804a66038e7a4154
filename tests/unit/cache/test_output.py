"""Answers and classifications remembered: fresh, stale, missed; and a backend that fails."""

from __future__ import annotations

import asyncio
import logging
import zlib
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from tracerouter.cache import BoundedMemoryCache, CachedClassifier, OutputCache, classification, output
from tracerouter.cache.values import COMPRESSED, FORMAT, HEAD, PLAIN
from tracerouter.types import Caller, Classification, Completion, Freshness, Hit, Task

ANSWER = Completion.of("Forty-two.", model="m")
ANY = Freshness()


class Clock(SimpleNamespace):
    now: float = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(output, "time", made)
    monkeypatch.setattr(classification, "time", made)
    return made


@pytest.fixture
def backend() -> BoundedMemoryCache:
    return BoundedMemoryCache()


class Failing(BoundedMemoryCache):
    fails = True

    async def _get(self, key: str, encoding: str | None = "utf-8", _conn: Any = None) -> bytes | None:
        if self.fails:
            msg = "password=hunter2"
            raise ConnectionError(msg)
        return await super()._get(key, encoding, _conn)

    async def _set(self, key: str, value: bytes, *rest: Any, **more: Any) -> bool:
        if self.fails:
            raise TimeoutError
        return await super()._set(key, value, *rest, **more)


async def test_what_is_kept_is_a_hit(backend: BoundedMemoryCache, clock: Clock) -> None:
    """A kept answer comes back whole, with its age, its key and the layer's name."""
    cache = OutputCache(backend)
    assert await cache.look_up("k", ANY) == Hit(None, "miss", "memory", "k", looked=(("memory", "miss"),))
    await cache.keep("k", ANSWER, 600)
    clock.now += 7
    hit = await cache.look_up("k", ANY)
    assert hit == Hit(ANSWER, "hit", "memory", "k", 7, looked=(("memory", "hit"),))
    assert hit.fresh
    assert (await cache.look_up("K", ANY)).status == "miss"


async def test_an_expired_answer_is_stale_for_a_while(clock: Clock) -> None:
    """After its time an answer can still be read as stale, and is no answer; the backend is told how long."""
    told: list[float | None] = []

    class Watched(BoundedMemoryCache):
        async def _set(self, key: str, value: bytes, ttl: float | None = None, *rest: Any, **more: Any) -> bool:
            told.append(ttl)
            return await super()._set(key, value, ttl, *rest, **more)

    cache = OutputCache(Watched(), stale_for=50)
    await cache.keep("k", ANSWER, 10)
    clock.now += 9.99
    assert (await cache.look_up("k", ANY)).status == "hit"
    clock.now += 0.01
    hit = await cache.look_up("k", ANY)
    assert (hit.status, hit.completion, hit.fresh) == ("stale", ANSWER, False)
    assert told == [60]


async def test_a_caller_may_ask_for_a_younger_answer(backend: BoundedMemoryCache, clock: Clock) -> None:
    """An answer older than ``max-age`` is stale for this caller, and a hit for the next."""
    cache = OutputCache(backend)
    await cache.keep("k", ANSWER, 600)
    clock.now += 30
    assert (await cache.look_up("k", Freshness(max_age=29))).status == "stale"
    assert (await cache.look_up("k", Freshness(max_age=0))).status == "stale"
    assert (await cache.look_up("k", Freshness(max_age=30))).status == "hit"
    assert (await cache.look_up("k", ANY)).status == "hit"


async def test_a_clock_that_is_set_back_makes_no_negative_age(backend: BoundedMemoryCache, clock: Clock) -> None:
    """The age is never below zero."""
    cache = OutputCache(backend)
    await cache.keep("k", ANSWER, 600)
    clock.now -= 100
    assert (await cache.look_up("k", ANY)).age == 0


@pytest.mark.parametrize(
    "raw",
    [
        HEAD.pack(FORMAT - 1, PLAIN, 1.0, 1e12) + orjson.dumps([None, ANSWER.body]),
        HEAD.pack(FORMAT + 1, PLAIN, 1.0, 1e12) + orjson.dumps([None, ANSWER.body]),
        HEAD.pack(FORMAT, PLAIN, 1.0, 1e12) + orjson.dumps([None, ANSWER.body, "more"]),
        HEAD.pack(FORMAT, PLAIN, 1.0, 1e12) + orjson.dumps([None, {"other": "writer"}]),
        HEAD.pack(FORMAT, PLAIN, 1.0, 1e12) + b"null",
        HEAD.pack(FORMAT, PLAIN, 1.0, 1e12),
        HEAD.pack(FORMAT, COMPRESSED, 1.0, 1e12) + orjson.dumps([None, ANSWER.body]),
        HEAD.pack(FORMAT, COMPRESSED, 1.0, 1e12) + zlib.compress(orjson.dumps([None, ANSWER.body]))[:-5],
        orjson.dumps([1, 1.0, 1e12, None, ANSWER.body]),
        b"17",
        b"null",
        b'[1, 1.0, 1e12, {"choi',
        b"\xff\x00",
        b"",
    ],
)
async def test_what_another_version_kept_is_a_miss(backend: BoundedMemoryCache, raw: bytes) -> None:
    """An older or newer format, another writer's value, or one that was cut off is a miss, and no error."""
    await backend.set("k", raw)
    assert await OutputCache(backend).look_up("k", ANY) == Hit(key="k", looked=(("memory", "miss"),))


async def test_two_readers_share_nothing(backend: BoundedMemoryCache) -> None:
    """Each look-up makes an answer of its own, so that changing one changes no other."""
    cache = OutputCache(backend)
    await cache.keep("k", ANSWER, 600)
    first = (await cache.look_up("k", ANY)).completion
    assert first is not None
    first.body["choices"][0]["message"]["content"] = "changed"
    assert (await cache.look_up("k", ANY)).completion == ANSWER


async def test_a_failing_backend_is_a_miss_and_two_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Requests go on without a backend that fails; the log tells when that begins and ends, and quotes no error."""
    caplog.set_level(logging.DEBUG, "tracerouter")
    backend = Failing()
    cache = OutputCache(backend)
    for _ in range(3):
        await cache.keep("k", ANSWER, 600)
        assert await cache.look_up("k", ANY) == Hit(key="k", looked=(("memory", "error"),))
    backend.fails = False
    await cache.keep("k", ANSWER, 600)
    for _ in range(3):
        assert (await cache.look_up("k", ANY)).status == "hit"
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("tracerouter")]
    assert ours == [
        "the cache fails, requests go on without it: TimeoutError",
        "the cache works again",
    ]
    backend.fails = True
    await cache.look_up("k", ANY)
    assert "the cache fails, requests go on without it: ConnectionError" in caplog.text
    assert "hunter2" not in caplog.text


class Counting:
    def __init__(self) -> None:
        self.asked: list[str] = []

    async def classify(self, task: Task) -> Classification:
        self.asked.append(task.text)
        return Classification(task.text, 0.9, frozenset({"pii"}), "counting", "7")


async def test_a_classification_is_remembered() -> None:
    """Equal words are classified once, and the second answer says that it was remembered."""
    inner = Counting()
    classifier = CachedClassifier(inner)
    first = await classifier.classify(Task.chat("Translate this"))
    again = await classifier.classify(Task.chat("Translate this"))
    assert (first.cached, again.cached) == (False, True)
    assert (again.label, again.confidence, again.risks) == (first.label, first.confidence, first.risks)
    assert inner.asked == ["Translate this"]
    other = await classifier.classify(Task.chat("Translate this", caller=Caller("other")))
    assert not other.cached  # a classifier may look at who asks


async def test_a_classification_expires(clock: Clock) -> None:
    """After its time the words are classified again."""
    inner = Counting()
    classifier = CachedClassifier(inner, ttl=10)
    for step in (0, 9.9, 0.1, 9.9):
        clock.now += step
        await classifier.classify(Task.chat("x"))
    assert inner.asked == ["x", "x"]


async def test_different_words_are_not_mixed() -> None:
    """Each text has its own classification, also where texts meet at other places of the conversation."""
    classifier = CachedClassifier(Counting())
    talks = [["a"], ["b"], ["a", "b"], ["ab"], ["a\nb"], ["b", "a"], [""], ["a", ""], ["", "a"]]
    for _ in range(2):
        for talk in talks:
            task = Task.parse({"messages": [{"role": "user", "content": said} for said in talk]})
            assert (await classifier.classify(task)).label == talk[-1]
    assert len(classifier._known) == len(talks)


async def test_what_is_remembered_is_bounded() -> None:
    """No more are remembered than was said, and the least recently used are forgotten."""
    inner = Counting()
    classifier = CachedClassifier(inner, entries=2)
    for text in ("a", "b", "c", "a", "c"):
        await classifier.classify(Task.chat(text))
    assert inner.asked == ["a", "b", "c", "a"]


async def test_a_classifier_that_fails_is_not_remembered() -> None:
    """An error is passed on, and the next request asks again."""

    class Broken(Counting):
        async def classify(self, task: Task) -> Classification:
            found = await super().classify(task)
            if len(self.asked) == 1:
                raise TimeoutError
            return found

    classifier = CachedClassifier(Broken())
    with pytest.raises(TimeoutError):
        await classifier.classify(Task.chat("x"))
    assert (await classifier.classify(Task.chat("x"))).cached is False
    both = await asyncio.gather(*(classifier.classify(Task.chat("x")) for _ in range(2)))
    assert [found.cached for found in both] == [True, True]
