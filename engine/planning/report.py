"""What a run would need, before it starts: who runs where, how much memory, what is sent. Nothing is trained."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actors.distillation.plan import KINDS, DistilResources, fits
from actors.hosts.placement import LIBRARY_BYTES, Placement, PlacementError, Request, decide, rooms
from algorithms.core.contract import Holding, Teaching
from clusters.nodes import Node
from engine.config import RunnerConfig
from engine.errors import ConfigError, Problem
from engine.planning.federation import Federation
from engine.planning.memory import (
    JOB_BYTES,
    JOB_PROCESSES,
    RAY_BYTES,
    NetPlan,
    Sizes,
    driver_base,
    net_plan,
    of_process,
    sizes,
)
from engine.units import size


@dataclass(frozen=True)
class Traffic:
    """What is sent of one kind, in bytes.

    Attributes:
        bytes: None where it depends on the data.
        when: `every round`, `once`, or `as the method asks`.
    """

    kind: str
    direction: str
    bytes: int | None
    when: str


@dataclass(frozen=True)
class Part:
    """Processes of one kind.

    Attributes:
        processes: how many; of Ray's own, which are many small ones, 0 stands for some.
        cpus, gpus: that each reserves with Ray.
        bytes: predicted of each at its largest, what it has in common with others included.
        own: of all of them together, without that.
    """

    name: str
    processes: int
    cpus: float
    gpus: float
    bytes: int
    own: int


@dataclass(frozen=True)
class Memory:
    """Predicted bytes.

    Attributes:
        driver: of its process, at its largest, as `peak_rss_mb` in result.json counts it.
        host: of one host's process, likewise; 0 inline.
        object_store: of each machine; 0 inline.
        together: of all processes and object stores.
        free: of the driver's machine, before the run.
    """

    driver: int
    host: int
    object_store: int
    together: int
    free: int


@dataclass(frozen=True)
class PlanReport:
    """A run that has not started.

    Attributes:
        placement: None where the run stays in this process.
        holdings: what the server comes to hold besides its models.
        batches: mini-batches of all asked clients in a round, on average.
        parts: all processes.
        data: how values of the data became classes, where that is not plain.
    """

    method: str
    runner: str
    clients: int
    cohort: int
    rounds: int
    batches: float
    placement: Placement | None
    nets: tuple[NetPlan, ...]
    holdings: tuple[Holding, ...]
    parts: tuple[Part, ...]
    memory: Memory
    traffic: tuple[Traffic, ...]
    data: tuple[str, ...] = ()

    def tree(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    def facts(self) -> dict[str, str]:
        """What a person is told of it when the run starts, in words by name."""
        hosts = {"placement": f"{self.placement.kind}: {self.placement.reason}"} if self.placement else {}
        data = {"data": "; ".join(self.data)} if self.data else {}
        return {**data, **hosts, **_distillation_fact(self.parts), "memory": _memory_fact(self)}


def plan(federation: Federation, nodes: Sequence[Node], free: int) -> PlanReport:
    """What a federation's run would need on these nodes.

    Args:
        nodes: of the cluster, or of the one that would be started.
        free: bytes of memory that are free on the driver's machine.

    Raises:
        ConfigError: the hosts that are asked for, or the distillation beside them, do not fit; or this process, which
            is to do all the work, does not.
    """
    config, casting = federation.config, federation.casting
    nets = tuple(net_plan(federation, name, width, count) for (name, width), count in _variants(federation).items())
    cohort = config.clients.cohort or len(casting.clients)
    holdings = holdings_of(federation)
    needed = sizes(federation, nets, holdings, teaching_of(federation))
    placement = None
    if config.runner.kind == "ray":
        placement = _placed(federation, request_of(federation, needed), nodes)
    elif needed.driver > free:
        raise ConfigError([_too_large_batch(config.clients.batch, nets, needed.driver, free)])
    parts = tuple(_parts(federation, placement, needed))
    return PlanReport(
        method=config.method.name,
        runner=config.runner.kind,
        clients=len(casting.clients),
        cohort=cohort,
        rounds=config.rounds,
        batches=_batches(federation) * cohort / len(casting.clients),
        placement=placement,
        nets=nets,
        holdings=holdings,
        parts=parts,
        memory=_memory(parts, needed, len(nodes), free),
        traffic=tuple(_traffic(federation, nets, holdings, cohort)),
        data=federation.dataset.facts,
    )


def _placed(federation: Federation, request: Request, nodes: Sequence[Node]) -> Placement:
    try:
        return decide(request, nodes)
    except PlacementError as error:
        runner = federation.config.runner
        raise ConfigError([Problem(*_blamed(runner, request, nodes), str(error))]) from error


def _too_large_batch(batch: int, nets: Sequence[NetPlan], needed: int, free: int) -> Problem:
    """Clients that train in this process need more than is free, whatever the data take."""
    largest = max(nets, key=lambda net: net.training_bytes)
    each = largest.example_bytes
    fitting = max(0, int((free - (needed - each * batch)) / each))
    reason = (
        f"this process needs {size(needed)} to train {largest.name}, and {size(free)} are free: {fitting} would fit"
    )
    return Problem("clients.batch", batch, reason)


def _blamed(runner: RunnerConfig, request: Request, nodes: Sequence[Node]) -> tuple[str, Any]:
    """The key whose value does not fit, and the value."""
    if request.pipeline and fits(request.pipeline, rooms(nodes)):
        return "runner.distillation", runner.distillation.model_dump()
    if runner.hosts is not None:
        return "runner.hosts", runner.hosts
    return "runner.placement", runner.placement


def request_of(federation: Federation, needed: Sizes) -> Request:
    """What a run asks of a cluster."""
    runner = federation.config.runner
    parts = tuple(_parts(federation, None, needed))
    return Request(
        clients=len(federation.casting.clients),
        kind=runner.placement,
        hosts=runner.hosts,
        cpus_per_host=runner.cpus,
        gpus_per_host=runner.gpus,
        bytes_per_host=needed.host,
        bytes_per_node=LIBRARY_BYTES + needed.store,
        bytes_beside=sum(part.own for part in parts),
        pipeline=pipeline_of(federation),
    )


def teaching_of(federation: Federation) -> Teaching | None:
    """The distillation that the method comes to ask for."""
    casting = federation.casting
    return federation.config.method.type.teaching(casting.config, casting.task, casting.clients, _counts(federation))


def pipeline_of(federation: Federation) -> DistilResources | None:
    """What a distillation holds beside the hosts; None where there is none."""
    return federation.config.runner.distillation.resources() if teaching_of(federation) else None


def _parts(federation: Federation, placement: Placement | None, needed: Sizes) -> Iterator[Part]:
    """All processes, those of the hosts where they are placed."""
    if federation.config.runner.kind == "inline":
        yield Part("this process", 1, 0, 0, needed.driver, needed.driver)
        return
    yield Part("driver", 1, 0, 0, needed.driver, needed.driver - LIBRARY_BYTES)
    if placement is not None:
        whole = of_process(needed.host, needed.mapped)
        yield Part("host", placement.hosts, placement.cpus, placement.gpus, whole, placement.hosts * needed.host)
    pipeline = pipeline_of(federation)
    if pipeline is not None:
        for kind, own in zip(KINDS, (needed.sampler, needed.teacher, needed.trainer), strict=True):
            actors = pipeline.by_kind()[kind]
            yield Part(KINDS[kind], actors.count, actors.cpus, actors.gpus, of_process(own), actors.count * own)
        each = JOB_BYTES // JOB_PROCESSES
        yield Part("Ray Train and Data", JOB_PROCESSES, 0, 0, of_process(each), JOB_BYTES)
    if federation.config.runner.address is None:
        yield Part("Ray itself", 0, 0, 0, RAY_BYTES, RAY_BYTES)


def _memory(parts: Sequence[Part], needed: Sizes, machines: int, free: int) -> Memory:
    shared = machines * (LIBRARY_BYTES + needed.store) if needed.host else 0
    together = sum(part.own for part in parts) + shared
    return Memory(
        needed.driver, of_process(needed.host, needed.mapped) if needed.host else 0, needed.store, together, free
    )


def holdings_of(federation: Federation) -> tuple[Holding, ...]:
    """What the method says that its server comes to hold besides its models."""
    casting = federation.casting
    return federation.config.method.type.holdings(casting.config, casting.task, casting.clients, _counts(federation))


def _counts(federation: Federation) -> Tensor:
    return torch.from_numpy(
        federation.partition.counts(federation.dataset.train_labels, federation.casting.task.classes)
    )


def too_large(federation: Federation, free: int) -> list[Problem]:
    """Why the server's side does not fit into memory, with the number that would; empty where it does."""
    holdings = holdings_of(federation)
    room = free - driver_base(federation)
    needed = sum(h.count * h.bytes for h in holdings)
    if room < 0:
        return [_too_much_data(federation, free)]
    if needed <= room:
        return []
    largest = max(holdings, key=lambda h: h.count * h.bytes)
    others = needed - largest.count * largest.bytes
    fitting = max(0, (room - others) // largest.bytes)
    reason = (
        f"{largest.count} {largest.name} of {size(largest.bytes)} each need {size(largest.count * largest.bytes)}, "
        f"and {size(max(room - others, 0))} of memory are free for them: {fitting} would fit"
    )
    return [Problem("partition.clients", len(federation.casting.clients), reason)]


def _too_much_data(federation: Federation, free: int) -> Problem:
    rows = len(federation.dataset)
    needed = driver_base(federation)
    each = federation.shards.nbytes / rows
    fitting = max(0, int(rows - (needed - free) / each))
    reason = (
        f"the driver needs {size(needed)} with {rows} training rows in memory, and {size(free)} are free: "
        f"{fitting} rows would fit"
    )
    return Problem("data.limit", federation.config.data.limit, reason)


def _variants(federation: Federation) -> dict[tuple[str, float], float]:
    """How many clients have each network at each width; on average, where widths are drawn anew in every round."""
    casting = federation.casting
    found = Counter((client.net, client.width) for client in casting.variants())
    drawn = len(casting.widths) or 1
    return {variant: count / drawn if count % drawn else count // drawn for variant, count in found.items()}


def _batches(federation: Federation) -> float:
    """Mini-batches of all clients in a round."""
    clients = federation.config.clients
    if clients.steps is not None:
        return float(clients.steps * len(federation.casting.clients))
    return float(sum((clients.epochs or 0) * -(-int(n) // clients.batch) for n in federation.partition.sizes))


def _traffic(
    federation: Federation, nets: Sequence[NetPlan], holdings: Sequence[Holding], cohort: int
) -> Iterator[Traffic]:
    """What is known of each declared kind: weights from the networks, the rest from what the server comes to hold."""
    kinds = federation.config.method.type.kinds(federation.casting.config)
    clients = len(federation.casting.clients)
    weights = round(sum(net.bytes * net.clients for net in nets) * cohort / clients)
    counts = 8 * federation.casting.task.classes * cohort
    known = {"examples": 8 * cohort, "loss": 8 * cohort, "label_counts": counts, "weights": weights}
    once = {h.kind: h.count * h.bytes for h in holdings if h.kind}
    for direction, names in (("up", kinds.up), ("down", kinds.down)):
        for kind in sorted(names):
            if direction == "up" and kind in once:
                yield Traffic(kind, direction, once[kind], "once")
            else:
                yield Traffic(
                    kind, direction, known.get(kind), "every round" if kind in known else "as the data has it"
                )


def lines(report: PlanReport) -> Iterator[str]:
    """The plan for a person."""
    yield f"{report.method}: {report.rounds} rounds, {report.cohort} of {report.clients} clients in each"
    yield from (f"data: {fact}" for fact in report.data)
    yield f"{report.batches:g} mini-batches in a round"
    yield ""
    yield f"runner: {report.runner}"
    if report.placement:
        yield f"placement: {report.placement.kind}: {report.placement.reason}"
    yield "networks:"
    for net in report.nets:
        width = "" if net.width == 1 else f" at width {net.width:g}"
        yield f"    {net.name}{width}: {net.clients:g} clients, {net.parameters:,} parameters, {size(net.bytes)}"
    yield from _table(report.parts)
    yield from _memory_lines(report)
    yield "sent:"
    for part in report.traffic:
        amount = "depends on the data" if part.bytes is None else size(part.bytes)
        yield f"    {'to the server' if part.direction == 'up' else 'to clients'}, {part.kind}: {amount}, {part.when}"


def _table(parts: Sequence[Part]) -> Iterator[str]:
    yield f"{'processes:':<24}{'number':>8}{'CPUs each':>12}{'GPUs each':>12}{'memory each':>14}"
    for part in parts:
        shares = f"{part.cpus:g}" if part.cpus else "-", f"{part.gpus:g}" if part.gpus else "-"
        number = str(part.processes or "some")
        memory = size(part.bytes) + ("" if part.processes else ", all")
        yield f"    {part.name:<20}{number:>8}{shares[0]:>12}{shares[1]:>12}{memory:>14}"


def _memory_lines(report: PlanReport) -> Iterator[str]:
    memory = report.memory
    yield "memory, predicted:"
    for holding in report.holdings:
        yield f"    of the driver's, {holding.count} {holding.name} of {size(holding.bytes)}"
    if report.placement:
        yield f"    object store: {size(memory.object_store)}"
    yield f"    all together, what processes share counted once: {size(memory.together)}"
    yield f"    free on this machine: {size(memory.free)}"


def _distillation_fact(parts: Sequence[Part]) -> dict[str, str]:
    found = [
        f"{part.processes} {part.name}{'' if part.processes == 1 else 's'} of {part.cpus:g} CPU"
        + (f" and {part.gpus:g} GPU" if part.gpus else "")
        for part in parts
        if part.name in KINDS.values()
    ]
    return {"distillation": f"{', '.join(found)}, beside the hosts"} if found else {}


def _memory_fact(report: PlanReport) -> str:
    memory, hosts = report.memory, report.placement.hosts if report.placement else 0
    each = f" (driver {size(memory.driver)}, each host {size(memory.host)})" if hosts else ""
    return f"about {size(memory.together)} will be used{each}; {size(memory.free)} are free"
