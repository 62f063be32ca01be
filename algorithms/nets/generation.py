"""Answers that a language model writes freely: in batches of prompts of like length, the same for any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Writer(Protocol):
    """A module that writes texts, as `algorithms.nets.adapters.AdaptedModel`.

    Attributes:
        base: a causal model of transformers, with whatever the module adds to it.
        tokenizer: of that model.
    """

    @property
    def base(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    def answer_scope(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        """A block in which `base` is about to answer these prompts, a row each."""
        ...

    def eval(self) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class Answer:
    """A text that a model wrote after a prompt.

    Attributes:
        ids: tokens, without that of the end.
        is_finished: whether the model ended it by itself.
    """

    ids: tuple[int, ...]
    is_finished: bool


@dataclass(frozen=True)
class Sampling:
    """Random choice of tokens.

    Attributes:
        temperature: by which logits are divided, above 0.
        top_p: share of the probability in (0, 1] that the likeliest tokens, which alone are chosen from, must have.
    """

    temperature: float = 0.7
    top_p: float = 0.9


@torch.no_grad()
def generate(
    model: Writer,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    batch: int = 32,
    sampling: Sampling | None = None,
    seeds: Sequence[int] = (),
    done: Callable[[int], None] | None = None,
) -> list[Answer]:
    """An answer to each prompt, in their order; the model is put in eval mode.

    Args:
        most: tokens that each answer may have at the most; below 1 it has none.
        batch: prompts at a time, sorted by length.
        sampling: None takes the likeliest token each time.
        seeds: of sampling, one for each prompt.
        done: hears how many prompts are answered.
    """
    model.eval()
    found: list[Answer] = [Answer((), False)] * len(prompts)
    order = sorted((n for n in range(len(prompts)) if most[n] > 0), key=lambda n: (len(prompts[n]), most[n], n))
    size = batch if sampling is None else 1  # a draw of one prompt must not depend on its neighbours
    for first in range(0, len(order), size):
        places = order[first : first + size]
        answers = _answers(model, [prompts[n] for n in places], max(most[n] for n in places), sampling, seeds, places)
        for n, ids in zip(places, answers, strict=True):
            found[n] = _answer_of(ids[: most[n]], model.tokenizer.eos_token_id)
        if done:
            done(first + len(places))
    return found


def _answers(
    model: Writer,
    prompts: Sequence[Sequence[int]],
    most: int,
    sampling: Sampling | None,
    seeds: Sequence[int],
    places: Sequence[int],
) -> list[list[int]]:
    """Tokens after each of some prompts, which are padded on the left."""
    longest = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    tokenizer, chosen = model.tokenizer, {}
    if sampling is not None:
        torch.manual_seed(seeds[places[0]])
        chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    with model.answer_scope(prompts):
        whole = model.base.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=most,
            do_sample=sampling is not None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **chosen,
        )
    answers: list[list[int]] = whole[:, longest:].tolist()
    return answers


def _answer_of(ids: Sequence[int], end: int) -> Answer:
    is_finished = end in ids
    return Answer(tuple(ids[: list(ids).index(end)] if is_finished else ids), is_finished)
