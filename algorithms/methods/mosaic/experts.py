"""Experts: class-wise averages of the clients' networks, and the teacher that fuses their logits.

Source: Mosaic, arXiv 2505.19699: theta^(c) = sum_k n_k^c theta_k / sum_j n_j^c over the clients that take part.
"""

from __future__ import annotations

from torch import Tensor, nn

from algorithms.core.payload import Tensors
from algorithms.methods.mosaic.meta import MetaModel
from algorithms.parts.bank import Bank
from algorithms.parts.submodels import PartialMean, SubModel


class ClassWiseMeans:
    """The average of the clients' networks by examples, and one for each class by examples of that class.

    Entry by entry over the clients that have it: with M_kj 1 where client k has entry j and 0 elsewhere,
    theta_j^(c) = sum_k n_k^c M_kj theta_kj / sum_k n_k^c M_kj.

    States are added one by one, and none is kept: what is kept are one sum of weights and C sums by class.
    """

    def __init__(self, classes: int, full: Tensors) -> None:
        """`classes` is C, or 0 for the average by examples alone; `full` has every entry, of values that do not
        matter."""
        self._all = PartialMean(full)
        self._by_class = [PartialMean(full) for _ in range(classes)]

    def add(self, state: Tensors, counts: Tensor, where: SubModel) -> None:
        """Add one client's entries; counts int64 (C,) of its examples by class. A class it lacks is not touched."""
        # All sums are in float64; converting an entry takes longer than adding it to one of them.
        exact = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
        self._all.add(exact, where, float(counts.sum()))
        for mean, count in zip(self._by_class, counts.tolist(), strict=False):
            mean.add(exact, where, float(count))

    def plain(self, otherwise: Tensors) -> dict[str, Tensor]:
        """sum_k n_k M_kj theta_kj / sum_k n_k M_kj; `otherwise` for an entry that nobody with an example has."""
        return self._all.result(otherwise)

    def experts(self, otherwise: Tensors) -> list[dict[str, Tensor]]:
        """theta^(c) for every class c; an entry that nobody with an example of the class has is the plain average's."""
        plain = self.plain(otherwise)
        return [mean.result(plain) for mean in self._by_class]


class PlainSum(nn.Module):
    """The sum of all experts' logits, images to (B, C): the experts without a meta model."""

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, images: Tensor) -> Tensor:
        return self.bank.logits(images).sum(1)


class Teacher(nn.Module):
    """The meta model over the experts, from images (`forward`) or from features (`from_features`) to logits (B, C)."""

    def __init__(self, bank: Bank, meta: MetaModel) -> None:
        super().__init__()
        self.bank = bank
        self.meta = meta

    def forward(self, images: Tensor) -> Tensor:
        """Network inputs (B, C, H, W) through every expert."""
        answer: Tensor = self.meta(self.bank.logits(images))
        return answer

    def from_features(self, features: Tensor) -> Tensor:
        """Inputs (B, F) of the last linear layer through every expert's head."""
        answer: Tensor = self.meta(self.bank.from_features(features))
        return answer
