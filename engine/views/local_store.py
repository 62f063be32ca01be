"""MLflow's store in a file of this machine: its URI, whether it can be written, and one process at a time making it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from engine.store.folder import LOCK
from engine.store.locking import Busy, locked_by_us

_SQLITE = "sqlite:///"
_MAKING_SECONDS = 60.0
"""Making a store takes 1 to 12 s; after this time whoever makes it is held for lost, and we go on."""

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def uri_of(file: Path) -> str:
    """The URI of a database file, with the two characters quoted that mean something in a URI's path."""
    return _SQLITE + file.as_posix().replace("%", "%25").replace("?", "%3F")


def file_of(uri: str) -> Path | None:
    """The database file of a URI; None for any other kind of store."""
    if not uri.startswith(_SQLITE) or uri.removeprefix(_SQLITE).startswith((":memory:", "file:")):
        return None
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0]))


def anchored_uri(uri: str, folder: Path) -> str:
    """The URI of a database file whose relative path is of a folder; any other URI as it is."""
    file = file_of(uri)
    if file is None or file.is_absolute():
        return uri
    _, mark, options = uri.partition("?")
    return f"{uri_of(folder / file)}{mark}{options}"


@contextmanager
def making(uri: str) -> Iterator[None]:
    """A block in which a store may be made, which no other run does at the same time; of any other kind, just a block.

    Raises:
        OSError, sqlite3.Error: at once, where the file cannot be written; MLflow would try for two minutes.
    """
    file = file_of(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    as_mlflow_reads = Path(uri.removeprefix(_SQLITE)).parent
    extra = [path for path in (as_mlflow_reads, *as_mlflow_reads.parents) if not path.exists()]
    with _alone(file):
        _require_writable(file)
        yield
    for folder in extra:  # MLflow makes the folder of the URI as it is spelled, quoted characters and all
        with suppress(OSError):
            folder.rmdir()


def drop(file: Path) -> None:
    """Remove a store that was made for a run which then could not start, and that no other run is told to."""
    others = [folder for folder in file.parent.iterdir() if (folder / LOCK).exists()]
    if not others:
        file.unlink(missing_ok=True)
        _lock_of(file).unlink(missing_ok=True)


def _lock_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.lock")


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    try:
        with locked_by_us(_lock_of(file), _MAKING_SECONDS):
            yield
    except Busy:
        yield


def _require_writable(file: Path) -> None:
    connection = sqlite3.connect(file, timeout=0)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode not in _BUSY:  # others write to it now, so it can be written
            raise
    finally:
        connection.close()
