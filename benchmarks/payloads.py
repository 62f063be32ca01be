"""Seconds of a round whose clients receive and send large payloads, beside copying the same bytes once per host.

    python -m benchmarks.payloads [--size MB]

Payloads of 1, 10, 100 and 400 MB, 20 clients, a host for each core, each size in a process with a Ray cluster of its
own. Down, all clients receive one payload; up, each sends one of its own, of which `look_ahead` lets few wait at a
time. Three yardsticks: the payload copied once for each host, which is what travels down; copied once for each host and
once for each client, which is all that travels; and plain Ray actors that send the same bytes to this process, which
reads them where they lie. The object store's peak is what Ray says is used in it.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from actors.hosts.dispatch import AHEAD_BYTES
from actors.steps.orders import WorkerSetup
from actors.steps.shards import ShardArrays
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
TIMES = 3
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


def setup_of(size: int) -> WorkerSetup:
    """Clients that send back what they received, of `size` bytes."""
    return WorkerSetup(
        method="benchmarks.idle:Idle",
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


def plain_seconds(size: int, senders: list[Any]) -> float:
    """Send one array to actors `CLIENTS` times, in turn, and let each send one back; at most two each under way."""

    def send() -> None:
        message = ray.put(np.ones(size, np.uint8))
        under_way: list[ray.ObjectRef] = []
        for k in range(CLIENTS):
            if len(under_way) == 2 * len(senders):
                ray.get(under_way.pop(0))
            under_way.append(senders[k % len(senders)].send.remote(message))
        while under_way:
            ray.get(under_way.pop(0))

    return seconds_of(send)


def measure(megabytes: int) -> list[Figure]:
    """All figures of one size."""
    size, hosts, name = megabytes * 10**6, os.cpu_count() or 1, f"payloads, {megabytes} MB"
    unseen = Evaluation({"accuracy": 0.0, "loss": 0.0}, {"accuracy": np.zeros(1)})
    setup = setup_of(size)
    with ray_runner(setup, shards(), hosts) as runner, StoreWatch() as store:
        run = Rounds(setup, needs_of(setup), Schedule(10**6, CLIENTS, 10**6), runner, lambda _: unseen, [])
        run.play(until=1)
        senders = [ray.remote(Sender).options(num_cpus=0).remote(size) for _ in range(hosts)]
        plain_seconds(size, senders)
        rounds, down, all_, plain = [], [], [], []
        for _ in range(TIMES):
            down.append(copy_seconds(size, hosts))
            all_.append(copy_seconds(size, hosts + CLIENTS))
            plain.append(plain_seconds(size, senders))
            rounds.append(seconds_of(lambda: run.play(until=run.next + 1)))
    # Down once; up what may be under way, and one call of each host all the same.
    bound = megabytes + max(AHEAD_BYTES / 1e6, 2 * hosts * megabytes) + hosts * megabytes
    return [
        Figure(f"{name}: a round", "s", tuple(rounds), loops=tuple(all_)),
        Figure(f"{name}: a round against copying once per host", "times", _ratios(rounds, down)),
        Figure(f"{name}: a round against copying all that travels", "times", _ratios(rounds, all_)),
        Figure(f"{name}: a round against plain Ray actors", "times", _ratios(rounds, plain)),
        Figure(f"{name}: peak of the object store", "MB", (store.peak_mb,), goal=round(bound)),
    ]


def _ratios(ours: list[float], theirs: list[float]) -> tuple[float, ...]:
    return tuple(mine / other for mine, other in zip(ours, theirs, strict=True))


def main() -> int:
    """The command; see the module."""
    return grow("benchmarks.payloads", __doc__, SIZES_MB, lambda size: f"payloads of {size} MB", measure)


if __name__ == "__main__":
    sys.exit(main())
