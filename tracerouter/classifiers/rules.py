"""Labels by an owner's regular expressions."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

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
    """

    def __init__(self, tasks: Mapping[str, Sequence[str]]) -> None:
        self._tasks = {label: [re.compile(each, re.IGNORECASE) for each in sources] for label, sources in tasks.items()}
        stated = repr([(label, *patterns) for label, patterns in tasks.items()])
        self.version = hashlib.sha256(stated.encode()).hexdigest()[:12]

    async def classify(self, task: Task) -> Classification:
        """Return the first label that matches."""
        text = task.text[:LABEL_CHARS]
        label = next((label for label, patterns in self._tasks.items() if any(p.search(text) for p in patterns)), None)
        return Classification(
            label=label or "other", confidence=1.0 if label else 0.0, classifier="rules", version=self.version
        )
