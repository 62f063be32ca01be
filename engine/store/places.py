"""Places of a run's folder: a path on a disk, or a URI that fsspec knows (s3://, gs://, abfs://, file://, ...)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from engine.errors import UserError
from engine.store.folder import LOCK, FolderExists

RESULT = "result.json"


class PlaceError(UserError):
    """A place that cannot be used; the message names it and the way out."""


def is_uri(place: str) -> bool:
    """Whether a place is a URI, and not a path."""
    return "://" in place


@contextmanager
def folder_for(place: str) -> Iterator[Path]:
    """The folder to run in. That of a URI is a temporary one, which is copied there when the block has ended, in
    whatever way it ended.

    Raises:
        PlaceError: before the block, nothing can be written at the URI; after it, what was written is kept here.
        FolderExists: there is something at the URI.
    """
    if not is_uri(place):
        yield Path(place)
        return
    _refuse_unusable(place)
    parent = Path(tempfile.mkdtemp(prefix="tessera-run-"))
    folder = parent / Path(place.rstrip("/")).name
    try:
        yield folder
    finally:
        if folder.is_dir():
            send(folder, place)
        shutil.rmtree(parent)


def send(folder: Path, uri: str) -> None:
    """Copy a folder to a URI; result.json comes last, since where it is, the run is complete.

    Raises:
        PlaceError: it cannot be written; the folder stays.
    """
    try:
        files, path = _resolve(uri)
        for file in sorted(
            (f for f in folder.rglob("*") if f.is_file() and f.name != LOCK), key=lambda f: (f.name == RESULT, f)
        ):
            target = f"{path}/{file.relative_to(folder).as_posix()}"
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            files.put_file(str(file), target)
    except Exception as error:  # whatever a store raises
        raise PlaceError(f"{uri} could not be written: {_line(error)}; what should be there is in {folder}") from error


def fetch(place: str, folder: Path) -> None:
    """Copy the folder at a place, a path or a URI, to a new folder here.

    Raises:
        PlaceError: there is nothing at the place, as seen from here.
        FolderExists: the folder holds something.
    """
    refuse_taken(folder)
    try:
        files, path = _resolve(place)
        found = files.find(path)
        for name in found:
            target = folder / name.removeprefix(path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(name, str(target))
    except Exception as error:  # whatever a store raises
        raise PlaceError(f"{place} could not be fetched: {_line(error)}") from error
    if not found:
        raise PlaceError(
            f"there is nothing at {place}, as seen from this machine: with --fetch, --out must be a folder that this "
            "machine shares with the cluster's head, or a URI that both can reach"
        )


def refuse_taken(folder: Path) -> None:
    """
    Raises:
        FolderExists: where there is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderExists(f"{folder} already holds something, and nothing is written over it: name another folder")


def _refuse_unusable(uri: str) -> None:
    """Find out before hours of work whether their result can be kept."""
    try:
        files, path = _resolve(uri)
        is_used = files.exists(path) and bool(files.find(path))
        if not is_used:
            files.makedirs(path, exist_ok=True)
            files.pipe_file(f"{path}/.tessera", b"")
            files.rm_file(f"{path}/.tessera")
    except Exception as error:  # whatever a store raises
        raise PlaceError(
            f"--out {uri}: nothing can be written there: {_line(error)}; name a folder, or a URI that fsspec can "
            "write to"
        ) from error
    if is_used:
        raise FolderExists(f"{uri} already holds something, and a run never writes over another: name another place")


def _resolve(place: str) -> tuple[Any, str]:
    """The file system of a place, and the path in it without a slash at its end."""
    files, path = fsspec.url_to_fs(place)
    return files, path.rstrip("/")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
