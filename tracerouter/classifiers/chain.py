"""Several classifiers, asked in turn until one is sure."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from tracerouter.errors import ProviderError
from tracerouter.types import Classification

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracerouter.protocols import Classifier
    from tracerouter.types import Task

_log = logging.getLogger(__name__)


class Chain:
    """Asks classifiers in turn and stops at the first that is sure.

    When none is, the most confident answer stands; of equals the last, which was asked because the others
    could not tell. Risks are the union over all that were asked. A classifier that raises is logged by its
    class and passed over: a broken classifier degrades a feature, not the service.

    Args:
        classifiers: Cheapest first.
        sure: The confidence (a probability) from which no further classifier is asked.
    """

    def __init__(self, classifiers: Sequence[Classifier], sure: float = 0.7) -> None:
        self._classifiers = tuple(classifiers)
        self._sure = sure

    async def classify(self, task: Task) -> Classification:
        """Return the answer that stands; an abstaining one when nobody could answer."""
        best = Classification()
        risks: frozenset[str] = frozenset()
        failed = ""
        for classifier in self._classifiers:
            try:
                found = await classifier.classify(task)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next one may still know
                # neither message nor traceback: both may quote the prompt
                _log.warning("%s failed with %s", type(classifier).__name__, type(error).__name__)
                failed = error.reason if isinstance(error, ProviderError) else type(error).__name__
                continue
            risks |= found.risks
            if found.confidence >= best.confidence:
                best = found
            if found.confidence >= self._sure:
                return replace(best, risks=risks)  # good enough to be remembered, whoever failed before
        return replace(best, risks=risks, failed=failed)
