"""The bounded memory backend, through aiocache's own interface."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from aiocache.lock import OptimisticLock, OptimisticLockError

from tracerouter.cache import BoundedMemoryCache, memory


class Clock(SimpleNamespace):
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(memory, "time", made)
    return made


@pytest.fixture
def cache() -> BoundedMemoryCache:
    return BoundedMemoryCache()


async def test_set_and_get(cache: BoundedMemoryCache) -> None:
    """What was set is got, and what was not is the default."""
    assert await cache.set("a", b"1") is True
    assert await cache.get("a") == b"1"
    assert await cache.set("a", b"2") is True
    assert await cache.get("a") == b"2"
    assert await cache.get("b") is None
    assert await cache.get("b", default=b"none") == b"none"


async def test_an_empty_value_is_held(cache: BoundedMemoryCache) -> None:
    """No bytes at all are a value too."""
    await cache.set("a", b"")
    assert await cache.get("a", default=b"x") == b""
    assert await cache.exists("a") is True


async def test_add_does_not_replace(cache: BoundedMemoryCache, clock: Clock) -> None:
    """``add`` raises where the key is there, and works again when it has expired."""
    assert await cache.add("a", b"1", ttl=5) is True
    with pytest.raises(ValueError, match="already exists"):
        await cache.add("a", b"2")
    assert await cache.get("a") == b"1"
    clock.now += 5
    assert await cache.add("a", b"2") is True
    assert await cache.get("a") == b"2"


async def test_a_value_expires(cache: BoundedMemoryCache, clock: Clock) -> None:
    """A value with a time to live is gone when that has passed, and its bytes are free."""
    await cache.set("short", b"1", ttl=0.5)
    await cache.set("ever", b"2")
    clock.now += 0.49
    assert await cache.get("short") == b"1"
    clock.now += 0.01
    assert await cache.get("short") is None
    assert await cache.exists("short") is False
    clock.now += 1e9
    assert await cache.get("ever") == b"2"
    assert await cache.raw("keys") is not None
    assert len(cache._kept) == 1


async def test_setting_again_sets_the_time_to_live_again(cache: BoundedMemoryCache, clock: Clock) -> None:
    """A newer value never ends with an older one's time."""
    await cache.set("a", b"1", ttl=1)
    await cache.set("a", b"2", ttl=10)
    clock.now += 5
    assert await cache.get("a") == b"2"
    await cache.set("a", b"3")
    clock.now += 50
    assert await cache.get("a") == b"3"


async def test_expire(cache: BoundedMemoryCache, clock: Clock) -> None:
    """``expire`` gives a held key a time to live, takes it away with 0, and says whether the key was there."""
    await cache.set("a", b"1")
    assert await cache.expire("a", 10) is True
    assert await cache.expire("b", 10) is False
    clock.now += 9
    assert await cache.expire("a", 0) is True
    clock.now += 9
    assert await cache.get("a") == b"1"
    await cache.expire("a", 1)
    clock.now += 1
    assert await cache.get("a") is None


async def test_increment(cache: BoundedMemoryCache, clock: Clock) -> None:
    """A number counts up and down, from 0 where there is none, and keeps its time to live."""
    assert await cache.increment("n") == 1
    assert await cache.increment("n", delta=41) == 42
    assert await cache.increment("n", delta=-2) == 40
    assert await cache.get("n") == b"40"
    await cache.expire("n", 10)
    clock.now += 9
    assert await cache.increment("n") == 41
    clock.now += 1
    assert await cache.increment("n") == 1


async def test_only_numbers_are_incremented(cache: BoundedMemoryCache) -> None:
    """A value that is no number raises what aiocache promises, and stays."""
    await cache.set("a", b"text")
    with pytest.raises(TypeError, match="not an integer"):
        await cache.increment("a")
    assert await cache.get("a") == b"text"


async def test_delete(cache: BoundedMemoryCache) -> None:
    """``delete`` returns how many keys it took away."""
    await cache.set("a", b"1")
    assert await cache.delete("a") == 1
    assert await cache.delete("a") == 0
    assert await cache.get("a") is None


async def test_many_at_once(cache: BoundedMemoryCache, clock: Clock) -> None:
    """``multi_set`` and ``multi_get`` keep order, misses and the time to live."""
    assert await cache.multi_set([("a", b"1"), ("b", b"2")], ttl=5) is True
    assert await cache.multi_get(["b", "x", "a"]) == [b"2", None, b"1"]
    clock.now += 5
    assert await cache.multi_get(["a", "b"]) == [None, None]


async def test_namespaces_are_apart(cache: BoundedMemoryCache) -> None:
    """A key in one namespace is another in the next, and one can be cleared without the other."""
    await cache.set("a", b"1", namespace="x:")
    await cache.set("a", b"2", namespace="y:")
    await cache.set("a", b"3")
    assert [await cache.get("a", namespace=n) for n in ("x:", "y:", None)] == [b"1", b"2", b"3"]
    assert await cache.clear(namespace="x:") is True
    assert [await cache.get("a", namespace=n) for n in ("x:", "y:", None)] == [None, b"2", b"3"]
    assert await cache.clear() is True
    assert await cache.multi_get(["a", "y:a"]) == [None, None]


async def test_the_oldest_go_when_the_bytes_run_out() -> None:
    """The bound is one of bytes: the least recently used go, and the sum never passes the bound."""
    cache = BoundedMemoryCache(10_000)
    for number in range(100):
        await cache.set(f"{number:02}", b"x" * 798)  # 1000 bytes each, with key and overhead
        await cache.get("00")
        assert cache._kept.current_size() <= 10_000
    held = [number for number in range(100) if await cache.exists(f"{number:02}")]
    assert held == [0, *range(91, 100)]


async def test_many_small_values_are_bounded_too() -> None:
    """An entry costs more than its value, so that endless empty ones do not fill the memory."""
    cache = BoundedMemoryCache(10_000)
    for number in range(1000):
        await cache.set(str(number), b"")
    assert len(cache._kept) < 50


async def test_the_oldest_go_when_there_are_too_many() -> None:
    """The number of entries has a bound, too."""
    cache = BoundedMemoryCache(max_entries=3)
    for name in "abcd":
        await cache.set(name, b"x")
        await cache.get("a")
    assert [name for name in "abcd" if await cache.exists(name)] == ["a", "c", "d"]


async def test_a_value_larger_than_the_cache_is_not_kept() -> None:
    """It is not kept, says so, pushes nothing else out, and does not leave an older value standing."""
    cache = BoundedMemoryCache(2_000)
    await cache.set("a", b"1")
    await cache.set("b", b"old")
    assert await cache.set("b", b"x" * 2_000) is False
    assert await cache.get("b") is None
    assert await cache.get("a") == b"1"
    assert await cache.multi_set([("c", b"x" * 5_000), ("d", b"1")]) is True
    assert await cache.multi_get(["c", "d"]) == [None, b"1"]


async def test_what_is_held_can_not_be_changed_from_outside(cache: BoundedMemoryCache) -> None:
    """A buffer that changes after it was set does not change what is held, and only bytes come out."""
    buffer = bytearray(b"held")
    await cache.set("a", buffer)
    await cache.add("b", memoryview(buffer))
    await cache.multi_set([("c", buffer)])
    buffer[:] = b"lost"
    found = await cache.multi_get(["a", "b", "c"])
    assert found == [b"held"] * 3
    assert {type(value) for value in found} == {bytes}


@pytest.mark.parametrize("value", [["list"], {"a": 1}, 5, "text", None])
async def test_only_bytes_are_taken(cache: BoundedMemoryCache, value: object) -> None:
    """What is not bytes is refused instead of being shared."""
    with pytest.raises(TypeError):
        await cache.set("a", value)
    assert await cache.exists("a") is False


async def test_an_optimistic_lock_holds(cache: BoundedMemoryCache) -> None:
    """The optimistic lock of aiocache sees that a value was changed by another."""
    await cache.set("a", b"1")
    async with OptimisticLock(cache, "a") as lock:
        assert await lock.cas(b"2") is True
    async with OptimisticLock(cache, "a") as lock:
        await cache.set("a", b"3")
        with pytest.raises(OptimisticLockError):
            await lock.cas(b"4")
    assert await cache.get("a") == b"3"
