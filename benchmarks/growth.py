"""Cost of asking, and of getting ready, as the population grows: clients that do nothing, 100 asked in a round.

    python -m benchmarks.growth [--size CLIENTS]

Populations of 100, 1,000, 10,000 and 100,000, each in a process with a Ray cluster of its own and a host for each
core. Clients are ready when their rows are dealt from data in memory, and all is checked, planned and saved. The first
round waits for the hosts' processes too.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from actors.clock import PhaseClock
from actors.hosts.placement import Placement
from actors.hosts.ray import RayRunner
from actors.process import peak_rss_mb
from algorithms.tasks.images import ImageTask
from benchmarks.figures import Figure, measure_repeatedly, seconds_of
from benchmarks.idle import Idle
from benchmarks.on_ray import needs_of
from benchmarks.sizes import grow
from clusters.session import attach_or_start
from engine.config import load
from engine.data import DataSet
from engine.planning.checking import check
from engine.planning.federation import Federation
from engine.planning.report import plan
from engine.records import Evaluation
from engine.run.context import RunContext
from engine.run.hosting import this_machine
from engine.run.rounds import Rounds, Schedule
from engine.store.folder import RunFolder

POPULATIONS = (100, 1_000, 10_000, 100_000)
ASKED = 100
ROUNDS = 10
TIMES = 5


def data_set(clients: int) -> DataSet:
    """Two random grey 8x8 images for each client."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (2 * clients, 1, 8, 8), dtype=np.uint8)
    labels = draw.integers(0, 10, 2 * clients)
    task = ImageTask(tuple("0123456789"), (1, 8, 8), mean=(0.5,), std=(0.25,))
    columns = {"image": images, "label": labels}
    few = {name: values[:10] for name, values in columns.items()}
    return DataSet("random", task, columns, few, {}, fingerprint="random")


def gather(clients: int, data: DataSet, folder: Path) -> Federation:
    """The clients of a run, checked, planned and saved."""
    overrides = ("partition.kind=iid", "partition.alpha=null", f"partition.clients={clients}")
    federation = Federation.of(load("fedavg-digits", (*overrides, f"clients.cohort={ASKED}")), data)
    check(federation)
    plan(federation, (this_machine(),), psutil.virtual_memory().available)
    federation.partition.save(folder / "partition.parquet", data.fingerprint)
    RunContext(federation, RunFolder(folder), "fedavg-digits", PhaseClock("start")).start()
    return federation


def idle_rounds(federation: Federation) -> Rounds:
    """A round loop with hosts that start, over clients that do nothing."""
    setup = replace(federation.setup, method="benchmarks.idle:Idle", config=Idle.Config())
    hosts = Placement("pooled", os.cpu_count() or 1, cpus=0.5, gpus=0.0, reason="one for each core")
    runner = RayRunner(setup, federation.shards, hosts)
    unseen = Evaluation({"accuracy": 0.0, "loss": 0.0}, {"accuracy": np.zeros(10)})
    return Rounds(setup, needs_of(setup), Schedule(10**6, ASKED, 10**6), runner, lambda _: unseen, [])


def measure(clients: int) -> list[Figure]:
    """All figures of one population."""
    data, name = data_set(clients), f"growth, {clients:,} clients"
    with (
        tempfile.TemporaryDirectory() as place,
        attach_or_start(None, log=Path(place) / "ray.log", data_bytes=data.train["image"].nbytes),
    ):
        ready = measure_repeatedly(
            f"{name}: ready", "s", lambda: seconds_of(lambda: gather(clients, data, Path(place))), 3, goal=5
        )
        start = time.perf_counter()
        run = idle_rounds(gather(clients, data, Path(place)))
        run.play(until=1)
        first = time.perf_counter() - start

        def ms_each() -> float:
            return 1e3 * seconds_of(lambda: run.play(until=run.next + ROUNDS)) / (ROUNDS * ASKED)

        asking = measure_repeatedly(f"{name}: each one asked", "ms", ms_each, TIMES, goal=0.3)
    peak = peak_rss_mb()
    return [
        asking,
        ready,
        Figure(f"{name}: ready, hosts started and first round", "s", (first,)),
        Figure(f"{name}: driver's peak memory", "MiB", (peak,), goal=1024),
    ]


def main() -> int:
    """The command; see the module."""
    return grow("benchmarks.growth", __doc__, POPULATIONS, lambda size: f"{size:,} clients", measure)


if __name__ == "__main__":
    sys.exit(main())
