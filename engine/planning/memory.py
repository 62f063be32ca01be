"""Prediction of the memory of a run's processes from shapes. Nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.hosts.dispatch import AHEAD_BYTES
from actors.hosts.placement import LIBRARY_BYTES, PROCESS_BYTES
from algorithms.core import batches
from algorithms.core.needs import PlannedDistillation, network_of
from algorithms.core.stacking import LANES, stackable
from algorithms.core.states import state_bytes
from algorithms.core.task import Task
from algorithms.nets.forms import Form
from engine.data.load import rows_of
from engine.planning.federation import Federation

MIB = 2**20

COPIES = 5
"""States of a network that a process has at once while it trains: received, trained, gradients, momentum, sent."""

DRIVER_BYTES = 500 * MIB
"""Memory of the driver before it holds any data, measured, pages in common with others included: Python with torch,
Ray and matplotlib."""

MLFLOW_BYTES = 120 * MIB
"""Memory that MLflow adds to the driver, measured."""

RAY_BYTES = 570 * MIB
"""Memory of the processes of a Ray cluster that is started for one run, measured: head, node manager, dashboard."""

OPTIMISER_BYTES = 80 * MIB
"""Memory that torch's optimisers take in a process that uses them, measured: those of a distillation, the driver, which
trains what labels the images, and hosts whose clients train by Adam."""

DIRECT_BYTES = 100 * 1024
"""Replies up to this size do not pass through the object store; Ray's own limit."""

MESSAGES = 2
"""A round's, and those of earlier ones that hosts have not given back yet; one to four were measured."""

JOB_PROCESSES = 8
"""Processes of a distillation job that compute nothing: Ray Train's controller, Ray Data's, and others."""

JOB_BYTES = 1130 * MIB
"""Memory of all of these that they do not share, measured."""


@dataclass(frozen=True)
class NetPlan:
    """A network of clients, at one width.

    Attributes:
        width: fraction of its hidden channels.
        clients: how many have it; on average, where widths are drawn anew in every round.
        bytes: of its state dict.
        training_bytes: that training it takes, for all clients that are trained at once: states, and activations of a
            batch; a rough guess.
        example_bytes: of these, what one more example in a batch takes.
    """

    name: str
    width: float
    clients: float
    parameters: int
    bytes: int
    training_bytes: int
    example_bytes: int


@dataclass(frozen=True)
class Sizes:
    """Predicted bytes at the largest: of one process each, but for the object store, which is a machine's.

    Attributes:
        driver: pages that it has in common with others included, as `peak_rss_mb` in result.json counts them.
        host, sampler, teacher, trainer: what a process has to itself; 0 where there are none.
        store: of the object store; 0 inline.
        mapped: of the store, what every host comes to map.
    """

    driver: int
    host: int
    sampler: int
    teacher: int
    trainer: int
    store: int
    mapped: int


def net_plan(federation: Federation, name: str, width: float, clients: float) -> NetPlan:
    """One of the clients' networks at one width."""
    task = federation.setup.task
    net = network_of(name, task, width)
    state = state_bytes(net)
    stack = federation.config.clients.stack
    together = LANES if stack and stackable(net, stack == "convolutions") else 1
    batch = largest_batch(federation)
    example = together * activation_bytes(net, task.form)
    copies = COPIES + (federation.setup.work.optimiser != "sgd")  # Adam remembers two moments in place of one
    training = together * copies * state + example * batch
    return NetPlan(name, width, clients, sum(p.numel() for p in net.parameters()), state, training, example)


def largest_batch(federation: Federation) -> int:
    """Examples in the largest mini-batch: no client has more than all of its own in one."""
    return min(federation.config.clients.batch, int(federation.partition.sizes.max()))


def activation_bytes(net: nn.Module, form: Form) -> int:
    """Bytes that training one example takes, roughly: the output of every innermost module, and its gradient."""
    total = 0

    def note(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * output.element_size() if isinstance(output, Tensor) else 0

    hooks = [m.register_forward_hook(note) for m in net.modules() if not list(m.children())]
    net.eval()
    with torch.no_grad():
        net(batches.each(form.probe(1), torch.zeros_like))
    for hook in hooks:
        hook.remove()
    return 2 * total


def driver_base(federation: Federation) -> int:
    """The driver before it holds a model: its process and the data."""
    public = federation.dataset.public
    data = federation.shards.nbytes + column_bytes(federation.dataset.test)
    process = DRIVER_BYTES + (MLFLOW_BYTES if federation.config.mlflow.enabled else 0)
    return process + data + (column_bytes(public) if public else 0)


def sizes(federation: Federation, nets: Sequence[NetPlan]) -> Sizes:
    """All of them for a run on Ray, or inline for one that stays in this process."""
    storage, planned = federation.needs.storage, federation.needs.distillation
    driver = _driver(federation) + (OPTIMISER_BYTES if planned else 0)
    loaded = max((stored.loaded for stored in storage), default=0)
    loaded += OPTIMISER_BYTES if federation.setup.work.optimiser != "sgd" else 0
    # A client trains its network, or makes what it sends once.
    client = max(*(net.training_bytes for net in nets), *(stored.making for stored in storage), 0)
    sampler, teacher, trainer = _distillation(federation, planned) if planned else (0, 0, 0)
    if federation.config.runner.kind == "inline":
        return Sizes(driver + loaded + max(client, trainer), 0, 0, 0, 0, 0, 0)
    process = (PROCESS_BYTES + OPTIMISER_BYTES) if planned else 0
    return Sizes(
        driver=driver,
        host=PROCESS_BYTES + loaded + sum(net.bytes for net in nets) + client,
        sampler=process + sampler,
        teacher=process + teacher,
        trainer=process + trainer,
        store=_store(federation, nets, planned),
        # Whichever host has room performs a client, and pages that it has mapped count as its own until it ends.
        mapped=federation.shards.nbytes + _client_memory_bytes(federation),
    )


def _driver(federation: Federation) -> int:
    """Three of each global model (the state, sums, what is evaluated), what the method stores, and test batches."""
    task = federation.setup.task
    nets = [network_of(name, task) for name in sorted({client.net for client in federation.setup.clients})]
    batch = min(federation.config.evaluate.batch, rows_of(federation.dataset.test))
    tested = max(activation_bytes(net, task.form) // 2 for net in nets) * batch + confusion_bytes(task)
    stored = sum(stored.total for stored in federation.needs.storage)
    return driver_base(federation) + 3 * sum(map(state_bytes, nets)) + stored + tested


def confusion_bytes(task: Task) -> int:
    """Bytes of the counts by class and predicted class: those so far, and those of a batch."""
    return 2 * 8 * task.classes**2


def _distillation(federation: Federation, plan: PlannedDistillation) -> tuple[int, int, int]:
    """Bytes that a sampler, a teacher and a train worker hold beside their processes."""
    task, batch = federation.setup.task, _batch_bytes(federation, plan)
    students = [network_of(name, task) for name in plan.students]
    activations = {net: activation_bytes(net, task.form) for net in students}
    largest = max(COPIES * state_bytes(net) + activations[net] * plan.batch for net in students)
    answering = max(activations[net] // 2 for net in students) * plan.batch
    return (
        _public_bytes(federation) + plan.source + 4 * batch,
        plan.teacher + 2 * batch + answering,
        largest + (plan.kept + 2) * batch,
    )


def _public_bytes(federation: Federation) -> int:
    """Images that the server owns, as inputs of networks; methods that need some distil on them."""
    public = federation.dataset.public
    return 4 * column_bytes(public) if public and federation.needs.public != "nothing" else 0


def _batch_bytes(federation: Federation, planned: PlannedDistillation) -> int:
    """Inputs of 32 bits, labels of 64, and the teacher's logits."""
    task = federation.setup.task
    inputs = task.form.probe(1)
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs.values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return planned.batch * (size + 8 + 4 * task.outputs)


def column_bytes(columns: Mapping[str, np.ndarray]) -> int:
    """Bytes of all columns."""
    return sum(values.nbytes for values in columns.values())


def _store(federation: Federation, nets: Sequence[NetPlan], planned: PlannedDistillation | None) -> int:
    """The data, what clients keep, and what a round sends and receives, or a distillation needs, whichever is more."""
    cohort = federation.config.clients.cohort or len(federation.setup.clients)
    once = [round(sent.bytes) for sent in federation.needs.up.values() if sent.once and sent.bytes is not None]
    largest = max([*(net.bytes for net in nets), *once])
    replies = min(AHEAD_BYTES, cohort * largest) if largest > DIRECT_BYTES else 0
    kept = _client_memory_bytes(federation)
    # A client's new memory comes while its old one is still there; from few to all of them at once were measured.
    passing = MESSAGES * sum(net.bytes for net in nets) + replies + kept // 2
    return federation.shards.nbytes + kept + max(passing, _job(federation, planned) if planned else 0)


def _client_memory_bytes(federation: Federation) -> int:
    """Bytes that each client comes to remember of what the server stores."""
    return len(federation.setup.clients) * sum(stored.total for stored in federation.needs.storage if stored.kept)


def _job(federation: Federation, planned: PlannedDistillation) -> int:
    """Bytes that a distillation puts into the object store: its source, teacher and student, and batches that wait."""
    ahead = int(federation.config.runner.distillation.resources().ahead_mb * MIB)
    students = max(state_bytes(network_of(name, federation.setup.task)) for name in planned.students)
    waiting = min(ahead, (planned.kept or ahead) * _batch_bytes(federation, planned))
    return _public_bytes(federation) + planned.source + planned.teacher + students + waiting


def of_process(own: int, mapped: int = 0) -> int:
    """A process as `peak_rss_mb` counts it: with the libraries and the pages of the object store that it maps."""
    return own + LIBRARY_BYTES + mapped
