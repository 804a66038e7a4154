"""Risks and their evidence: by the owner's patterns and labels, and by what is packaged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tracerouter.cache import CachedClassifier
from tracerouter.classifiers import Chain, RiskClassifier
from tracerouter.classifiers.risks import PIECE
from tracerouter.policy import PolicyFile
from tracerouter.types import Classification, Task


class Says:
    """Always says the same label, with risks of its own."""

    def __init__(self, label: str = "other", *risks: str) -> None:
        self.answer = Classification(label, 0.9 if label != "other" else 0.0, frozenset(risks), classifier="says")

    async def classify(self, task: Task) -> Classification:  # noqa: ARG002
        """Say it."""
        return self.answer


def finder(inner: Any = None, **risks: Any) -> RiskClassifier:
    """Look for the risks that a policy has rules for."""
    policy = PolicyFile.model_validate({"ladder": ["a"], "tasks": {"review": {}}, "risks": risks})
    return RiskClassifier(inner or Chain([]), {str(name): one for name, one in policy.risks.items()})


async def found(classifier: RiskClassifier, text: str, **facts: Any) -> dict[str, list[str]]:
    """Return the evidence as it is told, by risk."""
    said = await classifier.classify(Task.chat(text, **facts))
    assert {one.risk for one in said.evidence} <= said.risks
    return {risk: [one.told for one in said.evidence if one.risk == risk] for risk in said.risks}


async def test_a_rule_turns_the_packaged_detection_on() -> None:
    """A risk is looked for exactly where the policy has a rule for it, and the evidence is kinds and counts."""
    text = "mail a@example.com and b@example.com about the lawsuit, call +44 20 7946 0958"
    assert await found(finder(pii={}, legal={}), text) == {"pii": ["email x2", "phone"], "legal": ["dispute"]}
    assert await found(finder(pii={}), text) == {"pii": ["email x2", "phone"]}
    assert await found(finder(medical={}), text) == {}
    assert await found(finder(), text) == {}


async def test_the_packaged_detection_can_be_left_out() -> None:
    """With ``detect: false`` only the owner's own patterns and labels count."""
    own = finder(pii={"detect": False, "match": ["passport"]})
    assert await found(own, "a@example.com") == {}
    assert await found(own, "my PASSPORT is lost, a@example.com") == {"pii": ["match"]}


async def test_a_label_raises_a_risk() -> None:
    """The label that a classifier gives, or the caller's own hint, raises the risks whose rules name it."""
    rules = {"legal": {"tasks": ["review"]}, "user_facing": {"tasks": ["review"]}}
    assert await found(finder(Says("review"), **rules), "hello") == {"legal": ["task"], "user_facing": ["task"]}
    assert await found(finder(Says("sql"), **rules), "hello") == {}
    assert await found(finder(Says("sql"), **rules), "hello", hint="review") == {
        "legal": ["task"],
        "user_facing": ["task"],
    }


async def test_a_classifiers_own_risks_stay() -> None:
    """What another classifier raises is kept, without evidence, and its label is not touched."""
    said = await finder(Says("sql", "security"), pii={}).classify(Task.chat("a@example.com"))
    assert (said.label, said.confidence, set(said.risks)) == ("sql", 0.9, {"security", "pii"})
    assert [one.risk for one in said.evidence] == ["pii"]


async def test_all_that_the_user_said_is_looked_at_and_nothing_else() -> None:
    """An earlier user message, in parts, raises a risk; the assistant's and the system's words do not."""
    body = {
        "messages": [
            {"role": "system", "content": "call +44 20 7946 0958"},
            {"role": "user", "content": [{"type": "text", "text": "I am a@example.com"}]},
            {"role": "assistant", "content": "that would be a lawsuit"},
            {"role": "user", "content": "thanks"},
        ]
    }
    said = await finder(pii={}, legal={}).classify(Task.parse(body))
    assert [(one.risk, one.told) for one in said.evidence] == [("pii", "email")]


@pytest.mark.parametrize("at", [0, PIECE - 10, PIECE, PIECE + 1, 3 * PIECE - 4, 4 * PIECE])
async def test_a_long_paste_hides_nothing_and_is_counted_once(at: int) -> None:
    """Wherever in a long text it stands, what is found is found once, also across two pieces."""
    text = f"{'x ' * (at // 2)}{'y' * (at % 2)} a@example.com sued me, 4111 1111 1111 1111 {'z ' * PIECE}"
    assert await found(finder(pii={}, legal={}), text) == {"pii": ["card", "email"], "legal": ["dispute"]}


async def test_others_have_their_turn_while_a_long_text_is_looked_through() -> None:
    """Between two pieces of a long text the event loop goes on."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    before = turns
    await finder(pii={}, legal={}).classify(Task.chat("word " * PIECE))
    counting.cancel()
    assert turns - before >= 4


async def test_the_evidence_holds_nothing_of_the_text() -> None:
    """Nothing that a request says stands in what is told of its risks."""
    text = "zanzibar@example.com 4111 1111 1111 1111 DE89 3704 0044 0532 0130 00 a zanzibar lawsuit"
    said = await finder(pii={}, legal={"match": ["zanzibar"]}).classify(Task.chat(text))
    told = repr(said)
    assert said.risks == {"pii", "legal"}
    assert all(part not in told for part in ("zanzibar", "4111", "DE89", "example"))


async def test_risks_are_remembered_with_the_label() -> None:
    """The classification cache keeps risks and evidence as well."""
    cached = CachedClassifier(finder(Says("sql"), pii={}))
    first = await cached.classify(Task.chat("a@example.com"))
    again = await cached.classify(Task.chat("a@example.com"))
    assert again.cached
    assert (again.risks, again.evidence) == (first.risks, first.evidence)
    assert again.evidence
