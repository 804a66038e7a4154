"""The rules classifier."""

from __future__ import annotations

from tracerouter.classifiers import RulesClassifier
from tracerouter.types import Task


async def test_the_first_label_that_matches_wins_with_certainty() -> None:
    """Labels are tried in the file's order, without regard to case, and a match is certain."""
    rules = RulesClassifier({"sql": [r"\bselect\b"], "code": [r"select", r"python"]})
    found = await rules.classify(Task.chat("SELECT name FROM users"))
    assert (found.label, found.confidence, found.classifier) == ("sql", 1.0, "rules")
    assert (await rules.classify(Task.chat("some Python please"))).label == "code"
    assert (await rules.classify(Task.chat("hello"))).abstained


async def test_labels_look_at_the_last_request() -> None:
    """An earlier message gives no label, whoever wrote it."""
    body = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "select my passport"}]},
            {"role": "assistant", "content": "select what?"},
            {"role": "user", "content": "thanks"},
        ]
    }
    assert (await RulesClassifier({"sql": ["select"]}).classify(Task.parse(body))).abstained


async def test_labels_stop_at_20000_characters() -> None:
    """A long paste can't choose the label from its end."""
    assert (await RulesClassifier({"sql": ["select"]}).classify(Task.chat("x" * 20_000 + " select"))).abstained


def test_the_version_follows_the_patterns() -> None:
    """Equal patterns have one version, and any change gives another."""
    version = RulesClassifier({"sql": ["a"]}).version
    assert version == RulesClassifier({"sql": ["a"]}).version
    assert version != RulesClassifier({"sql": ["b"]}).version
    assert version != RulesClassifier({}).version
