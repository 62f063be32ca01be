"""The machines of a cluster and their resources."""

from __future__ import annotations

from dataclasses import dataclass
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
