"""Several clients trained at once: their networks of one architecture stacked, each step one call for all of them.

For networks of a few linear layers, calling the arithmetic takes longer than the arithmetic; so backpropagation is
written out here, layer by layer over all clients. Convolutions are better off alone on a CPU: stacked, two of them took
a third longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algorithms.core.seeds import Seed
from algorithms.core.sgd import descend
from algorithms.core.task import Augment, ImageTask, Shard
from algorithms.core.training import Batches, Correction, Fit, Work, steps_of_work
from algorithms.nets.classifier import Classifier

Layers = tuple[bool, ...]
"""Linear layers in their order: for each, whether a ReLU follows."""


def stackable(net: nn.Module) -> bool:
    """Whether a network is made of linear layers alone, and all of it is trained."""
    return _layers(net) is not None and all(p.requires_grad for p in net.parameters())


def _layers(net: nn.Module) -> Layers | None:
    """None where there is anything but flattening first, linear layers with biases, and ReLUs after them."""
    if type(net) is not Classifier or type(net.body) is not nn.Sequential:
        return None
    modules: list[nn.Module] = [*net.body, net.head]
    if type(modules[0]) is not nn.Flatten or (modules[0].start_dim, modules[0].end_dim) != (1, -1):
        return None
    layers: list[bool] = []
    for module in modules[1:]:
        if type(module) is nn.Linear and module.bias is not None:
            layers.append(False)
        elif type(module) is nn.ReLU and layers:
            layers[-1] = True
        else:
            return None
    return tuple(layers)


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


@torch.no_grad()
def fit_together(net: nn.Module, task: ImageTask, work: Work, asked: Sequence[Asked]) -> list[Trained]:
    """`training.fit` for several clients at once, on the task's own loss.

    A client's bits do not depend on who else is trained with it, but they are not those of `training.fit`: products of
    stacked matrices round differently.

    Args:
        net: `stackable`; says the architecture and the device, and is left as it was.
        task: without augmentation, which each client draws for itself.
    """
    layers = _layers(net)
    if layers is None or task.augment != Augment():
        raise ValueError(f"cannot be trained together: {net}, {task.augment}")
    device = next(net.parameters()).device
    stack = [torch.stack(entries) for entries in zip(*(one.parameters for one in asked), strict=True)]
    velocity = [torch.zeros_like(entry) for entry in stack] if work.momentum else []
    orders = [Batches(len(one.shard), work.batch, one.seed) for one in asked]
    steps = [steps_of_work(work, order) for order in orders]
    totals = torch.zeros(len(asked), device=device)
    for step in range(max(steps)):
        at_work = [member for member, count in enumerate(steps) if step < count]
        picks = {member: orders[member][asked[member].position + step] for member in at_work}
        for members in _alike(picks):
            moved, speed = _of(stack, members), _of(velocity, members)
            inputs, labels = _batch(task, [asked[m].shard for m in members], [picks[m] for m in members])
            passed = _forward(moved, inputs.to(device), layers)
            losses, errors = _judged(task, passed[-1], labels.to(device))
            totals[members] += losses
            back = _backward(moved, passed, errors, layers)
            corrections = [asked[member].correct for member in members]
            if work.momentum or work.weight_decay or work.clip is not None or any(corrections):
                gradients = _gradients(back, len(moved))
                _change(moved, gradients, corrections, work)
                descend(moved, gradients, speed, work.lr, work.momentum, work.weight_decay)
            else:
                _descend_plainly(moved, back, work.lr)
            _put_back(stack, moved, members)
            _put_back(velocity, speed, members)
    return [
        Trained([entry[i] for entry in stack], Fit(float(totals[i]) / max(count, 1), count, asked[i].position + count))
        for i, count in enumerate(steps)
    ]


def _alike(picks: Mapping[int, Tensor]) -> list[list[int]]:
    """Members whose batches are of one size, together."""
    by_size: dict[int, list[int]] = {}
    for member, some in picks.items():
        by_size.setdefault(len(some), []).append(member)
    return list(by_size.values())


def _batch(task: ImageTask, shards: Sequence[Shard], picks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs (clients, B, features) and labels (clients, B): one pass over the arrays that all clients share."""
    rows = torch.stack([shard.rows[some] for shard, some in zip(shards, picks, strict=True)])
    everyone = Shard(shards[0].images, shards[0].labels, rows.flatten())
    inputs, labels = task.batch(everyone, torch.arange(rows.numel()))
    return inputs.view(*rows.shape, -1), labels.view(rows.shape)


def _of(stack: Sequence[Tensor], members: Sequence[int]) -> list[Tensor]:
    """The rows of some clients: the stack itself where they are all, copies where not."""
    return [entry if len(members) == len(entry) else entry[list(members)] for entry in stack]


def _put_back(stack: Sequence[Tensor], rows: Sequence[Tensor], members: Sequence[int]) -> None:
    for entry, some in zip(stack, rows, strict=True):
        if some is not entry:
            entry[list(members)] = some


def _forward(parameters: Sequence[Tensor], inputs: Tensor, layers: Layers) -> list[Tensor]:
    """What each layer receives, (clients, B, features), and at the end the logits, (clients, B, classes)."""
    passed = [inputs]
    for weight, bias, rectified in zip(parameters[::2], parameters[1::2], layers, strict=True):
        outputs = torch.baddbmm(bias[:, None], passed[-1], weight.mT)
        passed.append(outputs.relu_() if rectified else outputs)
    return passed


def _judged(task: ImageTask, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each client's loss, (clients,), and its derivatives by the client's logits."""
    with torch.enable_grad():
        leaf = logits.requires_grad_()
        losses = task.losses(leaf.flatten(0, 1), labels.flatten()).view(labels.shape).mean(1)
        (errors,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), errors


Back = Iterator[tuple[int, Tensor, Tensor]]
"""Layers from the last to the first: place of the weight among the parameters, the layer's inputs, and the derivatives
of the loss by its outputs, both (clients, B, features). What is said of a layer stays true when it is changed."""


def _backward(parameters: Sequence[Tensor], passed: Sequence[Tensor], errors: Tensor, layers: Layers) -> Back:
    for layer in reversed(range(len(layers))):
        inputs = passed[layer]
        below = torch.bmm(errors, parameters[2 * layer]) if layer else errors
        yield 2 * layer, inputs, errors
        errors = below.mul_(inputs > 0) if layer and layers[layer - 1] else below


def _gradients(back: Back, count: int) -> list[Tensor]:
    """By parameter, in their order."""
    gradients = [torch.empty(0)] * count
    for place, inputs, errors in back:
        gradients[place], gradients[place + 1] = torch.bmm(errors.mT, inputs), errors.sum(1)
    return gradients


def _descend_plainly(parameters: Sequence[Tensor], back: Back, lr: float) -> None:
    """A step of SGD in place: the products are added to the weights as they are made, and no gradient is kept."""
    for place, inputs, errors in back:
        parameters[place].baddbmm_(errors.mT, inputs, alpha=-lr)
        parameters[place + 1].add_(errors.sum(1), alpha=-lr)


def _change(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], corrections: Sequence[Correction | None], work: Work
) -> None:
    """What is done to each client's gradients before a step, in place."""
    for client, correct in enumerate(corrections):
        own = [entry[client] for entry in parameters]
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient[client]
        if correct:
            correct(own)
        if work.clip is not None:
            nn.utils.clip_grad_norm_(own, work.clip)
