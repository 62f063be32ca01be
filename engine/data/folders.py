"""Paths of a FILE or FOLDER of the configuration."""

from __future__ import annotations

import os
from pathlib import Path

from engine.data.config import DataConfig
from engine.data.half import HalfName
from engine.errors import DataError

WORDS = {"train": ("train",), "test": ("test", "validation", "valid", "val", "dev")}
"""Names of a half's files or folder; the first that is there is taken."""


def name_facts(folder: Path, word: str, half: HalfName) -> tuple[str, ...]:
    """A note where a half's name is not its first; `word` is the one that was found."""
    first = WORDS[half][0]
    return () if word == first else (f"{folder} is used as the {first} set, as there is no {first}",)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems put beside a person's own: `.DS_Store`, `._0.png`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def folder_of(config: DataConfig) -> Path:
    """The folder that a source names; see `place_of`.

    Raises:
        DataError: naming both places where there is neither, or a file in its place.
    """
    found = place_of(config)
    if not found.is_dir():
        raise DataError("data.source", config.source, f"{found} is a file", "name the folder that holds both halves")
    return found


def place_of(config: DataConfig) -> Path:
    """The file or folder that a source names: as given, else under TESSERA_DATA.

    Raises:
        DataError: naming both places where there is neither.
    """
    given = Path(os.path.expandvars(config.place)).expanduser()
    if given.exists():
        return given
    word = "file" if given.suffix else "folder"
    tried = f"there is no {word} {given.absolute()}"
    remedy = "correct the path, or set the environment variable TESSERA_DATA to the folder that holds your data sets"
    shared = os.environ.get("TESSERA_DATA")
    if not shared:
        raise DataError("data.source", config.source, f"{tried}, and TESSERA_DATA is not set", remedy)
    if (Path(shared) / given).exists():
        return Path(shared) / given
    raise DataError("data.source", config.source, f"{tried}, and none {Path(shared) / given} (TESSERA_DATA)", remedy)
