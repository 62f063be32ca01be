"""Rows that a trained network is asked about: a folder of images, an image, lines of text, a CSV, JSON lines or Parquet
file, or an Arrow table. They are read as training rows were, and need no label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from algorithms.core.columns import ASKED, Column, ColumnError, Columns, Content
from engine.data.config import DataConfig
from engine.data.contents import number_text
from engine.data.images.decode import open_image, stack
from engine.data.images.image_folder import SUFFIXES
from engine.data.tables import csv_files, json_lines, parquet
from engine.data.tables.arrow import half_of
from engine.errors import DataError, UserError, nearest

TEXTS = ".txt"


class QuestionError(UserError):
    """Rows that a network cannot be asked about; the message names them and the way out."""


@dataclass(frozen=True)
class Reading:
    """The reading of a source's columns, for further rows of the same kind.

    Attributes:
        contents: of the columns that a network is asked about, by name.
        roles: `data.columns`.
        size: `data.size`.
    """

    contents: Mapping[str, Content]
    roles: Mapping[str, tuple[str, ...]]
    size: int | None

    def config(self, source: str) -> DataConfig:
        """The same as readers of data sets take it."""
        named = {role: names for role, names in self.roles.items() if set(names) <= self.contents.keys()}
        return DataConfig(source=source, columns=named, size=self.size)


@dataclass(frozen=True, eq=False)
class Question:
    """Rows to be asked about.

    Attributes:
        columns: as the training half had them.
        labels: a column of the answer that tells the rows apart: its name, and a value for each.
        place: the words for a row in an error message.
    """

    columns: Columns
    labels: tuple[str, Sequence[Any]]
    place: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels[1])


def read(path: Path, reading: Reading) -> Question:
    """Read all rows of a file or a folder.

    Raises:
        QuestionError: there is nothing, or it is not what the network was trained on.
    """
    if path.is_dir():
        return _read_images(path, _image_files(path), reading)
    if not path.is_file():
        raise QuestionError(f"there is no file or folder {path}; name an image, a folder of images, {_FILES}")
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return _read_images(path, [path], reading)
    if suffix not in _READERS:
        raise QuestionError(f"{path} is none of {_FILES}, images ({', '.join(SUFFIXES)}) or a folder of these")
    return _READERS[suffix](path, reading)


_FILES = f".csv, {json_lines.SUFFIX}, .parquet, {TEXTS} (a text a line)"


def of_table(table: pa.Table, reading: Reading, origin: str = "the table") -> Question:
    """The rows of an Arrow table.

    Raises:
        QuestionError: see `read`.
    """

    def place(row: int) -> str:
        return f"{origin} row {row}"

    with _refusing():
        half = half_of(table, reading.config("parquet:table"), place, origin)
    return _question(half.columns, half.names, place, origin, reading)


def _read_csv(path: Path, reading: Reading) -> Question:
    numbers = {name for name, content in reading.contents.items() if content == "number"}
    with _refusing():
        half = csv_files.read_file(reading.config(f"csv:{path}"), path, numbers)
    return _question(half.columns, half.names, half.place, str(path), reading)


def _read_parquet(path: Path, reading: Reading) -> Question:
    with _refusing():
        half = parquet.read_file(reading.config(f"parquet:{path}"), path)
    return _question(half.columns, half.names, half.place, str(path), reading)


def _read_json_lines(path: Path, reading: Reading) -> Question:
    with _refusing():
        half = json_lines.read_file(reading.config(f"jsonl:{path}"), path)
    return _question(half.columns, half.names, half.place, str(path), reading)


def _read_lines(path: Path, reading: Reading) -> Question:
    name = _only(path, "text", "a text", reading)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise QuestionError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    numbers = [number for number, line in enumerate(lines) if line.strip()]
    if not numbers:
        raise QuestionError(f"{path} holds no text; write one a line")
    texts = np.array([lines[number] for number in numbers], dtype=object)
    return Question(
        {name: Column("text", texts)},
        ("line", [number + 1 for number in numbers]),
        lambda row: f"{path} line {numbers[row] + 1}",
    )


_READERS: Mapping[str, Callable[[Path, Reading], Question]] = {
    ".csv": _read_csv,
    json_lines.SUFFIX: _read_json_lines,
    ".parquet": _read_parquet,
    TEXTS: _read_lines,
}


def _image_files(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    if not found:
        raise QuestionError(f"{folder} holds no image; images end in {', '.join(SUFFIXES)}")
    return found


def _read_images(path: Path, files: Sequence[Path], reading: Reading) -> Question:
    name = _only(path, "image", "images", reading)

    def place(row: int) -> str:
        return str(files[row])

    with _refusing():
        images = stack(files, lambda file: open_image(file.read_bytes()), reading.size, str(path), place).values
    below = path if path.is_dir() else path.parent
    labels = [file.relative_to(below).as_posix() for file in files]
    return Question({name: Column("image", images)}, ("file", labels), place)


def _only(path: Path, content: Content, words: str, reading: Reading) -> str:
    """The one column that a file without names of columns can be."""
    found = [name for name, held in reading.contents.items() if held == content]
    if len(found) != 1:
        needed = ", ".join(f"{name} ({held})" for name, held in reading.contents.items())
        raise QuestionError(f"{path} holds {words}, and the network was trained on {needed}; give a table with these")
    return found[0]


def _question(
    columns: Columns,
    names: Mapping[str, tuple[str, ...]],
    place: Callable[[int], str],
    origin: str,
    reading: Reading,
) -> Question:
    """The columns that are needed, with their contents as in training."""
    found = {
        name: _as_trained(name, columns[name], content, names.get(name), origin)
        for name, content in reading.contents.items()
        if name in columns
    }
    if not found:
        has = ", ".join(columns) or "none"
        first = next(iter(reading.contents), "")
        needed = ", ".join(reading.contents)
        raise QuestionError(f"{origin} has none of the columns {needed}; {nearest(first, columns)}it has {has}")
    count = len(next(iter(found.values())))
    if not count:
        raise QuestionError(f"{origin} has no row; give one at least")
    return Question(found, ("row", range(count)), place)


def _as_trained(name: str, column: Column, content: Content, names: tuple[str, ...] | None, origin: str) -> Column:
    if column.content == content:
        return column
    if content in ("text", "category", "class") and column.content in ("text", "number"):
        return Column("text" if content == "text" else "category", _words(column, names))
    if content == "number" and column.content == "text" and all(value is None for value in column.values):
        return Column("number", np.full(len(column), np.nan))
    if column.content == "number" and np.isnan(column.values).all():
        raise QuestionError(
            f"{origin} has no value in column {name}, which held {content} values in training; give some"
        )
    raise QuestionError(
        f"{origin} holds {column.content} values in column {name}, which held {content} values in training; "
        "write the same kind of values"
    )


def _words(column: Column, names: tuple[str, ...] | None) -> np.ndarray:
    """object (N,): words as they are, numbers as people write them, or the names of classes that are numbered."""
    if column.content == "text":
        return column.values
    words = [number_text(value) for value in column.values]
    if names is not None:
        known = {str(number): word for number, word in enumerate(names)}
        words = [None if word is None else known.get(word, word) for word in words]
    found = np.empty(len(words), dtype=object)
    found[:] = words
    return found


@contextmanager
def _refusing() -> Iterator[None]:
    """A block whose refusals name a file, and no key of a configuration."""
    try:
        yield
    except DataError as error:
        raise QuestionError(f"{error.problem}; {error.remedy}") from error


def refusal(question: Question, error: ColumnError) -> QuestionError:
    """The refusal of a task, with a row by its place."""
    words = error.problem
    _, mark, rest = words.partition(f"{ASKED} row ")
    number = rest.split(" ", 1)[0].rstrip(",;:")
    if mark and number.isdigit():
        words = words.replace(f"{ASKED} row {number}", question.place(int(number)), 1)
    return QuestionError(f"{words.replace(f'the {ASKED} rows have', 'these rows have')}; {error.remedy}")
