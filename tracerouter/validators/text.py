"""Whether an answer says anything, says all of it, and does not decline to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tracerouter.types import Check, Failure, Reason

if TYPE_CHECKING:
    from tracerouter.types import Completion, Task

_OPENING: Final = 300
"""Characters in which a refusal shows; further on, the same words are usually part of an answer."""

_SORRY: Final = (
    r"(?:i['’]?m|i am|we are|we['’]?re) (?:very |so |really |truly )?(?:sorry|afraid)|sorry|unfortunately|regrettably"
    r"|(?:my |our )?(?:sincere )?apologies|(?:i|we) apologi[sz]e"
)
_AS_AN_AI: Final = r"as an? (?:ai|(?:ai |large )?language model|assistant)[^.,]{0,40}"
_CANNOT: Final = (
    r"(?:i|we) (?:can ?not|can['’]?t|won['’]?t(?: be able to)?|will not(?: be able to)?"
    r"|(?:am|are) (?:not able|unable|not going) to|do(?:n['’]?t| not) feel comfortable)"
    r"|(?:i['’]?m|we['’]?re) (?:not able to|unable to|not going to|not comfortable)"
)
_HELP: Final = (
    r"help(?! but\b| \w+ing\b)|assist|comply|provide|do (?:that|this)|fulfil+|support|create|creating|generate|write"
    r"|writing|answer|discuss|engage|share|continue"
    r"|give (?:you|out|(?:\w+ )?(?:advice|information|instructions))|complete"
    r"|participate|offer (?:you|(?:\w+ ){0,2}(?:advice|assistance|guidance|help|instructions|opinions?))|process"
)
_REFUSALS: Final = re.compile(
    rf"^\W*(?:(?:{_SORRY})(?:\W+(?:but )?|[^.!?\n]{{1,80}}?\bbut ))?(?:(?:{_AS_AN_AI}),\s*)?"
    rf"(?:(?:{_CANNOT}) (?:\w+ ){{0,2}}?(?:{_HELP})\b"
    r"|(?:i|we) (?:must|have to) decline\b"
    r"|(?:this|that|your) request (?:violates|goes against|is against)\b)",
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
