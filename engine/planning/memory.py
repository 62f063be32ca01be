"""How much memory the processes of a run take, predicted from shapes. Nothing is trained."""

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
from algorithms.core.contract import Holding, Teaching
from algorithms.core.seeds import torch_seeded
from algorithms.core.stacking import LANES, stackable
from algorithms.core.states import state_bytes
from algorithms.nets.forms import Form
from engine.planning.federation import Federation

MIB = 2**20

COPIES = 5
"""States of a network that a process has at once while it trains: received, trained, gradients, momentum, sent."""

DRIVER_BYTES = 500 * MIB
"""What the driver takes before it holds any data, measured, pages in common with others included: Python with torch,
Ray and matplotlib."""

MLFLOW_BYTES = 120 * MIB
"""What MLflow adds to the driver, measured."""

RAY_BYTES = 570 * MIB
"""What the processes of a Ray cluster take that is started for one run, measured: head, node manager, dashboard."""

OPTIMISER_BYTES = 80 * MIB
"""What torch's optimisers take of a process that uses them, measured: those of a distillation, the driver, which trains
what labels the images, and hosts whose clients train by Adam."""

DIRECT_BYTES = 100 * 1024
"""Replies up to this size do not pass through the object store; Ray's own limit."""

MESSAGES = 2
"""A round's, and those of earlier ones that hosts have not given back yet; one to four were measured."""

JOB_PROCESSES = 8
"""Processes of a distillation job that compute nothing: Ray Train's controller, Ray Data's, and others."""

JOB_BYTES = 1130 * MIB
"""What all of these have to themselves, measured."""


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
    net = _built(federation, name, width)
    state = state_bytes(net)
    together = LANES if federation.config.clients.stack and stackable(net) else 1
    example = together * activation_bytes(net, federation.casting.task.form)
    copies = COPIES + (federation.casting.work.optimiser != "sgd")  # Adam remembers two moments in place of one
    training = together * copies * state + example * federation.config.clients.batch
    return NetPlan(name, width, clients, sum(p.numel() for p in net.parameters()), state, training, example)


def _built(federation: Federation, name: str, width: float = 1.0) -> nn.Module:
    task = federation.casting.task
    with torch_seeded(0):
        return task.network(name, width)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def activation_bytes(net: nn.Module, form: Form) -> int:
    """Bytes that training one example takes, roughly: the output of every innermost module, and its gradient."""
    total = 0

    def note(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal total
        total += _bytes(output) if isinstance(output, Tensor) else 0

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


def sizes(
    federation: Federation, nets: Sequence[NetPlan], holdings: Sequence[Holding], teaching: Teaching | None
) -> Sizes:
    """All of them for a run on Ray, or inline for one that stays in this process."""
    driver = _driver(federation, holdings) + (OPTIMISER_BYTES if teaching else 0)
    loaded = max((h.loaded for h in holdings), default=0)
    loaded += OPTIMISER_BYTES if federation.casting.work.optimiser != "sgd" else 0
    sampler, teacher, trainer = _distillation(federation, teaching) if teaching else (0, 0, 0)
    if federation.config.runner.kind == "inline":
        working = max(*(net.training_bytes for net in nets), _made(holdings), trainer)
        return Sizes(driver + working + loaded, 0, 0, 0, 0, 0, 0)
    process = (PROCESS_BYTES + OPTIMISER_BYTES) if teaching else 0
    working = sum(net.bytes for net in nets) + max(*(net.training_bytes for net in nets), _made(holdings))
    return Sizes(
        driver=driver,
        host=PROCESS_BYTES + loaded + working,
        sampler=process + sampler,
        teacher=process + teacher,
        trainer=process + trainer,
        store=_store(federation, nets, holdings, teaching),
        # Whichever host has room performs a client, and pages that it has mapped count as its own until it ends.
        mapped=federation.shards.nbytes + _kept_by_clients(federation, holdings),
    )


def _made(holdings: Sequence[Holding]) -> int:
    """What a client takes that makes what it sends once, and its adversary."""
    return 2 * COPIES * max((h.bytes for h in holdings if h.kind), default=0)


def _driver(federation: Federation, holdings: Sequence[Holding]) -> int:
    """Three of each global model (the state, sums, what is evaluated), what the method holds, and test batches."""
    form = federation.casting.task.form
    nets = [_built(federation, name) for name in sorted({client.net for client in federation.casting.clients})]
    tested = max(activation_bytes(net, form) // 2 for net in nets) * federation.config.evaluate.batch
    held = 3 * sum(map(state_bytes, nets)) + sum(h.count * h.bytes for h in holdings)
    return driver_base(federation) + held + tested


def _distillation(federation: Federation, teaching: Teaching) -> tuple[int, int, int]:
    """What a sampler, a teacher and a train worker hold beside their processes."""
    batch = _batch_bytes(federation, teaching)
    form = federation.casting.task.form
    students = [_built(federation, name) for name in teaching.students]
    largest = max(COPIES * state_bytes(net) + activation_bytes(net, form) * teaching.batch for net in students)
    answering = max(activation_bytes(net, form) // 2 for net in students) * teaching.batch
    return (
        _owned(federation) + teaching.source + 4 * batch,
        teaching.teacher + 2 * batch + answering,
        largest + (teaching.kept + 2) * batch,
    )


def _owned(federation: Federation) -> int:
    """Images that the server owns, as inputs of networks; methods that need some distil on them."""
    needed = federation.config.method.type.owns(federation.config.method.settings) != "nothing"
    public = federation.dataset.public
    return 4 * column_bytes(public) if public and needed else 0


def _batch_bytes(federation: Federation, teaching: Teaching) -> int:
    """Inputs of 32 bits, labels of 64, and the teacher's logits."""
    task = federation.casting.task
    return teaching.batch * (input_bytes(task.form) + 8 + 4 * task.outputs)


def input_bytes(form: Form) -> int:
    """Bytes of one example as a network takes it."""
    inputs = form.probe(1)
    return sum(map(_bytes, [inputs] if isinstance(inputs, Tensor) else inputs.values()))


def column_bytes(columns: Mapping[str, np.ndarray]) -> int:
    """Bytes of all columns."""
    return sum(values.nbytes for values in columns.values())


def _store(
    federation: Federation, nets: Sequence[NetPlan], holdings: Sequence[Holding], teaching: Teaching | None
) -> int:
    """The data, what clients keep, and what a round sends and receives, or a distillation needs, whichever is more."""
    cohort = federation.config.clients.cohort or len(federation.casting.clients)
    largest = max([*(net.bytes for net in nets), *(h.bytes for h in holdings if h.kind)])
    replies = min(AHEAD_BYTES, cohort * largest) if largest > DIRECT_BYTES else 0
    kept = _kept_by_clients(federation, holdings)
    # A client's new memory comes while its old one is still there; from few to all of them at once were measured.
    passing = MESSAGES * sum(net.bytes for net in nets) + replies + kept // 2
    return federation.shards.nbytes + kept + max(passing, _job(federation, teaching) if teaching else 0)


def _kept_by_clients(federation: Federation, holdings: Sequence[Holding]) -> int:
    """What all clients send the server once, where it is sent on to every client, which keeps it in its memory."""
    down = federation.config.method.type.kinds(federation.casting.config).down
    return len(federation.casting.clients) * sum(h.count * h.bytes for h in holdings if h.kind in down)


def _job(federation: Federation, teaching: Teaching) -> int:
    ahead = int(federation.config.runner.distillation.resources().ahead_mb * MIB)
    students = max(state_bytes(_built(federation, name)) for name in teaching.students)
    waiting = min(ahead, (teaching.kept or ahead) * _batch_bytes(federation, teaching))
    return _owned(federation) + teaching.source + teaching.teacher + students + waiting


def of_process(own: int, mapped: int = 0) -> int:
    """A process as `peak_rss_mb` counts it: with the libraries and the pages of the object store that it maps."""
    return own + LIBRARY_BYTES + mapped
