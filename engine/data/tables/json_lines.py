"""JSON lines: one file, or a folder with `train.jsonl` and `test.jsonl`; UTF-8, an object a line.

Its columns are the names in any of the objects. One that a line lacks, or has as null, is missing there. Lines without
anything are passed over. Words, numbers and truth values are read as those of a Parquet file are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.data.config import DataConfig
from engine.data.folders import place_of
from engine.data.half import Half, HalfName, rows_of_half
from engine.data.tables.arrow import class_columns, half_of
from engine.errors import DataError

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class _Objects:
    """A file's objects and the line on which each stands."""

    path: Path
    values: list[dict[str, Any]]
    lines: list[int]

    def half(self, config: DataConfig, rows: Sequence[int], first: int | None) -> Half:
        """Some rows, of which the first are wanted."""
        names = dict.fromkeys(name for value in self.values for name in value)
        whole = pa.table({name: self._column(config, name, rows) for name in names})
        return half_of(
            whole.slice(0, first),
            config,
            lambda row: f"{self.path} line {self.lines[rows[row]]}",
            str(self.path),
            whole.select(class_columns(config, whole.schema)),
        )

    def _column(self, config: DataConfig, name: str, rows: Sequence[int]) -> pa.Array:
        found: list[Any] = [self.values[row].get(name) for row in rows]
        kinds = {type(value): row for value, row in zip(reversed(found), reversed(rows), strict=True)}
        kinds.pop(type(None), None)
        if len(kinds) > 1 and not kinds.keys() <= {int, float}:
            (kind, row), (other, again) = sorted(kinds.items(), key=lambda pair: pair[1])[:2]
            problem = (
                f"{name} is {_NAMES[kind]} in {self.path} line {self.lines[row]} and {_NAMES[other]} in line "
                f"{self.lines[again]}"
            )
            raise DataError("data.source", config.source, problem, "write one kind of value into a column")
        try:
            return pa.array(
                [None if value is None else float(value) for value in found] if kinds.keys() == {int, float} else found
            )
        except (pa.ArrowException, ValueError, OverflowError) as error:
            problem = f"{name} of {self.path} cannot be read ({error})"
            raise DataError("data.source", config.source, problem, "correct its values") from error


_NAMES = {
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    list: "a list",
    dict: "an object",
}


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """The first `limit` rows of a half: of a folder those of its file, of one file those of `rows_of_half`.

    Raises:
        DataError: naming file and line, for a file that is missing or not UTF-8, a line that is no object, and a column
            with values of two kinds.
    """
    place = place_of(config)
    if not place.is_file():
        objects = _read(config, place / f"{half}{SUFFIX}")
        return objects.half(config, range(len(objects.values)), limit)
    objects = _read(config, place)
    return objects.half(config, rows_of_half(len(objects.values), half).tolist(), limit)


def read_file(config: DataConfig, path: Path) -> Half:
    """All rows of one file.

    Raises:
        DataError: see `read`.
    """
    objects = _read(config, path)
    return objects.half(config, range(len(objects.values)), None)


def _read(config: DataConfig, path: Path) -> _Objects:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        remedy = f"correct the path; a folder needs train{SUFFIX} and test{SUFFIX}"
        raise DataError("data.source", config.source, f"there is no file {path}", remedy) from error
    except UnicodeDecodeError as error:
        raise DataError("data.source", config.source, f"{path} is not UTF-8 ({error})", "save it as UTF-8") from error
    except OSError as error:
        raise DataError("data.source", config.source, f"{path} cannot be read ({error})", "correct the path") from error
    found = [
        (number, _object(config, path, number, line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    if not found:
        raise DataError("data.source", config.source, f"{path} is empty", "write a JSON object a line")
    return _Objects(path, [value for _, value in found], [number for number, _ in found])


def _object(config: DataConfig, path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        problem = f"{path} line {number} is no JSON ({error})"
        raise DataError("data.source", config.source, problem, "write a JSON object a line") from error
    if not isinstance(found, dict):
        problem = f"{path} line {number} holds {_NAMES.get(type(found), 'null')}"
        raise DataError(
            "data.source", config.source, problem, 'write objects, as {"instruction": "...", "answer": "..."}'
        )
    return found
