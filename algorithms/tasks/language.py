"""Language modelling: the next character, word or byte of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from algorithms.core import settings
from algorithms.core.classification import has_label
from algorithms.core.columns import ASKED, ColumnError, Columns, Roles, contents_of, full_column, only_column
from algorithms.core.settings import setting
from algorithms.core.task import PreparedTask, Shard, Trait
from algorithms.nets.forms import Inputs, Sequences
from algorithms.tasks._next_token import NO_TARGET, NextToken
from algorithms.tasks._tokens import FIRST, PADDING, codes_of, encode_tokens, most_frequent, note_unknown, words_of

TEXT = "text"
"""Role of the column of texts."""

TOKENS = "tokens"
"""Name of the column of windows, int32 (N, length + 1): token numbers, 0 after a text's end."""

Tokens: TypeAlias = Literal["characters", "words", "bytes"]

_SPLITTERS: dict[str, Callable[[str], Sequence[str]]] = {
    "characters": str,
    "words": words_of,
    "bytes": lambda text: text.encode().decode("latin-1"),
}
"""A text to its tokens, by their kind; a byte is the character of its number."""


@dataclass(frozen=True)
class LanguageTask(NextToken):
    """Language modelling: what comes next, at every place of a text.

    Each text is cut into windows of `length` + 1 tokens, each of which begins with the last token of the one before, so
    that every token but a text's first is to be predicted once. A window is an example: a row of the data set becomes
    several, and one with fewer than two tokens none. A token outside the vocabulary is the token 1, to be predicted as
    any other.

    Attributes:
        vocabulary: tokens, the first of which has the number 2.
        length: tokens that a network reads at once.
    """

    title: ClassVar[str] = "language modelling"
    traits: ClassVar[frozenset[Trait]] = frozenset({"language"})

    @dataclass(frozen=True, kw_only=True)
    class Settings(settings.Config):
        tokens: Tokens = setting("characters", "what a text is cut into")
        length: int = setting(80, "tokens that are read at once", ge=1)
        vocabulary: int = setting(
            2_000, "different characters or words that are told apart, the most frequent of training", ge=1
        )

    vocabulary: tuple[str, ...]
    length: int
    tokens: Tokens = "characters"

    @classmethod
    def fits(cls, columns: Columns, roles: Roles) -> bool:
        return contents_of(columns, roles) == ["text"] and not has_label(columns, roles)

    @classmethod
    def prepare(cls, train: Columns, test: Columns, roles: Roles, settings: Any) -> PreparedTask:
        name = only_column(train, roles, TEXT, ("text",))
        split = _SPLITTERS[settings.tokens]
        texts, test_texts = (
            [split(text) for text in full_column(half, name, TEXT, "text", word).values]
            for half, word in ((train, "training"), (test, "test"))
        )
        every_byte = tuple(map(chr, range(256)))
        vocabulary = every_byte if settings.tokens == "bytes" else most_frequent(texts, settings.vocabulary)
        codes = codes_of(vocabulary)
        found = []
        for half, tokens in (("training", texts), ("test", test_texts)):
            windows = [cut_windows(encode_tokens(one, codes), settings.length) for one in tokens]
            if not sum(map(len, windows)):
                problem = f"no {half} row has two {settings.tokens} in column {name!r}, of which one follows the other"
                raise ColumnError(TEXT, problem, "give longer texts")
            found.append(windows)
        rows = np.repeat(np.arange(len(texts)), [len(windows) for windows in found[0]])
        joined = [np.concatenate(windows) for windows in found]
        task, facts = cls(vocabulary, settings.length, settings.tokens), note_unknown(joined[1])
        return PreparedTask(task, {TOKENS: joined[0]}, {TOKENS: joined[1]}, rows, facts)

    def question(self, columns: Columns, roles: Roles) -> Mapping[str, np.ndarray]:
        """The last tokens of each text, as many as are read at once, in a window of its own."""
        name = only_column(columns, roles, TEXT, ("text",))
        texts = full_column(columns, name, TEXT, "text", ASKED).values
        codes, split = codes_of(self.vocabulary), _SPLITTERS[self.tokens]
        windows = np.full((len(texts), self.length + 1), PADDING, dtype=np.int32)
        for row, text in enumerate(texts):
            last = encode_tokens(split(text)[-self.length :], codes)
            if not len(last):
                raise ColumnError(TEXT, f"{ASKED} row {row} has no {self.tokens}", "leave it out")
            windows[row, : len(last)] = last
        return {TOKENS: windows}

    def answers(self, outputs: Tensor, inputs: Inputs) -> dict[str, np.ndarray]:
        """`next`, the token of the vocabulary that most likely follows each text, object (B,); and `probability`, its
        softmax among all tokens, float32."""
        assert isinstance(inputs, Tensor)
        places = (inputs != PADDING).sum(1) - 1
        shares = outputs[torch.arange(len(outputs)), places].float().softmax(1).cpu()[:, FIRST:]
        best = shares.max(1)
        following = np.array(self.vocabulary, dtype=object)[best.indices.numpy()]
        return {"next": following, "probability": best.values.numpy()}

    @property
    def form(self) -> Sequences:
        return Sequences(self.outputs, self.length)

    @property
    def outputs(self) -> int:
        """Tokens, padding and the unknown one among them."""
        return FIRST + len(self.vocabulary)

    def batch(
        self,
        shard: Shard,
        picks: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Inputs, Tensor]:
        """Tokens, int64 (B, length), and those that come next, alike, `NO_TARGET` after the end. Nothing is drawn."""
        windows = shard.columns[TOKENS][shard.rows[picks]].to(device).long()
        following = windows[:, 1:]
        return windows[:, :-1].contiguous(), following.masked_fill(following == PADDING, NO_TARGET)


def cut_windows(tokens: np.ndarray, length: int) -> np.ndarray:
    """int32 (n, length + 1): the windows of a text of token numbers (T,), each beginning with the last token of the one
    before; n = ceil((T - 1) / length)."""
    count = max(0, -(-(len(tokens) - 1) // length))
    padded = np.full(max(count, 1) * length + 1, PADDING, dtype=np.int32)
    padded[: len(tokens)] = tokens
    return np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::length][:count]
