"""Columns of a data set as they were read, before a task makes of them what its networks take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Content: TypeAlias = Literal["image", "signal", "text", "number", "category", "class"]


@dataclass(frozen=True, eq=False)
class Column:
    """One column, a value a row.

    Attributes:
        content: what the values are.

            - `image`: uint8 (N, C, H, W);
            - `signal`: float32 (N, channels, T);
            - `text`: object (N,), str;
            - `number`: float64 (N,), NaN where a value is missing;
            - `category`: object (N,), str, or None where a value is missing;
            - `class`: int64 (N,), positions in `names`, not yet checked against them.
        values: the array.
        names: of a `class` column, one for each class.
        present: bool (N,), False where an image or a signal is missing, whose values are then of no account; None where
            every row has one. A text that is missing is None.
    """

    content: Content
    values: np.ndarray
    names: tuple[str, ...] = ()
    present: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> Column:
        """The rows of these numbers."""
        present = None if self.present is None else self.present[rows]
        return Column(self.content, self.values[rows], self.names, present)

    def has_value(self) -> np.ndarray:
        """bool (N,): which rows have a value."""
        if self.content in ("text", "category"):
            return np.array([value is not None for value in self.values], dtype=bool)
        if self.content == "number":
            return ~np.isnan(self.values)
        return np.ones(len(self), dtype=bool) if self.present is None else self.present


MEDIA: tuple[Content, ...] = ("image", "signal", "text")
"""Contents of which one column is a network's whole input."""

NO_INPUTS = ("label", "target", "ignore")
"""Roles of columns that no network takes."""

Columns: TypeAlias = Mapping[str, Column]
"""One half of a data set: columns of equal length by name."""

Roles: TypeAlias = Mapping[str, tuple[str, ...]]
"""Columns by the part that they play for a task, as {"image": ("img",), "label": ("fine_label",)}."""


class ColumnError(ValueError):
    """Columns that do not fit a task.

    Attributes:
        role: what the column was needed for; "" where it is about all of them.
        problem: what is wrong, naming columns, rows and values.
        remedy: what would be right.
    """

    def __init__(self, role: str, problem: str, remedy: str) -> None:
        super().__init__(role, problem, remedy)
        self.role, self.problem, self.remedy = role, problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class SettingError(ValueError):
    """A task's setting that cannot be followed, whatever the columns are.

    Attributes:
        setting: field of the task's Settings.
        problem: what is wrong.
        remedy: what would be right.
    """

    def __init__(self, setting: str, problem: str, remedy: str) -> None:
        super().__init__(setting, problem, remedy)
        self.setting, self.problem, self.remedy = setting, problem, remedy

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}; {self.remedy}"


def only_column(columns: Columns, roles: Roles, role: str, contents: tuple[Content, ...]) -> str:
    """Name of the one column for a role: the one that `roles` names, or the only one with such contents.

    Raises:
        ColumnError: a named column is missing or holds something else, or there is none or more than one to choose.
    """
    fitting = [name for name, column in columns.items() if column.content in contents]
    wanted = " or ".join(contents)
    if role in roles:
        (name,) = roles[role] if len(roles[role]) == 1 else ("",)
        if not name:
            raise ColumnError(role, f"names {len(roles[role])} columns", f"name one {wanted} column")
        if name not in columns:
            raise ColumnError(role, f"there is no column {name!r}", f"there are {', '.join(columns)}")
        if name not in fitting:
            word = first_word(columns[name])
            example = f" (training row {word[0]} has {word[1]!r})" if word else ""
            problem = f"column {name!r} holds {columns[name].content} values{example}"
            raise ColumnError(role, problem, f"name a {wanted} column")
        return name
    named = {name for names in roles.values() for name in names}
    free = [name for name in fitting if name not in named]
    if len(free) != 1:
        found = f"columns {', '.join(free)} could be it" if free else f"no column holds {wanted} values"
        raise ColumnError(role, found, f"say which by data.columns: {{{role}: NAME}}; there are {', '.join(columns)}")
    return free[0]


def first_word(column: Column) -> tuple[int, str] | None:
    """The first row of a column of words that holds no number, and at most 40 characters of the word; None where each
    is a number or missing."""
    words = enumerate(column.values if column.content in ("text", "category") else ())
    return next(((row, word[:40]) for row, word in words if word is not None and not _is_number(word)), None)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def inputs_of(columns: Columns, roles: Roles) -> dict[str, tuple[str, ...]]:
    """The columns of each input, by its name: those of `roles` where it names any, otherwise each image, signal and
    text column by itself; where there is none, numbers and categories are the input."""
    named = {role: names for role, names in roles.items() if role not in NO_INPUTS}
    elsewhere = {name for names in roles.values() for name in names}
    media = [name for name, column in columns.items() if column.content in MEDIA and name not in elsewhere]
    return named or {name: (name,) for name in media}


def contents_of(columns: Columns, roles: Roles) -> list[Content]:
    """The content of each input; `number` for one of several columns. Columns that are not there are passed over."""
    inputs = inputs_of(columns, roles).values()
    found = [[columns[name].content for name in names if name in columns] for names in inputs]
    return [contents[0] if len(contents) == 1 and contents[0] in MEDIA else "number" for contents in found]


def full_column(columns: Columns, name: str, role: str, content: Content, half: str) -> Column:
    """A column of one half of a data set in which every row has a value.

    Args:
        half: the word for it in an error.

    Raises:
        ColumnError: it is missing, holds something else, or a row has no value.
    """
    column = same_column(columns, name, role, content, half)
    missing = np.flatnonzero(~column.has_value())
    if len(missing):
        raise ColumnError(role, f"{half} row {missing[0]} has no value in column {name!r}", "leave such rows out")
    return column


ASKED = "asked"
"""The word for rows whose answer is asked for, beside those of the halves of a data set, in an error."""


def same_column(columns: Columns, name: str, role: str, content: Content, half: str) -> Column:
    """A column of one half of a data set, as the other half has it.

    Raises:
        ColumnError: it is missing, or holds something else.
    """
    if name not in columns:
        remedy = "write it into both halves" if half != ASKED else "the network was trained on it: add it"
        raise ColumnError(role, f"the {half} rows have no column {name!r}", remedy)
    column = columns[name]
    if column.content != content:
        problem = f"column {name!r} holds {content} values, but {column.content} values in the {half} rows"
        remedy = "write the same kind of values into both halves" if half != ASKED else "write such values"
        raise ColumnError(role, problem, remedy)
    return column
