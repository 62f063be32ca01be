"""Local training: mini-batches of a client's examples, in an order that depends on the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core import batches
from algorithms.core.classification import Classification
from algorithms.core.layers import backpropagate, cross_entropy_slope, linear_layers, slope_of
from algorithms.core.schedules import CONSTANT, RateSchedule
from algorithms.core.seeds import ANY_ROUND, Seed
from algorithms.core.sgd import SGD
from algorithms.core.task import Shard, Task
from algorithms.nets.forms import Inputs

Objective = Callable[[nn.Module, Any, Tensor], Tensor]
"""(network, inputs, targets) -> scalar loss; inputs as the task's batches have them."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(what a network answers, targets) -> scalar loss."""


@dataclass(frozen=True)
class OutputsObjective:
    """An objective that asks the network for nothing but what it answers to the batch: so it needs no backpropagation
    of its own, and several clients can be trained at once (`core.stacking`)."""

    loss: Loss

    def __call__(self, net: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        return self.loss(net(inputs), targets)


Correction = Callable[[Sequence[Tensor]], None]
"""Changes the gradients of the given trainable parameters in place, after backward and before the step."""


EXAMPLES_AT_ONCE = 512
"""Made ready for the network in one pass: for small batches a pass costs more than its arithmetic."""


OptimiserName: TypeAlias = Literal["sgd", "adam", "adamw"]
"""`sgd` is `algorithms.core.sgd`; the others are torch's own Adam and AdamW."""


BETAS, EPS = (0.9, 0.999), 1e-8
"""Settings of Adam and AdamW where nothing else is said, as in torch."""


@dataclass(frozen=True)
class Work:
    """A client's work in a round. Either `steps` or `epochs` is set.

    The optimiser is rebuilt in each round: momentum and moments start at 0, and nothing of them is kept or sent.

    Attributes:
        steps: mini-batches in a round, drawn from a cyclic order that goes on where the last round ended.
        epochs: passes over the client's examples in a round.
        batch: examples in a mini-batch.
        lr: learning rate, before the schedule; see `at`.
        momentum: of SGD.
        weight_decay: added to the gradient times the weight; of `adamw`, taken from the weight itself.
        clip: largest 2-norm of the gradient, or None.
        optimiser: by name.
        betas, eps: of Adam and AdamW.
        schedule: the rate of each round, as a factor of `lr`.
        label_smoothing: share in [0, 1) of every target that all classes have alike; see `training_loss`.
        micro_batch: most examples that go through the network at once; None for a whole mini-batch.
    """

    steps: int | None
    epochs: int | None
    batch: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    optimiser: OptimiserName = "sgd"
    betas: tuple[float, float] = BETAS
    eps: float = EPS
    schedule: RateSchedule = CONSTANT
    label_smoothing: float = 0.0
    micro_batch: int | None = None

    def at(self, round: int) -> Work:
        """The work of one round: the same in all rounds from then on, at that round's rate."""
        return replace(self, lr=self.lr * self.schedule.at(round), schedule=CONSTANT)

    @property
    def is_plain(self) -> bool:
        """Whether it is SGD on the task's own loss, of whole mini-batches."""
        return self.optimiser == "sgd" and not self.label_smoothing and self.micro_batch is None


def with_amount(work: Work, amount: int | None) -> Work:
    """The work with so many steps, or epochs where it has epochs; None for its own."""
    if amount is None:
        return work
    return replace(work, steps=amount) if work.steps is not None else replace(work, epochs=amount)


@dataclass(frozen=True)
class Fit:
    """The result of training: mean loss over its batches, number of steps, and place reached in the cyclic order."""

    loss: float
    steps: int
    position: int


class Batches:
    """The endless order of a client's mini-batches: each epoch a new permutation, known from the seed alone.

    A remainder of one example joins the batch before it, so that batch normalisation never meets a batch of one where
    the client has more; no example is lost.

    Attributes:
        per_epoch: batches in an epoch.
        largest: examples in the largest of them.
    """

    def __init__(self, examples: int, batch: int, seed: Seed) -> None:
        if examples < 1:
            raise ValueError("a client without examples cannot train")
        self.examples, self.batch = examples, batch
        self._seed = seed.at(round=ANY_ROUND, phase="batches")
        whole, rest = divmod(examples, batch)
        self.per_epoch = max(1, whole + (rest > 1 or (rest == 1 and batch == 1)))
        self.largest = max(min(examples, batch), examples - (self.per_epoch - 1) * batch)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __getitem__(self, position: int) -> Tensor:
        """int64 positions in the shard's rows of batch number `position`, from 0."""
        epoch, index = divmod(position, self.per_epoch)
        if epoch != self._epoch:
            generator = self._seed.torch("order", epoch)
            self._epoch, self._order = epoch, torch.randperm(self.examples, generator=generator)
        end = self.examples if index == self.per_epoch - 1 else (index + 1) * self.batch
        return self._order[index * self.batch : end]


def pair_if_single(inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
    """Show a lone example twice: the mean loss is the same, and batch normalisation has two values to work on."""
    if len(targets) != 1:
        return inputs, targets
    return batches.repeat(inputs, 2), targets.repeat(2, *[1] * (targets.dim() - 1))


def steps_of_work(work: Work, order: Batches) -> int:
    """Mini-batches of a client in a round."""
    return work.steps if work.steps is not None else (work.epochs or 0) * order.per_epoch


def draw_batches(
    task: Task,
    shard: Shard,
    order: Batches,
    positions: Sequence[int],
    augment: torch.Generator | None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Inputs, Tensor]]:
    """Network inputs and targets of the batches at these positions, one after another, on a device.

    Many batches are made in one pass, which changes no bit; random ones are not, since each draws its own numbers.
    """
    at_once = 1 if task.is_random else max(1, EXAMPLES_AT_ONCE // order.batch)
    for first in range(0, len(positions), at_once):
        picks = [order[position] for position in positions[first : first + at_once]]
        inputs, targets = task.batch(shard, torch.cat(picks), augment, device)
        sizes = [len(some) for some in picks]
        yield from zip(batches.split(inputs, sizes), targets.split(sizes), strict=True)


def training_loss(task: Task, work: Work) -> Loss:
    """The loss that training minimises: the task's own, or with label smoothing e

        (1 - e) loss + e mean_c(-log p_c),

    the cross-entropy with targets of which a share e is spread over all classes alike, as torch's `label_smoothing`
    has it (Szegedy et al., arXiv 1512.00567). Evaluation takes the task's own loss.

    The task must have classes where labels are smoothed: what networks answer, (B, C), are logits.
    """
    share = work.label_smoothing
    if not share:
        return task.loss

    def smoothed_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return (1 - share) * task.loss(logits, labels) - share * F.log_softmax(logits, 1).mean()

    return smoothed_loss


class Optimiser(Protocol):
    """Updates a network's parameters by their gradients."""

    def step(self) -> object:
        """Change the parameters that have a gradient, in place."""
        ...


def new_optimiser(work: Work, parameters: Sequence[nn.Parameter]) -> Optimiser:
    """The optimiser of a client's round, without any state yet, at the rate `work.lr`."""
    if work.optimiser == "sgd":
        return SGD(parameters, work.lr, work.momentum, work.weight_decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[work.optimiser]
    return kind(parameters, lr=work.lr, betas=work.betas, eps=work.eps, weight_decay=work.weight_decay)


class TrainingLoop(Protocol):
    """The signature of `fit`."""

    def __call__(
        self,
        net: nn.Module,
        task: Task,
        shard: Shard,
        work: Work,
        seed: Seed,
        *,
        position: int = 0,
        objective: Objective | None = None,
        correct: Correction | None = None,
    ) -> Fit: ...


def fit(
    net: nn.Module,
    task: Task,
    shard: Shard,
    work: Work,
    seed: Seed,
    *,
    position: int = 0,
    objective: Objective | None = None,
    correct: Correction | None = None,
) -> Fit:
    """Train a network in place on a client's examples.

    Args:
        net: in any mode; trained and left in train mode, on whatever device its parameters are.
        seed: of the step; orders the batches (by run and client), draws the augmentation, and tells the round, whose
            rate is that of `work.schedule`.
        position: batches this client has drawn in earlier rounds.
        objective: the loss; `training_loss` on the logits where None.
        correct: changes gradients before each step (proximal terms, control variates).
    """
    order = Batches(len(shard), work.batch, seed)
    steps = steps_of_work(work, order)
    parameters = [p for p in net.parameters() if p.requires_grad]
    device = parameters[0].device
    optimiser = new_optimiser(work.at(seed.round), parameters)
    find_gradients = _gradients_of(net, parameters, task, training_loss(task, work), objective)
    if work.micro_batch is not None:
        find_gradients = _in_pieces(find_gradients, parameters, task, work.micro_batch)
    augment = seed.torch("augment") if task.is_random else None
    net.train()
    total = torch.zeros((), device=device)
    for inputs, targets in draw_batches(task, shard, order, range(position, position + steps), augment, device):
        total += find_gradients(*pair_if_single(inputs, targets))
        if correct:
            correct(parameters)
        if work.clip is not None:
            nn.utils.clip_grad_norm_(parameters, work.clip)
        optimiser.step()
    return Fit(loss=float(total) / max(steps, 1), steps=steps, position=position + steps)


def _gradients_of(
    net: nn.Module, parameters: Sequence[nn.Parameter], task: Task, loss_of: Loss, objective: Objective | None
) -> Callable[[Inputs, Tensor], Tensor]:
    """A function that gives the parameters their gradients for a batch and returns the loss, detached."""
    if isinstance(objective, OutputsObjective):
        loss_of, objective = objective.loss, None
    layers = None if objective else linear_layers(net)
    is_cross_entropy = getattr(loss_of, "__func__", None) is Classification.loss

    def propagate(inputs: Inputs, targets: Tensor) -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss = objective(net, inputs, targets) if objective else loss_of(net(inputs), targets)
        loss.backward()
        return loss.detach()

    def propagate_by_layer(inputs: Inputs, targets: Tensor) -> Tensor:
        if not isinstance(inputs, Tensor):
            return propagate(inputs, targets)
        if is_cross_entropy:
            return backpropagate(parameters, layers or (), inputs, lambda logits: cross_entropy_slope(logits, targets))
        loss_here = partial(slope_of, lambda outputs: loss_of(outputs, targets))
        return backpropagate(parameters, layers or (), inputs, loss_here)

    return propagate_by_layer if layers else propagate


def _in_pieces(
    find_gradients: Callable[[Inputs, Tensor], Tensor], parameters: Sequence[nn.Parameter], task: Task, most: int
) -> Callable[[Inputs, Tensor], Tensor]:
    """The same for batches of which at most so many examples go through the network at once: gradients and loss are
    means over the pieces, each weighted by `Task.amount`."""

    def propagate(inputs: Inputs, targets: Tensor) -> Tensor:
        sizes, whole = [len(piece) for piece in targets.split(most)], task.amount(targets)
        total, sums = torch.zeros((), device=targets.device), dict[nn.Parameter, Tensor]()
        for some, theirs in zip(batches.split(inputs, sizes), targets.split(sizes), strict=True):
            amount = task.amount(theirs)
            if not amount:
                continue  # a piece in which nothing counts has no mean
            total += find_gradients(*pair_if_single(some, theirs)) * (amount / whole)
            for parameter in parameters:
                if parameter.grad is not None:
                    part = parameter.grad * (amount / whole)
                    sums[parameter] = sums[parameter] + part if parameter in sums else part
        for parameter in parameters:
            parameter.grad = sums.get(parameter)
        return total

    return propagate
