"""CSV: one file, or a folder with `train.csv` and `test.csv`. Commas, a header line, UTF-8.

A column is of numbers where every value of the training rows is one, and of words otherwise; `MISSING` marks a value
that is not there. Lines without anything are passed over.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from algorithms.core.columns import Column
from engine.data.config import DataConfig
from engine.data.folders import place_of
from engine.data.half import Half, HalfName, rows_of_half
from engine.errors import DataError

MISSING = frozenset({"", "NA", "NaN", "nan", "null", "?"})

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class _Sheet:
    """A file's header and rows, as words without blanks around them; and the line on which each row begins."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def values(self, column: int) -> list[str | None]:
        return [None if row[column] in MISSING else row[column] for row in self.rows]

    def place(self, row: int) -> str:
        return f"{self.path} line {self.lines[row]}"


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """The first `limit` rows of a half: of a folder those of its file, of one file those of `rows_of_half`.

    Raises:
        DataError: naming file and line, for a file that is missing or not UTF-8, without a header or with one name
            twice, with a row of more or fewer values than the header, and with a word among a column of numbers.
    """
    place = place_of(config)
    if place.is_file():
        sheet = training = _read(config, place)
        rows = rows_of_half(len(sheet.rows), half)
        training_rows = rows_of_half(len(sheet.rows), "train")
    else:
        sheet = _read(config, place / f"{half}.csv")
        training = sheet if half == "train" else _read(config, place / "train.csv")
        rows, training_rows = np.arange(len(sheet.rows)), np.arange(len(training.rows))
    numbers = {
        name for at, name in enumerate(training.header) if _are_numbers(training.values(at), training_rows.tolist())
    }
    whole = {name: _column(config, sheet, at, rows, name in numbers) for at, name in enumerate(sheet.header)}
    first = np.arange(len(rows))[:limit]
    columns = {name: column.take(first) for name, column in whole.items()}
    return Half(columns, lambda row: sheet.place(int(rows[row])), str(sheet.path), whole=whole)


def read_file(config: DataConfig, path: Path, numbers: Collection[str]) -> Half:
    """All rows of one file, whose columns of numbers are known.

    Raises:
        DataError: see `read`.
    """
    sheet = _read(config, path)
    rows = np.arange(len(sheet.rows))
    columns = {name: _column(config, sheet, at, rows, name in numbers) for at, name in enumerate(sheet.header)}
    return Half(columns, sheet.place, str(path))


def _are_numbers(values: list[str | None], rows: list[int]) -> bool:
    return all(values[row] is None or _NUMBER.fullmatch(values[row] or "") for row in rows)


def _column(config: DataConfig, sheet: _Sheet, at: int, rows: np.ndarray, is_number: bool) -> Column:
    values = sheet.values(at)
    if not is_number:
        return Column("text", np.array([values[row] for row in rows.tolist()], dtype=object))
    for row in rows.tolist():
        if values[row] is not None and not _NUMBER.fullmatch(values[row] or ""):
            problem = f"{sheet.place(row)} has {values[row]!r} in column {sheet.header[at]}, which holds numbers"
            remedy = (
                f"correct it, or leave it empty where the value is missing ({', '.join(sorted(MISSING - {''}))} too)"
            )
            raise DataError("data.source", config.source, problem, remedy)
    return Column(
        "number", np.array([np.nan if values[row] is None else float(values[row] or 0) for row in rows.tolist()])
    )


def _read(config: DataConfig, path: Path) -> _Sheet:
    """A file whose rows all have the header's length."""
    reader = csv.reader(io.StringIO(_text(config, path), newline=""), strict=True)
    header: list[str] = []
    rows, lines = [], []
    began = 1
    try:
        for row in reader:
            line, began = began, reader.line_num + 1
            if not row:
                continue
            if not header:
                header = _header(config, path, [name.strip() for name in row])
                continue
            if len(row) != len(header):
                problem = f"{path} line {line} has {len(row)} values, but the header has {len(header)} columns"
                remedy = "give every row one value a column; a value with a comma stands in double quotes"
                raise DataError("data.source", config.source, problem, remedy)
            rows.append([value.strip() for value in row])
            lines.append(line)
    except csv.Error as error:
        problem = f"{path} line {began} is no CSV ({error})"
        remedy = 'close every double quote, and write "" for one inside'
        raise DataError("data.source", config.source, problem, remedy) from error
    if not header:
        raise DataError("data.source", config.source, f"{path} is empty", "begin it with a line of column names")
    return _Sheet(path, header, rows, lines)


def _text(config: DataConfig, path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        remedy = (
            "the folder needs train.csv and test.csv; one file alone is csv:FILE, of which a fifth is the test half"
        )
        raise DataError("data.source", config.source, f"there is no file {path}", remedy) from error
    except OSError as error:
        raise DataError("data.source", config.source, f"{path} cannot be read ({error})", "correct the path") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"{path} line {line} is not UTF-8 (byte {content[error.start]:#04x})"
        raise DataError("data.source", config.source, problem, "save the file as UTF-8") from error


def _header(config: DataConfig, path: Path, names: list[str]) -> list[str]:
    """The names of the columns, all different."""
    twice = sorted({name for name in names if names.count(name) > 1})
    problem = ""
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        problem, remedy = f"has the header {names[0]!r}, without a comma", "separate values by commas"
    elif "" in names:
        problem, remedy = f"has no name for column {names.index('') + 1}", "give every column a name"
    elif twice:
        problem, remedy = f"has the column {twice[0]} twice", "rename one of them"
    elif all(_NUMBER.fullmatch(name) for name in names):
        problem, remedy = "holds numbers alone, not names of columns", "begin the file with a line of column names"
    elif not all(name.isprintable() for name in names):
        problem, remedy = "has names that cannot be printed", "rename the columns"
    if problem:
        raise DataError("data.source", config.source, f"{path} line 1 {problem}", remedy)
    return names
