"""Acceptance: whether a pre-trained model is fit for experiments on rewriting, measured on held-out tasks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.pretraining.examples import examples_of
from engine.pretraining.learning import mean_nll
from engine.pretraining.lessons import Probe

LEAST_COPIED = 0.8
LEAST_ENDED = 0.95
MOST_CANONICAL = 0.8
"""The perplexity of canonical answers is at most this share of that of foreign ones."""

ROOM = 72
"""Tokens that an answer may have."""

TOGETHER = 50
"""Prompts in one batch of generation."""


@dataclass(frozen=True)
class Acceptance:
    """Figures of a model on held-out tasks.

    Attributes:
        key_copy_rate: share of the references' facts, such as a number or a name, that its rewritings hold.
        faithful_rate: share of rewritings that hold all facts of their reference.
        end_rate: share of rewritings that it ended by itself.
        canonical_perplexity: of answers to tasks, a token, in the style that it was taught.
        foreign_perplexity: of the same answers in other styles.
    """

    key_copy_rate: float
    faithful_rate: float
    end_rate: float
    canonical_perplexity: float
    foreign_perplexity: float

    def misses(self) -> list[str]:
        """A sentence for each demand that the model does not meet; [] where it is fit."""
        found = []
        if self.key_copy_rate < LEAST_COPIED:
            found.append(f"it copies {self.key_copy_rate:.1%} of the facts that it rewrites, not {LEAST_COPIED:.0%}")
        if self.key_copy_rate >= 1:
            found.append("it copies every fact, so that errors of rewriting cannot be seen")
        if self.end_rate < LEAST_ENDED:
            found.append(f"it ends {self.end_rate:.1%} of its answers, not {LEAST_ENDED:.0%}")
        if self.canonical_perplexity > MOST_CANONICAL * self.foreign_perplexity:
            found.append("answers in the style that it was taught are hardly likelier to it than those in others")
        return found


def examine(model: Any, tokenizer: Any, probes: Sequence[Probe], context: int) -> Acceptance:
    """Measure a model; greedy generation in batches."""
    model.eval()
    written = rewritings(model, tokenizer, probes)
    copied = [[holds(text, value) for value in probe.key] for probe, (text, _) in zip(probes, written, strict=True)]
    canonical, foreign = (
        math.exp(mean_nll(model, examples_of(tokenizer, pairs, context)))
        for pairs in (
            [(probe.task, probe.canonical) for probe in probes],
            [(probe.task, probe.foreign) for probe in probes],
        )
    )
    return Acceptance(
        key_copy_rate=sum(map(sum, copied)) / sum(map(len, copied)),
        faithful_rate=sum(map(all, copied)) / len(copied),
        end_rate=sum(has_ended for _, has_ended in written) / len(written),
        canonical_perplexity=canonical,
        foreign_perplexity=foreign,
    )


@torch.no_grad()
def rewritings(model: Any, tokenizer: Any, probes: Sequence[Probe]) -> list[tuple[str, bool]]:
    """A model's own version of each foreign answer, and whether it ended it by itself."""
    prompts = [
        [tokenizer.bos_token_id, *tokenizer(probe.request, add_special_tokens=False)["input_ids"]] for probe in probes
    ]
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    found: dict[int, tuple[str, bool]] = {}
    for start in range(0, len(order), TOGETHER):
        chosen = order[start : start + TOGETHER]
        answers = _generate(model, tokenizer, [prompts[at] for at in chosen])
        found |= {at: _text(tokenizer, answer) for at, answer in zip(chosen, answers, strict=True)}
    return [found[at] for at in range(len(prompts))]


def _generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tokens after each prompt; prompts are padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    whole = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=ROOM,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers: list[list[int]] = whole[:, longest:].tolist()
    return answers


def _text(tokenizer: Any, ids: Sequence[int]) -> tuple[str, bool]:
    has_ended = tokenizer.eos_token_id in ids
    kept = ids[: list(ids).index(tokenizer.eos_token_id)] if has_ended else ids
    return tokenizer.decode(kept, skip_special_tokens=True), has_ended


def holds(text: str, value: str) -> bool:
    """Whether a text holds a value as words and numbers of its own."""
    return f" {_words_of(value)} " in f" {_words_of(text)} "


def _words_of(text: str) -> str:
    return " ".join(re.findall(r"-?\d+(?:\.\d+)?|\w+", text.lower()))
