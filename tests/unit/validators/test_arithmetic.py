"""Calculations in an answer are done again; what can't be read for sure is left alone."""

# ruff: noqa: RUF001 - so models write signs and dashes

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracerouter.types import Check, Completion, Reason, Task
from tracerouter.validators import Arithmetic


async def checked(text: str) -> Check:
    return await Arithmetic().validate(Task.chat("How much is it?"), Completion.of(text, model="m"))


@pytest.mark.parametrize(
    "text",
    [
        "12 * 7 = 84",
        "So 12 × 7 = 84, and 5 + 5 = 10.",
        "84 = 12 * 7",
        "x = 12 * 7 = 84",
        "(3 + 4) * 2 = 7 * 2 = 14",
        "1 + 2 = 3 = 4 - 1",
        "12 x 7 = 84, or 12x7=84",
        "2^10 = 1024 and 2**10 = 1,024",
        "-2^2 = -4",
        "10 % 3 = 1",
        "7 - -3 = 10",
        "-5 + 3 = -2",
        "(12 * 7 = 84)",
        "12 * 7 = 84 (see above)",
        "(1 + 2) × (3 + 4) = 21 apples",
        # money and thousands, in either notation
        "$1,200 × 12 = $14,400",
        "USD 12 * 7 = USD 84",
        "€1.200 × 12 = €14.400,00",
        "1’200 + 1 = 1’201",
        "1,00,000 * 2 = 2,00,000",
        "1.234 + 1 = 1.235",
        # percent
        "15% of 80 = 12",
        "80 * 15% = 12",
        "1/8 = 12.5%",
        # rounded to the digits shown
        "10 / 3 = 3.33",
        "2/3 = 0.67",
        "2/3 = 0.666...",
        "10 / 3 = 3.333…",
        "7 / 2 = 4",
        "5 / 2 = 2",
        "0.1 + 0.2 = 0.3",
        # Markdown and LaTeX
        "12 * 7 = **84**, **3 + 4 = 7**",
        "1. 12 * 7 = 84\n2) 12 - 7 = 5\n- 5 + 3 = 8\n* 5 + 3 = 8",
        r"\( 12 \times 7 = 84 \) and $12 \cdot 7 = 84$ and \[12 \div 4 = 3\]",
    ],
)
async def test_right_calculations_pass(text: str) -> None:
    """What comes out passes, however numbers and operators are written."""
    check = await checked(text)
    assert (check.status, check.failures) == ("passed", ())


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("12 * 7 = 85", ["$[0:11]"]),
        ("So 12 × 7 = 84, and 5 + 5 = 11.", ["$[20:30]"]),
        ("12 * 7 = **85**", ["$[0:13]"]),
        ("$1,200 × 12 = $14,500", ["$[1:21]"]),
        ("10 / 3 = 3.34", ["$[0:13]"]),
        ("7 / 2 = 3", ["$[0:9]"]),
        ("2/3 = 0.66", ["$[0:10]"]),
        ("2/3 = 0.65...", ["$[0:10]"]),
        ("15% of 80 = 13", ["$[0:14]"]),
        ("1/8 = 12.6%", ["$[0:11]"]),
        ("10 % 3 = 2", ["$[0:10]"]),
        ("2^10 = 1000", ["$[0:11]"]),
        ("x = 12 * 7 = 85", ["$[4:15]"]),
        ("84 = 12 * 8", ["$[0:11]"]),
        ("- 5 + 3 = 2", ["$[2:11]"]),
        ("(12 * 7 = 85)", ["$[1:12]"]),
        ("84 - 4 = 80 = 40 * 3", ["$[9:20]"]),
        ("1 + 1 = 2\n1 + 1 = 3\n1 + 2 = 4", ["$[10:19]", "$[20:29]"]),
    ],
)
async def test_wrong_calculations_fail_at_their_place(text: str, paths: list[str]) -> None:
    """What does not come out fails under its code, with the characters where it stands, and none of them quoted."""
    check = await checked(text)
    assert [(one.code, one.detail, one.path) for one in check.failures] == [
        (Reason.CHECK_FAILED, "arithmetic", path) for path in paths
    ]
    assert check.status == "failed"
    assert not any(digit in one.message for one in check.failures for digit in "05678")


@pytest.mark.parametrize(
    "text",
    [
        "no sums",
        "total = 84",
        "2x + 3 = 7",
        "x + 2 * 3 = 5",
        "f(2) + 3 * 4 = 15",
        "Q1 + Q2 = 4",
        "total_2 + 3 = 6",
        "5 * 2 = 11 + y",
        "5 * 2 = 11y",
        "2 * 3 = x",
        "3 kg * 4 = 13",
        "3 apples + 4 = 9",
        "half of 12 * 2 = 13",
        "19 / 5 = 3 remainder 4",
        "19 / 5 = 3 R 4",
        "12 * 7 = 85 million",
        "100 + 10% = 110",
        "10 / 3 ≈ 3.4",
        "a >= 3 + 2, 2 + 2 == 5, 17 // 5 = 3",
        "5 / 0 = 7",
        "9^9999 = 3",
        "2^0.5 = 1.5",
        "0^-1 = 2",
        "1,2,3 + 1 = 4",
        "1.2.3 + 4 = 9",
        "2010–2020 = 11",
        "2(3 + 4) = 15",
        "```\n1 + 1 = 3\n```",
    ],
)
async def test_what_can_not_be_read_is_skipped(text: str) -> None:
    """Variables, units, remainders, code and what has two readings are no reason to turn an answer down."""
    assert (await checked(text)).status == "skipped"


NUMBERS = st.integers(0, 10**6) | st.decimals(0, 1000, places=2).map(abs)


@given(NUMBERS, st.sampled_from("+-*/"), NUMBERS, st.integers(0, 4))
async def test_a_rounded_result_passes_and_the_next_one_does_not(a: object, op: str, b: object, places: int) -> None:
    """The result, rounded to any number of digits, passes; one more in the last digit fails."""
    left, right = Fraction(str(a)), Fraction(str(b))
    if op == "/" and not right:
        return
    exact = {"+": left + right, "-": left - right, "*": left * right, "/": left / right if right else left}[op]
    shown = round(exact, places)
    sign = "-" if shown < 0 else ""
    digits = f"{abs(int(shown * 10**places)):0{places + 1}}"
    whole, parts = (digits[:-places], f".{digits[-places:]}") if places else (digits, "")
    assert (await checked(f"{a} {op} {b} = {sign}{whole}{parts}")).status == "passed"
    assert (await checked(f"{a} {op} {b} = {sign}{int(whole) + 2}{parts}")).status == "failed"


@pytest.mark.parametrize(
    "text",
    [
        "1+" * 50_000 + "1 = 3",
        "(" * 50_000 + "1 = 3",
        "9" * 100_000 + " + 1 = 3",
        "9^999*" * 20 + "9^999 = 3",
        "1 " * 100_000 + "=",
        "**a " * 50_000 + "=",
        "-" * 99 + "1 = 3",
        "1 = " * 50_000,
    ],
)
async def test_no_answer_takes_long(text: str) -> None:
    """Whatever a model writes, it is looked through in bounded time, and nothing is raised."""
    began = time.process_time()
    await checked(text)
    assert time.process_time() - began < 1
