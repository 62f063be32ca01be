"""Several clients on one card: rounds of hosts that share it, and whether a host is held to its share."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from actors.hosts.fleet import Host
from actors.steps.orders import WorkerSetup
from actors.steps.shards import ShardArrays
from actors.steps.worker import one_thread
from algorithms.core.contract import ClientSpec
from algorithms.core.seeds import Seed
from algorithms.core.training import Work
from algorithms.methods.fedavg import FedAvg
from benchmarks.figures import seconds_of
from benchmarks.gpu_loop import LR, TASK, PlainLoop, Problem
from benchmarks.on_ray import needs_of, ray_runner
from benchmarks.rounds import Stopwatch
from engine.records import Evaluation
from engine.run.rounds import Rounds, Schedule

SHARE, TOO_MUCH, LITTLE = 0.25, 0.5, 0.1
"""Shares of a card: a host's own, what it must be refused, and what it must get."""


def setup_of(problem: Problem, device: str) -> WorkerSetup:
    """FedAvg, in which every client trains for one epoch in every round."""
    return WorkerSetup(
        method="fedavg",
        config=FedAvg.Config(),
        task=TASK,
        work=Work(steps=None, epochs=1, batch=problem.batch, lr=LR),
        clients=tuple(ClientSpec(k, problem.net) for k in range(problem.clients)),
        seed=0,
        device=device,
    )


class PlainRounds:
    """FedAvg's rounds in this process: one network for all clients in turn, the weights stay on the device."""

    def __init__(self, problem: Problem, device: str, shards: ShardArrays) -> None:
        self._problem, self._shards = problem, [shards(k) for k in range(problem.clients)]
        self._net = problem.kit(device).new_network(problem.net)
        self._loop = PlainLoop(self._net, self._shards[0].columns["image"], self._shards[0].columns["label"])
        self.weights: dict[str, Tensor] = {name: value.clone() for name, value in self._net.state_dict().items()}

    def play(self, number: int) -> None:
        """A round, from 0; clients have equally many examples, so they count the same."""
        steps = self._problem.examples // self._problem.batch
        positions = range(number * steps, (number + 1) * steps)
        total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in self.weights.items()}
        for k, shard in enumerate(self._shards):
            self._net.load_state_dict(self.weights)
            self._loop.train(self._problem.picks(shard, Seed(0, client=k), positions))
            for name, value in self._net.state_dict().items():
                total[name] += value / self._problem.clients
        self.weights = total


def rounds(problem: Problem, device: str, hosts: int, times: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of each round on hosts that share the device equally, and of the plain loop's beside it.

    Round by round in turn, so that both meet the card in the same mood; the first one holds what happens once.
    """
    setup, shards = setup_of(problem, device), problem.shards()
    watch, theirs = Stopwatch(), []
    unseen = Evaluation({"accuracy": 0.0, "loss": 0.0}, {"accuracy": np.zeros(TASK.classes)})
    plain = PlainRounds(problem, device, shards)
    schedule = Schedule(times + 1, problem.clients, times + 1)
    share = 1 / hosts if device == "cuda" else 0.0
    with one_thread(), ray_runner(setup, shards, hosts, share) as runner:
        runner.peak_rss_mb()  # waits until every host is there: else the first ones would carry more than one round
        ours = Rounds(setup, needs_of(setup), schedule, runner, lambda _: unseen, [watch])
        for number in range(times + 1):
            theirs.append(seconds_of(partial(plain.play, number)))
            ours.play(number + 1)
    return tuple(watch.seconds[1:]), tuple(theirs[1:])


def check_share(problem: Problem) -> str:
    """Whether a host that is given a share of the card can fill more than that; each try in a process of its own."""
    torch.cuda.empty_cache()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        tries = [
            processes.submit(gets, problem, *amounts)
            for amounts in ((1.0, TOO_MUCH), (SHARE, TOO_MUCH), (SHARE, LITTLE))
        ]
        return verdict(*(one.result() for one in tries))


def gets(problem: Problem, share: float, size: float) -> bool:
    """Whether a host with a share of the card can have so much of it, both in [0, 1]. The host limits this process."""
    Host(setup_of(problem, "cuda"), problem.shards(), share)
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.empty(int(size * total), dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        return False
    return True


def verdict(unbound: bool, much: bool, little: bool) -> str:
    """From who got what: a host with the whole card and one with a share `TOO_MUCH`, the latter `LITTLE`."""
    if not unbound:
        return f"cannot be told: {TOO_MUCH:g} of the card is not free"
    if much:
        return f"no: with {SHARE:g} of the card it was given {TOO_MUCH:g}"
    if not little:
        return f"no: with {SHARE:g} of the card it was refused {LITTLE:g}"
    return f"yes: with {SHARE:g} of the card it was given {LITTLE:g} and refused {TOO_MUCH:g}"
