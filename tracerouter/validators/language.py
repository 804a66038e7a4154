"""Whether an answer is in a language that is wanted (extra ``language``)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from tracerouter.errors import ConfigError, nearest
from tracerouter.types import Check
from tracerouter.validators.prose import only_calls, without_code, wrong

if TYPE_CHECKING:
    from tracerouter.types import Completion, Task

SURE: Final = 0.8
"""The probability from which a language counts as recognised; below it nothing is said."""

_NO_LANGUAGE: Final = "zxx"
_FEWEST_LETTERS: Final = 20
_LOOKED_AT: Final = 1_000
"""Characters that the detector sees, at most: half a millisecond."""


class Language:
    """The answer must be in one of some languages; code in it is not looked at.

    Where the language can't be told for sure, as in short answers, lists and names, the check is ``skipped``: an
    answer is not turned down on a guess.

    Args:
        wanted: ISO 639 codes, such as ``en`` and ``de``.

    Raises:
        ConfigError: A code is not known, or the extra is not installed.
    """

    name = "language"
    reads_text = True

    def __init__(self, *wanted: str) -> None:
        self._detector = _detector()
        self._wanted = frozenset(wanted)
        for code in wanted:
            if code not in self._detector.labels:
                known = sorted(self._detector.labels)
                msg = f"validate: language {code!r} is not known{nearest(code, known)}; known are {', '.join(known)}"
                raise ConfigError(msg)

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Recognise the language."""
        text = "" if only_calls(completion) else without_code(completion.text)[:_LOOKED_AT]
        if sum(map(str.isalpha, text)) < _FEWEST_LETTERS:
            return Check(self.name, "skipped")
        found, probability = self._detector.classify(text)
        if found in self._wanted:
            return Check(self.name, "passed")
        if probability < SURE or found == _NO_LANGUAGE:
            return Check(self.name, "skipped")
        message = f"the answer must be in {' or '.join(sorted(self._wanted))}"
        return Check(self.name, "failed", (wrong(self.name, message),))


@cache
def _detector() -> Any:
    """Load the model that the package carries: 2 seconds, once a process."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 - extra `language`
    except ImportError:
        msg = "validate: language needs the extra `language`: pip install 'tracerouter[language]'"
        raise ConfigError(msg) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
