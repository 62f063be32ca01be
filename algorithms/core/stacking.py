"""Several clients trained at once: their networks of one architecture stacked, each step one call for all of them.

For networks of a few linear layers, calling the arithmetic takes longer than the arithmetic; so backpropagation is
written out here, layer by layer over all clients. Convolutions are better off alone on a CPU: stacked, two of them took
a third longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.layers import Layers, linear_layers
from algorithms.core.schedules import CONSTANT
from algorithms.core.seeds import Seed
from algorithms.core.sgd import descend
from algorithms.core.task import Shard, Task
from algorithms.core.training import Batches, Correction, Fit, Work, steps_of_work

LANES = 16
"""Clients trained at once: of an MLP with 64 hidden units, more take no less time for each."""

LINE = 16
"""float32 numbers in a cache line, and in the widest registers."""


def stackable(net: nn.Module) -> bool:
    """Whether a network is made of linear layers alone, none of them tied to another, and all of it is trained."""
    return linear_layers(net) is not None


def serves_stacking(task: Task) -> bool:
    """Whether clients of a task can be trained together: a class a row, and batches that draw nothing."""
    return "classes" in task.traits and not task.is_random


@dataclass(frozen=True)
class TrainingRequest:
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
class TrainingResult:
    """The result of a training: the network's parameters, in its order, and what `training.fit` returns."""

    parameters: Sequence[Tensor]
    fit: Fit


def fit_together(net: nn.Module, task: Task, work: Work, requests: Sequence[TrainingRequest]) -> list[TrainingResult]:
    """`training.fit` for several clients at once, by SGD on the task's own loss.

    A client's bits do not depend on who else is trained with it, but they are not those of `training.fit`: products of
    stacked matrices round differently.

    Args:
        net: `stackable`; says the architecture and the device, and is left as it was.
        task: of classes, whose batches are not random: each client would draw for itself.
        work: plain, and that of one round: `work.at` theirs.
    """
    layers = linear_layers(net)
    if layers is None or not serves_stacking(task) or not work.is_plain or work.schedule != CONSTANT:
        raise ValueError(f"cannot be trained together: {net}, {task.title}, {work}")
    device = next(net.parameters()).device
    orders = [Batches(len(one.shard), work.batch, one.seed) for one in requests]
    trained: dict[int, TrainingResult] = {}
    for rows in (work.batch, work.batch + 1):
        alike = [i for i, order in enumerate(orders) if (order.largest > work.batch) == (rows > work.batch)]
        for first in range(0, len(alike), LANES):
            some = alike[first : first + LANES]
            lanes = _Lanes(layers, task, work, [requests[i] for i in some], rows, device)
            trained.update(zip(some, lanes.train(), strict=True))
    return [trained[i] for i in range(len(requests))]


class _Lanes:
    """`LANES` places side by side, of which clients take the first.

    How a library multiplies stacked matrices depends on how many there are, on their shapes and on where each begins in
    memory. So no place is ever taken away, every batch has the same number of rows, and features are filled up with
    zeros to whole cache lines. Rows beyond a client's examples, steps or number count nothing: what the loss is
    multiplied with there is 0.
    """

    def __init__(
        self,
        layers: Layers,
        task: Task,
        work: Work,
        requests: Sequence[TrainingRequest],
        rows: int,
        device: torch.device,
    ) -> None:
        """`rows` of every batch; no client has more examples in one."""
        self._layers, self._task, self._work, self._requests, self._rows = layers, task, work, requests, rows
        self._device = device
        places = [*requests, *[requests[0]] * (LANES - len(requests))]
        entries = zip(*(one.parameters for one in places), strict=True)
        self._stack = [_pad(torch.stack(entry), whole_from=1) for entry in entries]
        self._shapes = [p.shape for p in requests[0].parameters]
        self._velocity = [torch.zeros_like(entry) for entry in self._stack] if work.momentum else []
        self._orders = [Batches(len(one.shard), work.batch, one.seed) for one in requests]
        self._steps = [steps_of_work(work, order) for order in self._orders]
        self._totals = torch.zeros(LANES, device=device)

    @torch.no_grad()
    def train(self) -> list[TrainingResult]:
        """Train all clients; the result of each."""
        ended: dict[int, TrainingResult] = {}
        for step in range(max(self._steps) + 1):
            ended.update({i: self._result(i) for i, count in enumerate(self._steps) if count == step})
            if len(ended) < len(self._requests):
                self._step(step)
        return [ended[i] for i in range(len(self._requests))]

    def _result(self, place: int) -> TrainingResult:
        """As it is now."""
        steps = self._steps[place]
        fit = Fit(float(self._totals[place]) / max(steps, 1), steps, self._requests[place].position + steps)
        return TrainingResult([entry.clone() for entry in self._own(self._stack, place)], fit)

    def _own(self, stack: Sequence[Tensor], place: int) -> list[Tensor]:
        """One client's part of a stack of parameters or gradients, as views."""
        return [entry[place][tuple(map(slice, shape))] for entry, shape in zip(stack, self._shapes, strict=True)]

    def _step(self, step: int) -> None:
        inputs, labels, shares = self._batch(step)
        passed = _forward(self._stack, inputs, self._layers)
        losses, errors = _losses_and_gradients(self._task, passed[-1], labels, shares, classes=self._shapes[-1][0])
        self._totals += losses
        back = _backward(self._stack, passed, errors, self._layers)
        work, corrections = self._work, [one.correct for one in self._requests]
        if not (work.momentum or work.weight_decay or work.clip is not None or any(corrections)):
            _descend_plainly(self._stack, back, work.lr)
            return
        gradients = _gradients(back, len(self._stack))
        for place, correct in enumerate(corrections):
            if step < self._steps[place]:
                _change(self._own(self._stack, place), self._own(gradients, place), correct, work)
        descend(self._stack, gradients, self._velocity, work.lr, work.momentum, work.weight_decay)

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (LANES, rows, features), labels (LANES, rows), and each row's share in its client's loss, alike."""
        first = self._requests[0].shard
        rows = first.rows[:1].repeat(LANES, self._rows)
        shares = torch.zeros(LANES, self._rows)
        for place, (one, order) in enumerate(zip(self._requests, self._orders, strict=True)):
            if step < self._steps[place]:
                picks = order[one.position + step]
                rows[place, : len(picks)] = one.shard.rows[picks]
                shares[place, : len(picks)] = 1 / len(picks)
        everyone = replace(first, rows=rows.flatten())  # all clients' rows are of the same arrays
        inputs, labels = self._task.batch(everyone, torch.arange(rows.numel()), device=self._device)
        if not isinstance(inputs, Tensor):
            raise TypeError(f"{self._task.title} has batches of several tensors, which are not stacked")
        filled = _pad(inputs.view(*rows.shape, -1), whole_from=2)
        return filled, labels.view(rows.shape), shares.to(self._device)


def _forward(parameters: Sequence[Tensor], inputs: Tensor, layers: Layers) -> list[Tensor]:
    """The input of each layer, (clients, B, features), and at the end the logits, (clients, B, classes)."""
    passed = [inputs]
    for weight, bias, rectified in zip(parameters[::2], parameters[1::2], layers, strict=True):
        outputs = torch.baddbmm(bias[:, None], passed[-1], weight.mT)
        passed.append(outputs.relu_() if rectified else outputs)
    return passed


def _pad(stack: Tensor, whole_from: int) -> Tensor:
    """Zeros after the end of each axis from `whole_from` on, up to a multiple of `LINE`."""
    missing = [-size % LINE for size in stack.shape[whole_from:]]
    return F.pad(stack, [pad for last in reversed(missing) for pad in (0, last)]) if any(missing) else stack


def _losses_and_gradients(
    task: Task, logits: Tensor, labels: Tensor, shares: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Each client's loss, (clients,), and its derivatives by the client's logits."""
    with torch.enable_grad():
        leaf = logits.requires_grad_()
        losses = task.losses(leaf[..., :classes].flatten(0, 1), labels.flatten()).view(labels.shape)
        losses = (losses * shares).sum(1)
        (errors,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), errors


Back = Iterator[tuple[int, Tensor, Tensor]]
"""Layers from the last to the first: place of the weight among the parameters, the layer's inputs, and the derivatives
of the loss by its outputs, both (clients, B, features). What is said of a layer stays true when it is changed."""


def _backward(parameters: Sequence[Tensor], activations: Sequence[Tensor], errors: Tensor, layers: Layers) -> Back:
    for layer in reversed(range(len(layers))):
        inputs = activations[layer]
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


def _change(parameters: Sequence[Tensor], gradients: Sequence[Tensor], correct: Correction | None, work: Work) -> None:
    """Apply one client's correction to its gradients before a step, in place."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if correct:
        correct(parameters)
    if work.clip is not None:
        nn.utils.clip_grad_norm_(list(parameters), work.clip)
