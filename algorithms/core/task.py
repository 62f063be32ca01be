"""The learning problem: image classification, and the examples one client holds of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """The examples of one client, as rows of arrays that all clients of a machine share.

    Attributes:
        images: uint8, (N, C, H, W), every training image of the data set; never written to.
        labels: int64, (N,), in [0, classes).
        rows: int64, (n,), the rows this client holds.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return self.rows.numel()

    @cached_property
    def own_labels(self) -> Tensor:
        """int64, (n,): the labels of this client's examples, in the order of `rows`."""
        return self.labels[self.rows]

    def label_counts(self, classes: int) -> Tensor:
        """int64, (classes,): how many examples of each class the client holds."""
        return torch.bincount(self.own_labels, minlength=classes)


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
class ImageTask:
    """Image classification.

    Attributes:
        class_names: one name per class; their number is C of the formulas.
        shape: (channels, height, width) of every image.
        mean, std: per channel, of training pixels scaled to [0, 1]; what networks see is (x - mean) / std.
        augment: random changes of training batches.
    """

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = Augment()

    @property
    def classes(self) -> int:
        return len(self.class_names)

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
    ) -> tuple[Tensor, Tensor]:
        """Network inputs (B, C, H, W) and labels (B,) of some of a client's examples, on a device.

        Args:
            picks: int64, (B,), positions in `shard.rows`.
            generator: augment with it; None leaves the images as they are.
            device: pixels go there as bytes, a quarter of what inputs are, and become inputs there.
        """
        rows = shard.rows[picks]
        pixels = shard.images.index_select(0, rows)  # indexing by [rows] takes ten times as long
        if generator is not None:
            pixels = self.augment(pixels, generator)
        return self.normalise(pixels.to(device)), shard.labels[rows].to(device)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, mean over the batch."""
        return F.cross_entropy(logits, labels)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float (B,): the loss of each example, of which `loss` is the mean."""
        return F.cross_entropy(logits, labels, reduction="none")
