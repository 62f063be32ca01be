"""Seconds of a round whose clients receive and send large payloads, beside copying the same bytes once per host.

    python -m benchmarks.payloads [--size MB]

Payloads of 1, 10, 100 and 400 MB, 20 clients, a host for each core, each size in a process with a Ray cluster of its
own. Down, all clients receive one payload; up, each sends one of its own, of which `look_ahead` lets few wait at a
time. Three yardsticks: the payload copied once for each host, which is what travels down; copied once for each host and
once for each client, which is all that travels; and plain Ray actors that send the same bytes to this process, which
reads them where they lie. The object store's peak is what Ray says is used in it. Once the server drops what comes;
once it takes the mean, and so do the plain actors' receiver in plain torch.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch

from actors.hosts.dispatch import AHEAD_BYTES
from actors.hosts.ray import RayRunner
from actors.process import take_huge_pages
from actors.steps.orders import WorkerSetup
from actors.steps.shards import ShardArrays
from actors.steps.wire import accept_read_only
from actors.steps.worker import one_thread
from algorithms.core.contract import ClientSpec
from algorithms.core.training import Work
from algorithms.tasks.images import ImageTask
from benchmarks.figures import Figure, seconds_of
from benchmarks.idle import Idle
from benchmarks.on_ray import needs_of, ray_runner
from benchmarks.sizes import grow
from engine.records import Evaluation
from engine.run.rounds import Rounds, Schedule

SIZES_MB = (1, 10, 100, 400)
CLIENTS = 20
TIMES = 5

LARGEST_MEAN_MB = 100
"""Payloads of which the mean is taken too: in plain torch it takes seconds a round."""

WARM_UP = 3
"""Rounds before the measured ones: the first meet pages of the object store that no process has seen."""

LOOK_SECONDS = 0.05


@dataclass
class StoreWatch:
    """Looks at the object store until its block ends.

    Attributes:
        peak_mb: the most that was used at once.
    """

    peak_mb: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> StoreWatch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        whole = ray.cluster_resources()["object_store_memory"]
        while not self._stop.wait(LOOK_SECONDS):
            free = ray.available_resources().get("object_store_memory", whole)
            self.peak_mb = max(self.peak_mb, (whole - free) / 1e6)


def setup_of(size: int, method: str) -> WorkerSetup:
    """Clients that send back what they received, of `size` bytes; `method` of `benchmarks.idle`."""
    return WorkerSetup(
        method=f"benchmarks.idle:{method}",
        config=Idle.Config(bytes=size),
        task=ImageTask(("all",), (1, 1, 1), mean=(0.0,), std=(1.0,)),
        work=Work(steps=1, epochs=None, batch=1, lr=0.1),
        clients=tuple(ClientSpec(k, "mlp") for k in range(CLIENTS)),
        seed=0,
    )


def shards() -> ShardArrays:
    """One pixel for each client."""
    pixels = np.zeros((CLIENTS, 1, 1, 1), np.uint8)
    return ShardArrays.of(
        {"image": pixels, "label": np.zeros(CLIENTS, np.int64)}, [np.array([k]) for k in range(CLIENTS)]
    )


def copy_seconds(size: int, times: int) -> float:
    """Copy so many bytes, in turn, into memory that is there."""
    block, copy = np.ones(size, np.uint8), np.ones(size, np.uint8)
    return seconds_of(lambda: [np.copyto(copy, block) for _ in range(times)])


class Sender:
    """A plain actor with an array to send."""

    def __init__(self, size: int) -> None:
        self._block = np.ones(size, np.uint8)

    def send(self, _: np.ndarray) -> np.ndarray:
        """The array, whatever comes."""
        return self._block


def plain_seconds(size: int, senders: list[Any], averages: bool = False) -> float:
    """Send one array to actors `CLIENTS` times, in turn, and let each send one back; at most two each under way.

    Args:
        averages: whether to take the mean in float64 too, as plain torch does it.
    """

    def send() -> None:
        message = ray.put(np.ones(size, np.uint8))
        under_way: list[ray.ObjectRef] = []
        total = torch.zeros(size // 4 if averages else 0, dtype=torch.float64)
        for k in range(CLIENTS):
            if len(under_way) == 2 * len(senders):
                take(under_way.pop(0), total)
            under_way.append(senders[k % len(senders)].send.remote(message))
        while under_way:
            take(under_way.pop(0), total)
        (total / CLIENTS).float()

    def take(reference: ray.ObjectRef, total: torch.Tensor) -> None:
        array = ray.get(reference)
        if averages:
            with accept_read_only():
                total.add_(torch.frombuffer(array, dtype=torch.float32))

    with one_thread():
        return seconds_of(send)


def measure(megabytes: int) -> list[Figure]:
    """All figures of one size."""
    take_huge_pages()  # as a run does
    size, hosts, name = megabytes * 10**6, os.cpu_count() or 1, f"payloads, {megabytes} MB"
    setup = setup_of(size, "Idle")
    with ray_runner(setup, shards(), hosts) as runner:
        senders = [ray.remote(Sender).options(num_cpus=0).remote(size) for _ in range(hosts)]
        with StoreWatch() as store:
            figures = list(_beside(name, setup, runner, senders, averages=False))
    # Down once; up what may be under way, one call of each host all the same, and what the method still holds.
    bound = megabytes + max(AHEAD_BYTES / 1e6, 2 * hosts * megabytes) + hosts * megabytes
    figures.append(Figure(f"{name}: peak of the object store", "MB", (store.peak_mb,), goal=round(bound)))
    if megabytes > LARGEST_MEAN_MB:
        return figures
    setup = setup_of(size, "Mean")
    with ray_runner(setup, shards(), hosts) as runner:
        senders = [ray.remote(Sender).options(num_cpus=0).remote(size) for _ in range(hosts)]
        figures += _beside(f"{name}, averaged", setup, runner, senders, averages=True)
    return figures


def _beside(name: str, setup: WorkerSetup, runner: RayRunner, senders: list[Any], averages: bool) -> Iterator[Figure]:
    """Rounds, each beside all yardsticks."""
    size, hosts = setup.config.bytes, len(senders)
    unseen = Evaluation({"accuracy": 0.0, "loss": 0.0}, {"accuracy": np.zeros(1)})
    run = Rounds(setup, needs_of(setup), Schedule(10**6, CLIENTS, 10**6), runner, lambda _: unseen, [])
    for _ in range(WARM_UP):
        run.play(until=run.next + 1)
        plain_seconds(size, senders, averages)
    rounds, down, all_, plain = [], [], [], []
    for _ in range(TIMES):
        down.append(copy_seconds(size, hosts))
        all_.append(copy_seconds(size, hosts + CLIENTS))
        plain.append(plain_seconds(size, senders, averages))
        rounds.append(seconds_of(lambda: run.play(until=run.next + 1)))
    goal = None if averages else 3.0
    yield Figure(f"{name}: a round", "s", tuple(rounds), loops=tuple(all_))
    yield Figure(f"{name}: a round against copying once per host", "times", _ratios(rounds, down))
    yield Figure(f"{name}: a round against copying all that travels", "times", _ratios(rounds, all_), goal=goal)
    yield Figure(f"{name}: a round against plain Ray actors", "times", _ratios(rounds, plain))


def _ratios(ours: list[float], theirs: list[float]) -> tuple[float, ...]:
    return tuple(mine / other for mine, other in zip(ours, theirs, strict=True))


def main() -> int:
    """The command; see the module."""
    return grow("benchmarks.payloads", __doc__, SIZES_MB, lambda size: f"payloads of {size} MB", measure)


if __name__ == "__main__":
    sys.exit(main())
