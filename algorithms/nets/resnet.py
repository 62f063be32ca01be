"""Residual networks for small images: a 3x3 stem without max pooling, and adaptive average pooling at the end.

Source: He et al., arXiv 1512.03385, section 4.2 for resnet8 and table 1 for the others, whose 7x7 stem is replaced as
in the code of Mosaic, arXiv 2505.19699. An identity shortcut keeps its shape; any other is a 1x1 convolution with batch
normalisation. No convolution has a bias.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from algorithms.nets.classifier import Classifier
from algorithms.nets.forms import Images
from algorithms.nets.width import narrow


class Block(nn.Module):
    """ReLU(residual(x) + shortcut(x)): both make the same shape of maps (B, channels, H, W) or (B, channels, T)."""

    def __init__(self, residual: nn.Sequential, shortcut: nn.Sequential) -> None:
        super().__init__()
        self.residual, self.shortcut = residual, shortcut
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        return self.relu(self.residual(maps) + self.shortcut(maps))


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The identity where the shape stays."""
    whole = stride == 1 and inputs == outputs
    return nn.Sequential(*([] if whole else _convolution(inputs, outputs, 1, stride)))


def _basic(inputs: int, inner: int, outputs: int, stride: int) -> Block:
    """Two 3x3 convolutions."""
    residual = nn.Sequential(*_convolution(inputs, inner, 3, stride), nn.ReLU(), *_convolution(inner, outputs, 3))
    return Block(residual, _shortcut(inputs, outputs, stride))


def _bottleneck(inputs: int, inner: int, outputs: int, stride: int) -> Block:
    """1x1, 3x3 and 1x1 convolutions; the middle one takes the stride."""
    residual = nn.Sequential(
        *_convolution(inputs, inner, 1),
        nn.ReLU(),
        *_convolution(inner, inner, 3, stride),
        nn.ReLU(),
        *_convolution(inner, outputs, 1),
    )
    return Block(residual, _shortcut(inputs, outputs, stride))


@dataclass(frozen=True)
class Layout:
    """A residual network's plan.

    Attributes:
        blocks: of each stage; every stage after the first halves the image.
        channels: of the first stage's inner convolutions and of the stem; each further stage doubles them.
        expansion: channels a block gives out for each inner one: 1 for basic blocks, 4 for bottlenecks.
    """

    blocks: tuple[int, ...]
    channels: int = 64
    expansion: int = 1


RESNET8 = Layout((1, 1, 1), channels=16)
RESNET18 = Layout((2, 2, 2, 2))
RESNET34 = Layout((3, 4, 6, 3))
RESNET50 = Layout((3, 4, 6, 3), expansion=4)


def resnet(layout: Layout, form: Images, outputs: int, width: float) -> Classifier:
    """A residual network of images, its hidden channels narrowed to a width."""
    block = _basic if layout.expansion == 1 else _bottleneck
    present = narrow(layout.channels, width)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["stem"] = nn.Sequential(*_convolution(form.shape[0], present, 3), nn.ReLU())
    for stage, count in enumerate(layout.blocks):
        full = layout.channels * 2**stage
        inner, outer = narrow(full, width), narrow(full * layout.expansion, width)
        strides = [2 if stage else 1] + [1] * (count - 1)
        blocks = [block(present if i == 0 else outer, inner, outer, stride) for i, stride in enumerate(strides)]
        parts[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        present = outer
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(nn.Sequential(parts), nn.Linear(present, outputs))
