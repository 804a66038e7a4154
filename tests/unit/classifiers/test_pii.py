"""Personal data by its form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import luhn

from tracerouter.classifiers.pii import personal_data


def kinds(text: str) -> dict[str, int]:
    """Count the kinds in the whole of a text."""
    return dict(personal_data(text, len(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("nothing here", {}),
        ("a.b+c@mail.example.co.uk", {"email": 1}),
        ("a@example.com,b@example.com;c@example.com", {"email": 3}),
        ("a@example.com a@example.com", {"email": 2}),
        ("@" * 3000, {}),
        ("git@github.com:acme/tools.git", {}),
        ("https://user:pass@db.example.com/x", {}),
        ("+1 415 555 0132", {"phone": 1}),
        ("(212) 555-0147", {"phone": 1}),
        ("call 2125550147", {"phone": 1}),
        ("2125550147", {}),
        ("order 212-555-0147", {}),
        ("112-555-0147", {}),
        ("4111 1111 1111 1111", {"card": 1}),
        ("4111-1111-1111-1111 and 5555555555554444", {"card": 2}),
        ("378282246310005", {"card": 1}),
        ("4111 1111 1111 1112", {}),
        ("tracking number 4111111111111111", {}),
        ("DE89 3704 0044 0532 0130 00", {"iban": 1}),
        ("DE89 3704 0044 0532 0130 00 THANKS AND BYE", {"iban": 1}),
        ("NL91ABNA0417164300", {"iban": 1}),
        ("DE89 3704 0044 0532 0130 01", {}),
        ("536-22-8726", {"ssn": 1}),
        ("SSN: 536228726", {"ssn": 1}),
        ("536228726", {}),
        ("000-22-8726", {}),
        ("12-536-22-8726", {}),
        ("81.2.69.142", {"ip": 1}),
        ("from IP 8.8.8.8", {"ip": 1}),
        ("8.8.8.8", {}),
        ("version 81.2.69.142", {}),
        ("81.2.69.142.7", {}),
        ("10.0.0.5, 127.0.0.1, 192.168.178.201, 255.255.255.255", {}),
        ("81.2.69.942", {}),
    ],
)
def test_forms(text: str, expected: dict[str, int]) -> None:
    """Each kind is told from what only looks like it, by check digit, form or the words before it."""
    assert kinds(text) == expected


@given(st.text("0123456789", min_size=15, max_size=15))
def test_a_card_is_one_whose_check_digit_fits(digits: str) -> None:
    """Of the ten numbers that differ in the last digit alone exactly one is a card's."""
    found = [last for last in range(10) if kinds(f"pay with 4{digits[1:]}{last}").get("card")]
    assert found == [int(luhn.calc_check_digit(f"4{digits[1:]}"))]


@given(st.text())
def test_any_text_is_counted(text: str) -> None:
    """Whatever is sent, the counts are positive and of the known kinds."""
    found = kinds(text)
    assert set(found) <= {"email", "phone", "card", "iban", "ssn", "ip"}
    assert all(times > 0 for times in found.values())


@given(st.text("0123456789 .-+()@aA", max_size=80))
def test_any_text_of_such_characters_is_counted(text: str) -> None:
    """Nor do the characters that forms are made of lead to an error."""
    assert all(times > 0 for times in kinds(text).values())


def test_what_stands_after_the_end_is_the_next_ones() -> None:
    """Only what begins before the bound counts, and its rest may stand behind it."""
    text = "a@example.com b@example.com"
    assert personal_data(text, 14) == {"email": 1}
    assert personal_data("x 4111 1111 1111 1111", 3) == {"card": 1}


@pytest.mark.parametrize("part", ["a!", "a@", "1.", "(1", "1 2 ", "AB12 ", "12345678901 ", "+1 ", "1.1.1.1."])
def test_time_grows_with_length_alone(part: str) -> None:
    """No text of half a million characters keeps the detection busy: some would take datafog's own forms hours."""
    assert sum(kinds(part * (500_000 // len(part)) + " x@y").values()) >= 0
