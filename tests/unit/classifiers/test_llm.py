"""The classifier that asks a model."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest

from tracerouter.cache import CachedClassifier
from tracerouter.classifiers import Chain, LlmClassifier
from tracerouter.classifiers.llm import HEAD_CHARS, TAIL_CHARS
from tracerouter.errors import ProviderTimeout
from tracerouter.types import Completion, Task

if TYPE_CHECKING:
    from collections.abc import Mapping


class Asked:
    """Answers with a script, the last line again and again, and keeps what was asked; ``lost`` gives no answer."""

    def __init__(self, *script: str) -> None:
        self.script = list(script)
        self.bodies: list[Mapping[str, Any]] = []

    async def __call__(self, alias: str, body: Mapping[str, Any], timeout: float) -> Completion:  # noqa: ASYNC109, ARG002 - the signature
        self.bodies.append(body)
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if said == "lost":
            msg = "no answer in time"
            raise ProviderTimeout(msg)
        return Completion.of(said, model=alias)


def classifier(asked: Asked, **limits: float) -> LlmClassifier:
    return LlmClassifier("small", ["sql", "code"], asked, **limits)


def answer(label: object, confidence: object) -> str:
    return json.dumps({"label": label, "confidence": confidence})


async def test_the_models_label_counts_with_no_more_than_the_limit() -> None:
    """What a model states is taken, but never for more than it was seen to be worth."""
    asked = Asked(answer("sql", 0.99), answer("code", 0.4))
    of_model = classifier(asked, max_confidence=0.8)
    found = await of_model.classify(Task.chat("join two tables"))
    assert (found.label, found.confidence, found.classifier) == ("sql", 0.8, "llm")
    doubtful = await of_model.classify(Task.chat("join two tables"))
    assert (doubtful.label, doubtful.confidence) == ("code", 0.4)


async def test_the_schema_admits_the_policys_tasks_and_other_alone() -> None:
    """The model is bound to the labels of the policy by a schema, and shown the request as data."""
    asked = Asked(answer("sql", 1))
    await classifier(asked).classify(Task.chat("join two tables"))
    (body,) = asked.bodies
    schema = body["response_format"]["json_schema"]["schema"]
    fits = jsonschema_rs.validator_for(schema).is_valid
    assert all(fits({"label": label, "confidence": 0.5}) for label in ("sql", "code", "other"))
    assert not fits({"label": "poem", "confidence": 0.5})
    assert not fits({"label": "sql"})
    assert body["messages"][-1] == {"role": "user", "content": "<request>\njoin two tables\n</request>"}


@pytest.mark.parametrize(
    "said",
    [
        "",
        "sql",
        "[]",
        "{",
        '{"label": "sql"}',
        '["label", "sql"]',
        answer("poem", 0.9),
        answer("sql", "very"),
        '{"label": "sql", "confidence": true}',
        answer("sql", 90),
        answer("sql", -0.1),
        answer(["sql"], 0.9),
        answer(None, None),
        '{"label": "sql", "confidence": NaN}',
        '{"a": ' * 5000,
    ],
)
async def test_what_is_no_answer_is_an_abstention(said: str, caplog: pytest.LogCaptureFixture) -> None:
    """A model that answers something else has no say, and its answer does not reach the log."""
    with caplog.at_level(logging.WARNING):
        assert (await classifier(Asked(said)).classify(Task.chat("x"))).abstained
    assert [record.getMessage() for record in caplog.records] == ["model small gave no label when asked for one"]


async def test_other_is_an_abstention_however_sure_the_model_is() -> None:
    """That a request is none of the tasks is no label to route by."""
    assert (await classifier(Asked(answer("other", 1.0))).classify(Task.chat("x"))).abstained


@pytest.mark.parametrize(
    "said", ['```json\n{"label": "sql", "confidence": 0.5}\n```', 'Sure: {"label":"sql","confidence":0.5}.']
)
async def test_an_answer_may_be_wrapped(said: str) -> None:
    """Servers that do not know the schema wrap JSON in a fence or in prose; it counts all the same."""
    assert (await classifier(Asked(said)).classify(Task.chat("x"))).label == "sql"


async def test_nothing_is_asked_that_is_known_or_blank() -> None:
    """A caller's own hint, or a blank message, costs no call."""
    asked = Asked(answer("sql", 1))
    assert (await classifier(asked).classify(Task.chat("x", hint="code"))).abstained
    assert (await classifier(asked).classify(Task.chat(" \n"))).abstained
    assert not asked.bodies


async def test_of_a_long_paste_start_and_end_are_shown() -> None:
    """A long message costs no more than a page, and both its ends are seen."""
    asked = Asked(answer("sql", 1))
    await classifier(asked).classify(Task.chat("first " + "x" * 100_000 + " last"))
    shown = asked.bodies[0]["messages"][-1]["content"]
    assert "first" in shown
    assert "last" in shown
    assert len(shown) < HEAD_CHARS + TAIL_CHARS + 100


async def test_a_model_that_fails_is_passed_over_and_asked_again() -> None:
    """A failure is the chain's to pass over, and is not remembered; an answer is, an abstention included."""
    asked = Asked("lost", answer("other", 0.9))
    cached = CachedClassifier(Chain([classifier(asked)]))
    first = await cached.classify(Task.chat("x"))
    assert (first.abstained, first.failed) == (True, "timeout")
    again = await cached.classify(Task.chat("x"))
    assert (again.abstained, again.failed, again.cached) == (True, "", False)
    assert (await cached.classify(Task.chat("x"))).cached
    assert len(asked.bodies) == 2


async def test_a_hint_does_not_hide_the_label_from_who_gives_none() -> None:
    """A request with a hint, for which nothing was asked, leaves nothing behind for an equal one without."""
    asked = Asked(answer("sql", 0.9))
    cached = CachedClassifier(Chain([classifier(asked)]))
    assert (await cached.classify(Task.chat("x", hint="code"))).abstained
    assert (await cached.classify(Task.chat("x"))).label == "sql"


def test_the_version_follows_what_is_asked() -> None:
    """Another model, other labels or another limit are another classifier."""
    asked = Asked("")
    versions = {
        LlmClassifier("small", ["sql"], asked).version,
        LlmClassifier("large", ["sql"], asked).version,
        LlmClassifier("small", ["sql", "code"], asked).version,
        LlmClassifier("small", ["sql"], asked, max_confidence=0.9).version,
    }
    assert len(versions) == 4
    assert LlmClassifier("small", ["sql"], asked).version in versions
