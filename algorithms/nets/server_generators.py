"""Generators that a server trains against classifiers: noise, and perhaps a label, to images by two upsamplings.

Source: the released code of DENSE (arXiv 2112.12371) and of FedFTG (arXiv 2203.09249), which share their layers and
differ in how they begin and end: 3x3 convolutions, none before a batch normalisation with a bias, on maps of a quarter
of the images' sides. Weights are drawn from torch's global generator, which the caller seeds.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.nets.errors import NetworkError

Shape = tuple[int, int, int]

Merge = Literal["multiply", "add", "concatenate", "none"]


def first_map(shape: Shape) -> tuple[int, int]:
    """Height and width of the map that is upsampled twice to images of a shape (channels, height, width).

    Raises:
        NetworkError: for sides that are no multiples of 4.
    """
    _, height, width = shape
    if height % 4 or width % 4:
        raise NetworkError(f"no such generator makes images of {height}x{width}; both sides must be multiples of 4")
    return height // 4, width // 4


def _layers(shape: Shape, width: int) -> nn.Sequential:
    """Flat values (B, 2 width h w) on maps of h x w to unbounded images."""
    return nn.Sequential(
        nn.Unflatten(1, (2 * width, *first_map(shape))),
        nn.BatchNorm2d(2 * width),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, shape[0], 3, padding=1),
    )


def _standard(channels: int) -> nn.Sequential:
    """Unbounded images to images of mean 0 and variance 1 in each channel, as normalised inputs of a network are."""
    return nn.Sequential(nn.Tanh(), nn.BatchNorm2d(channels, affine=False))


class UpsamplingGenerator(nn.Module):
    """DENSE's: noise (B, latent) to images (B, C, H, W) in [0, 1].

    Linear and convolution weights start from N(0, 0.02) with biases 0, those of batch normalisation from N(1, 0.02).

    Args:
        shape: (channels, height, width) of the images; sides that are multiples of 4.
        width: channels of the last hidden layer; those before it have twice as many.
    """

    def __init__(self, shape: Shape, latent: int = 256, width: int = 64) -> None:
        super().__init__()
        self.begin = nn.Linear(latent, 2 * width * math.prod(first_map(shape)))
        self.layers = _layers(shape, width)
        self.apply(_initialise)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = torch.sigmoid(self.layers(self.begin(z)))
        return images


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ConditionalGenerator(nn.Module):
    """FedFTG's: noise (B, latent) and labels int64 (B,) to network inputs (B, C, H, W).

    One half of the first maps is made from the noise, the other from the label. The images end in a batch
    normalisation without weights, so that they have the mean and variance of normalised inputs.
    """

    def __init__(self, shape: Shape, classes: int, latent: int = 100, width: int = 64) -> None:
        super().__init__()
        half = width * math.prod(first_map(shape))
        self.classes = classes
        self.from_noise, self.from_label = nn.Linear(latent, half), nn.Linear(classes, half)
        self.layers, self.end = _layers(shape, width), _standard(shape[0])

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        label = F.one_hot(labels, self.classes).to(z.dtype)
        images: Tensor = self.end(self.layers(torch.cat([self.from_noise(z), self.from_label(label)], 1)))
        return images


class MergedGenerator(nn.Module):
    """DFRD's: h = o(z, y), noise merged with an embedding of the label, to network inputs (B, C, H, W).

    The merge o multiplies, adds or concatenates the two, or leaves the label out. The layers after it are taken from
    FedFTG; the DFRD paper's own could not be looked up.
    """

    def __init__(
        self, shape: Shape, classes: int, latent: int = 100, width: int = 64, merge: Merge = "multiply"
    ) -> None:
        super().__init__()
        self.merge = merge
        self.embedding = nn.Embedding(classes, latent)
        merged = 2 * latent if merge == "concatenate" else latent
        self.begin = nn.Linear(merged, 2 * width * math.prod(first_map(shape)))
        self.layers, self.end = _layers(shape, width), _standard(shape[0])

    def merge_noise(self, z: Tensor, labels: Tensor) -> Tensor:
        """h: float (B, latent), or (B, 2 latent) where concatenated."""
        if self.merge == "none":
            return z
        label = self.embedding(labels)
        if self.merge == "concatenate":
            return torch.cat([z, label], 1)
        return z * label if self.merge == "multiply" else z + label

    def forward(self, h: Tensor) -> Tensor:
        images: Tensor = self.end(self.layers(self.begin(h)))
        return images


class LatentGenerator(nn.Module):
    """FedGen's: noise (B, noise) and labels int64 (B,) to features (B, features), as a classifier's head takes them.

    With 32 entries of noise, 10 classes, 256 hidden units and 32 features it has 19,744 parameters.
    """

    def __init__(self, classes: int, features: int, noise: int = 32, hidden: int = 256) -> None:
        super().__init__()
        self.classes = classes
        self.layers = nn.Sequential(
            nn.Linear(noise + classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, features)
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        features: Tensor = self.layers(torch.cat([z, F.one_hot(labels, self.classes).to(z.dtype)], 1))
        return features
