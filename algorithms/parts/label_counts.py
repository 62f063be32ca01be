"""Uses of clients' counts by class: shares of a teacher, and labels to ask of a generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algorithms.core.contract import Client
from algorithms.core.needs import Volume
from algorithms.core.task import Task
from algorithms.core.training import Batches, Fit, Work


def label_counts(task: Task) -> Volume:
    """Counts int64 (C,) from each client in every round."""
    return Volume(8 * task.classes)


def seen_counts(client: Client, work: Work, fitted: Fit, classes: int) -> Tensor:
    """int64 (C,): how many examples of each class the client's training has met, one that came twice counted twice."""
    batches = Batches(len(client.shard), work.batch, client.seed)
    counts = torch.zeros(classes, dtype=torch.int64)
    for position in range(fitted.position - fitted.steps, fitted.position):
        counts += torch.bincount(client.shard.own_labels[batches[position]], minlength=classes)
    return counts


def shares_by_class(counts: Sequence[Tensor]) -> Tensor:
    """n_k^c / sum_j n_j^c from every client's counts (C,): float32 (K, C); 0 for all in a class that nobody has."""
    stacked = torch.stack(list(counts)).to(torch.float64)
    return (stacked / stacked.sum(0).clamp_min(1)).to(torch.float32)


def labels_like(counts: Tensor, number: int, draws: torch.Generator) -> Tensor:
    """int64 (number,): labels as often as their counts (C,) say, rounded, in a drawn order; none that has a count of 0.

    Raises:
        ValueError: all counts are 0.
    """
    total = int(counts.sum())
    if not total:
        raise ValueError("no label has been counted, so that none can be asked")
    # In integers, so that rounding gives no label to a class without examples.
    ends = counts.cumsum(0) * number // total
    labels = torch.repeat_interleave(torch.diff(ends, prepend=torch.zeros(1, dtype=torch.int64)))
    return labels[torch.randperm(number, generator=draws)]
