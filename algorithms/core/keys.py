"""Keys: the values of an answer that can be checked, such as numbers, names and labels, and whether a text has them."""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal

SEPARATOR = "|"
"""Stands between the values of a key; no value has one."""

_NUMBER = re.compile(r"(?:(?<![\w)\].])-)?(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?!\w)")
"""A minus stands before a number unless it stands behind another value, as in 5-3; a comma parts thousands."""


def values_of(key: str) -> tuple[str, ...]:
    """The values of a key, without empty ones."""
    return tuple(value.strip() for value in key.split(SEPARATOR) if value.strip())


def numbers_of(text: str) -> tuple[str, ...]:
    """The numbers of a text in their order, each written one way: 1,234.50 as 1234.5."""
    return tuple(_plain_number(found) for found in _NUMBER.findall(text))


def last_integer(text: str) -> int | None:
    """The last number of a text; None where it is no whole number as it stands (3.5, 3.0), or there is none."""
    found = _NUMBER.findall(text)
    return int(found[-1].replace(",", "")) if found and "." not in found[-1] else None


def has_value(text: str, value: str) -> bool:
    """Whether a value stands in a text by itself: as one of its numbers, or as words, capital letters or not."""
    if _NUMBER.fullmatch(value):
        return _plain_number(value) in numbers_of(text)
    begin, end = (r"(?<!\w)" if _is_word(value[0]) else ""), (r"(?!\w)" if _is_word(value[-1]) else "")
    return re.search(f"{begin}{re.escape(value)}{end}", text, re.IGNORECASE) is not None


def has_key(text: str, key: str) -> bool:
    """Whether a text has every value of a key."""
    return all(has_value(text, value) for value in values_of(key))


def share_of_key(text: str, key: str) -> float:
    """The share of a key's values that a text has; 1 for a key without any."""
    values = values_of(key)
    return sum(has_value(text, value) for value in values) / len(values) if values else 1.0


def keys_of(text: str, words: Collection[str] = ()) -> frozenset[str]:
    """The checkable values of a text: its numbers, and those of some words, such as names and labels, that it has."""
    return frozenset(numbers_of(text)) | {word for word in words if has_value(text, word)}


def has_same_keys(reference: str, text: str, words: Collection[str] = ()) -> bool:
    """Whether two texts have the same numbers, and the same ones of some words: none is lost and none is added."""
    return keys_of(reference, words) == keys_of(text, words)


def additions(reference: str, text: str, words: Collection[str] = ()) -> frozenset[str]:
    """Numbers, and some of these words, that a text has and its reference has not."""
    return keys_of(text, words) - keys_of(reference, words)


def same_numbers(reference: str, text: str) -> bool:
    """Whether two texts have the same numbers, however often and in whatever order."""
    return set(numbers_of(reference)) == set(numbers_of(text))


def keeps_numbers(reference: str, text: str) -> bool:
    """Whether every number of a reference is one of a text's."""
    return set(numbers_of(reference)) <= set(numbers_of(text))


def _plain_number(number: str) -> str:
    value = Decimal(number.replace(",", ""))
    plain = f"{value:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return str(int(plain)) if "." not in plain else plain


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
