"""The expected cost of clients' steps: what is known before they run, then what they have taken."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from actors.steps.orders import WorkerSetup
from actors.steps.shards import ShardArrays
from algorithms.core import batches
from algorithms.core.needs import network_of
from algorithms.core.task import Task
from algorithms.core.training import Work

GRAIN_SECONDS = 0.01
"""Steps that take less are alike: their seconds are noise, and little is gained by their order."""


class StepCosts:
    """Seconds by step and client, or where a step has not run, anything in proportion to them.

    No result depends on them: they settle who goes first, not what is computed.
    """

    def __init__(self, planned: np.ndarray) -> None:
        """`planned`, float64 (clients,): larger than 0, in any unit."""
        self._planned = planned
        self._seconds: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._seconds_per_unit: dict[str, float] = {}

    def of(self, step: str, client: int) -> float:
        """The cost of a client's step: the seconds it took last, or what was planned, in the seconds of others."""
        known = self._seconds[step].get(client)
        return float(self._planned[client]) * self._seconds_per_unit.get(step, 1.0) if known is None else known

    def note(self, step: str, client: int, seconds: float) -> None:
        """A client's step has taken so long."""
        self._seconds[step][client] = counted = max(seconds, GRAIN_SECONDS)
        self._seconds_per_unit[step] = counted / float(self._planned[client])


def planned_costs(setup: WorkerSetup, shards: ShardArrays) -> np.ndarray:
    """float64 (clients,): operations of a round's training, forward passes alone; of equal networks, examples alone."""
    examples = examples_of(setup.work, np.diff(shards.ends, prepend=0)[: len(setup.clients)])
    kinds = sorted({(client.net, client.width) for client in setup.clients})
    if len(kinds) < 2:
        return examples
    operations = {kind: operations_of(setup.task, *kind) for kind in kinds}
    return examples * np.array([operations[client.net, client.width] for client in setup.clients])


def examples_of(work: Work, examples: np.ndarray) -> np.ndarray:
    """float64 (clients,): examples that clients train on in a round, at least 1, where they hold so many."""
    if work.epochs is not None:
        return np.maximum(1.0, work.epochs * examples)
    assert work.steps is not None
    return np.maximum(1.0, work.steps * np.minimum(work.batch, examples))


def operations_of(task: Task, name: str, width: float) -> float:
    """Multiplications and additions of a forward pass of one example: those of products and convolutions as torch
    counts them, and one for each parameter, which stands for all else."""
    net = network_of(name, task, width).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(batches.each(task.form.probe(1), torch.zeros_like))
    return float(counter.get_total_flops() + sum(p.numel() for p in net.parameters()))
