"""Self-attention: the block that the Transformer for texts and the one for sequences are made of.

Source: Vaswani et al., arXiv 1706.03762, with normalisation before each part, as in GPT-2. Without dropout: what a
network draws while it trains would be one more thing that clients differ in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention, then two linear layers with GELU, each added to what it was given: float (B, T, size), alike."""

    def __init__(self, size: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(size), nn.LayerNorm(size)
        self.projection, self.output = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))

    def forward(self, places: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask`, bool (B, 1, 1, T), says what may be looked at; where None, a place sees itself and those before."""
        queries, keys, values = (
            self.projection(self.first(places)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None)
        places = places + self.output(seen.transpose(1, 2).flatten(2))
        changed: Tensor = places + self.layers(self.second(places))
        return changed


def positions(places: Tensor) -> Tensor:
    """Sines and cosines of the number of each place, (T, size), for float (B, T, size) of an even size: any length."""
    length, size = places.shape[1:]
    rates = torch.exp(torch.arange(0, size, 2, device=places.device) * (-math.log(10000.0) / size))
    angles = torch.arange(length, device=places.device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1).to(places.dtype)
