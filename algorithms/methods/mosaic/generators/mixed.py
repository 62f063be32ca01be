"""Batches of which half are real and half are generated. An extension of ours, not of the Mosaic paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algorithms.core.training import Batches, Loss, Objective, Work, steps_of_work


def samples_needed(work: Work, batches: Batches) -> int:
    """Most examples that a round of training meets: the last batch of an epoch may hold one more than `work.batch`."""
    return steps_of_work(work, batches) * (work.batch + 1)


def beside(loss: Loss, images: Tensor, labels: Tensor, draws: torch.Generator) -> Objective:
    """A loss on each batch with as many generated samples put beside it, each sample once.

    Args:
        images: network inputs, (n, C, H, W), of at least `samples_needed`.
        labels: int64 (n,).
    """
    order = torch.randperm(len(labels), generator=draws)
    place = 0

    def objective(net: nn.Module, inputs: Tensor, answers: Tensor) -> Tensor:
        nonlocal place
        picks = order[place : place + len(inputs)]
        place += len(inputs)
        both = torch.cat([inputs, images[picks].to(inputs.device)])
        return loss(net(both), torch.cat([answers, labels[picks].to(answers.device)]))

    return objective
