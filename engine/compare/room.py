"""Room on a cluster for whole runs of one process each, as comparisons and sweeps carry them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actors.jobs.job import Share
from clusters.nodes import Node
from engine.config import RunConfig
from engine.data import DataSet


@dataclass(frozen=True)
class Room:
    """Room for runs.

    Attributes:
        share: resources that each reserves.
        places: how many there are at a time.
        where: the cluster, in words.
    """

    share: Share
    places: int
    where: str


@contextmanager
def room_on_ray(config: RunConfig, runs: int, memory: int, datasets: Iterable[DataSet], folder: Path) -> Iterator[Room]:
    """A block in which this process is attached to the cluster of a configuration, or to one started for it.

    Args:
        runs: how many there are; each has a CPU.
        memory: bytes that the largest of them takes.
        datasets: that will lie in the object store.
        folder: of Ray's log.
    """
    from clusters.session import attach_or_start

    data_bytes = sum(map(_nbytes, datasets))
    gpus = 0.0 if config.runner.device == "cpu" else config.runner.gpus or 1.0
    address, log, bits = config.runner.address, folder / "ray.log", config.runner.bits
    with attach_or_start(address, log=log, data_bytes=data_bytes, bits=bits) as cluster:
        largest = max(node.memory for node in cluster.nodes)
        share = Share(cpus=1.0, gpus=gpus, memory=min(memory, int(0.9 * largest)), bits=bits)
        places = min(sum(_places_on(node, share) for node in cluster.nodes), runs)
        yield Room(share, places, "started here" if cluster.started else cluster.address)


def _places_on(node: Node, share: Share) -> int:
    """The number of runs that a node has room for at a time."""
    by_gpu = int(node.gpus / share.gpus) if share.gpus else int(node.cpus)
    return min(int(node.cpus / share.cpus), by_gpu, int(node.memory / share.memory))


def _nbytes(dataset: DataSet) -> int:
    return sum(values.nbytes for half in (dataset.train, dataset.test) for values in half.values())
