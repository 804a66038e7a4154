"""Whether an answer says anything, says all of it, and does not decline to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tracerouter.types import Check, Failure, Reason

if TYPE_CHECKING:
    from tracerouter.types import Completion, Task

_OPENING: Final = 300
"""Characters in which a refusal shows; further on, the same words are usually part of an answer."""

_APOLOGY: Final = r"(?:(?:i['’]?m|i am|we are|we['’]?re)\s+(?:very |so |really )?(?:sorry|afraid)|sorry|apologies|i apologi[sz]e|unfortunately)"
_CANNOT: Final = (
    r"(?:i|we)\s+(?:can\s?not|can['’]?t|won['’]?t|will not|am not able to|['’]?m not able to|am unable to|['’]?m unable to"
    r"|must decline|have to decline|cannot and will not|do not feel comfortable|don['’]?t feel comfortable)"
)
_HELPING: Final = (
    r"(?:help|assist|comply|provide|do that|do this|fulfil+|support|create|generate|write|answer|discuss|engage|give|share"
    r"|continue|complete|participate|offer|process|with that|with this)"
)
_REFUSALS: Final = re.compile(
    rf"^\W*(?:{_APOLOGY}[,.:;!\s—-]*(?:but\s+)?)?(?:as an? (?:ai|large language model|language model|ai language model|assistant)[^.]{{0,40}},\s*)?"
    rf"(?:{_CANNOT}\s+(?:\w+\s+){{0,2}}?{_HELPING}\b|(?:i|we) must decline\b|(?:i|we) have to decline\b"
    rf"|(?:this|that|your) request (?:violates|goes against|is against)\b"
    rf"|(?:i['’]?m|i am) (?:not able|unable) to (?:\w+\s+){{0,2}}?{_HELPING}\b"
    rf"|it (?:would be|is|would not be) (?:not |in)?appropriate for me\b)",
    re.IGNORECASE,
)


class Empty:
    """The answer must say something, or call a tool."""

    name = "empty"
    reads_text = False
    """What is empty has not begun to stream, so nothing need be held back for it."""

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Look at text and tool calls."""
        if completion.text.strip() or completion.tool_calls or completion.refusal:
            return Check(self.name, "passed")
        return Check(self.name, "failed", (Failure(Reason.EMPTY, "the answer is empty"),))


class Truncated:
    """The answer must not have been cut by the token limit."""

    name = "truncated"
    reads_text = True

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Look at the finish reasons."""
        if "length" not in completion.finish_reasons:
            return Check(self.name, "passed")
        message = "the answer was cut off at the limit on its tokens"
        return Check(self.name, "failed", (Failure(Reason.TRUNCATED, message),))


class Refusal:
    """The model must not decline.

    Seen by the provider's own mark, by a content filter's finish reason, or by how the text opens (English). A text
    that merely tells of inability further on is no refusal.
    """

    name = "refusal"
    reads_text = True

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Look at mark, finish reasons and opening."""
        declined = (
            completion.refusal
            or "content_filter" in completion.finish_reasons
            or _REFUSALS.search(completion.text[:_OPENING])
        )
        if not declined:
            return Check(self.name, "passed")
        return Check(self.name, "failed", (Failure(Reason.REFUSAL, "the model declined to answer"),))
