"""Corrections of local gradients: what `training.fit` adds to them before each step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from algorithms.core.training import Correction


def constant(terms: Sequence[Tensor]) -> Correction:
    """Add the same tensors to the gradients at every step: the gradient of the linear loss <terms, w>."""

    def correct(parameters: Sequence[Tensor]) -> None:
        for parameter, term in zip(parameters, terms, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(term)

    return correct


def proximal(strength: float, anchor: Sequence[Tensor]) -> Correction:
    """Add strength * (w - anchor) to the gradients: the gradient of (strength / 2) ||w - anchor||^2.

    Args:
        strength: at least 0; 0 adds exactly nothing.
        anchor: one tensor per trainable parameter, on its device, sharing no memory with it.
    """

    def correct(parameters: Sequence[Tensor]) -> None:
        for parameter, centre in zip(parameters, anchor, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - centre, alpha=strength)

    return correct
