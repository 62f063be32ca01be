"""A folder of images: `train/CLASS/*` and `test/CLASS/*`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.data.config import DataConfig
from engine.data.folders import folder_of
from engine.data.half import Half, HalfName, fixed_order, image_half
from engine.data.images.decode import open_image, stack
from engine.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Other files are passed over."""


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """The images of one half, sorted by class and name and then put in a fixed shuffled order.

    The classes are the sub-folders of `train`, sorted by name.
    """
    folder = folder_of(config)
    names = _classes(config, folder / "train")
    found = _files(config, folder / half, names)
    files = [found[position] for position in fixed_order(len(found))[:limit]]

    def place(row: int) -> str:
        return f"{files[row][0]} (row {row})"

    images = stack(
        [path for path, _ in files], lambda path: open_image(path.read_bytes()), config.size, config.source, place
    )
    labels = np.array([label for _, label in files], np.int64)
    return image_half(images, labels, names, place, str(folder / half))


def _classes(config: DataConfig, folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(
            "data.source",
            config.source,
            f"there is no folder {folder}",
            "lay images out as train/CLASS/*.png and test/CLASS/*.png",
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(
            "data.source", config.source, f"{folder} has no sub-folder", "give every class a folder of its own"
        )
    return tuple(names)


def _files(config: DataConfig, folder: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    unknown = [name for name in _classes(config, folder) if name not in names]
    if unknown:
        raise DataError(
            "data.source",
            config.source,
            f"{folder / unknown[0]} is of a class that train has no folder for",
            f"the classes are {', '.join(names)}",
        )
    files = []
    for label, name in enumerate(names):
        images = sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES)
        if not images and folder.name == "train":
            raise DataError(
                "data.source", config.source, f"{folder / name} holds no image", f"images end in {', '.join(SUFFIXES)}"
            )
        files += [(path, label) for path in images]
    return files
