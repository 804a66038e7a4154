"""What can't be kept."""

from __future__ import annotations

from tracerouter.cache import BoundedMemoryCache, OutputCache
from tracerouter.types import Completion, Freshness


async def test_an_answer_that_is_no_json_is_not_kept_and_no_error() -> None:
    """An answer that can't be written as JSON is a miss the next time, and its request goes on."""
    cache = OutputCache(BoundedMemoryCache())
    await cache.keep("k", Completion({"choices": [{"message": {"content": "\ud800"}}]}), 60)
    assert (await cache.look_up("k", Freshness())).status == "miss"
