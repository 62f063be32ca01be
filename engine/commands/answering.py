"""Tables of predictions, as files and as text."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from engine.errors import UserError
from engine.store.folder import make, replacing


class OutputError(UserError):
    """A file that cannot be written; the message names it and the way out."""


def refuse_place(path: Path) -> None:
    """Find out before any work whether a table can be written there.

    Raises:
        OutputError: the file is there already, or its name says no kind of table.
    """
    if path.suffix.lower() not in _WRITERS:
        raise OutputError(f"--out {path}: no kind of table that is known; let it end in {', '.join(_WRITERS)}")
    if path.exists():
        raise OutputError(f"--out {path}: is there already, and nothing is written over it; name another file")


def write(table: pa.Table, path: Path) -> None:
    """Write a table as its file's name says, whole or not at all."""
    make(path.parent)
    with replacing(path) as temporary:
        _WRITERS[path.suffix.lower()](table, temporary)


def csv_text(table: pa.Table) -> str:
    """A table as CSV, with a header line."""
    text = io.BytesIO()
    pyarrow.csv.write_csv(table, text, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return text.getvalue().decode()


def _write_csv(table: pa.Table, path: Path) -> None:
    path.write_text(csv_text(table), encoding="utf-8", newline="")


def _write_json(table: pa.Table, path: Path) -> None:
    path.write_text(json.dumps(table.to_pylist(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


_WRITERS: Mapping[str, Callable[[pa.Table, Path], None]] = {
    ".csv": _write_csv,
    ".parquet": pq.write_table,
    ".json": _write_json,
}
