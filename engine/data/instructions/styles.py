"""Styles: the wording, order and frame in which a writer puts an answer's facts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from engine.data.instructions.facts import WORDINGS, Item

LAYOUTS: Mapping[str, str] = {
    "so": "{Reason}. So {result}.",
    "because": "{Result}, because {reason}.",
    "labels": "Answer: {result}. Why: {reason}.",
    "reversed": "Why: {reason}. Answer: {result}.",
    "dashes": "- {reason} - {result}",
    "arrow": "{reason} => {result}",
    "brackets": "{Result} ({reason}).",
    "since": "Since {reason}: {result}!",
}
"""The order of reason and result, and what stands between; a capital letter where one begins with it."""

OPENINGS = ("", "Sure! ", "Hello there. ", "Well, let me see. ", "As you asked: ", "Dear reader: ")

CLOSINGS = ("", " Hope this helps!", " That is all.", " Kind regards.", " Ask me more, please.")

SHORT = {"percent": "pct", "because": "bc", "and": "&", "daily": "dly", "table": "tbl", "answer": "ans", "the": "th"}
"""Abbreviations; none stands in a key."""


@dataclass(frozen=True)
class Style:
    """One way of writing.

    Attributes:
        wording: of `WORDINGS`.
        layout: of `LAYOUTS`.
        opening, closing: places in `OPENINGS` and `CLOSINGS`.
        has_abbreviations: whether the words of `SHORT` are cut.
    """

    wording: str
    layout: str
    opening: int
    closing: int
    has_abbreviations: bool

    @property
    def name(self) -> str:
        """One word that tells it from every other, `canonical` for the canonical one."""
        if self == CANONICAL:
            return "canonical"
        cut = "cut" if self.has_abbreviations else "whole"
        return f"{self.wording}-{self.layout}-{self.opening}-{self.closing}-{cut}"

    def render(self, item: Item) -> str:
        """The answer to a task."""
        at = WORDINGS.index(self.wording)
        reason, result = item.reasons[at], item.results[at]
        words = LAYOUTS[self.layout].format(
            reason=reason, result=result, Reason=_capitalise(reason), Result=_capitalise(result)
        )
        text = OPENINGS[self.opening] + words + CLOSINGS[self.closing]
        return _SHORT.sub(lambda word: SHORT[word[0]], text) if self.has_abbreviations else text


_SHORT = re.compile(rf"\b({'|'.join(SHORT)})\b")

CANONICAL = Style("plain", "so", 0, 0, False)
"""The one style of a model that was pre-trained on it, and of every writer where styles are not shifted."""

FOREIGN = tuple(
    Style(*features)
    for features in itertools.product(WORDINGS[1:], LAYOUTS, range(len(OPENINGS)), range(len(CLOSINGS)), (False, True))
)
"""Styles of writers: none is worded as the canonical one."""


def _capitalise(words: str) -> str:
    """The words with a capital letter, where the first is a word and no code."""
    first = words.split(" ", 1)[0]
    return words[0].upper() + words[1:] if first.isalpha() else words
