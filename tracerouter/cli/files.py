"""Which files a command works on: the ones named, those in this folder, or the packaged ones that need no key."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tracerouter import config
from tracerouter import policy as policies
from tracerouter.errors import ConfigError
from tracerouter.policy.file import read
from tracerouter.providers.local import check_installed
from tracerouter.providers.weights import weights
from tracerouter.quota import QuotaState, RedisLedger, SqliteLedger
from tracerouter.store import RedisItems, RedisStore, SqliteItems, SqliteStore
from tracerouter.store.redis import SCHEMES

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable, Iterator

    from tracerouter.policy import Policy
    from tracerouter.store import Items


class _StoreOnly(BaseModel):
    """Of ``tracerouter.yaml``, what is needed to read what happened: no key need be in the environment."""

    model_config = ConfigDict(extra="ignore")
    store: str = "sqlite:///tracerouter.db"
    journal: Path = config.JOURNAL


class _PolicyOnly(BaseModel):
    """Of ``tracerouter.yaml``, where the policy is."""

    model_config = ConfigDict(extra="ignore")
    policy: Path


HERE = Path("tracerouter.yaml")
PACKAGED = Path(config.__file__).parent / "defaults"


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the deployment (default: ./tracerouter.yaml, or else the packaged demo)",
    )


def deployment(path: Path | None, say: Callable[[str], None], *, asks: bool = True) -> config.Deployment:
    """Build what the file describes; `say` is told what stands in for what, and `asks` whether models are asked.

    Raises:
        ConfigError: Names file, line, key, what was found, and the nearest right name.
    """
    return demo(say, asks=asks) if _is_demo(path) else config.load(path or HERE, serves=asks)


def demo(say: Callable[[str], None], *, asks: bool = True) -> config.Deployment:
    """Build the packaged deployment: its models are real where they can be had, and `say` is told where they can't."""
    paid = bool(os.environ.get("OPENAI_API_KEY"))
    written = read(PACKAGED / ("openai.yaml" if paid else "demo.yaml"), config.Settings, variables=True)
    models = dict(written.models)
    if not paid:
        say("expensive model: simulated (set OPENAI_API_KEY for a real one)")
    try:
        check_installed()
        if asks:
            weights(say)
    except ConfigError as error:
        say(f"cheap model: simulated, since the local one can't be had: {error}")
        models["small"] = config.stand_in(models["small"])
    store = f"sqlite:///{_demo_store()}"
    return config.build(written.model_copy(update={"models": models, "store": store}), PACKAGED)


def store(path: Path | None, say: Callable[[str], object]) -> SqliteStore:
    """Open the store that the file names, to read what happened; `say` is told if it is the demo's.

    Raises:
        ConfigError: There is none yet.
    """
    if _is_demo(path):
        say(f"there is no {HERE} here, so this is the demo's log; name yours by --config")
        return demo_store()
    path = path or HERE
    written = read(path, _StoreOnly, variables={"store", "journal"})
    found = config.store_path(written.store, path.parent, written.journal)
    if not isinstance(found, Path) or not found.exists():
        msg = f"there is no decision log at {found}: nothing was routed yet, or `store` is memory:"
        raise ConfigError(msg)
    return SqliteStore(found)


@contextmanager
def quotas(path: Path | None, say: Callable[[str], object]) -> Iterator[tuple[QuotaState, Policy]]:
    """Open the ledger that the file names, beside its policy's limits; `say` is told if they are the demo's.

    Raises:
        ConfigError: There is no store yet, or the policy is wrong.
    """
    shared = redis_store(path)
    kept = SqliteStore(":memory:") if shared else store(path, say)  # who only reads Redis needs no journal
    try:
        where = PACKAGED / "demo.yaml" if _is_demo(path) else path or HERE
        policy = policies.load(where.parent / read(where, _PolicyOnly, variables={"policy"}).policy)
        ledger = RedisLedger(shared, kept, policy.timezone) if shared else SqliteLedger(kept, policy.timezone)
        yield QuotaState(ledger, policy), policy
    finally:
        kept.close()


def redis_store(path: Path | None) -> RedisStore | None:
    """Return the Redis that the file names as its store, if it does.

    Raises:
        ConfigError: The file can't be read, or the extra ``redis`` is not installed.
    """
    if _is_demo(path):
        return None
    written = read(path or HERE, _StoreOnly, variables={"store", "journal"})
    return RedisStore(written.store) if written.store.startswith(SCHEMES) else None


@asynccontextmanager
async def items(path: Path | None, say: Callable[[str], object]) -> AsyncIterator[Items]:
    """Open the items of the store that the file names: those that every replica shares.

    Raises:
        ConfigError: There is none yet.
    """
    shared = redis_store(path)
    if shared is not None:
        try:
            yield RedisItems(shared)
        finally:
            await shared.close()
        return
    kept = store(path, say)
    try:
        yield SqliteItems(kept)
    finally:
        await asyncio.to_thread(kept.close)


def demo_store() -> SqliteStore:
    """Open the demo's store, in the user's cache folder."""
    return SqliteStore(_demo_store())


def _is_demo(path: Path | None) -> bool:
    return path is None and not HERE.exists()


def _demo_store() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracerouter"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "demo.db"
