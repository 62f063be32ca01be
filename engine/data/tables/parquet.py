"""Parquet: a folder with a file or shards for each half, as the Hugging Face hub writes them, or one file alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.data.config import DataConfig
from engine.data.contents import few
from engine.data.folders import WORDS, is_hidden, name_facts, place_of
from engine.data.half import Half, HalfName, rows_of_half
from engine.data.tables.arrow import class_columns, class_names, half_of, unread_columns
from engine.errors import DataError

SUFFIX = ".parquet"


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """The first `limit` rows of a half; no others are decoded.

    Of a folder these are the rows of `train.parquet`, or of all `train-*.parquet` by name, there or in its folder
    `data`; of `test` or else `validation` alike. A set of several parts has a folder for each, of which one is chosen
    by the one that is there. Of one file they are those of `rows_of_half`.
    """
    place = place_of(config)
    if place.is_file():
        return _read_rows(config, _Files.open(config, [place]), half, limit)
    split = _split(config, place, half)
    files = _Files.open(config, split.files)
    table, whole = files.first(limit), files.classes(limit)
    found = half_of(table, config, files.place, files.origin, whole, files.unread)
    return replace(found, facts=(*name_facts(Path(files.origin), split.word, half), *found.facts))


def read_file(config: DataConfig, path: Path) -> Half:
    """All rows of one file."""
    files = _Files.open(config, [path])
    return half_of(files.first(None), config, files.place, files.origin, None, files.unread)


def _read_rows(config: DataConfig, files: _Files, half: HalfName, limit: int | None) -> Half:
    whole = rows_of_half(files.count, half)
    rows = whole[:limit]
    classes = files.classes(limit)
    return half_of(
        files.first(None).take(pa.array(rows)),
        config,
        lambda row: files.place(int(rows[row])),
        files.origin,
        None if classes is None else classes.take(pa.array(whole)),
        files.unread,
    )


@dataclass(frozen=True)
class _Split:
    """The files of a half in a folder, in order, and the word that stands for the half in their names."""

    word: str
    files: list[Path]

    @classmethod
    def find(cls, folder: Path, half: HalfName) -> _Split | None:
        """`WORD.parquet`, `WORD-*.parquet` or `WORD/*.parquet`, there or in the folder `data`; None where none is."""
        for word in WORDS[half]:
            for place in (folder, folder / "data"):
                whole = place / f"{word}{SUFFIX}"
                several = sorted([*place.glob(f"{word}-*{SUFFIX}"), *place.glob(f"{word}/[!.]*{SUFFIX}")])
                found = [whole] if whole.is_file() else several
                if found:
                    return cls(word, found)
        return None


def _split(config: DataConfig, folder: Path, half: HalfName) -> _Split:
    """The files of a half in a folder, or in the one folder below that has training files, as the hub lays out the
    parts of a set.

    Raises:
        DataError: there are none, some are missing, or several folders have some.
    """
    home = folder if _Split.find(folder, "train") else _part(config, folder)
    found = _Split.find(home, half)
    if found:
        _check_complete(config, found.files)
        return found
    missing = f"there is no file {home / half}{SUFFIX}, nor {half}-*{SUFFIX} there or in {home / 'data'}"
    remedy = "the folder needs train.parquet and test.parquet, or shards such as train-00000-of-00002.parquet"
    if half == "test":
        remedy += "; data.validation holds out training rows in place of a test file"
    raise DataError("data.source", config.source, missing, remedy)


def _part(config: DataConfig, folder: Path) -> Path:
    """The one folder below with training files; the folder itself where there is none."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    parts = [path for path in below if _Split.find(path, "train")]
    if len(parts) > 1:
        problem = f"{folder} has {len(parts)} sets: {few([path.name for path in parts])}"
        raise DataError("data.source", config.source, problem, f"name one, as {config.source}/{parts[0].name}")
    return parts[0] if parts else folder


def _check_complete(config: DataConfig, files: Sequence[Path]) -> None:
    """Refuse shards of which some are missing, where their names say how many there are."""
    numbered = [re.search(r"-(\d+)-of-(\d+)\b", path.name) for path in files]
    counts = {int(found[2]) for found in numbered if found}
    there = [int(found[1]) for found in numbered if found]
    if len(there) != len(files):
        return
    if len(counts) != 1 or sorted(there) != list(range(*counts)):
        wanted, names = " or ".join(map(str, sorted(counts))), few([path.name for path in files])
        problem = f"{files[0].parent} has {len(files)} shards, of {wanted} by their names: {names}"
        raise DataError("data.source", config.source, problem, "put all shards of one set there, and no others")


@dataclass(frozen=True, eq=False)
class _Files:
    """Files of one half, in order.

    Attributes:
        starts: number of the first row of each file.
        unread: columns that are not read, since the types of some would run code, and what they are.
    """

    config: DataConfig
    paths: list[Path]
    files: list[pq.ParquetFile]
    starts: np.ndarray
    count: int
    unread: dict[str, str]

    @classmethod
    def open(cls, config: DataConfig, paths: list[Path]) -> _Files:
        files = [_open(config, path) for path in paths]
        schema = files[0].schema_arrow
        for path, file in zip(paths, files, strict=True):
            if file.schema_arrow.names != schema.names or file.schema_arrow.types != schema.types:
                problem = (
                    f"{path} has the columns {_type_name(file.schema_arrow)}, but {paths[0]} has {_type_name(schema)}"
                )
                raise DataError("data.source", config.source, problem, "write the same columns into all shards")
        unread = unread_columns(config, schema, str(paths[0]))
        ends = np.cumsum([0, *(file.metadata.num_rows for file in files)])
        return cls(config, paths, files, ends[:-1], int(ends[-1]), unread)

    @property
    def origin(self) -> str:
        return str(self.paths[0]) if len(self.paths) == 1 else f"{self.paths[0]} to {self.paths[-1].name}"

    def place(self, row: int) -> str:
        """The file and the row in it."""
        which = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.paths[which]} row {row - int(self.starts[which])}"

    def first(self, limit: int | None) -> pa.Table:
        """The first rows, of the columns that can be read."""
        tables = []
        for path, file, start in zip(self.paths, self.files, self.starts.tolist(), strict=True):
            if limit is None or start < limit or start == 0:
                tables.append(self._rows(path, file, None if limit is None else limit - start))
        return pa.concat_tables(tables).slice(0, limit)

    def _rows(self, path: Path, file: pq.ParquetFile, limit: int | None) -> pa.Table:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        before = np.cumsum([0, *sizes])[: len(sizes)]
        groups = [group for group, start in enumerate(before) if limit is None or start < limit]
        columns = [name for name in file.schema_arrow.names if name not in self.unread]
        try:
            return file.read_row_groups(groups, columns=columns)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise _damage_error(self.config, path, error) from error

    def classes(self, limit: int | None) -> pa.Table | None:
        """Columns of classes without names over all rows, where fewer are read."""
        schema = self.files[0].schema_arrow
        names = class_names(self.config, schema, self.origin)
        wanted = [name for name in class_columns(self.config, schema) if name not in names]
        if limit is None or limit >= self.count or not wanted:
            return None
        try:
            return pa.concat_tables([file.read(columns=wanted) for file in self.files])
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise _damage_error(self.config, self.paths[0], error) from error


def _type_name(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _open(config: DataConfig, path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataError("data.source", config.source, f"there is no file {path}", "correct the path")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise _damage_error(config, path, error) from error


def _damage_error(config: DataConfig, path: Path, error: Exception) -> DataError:
    return DataError("data.source", config.source, f"{path} is not a readable Parquet file ({error})", "replace it")
