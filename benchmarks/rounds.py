"""Seconds per round of FedAvg, beside the same work in plain PyTorch, in one run.

    python -m benchmarks.rounds [--rounds N] [--hosts N] [--stack] [a] [b]

(a) 1,000 clients, 100 a round, 60 MNIST images each, MLP 784-64-10, batch 10.
(b) 100 clients, 10 a round, 500 CIFAR-10 images each, two 5x5 convolutions (32, 64) and 128 hidden, batch 50.
SGD at 0.05, one local epoch. The first round is left out: it holds what happens once. Ratios count: machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.process import peak_rss_mb
from actors.steps.orders import WorkerSetup
from actors.steps.shards import ShardArrays
from algorithms.core.contract import ClientSpec
from algorithms.core.training import Work
from algorithms.methods.fedavg import FedAvg
from benchmarks import plain
from benchmarks.data import first_rows
from benchmarks.on_ray import needs_of, ray_runner
from engine.data import DataError, DataSet
from engine.records import Evaluation, RoundRecord
from engine.run.rounds import Rounds, Schedule


@dataclass(frozen=True)
class Case:
    """One of the two benchmarks."""

    letter: str
    source: str
    clients: int
    cohort: int
    examples: int
    net: str
    batch: int


CASES = {
    "a": Case("a", "parquet:mnist", clients=1000, cohort=100, examples=60, net="mlp", batch=10),
    "b": Case("b", "parquet:cifar10", clients=100, cohort=10, examples=500, net="cnn2", batch=50),
}
LR = 0.05


class Stopwatch:
    """A watcher that notes what each round took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def round(self, record: RoundRecord) -> None:
        """The round's phases together, evaluation left out."""
        self.seconds.append(sum(s for phase, s in record.seconds.items() if phase != "evaluate"))

    def step(self, *_: Any) -> None:
        """Ignored here."""

    def stage(self, *_: Any) -> None:
        """Ignored here."""


def deal(case: Case) -> list[np.ndarray]:
    """The clients' rows: a permutation of the training set, cut into equal parts."""
    order = np.random.default_rng(0).permutation(case.clients * case.examples)
    return [np.sort(part) for part in np.split(order, case.clients)]


def cohorts(case: Case, rounds: int) -> list[list[int]]:
    """Clients that the yardstick asks, by round; Tessera draws its own cohorts of the same size."""
    rng = np.random.default_rng(1)
    return [sorted(rng.choice(case.clients, case.cohort, replace=False).tolist()) for _ in range(rounds)]


def problem(case: Case, data: DataSet, rounds: int) -> plain.Problem:
    """The work as the yardstick takes it."""
    mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (data.task.mean, data.task.std))
    images = ((data.train["image"] / np.float32(255)) - mean) / std
    return plain.Problem(
        images.astype(np.float32), data.train_labels, deal(case), cohorts(case, rounds), case.net, case.batch, LR
    )


def setup_of(case: Case, data: DataSet, stack: bool) -> WorkerSetup:
    """The work as Tessera takes it."""
    return WorkerSetup(
        method="fedavg",
        config=FedAvg.Config(),
        task=data.task,
        work=Work(steps=None, epochs=1, batch=case.batch, lr=LR),
        clients=tuple(ClientSpec(k, case.net) for k in range(case.clients)),
        seed=0,
        stack=stack,
    )


def measure(case: Case, rounds: int, hosts: int, stack: bool) -> dict[str, Any]:
    """Round by round in turn, so that both meet the machine in the same mood."""
    data = first_rows(case.source, case.clients * case.examples)
    setup, shards = (
        setup_of(case, data, stack),
        ShardArrays.of({"image": data.train["image"], "label": data.train_labels}, deal(case)),
    )
    watch, theirs = Stopwatch(), []
    unseen = Evaluation({"accuracy": 0.0, "loss": 0.0}, {"accuracy": np.zeros(10)})
    with (
        plain.Yardstick(problem(case, data, rounds), hosts) as yardstick,
        ray_runner(setup, shards, hosts) as runner,
    ):
        ours = Rounds(setup, needs_of(setup), Schedule(rounds, case.cohort, rounds), runner, lambda _: unseen, [watch])
        for number in range(rounds):
            theirs.append(yardstick.play(number))
            ours.play(number + 1)
        memory = runner.peak_rss_mb()
    return (
        {"case": case.letter, "hosts": hosts, "stack": stack}
        | figures(theirs[1:], watch.seconds[1:])
        | {
            "driver_peak_mb": peak_rss_mb(),
            "host_peak_mb": max(memory.values(), default=0.0),
        }
    )


def figures(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    """Medians, and the median of the ratios of rounds that followed each other."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "rounds": len(ours),
        "plain_median_s": statistics.median(theirs),
        "tessera_median_s": statistics.median(ours),
        "tessera_min_s": min(ours),
        "tessera_max_s": max(ours),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main() -> int:
    """Print one line of JSON per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=[])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--hosts", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stack", action="store_true", help="several clients trained at once, clients.stack")
    parser.add_argument("--out", type=Path, help="append the lines to this file as well")
    asked = parser.parse_args()
    for letter in asked.cases or list(CASES):
        try:
            line = json.dumps(measure(CASES[letter], asked.rounds, asked.hosts, asked.stack))
        except DataError as error:
            print(error, file=sys.stderr)
            return 2
        print(line, flush=True)
        if asked.out:
            with asked.out.open("a") as file:
                file.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
