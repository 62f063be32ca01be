"""Learning: the loop of pre-training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.pretraining.examples import Example, tensors
from engine.pretraining.recipe import Recipe

TOGETHER = 64
"""Held-out examples in one forward pass."""


@dataclass(frozen=True)
class Point:
    """A point of the learning curve: both losses in nats a token, the training one as a mean since the point before."""

    step: int
    training_loss: float
    validation_loss: float


Hear = Callable[[int, float], object]
"""Hears after each step how many are done, and the last validation loss, NaN before the first."""


def learn(
    model: nn.Module,
    batches: Iterator[Sequence[Example]],
    held_out: Sequence[Example],
    recipe: Recipe,
    hear: Hear,
) -> list[Point]:
    """Train a model in place, until the steps are through or the validation loss gets no better; it ends with the
    parameters that had the best one. Returns the curve."""
    optimiser = torch.optim.AdamW(_groups(model, recipe.decay), lr=recipe.rate, betas=(0.9, 0.95), fused=True)
    curve: list[Point] = []
    best, state, losses = float("inf"), copy.deepcopy(model.state_dict()), []
    for step, batch in enumerate(islice(batches, recipe.steps)):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        losses.append(_step(model, batch, optimiser, recipe.clip))
        if (step + 1) % recipe.check == 0 or step + 1 == recipe.steps:
            curve.append(Point(step + 1, sum(losses) / len(losses), mean_nll(model, held_out)))
            losses = []
            if curve[-1].validation_loss < best:
                best, state = curve[-1].validation_loss, copy.deepcopy(model.state_dict())
        hear(step + 1, curve[-1].validation_loss if curve else float("nan"))
        if _has_stalled(curve, recipe.patience):
            break
    model.load_state_dict(state)
    return curve


def _has_stalled(curve: Sequence[Point], patience: int) -> bool:
    losses = [point.validation_loss for point in curve]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, and vectors without."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _step(model: nn.Module, batch: Sequence[Example], optimiser: torch.optim.Optimizer, clip: float) -> float:
    loss = nlls(model, batch).mean()
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return loss.item()


def nlls(model: Any, batch: Sequence[Example]) -> Tensor:
    """float (n,): the cross-entropy in nats of each token that is learnt.

    Padding stands after the ends and is seen from nowhere before. Logits are computed at the learnt places alone.
    """
    ids, learnt = tensors(batch)
    hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[learnt[:, 1:]])
    return F.cross_entropy(logits, ids[:, 1:][learnt[:, 1:]], reduction="none")


@torch.no_grad()
def mean_nll(model: nn.Module, examples: Sequence[Example]) -> float:
    """Nats a token, over all tokens that would be learnt."""
    ordered = sorted(examples, key=lambda example: len(example.ids))
    model.eval()
    found = torch.cat([nlls(model, ordered[at : at + TOGETHER]) for at in range(0, len(ordered), TOGETHER)])
    model.train()
    return float(found.double().mean())
