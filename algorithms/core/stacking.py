"""Several clients trained at once: their networks of one architecture stacked, each step one call for all of them.

For networks of a few linear layers, calling the arithmetic takes longer than the arithmetic; so backpropagation is
written out here, layer by layer over all clients. Convolutions of all clients are one of as many groups, through which
torch propagates. They are better off alone on a CPU: stacked, two of them took a third longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.layers import Layers, linear_layers
from algorithms.core.schedules import CONSTANT
from algorithms.core.seeds import Seed
from algorithms.core.sgd import descend
from algorithms.core.task import Shard, Task
from algorithms.core.training import (
    Batches,
    Correction,
    Fit,
    OutputsObjective,
    Work,
    pair_if_single,
    steps_of_work,
)
from algorithms.nets.classifier import Classifier
from algorithms.nets.forms import Inputs
from algorithms.nets.pooling import MaxPool

LANES = 16
"""Clients trained at once: of an MLP with 64 hidden units, more take no less time for each."""

_NOTHING = torch.empty(0, dtype=torch.int64)
"""The batch of a client that has ended."""

LINE = 16
"""float32 numbers in a cache line, and in the widest registers."""


def stackable(net: nn.Module, convolutions: bool = False) -> bool:
    """Whether clients of a network can be trained together: it is made of linear layers alone, or where `convolutions`
    are stacked, of these, convolutions and pooling; no layer is tied to another, and all of it is trained."""
    return linear_layers(net) is not None or (convolutions and map_layers(net) is not None)


Maps = tuple[nn.Module, ...]
"""Modules of a network in their order; their own parameters are not used."""

_OF_ONE_EXAMPLE = (nn.ReLU, MaxPool, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity)
"""Modules without parameters that treat every example by itself."""


def map_layers(net: nn.Module) -> Maps | None:
    """The modules of a classifier of convolutions, pooling, ReLUs and linear layers, none of them tied to another and
    all of them trained; None for any other network: batch normalisation mixes the examples of a batch."""
    if type(net) is not Classifier or type(net.body) is not nn.Sequential:
        return None
    modules: list[nn.Module] = [*net.body, net.head]
    parameters = list(net.parameters())
    if any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()) or not all(_is_map(m) for m in modules):
        return None
    own = sum(len(list(module.parameters())) for module in modules)
    return tuple(modules) if own == len(parameters) and all(p.requires_grad for p in parameters) else None


def _is_map(module: nn.Module) -> bool:
    if type(module) is nn.Flatten:
        return (module.start_dim, module.end_dim) == (1, -1)
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros"
    return type(module) is nn.Linear or type(module) in _OF_ONE_EXAMPLE


def serves_stacking(task: Task) -> bool:
    """Whether clients of a task can be trained together: there is a class a row."""
    return "classes" in task.traits


@dataclass(frozen=True)
class TrainingRequest:
    """One client's training, as `training.fit` is asked for it.

    Attributes:
        parameters: of the network before it, in its order; nobody else changes them.
        objective: None where it is the task's own loss.
    """

    parameters: Sequence[Tensor]
    shard: Shard
    seed: Seed
    position: int
    correct: Correction | None
    objective: OutputsObjective | None = None


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training: the network's parameters, in its order, and what `training.fit` returns."""

    parameters: Sequence[Tensor]
    fit: Fit


def fit_together(net: nn.Module, task: Task, work: Work, requests: Sequence[TrainingRequest]) -> list[TrainingResult]:
    """`training.fit` for several clients at once, by SGD on the task's own loss or on objectives of outputs.

    A client's bits do not depend on who else is trained with it, but they are not those of `training.fit`: products of
    stacked matrices round differently.

    Args:
        net: `stackable`, with convolutions or without; says the architecture and the device, and is left as it was.
        task: of classes; where its batches are random, each client draws for itself.
        work: plain, and that of one round: `work.at` theirs.
    """
    layers, maps = linear_layers(net), map_layers(net)
    if not (layers or maps) or not serves_stacking(task) or not work.is_plain or work.schedule != CONSTANT:
        raise ValueError(f"cannot be trained together: {net}, {task.title}, {work}")
    device = next(net.parameters()).device
    orders = [Batches(len(one.shard), work.batch, one.seed) for one in requests]
    trained: dict[int, TrainingResult] = {}
    kinds = [(order.largest > work.batch, one.objective is None) for order, one in zip(orders, requests, strict=True)]
    for kind in sorted(set(kinds)):
        rows = work.batch + kind[0]
        alike = [i for i, one in enumerate(kinds) if one == kind]
        for first in range(0, len(alike), LANES):
            some = alike[first : first + LANES]
            asked = [requests[i] for i in some]
            if layers:
                lanes = _Lanes(task, work, asked, rows, device, layers)
            else:
                lanes = _MapLanes(task, work, asked, rows, device, maps or ())
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
        task: Task,
        work: Work,
        requests: Sequence[TrainingRequest],
        rows: int,
        device: torch.device,
        layers: Layers = (),
    ) -> None:
        """`rows` of every batch; no client has more examples in one."""
        self._layers, self._task, self._work, self._requests, self._rows = layers, task, work, requests, rows
        self._device = device
        self._example = torch.Size()  # the shape of one, known with the first batch
        places = [*requests, *[requests[0]] * (LANES - len(requests))]
        entries = zip(*(one.parameters for one in places), strict=True)
        self._stack = [_pad_layer(torch.stack(entry)) for entry in entries]
        self._shapes = [p.shape for p in requests[0].parameters]
        self._velocity = [torch.zeros_like(entry) for entry in self._stack] if work.momentum else []
        self._orders = [Batches(len(one.shard), work.batch, one.seed) for one in requests]
        self._steps = [steps_of_work(work, order) for order in self._orders]
        self._augments = [one.seed.torch("augment") for one in requests] if task.is_random else []
        self._sizes: list[int] = []
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
        losses, errors = _slopes(passed[-1], self._losses(step, labels, shares))
        self._totals += losses
        back = _backward(self._stack, passed, errors, self._layers)
        work = self._work
        if not (work.momentum or work.weight_decay or work.clip is not None or any(r.correct for r in self._requests)):
            _descend_plainly(self._stack, back, work.lr)
        else:
            self._descend(step, _gradients(back, len(self._stack)))

    def _descend(self, step: int, gradients: Sequence[Tensor]) -> None:
        """A step of SGD in place, after what each client's correction makes of its gradients."""
        work = self._work
        for place, one in enumerate(self._requests):
            if step < self._steps[place]:
                _change(self._own(self._stack, place), self._own(gradients, place), one.correct, work)
        descend(self._stack, gradients, self._velocity, work.lr, work.momentum, work.weight_decay)

    def _losses(self, step: int, labels: Tensor, shares: Tensor) -> Losses:
        """The losses of all places, (LANES,), by logits (LANES, rows, classes or more); 0 where nobody trains."""
        classes = self._shapes[-1][0]
        own = [one.objective for one in self._requests]

        def of_the_task(logits: Tensor) -> Tensor:
            losses = self._task.losses(logits[..., :classes].flatten(0, 1), labels.flatten())
            return (losses.view(labels.shape) * shares).sum(1)

        def of_each(logits: Tensor) -> Tensor:
            found = [logits.new_zeros(())] * LANES
            for place, objective in enumerate(own):
                if step < self._steps[place]:
                    count = self._sizes[place]
                    outputs, targets = pair_if_single(logits[place, :count, :classes], labels[place, :count])
                    assert objective is not None
                    assert isinstance(outputs, Tensor)
                    found[place] = objective.loss(outputs, targets)
            return torch.stack(found)

        return of_each if own[0] else of_the_task  # all have one, or none

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (LANES, rows, features), labels (LANES, rows), and each row's share in its client's loss, alike."""
        picks = [
            order[one.position + step] if step < count else _NOTHING
            for one, order, count in zip(self._requests, self._orders, self._steps, strict=True)
        ]
        self._sizes = [len(some) for some in picks]
        return self._random_batch(picks) if self._augments else self._common_batch(picks)

    def _random_batch(self, picks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Batches made one by one, with every client's own draws."""
        inputs, labels, shares = None, torch.zeros(LANES, self._rows, dtype=torch.int64), self._shares(picks)
        for place, (one, augment, some) in enumerate(zip(self._requests, self._augments, picks, strict=True)):
            if len(some):
                made, classes = self._task.batch(one.shard, some, augment)
                made = self._require_tensor(made).flatten(1)
                inputs = made.new_zeros(LANES, self._rows, made.shape[1]) if inputs is None else inputs
                inputs[place, : len(some)], labels[place, : len(some)] = made, classes
        assert inputs is not None  # somebody trains
        return _pad(inputs, whole_from=2).to(self._device), labels.to(self._device), shares.to(self._device)

    def _shares(self, picks: Sequence[Tensor]) -> Tensor:
        """(LANES, rows): each row's share in its client's loss."""
        shares = torch.zeros(LANES, self._rows)
        for place, some in enumerate(picks):
            if len(some):
                shares[place, : len(some)] = 1 / len(some)
        return shares

    def _require_tensor(self, inputs: Inputs) -> Tensor:
        if not isinstance(inputs, Tensor):
            raise TypeError(f"{self._task.title} has batches of several tensors, which are not stacked")
        self._example = inputs.shape[1:]
        return inputs

    def _common_batch(self, picks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """All clients' batches made at once."""
        first = self._requests[0].shard
        rows = first.rows[:1].repeat(LANES, self._rows)
        shares = self._shares(picks)
        for place, (one, some) in enumerate(zip(self._requests, picks, strict=True)):
            rows[place, : len(some)] = one.shard.rows[some]
        everyone = replace(first, rows=rows.flatten())  # all clients' rows are of the same arrays
        inputs, labels = self._task.batch(everyone, torch.arange(rows.numel()), device=self._device)
        filled = _pad(self._require_tensor(inputs).view(*rows.shape, -1), whole_from=2)
        return filled, labels.view(rows.shape), shares.to(self._device)


class _MapLanes(_Lanes):
    """The same for networks with convolutions, through which torch propagates.

    Of convolutions nothing is filled up: each place is as many groups of one call, and a group is computed by itself.
    """

    def __init__(
        self,
        task: Task,
        work: Work,
        requests: Sequence[TrainingRequest],
        rows: int,
        device: torch.device,
        maps: Maps,
    ) -> None:
        super().__init__(task, work, requests, rows, device)
        self._maps = maps

    def _step(self, step: int) -> None:
        inputs, labels, shares = self._batch(step)
        images = inputs[..., : self._example.numel()].unflatten(2, self._example)
        with torch.enable_grad():
            leaves = [entry.detach().requires_grad_() for entry in self._stack]
            losses = self._losses(step, labels, shares)(_forward_maps(self._maps, leaves, images))
            gradients = torch.autograd.grad(losses.sum(), leaves)
        self._totals += losses.detach()
        self._descend(step, gradients)


def _forward_maps(maps: Maps, parameters: Sequence[Tensor], values: Tensor) -> Tensor:
    """Logits (LANES, rows, classes or more) of images (LANES, rows, channels, height, width)."""
    left = iter(parameters)
    for module in maps:
        if isinstance(module, nn.Conv2d):
            weight, bias = next(left), next(left) if module.bias is not None else None
            values = _convolve(module, values, weight, bias)
        elif isinstance(module, nn.Linear):
            weight, bias = next(left), next(left) if module.bias is not None else None
            filled = _pad(values, whole_from=2)
            values = torch.bmm(filled, weight.mT) if bias is None else torch.baddbmm(bias[:, None], filled, weight.mT)
        elif isinstance(module, nn.Flatten):
            values = values.flatten(2)
        else:
            values = module(values.flatten(0, 1)).unflatten(0, values.shape[:2])
    return values


def _convolve(layer: nn.Conv2d, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(LANES, rows, channels, height, width) by the weights of each place."""
    side_by_side = values.transpose(0, 1).flatten(1, 2)
    made = F.conv2d(
        side_by_side,
        weight.flatten(0, 1),
        None if bias is None else bias[:, : layer.out_channels].flatten(),
        layer.stride,
        layer.padding,
        layer.dilation,
        len(weight) * layer.groups,
    )
    return made.unflatten(1, (len(weight), -1)).transpose(0, 1)


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


def _pad_layer(stack: Tensor) -> Tensor:
    """A stack of parameters of linear layers filled up, of convolutions as it is; biases of either do not differ."""
    return _pad(stack, whole_from=1) if stack.dim() < 4 else stack


def _slopes(logits: Tensor, losses_of: Losses) -> tuple[Tensor, Tensor]:
    """Each client's loss, (clients,), and its derivatives by the client's logits."""
    with torch.enable_grad():
        leaf = logits.requires_grad_()
        losses = losses_of(leaf)
        (errors,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), errors


Losses = Callable[[Tensor], Tensor]
"""Logits of all clients -> the loss of each, (clients,)."""

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
