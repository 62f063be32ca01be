"""Rows of numbers and categories as networks take them: what classification and regression of tables have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from algorithms.core.columns import Column, ColumnError, Columns, Roles, inputs_of, same_column
from algorithms.core.task import Shard
from algorithms.nets.forms import Inputs, Tables

TABLE = "table"
"""Role of the columns that are read; all numbers and categories where none is named."""

NUMBERS, CATEGORIES = "numbers", "categories"
"""Names of the columns of numbers, float32 (N, D), and of codes, int32 (N, K)."""


@dataclass(frozen=True)
class Numeric:
    """A column of numbers; what networks see is (x - mean) / std, 0 where it is missing.

    Attributes:
        mean, std: of the training rows that have a value; 0 and 1 where none has.
        has_gaps: whether training rows miss it: then 1 where a value is missing, else 0, is a number of its own.
    """

    name: str
    mean: float
    std: float
    has_gaps: bool


@dataclass(frozen=True)
class Categoric:
    """A column of categories; what networks see is the place of a value among `values`, from 1, and 0 where it is
    missing or no training row has it.

    Attributes:
        values: those of the training rows, sorted.
    """

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Encoding:
    """The encoding by which rows of a table become numbers and codes."""

    numbers: tuple[Numeric, ...]
    categories: tuple[Categoric, ...]

    @classmethod
    def of(cls, train: Columns, names: Sequence[str]) -> Encoding:
        """The encoding of some columns by the statistics of training rows.

        Raises:
            ColumnError: a number that is infinite.
        """
        numeric = [name for name in names if train[name].content == "number"]
        return cls(
            tuple(_numeric(name, train[name]) for name in numeric),
            tuple(_categoric(name, train[name]) for name in names if name not in numeric),
        )

    @property
    def form(self) -> Tables:
        indicators = sum(number.has_gaps for number in self.numbers)
        return Tables(len(self.numbers) + indicators, tuple(1 + len(c.values) for c in self.categories))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (*(one.name for one in self.numbers), *(one.name for one in self.categories))

    def encode(self, columns: Columns, half: str) -> dict[str, np.ndarray]:
        """The columns `NUMBERS` and `CATEGORIES` of one half of a data set.

        Raises:
            ColumnError: a column is missing, has another content, or a number is infinite.
        """
        count = len(next(iter(columns.values())))
        numbers = [_standardise(one, _finite(one.name, _column(columns, one, half), half)) for one in self.numbers]
        codes = [_codes(one, _column(columns, one, half)) for one in self.categories]
        gaps = [np.isnan(columns[one.name].values).astype(np.float32) for one in self.numbers if one.has_gaps]
        return {NUMBERS: _stack(numbers + gaps, count, np.float32), CATEGORIES: _stack(codes, count, np.int32)}


def features(columns: Columns, roles: Roles, ignore: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    """Names of the columns that are read: those of the role `table`, or all numbers, categories and classes.

    Args:
        ignore: columns that are not read, beside those of the role `ignore`.
        otherwise: columns that play another part.

    Raises:
        ColumnError: a column to be read or ignored that is not there or has another content; none that is left.
    """
    unknown = [name for name in ignore if name not in columns]
    if unknown:
        raise ColumnError("ignore", f"there is no column {unknown[0]!r} to ignore", f"there are {', '.join(columns)}")
    named = inputs_of(columns, roles).get(TABLE, ())
    for name in named:
        if name not in columns:
            raise ColumnError(TABLE, f"there is no column {name!r}", f"there are {', '.join(columns)}")
        if columns[name].content not in ("number", "category", "class"):
            problem = f"column {name!r} holds {columns[name].content} values"
            raise ColumnError(TABLE, problem, "a table is made of numbers and categories")
    excluded = {*otherwise, *ignore, *(name for role in roles if role != TABLE for name in roles[role])}
    candidates = named or [n for n, column in columns.items() if column.content in ("number", "category", "class")]
    found = [name for name in candidates if name not in excluded]
    if not found:
        remedy = "ignore fewer" if excluded - {*otherwise} else f"there must be one beside {', '.join(otherwise)}"
        raise ColumnError(TABLE, "no column of numbers or categories is left to learn from", remedy)
    return found


def table_batch(shard: Shard, rows: Tensor, device: torch.device | str) -> Inputs:
    """`numbers`, float32 (B, D), and `categories`, int64 (B, K)."""
    return {
        NUMBERS: shard.columns[NUMBERS][rows].to(device),
        CATEGORIES: shard.columns[CATEGORIES][rows].to(device).long(),
    }


def refuse_infinite(name: str, values: np.ndarray, role: str, half: str) -> None:
    """Refuse numbers (N,) of which one is infinite."""
    wrong = np.flatnonzero(np.isinf(values))
    if len(wrong):
        problem = f"{half} row {wrong[0]} holds {values[wrong[0]]} in column {name!r}"
        raise ColumnError(role, problem, "numbers must be finite, or missing")


def mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of float64 (N,): 0 and 1 where there is none, and a deviation of 1 of one single
    value, so that it can be divided by."""
    return (float(values.mean()), float(values.std()) or 1.0) if len(values) else (0.0, 1.0)


def _numeric(name: str, column: Column) -> Numeric:
    values = _finite(name, column, "training")
    missing = np.isnan(values)
    return Numeric(name, *mean_and_std(values[~missing]), bool(missing.any()))


def _categoric(name: str, column: Column) -> Categoric:
    return Categoric(name, tuple(sorted({value for value in _words(column) if value is not None})))


def _words(column: Column) -> Sequence[str | None]:
    """The values of a column of categories or classes in words, None where one is missing."""
    if column.content == "class":
        return [column.names[value] if value >= 0 else None for value in column.values]
    return list(column.values)


def _column(columns: Columns, one: Numeric | Categoric, half: str) -> Column:
    if isinstance(one, Categoric) and one.name in columns and columns[one.name].content == "class":
        return columns[one.name]
    return same_column(columns, one.name, TABLE, "number" if isinstance(one, Numeric) else "category", half)


def _finite(name: str, column: Column, half: str) -> np.ndarray:
    refuse_infinite(name, column.values, TABLE, half)
    return column.values


def _standardise(one: Numeric, values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), 0.0, (values - one.mean) / one.std).astype(np.float32)


def _codes(one: Categoric, column: Column) -> np.ndarray:
    places = {value: place for place, value in enumerate(one.values, 1)}
    return np.array([places.get(value, 0) if value is not None else 0 for value in _words(column)], dtype=np.int32)


def _stack(columns: Sequence[np.ndarray], count: int, dtype: type) -> np.ndarray:
    return np.stack(columns, 1) if columns else np.empty((count, 0), dtype)
