"""Texts that ask the same in other clothes: what the key of an answer takes for equal.

Built in is only what can't change a meaning: the width of letters, line ends, and spaces in prose. NFKC by itself would
make ``x²`` into ``x2`` and ``№`` into ``No``: only its harmless part is used. A text whose white space may be what is
asked about (code, quotations, tables, JSON) stays as it is. Synonyms and noise are an owner's.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import regex

from tracerouter.policy.patterns import TIME_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracerouter.policy.model import Normal

LONGEST: Final = 20_000
"""Characters; a longer text stays as it is."""

_FORMS: Final = re.compile(
    "[\u00a0\u2000-\u200a\u202f\u205f\u3000"  # spaces
    "\uff01-\uff5e\uff61-\uffdc\uffe0-\uffe2\uffe4-\uffe6"  # full and half width
    "\ufb00-\ufb06\ufb13-\ufb17\ufb50-\ufbb1\ufbd3-\ufbff\ufe80-\ufefc]+"  # ligatures, and letters as they are joined
)
"""The characters that NFKC takes to another form of the same letter, digit, sign or space."""

_CODE: Final = re.compile(r"""[\t`"“”„«»「」『』{}\[\]<>|\\=;_]""")
_QUOTED: Final = re.compile(r"['‘](?<!\w.)")
_INDENTED: Final = re.compile(r"\n +\S|\A +\S[^\n]*\n\s*\S")
_ABOUT_IT: Final = ("space", "character", "indent", "blank", "newline")
"""Words of questions about white space."""

_GAP: Final = re.compile(r"(?<=(\S)) {2,}(?=(\S))")
_UNTIDY: Final = ("  ", " \n", "\n\n\n")
_BLANK_LINES: Final = re.compile(r"\n{3,}")


def normalized(messages: Sequence[dict[str, Any]], how: Normal) -> Sequence[dict[str, Any]]:
    """Return `messages` with the text of the last user message in its normal form; nothing else changes."""
    for at in range(len(messages) - 1, -1, -1):
        message = messages[at]
        if message["role"] == "user":
            content = _content(message.get("content"), how)
            if content is message.get("content"):
                return messages
            return [*messages[:at], {**message, "content": content}, *messages[at + 1 :]]
    return messages


def plain(text: str) -> str:
    """Return the built-in normal form of `text`: texts that share it differ in no word, number, sign or letter case."""
    if len(text) > LONGEST:
        return text
    found = text
    if not text.isascii():
        found = unicodedata.normalize("NFC", _FORMS.sub(lambda form: unicodedata.normalize("NFKC", form[0]), text))
    if "\r" in found:
        found = found.replace("\r\n", "\n").replace("\r", "\n")
    stripped = found.strip(" \n")
    if stripped == text and not any(mess in text for mess in _UNTIDY):
        return text
    return text if _is_exact(found) else _tidied(stripped) or text


def _is_exact(text: str) -> bool:
    """Return whether white space may matter in `text`."""
    lowered = text.lower()
    return (
        any(word in lowered for word in _ABOUT_IT)
        or _CODE.search(text) is not None
        or _QUOTED.search(text) is not None
        or _INDENTED.search(text) is not None
        or ("  " in text and sum(_GAP.search(line) is not None for line in text.split("\n")) > 1)  # columns
    )


def _tidied(text: str) -> str:
    text = _GAP.sub(_narrowed, text) if "  " in text else text
    if "\n" not in text:
        return text
    return _BLANK_LINES.sub("\n\n", "\n".join(line.rstrip(" ") for line in text.split("\n")))


def _narrowed(gap: re.Match[str]) -> str:
    """Return one space for several, except beside a number, and between names: there a gap may part two of them."""
    before, after = gap[1], gap[2]
    word = max(gap.string.rfind(end, 0, gap.start()) for end in " \n") + 1
    names = gap.string[word].isupper() and before.isalnum() and after.isupper()
    parts = before.isdigit() or after.isdigit() or names
    return gap[0] if parts else " "


def _content(content: Any, how: Normal) -> Any:
    if isinstance(content, str):
        return _text(content, how)
    if not isinstance(content, list):
        return content
    parts = [
        {**part, "text": _text(part["text"], how)} if isinstance(part.get("text"), str) else part for part in content
    ]
    return content if parts == content else parts


def _text(text: str, how: Normal) -> str:
    text = plain(text)
    return _owners(how)(text) if how.synonyms or how.noise else text


@lru_cache(maxsize=32)
def _owners(how: Normal) -> Callable[[str], str]:
    """Return what applies an owner's noise patterns, and then the synonyms, to a text."""
    noise = [regex.compile(pattern, regex.IGNORECASE) for pattern in how.noise]
    meant = {word.casefold(): instead for word, instead in how.synonyms}
    words = "|".join(map(re.escape, sorted(meant, key=len, reverse=True)))
    synonyms = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None

    def apply(text: str) -> str:
        if len(text) > LONGEST:
            return text
        for pattern in noise:
            text = _without(pattern, text)
        return synonyms.sub(lambda word: meant.get(word[0].casefold(), word[0]), text) if synonyms else text

    return apply


def _without(pattern: regex.Pattern[str], text: str) -> str:
    """Return `text` without what matches, unless nothing else is in it; a pattern that takes too long is left out."""
    try:
        rest = pattern.sub("", text, timeout=TIME_LIMIT)
    except TimeoutError:
        return text
    return rest.strip(" \n") or text if rest != text else text
