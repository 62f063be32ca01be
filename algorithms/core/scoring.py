"""A predictor on examples: the one way in which answers are judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from algorithms.core.task import LABEL, Shard, Sums, Task, add


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
            total = add(total, _sums(task, predictor(inputs), targets, shard.rows[picks], shard))
    return {**total, **task.generation_sums(predictor, shard)} if total else total


def _sums(task: Task, outputs: Tensor, targets: Tensor, rows: Tensor, shard: Shard) -> Sums:
    """A task's sums over a batch of some rows of a shard's columns."""
    sums = task.sums(outputs, targets)
    return {**sums, **task.group_sums(outputs, targets, shard.columns[LABEL][rows])} if LABEL in shard.columns else sums


@torch.no_grad()
def score_each(
    predictor: nn.Module, task: Task, shards: Sequence[Shard], device: torch.device, batch: int = 256
) -> Iterator[Sums]:
    """The task's sums over each of several shards of the same columns; {} for one without examples.

    Batches go across their borders, so that many small shards take the time of one large one.

    Args:
        predictor, batch: as of `score`.
    """
    if not shards:
        return
    predictor.eval()
    whole = Shard(shards[0].columns, torch.cat([shard.rows for shard in shards]))
    ends = torch.tensor([len(shard) for shard in shards]).cumsum(0).tolist()
    current, total = 0, {}  # type: tuple[int, Sums]
    for picks in torch.arange(len(whole)).split(batch):
        if not len(picks):
            break
        inputs, targets = task.batch(whole, picks, device=device)
        outputs, first = predictor(inputs), int(picks[0])
        done = first
        while done < first + len(picks):
            while ends[current] <= done:
                yield total
                current, total = current + 1, {}
            until = min(ends[current], first + len(picks))
            part = slice(done - first, until - first)
            rows = whole.rows[picks][part]
            total, done = add(total, _sums(task, outputs[part], targets[part], rows, whole)), until
    yield total
    yield from ({} for _ in ends[current + 1 :])
