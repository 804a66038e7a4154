"""Whether the calculations in an answer are right: ``12 * 7 = 84`` is done again, exactly.

Only what can be read for sure is judged. A calculation with a variable, a unit in the middle or a number that can't be
read is passed over, for a right answer that is turned down costs a second one.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from tracerouter.types import Check
from tracerouter.validators.prose import MOST_FAILURES, only_calls, without_fences, wrong

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracerouter.types import Completion, Failure, Task

_LOOKED_AT: Final = 20_000
"""Characters of an answer that are read, at most."""
_LONGEST_NUMBER: Final = 30
_MOST_TOKENS: Final = 100
"""Of one side of an equation."""
_MOST_BITS: Final = 4_000
"""Of a numerator or denominator on the way."""

_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\u00a0]+|\b(?:USD|EUR|GBP|CHF|JPY)\b|[$€£¥]|\\[()\[\]])   # money, and LaTeX's brackets
      |(?P<number>(?:\d(?:[\d.,'’\u00a0\u202f]*\d)?|(?<![\d.])\.\d+))
      |(?P<equals>(?<![=<>!:+*/%^-])=(?![=>~]))
      |(?P<op>\*\*|\\times\b|\\cdot\b|\\div\b|(?<=\d)[xX](?=\d)|(?<=\s)[xX](?=\s)|\bof\b|(?<=\s)–(?=[\s\d])|[-+−*×·⋅/÷^%()])
    """,
    re.VERBOSE,
)
_ALIASES: Final = {
    **dict.fromkeys("−–", "-"),
    **dict.fromkeys(("×", "·", "⋅", "x", "X", r"\times", r"\cdot", "of"), "*"),
    **dict.fromkeys(("÷", r"\div"), "/"),
    "**": "^",
}
_MARKS: Final = re.compile(r"^[ \t]*(?:[-*+•–]|\(?\d{1,3}[.)])(?=\s)|(?<!\S)\*\*(?=\S)|(?<=\S)\*\*(?!\S)", re.MULTILINE)
"""Of lists and of bold type: no operators."""
_LOOKAHEAD: Final = 24
_GOES_ON: Final = re.compile(
    r"\s*(?:hundred|thousand|million|billion|trillion|dozen|mn|bn|tsd|mio|mrd|tausend|million|milliarde"
    r"|r\.?\b|rem|remainder|rest|mod)\w*",
    re.IGNORECASE,
)
"""After a result: it is of another size than it looks, or not the whole of it."""


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


class _Notation(NamedTuple):
    """How numbers are written."""

    shape: re.Pattern[str]
    thousands: str
    point: str

    def value(self, number: str) -> Fraction:
        """Read a number."""
        if len(number) > _LONGEST_NUMBER or not self.shape.fullmatch(number):
            raise _Unclear
        return Fraction(number.translate(dict.fromkeys(map(ord, self.thousands))).replace(self.point, "."))

    def unit(self, number: str) -> Fraction:
        """Return what one more in its last digit would be."""
        return Fraction(1, 10 ** len(number.partition(self.point)[2]))


_NOTATIONS: Final = (
    _Notation(re.compile(r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d*)(?:\.\d+)?"), ",", "."),
    _Notation(re.compile(r"(?:\d{1,3}(?:[.'’\u00a0\u202f]\d{3})+|\d*)(?:,\d+)?"), ".'’\u00a0\u202f", ","),
)
"""1,234.5 and 1.234,5: a calculation is right if it is right in one of the two."""


class _Unclear(Exception):
    """What stands there can't be read for sure."""


class Arithmetic:
    """Each calculation with a result (``+ - * / ^ %``, parentheses, money, thousands) must come out.

    A result may be rounded to the digits that it shows. Where there is nothing to do again, ``skipped``.
    """

    name = "arithmetic"
    reads_text = True

    async def validate(self, task: Task, completion: Completion) -> Check:  # noqa: ARG002 - the protocol's
        """Find the calculations and do them again."""
        if only_calls(completion) or "=" not in completion.text:
            return Check(self.name, "skipped")
        text = _MARKS.sub(lambda mark: " " * len(mark[0]), without_fences(completion.text[:_LOOKED_AT]))
        judged = list(_judged(text))
        failures = tuple(_failure(text, *where) for *where, right in judged if not right)[:MOST_FAILURES]
        return Check(self.name, "failed" if failures else "passed" if judged else "skipped", failures)


def _failure(text: str, start: int, end: int) -> Failure:
    line = text.count("\n", 0, start) + 1
    return wrong("arithmetic", f"the calculation in line {line} does not come out", start, end)


def _judged(text: str) -> Iterator[tuple[int, int, bool]]:
    """Yield start, end and rightness of each calculation that can be read."""
    for run in _runs(text):
        sides = _sides(run)
        for left, right in pairwise(sides):
            if not left or not right or _is_shown(left) == _is_shown(right):
                continue  # one of them is to be done, and the other one is what comes out
            verdict = _comes_out(text, *((right, left) if _is_shown(left) else (left, right)))
            if verdict is not None:
                yield left[0].start, right[-1].end, verdict


def _runs(text: str) -> Iterator[list[_Token]]:
    """Yield each stretch of numbers and operators that holds an equals sign, without what belongs to something else."""
    run: list[_Token] = []
    at = 0
    for match in _TOKEN.finditer(text):
        if match.start() != at:
            yield from _cut(text, run)
            run = []
        at = match.end()
        if match.lastgroup != "space":
            run.append(_Token(str(match.lastgroup), match[0], match.start(), match.end()))
    yield from _cut(text, run)


def _cut(text: str, run: list[_Token]) -> Iterator[list[_Token]]:
    while run and run[-1].text == "(":  # of an aside
        del run[-1]
    equals = [at for at, token in enumerate(run) if token.kind == "equals"]
    if not equals:
        return
    first, last = run[0], run[-1]
    glued, before = text[: first.start][-1:], text[: first.start].rstrip(" \t$€£¥")[-1:]
    signed = first.kind == "op" and first.text != "("
    if glued.isalnum() or glued in tuple("_\\.,}") or (signed and before not in {"", *"\n:;("}):
        run = run[equals[0] :]
    after = text[last.end : last.end + _LOOKAHEAD]
    if after[:1].isalpha() or after[:1] in tuple("_\\{²³") or _GOES_ON.match(after):
        run = run[: len(run) - [token.kind for token in reversed(run)].index("equals")]
    yield run


def _sides(run: Sequence[_Token]) -> list[list[_Token]]:
    """Part a run at its equals signs, without parentheses that hold more than the run."""
    sides: list[list[_Token]] = [[]]
    for token in run:
        if token.kind == "equals":
            sides.append([])
        else:
            sides[-1].append(token)
    first, last = sides[0], sides[-1]
    opened = _open(first)
    while first and first[0].text == "(" and opened > 0:
        first, opened = first[1:], opened - 1
    closed = -_open(last)
    while last and last[-1].text == ")" and closed > 0:
        last, closed = last[:-1], closed - 1
    sides[0], sides[-1] = first, last
    return sides


def _open(side: Sequence[_Token]) -> int:
    if len(side) > _MOST_TOKENS:
        return 0
    return sum((token.text == "(") - (token.text == ")") for token in side)


def _is_shown(side: Sequence[_Token]) -> bool:
    """Return whether a side is a number, maybe with a sign and a percent sign, and so nothing to be done."""
    return "".join(token.text if token.kind == "op" else "0" for token in side) in {"0", "-0", "−0", "0%", "-0%", "−0%"}


def _comes_out(text: str, done: Sequence[_Token], shown: Sequence[_Token]) -> bool | None:
    """Return whether a calculation has the value that is shown, or None where it can't be read."""
    number = next(token for token in shown if token.kind == "number")
    goes_on = text.startswith(("...", "…"), number.end)
    verdict = None
    for notation in _NOTATIONS:
        try:
            result = _Reader(done, notation).read()
            wanted = _Reader(shown, notation).read()
            unit = notation.unit(number.text) / (100 if shown[-1].text == "%" else 1)
        except _Unclear:
            continue
        verdict = _rounds_to(result, wanted, unit, cut=goes_on)
        if verdict:
            break
    return verdict


def _rounds_to(result: Fraction, wanted: Fraction, unit: Fraction, *, cut: bool) -> bool:
    """Return whether `wanted` is `result`, rounded (a half: up, or to even) or, if it goes on, cut off."""
    off = abs(result - wanted)
    if cut:
        return off < unit
    half_is_right = abs(wanted) > abs(result) or wanted / unit % 2 == 0
    return off * 2 < unit or (off * 2 == unit and half_is_right)


class _Reader:
    """Does one calculation: a parser by recursive descent over at most :data:`_MOST_TOKENS` tokens."""

    def __init__(self, tokens: Sequence[_Token], notation: _Notation) -> None:
        if len(tokens) > _MOST_TOKENS:
            raise _Unclear
        self._tokens = tokens
        self._notation = notation
        self._at = 0
        self._sums = self._percents = False

    def read(self) -> Fraction:
        """Return the value of all tokens."""
        value = self._sum()
        if self._at < len(self._tokens) or (self._sums and self._percents):  # 100 + 10% may be 110
            raise _Unclear
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while (op := self._take("+", "-")) is not None:
            self._sums = True
            term = self._product()
            value = _bounded(value + term if op == "+" else value - term)
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while (op := self._take("*", "/", "%")) is not None:
            factor = self._signed()
            if op == "*":
                value = _bounded(value * factor)
            elif not factor:
                raise _Unclear
            elif op == "/":
                value = _bounded(value / factor)
            elif value < 0 or factor < 0:  # languages differ
                raise _Unclear
            else:
                value %= factor
        return value

    def _signed(self) -> Fraction:
        minus = self._tokens[self._at] if self._at < len(self._tokens) else None
        if self._take("-") is None or minus is None:
            return self._power()
        if self._at == len(self._tokens) or self._tokens[self._at].start != minus.end:
            raise _Unclear  # a dash
        return -self._signed()

    def _power(self) -> Fraction:
        base = self._percent()
        if self._take("^") is None:
            return base
        exponent = self._signed()
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or abs(exponent) * size > _MOST_BITS or (not base and exponent < 0):
            raise _Unclear
        return Fraction(base**exponent.numerator)

    def _percent(self) -> Fraction:
        value = self._atom()
        following = self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else None
        a_modulo = following is not None and (following.kind == "number" or following.text == "(")
        if not a_modulo and self._take("%") is not None:
            self._percents = True
            return value / 100
        return value

    def _atom(self) -> Fraction:
        if self._take("(") is not None:
            value = self._sum()
            if self._take(")") is None:
                raise _Unclear
            return value
        if self._at == len(self._tokens) or self._tokens[self._at].kind != "number":
            raise _Unclear
        self._at += 1
        return self._notation.value(self._tokens[self._at - 1].text)

    def _take(self, *operators: str) -> str | None:
        """Step over the next token if it is one of `operators`."""
        if self._at == len(self._tokens) or self._tokens[self._at].kind != "op":
            return None
        text = self._tokens[self._at].text
        op = _ALIASES.get(text, text)
        if op not in operators:
            return None
        self._at += 1
        return op


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise _Unclear
    return value
