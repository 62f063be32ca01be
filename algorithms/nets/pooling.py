"""Max pooling over windows of 2x2, in passes over whole tensors: what torch's own does one window after another."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTHWHILE = 2**15
"""Entries from which a tensor is quicker in several passes: below, calling them takes longer than torch's one."""


class MaxPool(nn.MaxPool2d):
    """`nn.MaxPool2d(2)`, with its values and gradients, and several times as fast on a CPU.

    Of equal values in a window the first one, row by row, has the whole gradient.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, inputs: Tensor) -> Tensor:
        """float (B, C, H, W) to (B, C, H // 2, W // 2)."""
        if inputs.device.type != "cpu" or inputs.numel() < WORTHWHILE:
            return F.max_pool2d(inputs, 2)
        if not (torch.is_grad_enabled() and inputs.requires_grad):
            return _largest(inputs)
        pooled: Tensor = _Largest.apply(inputs)
        return pooled


class _Largest(torch.autograd.Function):
    """The largest value of each window."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        pooled = _largest(inputs)
        ctx.save_for_backward(inputs, pooled)
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        inputs, pooled = ctx.saved_tensors
        spread = torch.zeros_like(inputs)
        is_matched = torch.zeros_like(pooled, dtype=torch.bool)
        for corner, target in zip(_corners(inputs), _corners(spread), strict=True):
            hit = (corner == pooled) & ~is_matched
            # As numbers of one byte: products with truth values take three times as long.
            target.copy_(gradients[0] * hit.view(torch.uint8))
            is_matched |= hit
        return spread


def _largest(maps: Tensor) -> Tensor:
    rows, columns = _whole(maps)
    # Rows before columns: the first of the two passes reads all entries, and so reads them in the order of memory.
    tall = torch.maximum(maps[..., 0:rows:2, :columns], maps[..., 1:rows:2, :columns])
    return torch.maximum(tall[..., 0::2], tall[..., 1::2])


def _corners(maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views (..., H // 2, W // 2) of the windows' entries, row by row."""
    rows, columns = _whole(maps)
    return (
        maps[..., 0:rows:2, 0:columns:2],
        maps[..., 0:rows:2, 1:columns:2],
        maps[..., 1:rows:2, 0:columns:2],
        maps[..., 1:rows:2, 1:columns:2],
    )


def _whole(maps: Tensor) -> tuple[int, int]:
    """Rows and columns that lie in windows: an odd last one does not."""
    rows, columns = maps.shape[-2:]
    return rows // 2 * 2, columns // 2 * 2
