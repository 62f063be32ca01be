"""Networks for signals of several channels over time: one-dimensional convolutions."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from algorithms.nets.classifier import Classifier
from algorithms.nets.forms import Signals
from algorithms.nets.resnet import Block
from algorithms.nets.width import narrow

Norm = Callable[[int], nn.Module]
"""Number of channels -> their normalisation."""


def cnn1d(form: Signals, outputs: int, width: float, norm: Norm = nn.BatchNorm1d) -> Classifier:
    """Three convolutions of 7, 5 and 3 samples and 16, 32 and 64 channels with normalisation, the last two after
    pooling by 2; the mean over time is the features."""
    first, second, third = (narrow(channels, width) for channels in (16, 32, 64))
    body = nn.Sequential(
        *_convolution(form.shape[0], first, 7, norm=norm),
        nn.ReLU(),
        nn.MaxPool1d(2, ceil_mode=True),
        *_convolution(first, second, 5, norm=norm),
        nn.ReLU(),
        nn.MaxPool1d(2, ceil_mode=True),
        *_convolution(second, third, 3, norm=norm),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )
    return Classifier(body, nn.Linear(third, outputs))


def resnet1d(form: Signals, outputs: int, width: float) -> Classifier:
    """A residual network of 8 layers: three stages of one block, of 16, 32 and 64 channels, as `resnet8`; each after
    the first halves the time."""
    first, second, third = (narrow(channels, width) for channels in (16, 32, 64))
    body = nn.Sequential(
        *_convolution(form.shape[0], first, 7),
        nn.ReLU(),
        _block(first, first, 1),
        _block(first, second, 2),
        _block(second, third, 2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )
    return Classifier(body, nn.Linear(third, outputs))


def _block(inputs: int, outputs: int, stride: int) -> Block:
    residual = nn.Sequential(*_convolution(inputs, outputs, 3, stride), nn.ReLU(), *_convolution(outputs, outputs, 3))
    whole = stride == 1 and inputs == outputs
    return Block(residual, nn.Sequential(*([] if whole else _convolution(inputs, outputs, 1, stride))))


def _convolution(
    inputs: int, outputs: int, samples: int, stride: int = 1, norm: Norm = nn.BatchNorm1d
) -> tuple[nn.Module, nn.Module]:
    """A convolution, whose bias the normalisation after it would take away."""
    convolution = nn.Conv1d(inputs, outputs, samples, stride=stride, padding=samples // 2, bias=False)
    return convolution, norm(outputs)
