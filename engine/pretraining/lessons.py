"""Lessons: what a tiny language model learns from, and what is held out to see how far it got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from algorithms.core.prompts import rewriting_prompt, stepwise_prompt, task_prompt
from algorithms.nets.byte_pairs import byte_pair_tokenizer
from algorithms.nets.language_models import TinyModel
from engine.data.instructions import arithmetic, code
from engine.data.instructions.corpus import acceptance_rows, pretraining_texts

PROBES = 200
"""Held-out tasks on which a finished model is measured."""

TOKENIZER_PAIRS = 10_000
"""Pairs of seed 0 that every tokenizer is trained on, whatever the model's seed: models of one vocabulary share it."""


@dataclass(frozen=True)
class Probe:
    """A held-out task, whose facts are in no lesson.

    Attributes:
        task: its prompt.
        request: the prompt for a rewriting of `foreign`.
        key: values that a right answer holds.
        canonical: the answer in the style that is taught.
        foreign: the same facts in another style.
    """

    task: str
    request: str
    key: tuple[str, ...]
    canonical: str
    foreign: str


@dataclass(frozen=True)
class Lessons:
    """
    Attributes:
        pairs: prompts and answers, of which the answers are learnt.
        pieces: plain texts, of which all is learnt.
        probes: see `Probe`.
    """

    pairs: Sequence[tuple[str, str]]
    pieces: Sequence[str]
    probes: Sequence[Probe]


def lessons_of(seed: int, pairs: int) -> Lessons:
    """The lessons of a seed; half of the pairs are tasks, half are rewriting."""
    corpus = pretraining_texts(seed, pairs)
    return Lessons(corpus.pairs, corpus.texts, tuple(_probe(row) for row in acceptance_rows(seed, PROBES)))


def _probe(row: Any) -> Probe:
    item = row.item
    request = stepwise_prompt if item.domain in (arithmetic.DOMAIN, code.DOMAIN) else rewriting_prompt
    return Probe(
        task_prompt(item.instruction), request(item.instruction, row.answer), item.key, row.canonical, row.answer
    )


def tokenizer_for(model: TinyModel) -> Any:
    """The tokenizer of a model's vocabulary and context."""
    corpus = pretraining_texts(0, TOKENIZER_PAIRS)
    texts = [*(text for pair in corpus.pairs for text in pair), *corpus.texts]
    return byte_pair_tokenizer(texts, model.vocabulary, model.context)


def sample(seed: int) -> list[list[str]]:
    """The first lessons of a seed, which tell when the makers of texts have changed."""
    return [list(pair) for pair in pretraining_texts(seed, 40).pairs]
