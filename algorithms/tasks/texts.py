"""Text classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from algorithms.core import settings
from algorithms.core.classification import Classification, classes_of, has_label, no_labels
from algorithms.core.columns import ASKED, Columns, Roles, contents_of, full_column, only_column
from algorithms.core.settings import setting
from algorithms.core.task import LABEL, PreparedTask, Shard
from algorithms.nets.forms import Inputs, Texts
from algorithms.tasks._tokens import FIRST, UNKNOWN, codes_of, encode_tokens, most_frequent, note_unknown, words_of

TEXT = "text"
"""Role of the column of texts."""

IDS, LENGTH = "ids", "length"
"""Names of the columns of token numbers, int32 (N, length), 0 after a text's end, and of lengths, int32 (N,)."""


@dataclass(frozen=True)
class TextTask(Classification):
    """Text classification: the words at the beginning of a text, as numbers.

    A text without words is one unknown word.

    Attributes:
        words: the vocabulary, whose first word has the number 2; 1 is a word outside it.
        length: words of a text that are read.
    """

    title: ClassVar[str] = "text classification"

    @dataclass(frozen=True, kw_only=True)
    class Settings(settings.Config):
        vocabulary: int = setting(10_000, "different words that are told apart, the most frequent of training", ge=1)
        length: int = setting(64, "words of a text that are read, from its beginning", ge=1)

    words: tuple[str, ...]
    length: int

    @classmethod
    def fits(cls, columns: Columns, roles: Roles) -> bool:
        return contents_of(columns, roles) == ["text"] and has_label(columns, roles)

    @classmethod
    def prepare(cls, train: Columns, test: Columns, roles: Roles, settings: Any) -> PreparedTask:
        name = only_column(train, roles, TEXT, ("text",))
        names, labels, test_labels = classes_of(train, test, roles)
        texts, test_texts = (
            [words_of(text) for text in full_column(half, name, TEXT, "text", word).values]
            for half, word in ((train, "training"), (test, "test"))
        )
        task = cls(names, most_frequent(texts, settings.vocabulary), settings.length)
        codes = codes_of(task.words)
        train_words, test_words = (first_words(some, codes, task.length) for some in (texts, test_texts))
        return PreparedTask(
            task,
            train={**train_words, LABEL: labels},
            test={**test_words, LABEL: test_labels},
            facts=note_unknown(test_words[IDS]),
        )

    def question(self, columns: Columns, roles: Roles) -> Mapping[str, np.ndarray]:
        name = only_column(columns, roles, TEXT, ("text",))
        texts = [words_of(text) for text in full_column(columns, name, TEXT, "text", ASKED).values]
        return {**first_words(texts, codes_of(self.words), self.length), LABEL: no_labels(len(texts))}

    @property
    def form(self) -> Texts:
        return Texts(FIRST + len(self.words), self.length)

    def batch(
        self,
        shard: Shard,
        picks: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Inputs, Tensor]:
        """`ids`, int64 (B, length), and `length`, int64 (B,); and classes, int64 (B,). Nothing is drawn."""
        rows = shard.rows[picks]
        inputs = {name: shard.columns[name][rows].to(device).long() for name in (IDS, LENGTH)}
        return inputs, shard.columns[LABEL][rows].to(device)


def first_words(texts: Sequence[Sequence[str]], codes: Mapping[str, int], length: int) -> dict[str, np.ndarray]:
    """The columns `IDS` and `LENGTH` of texts in words."""
    ids = np.zeros((len(texts), length), dtype=np.int32)
    lengths = np.ones(len(texts), dtype=np.int32)
    ids[:, 0] = UNKNOWN
    for row, words in enumerate(texts):
        read = encode_tokens(words[:length], codes)
        if len(read):
            ids[row, : len(read)], lengths[row] = read, len(read)
    return {IDS: ids, LENGTH: lengths}
