"""Labels and risks by an owner's regular expressions."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from tracerouter.errors import ConfigError
from tracerouter.types import Classification, content_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracerouter.types import Task

LABEL_CHARS = 20_000
"""How much of a request's text the label patterns see (characters): what is pasted mostly comes after it."""


class RulesClassifier:
    """Matches patterns of the policy file, without regard to case.

    The first label with a matching pattern wins, with confidence 1.0: an owner's rule is a statement, not
    a guess. Labels are tried in the order of `tasks`, on the first :data:`LABEL_CHARS` of the last user
    message. Risks are all those with a matching pattern anywhere in what the user said, whether or not a
    label is found; without a label the classifier abstains.

    Args:
        tasks: Patterns by label.
        risks: Patterns by risk.

    Raises:
        ConfigError: A pattern is no regular expression; names label or risk, pattern and position.
    """

    def __init__(self, tasks: Mapping[str, Sequence[str]], risks: Mapping[str, Sequence[str]]) -> None:
        self._tasks = _compiled("task", tasks)
        self._risks = _compiled("risk", risks)
        stated = repr([[(name, *patterns) for name, patterns in part.items()] for part in (tasks, risks)])
        self.version = hashlib.sha256(stated.encode()).hexdigest()[:12]

    async def classify(self, task: Task) -> Classification:
        """Return the first label that matches and every risk that does."""
        text = task.text[:LABEL_CHARS]
        label = next((label for label, patterns in self._tasks.items() if _any(patterns, text)), None)
        return Classification(
            label=label or "other",
            confidence=1.0 if label else 0.0,
            risks=self._risks_of(task),
            classifier="rules",
            version=self.version,
        )

    def _risks_of(self, task: Task) -> frozenset[str]:
        if not self._risks:
            return frozenset()
        said = "\n".join(content_text(m.get("content")) for m in task.messages if m["role"] == "user")
        return frozenset(risk for risk, patterns in self._risks.items() if _any(patterns, said))


def _compiled(kind: str, named: Mapping[str, Sequence[str]]) -> dict[str, list[re.Pattern[str]]]:
    return {name: [_pattern(kind, name, each) for each in sources] for name, sources in named.items()}


def _pattern(kind: str, name: str, source: str) -> re.Pattern[str]:
    try:
        return re.compile(source, re.IGNORECASE)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos}"
        msg = f"{kind} {name!r}: the pattern {source!r} is no regular expression: {error.msg}{where}"
        raise ConfigError(msg) from None


def _any(patterns: list[re.Pattern[str]], text: str) -> bool:
    return any(pattern.search(text) for pattern in patterns)
