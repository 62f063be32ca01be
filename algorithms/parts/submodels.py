"""Sub-models by width: index sets over a full network's state dict, and the average of parts that overlap.

Source: FedRolex, arXiv 2212.01548, and HeteroFL, arXiv 2010.01264. The index sets come from the modules and their order
of execution, not from names: wherever the narrow network has fewer entries along an axis, it has a window of the full
network's channels there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.core import batches
from algorithms.core.kit import Kit
from algorithms.core.needs import network_of
from algorithms.core.payload import Tensors
from algorithms.core.task import Task
from algorithms.core.training import Loss, Objective
from algorithms.nets import Inputs, NetworkError, require_head
from algorithms.nets.width import HiddenEmbedding

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, HiddenEmbedding)
"""Layers that have hidden channels, unless they are a head."""

Index = tuple[Tensor, ...]
"""One int64 vector for each of an entry's first two axes: where in the full entry the narrow one lies."""


@dataclass(frozen=True)
class SubModel:
    """The entries of a full state dict that a narrow network has, by name; one that it has whole, it has in order."""

    indices: Mapping[str, Index]

    def extract(self, full: Tensors) -> dict[str, Tensor]:
        """The narrow network's entries of a full state dict, or of some of its entries."""
        return {name: value[_grid(self.indices[name])].clone() for name, value in full.items()}

    def put_back(self, part: Tensors, full: Tensors) -> dict[str, Tensor]:
        """A copy of the full state dict with a narrow network's entries in their places."""
        filled = {name: value.clone() for name, value in full.items()}
        for name, value in part.items():
            filled[name][_grid(self.indices[name])] = value
        return filled


def part_of(kit: Kit, net: str, width: float, offset: int) -> SubModel:
    """The entries of the full network of a name which its version of a width has; see `sub_model`."""
    inputs = batches.to(batches.each(kit.task.form.probe(1), torch.zeros_like), kit.device)
    return sub_model(kit.network(net), kit.network(net, width), inputs, offset)


def sub_model(full: nn.Module, narrow: nn.Module, inputs: Inputs, offset: int) -> SubModel:
    """The windows of a narrow network in a full one.

    A hidden layer of J channels, of which the narrow network has n, gives it channels (offset + j) mod J for j from 0
    to n - 1. The inputs of a layer are the outputs of the one before. A layer that is whole in the narrow network (the
    inputs' channels, the outputs) stays whole and in order.

    Args:
        full, narrow: the network at width 1 and at a smaller one, or the same network twice.
        inputs: any network inputs on the networks' device; the full network is run on them once.
        offset: of the windows; 0 is HeteroFL's.
    """
    spread = {} if narrow is full else _inputs_per_channel(full, inputs)
    sizes = narrow.state_dict()
    return SubModel(
        {
            name: tuple(
                _window(whole, part, spread.get(name, 1) if axis == 1 else 1, offset)
                for axis, (whole, part) in enumerate(zip(value.shape[:2], sizes[name].shape[:2], strict=True))
            )
            for name, value in full.state_dict().items()
        }
    )


def width_refusals(net: str, widths: Sequence[float], task: Task) -> list[str]:
    """Reasons why a network of some name cannot be had in some of these widths."""
    reasons = []
    for width in sorted(set(widths)):
        try:
            network_of(net, task, width)
        except NetworkError as error:
            reasons.append(f"gives clients networks of width {width:g}: {error}")
    return reasons


def _window(whole: int, part: int, unit: int, offset: int) -> Tensor:
    """Positions along an axis of `whole` channels times `unit`, of which the narrow network has `part`."""
    if whole == part:
        return torch.arange(whole)
    channels = (offset + torch.arange(part // unit)) % (whole // unit)
    return (channels[:, None] * unit + torch.arange(unit)).flatten()


@torch.no_grad()
def _inputs_per_channel(net: nn.Module, inputs: Inputs) -> dict[str, int]:
    """For the weight of each linear layer but the first of all, how many inputs it has from each channel of the layer
    that ran before it: more than one where feature maps have been flattened."""
    paths = {module: path for path, module in net.named_modules()}
    found: dict[str, int] = {}
    channels = 0

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal channels
        if isinstance(module, nn.Linear) and channels:
            found[f"{paths[module]}.weight"] = module.in_features // channels
        channels = output.shape[1 if isinstance(module, nn.Conv1d | nn.Conv2d) else -1]

    layers = [module for module in net.modules() if isinstance(module, LAYERS)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        net.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _grid(index: Index) -> Index:
    """Index vectors that select the rectangle of all their combinations."""
    return (index[0][:, None], index[1]) if len(index) == 2 else index


class PartialMean:
    """The weighted mean of each entry over those who have it, parts added one by one in the order in which they come.

    Floating-point entries are summed in float64; integer ones (counters) take the maximum. A weight of 0 skips the part
    without reading it. Where every part is whole this is `states.WeightedMean`.
    """

    def __init__(self, full: Tensors) -> None:
        """`full` holds every entry at full width; its values do not matter."""
        self._dtypes = {name: value.dtype for name, value in full.items()}
        self._sums = {n: torch.zeros_like(v, dtype=torch.float64) for n, v in full.items() if v.is_floating_point()}
        # One number for an entry that everybody had whole: a tensor of weights would double what a class's mean takes.
        self._weights: dict[str, float | Tensor] = dict.fromkeys(self._sums, 0.0)
        self._largest: dict[str, Tensor] = {}

    def add(self, part: Tensors, where: SubModel, weight: float, rows: Mapping[str, Tensor] | None = None) -> None:
        """Add one narrow network's entries.

        Args:
            part: entries that `where` would extract from a full state dict.
            weight: finite, at least 0.
            rows: by entry's name, the positions along its first axis that count; all where it is not named.

        Raises:
            ValueError: for a negative or non-finite weight.
        """
        if not 0 <= weight < float("inf"):
            raise ValueError(f"a weight of {weight}: must be finite and at least 0")
        if weight == 0:
            return
        for name, value in part.items():
            if not value.is_floating_point():
                self._largest[name] = torch.maximum(self._largest.get(name, value), value)
            elif rows is not None and name in rows:
                index = where.indices[name]
                self._add_window(name, value[rows[name]], (index[0][rows[name]], *index[1:]), weight)
            elif value.shape != self._sums[name].shape:
                self._add_window(name, value, where.indices[name], weight)
            else:
                self._sums[name].add_(value, alpha=weight)
                self._weights[name] += weight

    def _add_window(self, name: str, value: Tensor, index: Index, weight: float) -> None:
        total, places = self._sums[name], _grid(index)
        so_far = self._weights[name]
        weights = torch.full_like(total, so_far) if isinstance(so_far, float) else so_far
        total[places] += value.double() * weight
        weights[places] += weight
        self._weights[name] = weights

    def result(self, otherwise: Tensors) -> dict[str, Tensor]:
        """The mean of every entry; those of `otherwise` that nobody had keep their value."""
        means = {name: self._mean(name, otherwise[name]) for name in self._sums}
        return {name: means[name] if name in means else self._largest.get(name, old) for name, old in otherwise.items()}

    def _mean(self, name: str, otherwise: Tensor) -> Tensor:
        total, weight = self._sums[name], self._weights[name]
        if isinstance(weight, float):
            return (total / weight).to(self._dtypes[name]) if weight > 0 else otherwise
        return torch.where(weight > 0, (total / weight).to(self._dtypes[name]), otherwise)


@contextmanager
def scaling(net: nn.Module, width: float) -> Iterator[None]:
    """A block in which a network of this width divides what its hidden layers give out by the width while in train
    mode, to make up for the channels that are missing, as dropout does.

    The scaler of HeteroFL, arXiv 2010.01264.
    """

    def scale(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return output / width if module.training else output

    hooks = [layer.register_forward_hook(scale) for _, layer in _hidden_layers(net)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def scaled_objective(plain: Loss, width: float, objective: Objective | None = None) -> Objective | None:
    """An objective, `plain` where None, of a network of this width inside `scaling`; the same objective at width 1."""
    if width == 1:
        return objective

    def loss(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with scaling(net, width):
            return objective(net, inputs, labels) if objective else plain(net(inputs), labels)

    return loss


def rescale(net: nn.Module, state: Tensors, width: float) -> dict[str, Tensor]:
    """A state trained inside `scaling`, for use outside: hidden layers give out what they gave out in training."""
    if width == 1:
        return dict(state)
    hidden = {f"{path}.{name}" for path, layer in _hidden_layers(net) for name, _ in layer.named_parameters()}
    return {name: value / width if name in hidden else value for name, value in state.items()}


def _hidden_layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Convolutions, linear layers and embeddings of hidden channels by their path, the head excepted."""
    layers = ((path, m) for path, m in net.named_modules() if isinstance(m, LAYERS))
    head = require_head(net).head
    return [(path, layer) for path, layer in layers if layer is not head]
