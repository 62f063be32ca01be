"""A predictor on one client's examples."""

from __future__ import annotations

import torch
from torch import nn

from algorithms.core.task import ImageTask, Shard

_BATCH = 256
"""Images at a time: bounds memory; no result depends on it but for rounding."""


@torch.no_grad()
def score(predictor: nn.Module, task: ImageTask, shard: Shard, device: torch.device) -> dict[str, float]:
    """`accuracy` in [0, 1], mean `loss` (the task's) and number of `examples`; accuracy and loss are NaN without any.

    Args:
        predictor: network inputs (B, C, H, W) to logits (B, classes); put in eval mode.
    """
    predictor.eval()
    right, loss = 0, 0.0
    for picks in torch.arange(len(shard)).split(_BATCH):
        inputs, labels = task.batch(shard, picks, device=device)
        logits = predictor(inputs)
        loss += float(task.loss(logits, labels)) * len(labels)
        right += int((logits.argmax(dim=1) == labels).sum())
    count = len(shard)
    mean = {"accuracy": right / count, "loss": loss / count} if count else {"accuracy": torch.nan, "loss": torch.nan}
    return {**mean, "examples": count}
