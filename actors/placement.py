"""Which hosts a run gets: one per client or a few for all, and what each may take. Decisions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from clusters.nodes import Node

PROCESS_BYTES = 200 * 2**20
"""What a host takes before it holds any network: Python with torch imported, measured."""

SMALLEST_SHARE = 0.25
"""Of a CPU: with less than this for each client, `auto` does not give every client a process of its own."""

_GRAIN = 10_000
"""Ray counts resources in ten-thousandths."""


@dataclass(frozen=True)
class Request:
    """What a run asks for.

    Attributes:
        clients: of the federation.
        kind: `dedicated`, one host per client; `pooled`, hosts that carry many clients in turn; `auto`, dedicated where
            there is room for it.
        hosts: how many pooled hosts; as many as CPUs where None.
        cpus_per_host: CPUs that a host reserves; where None, equal shares of what the pipeline leaves, at most 1.
        gpus_per_host: GPUs, or the fraction of one, that a host reserves and may fill.
        bytes_per_host: memory of a host's process.
        pipeline_cpus, pipeline_gpus: what stays free for sampling, labelling and the train workers of a distillation.
            They run while hosts are idle, but Ray counts reservations, so without this they would wait for ever.
    """

    clients: int
    kind: Literal["auto", "dedicated", "pooled"] = "auto"
    hosts: int | None = None
    cpus_per_host: float | None = None
    gpus_per_host: float = 0.0
    bytes_per_host: int = PROCESS_BYTES
    pipeline_cpus: float = 1.0
    pipeline_gpus: float = 0.0


@dataclass(frozen=True)
class Placement:
    """What a run gets.

    Attributes:
        hosts: how many.
        cpus, gpus: what each reserves.
        reason: why, in a sentence for people.
    """

    kind: Literal["dedicated", "pooled"]
    hosts: int
    cpus: float
    gpus: float
    reason: str


class PlacementError(ValueError):
    """What is asked for cannot run here; the message names the number that would fit."""


def decide(request: Request, nodes: Sequence[Node]) -> Placement:
    """Hosts for a request on these nodes.

    Raises:
        PlacementError: the hosts would never all start, or the pipeline would wait for ever.
    """
    if request.kind == "dedicated" and request.hosts is not None:
        raise PlacementError(
            f"hosts = {request.hosts} with placement dedicated, which has one host per client: leave hosts empty, "
            "or take placement pooled"
        )
    if request.kind == "dedicated":
        return _dedicated(request, nodes)
    if request.kind == "pooled" or request.hosts is not None:
        return _pooled(request, nodes, "as asked")
    missing = _missing_for_dedicated(request, nodes)
    return _pooled(request, nodes, missing) if missing else _dedicated(request, nodes)


def _dedicated(request: Request, nodes: Sequence[Node]) -> Placement:
    _refuse_too_many(request, nodes, request.clients, "clients with placement dedicated")
    cpus = _share(request, nodes, request.clients)
    reason = f"one host for each of {request.clients} clients, with {cpus:g} CPU{_gpu_text(request)} each"
    return Placement("dedicated", request.clients, cpus, request.gpus_per_host, reason)


def _pooled(request: Request, nodes: Sequence[Node], why: str) -> Placement:
    cores = max(1, int(sum(node.cpus for node in nodes)))
    fitting = _fitting(_limits(request), _beside_pipeline(request, nodes))
    hosts = request.hosts or max(1, min(cores, request.clients, fitting))
    _refuse_too_many(request, nodes, hosts, "hosts")
    cpus = _share(request, nodes, hosts)
    above = f"; more hosts than the {cores} CPUs, so they take turns" if hosts > cores else ""
    reason = f"{hosts} hosts for {request.clients} clients, with {cpus:g} CPU{_gpu_text(request)} each ({why}){above}"
    return Placement("pooled", hosts, cpus, request.gpus_per_host, reason)


def _gpu_text(request: Request) -> str:
    return f" and {request.gpus_per_host:g} GPU" if request.gpus_per_host else ""


def _missing_for_dedicated(request: Request, nodes: Sequence[Node]) -> str:
    """What keeps clients from having a host each, as a sentence; empty where nothing does."""
    fitting = _fitting(_limits(request), _beside_pipeline(request, nodes))
    if fitting < request.clients:
        needs = f"{request.clients * request.bytes_per_host / 2**30:.1f} GiB of memory"
        needs += f" and {request.clients * request.gpus_per_host:g} GPUs" if request.gpus_per_host else ""
        return f"one host per client would need {needs}; there is room for {fitting}"
    if request.cpus_per_host is None and _share(request, nodes, request.clients) < SMALLEST_SHARE:
        cpus = request.clients * SMALLEST_SHARE + request.pipeline_cpus
        return (
            f"one host per client would need {cpus:g} CPUs, {SMALLEST_SHARE:g} for each and "
            f"{request.pipeline_cpus:g} for the pipeline; there are {sum(node.cpus for node in nodes):g}"
        )
    return ""


Limits = dict[str, Callable[[Node], int]]
"""By name: how many hosts a node has room for, as far as this resource goes."""


def _limits(request: Request) -> Limits:
    limits: Limits = {"memory": lambda node: node.memory // request.bytes_per_host}
    if request.cpus_per_host:
        each = _units(request.cpus_per_host)
        limits["CPUs"] = lambda node: _units(node.cpus) // each
    if request.gpus_per_host:
        limits["GPUs"] = lambda node: _on_cards(node.gpus, request.gpus_per_host)
    return limits


def _on_cards(gpus: float, each: float) -> int:
    """How many hosts find their GPUs on a node: a share of one lies on one card."""
    return int(gpus) * (_GRAIN // _units(each)) if each < 1 else int(gpus // each)


def _fitting(limits: Limits, nodes: Sequence[Node]) -> int:
    """How many hosts fit, counted node by node: rests on two nodes do not make room for one more."""
    return sum(min(limit(node) for limit in limits.values()) for node in nodes)


def _refuse_too_many(request: Request, nodes: Sequence[Node], wanted: int, what: str) -> None:
    there = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if request.pipeline_cpus > max(1.0, there[0]) or request.pipeline_gpus > there[1]:
        raise PlacementError(
            f"the pipeline of a distillation needs {request.pipeline_cpus:g} CPUs and {request.pipeline_gpus:g} GPUs; "
            f"there are {there[0]:g} and {there[1]:g}"
        )
    limits, left = _limits(request), _beside_pipeline(request, nodes)
    for name, limit in limits.items():
        room = _fitting({name: limit}, left)
        if room < wanted:
            raise PlacementError(f"{wanted} {what} do not fit: {name} suffice for {room} ({_asked(request, name)})")
    if _fitting(limits, left) < wanted:
        raise PlacementError(f"{wanted} {what} do not fit: node by node there is room for {_fitting(limits, left)}")


def _asked(request: Request, name: str) -> str:
    if name == "memory":
        return f"{request.bytes_per_host / 2**20:.0f} MiB each"
    if name == "CPUs":
        return f"{request.cpus_per_host:g} each, {request.pipeline_cpus:g} kept for the pipeline"
    return f"{request.gpus_per_host:g} each, {request.pipeline_gpus:g} kept for the pipeline"


def _units(amount: float) -> int:
    return round(amount * _GRAIN)


def _beside_pipeline(request: Request, nodes: Sequence[Node]) -> list[Node]:
    """The nodes, the largest without what the pipeline needs: its parts may not fit in rests."""
    first, *others = sorted(nodes, key=lambda node: (node.gpus, node.cpus), reverse=True)
    cpus, gpus = max(0.0, first.cpus - request.pipeline_cpus), max(0.0, first.gpus - request.pipeline_gpus)
    return [Node(cpus, gpus, first.memory), *others]


def _share(request: Request, nodes: Sequence[Node], hosts: int) -> float:
    """CPUs that each host reserves: the largest equal share that lets all start, rounded down to Ray's grain."""
    if request.cpus_per_host is not None:
        return request.cpus_per_host
    cpus = [_units(node.cpus) for node in _beside_pipeline(request, nodes)]
    low, high = 0, _GRAIN
    while low < high:
        middle = (low + high + 1) // 2
        if sum(units // middle for units in cpus) >= hosts:
            low = middle
        else:
            high = middle - 1
    return low / _GRAIN
