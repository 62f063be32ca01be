"""Arithmetic on states of low-rank adapters: pairs `MATRIX.lora_A` (r, d_in) and `MATRIX.lora_B` (d_out, r)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.payload import Tensors

A, B = ".lora_A", ".lora_B"
"""Ends of the names of an adapter's factors."""


def pairs(state: Tensors) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The matrix's name, A and B of each adapter of a state, in its order."""
    for name, a in state.items():
        if name.endswith(A):
            matrix = name.removesuffix(A)
            yield matrix, a, state[matrix + B]


def products(state: Tensors) -> dict[str, Tensor]:
    """B A of each adapter, float32 (d_out, d_in), by the matrix's name."""
    return {matrix: b.float() @ a.float() for matrix, a, b in pairs(state)}


def norm(matrices: Tensors) -> float:
    """The Frobenius norm of matrices together."""
    return float(torch.stack([value.double().square().sum() for value in matrices.values()]).sum().sqrt())


def entries(state: Tensors, end: str) -> dict[str, Tensor]:
    """The factors of one kind of a state, whose names end in `A` or in `B`."""
    return {name: value for name, value in state.items() if name.endswith(end)}


@contextmanager
def learning_only(net: nn.Module, ends: str | tuple[str, ...]) -> Iterator[None]:
    """A block in which those of a network's parameters alone learn whose names end so."""
    others = [p for name, p in net.named_parameters() if p.requires_grad and not name.endswith(ends)]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def rank_of(state: Tensors) -> int:
    """The rank of a state's adapters, which all have the same."""
    return next(a.shape[0] for _, a, _ in pairs(state))


def cut(state: Tensors, rank: int) -> dict[str, Tensor]:
    """Adapters of the first `rank` ranks: rows of A, columns of B."""
    return {name: (value[:rank] if name.endswith(A) else value[:, :rank]).clone() for name, value in state.items()}


def pad(state: Tensors, rank: int) -> dict[str, Tensor]:
    """Adapters with ranks of zeros after their own, `rank` in all."""
    more = rank - rank_of(state)
    return {name: F.pad(value, (0, 0, 0, more) if name.endswith(A) else (0, more)) for name, value in state.items()}


def product_norm(state: Tensors) -> float:
    """sqrt(sum_m ||B A||_F^2) over the matrices m, from r x r matrices alone: ||B A||_F^2 = tr((B^T B)(A A^T))."""
    squares = [((b.T @ b) * (a @ a.T)).sum() for a, b in ((a.double(), b.double()) for _, a, b in pairs(state))]
    return float(torch.stack(squares).sum().clamp(min=0).sqrt())


def stack(states: Sequence[Tensors], shares: Sequence[float]) -> dict[str, Tensor]:
    """Adapters side by side, of the sum of their ranks, whose product is sum_k shares_k B_k A_k: the share is on A."""
    total = {}
    for name in states[0]:
        if name.endswith(A):
            total[name] = torch.cat([share * state[name] for state, share in zip(states, shares, strict=True)])
        else:
            total[name] = torch.cat([state[name] for state in states], dim=1)
    return total
