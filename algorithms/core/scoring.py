"""A predictor on examples: the one way in which answers are judged."""

from __future__ import annotations

import torch
from torch import nn

from algorithms.core.task import Shard, Sums, Task, add


@torch.no_grad()
def score(predictor: nn.Module, task: Task, shard: Shard, device: torch.device, batch: int = 256) -> Sums:
    """The task's sums over a shard's examples; {} without any.

    Args:
        predictor: the task's network inputs to its outputs; put in eval mode.
        batch: examples at a time; bounds memory, and no figure depends on it but for rounding.
    """
    predictor.eval()
    total: Sums = {}
    for picks in torch.arange(len(shard)).split(batch):
        if len(picks):
            inputs, targets = task.batch(shard, picks, device=device)
            total = add(total, task.sums(predictor(inputs), targets))
    return total
