"""Risks, each with its evidence: by the owner's patterns and labels, and by what is packaged."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tracerouter.classifiers.words import keys, risky_words
from tracerouter.types import Evidence, content_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tracerouter.policy.model import RiskPolicy
    from tracerouter.protocols import Classifier
    from tracerouter.types import Classification, Task

PIECE: Final = 20_000
"""Characters that are looked through in one go; between two pieces other requests have their turn."""
_OVERLAP: Final = 600
"""Characters of the next piece that are seen too, so that what begins in one piece may end in the next."""


class RiskClassifier:
    """Adds a request's risks to what another classifier says of it.

    Only risks that the policy has a rule for are looked for, in all that the user said: by the rule's ``match``, by its
    ``tasks``, and, unless it says ``detect: false``, by the packaged detection: personal data by its form, the legal,
    financial, medical and security risks by words. Nothing packaged can tell what is ``user_facing``.

    Args:
        inner: The other classifier; risks that it finds itself are kept.
        risks: The policy's rules by risk.
    """

    def __init__(self, inner: Classifier, risks: Mapping[str, RiskPolicy]) -> None:
        self._inner = inner
        self._patterns = {name: [re.compile(each, re.IGNORECASE) for each in one.match] for name, one in risks.items()}
        self._tasks = {name: frozenset(one.tasks) for name, one in risks.items()}
        self._packaged = [name for name, one in risks.items() if one.detect]

    async def warm(self) -> None:
        """Load the forms of personal data, if they are looked for, so that the first request need not wait for them."""
        if "pii" in self._packaged:
            await asyncio.to_thread(_personal_data, "")

    async def classify(self, task: Task) -> Classification:
        """Return the other classifier's answer with all risks."""
        found = await self._inner.classify(task)
        if not self._patterns:
            return found
        evidence = await self._evidence(task, task.hint or found.label)
        return replace(found, risks=found.risks | {one.risk for one in evidence}, evidence=evidence)

    async def _evidence(self, task: Task, label: str) -> tuple[Evidence, ...]:
        said = "\n".join(content_text(m.get("content")) for m in task.messages if m["role"] == "user")
        counted: Counter[tuple[str, str]] = Counter()
        for at in range(0, len(said), PIECE):
            if at:
                await asyncio.sleep(0)
            counted.update(self._detected(said[at : at + PIECE + _OVERLAP]))
        for risk, patterns in self._patterns.items():
            counted[risk, "match"] += sum(pattern.search(said) is not None for pattern in patterns)
            counted[risk, "task"] += label in self._tasks[risk]
        return tuple(Evidence(risk, kind, times) for (risk, kind), times in sorted(counted.items()) if times)

    def _detected(self, text: str) -> Iterator[tuple[str, str]]:
        known = keys(text)
        for risk in self._packaged:
            found = _personal_data(text) if risk == "pii" else risky_words(risk, text, known, PIECE)
            for kind in found.elements():
                yield risk, kind


def _personal_data(text: str) -> Counter[str]:
    from tracerouter.classifiers.pii import personal_data  # noqa: PLC0415 - loads datafog, 0.2 s

    return personal_data(text, PIECE)
