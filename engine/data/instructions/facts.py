"""Facts, the part of the data that each belongs to, and tasks made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")

Fact: TypeAlias = tuple[str, ...]
"""A domain and values, as ("medicine", "Perax", "5", "once")."""

Part = Literal["pretraining", "acceptance", "train", "test"]

_ENDS: dict[Part, int] = {"pretraining": 118, "acceptance": 128, "train": 205, "test": 256}
"""Ends of the parts in 256 equal shares of all facts."""

TRIES = 20_000
"""Facts drawn in a row that are of another part or known, after which a domain counts as used up."""

WORDINGS = ("plain", "formal", "casual", "short")


class NoFactLeft(LookupError):
    """A domain has no fact left to draw."""


def part_of(fact: Fact) -> Part:
    """The one part that a fact belongs to, whatever the seed: no seed's test asks for what another seed's pre-training
    has shown."""
    place = hashlib.sha256("/".join(fact).encode()).digest()[0]
    return next(part for part, end in _ENDS.items() if place < end)


@dataclass(eq=False)
class Dice:
    """Whole numbers drawn one by one, quickly.

    Attributes:
        random: numbers are drawn from it in blocks.
    """

    random: np.random.Generator
    _block: list[float] = field(default_factory=list)

    def below(self, count: int) -> int:
        """A number in [0, count)."""
        if not self._block:
            self._block = self.random.random(4096).tolist()
        return int(self._block.pop() * count)

    def number(self, first: int, last: int) -> str:
        """A number from `first` to `last`, both included, as a word."""
        return str(first + self.below(last - first + 1))

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]


@dataclass(eq=False)
class Facts:
    """Facts of one part.

    Attributes:
        part: no fact of another is drawn.
        dice: draws them.
        known: those that are not drawn again; None where a fact may come any number of times.
    """

    part: Part
    dice: Dice
    known: set[Fact] | None = None

    def draw(self, make: Callable[[Dice], Fact]) -> Fact:
        """The first that `make` gives and that is of the part and not known.

        Raises:
            NoFactLeft: after `TRIES`.
        """
        for _ in range(TRIES):
            fact = make(self.dice)
            if part_of(fact) == self.part and (self.known is None or fact not in self.known):
                if self.known is not None:
                    self.known.add(fact)
                return fact
        raise NoFactLeft(fact[0])


@dataclass(frozen=True)
class Item:
    """A task with the facts of its answer, which a style puts into words.

    Attributes:
        instruction: the task with its input inside.
        key: values that every right answer holds, none with a `|`.
        fact: the one that is asked for.
        reasons: by the wordings of `WORDINGS`, why the answer is right.
        results: alike, the answer itself.
    """

    instruction: str
    key: tuple[str, ...]
    fact: Fact
    reasons: tuple[str, str, str, str]
    results: tuple[str, str, str, str]

    @property
    def domain(self) -> str:
        return self.fact[0]


def join_names(heads: str, tails: str) -> tuple[str, ...]:
    """Invented names: every head, in words, with every tail."""
    return tuple(head + tail for head in heads.split() for tail in tails.split())


def table_rows(facts: Facts, make: Callable[[Dice], Fact], count: int) -> list[Fact]:
    """Facts of different things, whose name is a fact's first value, for a table to look one up in."""
    found = [facts.draw(make)]
    while len(found) < count:
        found.append(facts.draw(partial(_other, make, {fact[1] for fact in found})))
    return found


def _other(make: Callable[[Dice], Fact], names: set[str], dice: Dice) -> Fact:
    """A fact of a thing that is not among the names."""
    while (fact := make(dice))[1] in names:
        pass
    return fact
