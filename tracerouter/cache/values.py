"""How an answer is kept, in every layer: as JSON, behind a head that says how old it is and how it is packed."""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from tracerouter.types import Completion

if TYPE_CHECKING:
    from tracerouter.types import Freshness

FORMAT: Final = 2
"""Of keys and values; a new one leaves the old entries behind."""

HEAD: Final = struct.Struct("<BBdd")
"""FORMAT, PLAIN or COMPRESSED, and two times as Unix seconds: kept at, expires at. A script in Redis reads it too."""

PLAIN: Final = 0
COMPRESSED: Final = 1

COMPRESS_FROM: Final = 2048
"""Bytes of JSON. Prose of this size halves, for some 30 µs to compress and 8 to read; below it there is little to win,
and making zlib ready takes longest."""

_LARGEST: Final = 64 * 1024 * 1024
"""Bytes that a value may have once it is unpacked: more is not ours."""


class Value(NamedTuple):
    """An answer as it was kept."""

    kept_at: float
    expires_at: float
    alias: str | None
    """The model that gave it."""
    completion: Completion

    def fresh(self, now: float, freshness: Freshness) -> bool:
        """Return whether it answers a request that came in at `now` (Unix seconds)."""
        oldest = math.inf if freshness.max_age is None else freshness.max_age
        return now < self.expires_at and now - self.kept_at <= oldest


def fresh(raw: bytes, now: float) -> bool:
    """Return whether a value has not expired at `now` (Unix seconds), from its head alone."""
    return len(raw) > HEAD.size and raw[0] == FORMAT and now < HEAD.unpack_from(raw)[3]


def pack(value: Value) -> bytes:
    """Write a value.

    Raises:
        TypeError: The answer can't be written as JSON.
    """
    told, packed = orjson.dumps([value.alias, value.completion.body]), PLAIN
    if len(told) >= COMPRESS_FROM:
        told, packed = zlib.compress(told, 1), COMPRESSED
    return HEAD.pack(FORMAT, packed, value.kept_at, value.expires_at) + told


def unpack(raw: bytes) -> Value | None:
    """Read a value; None where it is of another format, not ours, or cut off."""
    try:
        form, packed, kept_at, expires_at = HEAD.unpack_from(raw)
        if form != FORMAT:
            return None
        told = raw[HEAD.size :]
        if packed == COMPRESSED:
            unzip = zlib.decompressobj()
            told = unzip.decompress(told, _LARGEST)
            if not unzip.eof:
                return None
        alias, body = orjson.loads(told)
        Completion(body).finish_reasons  # noqa: B018 - raises where it is no completion
    except (struct.error, zlib.error, ValueError, TypeError, LookupError, AttributeError):
        return None
    return Value(kept_at, expires_at, alias, Completion(body))
