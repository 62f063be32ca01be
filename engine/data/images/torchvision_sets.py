"""torchvision's data sets, read from a local root or downloaded by torchvision.

Its CIFAR10 and CIFAR100 are published as pickles. They are read with an unpickler that knows numpy's arrays and nothing
else, so that a file can name no code; torchvision also holds them to the MD5 sums of the published ones.
"""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from algorithms.nets.vision import torchvision
from engine.data.config import DataConfig
from engine.data.half import Half, HalfName, fixed_order, image_half
from engine.data.images.decode import Unreadable, rescale, stack
from engine.errors import DataError, nearest


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """The first `limit` rows of a data set.

    Sets that keep arrays (`data`, and `targets` or `labels`) are taken as they are. Others are read image by image,
    in a fixed shuffled order since most are sorted by class.
    """
    dataset = _open(config, half)
    if isinstance(getattr(dataset, "data", None), np.ndarray | torch.Tensor):
        images, labels = _arrays(config, dataset)
        images = rescale(images[:limit], config.size)
    else:
        images, labels = _one_by_one(config, dataset, limit)
    names = getattr(dataset, "classes", None)
    return image_half(
        images,
        labels,
        None if names is None else tuple(map(str, names)),
        lambda row: f"{config.place} {half} row {row}",
        f"{config.place} {half}",
    )


def _open(config: DataConfig, half: HalfName) -> Any:
    name, _, part = config.place.partition(":")
    maker = _maker(config, name)
    options = _options(config, maker, half, part)
    root = Path(os.path.expandvars(str(config.root))).expanduser()
    try:
        with _arrays_alone():
            return maker(root=root, download=config.download, **options)
    except (RuntimeError, OSError, ValueError, ImportError, pickle.UnpicklingError) as error:
        reason = f"torchvision cannot open {name} under data.root = {root} ({error})"
        remedy = "set data.root to the folder that holds it, or data.download: true where there is a network"
        raise DataError("data.source", config.source, reason, remedy) from error


class _Arrays(pickle.Unpickler):
    """Reads dicts, lists, text, numbers and numpy arrays; a file that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        arrays = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
        if module.partition(".")[0] == "numpy" and name in arrays:
            return arrays[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only numpy's arrays are read")


@contextmanager
def _arrays_alone() -> Iterator[None]:
    """A block in which torchvision's CIFAR reads with `_Arrays`."""
    cifar: Any = torchvision().datasets.cifar
    kept = cifar.pickle
    cifar.pickle = SimpleNamespace(load=lambda file, encoding: _Arrays(file, encoding=encoding).load())
    try:
        yield
    finally:
        cifar.pickle = kept


def _maker(config: DataConfig, name: str) -> Any:
    sets = torchvision().datasets
    maker = getattr(sets, name, None) if name in sets.__all__ else None
    if maker is None:
        remedy = f"{nearest(name, sets.__all__)}use the name of a class in torchvision.datasets, such as FashionMNIST"
        raise DataError("data.source", config.source, f"torchvision has no data set {name!r}", remedy)
    return maker


def _options(config: DataConfig, maker: Any, half: HalfName, part: str) -> dict[str, Any]:
    """The arguments that tell a data set's class which half is wanted."""
    if maker is torchvision().datasets.EMNIST:
        if part not in maker.splits:
            spellings = ", ".join(f"torchvision:EMNIST:{split}" for split in maker.splits)
            raise DataError("data.source", config.source, "EMNIST comes in several splits", f"use one of {spellings}")
        return {"split": part, "train": half == "train"}
    if part:
        raise DataError(
            "data.source",
            config.source,
            f"only EMNIST has splits, not {maker.__name__}",
            f"use torchvision:{maker.__name__}",
        )
    accepted = inspect.signature(maker).parameters
    if "download" in accepted and "train" in accepted:
        return {"train": half == "train"}
    if "download" in accepted and "split" in accepted:
        return {"split": half}
    problem = f"torchvision's {maker.__name__} does not come as a training and a test half"
    raise DataError("data.source", config.source, problem, "save it as Parquet or as a folder of images")


def _arrays(config: DataConfig, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    images = np.asarray(dataset.data)
    labels = np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", ())))
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        found = f"{config.place} holds {images.dtype} data of shape {images.shape} and labels of shape {labels.shape}"
        raise DataError(
            "data.source", config.source, found, "only images of bytes with one label each can be classified"
        )
    return channels_first(images), labels.astype(np.int64)


def channels_first(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) to (N, C, H, W), where C is 1 or 3."""
    if images.ndim == 3:
        return images[:, None]
    if images.shape[1] in (1, 3):
        return images
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _one_by_one(config: DataConfig, dataset: Any, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    labels = []

    def open_image(row: int) -> Image.Image:
        try:
            sample = dataset[row]
        except OSError as error:
            raise Unreadable(f"cannot be read ({error})") from error
        match sample:
            case (Image.Image() as image, int(label)):
                labels.append(label)
                return image
        raise Unreadable("is not an image with one class number")

    order = [int(row) for row in fixed_order(len(dataset))[:limit]]
    images = stack(order, open_image, config.size, config.source, lambda row: f"{config.place} image {order[row]}")
    return images.values, np.array(labels, np.int64)
