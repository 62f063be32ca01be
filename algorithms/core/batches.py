"""Inputs of a batch, a tensor or tensors by name, handled alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from algorithms.nets.forms import Inputs


def each(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with a function applied to every tensor."""
    return function(inputs) if isinstance(inputs, Tensor) else {name: function(v) for name, v in inputs.items()}


def to(inputs: Inputs, device: torch.device | str) -> Inputs:
    """The inputs on a device."""
    return each(inputs, lambda tensor: tensor.to(device))


def size(inputs: Inputs) -> int:
    """Examples in a batch."""
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))


def split(inputs: Inputs, sizes: Sequence[int]) -> Iterator[Inputs]:
    """Consecutive parts of a batch, views."""
    if isinstance(inputs, Tensor):
        yield from inputs.split(list(sizes))
        return
    parts = {name: tensor.split(list(sizes)) for name, tensor in inputs.items()}
    for number in range(len(sizes)):
        yield {name: tensors[number] for name, tensors in parts.items()}


def repeat(inputs: Inputs, times: int) -> Inputs:
    """Every example so many times, the whole batch after itself."""
    return each(inputs, lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)))
