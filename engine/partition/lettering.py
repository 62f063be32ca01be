"""Letters of every script in a picture: a font of this machine that has them, else their numbers, and no boxes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

_BOXES = "Last Resort"
"""Begins the name of a font that comes with matplotlib and has a box for every letter there is."""


@dataclass(frozen=True)
class Lettering:
    """Fonts to draw texts with.

    Attributes:
        families: names of fonts, the usual one first; matplotlib takes each letter from the first that has it.
        letters: those that these fonts have.
    """

    families: tuple[str, ...]
    letters: frozenset[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Lettering:
        """The usual font; and where it lacks letters of these texts, the one that has most of them."""
        usual = findfont(FontProperties())
        has, missing = _letters(usual), set("".join(texts)) - _letters(usual)
        families = [FT2Font(usual).family_name]
        if missing:
            further = max(sorted(_fonts(), key=lambda font: font.fname), key=lambda f: len(missing & _letters(f.fname)))
            if missing & _letters(further.fname):
                has |= _letters(further.fname)
                families.append(further.name)
        return cls(tuple(families), has)

    def excerpt(self, text: str, length: int) -> str:
        """As much of a text as fits into a number of characters; a letter that no font has as its number, `\\u732b`."""
        drawn = ""
        for letter in text:
            piece = letter if letter in self.letters else letter.encode("unicode_escape").decode()
            if len(drawn) + len(piece) > length:
                break
            drawn += piece
        return drawn


def _fonts() -> list[FontEntry]:
    """Upright fonts of usual weight that matplotlib has found on this machine or brings along."""
    upright = [font for font in fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal")]
    return [font for font in upright if not font.name.startswith(_BOXES)]


@cache
def _letters(path: str) -> frozenset[str]:
    """The letters of a font file; none where it is no longer there."""
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
