"""The yardstick: FedAvg's rounds in plain PyTorch, in as many one-thread processes as there are cores.

Nothing of Tessera is used here. Every process holds the data; a round sends it the global weights and its half of the
clients, and it returns the weighted sum of their trained weights, so that little crosses between processes.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Problem:
    """The training problem, for the yardstick and for Tessera alike.

    Attributes:
        images: float32 (N, C, H, W), normalised.
        labels: int64 (N,).
        rows: int64, one array of row numbers per client.
        cohorts: numbers of the clients asked, by round.
        net: `mlp` (784-64-10) or `cnn2` (two 5x5 convolutions of 32 and 64 channels, 128 hidden).
    """

    images: np.ndarray
    labels: np.ndarray
    rows: Sequence[np.ndarray]
    cohorts: Sequence[Sequence[int]]
    net: str
    batch: int
    lr: float


def network(name: str) -> nn.Module:
    """The two networks of the benchmark, written out."""
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def train(net: nn.Module, problem: Problem, client: int, seed: int) -> float:
    """One local epoch of SGD; the client's number of examples."""
    rows = torch.from_numpy(problem.rows[client])
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    images, labels = torch.from_numpy(problem.images), torch.from_numpy(problem.labels)
    optimiser = torch.optim.SGD(net.parameters(), lr=problem.lr)
    for picks in order.split(problem.batch):
        optimiser.zero_grad()
        F.cross_entropy(net(images[picks]), labels[picks]).backward()
        optimiser.step()
    return float(len(rows))


def serve(pipe: Connection, problem: Problem) -> None:
    """A process: (weights, clients, round) in, (sum of n_k theta_k, sum of n_k) out, until None comes."""
    torch.set_num_threads(1)
    net = network(problem.net)
    while (asked := pipe.recv()) is not None:
        weights, clients, number = asked
        total: dict[str, np.ndarray] = {}
        examples = 0.0
        for client in clients:
            net.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
            n = train(net, problem, client, seed=number * 100_000 + client)
            examples += n
            for name, value in net.state_dict().items():
                total[name] = total.get(name, 0.0) + n * value.numpy()
        pipe.send((total, examples))


class Yardstick:
    """The processes, and the global weights between their rounds. A context: they end with it."""

    def __init__(self, problem: Problem, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._problem = problem
        self._pipes: list[Connection] = []
        self._workers = []
        for _ in range(processes):
            here, there = context.Pipe()
            worker = context.Process(target=serve, args=(there, problem), daemon=True)
            worker.start()
            self._pipes.append(here)
            self._workers.append(worker)
        torch.manual_seed(0)
        self._weights = {name: value.numpy() for name, value in network(problem.net).state_dict().items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for worker in self._workers:
            worker.join()

    def play(self, number: int) -> float:
        """Wall seconds of a round; the first one holds what happens once."""
        start = time.perf_counter()
        cohort, processes = self._problem.cohorts[number], len(self._pipes)
        for index, pipe in enumerate(self._pipes):
            pipe.send((self._weights, list(cohort[index::processes]), number))
        parts = [pipe.recv() for pipe in self._pipes]
        examples = sum(n for _, n in parts)
        self._weights = {
            name: (sum(part[name] for part, _ in parts) / examples).astype(np.float32) for name in self._weights
        }
        return time.perf_counter() - start
