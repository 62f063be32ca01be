"""Arithmetic on state dicts: weighted means with the care that buffers, zero weights and NaN need."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from algorithms.core.payload import Tensors

PIECE = 2**18
"""Entries of a tensor that are worked on at once: what is computed from them stays in the processor's cache, where a
whole large tensor in another type would be written to memory, on fresh pages, and read again."""


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state dict on the CPU, buffers and counters included; tied tensors once."""
    return {name: value.detach().to("cpu", copy=True) for name, value in net.state_dict().items()}


def trainable(net: nn.Module) -> tuple[str, ...]:
    """Names of the entries that an optimiser changes, in the order in which `fit` hands their parameters to a
    correction; buffers are not among them."""
    return tuple(name for name, parameter in net.named_parameters() if parameter.requires_grad)


def norm_entries(net: nn.Module) -> frozenset[str]:
    """Names of all entries of batch normalisation: weights, biases, running statistics, counters.

    They are found by the type of their module, whatever it is called. FedBN, arXiv 2102.07623.
    """
    entries = frozenset(
        f"{path}.{entry}" if path else entry
        for path, module in net.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for entry in module.state_dict()
    )
    return entries & net.state_dict().keys()  # without further names of tied tensors


def norm_buffers(net: nn.Module) -> frozenset[str]:
    """Names of batch normalisation's running statistics and counters."""
    return norm_entries(net) - {name for name, _ in net.named_parameters()}


def only(state: Tensors, names: Iterable[str]) -> dict[str, Tensor]:
    """The entries of these names."""
    return {name: state[name] for name in names}


def without(state: Tensors, names: Container[str]) -> dict[str, Tensor]:
    """All entries but those of these names."""
    return {name: value for name, value in state.items() if name not in names}


Dtypes = Mapping[str, torch.dtype]


class WeightedMean:
    """The weighted mean of state dicts, added one by one, in the order in which they are added.

    Floating-point entries are summed in float64 and divided by the sum of weights at the end, then returned in
    their own dtype; integer entries (batch counters) take the maximum. A weight of 0 skips the state without
    reading it, since 0 times NaN is NaN. FedAvg, arXiv 1602.05629, algorithm 1.

    Attributes:
        weight: sum of the weights so far.
        sums: float64 sums of weight times state by entry, and the largest counters.
        dtypes: of the states' entries.
    """

    def __init__(self, weight: float = 0.0, sums: Tensors | None = None, dtypes: Dtypes | None = None) -> None:
        """Nothing yet; or what another one's `weight`, `sums` and `dtypes` are, which it must not use any more."""
        self.weight = weight
        self.sums: Tensors = sums or {}
        self.dtypes: Dtypes = dtypes or {}

    def add(self, state: Tensors, weight: float) -> None:
        """Add one state; weights are numbers >= 0, not necessarily summing to 1.

        Raises:
            ValueError: for a negative or non-finite weight, or entries other than those of the first state.
        """
        if not 0 <= weight < float("inf"):
            raise ValueError(f"a weight of {weight}: must be finite and at least 0")
        if weight == 0:
            return
        if self.weight == 0:
            self.dtypes = {name: value.dtype for name, value in state.items()}
            self.sums = {name: _term(value, weight) for name, value in state.items()}
        else:
            self._add_further(state, weight)
        self.weight += weight

    def join(self, other: WeightedMean) -> None:
        """Add what another one has summed, as it is."""
        if self.weight == 0:
            self.dtypes, self.sums = other.dtypes, {name: total.clone() for name, total in other.sums.items()}
        elif other.weight:
            self._add_further(other.sums, 1.0)
        self.weight += other.weight

    def _add_further(self, state: Tensors, weight: float) -> None:
        if state.keys() != self.sums.keys():
            raise ValueError(f"states differ in their entries: {sorted(state.keys() ^ self.sums.keys())}")
        for name, total in self.sums.items():
            value = state[name]
            if total.is_floating_point():
                for sums, values in _pieces(total, value):
                    sums.add_(values, alpha=weight)
            else:
                torch.maximum(total, value, out=total)

    def result(self, otherwise: Tensors) -> dict[str, Tensor]:
        """The mean, or `otherwise` where the weights sum to 0."""
        if self.weight == 0:
            return dict(otherwise)
        return {
            name: self._mean_of(name, total) if total.is_floating_point() else total
            for name, total in self.sums.items()
        }

    def _mean_of(self, name: str, total: Tensor) -> Tensor:
        mean = torch.empty_like(total, dtype=self.dtypes[name])
        for means, sums in _pieces(mean, total):
            means.copy_(sums / self.weight)
        return mean


def _term(value: Tensor, weight: float) -> Tensor:
    if not value.is_floating_point():
        return value.clone()
    total = torch.empty_like(value, dtype=torch.float64)
    for sums, values in _pieces(total, value):
        sums.copy_(values).mul_(weight)
    return total


def _pieces(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors of one shape in pieces of `PIECE` entries, as views; whole where that cannot be.

    What is computed entry by entry has the bits of the whole: a piece is a multiple of what a processor takes at once.
    """
    if one.numel() <= PIECE or one.shape != other.shape or not (one.is_contiguous() and other.is_contiguous()):
        yield one, other
    else:
        yield from zip(one.view(-1).split(PIECE), other.view(-1).split(PIECE), strict=True)


def combine(function: Callable[..., Tensor], *states: Tensors) -> dict[str, Tensor]:
    """Apply a function to the entries of equal name of states with equal entries."""
    return {name: function(*(state[name] for state in states)) for name in states[0]}


def clip_norm(state: Tensors, largest: float) -> dict[str, Tensor]:
    """The state, scaled down where the 2-norm of all its entries together is larger than `largest`."""
    norm = float(torch.stack([value.double().square().sum() for value in state.values()]).sum().sqrt())
    return dict(state) if norm <= largest else combine(lambda value: value * (largest / norm), state)


def tensor_bytes(state: Tensors) -> int:
    """Bytes of named tensors, on whatever device they are."""
    return sum(value.numel() * value.element_size() for value in state.values())


def state_bytes(net: nn.Module) -> int:
    """Bytes of a network's state dict."""
    return tensor_bytes(net.state_dict())


def trainable_bytes(net: nn.Module) -> int:
    """Bytes of the entries of a network's state dict that an optimiser changes."""
    return tensor_bytes(only(net.state_dict(), trainable(net)))
