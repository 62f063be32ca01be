"""Small classifiers: a perceptron with one hidden layer and two convolutional networks.

Each takes the form of its inputs, the number of outputs, and the width in (0, 1] of its hidden layers; it never
narrows the inputs' channels or the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from algorithms.nets.classifier import Classifier
from algorithms.nets.forms import Images, Signals
from algorithms.nets.pooling import MaxPool
from algorithms.nets.width import narrow

Norm = Callable[[int], nn.Module]
"""Number of channels -> their normalisation."""


def mlp(form: Images | Signals, outputs: int, width: float) -> Classifier:
    """Pixels - 64 - classes, with ReLU and without normalisation: 784-64-10 on MNIST."""
    hidden = narrow(64, width)
    return Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(math.prod(form.shape), hidden), nn.ReLU()), nn.Linear(hidden, outputs)
    )


def small_cnn(form: Images, outputs: int, width: float, norm: Norm = nn.BatchNorm2d) -> Classifier:
    """Three 3x3 convolutions of 8, 16 and 32 channels with normalisation, the last two after 2x2 max pooling.

    The last maps are averaged down to 2x2, so there are 4 * 32 features for images of any size from 4x4.
    """
    first, second, third = (narrow(channels, width) for channels in (8, 16, 32))
    body = nn.Sequential(
        *_normalised_convolution(form.shape[0], first, norm),
        MaxPool(),
        *_normalised_convolution(first, second, norm),
        MaxPool(),
        *_normalised_convolution(second, third, norm),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )
    return Classifier(body, nn.Linear(4 * third, outputs))


def _normalised_convolution(inputs: int, outputs: int, norm: Norm) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A 3x3 convolution, whose bias the normalisation after it would take away."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.ReLU()


def cnn2(form: Images, outputs: int, width: float) -> Classifier:
    """Two 5x5 convolutions of 32 and 64 channels, each with ReLU and 2x2 max pooling, then 128 hidden units.

    The network of FedAvg, arXiv 1602.05629, section 3, with 128 hidden units for its 512.
    """
    first, second, hidden = (narrow(channels, width) for channels in (32, 64, 128))
    channels, rows, columns = form.shape
    body = nn.Sequential(
        nn.Conv2d(channels, first, 5, padding=2),
        nn.ReLU(),
        MaxPool(),
        nn.Conv2d(first, second, 5, padding=2),
        nn.ReLU(),
        MaxPool(),
        nn.Flatten(),
        nn.Linear(second * (rows // 4) * (columns // 4), hidden),
        nn.ReLU(),
    )
    return Classifier(body, nn.Linear(hidden, outputs))
