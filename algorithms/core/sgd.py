"""Stochastic gradient descent for small networks, whose steps take less time than an optimiser's bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def descend(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One step of `torch.optim.SGD`, to the bit: momentum without dampening, L2 as weight decay.

    Args:
        parameters: changed in place.
        gradients: left as they are.
        velocities: changed in place; all 0 before the first step. Read where there is momentum alone.
    """
    if weight_decay:
        gradients = torch._foreach_add(list(gradients), list(parameters), alpha=weight_decay)
    if momentum:
        torch._foreach_mul_(list(velocities), momentum)
        torch._foreach_add_(list(velocities), list(gradients))
        gradients = velocities
    torch._foreach_add_(list(parameters), list(gradients), alpha=-lr)


class SGD:
    """`descend` for a network's parameters.

    A step of torch's own optimiser looks at hooks, states and devices each time: for a network of two layers and a
    batch of ten that is a quarter of the whole.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        self._parameters, self._lr = parameters, lr
        self._momentum, self._weight_decay = momentum, weight_decay
        self._velocities = [torch.zeros_like(p) for p in parameters] if momentum else []

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Change the parameters that have a gradient, in place."""
        changed = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        if not changed:
            return
        own = [self._parameters[i] for i in changed]
        gradients = [p.grad for p in own if p.grad is not None]
        velocities = [self._velocities[i] for i in changed] if self._momentum else []
        descend(own, gradients, velocities, self._lr, self._momentum, self._weight_decay)
