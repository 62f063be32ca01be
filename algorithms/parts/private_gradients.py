"""Gradients of differential privacy: each example's clipped, noise on their sum. Abadi et al., arXiv 1607.00133."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from algorithms.core.task import Task
from algorithms.core.training import Objective


def private_objective(task: Task, clip: float, noise: float, generator: torch.Generator, is_lone: bool) -> Objective:
    """An objective whose value is the mean loss of a batch's examples, and whose gradient is

        (sum_i g_i min(1, clip / ||g_i||) + xi) / n,    xi ~ N(0, (noise clip)^2) in every entry,

    g_i the gradient of example i's loss in all trainable parameters together.

    Args:
        clip: largest norm of an example's gradient, above 0.
        noise: standard deviation over `clip`, at least 0.
        generator: of the noise, on the CPU.
        is_lone: batches are of one example, which training shows twice: it counts once.
    """

    def objective(net: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        losses = task.losses(net(inputs), targets)
        losses = losses[:1] if is_lone else losses
        parameters = [p for p in net.parameters() if p.requires_grad]
        total = [torch.zeros_like(p) for p in parameters]
        for loss in losses:
            own = torch.autograd.grad(loss, parameters, retain_graph=True)
            size = torch.stack([g.square().sum() for g in own]).sum().sqrt()
            factor = clip / size.clamp(min=clip)
            for sum_, g in zip(total, own, strict=True):
                sum_ += factor * g
        if noise:
            for sum_ in total:
                sum_ += noise * clip * torch.randn(sum_.shape, generator=generator).to(sum_.device)
        return _with_gradient(losses.mean().detach(), parameters, [sum_ / len(losses) for sum_ in total])

    return objective


def _with_gradient(value: Tensor, parameters: list[nn.Parameter], gradient: list[Tensor]) -> Tensor:
    """A scalar of this value that has this gradient in the parameters."""
    product = torch.stack([(g * p).sum() for g, p in zip(gradient, parameters, strict=True)]).sum()
    return value + (product - product.detach())
