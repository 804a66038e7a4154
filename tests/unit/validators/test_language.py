"""Whether an answer is in a wanted language, said only where it is sure."""

from __future__ import annotations

import sys

import pytest

from tracerouter.errors import ConfigError
from tracerouter.types import Completion, Task
from tracerouter.validators import Language, language

ENGLISH = "Your parcel was handed to the carrier on Monday and should arrive tomorrow."
GERMAN = "Ihr Paket wurde am Montag dem Zusteller übergeben und sollte morgen ankommen."
FRENCH = "Votre colis a été remis au transporteur lundi et devrait arriver demain."
JAPANESE = "お荷物は月曜日に配送業者に引き渡され、明日到着する予定です。"
CODE = "```python\ndef parcel(day):\n    return the_carrier_that_we_use_for_all_parcels(day)\n```"


async def status(text: str, *wanted: str) -> str:
    check = await Language(*wanted).validate(Task.chat("x"), Completion.of(text, model="m"))
    assert [failure.told for failure in check.failures] == (["language $"] if check.status == "failed" else [])
    return check.status


@pytest.mark.parametrize(
    ("text", "code"), [(ENGLISH, "en"), (GERMAN, "de"), (FRENCH, "fr"), (JAPANESE, "ja"), (f"{GERMAN}\n{CODE}", "de")]
)
async def test_a_sentence_passes_in_its_own_language_only(text: str, code: str) -> None:
    """A sentence passes where its language is among the wanted ones, and fails where it is not; code does not count."""
    other = "es"
    assert await status(text, code) == await status(text, other, code) == "passed"
    assert await status(text, other) == "failed"


@pytest.mark.parametrize(
    "text",
    ["", "42", "Yes.", "OK", "Paris", "Berlin, Hamburg, München", '{"total": 3}', "SELECT id FROM orders", CODE],
)
async def test_what_is_short_or_no_prose_is_not_turned_down(text: str) -> None:
    """Short answers, names, numbers and code are never turned down for their language."""
    assert await status(text, "es") == "skipped"


def test_an_unknown_language_is_named() -> None:
    """A code that the detector does not know is an error with the nearest one."""
    with pytest.raises(ConfigError, match=r"language 'eng' is not known \(did you mean 'en'\?\); known are ace, "):
        Language("eng")


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error says what to install."""
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language._detector.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'tracerouter\[language\]'"):
        Language("en")
    language._detector.cache_clear()
