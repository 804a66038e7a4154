"""API keys, and the callers that they stand for."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from pydantic import Field

from tracerouter.errors import ConfigError, nearest
from tracerouter.policy.file import Written
from tracerouter.types import Caller

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_SHORTEST_KEY = 8
_RIGHTS = ("admin", "reviewer")
_KNOWN = ("key", "tenant", "team", "user", "tier", *_RIGHTS)


class KeysOf(Written):
    """Where the API keys are: a JSON list of ``{"key", "tenant", "team", "user", "tier", "admin", "reviewer"}``."""

    env: str | None = Field(default=None, description="A variable that holds the list")
    file: Path | None = None


class Keys:
    """API keys and the callers that they stand for. Only digests are kept."""

    def __init__(self, callers: Mapping[bytes, Caller]) -> None:
        self._callers = callers

    def __len__(self) -> int:
        return len(self._callers)

    def __iter__(self) -> Iterator[Caller]:
        """Give whom each key stands for."""
        return iter(self._callers.values())

    def caller(self, key: str) -> Caller | None:
        """Return whom `key` stands for. It is looked up by its digest, so that timing tells nothing of the keys."""
        return self._callers.get(_digest(key))

    @classmethod
    def load(cls, where: KeysOf, folder: Path) -> Keys:
        """Read the list.

        Raises:
            ConfigError: It is not there, or an entry is wrong; the error never shows a key.
        """
        if where.env is not None:
            source, text = f"the variable {where.env}", os.environ.get(where.env)
            if text is None:
                msg = f"keys: {source} is not set{nearest(where.env, os.environ)}"
                raise ConfigError(msg)
        elif where.file is not None:
            path = folder / where.file
            source = str(path)
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                msg = f"keys: {path} can't be read ({type(error).__name__})"
                raise ConfigError(msg) from None
        else:
            msg = "keys: needs `env` or `file`"
            raise ConfigError(msg)
        return cls(dict(_callers(source, text)))


def _callers(source: str, text: str) -> Iterable[tuple[bytes, Caller]]:
    try:
        entries = orjson.loads(text)
    except orjson.JSONDecodeError:
        entries = None
    if not isinstance(entries, list):
        shape = ", ".join(f'"{name}"' for name in _KNOWN)
        msg = f"keys: {source} must hold a JSON list of {{{shape}}}"
        raise ConfigError(msg)
    for position, entry in enumerate(entries):
        where = f"keys: {source}, entry {position}"
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str) or len(entry["key"]) < _SHORTEST_KEY:
            msg = f"{where}: needs a `key` of at least {_SHORTEST_KEY} characters"
            raise ConfigError(msg)
        for name, value in entry.items():
            if name not in _KNOWN:
                msg = f"{where}: {name!r} is not known{nearest(name, _KNOWN)}"
                raise ConfigError(msg)
            if name in _RIGHTS and not isinstance(value, bool):
                msg = f"{where}: {name!r} must be true or false"
                raise ConfigError(msg)
            if name not in _RIGHTS and value is not None and not isinstance(value, str):
                msg = f"{where}: {name!r} must be a string"
                raise ConfigError(msg)
        if not entry.get("tenant"):
            msg = f"{where}: needs a `tenant`"
            raise ConfigError(msg)
        digest = _digest(entry.pop("key"))
        yield digest, Caller(**entry, key=digest[:8].hex())


def _digest(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).digest()
