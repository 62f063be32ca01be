"""A Ray runner for benchmarks: a cluster started for it alone, pooled hosts."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from actors.hosts.placement import Request, decide
from actors.hosts.ray import RayRunner
from actors.steps.orders import WorkerSetup
from actors.steps.shards import ShardArrays
from algorithms.core.needs import Needs
from clusters.session import attach_or_start


@contextmanager
def ray_runner(setup: WorkerSetup, shards: ShardArrays, hosts: int, gpus: float = 0.0) -> Iterator[RayRunner]:
    """`hosts` pooled hosts, closed with their cluster at the end; more than there are cores take turns, and it is said.

    Args:
        gpus: the share, in [0, 1], that each host has of one card, which is all that the cluster counts.

    Raises:
        PlacementError: there is no room for them; the message names how many fit.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        attach_or_start(
            None, log=Path(folder) / "ray.log", gpus=1 if gpus else None, data_bytes=shards.nbytes
        ) as cluster,
    ):
        request = Request(len(setup.clients), kind="pooled", hosts=hosts, gpus_per_host=gpus)
        placement = decide(request, cluster.nodes)
        print(placement.reason, file=sys.stderr)
        runner = RayRunner(setup, shards, placement)
        try:
            yield runner
        finally:
            runner.close()


def needs_of(setup: WorkerSetup) -> Needs:
    """The method's needs, where every client has one example of each class."""
    return setup.needs(torch.ones(len(setup.clients), setup.task.classes, dtype=torch.int64))
