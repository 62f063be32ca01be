"""Image classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.core import settings
from algorithms.core.classification import Classification, classes_of, no_labels
from algorithms.core.columns import ASKED, ColumnError, Columns, Roles, contents_of, full_column, only_column
from algorithms.core.settings import setting
from algorithms.core.task import LABEL, PreparedTask, Shard, Task, Trait
from algorithms.nets.forms import Images, Inputs

IMAGE = "image"
"""Name of the column of images, uint8 (N, C, H, W)."""


@dataclass(frozen=True)
class Augment:
    """Random changes of training images, drawn from the step's own seed.

    Attributes:
        crop: pixels of zero padding before a random crop back to the image's size; 0 turns it off.
        flip: mirror left and right with probability one half.
    """

    crop: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented copy of float or uint8 images (B, C, H, W)."""
        if self.crop:
            images = _random_crop(images, self.crop, generator)
        if self.flip:
            mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images


def _random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    down = offsets[0, :, None] + torch.arange(height)
    right = offsets[1, :, None] + torch.arange(width)
    which = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ImageTask(Classification):
    """Image classification.

    Attributes:
        shape: (channels, height, width) of every image.
        mean, std: per channel, of training pixels scaled to [0, 1]; what networks see is (x - mean) / std.
        augment: random changes of training batches.
    """

    title: ClassVar[str] = "image classification"
    traits: ClassVar[frozenset[Trait]] = frozenset({"classes", "images"})

    @dataclass(frozen=True, kw_only=True)
    class Settings(settings.Config):
        crop: int = setting(0, "pixels of padding before a random crop back; 0 turns it off", ge=0)
        flip: bool = setting(False, "mirror training images left and right with probability one half")

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = Augment()

    @classmethod
    def fits(cls, columns: Columns, roles: Roles) -> bool:
        return contents_of(columns, roles) == ["image"]

    @classmethod
    def prepare(cls, train: Columns, test: Columns, roles: Roles, settings: Any) -> PreparedTask:
        name = only_column(train, roles, IMAGE, ("image",))
        names, labels, test_labels = classes_of(train, test, roles)
        images = full_column(train, name, IMAGE, "image", "training").values
        test_images = full_column(test, name, IMAGE, "image", "test").values
        mean, std = pixel_statistics(images)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        task = cls(names, shape, mean, std, Augment(settings.crop, settings.flip))
        return PreparedTask(
            task,
            train={IMAGE: images, LABEL: labels},
            test={IMAGE: repeat_grey(test_images, shape), LABEL: test_labels},
        )

    def question(self, columns: Columns, roles: Roles) -> Mapping[str, np.ndarray]:
        name = only_column(columns, roles, IMAGE, ("image",))
        images = full_column(columns, name, IMAGE, "image", ASKED).values
        if images.shape[2:] != self.shape[1:] or images.shape[1] > self.shape[0]:
            found, needed = ("x".join(map(str, shape)) for shape in (images.shape[1:], self.shape))
            problem = f"the images are {found} and the network takes {needed} (channels x height x width)"
            raise ColumnError(IMAGE, problem, "give images of this size, grey where there is one channel")
        return {IMAGE: repeat_grey(images, self.shape), LABEL: no_labels(len(images))}

    @property
    def form(self) -> Images:
        return Images(self.shape)

    @property
    def is_random(self) -> bool:
        return self.augment != Augment()

    @cached_property
    def _mean(self) -> Tensor:
        return torch.tensor(self.mean).view(1, -1, 1, 1)

    @cached_property
    def _std(self) -> Tensor:
        return torch.tensor(self.std).view(1, -1, 1, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (B, C, H, W) to float32 network inputs."""
        return (pixels.to(torch.float32) / 255 - self._mean.to(pixels.device)) / self._std.to(pixels.device)

    def from_signed(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], as generators make them, to network inputs. Differentiable."""
        return ((images + 1) / 2 - self._mean.to(images.device)) / self._std.to(images.device)

    def to_signed(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (B, C, H, W) to float32 images in [-1, 1]."""
        return pixels.to(torch.float32) / 127.5 - 1

    def batch(
        self,
        shard: Shard,
        picks: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Inputs, Tensor]:
        """Network inputs (B, C, H, W) and labels (B,) of some of a client's examples, on a device.

        Args:
            picks: int64, (B,), positions in `shard.rows`.
            generator: augment with it; None leaves the images as they are.
            device: pixels go there as bytes, a quarter of what inputs are, and become inputs there.
        """
        rows = shard.rows[picks]
        pixels = shard.columns[IMAGE].index_select(0, rows)  # indexing by [rows] takes ten times as long
        if generator is not None:
            pixels = self.augment(pixels, generator)
        return self.normalise(pixels.to(device)), shard.columns[LABEL][rows].to(device)

    def pictures(self, inputs: Tensor) -> Tensor | None:
        mean, std = (value.to(inputs.device) for value in (self._mean, self._std))
        return ((inputs.detach() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def images_of(task: Task) -> ImageTask:
    """The task as one of images, for what makes images.

    Raises:
        TypeError: it is none; methods that need images say so in `requires`, and were asked before the start.
    """
    if "images" not in task.traits:
        raise TypeError(f"{task.title} has no images")
    return cast(ImageTask, task)


def repeat_grey(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Images of some shape: grey ones (N, 1, H, W) among coloured ones are repeated.

    Raises:
        ColumnError: images of another size, or coloured ones among grey ones.
    """
    found = images.shape[1:]
    if found[1:] != shape[1:] or found[0] > shape[0]:
        sizes = ["x".join(map(str, one)) for one in (shape, found)]
        raise ColumnError(
            IMAGE,
            f"training images are {sizes[0]} but others are {sizes[1]} (channels x height x width)",
            "make them the same; data.size scales all to one size",
        )
    return images if found[0] == shape[0] else np.repeat(images, shape[0], axis=1)


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
