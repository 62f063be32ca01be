"""Several clients trained at once: their networks of one architecture stacked, each step one call for all of them.

For networks of a few linear layers, calling the arithmetic takes about as long as the arithmetic. Convolutions are
better off alone on a CPU: stacked, two of them took a third longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from algorithms.core.seeds import Seed
from algorithms.core.sgd import descend
from algorithms.core.task import ImageTask, Shard
from algorithms.core.training import Batches, Correction, Fit, Work, drawn, steps_of_work
from algorithms.nets.classifier import Classifier

STACKED: tuple[type[nn.Module], ...] = (Classifier, nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU)
"""The layers of networks that are faster together."""


def stackable(net: nn.Module) -> bool:
    """Whether a network is made of linear layers alone, and all of it is trained."""
    return all(type(module) in STACKED for module in net.modules()) and all(p.requires_grad for p in net.parameters())


@dataclass(frozen=True)
class Asked:
    """One client's training, as `training.fit` is asked for it.

    Attributes:
        parameters: of the network before it, in its order; nobody else changes them.
    """

    parameters: Sequence[Tensor]
    shard: Shard
    seed: Seed
    position: int
    correct: Correction | None


@dataclass(frozen=True)
class Trained:
    """What came of it: the network's parameters after it, in its order, and what `training.fit` returns."""

    parameters: Sequence[Tensor]
    fit: Fit


def fit_together(net: nn.Module, task: ImageTask, work: Work, asked: Sequence[Asked]) -> list[Trained]:
    """`training.fit` for several clients at once, on the task's own loss.

    A client's bits do not depend on who else is trained with it, but they are not those of `training.fit`: products of
    stacked matrices round differently.

    Args:
        net: `stackable`; says the architecture and the device, and is left as it was.
    """
    device = next(net.parameters()).device
    stack = [torch.stack(entries) for entries in zip(*(one.parameters for one in asked), strict=True)]
    velocity = [torch.zeros_like(entry) for entry in stack] if work.momentum else []
    slope = _slope(net, task)
    streams = [_Stream.of(task, one, work) for one in asked]
    totals = torch.zeros(len(asked), device=device)
    for step in range(max(stream.steps for stream in streams)):
        for members, inputs, labels in _alike(streams, step):
            moved, speed = _of(stack, members), _of(velocity, members)
            losses, gradients = slope(moved, inputs.to(device), labels.to(device))
            totals[members] += losses
            for place, member in enumerate(members):
                _change([entry[place] for entry in moved], [g[place] for g in gradients], asked[member].correct, work)
            descend(moved, gradients, speed, work.lr, work.momentum, work.weight_decay)
            _put_back(stack, moved, members)
            _put_back(velocity, speed, members)
    return [
        Trained(
            [entry[i] for entry in stack],
            Fit(float(totals[i]) / max(stream.steps, 1), stream.steps, asked[i].position + stream.steps),
        )
        for i, stream in enumerate(streams)
    ]


def _of(stack: Sequence[Tensor], members: Sequence[int]) -> list[Tensor]:
    """The rows of some clients: the stack itself where they are all, copies where not."""
    return [entry if len(members) == len(entry) else entry[list(members)] for entry in stack]


def _put_back(stack: Sequence[Tensor], rows: Sequence[Tensor], members: Sequence[int]) -> None:
    for entry, some in zip(stack, rows, strict=True):
        if some is not entry:
            entry[list(members)] = some


Slope = Callable[[Sequence[Tensor], Tensor, Tensor], tuple[Tensor, Sequence[Tensor]]]


def _slope(net: nn.Module, task: ImageTask) -> Slope:
    """(parameters, inputs, labels), each stacked along a first axis -> losses and gradients, stacked alike."""
    names = [name for name, _ in net.named_parameters()]

    def loss(parameters: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return task.loss(functional_call(net, dict(zip(names, parameters, strict=True)), (inputs,)), labels)

    together = vmap(loss)

    def slope(parameters: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        leaves = [entry.detach().requires_grad_() for entry in parameters]
        losses = together(leaves, inputs, labels)
        return losses.detach(), torch.autograd.grad(losses.sum(), leaves)

    return slope


def _change(parameters: Sequence[Tensor], gradients: Sequence[Tensor], correct: Correction | None, work: Work) -> None:
    """What is done to one client's gradients before a step, in place."""
    if correct is None and work.clip is None:
        return
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if correct:
        correct(parameters)
    if work.clip is not None:
        nn.utils.clip_grad_norm_(list(parameters), work.clip)


@dataclass(frozen=True)
class _Stream:
    """A client's batches, and how many of them it trains on."""

    batches: Iterator[tuple[Tensor, Tensor]]
    steps: int

    @classmethod
    def of(cls, task: ImageTask, asked: Asked, work: Work) -> _Stream:
        order = Batches(len(asked.shard), work.batch, asked.seed)
        steps = steps_of_work(work, order)
        positions = range(asked.position, asked.position + steps)
        return cls(drawn(task, asked.shard, order, positions, asked.seed.torch("augment")), steps)


def _alike(streams: Sequence[_Stream], step: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """The next batches of all that have one, stacked by their size: (whose they are, inputs, labels)."""
    by_size: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
    for member, stream in enumerate(streams):
        if step < stream.steps:
            inputs, labels = next(stream.batches)
            by_size.setdefault(len(labels), []).append((member, inputs, labels))
    for some in by_size.values():
        yield [m for m, _, _ in some], torch.stack([x for _, x, _ in some]), torch.stack([y for _, _, y in some])
