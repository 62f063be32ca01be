"""Distances between the texts of clients, and the marks that rewriting leaves on a text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np

Tokens: TypeAlias = Callable[[str], Sequence[Hashable]]
"""A text to its tokens, such as a tokenizer's numbers."""

FILLERS = (
    "of course",
    "you know",
    "you see",
    "let me see",
    "hope this helps",
    "basically",
    "actually",
    "certainly",
    "simply",
    "really",
    "just",
    "well",
    "sure",
    "please",
)
"""Words and phrases that carry no fact."""

_FILLER = re.compile(rf"\b({'|'.join(FILLERS)})\b")


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, numbers among them, without marks."""
    return re.findall(r"\w+", text.lower())


# Between clients


def unigrams(texts: Sequence[str], tokens: Tokens = words_of) -> dict[Hashable, float]:
    """The share of each token among all tokens of some texts; they sum to 1.

    Raises:
        ValueError: there is no token.
    """
    counts = Counter(token for text in texts for token in tokens(text))
    if not counts:
        raise ValueError("texts without a token have no distribution")
    return {token: count / counts.total() for token, count in counts.items()}


def divergence(p: Mapping[Hashable, float], q: Mapping[Hashable, float]) -> float:
    """Jensen-Shannon divergence of two distributions in bits, in [0, 1]: KL(p || m) / 2 + KL(q || m) / 2, where m is
    their mean (Lin, 1991)."""
    keys = sorted(p.keys() | q.keys(), key=repr)
    first, second = (np.array([shares.get(key, 0.0) for key in keys]) for shares in (p, q))
    mean = (first + second) / 2
    return float(sum(_relative_entropy(shares, mean) for shares in (first, second)) / 2)


def _relative_entropy(shares: np.ndarray, other: np.ndarray) -> float:
    held = shares > 0
    return float((shares[held] * np.log2(shares[held] / other[held])).sum())


def mean_divergence(clients: Sequence[Sequence[str]], tokens: Tokens = words_of) -> float:
    """Jensen-Shannon divergence of the tokens of two clients' texts, the mean over all pairs; NaN for one client."""
    shares = [unigrams(texts, tokens) for texts in clients]
    return _mean([divergence(p, q) for p, q in combinations(shares, 2)])


def mean_cosine(clients: Sequence[Sequence[str]]) -> float:
    """Cosine of the TF-IDF vectors of two clients' texts, each client's joined to one document, the mean over all
    pairs; NaN for one client.

    Raises:
        ValueError: there is no word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second and more, which nothing else here needs

    documents = [" ".join(texts) for texts in clients]
    vectors = TfidfVectorizer(token_pattern=r"(?u)\w+").fit_transform(documents).toarray()
    return _mean([float(a @ b) for a, b in combinations(vectors, 2)])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


# Of texts


def repetition(text: str, length: int = 3) -> float:
    """The share of a text's words in a row, so many at a time, that it has had before; 0 for shorter texts."""
    words = words_of(text)
    grams = [tuple(words[place : place + length]) for place in range(len(words) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def fillers_per_100(texts: Sequence[str]) -> float:
    """Words and phrases of `FILLERS` for every 100 words of some texts; 0 for texts without a word."""
    words = sum(len(words_of(text)) for text in texts)
    return 100 * sum(len(_FILLER.findall(text.lower())) for text in texts) / words if words else 0.0


@dataclass(frozen=True)
class Ratios:
    """Words of a rewrite for each word of its reference: the median, and 10 and 90 percent of the way."""

    low: float
    median: float
    high: float


def length_ratios(references: Sequence[str], rewrites: Sequence[str]) -> Ratios:
    """Ratios of lengths in words; a reference without a word counts as one of one word.

    Raises:
        ValueError: there is none.
    """
    pairs = zip(references, rewrites, strict=True)
    ratios = [len(words_of(rewrite)) / max(1, len(words_of(reference))) for reference, rewrite in pairs]
    if not ratios:
        raise ValueError("no rewrite, and so no ratio of lengths")
    low, median, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    return Ratios(float(low), float(median), float(high))
