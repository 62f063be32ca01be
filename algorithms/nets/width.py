"""Narrower versions of a network: a fraction of the channels of every hidden layer."""

from __future__ import annotations

import math

from torch import nn


def narrow(channels: int, width: float) -> int:
    """ceil(width * channels): what is left of a hidden layer at a width in (0, 1]; at least 1.

    Source: FedRolex, arXiv 2212.01548, and HeteroFL, arXiv 2010.01264, of whose sub-models this is the size.
    """
    # 0.07 * 100 is 7.000000000000001 in floating point, and its ceiling would be 8.
    return max(1, math.ceil(width * channels - 1e-9))


class HiddenEmbedding(nn.Embedding):
    """An embedding whose entries are hidden channels, of which a narrower network has fewer."""
