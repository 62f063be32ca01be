"""The contents of a source's columns: text, categories or classes. Decided by training rows, for both halves.

The rule, which `data.columns` overrides:

- the column `label`, and one that comes with class names, holds classes: those names; or its different words, sorted;
  or its whole numbers, which are the classes themselves where they begin at 0 and at least half of them occur, and are
  numbered in ascending order otherwise. A `label` of numbers that are not whole stays a number;
- other words are text where they have `TEXT_WORDS` words on average and more than `FEW` different values (in a short
  table: where more than half differ), else categories;
- other numbers are numbers.

`data.columns: {label: NAME}` makes another column that of the classes, `text: NAME` makes words text, and `table:
[NAME, ...]` makes words categories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from algorithms.core.columns import Column, Columns, Content, Roles
from algorithms.core.task import LABEL
from engine.data.config import DataConfig
from engine.data.half import Half
from engine.errors import DataError

TEXT_WORDS = 3
FEW = 30

MOST_CLASSES_OF_FEW_ROWS = 20
"""Above this, a label that differs in more than half of the rows numbers the rows, not classes."""


@dataclass(frozen=True, eq=False)
class Contents:
    """The contents of every column of the training half.

    Attributes:
        columns: those of the training half, as they were read.
        classes: by column, of those that hold classes.
    """

    config: DataConfig
    columns: Columns
    classes: Mapping[str, _Classes]

    @classmethod
    def of(cls, config: DataConfig, train: Half) -> Contents:
        """By the rule of this module.

        Raises:
            DataError: a label that tells rows apart instead of classes, class names that cannot be printed.
        """
        found = {name: _classes(config, name, train) for name in sorted(_label_columns(config.columns, train))}
        return cls(config, train.columns, {name: classes for name, classes in found.items() if classes is not None})

    @property
    def facts(self) -> tuple[str, ...]:
        """Notes on how values became classes, where that is not obvious."""
        return tuple(f"{name}: {classes.fact}" for name, classes in self.classes.items() if classes.fact)

    def apply(self, half: Half, word: str) -> Half:
        """Either half with classes, text and categories where the training half has them.

        Args:
            word: for the half, in an error.

        Raises:
            DataError: no row, a row without a label, a label that is none of the classes, other class names, a column
                of other contents.
        """
        if not len(half):
            problem, remedy = f"the {word} set is empty", "each set needs one row at least"
            raise DataError("data.source", self.config.source, problem, remedy)
        return half.with_columns({name: self._column(name, column, half) for name, column in half.columns.items()})

    def _column(self, name: str, column: Column, half: Half) -> Column:
        if name in self.classes:
            _check_names(self.config, self.classes[name].names, half.names.get(name))
            return self.classes[name].encode(self.config, column, half.place)
        if name not in self.columns:
            return column
        ours = self.columns[name]
        return replace(_alike(self.config, name, ours, column), content=_content(self.config.columns, name, ours))


def _label_columns(roles: Roles, train: Half) -> set[str]:
    """Columns that hold classes, where they are whole numbers or words."""
    named = roles.get(LABEL, (LABEL,))
    others = {name for role, names in roles.items() if role != LABEL for name in names}
    return ({*named, *train.names} - others) & train.columns.keys()


# Classes


@dataclass(frozen=True)
class _Classes:
    """The classes of one column.

    Attributes:
        names: one for each.
        codes: class by the value that stands in the source.
        fact: how values became classes, "" where that is plain.
    """

    names: tuple[str, ...]
    codes: Mapping[str | float, int]
    fact: str = ""

    def encode(self, config: DataConfig, column: Column, place: Callable[[int], str]) -> Column:
        """The column as classes, int64."""
        missing = [row for row, value in enumerate(column.values) if value is None or value != value]
        if missing:
            raise DataError("data.source", config.source, f"{place(missing[0])} has no label", "every row needs one")
        has_words = any(isinstance(value, str) for value in self.codes)
        found = column.values.tolist() if not has_words else [number_text(value) for value in column.values]
        values = np.array([-1 if value is None else self.codes.get(value, -1) for value in found], dtype=np.int64)
        outside = np.flatnonzero(values < 0)
        if len(outside):
            row = int(outside[0])
            problem = (
                f"{place(row)} has label {number_text(column.values[row])}, but the {len(self.names)} classes are "
            )
            remedy = "leave the row out, or correct its label"
            raise DataError("data.source", config.source, problem + few(self.names), remedy)
        return Column("class", values, self.names)


def _classes(config: DataConfig, name: str, train: Half) -> _Classes | None:
    """The classes of a column; None where it holds numbers that are not whole, which no class is."""
    column = train.whole.get(name, train.columns[name])
    if name in train.names:
        names = train.names[name]
        _check_printable(config, names)
        is_named = column.content == "text"
        return _Classes(names, {(word if is_named else float(code)): code for code, word in enumerate(names)})
    if column.content == "text":
        words = sorted({value for value in column.values if value is not None})
        _check_countable(config, name, len(words), len(column), train)
        _check_printable(config, words)
        return _Classes(tuple(words), {word: code for code, word in enumerate(words)})
    return _numbered_classes(config, name, column, train) if column.content == "number" else None


def _numbered_classes(config: DataConfig, name: str, column: Column, train: Half) -> _Classes | None:
    ids = np.unique(column.values[~np.isnan(column.values)])
    if not np.isfinite(ids).all() or (ids != np.rint(ids)).any():
        return None
    _check_countable(config, name, len(ids), len(column), train)
    if len(ids) and ids[0] == 0 and ids[-1] < 2 * len(ids):
        numbers = range(int(ids[-1]) + 1)
        return _Classes(tuple(map(str, numbers)), {float(number): number for number in numbers})
    names = tuple(f"{number:.0f}" for number in ids)
    fact = f"its {len(ids)} different values {few(names)} are the classes"
    return _Classes(names, {number: code for code, number in enumerate(ids.tolist())}, fact)


def _check_countable(config: DataConfig, name: str, classes: int, rows: int, train: Half) -> None:
    if classes > MOST_CLASSES_OF_FEW_ROWS and 2 * classes > rows:
        problem = f"column {name} of {train.origin} has {classes} different values in {rows} rows, too many for classes"
        raise DataError("data.source", config.source, problem, "name the column of classes by data.columns.label")


def _check_printable(config: DataConfig, names: Sequence[str]) -> None:
    unprintable = [name for name in names if not name.isprintable()]
    if unprintable:
        problem = f"the class name {unprintable[0]!r} has characters that cannot be printed"
        raise DataError("data.source", config.source, problem, "rename the class")


def _check_names(config: DataConfig, ours: tuple[str, ...], theirs: tuple[str, ...] | None) -> None:
    if theirs not in (None, ours):
        problem = f"training classes are {few(ours)} but test classes are {few(theirs or ())}"
        raise DataError("data.source", config.source, problem, "write the same class names into both")


# Words and numbers


def is_text(values: np.ndarray) -> bool:
    """Whether words, object (N,), str or None, are text and not categories; see the rule of this module."""
    present = [value for value in values if value is not None]
    different = len(set(present))
    words = sum(len(value.split()) for value in present)
    return different > min(FEW, len(present) / 2) and words >= TEXT_WORDS * len(present)


def _content(roles: Roles, name: str, column: Column) -> Content:
    """The content of a training column that holds no classes."""
    if column.content != "text" or name in roles.get("text", ()):
        return column.content
    return "text" if name not in roles.get("table", ()) and is_text(column.values) else "category"


def number_text(value: str | float) -> str | None:
    """A number as people write it; None for NaN."""
    if isinstance(value, str):
        return value
    return None if value != value else f"{value:.0f}" if float(value).is_integer() else repr(float(value))


def _alike(config: DataConfig, name: str, ours: Column, theirs: Column) -> Column:
    """A test column with the contents of the training column: numbers can be words too."""
    if ours.content == theirs.content:
        return theirs
    if ours.content == "text" and theirs.content == "number":
        return Column("text", np.array([number_text(value) for value in theirs.values], dtype=object))
    problem = f"column {name} holds {ours.content} in the training rows but {theirs.content} in the test rows"
    raise DataError("data.source", config.source, problem, "write the same type into both")


def plain_columns(columns: Columns, label: str | None) -> dict[str, np.ndarray]:
    """Columns that tell rows apart, (N,) each: words as they are, whole numbers as int64, classes by name."""
    found = {}
    for name, column in columns.items():
        if column.content in ("text", "category"):
            found[name] = column.values
        elif column.content == "class" and name != label:
            found[name] = np.array(column.names, dtype=object)[column.values]
        elif column.content == "number":
            is_whole = bool(((column.values == np.rint(column.values)) & (np.abs(column.values) < 2**53)).all())
            found[name] = column.values.astype(np.int64) if is_whole else column.values
    return found


def few(names: Sequence[str]) -> str:
    """Some of many names, in a line."""
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, ... {names[-1]}"
