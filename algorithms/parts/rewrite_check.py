"""The check of a rewrite before it takes an answer's place.

Ren et al. (2026, arXiv 2605.18028) say nothing of one; these are the checks of Yang et al. (2024, arXiv 2402.13669) in
their code, and one that is stricter. They choose what they check by the data set; here the form of the answer decides.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal, TypeAlias

from algorithms.core.keys import has_value, keeps_numbers, last_integer, numbers_of

Check: TypeAlias = Literal["none", "format", "task", "key"]
"""The strictness of the check; each level has the checks of those before it.

- `none`: the rewrite is not empty;
- `format`: the model ended it by itself, it does not speak of the request, and has no 8 words in a row 4 times;
- `task`: it has the result of an answer of a fixed form, see `has_same_result`;
- `key`: it has every number of the answer.
"""

Reason: TypeAlias = Literal[
    "empty", "no end", "speaks of the request", "repeats itself", "another result", "lacks a number"
]

ABOUT_THE_REQUEST = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
"""Phrases of a model that answers the request and not the task, in small letters."""

FIRST_WORDS = "your turn"

REPEATED_WORDS, REPEATS = 8, 4

_CALL = re.compile(r"[\w.]+\(.*\)", re.DOTALL)

_CALL_INSIDE = re.compile(r"\b[\w.]+\([^()]*\)")

_CHOICES = re.compile(r"((?:\w+, )*\w+),? or (\w+)")


def accept_rewrite(level: Check, instruction: str, answer: str, rewrite: str, finished: bool) -> Reason | None:
    """The reason why a rewrite does not take an answer's place; None where it does.

    Args:
        instruction: the task with its input, which may name the labels that there are to choose from.
        answer: the one that was rewritten.
        finished: whether the model ended the rewrite by itself, and not the limit of its length.
    """
    if not rewrite.strip():
        return "empty"
    if level == "none":
        return None
    if (fault := _fault_of_form(rewrite, finished)) is not None or level == "format":
        return fault
    if not has_same_result(instruction, answer, rewrite):
        return "another result"
    return "lacks a number" if level == "key" and not keeps_numbers(answer, rewrite) else None


def _fault_of_form(rewrite: str, finished: bool) -> Reason | None:
    if not finished:
        return "no end"
    words = rewrite.lower().strip()
    if words.startswith(FIRST_WORDS) or any(phrase in words for phrase in ABOUT_THE_REQUEST):
        return "speaks of the request"
    return "repeats itself" if _most_repeats(rewrite) >= REPEATS else None


def _most_repeats(text: str) -> int:
    """The number of times that the most frequent `REPEATED_WORDS` words in a row occur."""
    words = text.split()
    grams = zip(*(words[place:] for place in range(REPEATED_WORDS)), strict=False)
    return max(Counter(grams).values(), default=0)


def has_same_result(instruction: str, answer: str, rewrite: str) -> bool:
    """Whether a rewrite has the result of an answer of a fixed form; True for answers of other forms.

    - An answer that is a call, name(...), or has calls in it: they stand in the rewrite, whatever quotes and blanks.
    - One with a label, a word that the instruction offers to choose from (positive, negative or neutral): each such
      label of the answer stands in the rewrite.
    - One that ends with a number: the last number of the rewrite is the same whole number.
    """
    calls = [answer] if _CALL.fullmatch(answer.strip()) else _CALL_INSIDE.findall(answer)
    if any(_plain_code(call) not in _plain_code(rewrite) for call in calls):
        return False
    labels = [label for label in choices(instruction) if has_value(answer, label)]
    if labels:
        return all(has_value(rewrite, label) for label in labels)
    if not ends_with_number(answer):
        return True
    return last_integer(answer) is not None and last_integer(answer) == last_integer(rewrite)


def choices(instruction: str) -> tuple[str, ...]:
    """The words that an instruction offers to choose from: those of `a, b or c`."""
    return tuple(word for first, last in _CHOICES.findall(instruction) for word in (*first.split(", "), last))


def ends_with_number(text: str) -> bool:
    """Whether the last word of a text is a number, whatever mark stands behind it."""
    last = text.split()[-1:]
    return bool(last) and bool(numbers_of(last[0])) and re.search(r"\d\W*$", last[0]) is not None


def _plain_code(text: str) -> str:
    """Single blanks, double quotes, and no blank behind a comma."""
    return re.sub(r",\s+", ",", " ".join(text.replace("'", '"').split()))
