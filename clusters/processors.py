"""The kinds of processors that a cluster's machines have."""

from __future__ import annotations

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clusters.bits import Bits, BitsError, processor, require, worker_options
from clusters.session import ClusterError

_SECONDS = 120.0
"""In which each machine starts a process and answers."""


def processors_by_node(bits: Bits) -> dict[str, str]:
    """The kind of processor of every machine of the cluster that this process is attached to, by the machine's name.

    Raises:
        ClusterError: a machine does not answer, or cannot compute these bits.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = [_name(node["NodeID"], node["NodeManagerAddress"]) for node in nodes]
    look = ray.remote(_look)
    asked = [
        look.options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            **worker_options(bits),
        ).remote(bits)
        for node in nodes
    ]
    try:
        answers: list[tuple[str, str]] = ray.get(asked, timeout=_SECONDS)
    except RayError as error:
        raise ClusterError(f"the cluster's machines could not be asked for their processors: {error}") from error
    for name, (_, reason) in zip(names, answers, strict=True):
        if reason:
            raise ClusterError(f"{name}: {reason}")
    return {name: kind for name, (kind, _) in zip(names, answers, strict=True)}


def machine_here() -> str:
    """The name of the machine that this process of a cluster is on, as `processors_by_node` has it."""
    return _name(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address())


def _name(node: str, address: str) -> str:
    return f"node {node[:8]} ({address})"


def _look(bits: Bits) -> tuple[str, str]:
    """The kind of this machine's processor, and why it cannot compute these bits ("" where it can)."""
    try:
        require(bits)
    except BitsError as error:
        return processor(), str(error)
    return processor(), ""
