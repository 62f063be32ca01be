"""Statistics of batch normalisation measured anew: one pass over examples, with the weights as they are."""

from __future__ import annotations

import torch
from torch import nn

from algorithms.core.seeds import Seed
from algorithms.core.task import Shard, Task
from algorithms.core.training import Batches, pair_if_single


@torch.no_grad()
def measure_norm(net: nn.Module, task: Task, shard: Shard, batch: int, seed: Seed, device: torch.device) -> int:
    """Replace the running statistics of every batch normalisation by the mean of those of the shard's batches.

    Each batch counts the same (the cumulative average of torch's `momentum=None`), so that the means of two clients,
    weighted by their numbers of batches, are what one pass over both would give.

    Args:
        net: changed in place and left in eval mode.
        batch: examples in a batch.

    Returns:
        The number of batches.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    batches = Batches(len(shard), batch, seed)
    for index in range(batches.per_epoch):
        inputs, _ = pair_if_single(*task.batch(shard, batches[index], device=device))
        net(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()
    return batches.per_epoch
