"""Tokens of texts, and their numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

PADDING, UNKNOWN, FIRST = 0, 1, 2
"""Numbers of what stands where a text has ended, of a token outside the vocabulary, and of its first token."""

_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case (letters, digits and underscores, with one apostrophe inside), and each sign
    between them by itself: `\\w+(?:'\\w+)?|[^\\w\\s]`."""
    return _WORD.findall(text.lower())


def most_frequent(texts: Iterable[Iterable[str]], most: int) -> tuple[str, ...]:
    """At most so many different tokens, the most frequent first, those as frequent in the order of their letters."""
    counts: Counter[str] = Counter()
    for tokens in texts:
        counts.update(tokens)
    return tuple(sorted(counts, key=lambda token: (-counts[token], token))[:most])


def codes_of(vocabulary: Sequence[str]) -> dict[str, int]:
    """The number of each token of a vocabulary, from `FIRST`."""
    return {token: number for number, token in enumerate(vocabulary, FIRST)}


def note_unknown(test: np.ndarray) -> tuple[str, ...]:
    """A note for people where more than a tenth of the tokens of the test rows, int (N, length), are outside the
    vocabulary; none otherwise."""
    share = float((test == UNKNOWN).sum() / (test != PADDING).sum())
    return (f"{share:.0%} of the tokens in test rows are outside the vocabulary",) if share > 0.1 else ()


def encode_tokens(tokens: Iterable[str], codes: Mapping[str, int]) -> np.ndarray:
    """int32 (n,): the numbers of tokens, `UNKNOWN` outside the vocabulary."""
    return np.array([codes.get(token, UNKNOWN) for token in tokens], dtype=np.int32)
