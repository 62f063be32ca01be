"""Agreement of clients' gradients, and of two models' losses item by item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Likeness of the gradients of clients at one point.

    Attributes:
        cosine: mean over all pairs of clients, in [-1, 1]; NaN for one client, or where a gradient is 0.
        dissimilarity: B^2 = sum_k p_k ||g_k||^2 / ||sum_k p_k g_k||^2, at least 1 (Li et al., 2020, arXiv 1812.06127,
            definition 3); infinite where the gradients cancel out, NaN where all are 0.
    """

    cosine: float
    dissimilarity: float


def agreement_of(gradients: Sequence[Tensor], weights: Sequence[float] | None = None) -> Agreement:
    """Agreement of gradients, float (D,) each, computed in double precision.

    Args:
        weights: p_k in any scale, above 0; equal ones where None.

    Raises:
        ValueError: there is no gradient.
    """
    if not gradients:
        raise ValueError("no gradient, and so no agreement")
    stack = torch.stack([gradient.double() for gradient in gradients])
    shares = torch.ones(len(stack)).double() if weights is None else torch.tensor(weights, dtype=torch.float64)
    shares = shares / shares.sum()
    squares = stack.square().sum(1)
    directions = stack / squares.sqrt()[:, None]
    pairs = torch.triu_indices(len(stack), len(stack), 1)
    cosines = (directions @ directions.T)[pairs[0], pairs[1]]
    dissimilarity = (shares @ squares) / (shares @ stack).square().sum()
    return Agreement(float(cosines.mean()), float(dissimilarity))


@dataclass(frozen=True)
class WinShare:
    """The share of items on which one model's loss is below another's, and its bootstrap interval."""

    share: float
    low: float
    high: float


def paired_win_share(
    ours: Sequence[float], theirs: Sequence[float], random: np.random.Generator, level: float = 0.95, draws: int = 2_000
) -> WinShare:
    """The share of items with the lower negative log-likelihood of `ours`; where both are equal, half an item.

    The interval goes between percentiles of the shares of `draws` samples of as many items, drawn with replacement. It
    is about items alone: not about seeds, nor about what a judge would prefer.

    Args:
        ours, theirs: of the same items in the same order.
        random: draws the samples.

    Raises:
        ValueError: other lengths, or no item.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} and {len(theirs)} losses cannot be paired; give one of each for every item")
    first, second = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    wins = (first < second) + 0.5 * (first == second)
    shares = [wins[random.integers(len(wins), size=len(wins))].mean() for _ in range(draws)]
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return WinShare(float(wins.mean()), float(low), float(high))
