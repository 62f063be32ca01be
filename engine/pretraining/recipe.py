"""Recipes: how much each tiny language model learns from, and how."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from algorithms.nets import byte_pairs
from algorithms.nets.language_models import TINY_MODELS
from engine.pretraining.lessons import sample


@dataclass(frozen=True)
class Recipe:
    """Pre-training with AdamW, whose rate rises over `warmup` steps and then falls along a cosine.

    Attributes:
        steps: batches at most.
        batch: tokens of one, padding included.
        pairs: prompts with answers that there are to learn from; see `engine.data.instructions`.
        rate, last_rate: of learning, after the warm-up and in the last step.
        decay: of matrices; vectors have none.
        clip: largest norm of a step's gradient.
        check: steps between two looks at the validation loss.
        threads: of torch; a model of nano's size is no quicker with several.
        patience: looks without a new best one, after which it ends.
    """

    steps: int
    batch: int
    pairs: int
    rate: float = 3e-3
    last_rate: float = 3e-4
    warmup: int = 100
    decay: float = 0.1
    clip: float = 1.0
    check: int = 200
    patience: int = 8
    threads: int = 1

    def rate_at(self, step: int) -> float:
        """The rate of a step, from 0."""
        way = min(1.0, step / max(1, self.steps - 1))
        falling = self.last_rate + (self.rate - self.last_rate) * (1 + math.cos(math.pi * way)) / 2
        return falling * min(1.0, (step + 1) / self.warmup)


RECIPES: Mapping[str, Recipe] = {
    "llama-nano": Recipe(steps=4000, batch=2048, pairs=40_000),
    "gpt2-nano": Recipe(steps=4000, batch=2048, pairs=40_000),
    "llama-micro": Recipe(steps=4000, batch=4096, pairs=100_000, threads=2),
    "llama-mini": Recipe(steps=10_000, batch=8192, pairs=400_000, threads=2),
}
"""By the names of `TINY_MODELS`."""


def fingerprint(name: str, recipe: Recipe, seed: int) -> str:
    """16 hexadecimal digits for all that makes a model: its shape, the recipe, the seed, and texts and code as they
    are now, so that no model of an earlier version is taken for one of this."""
    made_of = [dataclasses.asdict(TINY_MODELS[name]), dataclasses.asdict(recipe), seed, sample(seed)]
    code = b"".join(path.read_bytes() for path in _CODE)
    return hashlib.sha256(json.dumps(made_of).encode() + code).hexdigest()[:16]


_CODE = (
    Path(byte_pairs.__file__),
    *(Path(__file__).with_name(f"{name}.py") for name in ("examples", "learning", "lessons", "making")),
)
"""The files that decide what a model becomes: its tokenizer, its batches and its learning."""
