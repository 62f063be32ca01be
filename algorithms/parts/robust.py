"""Means that single vectors cannot move far. All take updates as float64 (m, d), a client a row, in any order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SUSPECTS = 0.2
"""Share of clients of whom the worst is assumed where a rule needs a number."""


def median(values: Tensor) -> Tensor:
    """The median over the first axis, coordinate by coordinate; of an even number the middle between the inner two."""
    ordered = values.sort(dim=0).values
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def clip_rows(updates: Tensor, largest: Tensor | float) -> Tensor:
    """Rows, scaled down to a norm of at most `largest`."""
    norms = updates.norm(dim=1, keepdim=True)
    return updates * torch.where(norms > largest, largest / norms, 1.0)


def trimmed_mean(updates: Tensor, share: float = SUSPECTS) -> Tensor:
    """The mean of each coordinate without the least and the largest floor(share m). Yin et al., arXiv 1803.01498."""
    drop = math.floor(share * len(updates))
    return updates.sort(dim=0).values[drop : len(updates) - drop].mean(0)


def krum(updates: Tensor, share: float = SUSPECTS) -> Tensor:
    """The update with the least sum of squared distances to its m - f - 2 nearest, one at least, f = floor(share m).
    Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017."""
    if len(updates) == 1:
        return updates[0]
    near = max(1, len(updates) - math.floor(share * len(updates)) - 2)
    distances = torch.cdist(updates, updates, compute_mode="donot_use_mm_for_euclid_dist").square()
    sums = distances.sort(dim=1).values[:, 1 : near + 1].sum(1)
    return updates[int(sums.argmin())]


def norm_bounded_mean(updates: Tensor, shares: Tensor) -> Tensor:
    """The weighted mean of updates whose norms are cut at their median; shares (m,) sum to 1."""
    return shares @ clip_rows(updates, median(updates.norm(dim=1)))


def robust_z(values: Tensor, tiny: float = 1e-8) -> Tensor:
    """|x - median| / (1.4826 MAD + tiny) along the first axis; MAD is the median of |x - median|."""
    apart = (values - median(values)).abs()
    return apart / (1.4826 * median(apart) + tiny)
