"""Stochastic gradient descent for small networks, whose steps take less time than an optimiser's bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SGD:
    """The arithmetic of `torch.optim.SGD`, to the bit: momentum without dampening, L2 as weight decay.

    A step of torch's own looks at hooks, states and devices each time: for a network of two layers and a batch of ten
    that is a quarter of the whole.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        self._parameters, self._lr = parameters, lr
        self._momentum, self._weight_decay = momentum, weight_decay
        self._velocity: dict[Tensor, Tensor] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters that have a gradient, in place; the gradients stay as they are."""
        changed: list[Tensor] = [p for p in self._parameters if p.grad is not None]
        directions: Sequence[Tensor] = [p.grad for p in changed if p.grad is not None]
        if not changed:
            return
        if self._weight_decay:
            directions = torch._foreach_add(list(directions), changed, alpha=self._weight_decay)
        if self._momentum:
            directions = self._accelerated(changed, directions)
        torch._foreach_add_(changed, list(directions), alpha=-self._lr)

    def _accelerated(self, parameters: Sequence[Tensor], directions: Sequence[Tensor]) -> list[Tensor]:
        """v <- momentum v + g, where v is g itself at a parameter's first step."""
        old = [(p, g) for p, g in zip(parameters, directions, strict=True) if p in self._velocity]
        if old:
            velocities = [self._velocity[p] for p, _ in old]
            torch._foreach_mul_(velocities, self._momentum)
            torch._foreach_add_(velocities, [g for _, g in old])
        for p, g in zip(parameters, directions, strict=True):
            if p not in self._velocity:
                self._velocity[p] = g.clone()
        return [self._velocity[p] for p in parameters]
