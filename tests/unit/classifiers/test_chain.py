"""The chain of classifiers."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tracerouter.classifiers import Chain
from tracerouter.errors import ProviderTimeout
from tracerouter.types import Classification, Task

TASK = Task.chat("my secret question")


class Fixed:
    """Says always the same, and counts how often it is asked."""

    def __init__(self, label: str, confidence: float, *risks: str) -> None:
        self.answer = Classification(label, confidence, frozenset(risks), classifier=label)
        self.asked = 0

    async def classify(self, task: Task) -> Classification:  # noqa: ARG002
        """Say it."""
        self.asked += 1
        return self.answer


class Broken:
    """Fails with the prompt in its message, as libraries do."""

    def __init__(self, error: type[BaseException] = ValueError) -> None:
        self.error = error

    async def classify(self, task: Task) -> Classification:
        """Fail."""
        raise self.error(task.text)


async def test_nobody_is_asked_after_one_that_is_sure() -> None:
    """The chain ends at the first confidence that reaches the threshold."""
    last = Fixed("c", 1.0, "pii")
    found = await Chain([Fixed("a", 0.3, "legal"), Fixed("b", 0.7), last]).classify(TASK)
    assert (found.label, found.classifier, last.asked) == ("b", "b", 0)
    assert found.risks == {"legal"}


async def test_the_most_confident_stands_when_nobody_is_sure() -> None:
    """A doubtful answer beats a more doubtful one wherever it stands, with everybody's risks."""
    chain = Chain([Fixed("a", 0.5, "legal"), Fixed("b", 0.2, "pii"), Fixed("other", 0)], sure=0.9)
    found = await chain.classify(TASK)
    assert (found.label, found.confidence) == ("a", 0.5)
    assert found.risks == {"legal", "pii"}


async def test_all_abstaining_is_an_abstention_of_the_last() -> None:
    """When nobody can tell, the one that had the last word is named."""
    last = Fixed("other", 0)
    found = await Chain([Fixed("other", 0, "pii"), last]).classify(TASK)
    assert found.abstained
    assert found.risks == {"pii"}


async def test_a_broken_classifier_is_passed_over_and_logged_without_the_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that raises costs one warning, which quotes nothing of the request, and the next is asked."""
    with caplog.at_level(logging.WARNING):
        found = await Chain([Broken(), Fixed("b", 0.9)]).classify(TASK)
    assert found.label == "b"
    assert [record.getMessage() for record in caplog.records] == ["Broken failed with ValueError"]
    assert "secret" not in caplog.text


async def test_all_broken_or_none_at_all_abstains() -> None:
    """A chain always answers."""
    assert (await Chain([Broken(), Broken()]).classify(TASK)).abstained
    assert (await Chain([]).classify(TASK)).abstained


async def test_a_cancelled_request_is_not_passed_over() -> None:
    """Cancellation is not a classifier's failure and goes through."""
    with pytest.raises(asyncio.CancelledError):
        await Chain([Broken(asyncio.CancelledError), Fixed("b", 0.9)]).classify(TASK)


async def test_an_unsure_answer_tells_why_a_classifier_failed() -> None:
    """Where one failed, an unsure answer says that asking again may tell more; a sure one is as good as any."""
    assert (await Chain([Broken(), Fixed("b", 0.5)]).classify(TASK)).failed == "ValueError"
    assert (await Chain([Broken(ProviderTimeout), Fixed("b", 0.5)]).classify(TASK)).failed == "timeout"
    assert not (await Chain([Broken(), Fixed("b", 0.9)]).classify(TASK)).failed
    assert not (await Chain([Fixed("other", 0), Fixed("b", 0.5)]).classify(TASK)).failed
