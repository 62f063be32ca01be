"""The partition: which client holds which training rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import InputError


class PartitionError(InputError):
    """Rows that cannot be dealt as asked, or a file that deals them wrongly."""


@dataclass(frozen=True, eq=False)
class Partition:
    """The rows of each client.

    Attributes:
        rows: int64, (n_k,) per client, sorted; no client is empty and no row is held twice.
        kind: of the configuration, or `file`.
        moved: how many rows went to another client than the rule had said, so that none has less than its minimum.
    """

    rows: tuple[np.ndarray, ...]
    kind: str
    moved: int = 0

    @property
    def clients(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> np.ndarray:
        """int64, (clients,): how many rows each client holds."""
        return np.array([len(rows) for rows in self.rows], np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over every client's number of rows and the rows themselves, in the order of the clients."""
        digest = hashlib.sha256()
        for rows in self.rows:
            digest.update(len(rows).to_bytes(8, "little"))
            digest.update(rows.astype("<i8").data)
        return digest.hexdigest()

    def counts(self, labels: np.ndarray | None, classes: int) -> np.ndarray:
        """int64, (clients, classes): examples by client and class; (clients, 1), of each, where there are no labels."""
        if labels is None:
            return self.sizes[:, None]
        return np.stack([np.bincount(labels[rows], minlength=classes) for rows in self.rows])

    def save(self, path: Path, data_fingerprint: str) -> None:
        """Write Parquet with the columns `row` and `client`, and in its metadata what the rows are rows of.

        The file appears whole or not at all.
        """
        table = pa.table(
            {"row": np.concatenate(self.rows), "client": np.repeat(np.arange(self.clients, dtype=np.int64), self.sizes)}
        )
        metadata = {
            "fingerprint": self.fingerprint,
            "kind": self.kind,
            "moved": str(self.moved),
            "data": data_fingerprint,
        }
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        pq.write_table(table.replace_schema_metadata(metadata), unfinished)
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: Path, examples: int, data_fingerprint: str | None = None) -> Partition:
        """Read what `save` wrote, or any Parquet file with integer columns `row` and `client`.

        Args:
            examples: number of training rows; every row of the file must be one of them.
            data_fingerprint: of the data set; where given, a file saved for other data is refused.

        Raises:
            PartitionError: naming the file and what is wrong with it.
        """
        rows, clients, metadata = _columns(path)
        _refuse_other_data(path, metadata.get("data", data_fingerprint), data_fingerprint)
        dealt = _check_and_group(path, rows, clients, examples)
        kind, moved = metadata.get("kind", "file"), metadata.get("moved", "0")
        if not (kind.isidentifier() and moved.isdecimal()):
            raise _wrong(path, f"its metadata says kind = {kind!r}, moved = {moved!r}", "make the partition anew")
        loaded = cls(dealt, kind, int(moved))
        if metadata.get("fingerprint", loaded.fingerprint) != loaded.fingerprint:
            raise _wrong(path, "the rows are not those its fingerprint was taken of", "make the partition anew")
        return loaded


def _wrong(path: Path, problem: str, remedy: str) -> PartitionError:
    return PartitionError("partition.path", str(path), problem, remedy)


def _refuse_other_data(path: Path, made_for: str | None, data: str | None) -> None:
    if data is not None and made_for != data:
        found = f"it was made for data with the fingerprint {made_for}, but this is {data}"
        raise _wrong(path, found, "use the same data section, or make the partition anew")


def _columns(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """The columns `row` and `client`, and the metadata as words."""
    remedy = "it needs the integer columns row and client"
    if not path.is_file():
        raise _wrong(path, f"there is no file {path.absolute()}", "correct the path")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise _wrong(path, f"it is not a readable Parquet file ({error})", remedy) from error
    for name in ("row", "client"):
        if name not in table.column_names:
            raise _wrong(path, f"it has no column {name}, but {', '.join(table.column_names)}", remedy)
        if not pa.types.is_integer(table.schema.field(name).type) or table[name].null_count:
            raise _wrong(path, f"its column {name} does not hold an integer everywhere", remedy)
    found = (table.schema.metadata or {}).items()
    metadata = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in found}
    return table["row"].to_numpy().astype(np.int64), table["client"].to_numpy().astype(np.int64), metadata


def _check_and_group(path: Path, rows: np.ndarray, clients: np.ndarray, examples: int) -> tuple[np.ndarray, ...]:
    if not len(rows):
        raise _wrong(path, "it deals no row at all", "deal at least one row to a client")
    outside = np.flatnonzero((rows < 0) | (rows >= examples))
    if len(outside):
        found = f"client {clients[outside[0]]} holds row {rows[outside[0]]}, but the training data has {examples} rows"
        raise _wrong(path, found, f"rows are numbers from 0 to {examples - 1}")
    present = np.unique(clients)
    empty = np.flatnonzero(present != np.arange(len(present)))
    if len(empty):
        found = f"its client numbers are {_few(present)}, so that client {empty[0]} would be empty"
        raise _wrong(path, found, "number the clients from 0 without a gap")
    order = np.lexsort((clients, rows))
    twice = np.flatnonzero(np.diff(rows[order]) == 0)
    if len(twice):
        first, second = clients[order[twice[0]]], clients[order[twice[0] + 1]]
        raise _wrong(
            path, f"row {rows[order[twice[0]]]} is dealt twice, to clients {first} and {second}", "deal it once"
        )
    return group_rows(rows, clients, len(present))


def group_rows(rows: np.ndarray, clients: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """The rows of each of `count` clients, sorted, from pairs of a row and its client's number."""
    order = np.lexsort((rows, clients))
    borders = np.searchsorted(clients[order], np.arange(1, count))
    return tuple(np.split(rows[order], borders))


def _few(numbers: Sequence[int] | np.ndarray) -> str:
    words = [str(number) for number in numbers[:8]]
    return ", ".join(words) + (", ..." if len(numbers) > 8 else "")
