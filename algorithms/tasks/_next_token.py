"""The common part of tasks whose networks say at every place of a text what comes next."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.core.task import Figure, Sums, Task

NO_TARGET = -100
"""The target of a place that counts in no loss and no figure: after a text's end, say."""


class NextToken(Task):
    """Loss and figures of next tokens: outputs are (B, T, vocabulary), targets int64 (B, T)."""

    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("perplexity", "lower"),
        Figure("accuracy", "higher", "%"),
        Figure("loss", "lower", "nats"),
    )

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """float (B,): cross-entropy of each example, the mean over its tokens, in nats."""
        return nll(outputs, targets).sum(1) / (targets != NO_TARGET).sum(1).clamp(min=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, the mean over all tokens of a batch."""
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)

    def amount(self, targets: Tensor) -> int:
        """Tokens that are to be predicted."""
        return int((targets != NO_TARGET).sum())

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """`examples`, `tokens` that were to be predicted, `hits` among them, and `nll`, their summed cross-entropy."""
        return {
            "examples": torch.tensor(len(targets)),
            "tokens": (targets != NO_TARGET).sum().cpu(),
            "hits": (outputs.argmax(2) == targets).sum().cpu(),
            "nll": nll(outputs, targets).detach().double().sum().cpu(),
        }

    def report(self, sums: Sums) -> dict[str, float]:
        """Perplexity exp(loss); share of tokens that were thought the most likely; mean cross-entropy of a token."""
        if not sums:
            return dict.fromkeys((figure.name for figure in self.figures), float("nan"))
        tokens, loss = sums["tokens"].double(), sums["nll"] / sums["tokens"]
        return {"perplexity": float(loss.exp()), "accuracy": float(sums["hits"] / tokens), "loss": float(loss)}


def nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """float (B, T): cross-entropy of each token, 0 where there is none."""
    each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="none")
    return each.view(targets.shape)
