"""Arithmetic on states of low-rank adapters: pairs `MATRIX.lora_A` (r, d_in) and `MATRIX.lora_B` (d_out, r)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
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
def learning_only(net: nn.Module, end: str) -> Iterator[None]:
    """A block in which, of a network's adapters, the factors of one kind alone learn."""
    others = [p for name, p in net.named_parameters() if p.requires_grad and not name.endswith(end)]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
