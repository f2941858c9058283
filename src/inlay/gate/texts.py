"""Faults of a row's text: of how it was decoded, and personal data in it.

A page of rows is looked at as one run of bytes, each byte by a table of classes; only rows with a byte that may belong to a
fault are searched as text. Personal data is found by its form alone: an address has an @ and a domain, the number of a card
passes Luhn's sum, a phone number is written as such. It is counted, and never kept or shown.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

_CONTROL, _AT, _DIGIT, _HIGH = 1, 2, 4, 8

_CLASS = np.zeros(256, np.uint8)
"""The class of each byte of UTF-8: what a fault may begin with."""
_CLASS[[code for code in (*range(32), 127) if chr(code) not in "\t\n\r"]] = _CONTROL
_CLASS[ord("@")], _CLASS[ord("0") : ord("9") + 1] = _AT, _DIGIT
_CLASS[[0xC2, 0xC3, 0xEF]] = _HIGH  # of U+0080 to U+00FF, U+FEFF and U+FFFD

_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_CONTINUED = (
    "\x80-\xbf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201e\u2020-\u2022"
    "\u2026\u2030\u2039\u203a\u20ac\u2122"
)
"""What the second byte of UTF-8 becomes where the text was taken for Latin-1 or Windows-1252."""
_MOJIBAKE = re.compile(f"\u00c3[{_CONTINUED}]|\u00e2\u20ac|\u00c2[\xa0-\xbf]|\u00ef\u00bb\u00bf")

_EMAIL = re.compile(r"[\w.+-]{1,64}@(?!example\.)(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b", re.ASCII)
_CARD = re.compile(
    r"(?<![\d.,-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|3[47]\d\d([ -])\d{6}\2\d{5})(?![\d-]|[.,]\d)", re.ASCII
)
_ISSUED = re.compile(r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3[068]\d{12}|6\d{15,18}|35\d{14}")
"""Numbers as long as those of the issuer that their first digits name."""
_PHONE = re.compile(
    r"(?<![\w.+,-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|(?:1[-. ])?\(\d{3}\) ?\d{3}[-. ]\d{4}|(?:1-)?\d{3}-\d{3}-\d{4}|\d{3}\.\d{3}\.\d{4})(?![\w-]|[.,]\d)",
    re.ASCII,
)

MIN_DIGITS = 8
"""A phone number has at least as many."""


def faults(texts: Sequence[str]) -> dict[str, list[int]]:
    """Kind of fault -> the numbers of the texts that have it."""
    encoded = [text.encode() + b"\n" for text in texts]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    starts = np.cumsum(lengths) - lengths
    classes = _CLASS[np.frombuffer(b"".join(encoded), np.uint8)]
    has = np.bitwise_or.reduceat(classes, starts)
    digits = np.add.reduceat(classes == _DIGIT, starts, dtype=np.int64)
    suspects = {
        "control-character": has & (_CONTROL | _HIGH) != 0,
        "replacement-character": has & _HIGH != 0,
        "mojibake": has & _HIGH != 0,
        "e-mail": has & _AT != 0,
        "card-number": digits >= 13,
        "phone-number": digits >= MIN_DIGITS,
    }
    return {
        kind: [number for number in map(int, np.flatnonzero(some)) if _TESTS[kind](texts[number])]
        for kind, some in suspects.items()
    }


def _has_card(text: str) -> bool:
    numbers = ("".join(filter(str.isdigit, match[0])) for match in _CARD.finditer(text))
    return any(_ISSUED.fullmatch(number) and _is_luhn(number) for number in numbers)


def _is_luhn(number: str) -> bool:
    """The last digit is the check of the others: sum of d, and of the digits of 2 d at every second place from the end, = 0
    mod 10.

    Source: H. P. Luhn, US patent 2,950,048 (1960); ISO/IEC 7812-1, annex B.
    """
    digits = [int(digit) for digit in reversed(number)]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


_TESTS: dict[str, Callable[[str], bool]] = {
    "control-character": lambda text: _ODD.search(text) is not None,
    "replacement-character": lambda text: "\ufffd" in text,
    "mojibake": lambda text: _MOJIBAKE.search(text) is not None,
    "e-mail": lambda text: _EMAIL.search(text) is not None,
    "card-number": _has_card,
    "phone-number": lambda text: _PHONE.search(text) is not None,
}
