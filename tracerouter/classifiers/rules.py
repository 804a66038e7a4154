"""Labels by an owner's regular expressions."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from tracerouter.errors import ConfigError
from tracerouter.types import Classification

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracerouter.types import Task

LABEL_CHARS = 20_000
"""How much of a request's text the label patterns see (characters): what is pasted mostly comes after it."""


class RulesClassifier:
    """Matches patterns of the policy file, without regard to case.

    The first label with a matching pattern wins, with confidence 1.0: an owner's rule is a statement, not
    a guess. Labels are tried in the order of `tasks`, on the first :data:`LABEL_CHARS` of the last user
    message; where none matches, it abstains.

    Args:
        tasks: Patterns by label.

    Raises:
        ConfigError: A pattern is no regular expression; names label, pattern and position.
    """

    def __init__(self, tasks: Mapping[str, Sequence[str]]) -> None:
        self._tasks = {label: [_pattern(label, each) for each in sources] for label, sources in tasks.items()}
        stated = repr([(label, *patterns) for label, patterns in tasks.items()])
        self.version = hashlib.sha256(stated.encode()).hexdigest()[:12]

    async def classify(self, task: Task) -> Classification:
        """Return the first label that matches."""
        text = task.text[:LABEL_CHARS]
        label = next((label for label, patterns in self._tasks.items() if _any(patterns, text)), None)
        return Classification(
            label=label or "other", confidence=1.0 if label else 0.0, classifier="rules", version=self.version
        )


def _pattern(label: str, source: str) -> re.Pattern[str]:
    try:
        return re.compile(source, re.IGNORECASE)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos}"
        msg = f"task {label!r}: the pattern {source!r} is no regular expression: {error.msg}{where}"
        raise ConfigError(msg) from None


def _any(patterns: list[re.Pattern[str]], text: str) -> bool:
    return any(pattern.search(text) for pattern in patterns)
