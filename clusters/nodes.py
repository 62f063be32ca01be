"""The machines of a cluster and their resources."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        cpus, gpus: as the cluster counts them, in use or not.
        memory: bytes for processes, the object store not included.
    """

    cpus: float
    gpus: float
    memory: int


def nodes_of(listing: list[dict[str, Any]]) -> tuple[Node, ...]:
    """The machines that answer, from Ray's listing `ray.nodes()`."""
    return tuple(
        Node(
            cpus=float(entry["Resources"].get("CPU", 0)),
            gpus=float(entry["Resources"].get("GPU", 0)),
            memory=int(entry["Resources"].get("memory", 0)),
        )
        for entry in listing
        if entry["Alive"]
    )


def usable_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs of this machine, or of the container this process is in, as Ray counts them.

    Args:
        quota: file with the container's microseconds of CPU time in each so many, or `max` in the place of the first.
    """
    cpus = os.cpu_count() or 1
    time, _, period = quota.read_text().partition(" ") if quota.exists() else ("max", "", "")
    return cpus if time.strip() == "max" else min(cpus, max(1, int(time) // int(period)))
