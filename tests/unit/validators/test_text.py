"""Whether an answer says anything, says all of it, and does not decline to."""
# ruff: noqa: RUF001 - models write curly apostrophes

from __future__ import annotations

from typing import Any

import pytest

from tracerouter.types import Check, Completion, Reason, Task
from tracerouter.validators import Empty, Refusal, Truncated

TASK = Task.chat("Write a limerick about Kent.")

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t help with that.",
    "Sorry, I can't assist with this request.",
    "I cannot provide instructions for that.",
    "I can not comply with this request.",
    "I’m unable to help you pick a lock.",
    "I am not able to discuss that topic.",
    "Unfortunately, I cannot generate that kind of content.",
    "As an AI language model, I cannot give legal advice.",
    "I'm sorry. As an AI, I won't write that.",
    "I apologize, but I can't fulfill this request.",
    "I must decline to write this.",
    "We are sorry, but we cannot process requests of this kind.",
    "I don't feel comfortable writing that story.",
    "Your request violates our usage policies.",
    "This request goes against the content guidelines.",
    "I'm afraid I can't do that.",
    "**I'm sorry**, but I will not create such an image.",
    "I’m really sorry, but I’m not able to share personal data.",
    "I won’t be able to help with that.",
    "My apologies, but I cannot answer that.",
    "I'm not going to help with that.",
    "I'm very sorry that you feel this way, but I can't help you with hurting yourself.",
    "\n\n“I can't continue with this conversation.”",
]

ANSWERS = [
    "Unfortunately, the train is late; the next one leaves at noon.",
    "I cannot recommend this book enough: every chapter is a joy.",
    "I can't help but admire the way the poem ends.",
    "I can’t help laughing whenever I read it.",
    "Sorry for the delay! Here is the table that you asked for.",
    "I'm sorry to hear about your loss. Here is a draft of the letter.",
    "I'm afraid of spiders, said the giant, and hid behind the door.",
    "I can't wait to see what you make of it. The three steps are below.",
    "I cannot stress enough that backups come first.",
    "We cannot give more than 110 percent, the coach joked.",
    "As an AI researcher, she cannot share her weights; that is the plot.",
    "As an assistant professor you will write many reviews.",
    "I won't lie: the second option is better.",
    "Apologies if this is long. The answer is 42.",
    "Dear Sir, I must decline your kind invitation, for I am away in May. Yours, Anna",
    "This request returns 404, because the path has no leading slash.",
    "Your request was processed; its number is 17.",
    "Unable to connect: the server's certificate has expired. Renew it so.",
    "Cannot read properties of undefined means that `user` was never set.",
    '{"answer": "I can\'t help with that"}',
    "The customer says: I'm sorry, but I can't help with that.",
    "I don't feel comfortable in heels, so these are flat shoes: the red ones.",
    "I can't offer a better price than 20 euros, the trader said. So Tom left.",
    "I will not give up, she wrote, and neither should you.",
]


def said(text: str | None, **facts: Any) -> Completion:
    message = {"role": "assistant", "content": text, **facts.pop("message", {})}
    return Completion({"choices": [{"message": message, "finish_reason": facts.pop("finish_reason", "stop")}]})


async def judged(answer: Completion) -> list[str]:
    checks: list[Check] = [await check.validate(TASK, answer) for check in (Empty(), Truncated(), Refusal())]
    return [failure.code for check in checks for failure in check.failures]


@pytest.mark.parametrize("text", REFUSALS)
async def test_a_refusal_is_seen(text: str) -> None:
    """A text that opens by declining is a refusal."""
    assert await judged(said(text)) == [Reason.REFUSAL]


@pytest.mark.parametrize("text", ANSWERS)
async def test_an_answer_is_no_refusal(text: str) -> None:
    """A text that only sounds like one is an answer."""
    assert await judged(said(text)) == []


async def test_a_refusal_further_on_is_part_of_an_answer() -> None:
    """Only the opening is looked at."""
    assert await judged(said(f"{'The log reads as follows. ' * 20}I can't help with that.")) == []


async def test_a_refusal_is_seen_by_its_marks() -> None:
    """The provider's own mark and its content filter's are refusals, in any language."""
    assert await judged(said(None, message={"refusal": "Das geht nicht."})) == [Reason.REFUSAL]
    assert await judged(said("Once upon a", finish_reason="content_filter")) == [Reason.REFUSAL]


@pytest.mark.parametrize("text", [None, "", "  \n\t\u00a0 ", []])
async def test_an_empty_answer_fails(text: Any) -> None:
    """No text at all, or only white space, is empty."""
    assert await judged(said(text)) == [Reason.EMPTY]


async def test_what_is_not_text_is_not_empty() -> None:
    """A tool call without text says something, and so does a list of parts."""
    assert await judged(said(None, message={"tool_calls": [{"id": "1"}]})) == []
    assert await judged(said([{"type": "text", "text": "Yes."}])) == []  # type: ignore[arg-type]


async def test_a_cut_off_answer_is_truncated() -> None:
    """An answer that ended at the limit on its tokens is truncated, whichever choice it is."""
    assert await judged(said("Once upon a", finish_reason="length")) == [Reason.TRUNCATED]
    choices = [{"message": {"content": "a"}, "finish_reason": reason} for reason in ("stop", "length")]
    assert await judged(Completion({"choices": choices})) == [Reason.TRUNCATED]
    assert await judged(said("Done.", finish_reason=None)) == []


def test_what_holds_a_stream_back() -> None:
    """Only emptiness can be told before the answer is whole."""
    assert [check.reads_text for check in (Empty(), Truncated(), Refusal())] == [False, True, True]


async def test_a_long_opening_takes_no_time() -> None:
    """A text made to match slowly is judged at once: only so much of it is looked at."""
    assert await judged(said("I can't " + "really " * 200_000)) == []
    assert await judged(said("*" * 1_000_000)) == []
