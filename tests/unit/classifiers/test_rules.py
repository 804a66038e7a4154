"""The rules classifier."""

from __future__ import annotations

import pytest

from tracerouter.classifiers import RulesClassifier
from tracerouter.errors import ConfigError
from tracerouter.types import Task


async def test_the_first_label_that_matches_wins_with_certainty() -> None:
    """Labels are tried in the file's order, without regard to case, and a match is certain."""
    rules = RulesClassifier({"sql": [r"\bselect\b"], "code": [r"select", r"python"]}, {})
    found = await rules.classify(Task.chat("SELECT name FROM users"))
    assert (found.label, found.confidence, found.classifier) == ("sql", 1.0, "rules")
    assert (await rules.classify(Task.chat("some Python please"))).label == "code"


async def test_every_risk_counts_even_without_a_label() -> None:
    """Risks are all that match, and an abstaining answer carries them too."""
    rules = RulesClassifier({"sql": ["select"]}, {"legal": ["lawsuit"], "medical": ["diagnos"], "pii": ["iban"]})
    found = await rules.classify(Task.chat("a lawsuit about a diagnosis"))
    assert found.abstained
    assert found.risks == {"legal", "medical"}


async def test_labels_look_at_the_last_request_and_risks_at_all_that_the_user_said() -> None:
    """An earlier user message gives a risk but no label, and the assistant's words give neither."""
    rules = RulesClassifier({"sql": ["select"]}, {"pii": ["passport"], "legal": ["lawsuit"]})
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "select my passport"}]},
            {"role": "assistant", "content": "that would be a lawsuit"},
            {"role": "user", "content": "thanks"},
        ]
    }
    found = await rules.classify(Task.parse(body))
    assert found.abstained
    assert found.risks == {"pii"}


async def test_labels_stop_at_20000_characters_and_risks_do_not() -> None:
    """A long paste can't choose the label from its end, but it can't hide a risk there."""
    rules = RulesClassifier({"sql": ["select"]}, {"pii": ["passport"]})
    found = await rules.classify(Task.chat("x" * 20_000 + " select passport"))
    assert found.abstained
    assert found.risks == {"pii"}


def test_a_bad_pattern_names_label_pattern_and_position() -> None:
    """The owner of a broken pattern is told where it stands and where it breaks."""
    with pytest.raises(ConfigError, match=r"task 'sql'.*'ab\(c'.*position 2"):
        RulesClassifier({"sql": ["ab(c"]}, {})
    with pytest.raises(ConfigError, match="risk 'pii'"):
        RulesClassifier({}, {"pii": ["[z-a]"]})


def test_the_version_follows_the_patterns() -> None:
    """Equal patterns have one version, and any change gives another."""
    version = RulesClassifier({"sql": ["a"]}, {}).version
    assert version == RulesClassifier({"sql": ["a"]}, {}).version
    assert version != RulesClassifier({"sql": ["b"]}, {}).version
    assert version != RulesClassifier({}, {"sql": ["a"]}).version
