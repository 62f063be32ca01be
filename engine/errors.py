"""Mistakes of the person at the keyboard, told apart from ours: they end with exit code 2 and without a traceback."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class UserError(ValueError):
    """Base of the engine's errors that a person can put right; the message names the value and what would be right."""

    def _render_traceback_(self) -> list[str]:
        """The lines that a notebook shows of it: no frames, which are ours."""
        return [f"{type(self).__name__}: {self}"]


class NoRoom(RuntimeError):
    """A disk or an object store ran full; the message names the place and the way out."""


MISSING = object()
"""Stands in a Problem for a value that is not there at all."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        place: the key, as `clients.lr`, or the file with line and column.
        value: what was found there, `MISSING` where there is nothing.
        reason: what would be right.
    """

    place: str
    value: Any
    reason: str

    def __str__(self) -> str:
        found = "" if self.value is MISSING else f" = {one_line(self.value)}"
        return f"{self.place}{found}: {self.reason}"


class ConfigError(UserError):
    """A configuration that cannot be run, with everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        head = "The configuration cannot be run" + (f", for {count} reasons:" if count > 1 else ":")
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


def one_line(value: Any) -> str:
    """A value in one line of at most 80 characters, as YAML's flow style reads it."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:39]}...{text[-38:]}"


class InputError(UserError):
    """A setting that does not fit the files or numbers it is about.

    Attributes:
        key: place in the configuration, such as `data.source`.
        value: what stands there.
        problem: what is wrong, with file, row or client and the numbers found.
        remedy: what would be right.
    """

    def __init__(self, key: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(key, value, problem, remedy)
        self.key = key
        self.value = value
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.key} = {one_line(self.value)}: {self.problem}; {self.remedy}"


class DataError(InputError):
    """A data set that cannot be read as one: missing, unreadable, of mixed sizes or with labels out of range."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean X? ` where a known word looks like this one, otherwise nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


def mistakes() -> tuple[type[Exception], ...]:
    """The errors that a person can put right, wherever in the project they are raised."""
    from actors.hosts.placement import PlacementError
    from algorithms.nets import NetworkError
    from clusters.bits import BitsError

    # What was never imported raised nothing, and importing it here would need Ray.
    session = sys.modules.get("clusters.session")
    return (UserError, NetworkError, PlacementError, BitsError, *([session.ClusterError] if session else []))
