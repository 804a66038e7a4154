"""Words that raise a risk."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracerouter.classifiers.words import KEYS, PHRASES, keys, risky_words

LATIN = st.characters(min_codepoint=32, max_codepoint=0xFF, exclude_categories=["Cc"])
KINDS = [(risk, kind) for risk, kinds in PHRASES.items() for kind in kinds]


def kinds(risk: str, text: str) -> dict[str, int]:
    """Count a risk's kinds in the whole of a text."""
    return dict(risky_words(risk, text, keys(text), len(text)))


@pytest.mark.parametrize(("risk", "kind"), KINDS)
def test_each_phrase_is_found_by_its_keys(risk: str, kind: str) -> None:
    """Whatever fits a kind's pattern holds one of the risk's keys: the short cut past most texts hides nothing."""

    @settings(max_examples=300, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(re.compile(PHRASES[risk][kind]), fullmatch=True, alphabet=LATIN))
    def check(phrase: str) -> None:
        assert not KEYS[risk].isdisjoint(keys(phrase))
        assert kinds(risk, f"well, {phrase} !")

    check()


def test_kinds_are_counted_without_regard_to_case() -> None:
    """Each phrase counts for its kind; words inside other words do not."""
    text = "A LAWSUIT about the Limitation of Liability, and another lawsuit"
    assert kinds("legal", text) == {"dispute": 2, "liability": 1}
    assert kinds("legal", "pursued by lawsuitable men") == {}
    assert kinds("user_facing", text) == {}


@pytest.mark.parametrize("part", ["contract ", "my ", "password", "password: ", "(", "  ", "bearer ", "a-"])
def test_time_grows_with_length_alone(part: str) -> None:
    """No text of half a million characters keeps the patterns busy."""
    text = part * (500_000 // len(part))
    assert all(sum(kinds(risk, text).values()) >= 0 for risk in PHRASES)
