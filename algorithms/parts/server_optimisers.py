"""Optimisers of the server: the mean change of the clients' weights, taken as a gradient's opposite.

Everything is computed in float64 and returned in the entries' own dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from algorithms.core.payload import Tensors

SecondMoment = Callable[[Tensor, Tensor], Tensor]
"""(v, squared change) -> the next v; float64."""


def momentum_step(
    x: Tensors, mean: Tensors, velocity: Tensors, *, lr: float, momentum: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """v <- momentum v + (mean - x); x <- x + lr v. FedAvgM: Hsu et al., arXiv 1909.06335.

    Args:
        x, mean, velocity: equal entries: the server's weights, the mean of the clients', and v.

    Returns:
        The next x and v. With momentum 0 and lr 1, x is the mean.
    """
    moved, kept = {}, {}
    for name, before in x.items():
        v = momentum * velocity[name].double() + (mean[name].double() - before.double())
        moved[name] = (before.double() + lr * v).to(before.dtype)
        kept[name] = v.to(before.dtype)
    return moved, kept


def adaptive_step(
    x: Tensors,
    mean: Tensors,
    first: Tensors,
    second: Tensors,
    *,
    next_second: SecondMoment,
    lr: float,
    beta1: float,
    tau: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """One step of Reddi et al., arXiv 2003.00295, algorithm 2, which has no bias correction.

    Delta = mean - x; m <- beta1 m + (1 - beta1) Delta; v <- next_second(v, Delta^2); x <- x + lr m / (sqrt(v) + tau).

    Args:
        x, mean, first, second: equal entries: the server's weights, the mean of the clients', m and v.

    Returns:
        The next x, m and v.
    """
    moved, firsts, seconds = {}, {}, {}
    for name, before in x.items():
        change = mean[name].double() - before.double()
        m = beta1 * first[name].double() + (1 - beta1) * change
        v = next_second(second[name].double(), change.square())
        moved[name] = (before.double() + lr * m / (torch.sqrt(v) + tau)).to(before.dtype)
        firsts[name], seconds[name] = m.to(before.dtype), v.to(before.dtype)
    return moved, firsts, seconds
