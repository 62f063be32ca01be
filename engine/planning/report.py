"""The plan of a run before it starts: who runs where, how much memory, what is sent. Nothing is trained."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.distillation.plan import KINDS, shortage
from actors.hosts.placement import LIBRARY_BYTES, Placement, PlacementError, Request, decide, rooms
from algorithms.core.needs import ServerStorage, Volume
from algorithms.core.task import Task
from clusters.nodes import Node
from engine.config.budget import budget_fact
from engine.errors import ConfigError, Problem
from engine.planning.federation import Federation
from engine.planning.memory import (
    JOB_BYTES,
    JOB_PROCESSES,
    RAY_BYTES,
    NetPlan,
    Sizes,
    confusion_bytes,
    driver_base,
    largest_batch,
    net_plan,
    of_process,
    sizes,
)
from engine.units import size


@dataclass(frozen=True)
class Traffic:
    """Traffic of one kind, in bytes.

    Attributes:
        bytes: None where it depends on the data.
        when: `every round`, `once`, or `as the data has it`.
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
        task: what is learnt, from what, and by which figure it is judged.
        placement: None where the run stays in this process.
        storage: what the server will store besides its models.
        batches: mini-batches of all asked clients in a round, on average.
        parts: all processes.
        data: how values of the data became classes, where that is not plain.
        budget: see `budget_fact`.
    """

    method: str
    task: str
    runner: str
    clients: int
    cohort: int
    rounds: int
    batches: float
    placement: Placement | None
    nets: tuple[NetPlan, ...]
    storage: tuple[ServerStorage, ...]
    parts: tuple[Part, ...]
    memory: Memory
    traffic: tuple[Traffic, ...]
    data: tuple[str, ...] = ()
    budget: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The plan for a person, as `tessera plan` prints it."""
        from engine.planning.words import lines

        return "\n".join(lines(self))

    def tree(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    def facts(self) -> dict[str, str]:
        """Facts shown when the run starts, in words by name."""
        placement, memory = self.placement, self.memory
        lines = {"task": self.task, **({"data": "; ".join(self.data)} if self.data else {}), **self.budget}
        if placement:
            lines["placement"] = f"{placement.kind}: {placement.reason}"
        workers = [
            f"{part.processes} {part.name}{'' if part.processes == 1 else 's'} of {part.cpus:g} CPU"
            + (f" and {part.gpus:g} GPU" if part.gpus else "")
            for part in self.parts
            if part.name in KINDS.values()
        ]
        if workers:
            lines["distillation"] = f"{', '.join(workers)}, beside the hosts"
        each = f" (driver {size(memory.driver)}, each host {size(memory.host)})" if placement else ""
        lines["memory"] = f"about {size(memory.together)} will be used{each}; {size(memory.free)} are free"
        return lines


def plan(federation: Federation, nodes: Sequence[Node], free: int) -> PlanReport:
    """Plan a federation's run on these nodes.

    Args:
        nodes: of the cluster, or of the one that would be started.
        free: bytes of memory that are free on the driver's machine.

    Raises:
        ConfigError: the hosts that are asked for, or the distillation beside them, do not fit; or this process, which
            is to do all the work, does not.
    """
    config, clients = federation.config, len(federation.setup.clients)
    cohort = config.clients.cohort or clients
    nets = tuple(net_plan(federation, name, width, count) for (name, width), count in _variants(federation).items())
    needed = sizes(federation, nets)
    placement = None
    if config.runner.kind == "ray":
        placement = _place(federation, needed, nodes)
    elif needed.driver > free:
        raise ConfigError([_too_large_batch(federation, nets, needed.driver, free)])
    parts = tuple(_parts(federation, placement, needed))
    shared = len(nodes) * (LIBRARY_BYTES + needed.store) if placement else 0
    return PlanReport(
        method=config.method.name,
        runner=config.runner.kind,
        clients=clients,
        cohort=cohort,
        rounds=config.rounds,
        task=_task(federation.dataset.task),
        batches=_batches(federation) * cohort / clients,
        placement=placement,
        nets=nets,
        storage=federation.needs.storage,
        parts=parts,
        memory=Memory(
            driver=needed.driver,
            host=of_process(needed.host, needed.mapped) if placement else 0,
            object_store=needed.store,
            together=sum(part.own for part in parts) + shared,
            free=free,
        ),
        traffic=(
            *(_traffic("up", kind, sent, clients, cohort) for kind, sent in sorted(federation.needs.up.items())),
            *(_traffic("down", kind, sent, clients, cohort) for kind, sent in sorted(federation.needs.down.items())),
        ),
        data=federation.dataset.facts,
        budget=budget_fact(config),
    )


def _place(federation: Federation, needed: Sizes, nodes: Sequence[Node]) -> Placement:
    """The placement of the hosts.

    Raises:
        ConfigError: they do not fit; at the key whose value is too much.
    """
    runner = federation.config.runner
    request = request_of(federation, needed)
    try:
        return decide(request, nodes)
    except PlacementError as error:
        key: str = "runner.placement"
        value: Any = runner.placement
        if request.pipeline and shortage(request.pipeline, rooms(nodes)):
            key, value = "runner.distillation", runner.distillation.model_dump()
        elif runner.hosts is not None:
            key, value = "runner.hosts", runner.hosts
        raise ConfigError([Problem(key, value, str(error))]) from error


def _too_large_batch(federation: Federation, nets: Sequence[NetPlan], needed: int, free: int) -> Problem:
    """Clients that train in this process need more than is free, whatever the data take."""
    largest = max(nets, key=lambda net: net.training_bytes)
    each = largest.example_bytes
    fitting = max(0, int((free - (needed - each * largest_batch(federation))) / each))
    reason = (
        f"this process needs {size(needed)} to train {largest.name}, and {size(free)} are free: {fitting} would fit"
    )
    return Problem("clients.batch", federation.config.clients.batch, reason)


def request_of(federation: Federation, needed: Sizes) -> Request:
    """The request of a run to a cluster."""
    runner = federation.config.runner
    return Request(
        clients=len(federation.setup.clients),
        kind=runner.placement,
        hosts=runner.hosts,
        cpus_per_host=runner.cpus,
        gpus_per_host=runner.gpus,
        bytes_per_host=needed.host,
        bytes_per_node=LIBRARY_BYTES + needed.store,
        bytes_beside=sum(part.own for part in _parts(federation, None, needed)),
        pipeline=runner.distillation.resources() if federation.needs.distillation else None,
    )


def _parts(federation: Federation, placement: Placement | None, needed: Sizes) -> Iterator[Part]:
    """The processes of a run, those of the hosts where they are placed."""
    runner = federation.config.runner
    if runner.kind == "inline":
        yield Part("this process", 1, 0, 0, needed.driver, needed.driver)
        return
    yield Part("driver", 1, 0, 0, needed.driver, needed.driver - LIBRARY_BYTES)
    if placement is not None:
        whole = of_process(needed.host, needed.mapped)
        yield Part("host", placement.hosts, placement.cpus, placement.gpus, whole, placement.hosts * needed.host)
    if federation.needs.distillation:
        actors = runner.distillation.resources().by_kind()
        for kind, own in zip(KINDS, (needed.sampler, needed.teacher, needed.trainer), strict=True):
            some = actors[kind]
            yield Part(KINDS[kind], some.count, some.cpus, some.gpus, of_process(own), some.count * own)
        each = JOB_BYTES // JOB_PROCESSES
        yield Part("Ray Train and Data", JOB_PROCESSES, 0, 0, of_process(each), JOB_BYTES)
    if runner.address is None:
        yield Part("Ray itself", 0, 0, 0, RAY_BYTES, RAY_BYTES)


def too_large(federation: Federation, free: int) -> list[Problem]:
    """Reasons why the server's side does not fit into memory, with the number that would; empty where it does."""
    if confusion_bytes(federation.setup.task) > free:
        return [_too_many_classes(federation, free)]
    storage, room = federation.needs.storage, free - driver_base(federation)
    needed = sum(stored.total for stored in storage)
    if room < 0:
        return [_too_much_data(federation, free)]
    if needed <= room:
        return []
    largest = max(storage, key=lambda stored: stored.total)
    others = needed - largest.total
    fitting = max(0, (room - others) // largest.bytes)
    reason = (
        f"{largest.count} {largest.name} of {size(largest.bytes)} each need {size(largest.total)}, "
        f"and {size(max(room - others, 0))} of memory are free for them: {fitting} would fit"
    )
    return [Problem("partition.clients", len(federation.setup.clients), reason)]


def _too_many_classes(federation: Federation, free: int) -> Problem:
    task = federation.setup.task
    reason = (
        f"has {task.classes:,} classes, and to count them by class and answer needs {size(confusion_bytes(task))}, "
        f"while {size(free)} are free: name the column of classes by data.columns.label"
    )
    return Problem("data.source", federation.config.data.source, reason)


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
    """The number of clients with each network at each width; on average, where widths are drawn anew in every round."""
    setup = federation.setup
    found = Counter((client.net, client.width) for client in setup.variants())
    drawn = len(setup.widths) or 1
    return {variant: count / drawn if count % drawn else count // drawn for variant, count in found.items()}


def _task(task: Task) -> str:
    """The task, its data, and the figure by which it is judged."""
    headline = task.headline
    return f"{task.title}, {task.form}, judged by {headline.name.replace('_', ' ')} ({headline.better} is better)"


def _batches(federation: Federation) -> float:
    """Mini-batches of all clients in a round."""
    clients = federation.config.clients
    if clients.steps is not None:
        return float(clients.steps * len(federation.setup.clients))
    return float(sum((clients.epochs or 0) * -(-int(n) // clients.batch) for n in federation.partition.sizes))


def _traffic(direction: str, kind: str, volume: Volume, clients: int, cohort: int) -> Traffic:
    """The method's traffic of a kind, for all clients where it travels once, else for those asked in a round."""
    if volume.once:
        return Traffic(kind, direction, None if volume.bytes is None else round(volume.bytes * clients), "once")
    if volume.bytes is None:
        return Traffic(kind, direction, None, "as the data has it")
    return Traffic(kind, direction, round(volume.bytes * cohort), "every round")
