"""Gaussians around groups of a client's points, class by class: statistics from which points like them are drawn.

The same for pixels and for features. Feature Gaussians: FedPFT, arXiv 2402.01862, and CCVR, arXiv 2106.05001.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.core import settings
from algorithms.core.payload import Tensors
from algorithms.core.seeds import Seed
from algorithms.core.settings import setting
from algorithms.parts.clusters import groups


@dataclass(frozen=True, kw_only=True)
class CellConfig(settings.Config):
    """Settings of the generators `pca` and `features`: how points are summed up."""

    cells: int = setting(3, "pca, features: most Gaussians for a class", ge=1)
    directions: int = setting(20, "pca, features: principal directions kept of each Gaussian", ge=0)
    least_in_cell: int = setting(
        5, "pca, features: examples a Gaussian must have; a class with fewer is left out", ge=1
    )
    clip: float | None = setting(
        None, "pca, features: largest distance of an example from its Gaussian's mean; farther ones are pulled in", gt=0
    )
    noise: float = setting(
        0.0, "pca, features: deviation of the noise on what is sent, times clip / examples; needs clip", ge=0
    )


def summarise(points: Tensor, labels: Tensor, rule: CellConfig, seed: Seed) -> dict[str, Tensor]:
    """The cells of a client's points.

    Args:
        points: float32 (n, D).
        labels: int64 (n,).

    Returns:
        `mean` float32 (M, D); `loadings` float32 (M, Q, D), principal directions times the standard deviation along
        them, 0 past their number; `label` int64 (M,); `count` int64 (M,), points in the cell. M may be 0.
    """
    means, loadings, owners, counts = [], [], [], []
    draws = seed.torch("noise")
    for label in labels.unique().tolist():
        members = points[labels == label]
        found = groups(members.numpy(), rule.cells, rule.least_in_cell, seed.number("cells", label) % 2**32)
        if found is None:
            continue
        owner = torch.from_numpy(found)
        for cell in range(int(owner.max()) + 1):
            mean, loading = _gaussian(members[owner == cell], rule, draws)
            means.append(mean)
            loadings.append(loading)
            owners.append(label)
            counts.append(int((owner == cell).sum()))
    return {
        "mean": torch.stack(means) if means else points.new_zeros(0, points.shape[1]),
        "loadings": torch.stack(loadings) if loadings else points.new_zeros(0, rule.directions, points.shape[1]),
        "label": torch.tensor(owners, dtype=torch.int64),
        "count": torch.tensor(counts, dtype=torch.int64),
    }


def _gaussian(points: Tensor, rule: CellConfig, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean (D,) and loadings (Q, D) of one cell's points (n, D)."""
    count = len(points)
    centred = points - points.mean(0)
    mean = points.mean(0)
    if rule.clip is not None:
        norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        centred = centred * (rule.clip / norms.clamp_min(1e-12)).clamp_max(1.0)
        mean = mean + centred.mean(0)
    _, scales, directions = torch.linalg.svd(centred, full_matrices=False)
    kept = min(rule.directions, len(scales))
    loadings = torch.zeros(rule.directions, points.shape[1])
    loadings[:kept] = scales[:kept, None] * directions[:kept] / count**0.5
    if rule.noise and rule.clip is not None:
        spread = rule.noise * rule.clip / count
        mean = mean + spread * torch.randn(mean.shape, generator=draws)
        loadings = loadings + spread * torch.randn(loadings.shape, generator=draws)
    return mean, loadings


@dataclass(frozen=True)
class Cells:
    """A `Part`: points drawn from a client's cells, each cell by its number of points.

    Attributes:
        statistics: as `summarise` gives them, M at least 1.
        shape: of one point.
        limits: smallest and largest value of an entry, or None.
    """

    statistics: Tensors
    shape: tuple[int, ...]
    limits: tuple[float, float] | None = None

    def latents(self, count: int, draws: torch.Generator) -> dict[str, Tensor]:
        directions = self.statistics["loadings"].shape[1]
        weights = self.statistics["count"].to(torch.float64)
        return {
            "cell": torch.multinomial(weights, count, replacement=True, generator=draws)
            if count
            else torch.zeros(0, dtype=torch.int64),
            "z": torch.randn(count, directions, generator=draws),
        }

    def samples(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        cell, z = latents["cell"], latents["z"]
        mean, loadings, label = (self.statistics[name].to(z.device) for name in ("mean", "loadings", "label"))
        points = torch.empty(len(cell), mean.shape[1], device=z.device)
        for index in cell.unique().tolist():
            mine = cell == index
            points[mine] = mean[index] + z[mine] @ loadings[index]
        if self.limits is not None:
            points = points.clamp(*self.limits)
        return points.view(-1, *self.shape), label[cell]
