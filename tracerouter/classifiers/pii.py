"""Personal data by its form: which kinds stand in a text, and how often.

The candidates are datafog's, less what a check digit (python-stdnum) or the words before it speak against: a number of
ten digits is an order's more often than a telephone's. Whatever is found is counted and forgotten.
"""

from __future__ import annotations

import re
from collections import Counter
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING, Final

from datafog.processing.text_processing.regex_annotator import RegexAnnotator
from stdnum import iban, luhn
from stdnum.us import ssn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FORMS: Final = RegexAnnotator().patterns
_NUMBER: Final = re.compile(r"[\d ().+-]{7,}")
"""What may hold a number of seven digits or more; linear, whatever the text."""
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
_SHORTEST_IBAN: Final = 15
_PHONE_GROUPS: Final = re.compile(r"(?:\+?1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-. ])[2-9]\d\d[-. ]\d{4}")
_LOCAL_PART: Final = 64
_DOMAIN: Final = 254
_ADDRESSES: Final = 1000
"""``@`` characters that are looked at; a text with more has shown enough."""

_CONTEXT: Final = 28
"""Characters before a number in which a word may say what it is."""
_SAYS_PHONE: Final = re.compile(
    r"\b(?:phone|call|tel|telephone|mobile|cell|fax|text|whatsapp|dial|ring|reach)\b", re.IGNORECASE
)
_SAYS_SSN: Final = re.compile(r"\b(?:ssn|social security)\b", re.IGNORECASE)
_SAYS_ADDRESS: Final = re.compile(r"\b(?:ip|ips|address|host|client|visitor|logged)\b", re.IGNORECASE)
_SAYS_OTHER_NUMBER: Final = re.compile(
    r"\b(?:orders?|parts?|tracking|serial|ref|reference|invoice|parcel|imei|ticket|batch|sku|article|version|build|release"
    r"|section|chapter|firmware|driver|clause|v)\b[\w .:#-]{0,12}$",
    re.IGNORECASE,
)


def personal_data(text: str, until: int) -> Counter[str]:
    """Count what looks like personal data in the first `until` characters of `text`: ``email phone card iban ssn ip``.

    A text without digits and ``@`` costs two scans for them; the time grows with the length of the text and no faster.
    """
    found: Counter[str] = Counter()
    emails = sum(1 for _ in _emails(text, until)) if "@" in text else 0
    if emails:
        found["email"] = emails
    numbers = [match.span() for match in _NUMBER.finditer(text) if _digits(match[0]) >= _FEWEST_DIGITS]
    for kind, form, holds in _NUMBERS:
        for start, end in numbers:
            # one character more, since a form looks at what follows it
            for match in _FORMS[form].finditer(text, max(start - 1, 0), end + 1):
                found[kind] += match.start() < until and holds(text, match)
    if numbers or "IBAN" in text:
        found["iban"] += sum(match.start() < until and _is_iban(match[0]) for match in _IBAN.finditer(text))
    return +found


_FEWEST_DIGITS: Final = 4  # of an IPv4 address


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _emails(text: str, until: int) -> Iterator[str]:
    """Yield the address at each ``@``.

    Datafog's form is shown only what surrounds one: over a whole text its time may grow with the square of the length.
    """
    at = -1
    for _ in range(_ADDRESSES):
        at = text.find("@", at + 1, until)
        if at < 0:
            return
        start = max(at - _LOCAL_PART, 0)
        around = text[start : at + _DOMAIN]
        for match in _FORMS["EMAIL"].finditer(around):
            if match.start() <= at - start < match.end():
                if _is_address(around, match):
                    yield match[0]
                break


def _is_address(around: str, match: re.Match[str]) -> bool:
    """Return whether it is a mailbox, and not the user of a URL, or of a repository (``git@host:path``)."""
    before, after = around[: match.start()], around[match.end() : match.end() + 2]
    in_url = re.search(r"://\S*$", before) is not None
    return not in_url and not re.match(r":[\w~/]", after)


def _before(text: str, match: re.Match[str]) -> str:
    return text[max(match.start() - _CONTEXT, 0) : match.start()]


def _is_phone(text: str, match: re.Match[str]) -> bool:
    number = match[0]
    if number.startswith("+"):
        return True
    if _PHONE_GROUPS.fullmatch(number):
        return _SAYS_OTHER_NUMBER.search(_before(text, match)) is None
    return _SAYS_PHONE.search(_before(text, match)) is not None


def _is_card(text: str, match: re.Match[str]) -> bool:
    return luhn.is_valid(re.sub(r"\D", "", match[0])) and _SAYS_OTHER_NUMBER.search(_before(text, match)) is None


def _is_ssn(text: str, match: re.Match[str]) -> bool:
    around = text[max(match.start() - 1, 0) : match.start()] + text[match.end() : match.end() + 1]
    plain = "-" not in match[0]
    if "-" in around or (plain and _SAYS_SSN.search(_before(text, match)) is None):
        return False
    return bool(ssn.is_valid(match[0])) and _SAYS_OTHER_NUMBER.search(_before(text, match)) is None


def _is_ip(text: str, match: re.Match[str]) -> bool:
    """Return whether it is a public address; short ones look like versions, unless a word says that they are none."""
    before, after = _before(text, match), text[match.end() : match.end() + 2]
    if re.match(r"\.\d", after) or re.search(r"\d\.$", before) or _SAYS_OTHER_NUMBER.search(before):
        return False
    try:
        public = IPv4Address(match[0]).is_global
    except AddressValueError:
        return False
    return public and (_digits(match[0]) >= _PLAINLY_IP or _SAYS_ADDRESS.search(before) is not None)


_PLAINLY_IP: Final = 8
"""Digits from which four numbers with dots are hardly a version."""


def _is_iban(found: str) -> bool:
    """Return whether what is found begins with a valid IBAN: words that follow it may look like its end."""
    number = found.replace(" ", "")
    return any(iban.is_valid(number[:length]) for length in range(_SHORTEST_IBAN, len(number) + 1))


_NUMBERS: Final[tuple[tuple[str, str, Callable[[str, re.Match[str]], bool]], ...]] = (
    ("card", "CREDIT_CARD", _is_card),
    ("phone", "PHONE", _is_phone),
    ("ssn", "SSN", _is_ssn),
    ("ip", "IP_ADDRESS", _is_ip),
)
