"""Losses of data-free distillation: what the student minimises, and what the generators minimise.

Source: Mosaic, arXiv 2505.19699, and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Divergence = Literal["js", "bhattacharyya"]
AskedLabel = Literal["teacher", "generator"]


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of logits (B, C), mean over the batch."""
    return F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)


def kl_each(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of logits (..., C), for each of them: (...)."""
    each = F.kl_div(F.log_softmax(student, -1), F.log_softmax(teacher, -1), reduction="none", log_target=True)
    return each.sum(-1)


def js(left: Tensor, right: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the softmaxes P, Q of logits (B, C), mean over the batch; in [0, ln 2].

    1/2 KL(P || M) + 1/2 KL(Q || M) with M = (P + Q) / 2.
    """
    p, q = F.log_softmax(left, 1), F.log_softmax(right, 1)
    middle = torch.logaddexp(p, q) - math.log(2)
    to_p = F.kl_div(middle, p, reduction="batchmean", log_target=True)
    to_q = F.kl_div(middle, q, reduction="batchmean", log_target=True)
    return (to_p + to_q) / 2


def bhattacharyya(left: Tensor, right: Tensor) -> Tensor:
    """-log sum_c sqrt(P_c Q_c) of the softmaxes P, Q of logits (B, C), mean over the batch; from 0, without bound.

    The released code calls it Jensen-Shannon: with m the mean of both logits it computes
    1/2 KL(softmax(m) || P) + 1/2 KL(softmax(m) || Q), which is this distance.
    """
    middle = (F.log_softmax(left, 1) + F.log_softmax(right, 1)) / 2
    return -torch.logsumexp(middle, 1).mean()


@dataclass(frozen=True)
class DistillationObjective:
    """alpha tau^2 KL(t / tau || s / tau) + (1 - alpha) CE(s, y) + beta J(s / tau, t / tau) on logits s and t.

    Attributes:
        label: y is the teacher's own answer (argmax of t), or the class asked of the generator.
        divergence: what J is.
    """

    alpha: float
    beta: float
    temperature: float
    divergence: Divergence
    label: AskedLabel

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        tau = self.temperature
        asked = teacher.argmax(1) if self.label == "teacher" else labels
        divergence = js if self.divergence == "js" else bhattacharyya
        return (
            self.alpha * tau**2 * kl(teacher / tau, student / tau)
            + (1 - self.alpha) * F.cross_entropy(student, asked)
            + self.beta * divergence(student / tau, teacher / tau)
        )


@dataclass(frozen=True)
class LabelObjective:
    """Cross-entropy with the class asked of the generator; the teacher is not listened to."""

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(student, labels)


def entropy(logits: Tensor) -> Tensor:
    """mean_z sum_c -p_c log(p_c + 1e-5) of p = softmax(logits), logits (B, C): small where the classifier is sure."""
    p = F.softmax(logits, 1)
    return -(p * torch.log(p + 1e-5)).sum(1).mean()


def diversity(logits: Tensor, present: Tensor) -> Tensor:
    """sum_c q_c log q_c, where q is the batch mean of softmax(logits) over the present classes, made to sum to 1.

    Minus the entropy of q: small where a batch holds every present class alike; 0 where one class is present.

    Args:
        logits: float (B, C).
        present: bool (C,), at least one of them true.
    """
    mean = F.softmax(logits, 1).mean(0)[present]
    # A class that the classifier never gives has probability 0, whose logarithm would make the loss NaN.
    q = (mean / mean.sum().clamp_min(1e-12)).clamp_min(1e-12)
    return (q * q.log()).sum()


def sameness(left: Tensor, right: Tensor) -> Tensor:
    """exp(-mean_ij l_ij r_ij) of distances l, r (B, B) within a batch, in [0, 1]: 1 where everything is the same."""
    return torch.exp(-(left * right).mean())


def distances(values: Tensor, order: float) -> Tensor:
    """(B, B): distances of values (B, ...), per entry: mean |difference| of order 1, root mean square of order 2."""
    flat = values.flatten(1)
    # The faster way by products of matrices gives equal values a distance above 0.
    between = torch.cdist(flat, flat, p=order, compute_mode="donot_use_mm_for_euclid_dist")
    return between / flat.shape[1] ** (1 / order)


class NormGap:
    """The gap between the inputs of a network's batch normalisations and the statistics they remember.

    `scale` times the sum over the layers of ||running variance - var(x)|| + ||running mean - mean(x)||, in 2-norms, var
    biased and over all but the channel dimension. Without batch normalisation it is 0.
    """

    def __init__(self, net: nn.Module, scale: float = 1e-3) -> None:
        self._scale = scale
        self._layers = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._gaps: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the network's forward passes inside the block."""
        self._gaps = []
        handles = [layer.register_forward_pre_hook(self._watch) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        others = [d for d in range(inputs[0].dim()) if d != 1]
        variance, mean = torch.var_mean(inputs[0], others, correction=0)
        self._gaps.append(torch.linalg.vector_norm(layer.running_var - variance))  # type: ignore[operator]
        self._gaps.append(torch.linalg.vector_norm(layer.running_mean - mean))  # type: ignore[operator]

    def value(self) -> Tensor:
        """The gap of the passes watched last, differentiable."""
        return self._scale * torch.stack(self._gaps).sum() if self._gaps else torch.zeros(())
