"""What a run would need, before it starts: who runs where, how much memory, what is sent. Nothing is trained."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actors.distil_plan import DistilResources
from actors.placement import PROCESS_BYTES, Placement, PlacementError, Request, decide
from algorithms.core.contract import Holding
from algorithms.core.seeds import torch_seeded
from algorithms.nets import Classifier, build
from clusters.nodes import Node
from engine.errors import ConfigError, Problem
from engine.federation import Federation
from engine.units import size

COPIES = 5
"""States of a network that a host has at once while it trains: received, trained, gradients, momentum, sent."""

DRIVER_BYTES = 600 * 2**20
"""What the driver takes before it holds any data: Python with torch, Ray, MLflow and matplotlib imported, measured."""


@dataclass(frozen=True)
class NetPlan:
    """One of the clients' networks.

    Attributes:
        clients: how many have it.
        bytes: of its state dict.
        training_bytes: that a host needs to train it: states, and activations of a batch; a rough guess.
    """

    name: str
    clients: int
    parameters: int
    bytes: int
    training_bytes: int


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
class Memory:
    """Predicted bytes of the driver, of one host and of the object store (0 inline); and the machine's free memory."""

    driver: int
    host: int
    object_store: int
    free: int


@dataclass(frozen=True)
class PlanReport:
    """A run that has not started.

    Attributes:
        placement: None where the run stays in this process.
        holdings: what the server comes to hold besides its models.
        batches: mini-batches of all asked clients in a round, on average.
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
    memory: Memory
    traffic: tuple[Traffic, ...]

    def tree(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


def plan(federation: Federation, nodes: Sequence[Node], free: int) -> PlanReport:
    """What a federation's run would need on these nodes.

    Args:
        nodes: of the cluster, or of the one that would be started.
        free: bytes of memory that are free on the driver's machine.

    Raises:
        ConfigError: the hosts that are asked for do not fit.
    """
    config, casting = federation.config, federation.casting
    nets = tuple(_net_plan(federation, name, count) for name, count in _net_counts(federation).items())
    cohort = config.clients.cohort or len(casting.clients)
    ray = config.runner.kind == "ray"
    holdings = holdings_of(federation)
    placement = _placed(federation, request_of(federation, nets, holdings), nodes) if ray else None
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
        memory=_memory(federation, nets, holdings, cohort, free),
        traffic=tuple(_traffic(federation, nets, holdings, cohort)),
    )


def _placed(federation: Federation, request: Request, nodes: Sequence[Node]) -> Placement:
    try:
        return decide(request, nodes)
    except PlacementError as error:
        runner = federation.config.runner
        key, value = ("placement", runner.placement) if runner.hosts is None else ("hosts", runner.hosts)
        raise ConfigError([Problem(f"runner.{key}", value, str(error))]) from error


def request_of(federation: Federation, nets: Sequence[NetPlan], holdings: Sequence[Holding]) -> Request:
    """What a run asks of a cluster."""
    runner = federation.config.runner
    pipeline = pipeline_of(federation)
    held = [pipeline.samplers, pipeline.teachers, pipeline.trainers]
    return Request(
        clients=len(federation.casting.clients),
        kind=runner.placement,
        hosts=runner.hosts,
        cpus_per_host=runner.cpus,
        gpus_per_host=runner.gpus,
        bytes_per_host=_host_bytes(nets, holdings),
        pipeline_cpus=sum(actors.count * actors.cpus for actors in held),
        pipeline_gpus=sum(actors.count * actors.gpus for actors in held),
    )


def pipeline_of(federation: Federation) -> DistilResources:
    """What a distillation holds beside the hosts."""
    return federation.config.runner.distillation.resources()


def holdings_of(federation: Federation) -> tuple[Holding, ...]:
    """What the method says that its server comes to hold besides its models."""
    casting = federation.casting
    return federation.config.method.type.holdings(casting.config, casting.task, casting.clients)


def too_large(federation: Federation, free: int) -> list[Problem]:
    """Why the server's side does not fit into memory, with the number that would; empty where it does."""
    holdings = holdings_of(federation)
    room = free - _driver_base(federation)
    needed = sum(h.count * h.bytes for h in holdings)
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


def _net_counts(federation: Federation) -> Counter[str]:
    return Counter(client.net for client in federation.casting.clients)


def _net_plan(federation: Federation, name: str, clients: int) -> NetPlan:
    task = federation.casting.task
    with torch_seeded(0):
        net = build(name, task.shape, task.classes)
    state = sum(map(_bytes, net.state_dict().values()))
    activations = activation_bytes(net, task.shape) * federation.config.clients.batch
    parameters = sum(p.numel() for p in net.parameters())
    return NetPlan(name, clients, parameters, state, COPIES * state + activations)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def activation_bytes(net: Classifier, shape: tuple[int, int, int]) -> int:
    """Bytes that training one example takes, roughly: the output of every innermost module, and its gradient."""
    total = 0

    def note(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal total
        total += _bytes(output) if isinstance(output, Tensor) else 0

    hooks = [m.register_forward_hook(note) for m in net.modules() if not list(m.children())]
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return 2 * total


def _host_bytes(nets: Sequence[NetPlan], holdings: Sequence[Holding]) -> int:
    """A pooled host keeps one network of each kind; it trains the largest, or what is sent once and its adversary."""
    made = max((h.bytes for h in holdings if h.kind), default=0)
    training = max(max(net.training_bytes for net in nets), 2 * COPIES * made)
    return PROCESS_BYTES + sum(net.bytes for net in nets) + training


def _driver_base(federation: Federation) -> int:
    public = federation.dataset.public
    data = federation.shards.nbytes + federation.dataset.test_images.nbytes
    return DRIVER_BYTES + data + (public.images.nbytes if public else 0)


def _memory(
    federation: Federation, nets: Sequence[NetPlan], holdings: Sequence[Holding], cohort: int, free: int
) -> Memory:
    ray = federation.config.runner.kind == "ray"
    models = sum(3 * net.bytes for net in nets)
    driver = _driver_base(federation) + models + sum(h.count * h.bytes for h in holdings)
    sent = sum(net.bytes for net in nets) + cohort * max(net.bytes for net in nets)
    if not ray:
        return Memory(driver + max(net.training_bytes for net in nets), 0, 0, free)
    return Memory(driver, _host_bytes(nets, holdings), federation.shards.nbytes + sent, free)


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
    weights = sum(net.bytes * net.clients for net in nets) * cohort // clients
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
    yield f"{report.batches:g} mini-batches in a round"
    yield ""
    yield f"runner: {report.runner}"
    if report.placement:
        yield f"placement: {report.placement.kind}: {report.placement.reason}"
    yield "networks:"
    for net in report.nets:
        yield f"    {net.name}: {net.clients} clients, {net.parameters:,} parameters, {size(net.bytes)}"
    yield "memory, predicted:"
    for name, count in _memory_lines(report).items():
        yield f"    {name}: {size(count)}"
    for holding in report.holdings:
        yield f"    of the driver's, {holding.count} {holding.name} of {size(holding.bytes)}"
    yield "sent:"
    for part in report.traffic:
        amount = "depends on the data" if part.bytes is None else size(part.bytes)
        yield f"    {'to the server' if part.direction == 'up' else 'to clients'}, {part.kind}: {amount}, {part.when}"


def _memory_lines(report: PlanReport) -> Mapping[str, int]:
    memory = report.memory
    if report.placement is None:
        return {"this process": memory.driver, "free": memory.free}
    total = memory.driver + memory.object_store + memory.host * report.placement.hosts
    return {
        "driver": memory.driver,
        f"each of {report.placement.hosts} hosts": memory.host,
        "object store": memory.object_store,
        "all together": total,
        "free on this machine": memory.free,
    }
