"""The DCGAN pair: a generator of images and the discriminator it is trained against.

Source: Radford et al., arXiv 1511.06434, in the form of Mosaic's code (arXiv 2505.19699): no convolution has a bias,
convolution weights start from N(0, 0.02), those of batch normalisation from N(1, 0.02) with bias 0. Written there for
32x32, here for 28x28 and for 8x8 doubled any number of times. Conditional on the class where `classes` is given, as in
Mirza and Osindero, arXiv 1411.1784, for the generator, with one logit per class for the discriminator.

Weights are drawn from torch's global generator, which the caller seeds.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.nets.errors import NetworkError


def _doublings(shape: tuple[int, int, int]) -> tuple[int, int]:
    """The side of the generator's first map, and how many times it doubles to the images' side."""
    _, height, width = shape
    if height == width == 28:
        return 7, 2
    times = (height // 4).bit_length() - 1
    if height != width or times < 1 or height != 4 * 2**times:
        fit = "28x28, and 8x8 doubled any number of times: 8x8, 16x16, 32x32, 64x64, ..."
        raise NetworkError(f"no DCGAN makes images of {height}x{width}; sizes that fit are {fit}")
    return 4, times


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _check_labels(labels: Tensor | None, classes: int | None) -> None:
    if (labels is None) != (classes is None):
        raise ValueError("labels are needed" if labels is None else "labels were given to a network without classes")


class DCGenerator(nn.Module):
    """Noise, and a label where conditional, to images.

    Attributes:
        latent: entries of the noise vector z, drawn from N(0, I) by the caller.
        classes: number of classes it is conditional on, or None.

    Args:
        shape: (channels, height, width) of the images; 28x28 or a doubling of 8x8.
        width: channels of the last hidden layer; each layer before it has twice as many as the next.

    Raises:
        NetworkError: for a size it cannot make.
    """

    def __init__(
        self, shape: tuple[int, int, int], latent: int = 100, width: int = 64, classes: int | None = None
    ) -> None:
        super().__init__()
        start, times = _doublings(shape)
        self.latent, self.classes = latent, classes
        channels = [width * 2**power for power in range(times, -1, -1)]
        layers = _up(latent + (classes or 0), channels[0], start, stride=1, padding=0)
        for inputs, outputs in pairwise(channels):
            layers += _up(inputs, outputs, 4, stride=2, padding=1)
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, shape[0], 1, bias=False), nn.Tanh())
        self.apply(_initialise)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """float (B, latent), and int64 (B,) where conditional, to images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: for labels that are missing, or given to an unconditional generator.
        """
        _check_labels(labels, self.classes)
        if labels is not None and self.classes is not None:
            z = torch.cat([z, F.one_hot(labels, self.classes).to(z.dtype)], dim=1)
        images: Tensor = self.layers(z[:, :, None, None])
        return images


def _up(inputs: int, outputs: int, side: int, stride: int, padding: int) -> list[nn.Module]:
    convolution = nn.ConvTranspose2d(inputs, outputs, side, stride=stride, padding=padding, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class DCDiscriminator(nn.Module):
    """Images, and their labels where conditional, to one logit each: large for an image taken for real.

    The paper ends in a sigmoid under binary cross-entropy; this ends before it, for
    `binary_cross_entropy_with_logits`, which is the same function without its overflow.

    Attributes:
        classes: number of classes it is conditional on, or None.

    Args:
        shape: (channels, height, width) of the images; 28x28 or a doubling of 8x8.
        width: channels of the first hidden layer; each layer has twice as many as the one before it.

    Raises:
        NetworkError: for a size it cannot judge.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 64, classes: int | None = None) -> None:
        super().__init__()
        start, times = _doublings(shape)
        self.classes = classes
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2)]
        for power in range(times):
            inputs, outputs = width * 2**power, width * 2 ** (power + 1)
            convolution = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
        # The generator's first map, halved once more: 2x2 from 4x4, 3x3 from 7x7.
        layers.append(nn.Conv2d(width * 2**times, classes or 1, start // 2, bias=False))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """float (B, C, H, W) in [-1, 1] to logits (B,): those of the labels, int64 (B,), where conditional.

        Raises:
            ValueError: for labels that are missing, or given to an unconditional discriminator.
        """
        _check_labels(labels, self.classes)
        logits: Tensor = self.layers(images).flatten(1)
        return logits[:, 0] if labels is None else logits.gather(1, labels[:, None])[:, 0]
