"""A folder of images: `train/CLASS/*` and `test/CLASS/*`.

Every file is read, refused or named: images of a format that is not read, and those outside of a class's folder, are
refused, since examples would be missing; hidden files and files that are no images are passed over and told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data.config import DataConfig
from engine.data.contents import few
from engine.data.folders import WORDS, folder_of, is_hidden, name_facts
from engine.data.half import Half, HalfName, fixed_order, image_half
from engine.data.images.decode import open_image, stack
from engine.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")

UNREAD_SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".pbm", ".pgm"),
    *(".pnm", ".ppm", ".svg", ".tga", ".tif", ".tiff"),
)
"""Suffixes of images that are not read."""

LAYOUT = "lay images out as train/CLASS/*.png and test/CLASS/*.png"


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """The images of one half, sorted by class and name and then put in a fixed shuffled order.

    The classes are the sub-folders of `train`, sorted by name; images in folders below are of the class above.
    """
    folder = folder_of(config)
    names = _classes(config, _half_folder(config, folder, "train"))
    half_folder = _half_folder(config, folder, half)
    found = _Files.of(config, half_folder, names)
    files = [found.images[position] for position in fixed_order(len(found.images))[:limit]]

    def place(row: int) -> str:
        return f"{files[row][0]} (row {row})"

    images = stack(
        [path for path, _ in files], lambda path: open_image(path.read_bytes()), config.size, config.source, place
    )
    labels = np.array([label for _, label in files], np.int64)
    changed = tuple(f"{half_folder}: {fact}" for fact in images.facts)
    facts = (*name_facts(half_folder, half_folder.name, half), *found.facts, *changed)
    return image_half(images.values, labels, names, place, str(half_folder), facts)


def _half_folder(config: DataConfig, folder: Path, half: HalfName) -> Path:
    found = [folder / word for word in WORDS[half] if (folder / word).is_dir()]
    if found:
        return found[0]
    remedy = LAYOUT
    if half == "test":
        remedy += "; data.validation holds out training rows in place of a test folder"
    raise DataError("data.source", config.source, f"there is no folder {folder / half}", remedy)


def _classes(config: DataConfig, folder: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    if not names:
        raise DataError(
            "data.source", config.source, f"{folder} has no sub-folder", "give every class a folder of its own"
        )
    return tuple(names)


@dataclass(frozen=True)
class _Files:
    """The files of one half.

    Attributes:
        images: with their classes, sorted by class and path.
        facts: notes on the others.
    """

    images: list[tuple[Path, int]]
    facts: tuple[str, ...]

    @classmethod
    def of(cls, config: DataConfig, folder: Path, names: tuple[str, ...]) -> _Files:
        """All files below a folder, each read, told or refused.

        Raises:
            DataError: for images that would be missed, a class that is none of `names`, and one without images.
        """
        unknown = [name for name in _classes(config, folder) if name not in names]
        if unknown:
            problem = f"{folder / unknown[0]} is of a class that train has no folder for"
            raise DataError("data.source", config.source, problem, f"the classes are {few(names)}")
        paths = sorted(_walk(folder))
        hidden = [path for path in paths if any(is_hidden(part) for part in path.parts)]
        seen = [path for path in paths if not any(is_hidden(part) for part in path.parts)]
        _refuse_missed(config, folder, seen)
        images = [path for path in seen if path.suffix.lower() in SUFFIXES]
        codes = {name: code for code, name in enumerate(names)}
        labelled = sorted((codes[path.parts[0]], folder / path) for path in images)
        _check_classes(config, folder, names, {code for code, _ in labelled})
        others = [path for path in seen if path.suffix.lower() not in SUFFIXES]
        facts = (*_facts("hidden file", folder, hidden), *_facts("other file", folder, others))
        return cls([(path, code) for code, path in labelled], facts)


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, by their paths from there; links are followed."""
    for place, _, files in os.walk(folder, followlinks=True):
        yield from (Path(place, name).relative_to(folder) for name in files)


def _refuse_missed(config: DataConfig, folder: Path, paths: list[Path]) -> None:
    """Refuse images that no class would have."""
    unread = [path for path in paths if path.suffix.lower() in UNREAD_SUFFIXES]
    stray = [path for path in paths if len(path.parts) == 1 and path.suffix.lower() in SUFFIXES]
    if unread:
        problem = f"{folder} has {_count('image', unread)} of a format that is not read: {_names(unread)}"
        remedy = "convert them to PNG, JPEG or WebP, or take them out"
    elif stray:
        problem = f"{folder} has {_count('image', stray)} outside of a class's folder: {_names(stray)}"
        remedy = f"take them out, or {LAYOUT}"
    else:
        return
    raise DataError("data.source", config.source, problem, remedy)


def _check_classes(config: DataConfig, folder: Path, names: tuple[str, ...], found: set[int]) -> None:
    empty = [name for code, name in enumerate(names) if code not in found]
    if empty and folder.name == "train":
        problem = f"{folder / empty[0]} holds no image"
        raise DataError("data.source", config.source, problem, f"images end in {', '.join(SUFFIXES)}")


def _facts(word: str, folder: Path, paths: list[Path]) -> tuple[str, ...]:
    return (f"{folder}: {_count(word, paths)} passed over: {_names(paths)}",) if paths else ()


def _count(word: str, paths: list[Path]) -> str:
    return f"{len(paths)} {word}{'' if len(paths) == 1 else 's'}"


def _names(paths: list[Path]) -> str:
    """Some of them, whatever bytes their names are."""
    return few([path.as_posix().encode(errors="backslashreplace").decode() for path in paths])
