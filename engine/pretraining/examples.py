"""Examples: lessons as numbers of tokens, in batches of like length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

POOL = 2048
"""Examples that are sorted by length at a time, so that batches have little padding and yet are of all kinds."""


@dataclass(frozen=True)
class Example:
    """
    Attributes:
        ids: tokens, from that of the begin to that of the end.
        first: the place of the first one that is learnt, at least 1.
    """

    ids: tuple[int, ...]
    first: int


def examples_of(tokenizer: Any, pairs: Iterable[tuple[str, str]], context: int) -> list[Example]:
    """Prompts and answers, cut into tokens apart; those that are longer than the context are left out."""
    pairs = list(pairs)
    prompts, answers = (_ids_of(tokenizer, [pair[part] for pair in pairs]) for part in (0, 1))
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    examples = [
        Example((begin, *prompt, *answer, end), 1 + len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return [example for example in examples if len(example.ids) <= context]


def _ids_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def batches(examples: Sequence[Example], size: int, random: np.random.Generator) -> Iterator[list[Example]]:
    """Batches without end, each of at most `size` tokens with padding, one example at the least.

    Every pass over the examples has an order of its own.
    """
    while True:
        order = random.permutation(len(examples))
        for start in range(0, len(order), POOL):
            pool = sorted((examples[at] for at in order[start : start + POOL]), key=lambda example: len(example.ids))
            cut = list(_cut(pool, size))
            yield from (cut[at] for at in random.permutation(len(cut)))


def _cut(pool: Sequence[Example], size: int) -> Iterator[list[Example]]:
    """Neighbours together, as many as `size` allows."""
    batch: list[Example] = []
    for example in pool:
        if batch and (len(batch) + 1) * len(example.ids) > size:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def tensors(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """int64 ids (B, T), 0 after an end; and bool (B, T), True at the places that are learnt."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    learnt = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        learnt[row, example.first : len(example.ids)] = True
    return ids, learnt
