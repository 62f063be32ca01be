"""A data set, decoded once into arrays of bytes that every client shares."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from algorithms.core.task import ImageTask
from engine.data.config import DataConfig
from engine.data.images import digits, image_folder, parquet, torchvision_sets
from engine.data.split import Split, fixed_order
from engine.errors import DataError

READERS = {
    "digits": digits.read,
    "torchvision": torchvision_sets.read,
    "parquet": parquet.read,
    "imagefolder": image_folder.read,
}


@dataclass(frozen=True, eq=False)
class Public:
    """Images that the server owns: uint8, (N, C, H, W), and int64 labels (N,), None where they are not known."""

    images: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images to learn from and images to test on.

    Attributes:
        name: for people, such as `digits` or `mnist`.
        task: class names, shape, and mean and deviation of the training pixels.
        train_images, test_images: uint8, (N, C, H, W); never written to.
        train_labels, test_labels: int64, (N,), in [0, classes).
        columns: further columns of the training rows by name, (N,) each, such as `domain`.
        fingerprint: SHA-256 (hex) of the four arrays, and of the public ones where there are any.
        public: images that the server owns, in no client's hands; None where it owns none.
    """

    name: str
    task: ImageTask
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    columns: Mapping[str, np.ndarray]
    fingerprint: str
    public: Public | None = None


def load(config: DataConfig) -> DataSet:
    """Read, decode and check a data set.

    With `config.validation` above 0 the test half is rows held out of the training half, and so are public rows where
    `config.public` is a share; see `DataConfig`.

    Raises:
        DataError: for files that are missing or damaged, and for halves that are empty or do not fit each other.
    """
    read = READERS[config.kind]
    train, held_out, owned = _dealt(config, read(config, "train", config.limit))
    test = held_out if config.validation else read(config, "test", config.test_limit)
    names = _checked(config, train, test)
    public = _public(config, owned, train.images.shape[1:])
    mean, std = pixel_statistics(train.images)
    shape = (train.images.shape[1], train.images.shape[2], train.images.shape[3])
    test_images = _coloured(test.images, shape[0])
    return DataSet(
        name=config.place.replace("\\", "/").rstrip("/").rpartition("/")[2] or config.kind,
        task=ImageTask(names, shape, mean, std, config.augment.build()),
        train_images=train.images,
        train_labels=train.labels,
        test_images=test_images,
        test_labels=test.labels,
        columns=train.columns,
        fingerprint=fingerprint(
            train.images, train.labels, test_images, test.labels, *([public.images] if public else [])
        ),
        public=public,
    )


def _dealt(config: DataConfig, whole: Split) -> tuple[Split, Split, Split]:
    """Training rows, held-out rows and public rows, by one fixed permutation, each in their first order."""
    order = fixed_order(len(whole.labels))
    held = round(config.validation * len(order))
    owned = round(config.public * len(order)) if isinstance(config.public, float) else 0
    test, public, train = (np.sort(rows) for rows in np.split(order, [held, held + owned]))
    return _rows(whole, train), _rows(whole, test[: config.test_limit]), _rows(whole, public)


def _public(config: DataConfig, owned: Split, shape: tuple[int, ...]) -> Public | None:
    """The images that the server owns, of the training images' shape (C, H, W)."""
    if config.public is None:
        return None
    if isinstance(config.public, float):
        if not len(owned.labels):
            raise DataError("data.public", config.public, "is less than one row", "make it larger")
        return Public(owned.images, owned.labels)
    try:
        images = parquet.read(config.model_copy(update={"source": f"parquet:{config.public}"}), "train", None).images
    except DataError as error:
        raise DataError("data.public", config.public, error.problem, error.remedy) from error
    if not len(images) or images.shape[2:] != shape[1:] or images.shape[1] > shape[0]:
        found = f"holds {len(images)} images of {_shape(images.shape[1:])}, but those to learn from are {_shape(shape)}"
        remedy = "data.size scales all to one size; coloured images do not go with grey ones"
        raise DataError("data.public", config.public, found, remedy)
    return Public(_coloured(images, shape[0]), None)


def _coloured(images: np.ndarray, channels: int) -> np.ndarray:
    """Images of so many channels: grey ones (N, 1, H, W) among coloured ones are repeated."""
    return images if images.shape[1] == channels else np.repeat(images, channels, axis=1)


def _rows(split: Split, rows: np.ndarray) -> Split:
    """The rows of these numbers, in ascending order; the arrays themselves, without a copy, where they are all."""
    if len(rows) == len(split.labels):
        return split
    return replace(
        split,
        images=split.images[rows],
        labels=split.labels[rows],
        place=lambda row: split.place(int(rows[row])),
        columns={name: values[rows] for name, values in split.columns.items()},
    )


def _checked(config: DataConfig, train: Split, test: Split) -> tuple[str, ...]:
    """The class names, once the two halves are known to fit each other."""
    names = train.class_names or ()
    unprintable = [name for name in names if not name.isprintable()]
    if unprintable:
        problem = f"the class name {unprintable[0]!r} has characters that cannot be printed"
        raise DataError("data.source", config.source, problem, "rename the class")
    if test.class_names not in (None, names):
        problem = f"training classes are {_few(names)} but test classes are {_few(test.class_names)}"
        raise DataError("data.source", config.source, problem, "write the same class names into both")
    halves = {"training": train, "held-out" if config.validation else "test": test}
    for word, half in halves.items():
        if not len(half.labels):
            cause = f"of {config.validation:g} of the rows " if config.validation else ""
            raise DataError(
                "data.source", config.source, f"the {word} set {cause}is empty", "each set needs one image at least"
            )
        _check_labels(config, half, names)
    ours, theirs = train.images.shape[1:], test.images.shape[1:]
    if ours[1:] != theirs[1:] or theirs[0] > ours[0]:
        shapes = f"training images are {_shape(ours)} but test images are {_shape(theirs)} (channels x height x width)"
        raise DataError("data.source", config.source, shapes, "make them the same; data.size scales all to one size")
    return names


def _check_labels(config: DataConfig, half: Split, names: tuple[str, ...]) -> None:
    wrong = np.flatnonzero((half.labels < 0) | (half.labels >= len(names)))
    if len(wrong):
        row = int(wrong[0])
        problem = f"{half.place(row)} has label {half.labels[row]}, but the {len(names)} classes are {_few(names)}"
        raise DataError("data.source", config.source, problem, f"labels are numbers from 0 to {len(names) - 1}")


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, ... {names[-1]}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W) scaled to [0, 1], from exact integer sums.

    A channel of one single value has the deviation 1, so that it can be divided by.
    """
    levels = np.arange(256)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = sum(np.bincount(block.ravel(), minlength=256) for block in _blocks(images[:, channel]))
        total, first, second = int(np.sum(counts)), int(np.sum(counts * levels)), int(np.sum(counts * levels**2))
        means.append(first / total / 255)
        deviations.append((second * total - first**2) ** 0.5 / total / 255 or 1.0)
    return tuple(means), tuple(deviations)


def _blocks(array: np.ndarray, rows: int = 1000) -> list[np.ndarray]:
    """Views of at most 1,000 rows each: bincount copies what it counts into 64-bit integers."""
    return [array[start : start + rows] for start in range(0, len(array), rows)]


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 (hex) over types, shapes and values, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
