"""Placement of a run's hosts: one per client or a few for all, and the resources of each. Decisions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from actors.distillation.plan import DistilResources, RemainingRoom, Room, place_all, shortage
from clusters.nodes import Node

PROCESS_BYTES = 200 * 2**20
"""A host's own memory before it holds any network, measured: Python, Ray and torch without its optimisers."""

LIBRARY_BYTES = 180 * 2**20
"""Pages of compiled libraries that a host maps, measured; all processes of a machine have them in common."""

SMALLEST_SHARE = 0.25
"""Share of a CPU: with less than this for each client, `auto` does not give every client a process of its own."""

_GRAIN = 10_000
"""Ray counts resources in ten-thousandths."""


@dataclass(frozen=True)
class Request:
    """The resources that a run asks for.

    Attributes:
        clients: of the federation.
        kind: `dedicated`, one host per client; `pooled`, hosts that carry many clients in turn; `auto`, dedicated where
            there is room for it.
        hosts: how many pooled hosts; as many as CPUs where None.
        cpus_per_host: CPUs that a host reserves; where None, equal shares of what the distillation leaves, at most 1.
        gpus_per_host: GPUs, or the fraction of one, that a host reserves and may fill.
        bytes_per_host: memory that a host's process has to itself.
        bytes_per_node: memory of each machine beside its hosts: libraries, the object store.
        bytes_beside: memory of all else (the driver, a distillation, Ray itself), which counts where there is one
            machine for everything.
        pipeline: what must find room beside the hosts, None for a method that never distils. It runs while hosts are
            idle, but Ray counts reservations, so without room it would wait for ever.
    """

    clients: int
    kind: Literal["auto", "dedicated", "pooled"] = "auto"
    hosts: int | None = None
    cpus_per_host: float | None = None
    gpus_per_host: float = 0.0
    bytes_per_host: int = PROCESS_BYTES
    bytes_per_node: int = LIBRARY_BYTES
    bytes_beside: int = 0
    pipeline: DistilResources | None = DistilResources()


@dataclass(frozen=True)
class Placement:
    """The hosts that a run gets.

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
    """A placement that cannot be had here; the message names the number that would fit."""


def decide(request: Request, nodes: Sequence[Node]) -> Placement:
    """Hosts for a request on these nodes.

    Raises:
        PlacementError: the hosts would never all start, or the distillation would wait for ever.
    """
    if request.kind == "dedicated" and request.hosts is not None:
        raise PlacementError(
            f"hosts = {request.hosts} with placement dedicated, which has one host per client: leave hosts empty, "
            "or take placement pooled"
        )
    _refuse_pipeline(request, nodes)
    if request.kind == "dedicated":
        return _place_dedicated(request, nodes)
    if request.kind == "pooled" or request.hosts is not None:
        return _place_pooled(request, nodes, "as asked")
    missing = _missing_for_dedicated(request, nodes)
    return _place_pooled(request, nodes, missing) if missing else _place_dedicated(request, nodes)


def _refuse_pipeline(request: Request, nodes: Sequence[Node]) -> None:
    reason = shortage(request.pipeline, rooms(nodes), " with no host beside it") if request.pipeline else None
    if reason:
        raise PlacementError(reason)


def rooms(nodes: Sequence[Node]) -> list[Room]:
    """The room of empty nodes, as a distillation counts it."""
    return [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]


def _place_dedicated(request: Request, nodes: Sequence[Node]) -> Placement:
    _refuse_too_many(request, nodes, request.clients, "clients with placement dedicated")
    cpus = _share(request, nodes, request.clients)
    reason = f"one host for each of {request.clients} clients, with {cpus:g} CPU{_gpu_text(request)} each"
    return Placement("dedicated", request.clients, cpus, request.gpus_per_host, reason)


def _place_pooled(request: Request, nodes: Sequence[Node], why: str) -> Placement:
    cores = max(1, int(sum(node.cpus for node in nodes)))
    hosts = request.hosts or max(1, _most_hosts(request, nodes, min(cores, request.clients)))
    _refuse_too_many(request, nodes, hosts, "hosts" if hosts > 1 else "host")
    cpus = _share(request, nodes, hosts)
    above = f"; more hosts than the {cores} CPUs, so they take turns" if hosts > cores else ""
    reason = f"{hosts} hosts for {request.clients} clients, with {cpus:g} CPU{_gpu_text(request)} each ({why}){above}"
    return Placement("pooled", hosts, cpus, request.gpus_per_host, reason)


def _gpu_text(request: Request) -> str:
    return f" and {request.gpus_per_host:g} GPU" if request.gpus_per_host else ""


def _missing_for_dedicated(request: Request, nodes: Sequence[Node]) -> str:
    """The reason why clients cannot have a host each, as a sentence; empty where they can."""
    fitting = _most_hosts(request, nodes, request.clients)
    if fitting < request.clients:
        needs = f"{request.clients * request.bytes_per_host / 2**30:.1f} GiB of memory"
        needs += f" and {request.clients * request.gpus_per_host:g} GPUs" if request.gpus_per_host else ""
        return f"one host per client would need {needs}; there is room for {fitting}"
    if request.cpus_per_host is None and _share(request, nodes, request.clients) < SMALLEST_SHARE:
        kept = _pipeline_cpus(request)
        parts = f"{SMALLEST_SHARE:g} for each" + (f" and {kept:g} for the distillation" if kept else "")
        return (
            f"one host per client would need {request.clients * SMALLEST_SHARE + kept:g} CPUs, {parts}; "
            f"there are {sum(node.cpus for node in nodes):g}"
        )
    return ""


def _pipeline_cpus(request: Request) -> float:
    return sum(a.count * a.cpus for a in request.pipeline.by_kind().values()) if request.pipeline else 0.0


def _can_start(request: Request, nodes: Sequence[Node], hosts: int, cpus: float) -> bool:
    """Whether so many hosts of so many CPUs start, and the distillation beside them.

    Hosts come first and are spread over the nodes in turn, as Ray does; what they leave is the distillation's. Ray does
    not know what memory they take, so they must start both where each node's memory is kept to and where it is not.
    """
    in_memory = [_hosts_in_memory(request, nodes, node) for node in nodes]
    return all(_deal(request, nodes, hosts, cpus, slots) for slots in (in_memory, [hosts] * len(nodes)))


def _deal(request: Request, nodes: Sequence[Node], hosts: int, cpus: float, slots: Sequence[int]) -> bool:
    """Whether hosts that are dealt to the nodes in turn, at most `slots` to each, start with the distillation."""
    left, slots = [RemainingRoom.of(room) for room in rooms(nodes)], list(slots)
    open_, placed = list(range(len(nodes))), 0
    while placed < hosts:
        if not open_:
            return False
        i = open_.pop(0)
        if slots[i] and left[i].take(cpus, request.gpus_per_host):
            slots[i] -= 1
            placed += 1
            open_.append(i)
    return request.pipeline is None or place_all(request.pipeline, left)


def _hosts_in_memory(request: Request, nodes: Sequence[Node], node: Node) -> int:
    return max(0, _memory_for_hosts(request, nodes, node) // request.bytes_per_host)


def _memory_for_hosts(request: Request, nodes: Sequence[Node], node: Node) -> int:
    return node.memory - request.bytes_per_node - (request.bytes_beside if len(nodes) == 1 else 0)


def _most_hosts(request: Request, nodes: Sequence[Node], most: int) -> int:
    """The largest number of hosts, up to `most`, that start where each has its CPUs, or none reserved."""
    cpus = request.cpus_per_host or 0.0
    return _largest(most, lambda hosts: _can_start(request, nodes, hosts, cpus))


def _largest(most: int, works: Callable[[int], bool]) -> int:
    """The largest number from 0 to `most` that works, where those below one that works do too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if works(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _refuse_too_many(request: Request, nodes: Sequence[Node], count: int, what: str) -> None:
    if _most_hosts(request, nodes, count) == count:
        return
    for name, alone in _each_alone(request).items():
        room = _most_hosts(alone, nodes, count)
        if room < count:
            raise PlacementError(
                f"{count} {what} {'do' if count > 1 else 'does'} not fit: {name} for {room} "
                f"({_describe_demand(request, nodes, name)}){_fitting_share(alone, nodes, count)}"
            )
    room = _most_hosts(request, nodes, count)
    raise PlacementError(f"{count} {what} do not fit: node by node there is room for {room}")


def _each_alone(request: Request) -> dict[str, Request]:
    """Requests that are short of one resource alone, by what one says of it."""
    unbound = replace(request, bytes_per_host=1, bytes_per_node=0, bytes_beside=0, cpus_per_host=0.0)
    return {
        "memory suffices": replace(request, cpus_per_host=0.0, gpus_per_host=0.0, pipeline=None),
        "CPUs suffice": replace(unbound, cpus_per_host=request.cpus_per_host, gpus_per_host=0.0),
        "GPUs suffice": unbound,
    }


def _describe_demand(request: Request, nodes: Sequence[Node], name: str) -> str:
    if name.startswith("memory"):
        free = sum(max(0, _memory_for_hosts(request, nodes, node)) for node in nodes)
        return f"{request.bytes_per_host / 2**20:.0f} MiB each, {free / 2**30:.1f} GiB free beside all else"
    if name.startswith("CPUs"):
        kept = _pipeline_cpus(request)
        there = sum(node.cpus for node in nodes)
        return f"{request.cpus_per_host:g} each{f', {kept:g} kept for the distillation' if kept else ''}, of {there:g}"
    kept = sum(a.count * a.gpus for a in request.pipeline.by_kind().values()) if request.pipeline else 0.0
    there = sum(node.gpus for node in nodes)
    return f"{request.gpus_per_host:g} each{f', {kept:g} kept for the distillation' if kept else ''}, of {there:g}"


def _fitting_share(alone: Request, nodes: Sequence[Node], count: int) -> str:
    """The share with which the wanted number of hosts would fit, in words; empty where none does."""
    cpus, gpus = alone.cpus_per_host or 0.0, alone.gpus_per_host

    def fits_with(units: int) -> bool:
        part = units / _units(cpus or gpus)
        return _can_start(replace(alone, gpus_per_host=gpus * part), nodes, count, cpus * part)

    share = _largest(_units(cpus or gpus), fits_with) if cpus or gpus else 0
    return f"; {count} would fit with {share / _GRAIN:g} each" if share else ""


def _units(amount: float) -> int:
    return round(amount * _GRAIN)


def _share(request: Request, nodes: Sequence[Node], hosts: int) -> float:
    """CPUs that each host reserves: the largest equal share that lets all start, rounded down to Ray's grain."""
    if request.cpus_per_host is not None:
        return request.cpus_per_host
    return _largest(_GRAIN, lambda units: _can_start(request, nodes, hosts, units / _GRAIN)) / _GRAIN
