"""How many tokens Claude takes for an image.

As Anthropic publishes it ("Images and vision", platform.claude.com/docs/en/build-with-claude/vision): a token for each
patch of 28 by 28 pixels, so ``⌈width / 28⌉ · ⌈height / 28⌉``; an image that is too large counts as the largest of its
proportions that its model takes:

========================  ======================  ====================
models                    longest edge (pixels)   most tokens an image
========================  ======================  ====================
Claude 4.7 and later      2576                    4784
earlier ones              1568                    1568
========================  ======================  ====================

A name that tells no version counts as a later one. Where an image's size is not to be read, as of one that lies behind
a URL, the number is the most that its model takes for any.
"""

from __future__ import annotations

import re
from base64 import b64decode
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_PATCH = 28
_VERSION = re.compile(r"claude-(?:[a-z]+-)?(\d+)(?:[-.](\d{1,2})(?!\d))?")
_DATA = re.compile(r"data:[^,]*;base64,")
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""JPEG's markers of a frame, which tells its size."""


class _Limits(NamedTuple):
    edge: int
    tokens: int


_LATER = _Limits(2576, 4784)
_EARLIER = _Limits(1568, 1568)


def image_tokens(part: Mapping[str, Any], *, model: str) -> int:
    """Count an ``image_url`` part for a model of Anthropic's."""
    found = _VERSION.search(model)
    earlier = found is not None and (int(found[1]), int(found[2] or 0)) < (4, 7)
    limits = _EARLIER if earlier else _LATER
    told = part.get("image_url")
    url = told.get("url") if isinstance(told, dict) else told
    size = _size(url) if isinstance(url, str) else None
    return limits.tokens if size is None else _tokens(*size, limits)


def _tokens(width: int, height: int, limits: _Limits) -> int:
    longer, shorter = max(width, height), min(width, height)

    def taken(edge: int) -> int:
        """Return the tokens that it takes when its longer edge has so many pixels."""
        return -(-edge // _PATCH) * -(-max(1, round(edge * shorter / longer)) // _PATCH)

    edges = range(1, min(longer, limits.edge) + 1)
    return taken(bisect_left(edges, limits.tokens + 1, key=taken))


def _size(url: str) -> tuple[int, int] | None:
    """Return width and height of an image in a ``data:`` URL; None where they are not to be read."""
    found = _DATA.match(url)
    if found is None:
        return None
    try:
        raw = b64decode(url[found.end() :])
    except ValueError:
        return None
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        size = (_big(raw[16:20]), _big(raw[20:24]))
    elif raw.startswith((b"GIF87a", b"GIF89a")):
        size = (_little(raw[6:8]), _little(raw[8:10]))
    elif raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        size = _webp(raw)
    else:
        size = _jpeg(raw)
    return size if all(size) else None


def _webp(raw: bytes) -> tuple[int, int]:
    match raw[12:16]:
        case b"VP8X":
            return _little(raw[24:27]) + 1, _little(raw[27:30]) + 1
        case b"VP8L":
            bits = _little(raw[21:25])
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return _little(raw[26:28]) & 0x3FFF, _little(raw[28:30]) & 0x3FFF
    return 0, 0


def _jpeg(raw: bytes) -> tuple[int, int]:
    """Go from marker to marker until one begins a frame."""
    at = 2 if raw.startswith(b"\xff\xd8") else len(raw)
    while at + 9 <= len(raw) and raw[at] == 0xFF:  # noqa: PLR2004 - as the format has it
        marker = raw[at + 1]
        if marker in _FRAMES:
            return _big(raw[at + 7 : at + 9]), _big(raw[at + 5 : at + 7])
        at += 1 if marker == 0xFF else 2 + _big(raw[at + 2 : at + 4])  # noqa: PLR2004 - it may be filled up
    return 0, 0


def _big(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _little(raw: bytes) -> int:
    return int.from_bytes(raw, "little")
