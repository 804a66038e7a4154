"""Questions in other clothes are one, and no two that differ in meaning ever are."""

# ruff: noqa: RUF001 - such characters are what it is about

from __future__ import annotations

import sys
import time
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracerouter.cache import output_key
from tracerouter.cache.normal import LONGEST, plain
from tracerouter.policy.model import Normal
from tracerouter.types import Task

BUILT_IN = Normal()
NAMES = st.sampled_from(
    ["Ada", "Ann", "Anne", "Bob", "Åsa", "Ása", "Müller", "Muller", "李", "O'Neil", "Mary Ann", "Mary"]
)
NUMBERS = st.sampled_from([
    "1", "2", "12", "1 2", "1  2", "21", "1.2", "12.", "1,2", "-1", "- 1", "+1", "x2", "x²", "2²", "22", "½", "1½",
    "11/2", "1/2", "①", "⑴", "Ⅳ", "IV", "٣", "10³", "103", "2⁻¹", "2-1", "₂", "1e3", "5 %", "5‰",
])  # fmt: skip
NEGATIONS = st.sampled_from(["", "not ", "never ", "no ", "No ", "№ ", "un", "n't ", "¬", "!"])
OPERATORS = st.sampled_from(
    ["+", "-", "*", "/", "=", "≠", "<", ">", "≤", "^", "%", "±", "±±", "∓", "×", "x", "→", "->"]
)
SENTENCES = st.tuples(NAMES, NEGATIONS, NUMBERS, OPERATORS, NUMBERS)
SPACES = st.text(" ", max_size=3)


def key_of(text: str, how: Normal | None = BUILT_IN) -> str | None:
    return output_key(Task.chat(text), scope="tenant", salt="s", normal=how)


def written(parts: tuple[str, str, str, str, str]) -> str:
    name, negation, number, operator, other = parts
    return f"Does {name} {negation}owe {number} {operator} {other} to {name}?"


@given(SENTENCES, SENTENCES)
def test_what_differs_in_a_name_a_negation_a_number_or_an_operator_is_apart(
    one: tuple[str, str, str, str, str], other: tuple[str, str, str, str, str]
) -> None:
    """Two sentences that differ in a name, a negation, a number, a sign or an operator never share a key."""
    assert (key_of(written(one)) == key_of(written(other))) is (written(one) == written(other))


@given(SENTENCES, SPACES, SPACES)
def test_white_space_around_and_between_makes_no_difference(
    parts: tuple[str, str, str, str, str], before: str, after: str
) -> None:
    """Spaces and line breaks around a question of one line are none of it."""
    text = written(parts)
    if set(text) & set("=<>"):  # a formula may be code
        return
    assert key_of(f"{before}{text}{after}") == key_of(text) == key_of(f"\n{text}\r\n\n")


def squeezed(text: str) -> str:
    """Return what is left of a text without white space, its wide and joined forms taken back."""
    tags = ("<wide>", "<narrow>", "<initial>", "<medial>", "<final>", "<isolated>")
    folded = (
        unicodedata.normalize("NFKC", one)
        if unicodedata.decomposition(one).startswith(tags) or "ﬀ" <= one <= "ﬗ"
        else one
        for one in text
    )
    return "".join(unicodedata.normalize("NFC", "".join(folded)).split())


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text(" \n\r\t12aA²½ｱ１ﬁ.'\"", max_size=30))
def test_only_white_space_and_width_are_touched(text: str) -> None:
    """Whatever the text: its normal form has the same letters, digits and signs, and is its own normal form."""
    assert squeezed(plain(text)) == squeezed(text)
    assert plain(plain(text)) == plain(text)


def test_no_character_changes_its_value() -> None:
    """Of all characters there are, none becomes another number, another kind of character, or several."""
    for code in range(sys.maxunicode + 1):
        one = chr(code)
        after = plain(f"a{one}a")[1:-1]
        if one in (after, "\r") or 0xD800 <= code < 0xE000:
            continue
        assert unicodedata.numeric(one, None) == (unicodedata.numeric(after, None) if len(after) == 1 else None), one
        kinds = {unicodedata.category(part)[0] for part in after}
        assert kinds <= {unicodedata.category(one)[0], "M"}, (one, after)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is   VAT?", "What is VAT?"),
        ("  What is VAT? \n", "What is VAT?"),
        ("Where does Ann  live,  please?", "Where does Ann live, please?"),
        ("What is VAT?\r\nAnd GST?", "What is VAT?\nAnd GST?"),
        ("First this.  Then that.", "First this. Then that."),
        ("One. \n\n\n\nTwo.", "One.\n\nTwo."),
        ("Ｗｈａｔ　ｉｓ　ＶＡＴ？", "What is VAT?"),
        ("price: １２３", "price: 123"),
        ("ﾊﾟﾘ", "パリ"),
        ("the oﬃce", "the office"),
        ("a\u00a0b", "a b"),
        ("Mu\u0308ller", "Müller"),
    ],
)
def test_what_asks_the_same_is_one(one: str, other: str) -> None:
    """Spaces in prose, line ends, width, ligatures and composed letters make no difference, unless nothing may."""
    assert key_of(one) == key_of(other)
    assert key_of(one, None) != key_of(other, None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("if x:\n  y\nz", "if x:\n    y\nz"),
        ("    return x\ny", "return x\ny"),
        ("a\tb", "a b"),
        ("Fix `a  b`", "Fix `a b`"),
        ('How long is "a  b"?', 'How long is "a b"?'),
        ("Split 'a  b' for me", "Split 'a b' for me"),
        ("«a  b»", "«a b»"),
        ('{"a":  1}', '{"a": 1}'),
        ("how many spaces are in a  b", "how many spaces are in a b"),
        ("count the characters: a  b", "count the characters: a b"),
        ("name  city\nann  rome", "name city\nann rome"),
        ("Ada Mary  London", "Ada  Mary London"),
        ("who are they:\nAda Mary  London", "who are they:\nAda  Mary London"),
        ("1  2", "1 2"),
        ("1 000  000", "1 000 000"),
        ("x²", "x2"),
        ("1½", "11/2"),
        ("№ 5", "No 5"),
        ("ℝ", "R"),
        ("rose Rose", "rose rose"),
        ("one\ntwo", "one two"),
        ("„a＂ ｂ", "„a＂ b"),
    ],
)
def test_what_may_ask_something_else_is_not(one: str, other: str) -> None:
    """In code, quotations, tables, between names and beside numbers white space stays, and so do all signs."""
    assert key_of(one) != key_of(other)


OWNERS = Normal(
    (("colour", "color"), ("sign in", "log in"), ("ＶＡＴ", "VAT")),
    (r"^(hi|hello|dear \w+)[,!. ]+", r"\s*(?s:(best|kind) regards.*)$"),
)


@pytest.mark.parametrize(
    "text",
    [
        "Which color does the log in page have?",
        "Which colour does the sign in page have?",
        "Hello! Which COLOUR does the sign in page have?",
        "Dear Ann, which color does the log in page have?\n\nKind regards,\nBob\nSales".replace("which", "Which"),
    ],
)
def test_an_owners_synonyms_and_noise_make_no_difference(text: str) -> None:
    """Words are replaced whole, without regard to case, after greetings and signatures have gone."""
    assert key_of(text, OWNERS) == key_of("Which color does the log in page have?")


def test_synonyms_are_whole_words_and_noise_is_not_all_there_is() -> None:
    """A part of a word is no synonym, and a message that is nothing but noise stays what it is."""
    assert key_of("colourful", OWNERS) == key_of("colourful")
    assert len({key_of("Hello!", OWNERS), key_of("Hi!", OWNERS), key_of("", OWNERS)}) == 3


def talk(*said: tuple[str, Any]) -> str | None:
    messages = [{"role": role, "content": content} for role, content in said]
    return output_key(Task.parse({"messages": messages}), scope="tenant", salt="s", normal=OWNERS)


def test_only_the_last_user_message_is_looked_at() -> None:
    """What was said before, by whomever, counts as it is; the text parts of a message are looked at one by one."""
    plain_talk = talk(("system", "colour"), ("user", "colour"), ("assistant", "x"), ("user", "color"))
    assert plain_talk == talk(("system", "colour"), ("user", "colour"), ("assistant", "x"), ("user", " colour "))
    assert plain_talk != talk(("system", "color"), ("user", "colour"), ("assistant", "x"), ("user", "color"))
    assert plain_talk != talk(("system", "colour"), ("user", "color"), ("assistant", "x"), ("user", "color"))
    image = {"type": "image_url", "image_url": {"url": "colour"}}
    parts = [{"type": "text", "text": "colour"}, image]
    assert talk(("user", parts)) == talk(("user", [{"type": "text", "text": "color"}, image]))
    assert talk(("user", parts)) != talk(("user", [{"type": "text", "text": "color"}]))
    assert parts == [{"type": "text", "text": "colour"}, image]
    assert talk(("system", " a")) != talk(("system", "a"))


@pytest.mark.parametrize("mess", [" ", " \n", "a  b", "a" + " " * 50, "a  b\n", "'", "\n", "　"])
def test_no_text_takes_long(mess: str) -> None:
    """However a text is made, its normal form is found in milliseconds; one that is too long stays as it is."""
    text = (mess * LONGEST)[:LONGEST]
    hanging = Normal(noise=(r"^(a|aa)+$", r"(\s+)+x"))
    began = time.process_time()
    key_of(text, hanging)
    key_of("a" * 5000 + "b", hanging)
    assert time.process_time() - began < 0.5
    assert plain(f"{text} ") == f"{text} "
