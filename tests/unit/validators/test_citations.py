"""Whether an answer cites sources, and only such as it was given."""

from __future__ import annotations

import pytest

from tracerouter.types import Completion, Task
from tracerouter.validators import Citations

BRACKETS = "Answer from these.\n[1] The first.\n[2] The second.\n[3] The third."
HEADING = "1. Be brief.\n2. Be kind.\n9. Be right.\n\nSources:\n\n1. The first.\n2) The second.\n(3) The third."
WORDS = "Source 1: The first.\nDocument #2 - The second.\n> Source [3]: The third."
NONE = "Cite what you know, in 3 sentences.\n1. First this.\n2. Then that."


async def told(answer: str, prompt: str = BRACKETS, pattern: str | None = None) -> list[str]:
    validator = Citations(pattern) if pattern else Citations()
    check = await validator.validate(Task.chat(prompt), Completion.of(answer, model="m"))
    assert check.status == ("failed" if check.failures else "passed")
    assert not any(answer and answer in failure.message for failure in check.failures)
    return [failure.told for failure in check.failures]


@pytest.mark.parametrize("prompt", [BRACKETS, HEADING, WORDS])
@pytest.mark.parametrize("answer", ["It is so [1].", "So[2].", "So [1, 3].", "So [1-3], and so [2][3].", "So【3】."])
async def test_sources_that_there_are_may_be_cited(prompt: str, answer: str) -> None:
    """Each usual form of citation passes, and each usual way to number sources is understood."""
    assert await told(answer, prompt) == []


@pytest.mark.parametrize("prompt", [BRACKETS, HEADING, WORDS])
@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("It is so [4].", ["citations_unknown $[9:12]"]),
        ("So [1, 7]. And so [2].", ["citations_unknown $[3:9]"]),
        ("So [2-5] [0]", ["citations_unknown $[3:8]", "citations_unknown $[9:12]"]),
    ],
)
async def test_a_source_that_there_is_not_fails_at_its_place(prompt: str, answer: str, found: list[str]) -> None:
    """A number that no source has fails, with the characters where it is cited."""
    assert await told(answer, prompt) == found


@pytest.mark.parametrize(
    "answer",
    ["It is so.", "", "See [the page](http://127.0.0.1/1) or [2](http://127.0.0.1/2).", "`a[1]`", "```\na[1]\n```"],
)
async def test_an_answer_without_a_citation_fails(answer: str) -> None:
    """Text without a citation fails; links and code are none."""
    assert await told(answer) == ["citations_missing $"]


async def test_without_numbered_sources_any_number_will_do() -> None:
    """Where the prompt numbers no sources, only their absence can be told; a list of steps is no list of sources."""
    assert await told("It is so [7].", NONE) == []
    assert await told("It is so.", NONE) == ["citations_missing $"]


async def test_a_pattern_of_ones_own() -> None:
    """A policy's own pattern says what a citation is; the numbers in its group are looked up."""
    assert await told("So (Smith 2020).", pattern=r"\([A-Z]\w+ \d{4}\)") == ["citations_unknown $[3:15]"]
    assert await told("So (Smith 2020).", NONE, pattern=r"\([A-Z]\w+ \d{4}\)") == []
    assert await told("So (source 2).", pattern=r"\(source (\d+)\)") == []
    assert await told("So (source 5).", pattern=r"\(source (\d+)\)") == ["citations_unknown $[3:13]"]
    assert await told("So (see above).", pattern=r"\((see) above\)") == []
    assert await told("a" * 5000, pattern="(a|aa)+$b") == ["citations_timeout $"]


async def test_what_the_assistant_said_before_is_no_source() -> None:
    """Numbers in an earlier answer are no sources."""
    talk = [
        {"role": "user", "content": BRACKETS},
        {"role": "assistant", "content": "[9] is what I say"},
        {"role": "tool", "content": "[4] The fourth."},
        {"role": "user", "content": "And?"},
    ]
    for cited, status in (("[9]", "failed"), ("[4]", "passed")):
        check = await Citations().validate(Task.parse({"messages": talk}), Completion.of(cited, model="m"))
        assert check.status == status
