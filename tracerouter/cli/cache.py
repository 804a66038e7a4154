"""``tracerouter cache``: empty the cache that all replicas share."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from tracerouter.cli import files
from tracerouter.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from tracerouter.store import RedisStore


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Declare the commands."""
    parser = commands.add_parser("cache", help="empty the cache that all replicas share")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    clear = actions.add_parser(
        "clear",
        help="forget all answers, in Redis and in the memory of every process",
        epilog="Example: tracerouter cache clear --config tracerouter.yaml",
    )
    files.add_config(clear)
    clear.add_argument("--json", action="store_true", help="as JSON")
    clear.set_defaults(run=run_clear)


def run_clear(asked: argparse.Namespace) -> int:
    """Empty it."""
    store = files.redis_store(asked.config)
    if store is None:
        msg = "the cache is in the memory of the process alone, as `store` is no redis://…: a restart empties it"
        raise ConfigError(msg)
    generation = asyncio.run(_clear(store))
    told = "the cache is empty: every process forgets its answers within about a second"
    sys.stdout.write((json.dumps({"store": store.name, "generation": generation}) if asked.json else told) + "\n")
    return 0


async def _clear(store: RedisStore) -> str | None:
    from tracerouter.cache.shared import SharedCache  # noqa: PLC0415 - extra `redis`

    shared = SharedCache(store)
    try:
        await shared.clear(namespace=await shared.begin_anew())
    finally:
        await store.close()
    return shared.generation
