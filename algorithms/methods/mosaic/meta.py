"""The meta model: a small transformer that fuses the logits of experts, and its training.

Source: Mosaic, arXiv 2505.19699, and its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.settings import setting
from algorithms.methods.mosaic.ema import Average

Pooling = Literal["mean", "sum"]

HEAD_WIDTH = 10
MOST_HEADS = 100
DROPOUT = 0.2


@dataclass(frozen=True, kw_only=True)
class MetaConfig(settings.Config):
    """Settings of the meta model and its training."""

    meta_width: int | None = setting(
        None, "entries of a token, a multiple of meta_heads; null for 10 a head: the released shapes", ge=1
    )
    meta_heads: int | None = setting(None, "heads of the attention; null for one a class, at most 100", ge=1)
    meta_feedforward: int = setting(2048, "hidden units after each attention", ge=1)
    expert_embedding: bool = setting(
        False, "a learned vector for each expert, without which the order of the experts cannot matter"
    )
    meta_steps: int = setting(150, "optimiser steps of the meta model", ge=1)
    meta_batch: int = setting(128, "examples in a step of the meta model, every class drawn alike", ge=1)
    meta_lr: float = setting(1e-3, "learning rate of Adam for the meta model", gt=0)
    ema: Literal["ramp", "bias-corrected"] = setting(
        "ramp", "how the moving average of the meta model's weights, which is the teacher, forgets its start"
    )


def meta_size(config: MetaConfig, classes: int) -> tuple[int, int]:
    """(width, heads) of a meta model.

    Raises:
        ValueError: the width is no multiple of the heads.
    """
    heads = config.meta_heads or min(classes, MOST_HEADS)
    width = config.meta_width or HEAD_WIDTH * heads
    if width % heads:
        raise ValueError(f"meta_width = {width}: must be a multiple of meta_heads = {heads}")
    return width, heads


class MetaModel(nn.Module):
    """Logits of E experts (B, E, C) to logits (B, C): each expert's logits are one token of a sequence.

    A linear layer shared by all tokens widens them, a transformer of one encoder and one decoder layer (dropout 0.2,
    post-norm, source = target = the sequence, no mask, no position) mixes them, pooling over the tokens and a linear
    layer give the answer.
    """

    def __init__(self, experts: int, classes: int, config: MetaConfig, pooling: Pooling = "mean") -> None:
        super().__init__()
        width, heads = meta_size(config, classes)
        self.pooling = pooling
        self.expand = nn.Linear(classes, width)
        wide = config.meta_feedforward
        layer = nn.TransformerEncoderLayer(width, heads, wide, DROPOUT, batch_first=True)
        # nn.Transformer's own encoder warns of nested tensors, which are never used here.
        encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(width), enable_nested_tensor=False)
        self.transformer = nn.Transformer(width, heads, 1, 1, wide, DROPOUT, custom_encoder=encoder, batch_first=True)
        self.output = nn.Linear(width, classes)
        self.register_parameter(
            "embedding", nn.Parameter(0.02 * torch.randn(experts, width)) if config.expert_embedding else None
        )

    def forward(self, logits: Tensor) -> Tensor:
        """float (B, E, C) to (B, C)."""
        tokens = self.expand(logits)
        if self.embedding is not None:
            tokens = tokens + self.embedding
        mixed = self.transformer(tokens, tokens)
        pooled = mixed.sum(1) if self.pooling == "sum" else mixed.mean(1)
        answer: Tensor = self.output(pooled)
        return answer


@dataclass(frozen=True)
class Examples:
    """Training examples of a meta model: experts' logits float32 (N, E, C) and labels int64 (N,)."""

    logits: Tensor
    labels: Tensor


def train_meta(
    examples: Examples, config: MetaConfig, released: Collection[str], seed: Seed, report: Callable[[], None]
) -> MetaModel:
    """A meta model trained by cross-entropy, as the moving average of its parameters, in eval mode without gradients.

    Args:
        examples: on the device where it is to be trained.
        released: rules of the released code that apply: `sum_pooling`, `plain_average`, `unbalanced`.
        report: hears of every step.
    """
    _, experts, classes = examples.logits.shape
    draws = seed.torch("meta batches")
    with torch_seeded(seed.number("meta model")):
        model = MetaModel(experts, classes, config, "sum" if "sum_pooling" in released else "mean")
        model.to(examples.logits.device).train()
        optimiser = torch.optim.Adam(model.parameters(), lr=config.meta_lr)
        average = Average(model, "plain" if "plain_average" in released else config.ema)
        for _ in range(config.meta_steps):
            picks = draw(examples.labels.cpu(), config.meta_batch, "unbalanced" not in released, draws)
            picks = picks.to(examples.labels.device)
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(model(examples.logits[picks]), examples.labels[picks]).backward()
            optimiser.step()
            average.update()
            report()
    return cast(MetaModel, average.network())


def draw(labels: Tensor, batch: int, balanced: bool, draws: torch.Generator) -> Tensor:
    """int64 (batch,) positions of the examples of one step.

    Balanced, every class is drawn alike, with replacement. Else it is the first batch of a new permutation, as in the
    released code.
    """
    if not balanced:
        return torch.randperm(len(labels), generator=draws)[:batch]
    weights = 1.0 / torch.bincount(labels).to(torch.float64)[labels]
    return torch.multinomial(weights, batch, replacement=True, generator=draws)
