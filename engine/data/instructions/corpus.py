"""Texts for the pre-training of a small language model, from a seed alone.

Besides some general English, they are tasks of the five domains and requests to rewrite an answer, whose target is the
canonical style. So a model gets a way of writing of its own and copies facts out of a given answer, as instruction
tuning teaches a large one. No fact in them belongs to a half of `generated:instructions`, of whatever seed.
"""

from __future__ import annotations

import codecs
import contextlib
import heapq
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from algorithms.core.prompts import rewriting_prompt, stepwise_prompt, task_prompt
from algorithms.core.seeds import Seed
from engine.data.instructions import arithmetic, code
from engine.data.instructions.facts import Dice, Facts, Part
from engine.data.instructions.source import DOMAINS, Row
from engine.data.instructions.styles import CANONICAL, FOREIGN
from engine.data.tables import sentences

FOREIGN_TASKS = 20
"""Percentage of answers to plain tasks in another style than the canonical one."""

CANONICAL_REFERENCES = 10
"""Percentage of answers to be rewritten that are canonical already."""

PAIRS_PER_TEXT = 20

PIECE = 200
"""Characters of a piece of general English at most; longer ones are left out."""


@dataclass(frozen=True)
class Corpus:
    """Attributes:
    pairs: prompts and answers, of which the answers are to be learnt.
    texts: plain pieces of English.
    """

    pairs: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]


def pretraining_texts(seed: int, count: int) -> Corpus:
    """`count` pairs, half of them tasks and half rewriting, and one plain text for every `PAIRS_PER_TEXT` of them."""
    english = list(_english())
    dice = Dice(Seed(seed).at(phase="pretraining").numpy("english"))
    pairs = tuple(_pair(row, number % 2 == 1) for number, row in enumerate(_rows(seed, count, "pretraining")))
    return Corpus(pairs, tuple(dice.one_of(english) for _ in range(count // PAIRS_PER_TEXT)))


def acceptance_rows(seed: int, count: int) -> tuple[Row, ...]:
    """Tasks with answers in foreign styles, to measure on how a model that was pre-trained rewrites: their facts are
    neither in its texts nor in any half of the data."""
    return tuple(row for row in _rows(seed, 2 * count + 2, "acceptance") if row.style != CANONICAL)[:count]


def _rows(seed: int, count: int, part: Part) -> Iterator[Row]:
    """Tasks of all domains in turn; every second one has an answer that is to be rewritten."""
    dice = Dice(Seed(seed).at(phase="pretraining").numpy(part))
    facts, names = Facts(part, dice), list(DOMAINS)
    for number in range(count):
        item = DOMAINS[dice.one_of(names)](facts)
        foreign = FOREIGN_TASKS if number % 2 == 0 else 100 - CANONICAL_REFERENCES
        style = dice.one_of(FOREIGN) if dice.below(100) < foreign else CANONICAL
        yield Row(item, style, writer=0)


def _pair(row: Row, is_rewriting: bool) -> tuple[str, str]:
    """A prompt and its answer."""
    if not is_rewriting:
        return task_prompt(row.item.instruction), row.answer
    has_steps = row.item.domain in (arithmetic.DOMAIN, code.DOMAIN)
    prompt = stepwise_prompt if has_steps else rewriting_prompt
    return prompt(row.item.instruction, row.answer), row.canonical


def _english() -> Iterator[str]:
    """Sentences of `generated:sentences`, and pieces of English, ASCII, that ship with Python."""
    yield from sentences.texts()
    for text in (_zen(), heapq.__about__):
        pieces = (" ".join(piece.split()) for piece in re.split(r"(?<=[.!?])\s+|\n\n", text))
        yield from (piece for piece in pieces if piece.isascii() and len(piece.split()) > 3 and len(piece) <= PIECE)


def _zen() -> str:
    """The Zen of Python, which its module prints when it is first imported."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    return codecs.decode(this.s, "rot13")
