"""Labelled examples: a folder of text files, one file a label and one line an example."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tracerouter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Examples = Mapping[str, tuple[str, ...]]
    """The examples by label, sorted by label."""

STARTER = Path(__file__).parent / "taxonomy"
"""The folder of the examples that tracerouter ships."""

MIN_EXAMPLES = 5
"""With fewer, a label can't be checked by cross-validation, so its confidence would mean nothing."""

_RECIPE = "1"  # to be raised when the same examples come to train other weights


def read_examples(folders: Iterable[Path]) -> Examples:
    """Read every ``*.txt`` of `folders`: a name in several folders is one label with all their examples.

    Blank lines, lines that start with ``#`` and repeated lines do not count.

    Raises:
        ConfigError: A folder without such files; a file that is empty or not UTF-8; a label with fewer than
            :data:`MIN_EXAMPLES` examples. Names the file and the fix.
    """
    lines: dict[str, dict[str, None]] = {}
    last: dict[str, Path] = {}
    for folder in folders:
        files = sorted(folder.glob("*.txt"))
        if not files:
            msg = f"{folder}: holds no .txt files; write one file for each label, one example a line"
            raise ConfigError(msg)
        for file in files:
            lines.setdefault(file.stem, {}).update(dict.fromkeys(_lines(file)))
            last[file.stem] = file
    for label, found in lines.items():
        if len(found) < MIN_EXAMPLES:
            msg = f"{last[label]}: label {label!r} has {len(found)} examples; give it at least {MIN_EXAMPLES}"
            raise ConfigError(msg)
    return {label: tuple(lines[label]) for label in sorted(lines)}


def digest(examples: Examples) -> str:
    """Return what names the weights that `examples` train: 12 hexadecimal digits."""
    content = json.dumps([_RECIPE, sorted(examples.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8"
        raise ConfigError(msg) from None
    except OSError as error:
        msg = f"{file}: can't be read: {error.strerror}"
        raise ConfigError(msg) from None
    found = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not found:
        msg = f"{file}: holds no examples; write some, one a line, or delete the file"
        raise ConfigError(msg)
    return found
