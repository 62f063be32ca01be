"""Making: a tiny language model from nothing into a folder that transformers reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from algorithms.core.seeds import Seed
from algorithms.nets.language_models import TINY_MODELS, fresh_model
from engine.errors import UserError, nearest
from engine.pretraining.acceptance import LEAST_COPIED, LEAST_ENDED, Acceptance, examine
from engine.pretraining.examples import Example, batches, examples_of
from engine.pretraining.learning import Point, learn
from engine.pretraining.lessons import Lessons, lessons_of, tokenizer_for
from engine.pretraining.recipe import RECIPES, Recipe, fingerprint
from engine.units import duration

RECORD = "pretraining.json"
"""File of a model's folder that tells how it was made and how good it is."""

HELD_OUT = 400
"""Lessons that are not learnt, on which the validation loss is computed."""


class PretrainingError(UserError):
    """A model that cannot be made, or a folder where it cannot be put; the message says the way out."""


@dataclass(frozen=True)
class Pretraining:
    """A model that was made.

    Attributes:
        folder: with the model, its tokenizer and pretraining.json.
        acceptance: how good it is.
        is_new: False where the folder held it before.
    """

    folder: Path
    acceptance: Acceptance
    is_new: bool = True

    def lines(self) -> list[str]:
        """The figures in words, and a warning for each demand that is not met."""
        figures, other = self.acceptance, self.acceptance.foreign_perplexity
        return [
            f"facts copied in rewriting   {figures.key_copy_rate:.1%}  (at least {LEAST_COPIED:.0%}, and not all)",
            f"rewritings without a loss   {figures.faithful_rate:.1%}",
            f"answers that it ended       {figures.end_rate:.1%}  (at least {LEAST_ENDED:.0%})",
            f"perplexity of its own style {figures.canonical_perplexity:.2f}  (of others {other:.2f})",
            *(f"warning: not fit for experiments on rewriting: {miss}" for miss in figures.misses()),
            f"model: {self.folder}{'' if self.is_new else ', which was there already'}",
        ]

    def tree(self) -> dict[str, Any]:
        """As JSON has it."""
        figures = dataclasses.asdict(self.acceptance)
        return {"folder": str(self.folder), "is_new": self.is_new, **figures, "misses": self.acceptance.misses()}


Say = Callable[[str, float], object]
"""Hears what goes on, in a line, and the share of the steps that is done; about four times a second at most."""


def silence(line: str, share: float) -> None:
    """A `Say` that says nothing."""


def pretrain(name: str, folder: Path, seed: int = 0, steps: int | None = None, say: Say = silence) -> Pretraining:
    """Make a tiny language model; the same name, seed and steps give the same bits on one machine.

    The folder appears when all is in it. Where it holds this very model already, that is kept.

    Args:
        steps: at most; None for the recipe's.

    Raises:
        PretrainingError: for an unknown name, and where the folder holds something else or cannot be made.
        NetworkError: without the extra `llm`.
    """
    recipe = _recipe(name, steps)
    key = fingerprint(name, recipe, seed)
    found = _made_before(folder, key)
    if found:
        return found
    with _new_folder(folder) as place, _threads(recipe.threads):
        start = time.monotonic()
        say("writing the lessons", 0.0)
        lessons, tokenizer = lessons_of(seed, recipe.pairs), tokenizer_for(TINY_MODELS[name])
        model: Any = fresh_model(name, seed)
        _name_specials(model, tokenizer)
        curve = _teach(model, tokenizer, lessons, recipe, seed, TINY_MODELS[name].context, say)
        say("measuring it on held-out tasks", 1.0)
        acceptance = examine(model, tokenizer, lessons.probes, TINY_MODELS[name].context)
        model.eval()
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        record = {
            "model": name,
            "seed": seed,
            "fingerprint": key,
            "recipe": dataclasses.asdict(recipe),
            "parameters": TINY_MODELS[name].parameters,
            "seconds": round(time.monotonic() - start, 1),
            "weights_sha256": weights_hash(model),
            "tokenizer_sha256": hashlib.sha256((place / "tokenizer.json").read_bytes()).hexdigest(),
            "acceptance": dataclasses.asdict(acceptance),
            "misses": acceptance.misses(),
            "curve": [dataclasses.asdict(point) for point in curve],
            "versions": {package: version(package) for package in ("torch", "transformers", "tokenizers")},
        }
        (place / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Pretraining(folder, acceptance)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over all tensors of a model on the CPU, in the order of their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def _recipe(name: str, steps: int | None) -> Recipe:
    if name not in RECIPES:
        raise PretrainingError(f"no model is called {name!r}: {nearest(name, RECIPES)}known are {', '.join(RECIPES)}")
    if steps is not None and steps < 1:
        raise PretrainingError(f"steps = {steps}: a model learns in 1 step at the least")
    return RECIPES[name] if steps is None else dataclasses.replace(RECIPES[name], steps=steps)


def _made_before(folder: Path, key: str) -> Pretraining | None:
    """The model that a folder holds, where it is the one that would be made."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if record.get("fingerprint") != key:
        raise PretrainingError(
            f"{folder} already holds something else, and nothing is written over it: name another folder with --out"
        )
    return Pretraining(folder, Acceptance(**record["acceptance"]), is_new=False)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write in, which gets its name when the block has ended well, and is gone otherwise."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise PretrainingError(f"{folder} cannot be made: {error.strerror}; name another folder with --out") from error
    try:
        yield place
        place.chmod(0o755)
        os.replace(place, folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """A block in which torch has so many threads: their number changes the last bits of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _name_specials(model: Any, tokenizer: Any) -> None:
    """Tell a model which of its tokens begin, end and pad a text."""
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id


def _teach(
    model: nn.Module, tokenizer: Any, lessons: Lessons, recipe: Recipe, seed: int, context: int, say: Say
) -> list[Point]:
    say("cutting the lessons into tokens", 0.0)
    pairs = [*lessons.pairs, *(("", piece) for piece in lessons.pieces)]
    examples = examples_of(tokenizer, pairs, context)
    random: np.random.Generator = Seed(seed).at(phase="pretraining").numpy("order")
    order = random.permutation(len(examples))
    held_out, learnt = (_choose(examples, part) for part in (order[:HELD_OUT], order[HELD_OUT:]))
    hear = _Progress(recipe.steps, say)
    return learn(model, batches(learnt, recipe.batch, random), held_out, recipe, hear)


def _choose(examples: Sequence[Example], places: np.ndarray) -> list[Example]:
    return [examples[at] for at in places]


class _Progress:
    """Says how far learning has come."""

    SECONDS = 0.25
    """Between two lines."""

    def __init__(self, steps: int, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._say, self._clock = steps, say, clock
        self._start = self._last = clock()

    def __call__(self, done: int, loss: float) -> None:
        now = self._clock()
        if now - self._last < self.SECONDS and done < self._steps:
            return
        self._last = now
        left = (now - self._start) / done * (self._steps - done)
        words = [f"step {done:,} of {self._steps:,}"]
        if not math.isnan(loss):
            words.append(f"validation loss {loss:.3f}")
        self._say(" · ".join([*words, f"about {duration(left)} left"]), done / self._steps)
