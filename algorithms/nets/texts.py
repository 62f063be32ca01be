"""Networks for texts: token ids and lengths to one answer each. What stands after a text's end changes nothing.

Every one begins with an embedding of each token and ends in a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.nets.attention import Block, positions
from algorithms.nets.classifier import Classifier
from algorithms.nets.forms import Texts
from algorithms.nets.width import HiddenEmbedding, narrow

SIZE = 64
"""Entries of a token's embedding, and of what recurrences and attention pass on."""

WINDOWS = (3, 4, 5)

FILTERS = 32
"""Filters of each window."""


def _mask(texts: Mapping[str, Tensor]) -> Tensor:
    """bool (B, T): where there is a token."""
    places = torch.arange(texts["ids"].shape[1], device=texts["ids"].device)
    return places < texts["length"][:, None]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of (B, T, F) over the places of a mask (B, T): (B, F); zeros where there are none, as in a text that an
    example of several modalities lacks."""
    return values.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class MeanOfTokens(nn.Module):
    """The mean of a text's embeddings: (B, size)."""

    def __init__(self, vocabulary: int, size: int) -> None:
        super().__init__()
        self.embedding = HiddenEmbedding(vocabulary, size)

    def forward(self, texts: Mapping[str, Tensor]) -> Tensor:
        return _mean(self.embedding(texts["ids"]), _mask(texts))


class Windows(nn.Module):
    """Convolutions over windows of 3, 4 and 5 tokens with ReLU, and the largest answer of each filter: (B, filters).

    A window begins at every token; zeros stand after the text. Features come filter by filter, three of each, as maps
    that have been flattened, so that a narrower network takes whole filters.
    """

    def __init__(self, vocabulary: int, size: int, filters: int) -> None:
        super().__init__()
        self.embedding = HiddenEmbedding(vocabulary, size)
        self.convolutions = nn.ModuleList(nn.Conv1d(size, filters, window) for window in WINDOWS)

    def forward(self, texts: Mapping[str, Tensor]) -> Tensor:
        mask = _mask(texts)[:, None]
        tokens = self.embedding(texts["ids"]).mT.masked_fill(~mask, 0)
        found = [
            layer(F.pad(tokens, (0, window - 1))).relu().masked_fill(~mask, 0).amax(2)
            for layer, window in zip(self.convolutions, WINDOWS, strict=True)
        ]
        return torch.stack(found, 2).flatten(1)


class Recurrent(nn.Module):
    """The mean over a text of what a recurrence says after each of its tokens: (B, size). It reads from the beginning,
    so that what comes after the end has no part in it."""

    def __init__(self, recurrence: type[nn.LSTM | nn.GRU], vocabulary: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        self.recurrence = recurrence(size, size, batch_first=True)

    def forward(self, texts: Mapping[str, Tensor]) -> Tensor:
        states, _ = self.recurrence(self.embedding(texts["ids"]))
        return _mean(states, _mask(texts))


class Encoder(nn.Module):
    """Blocks of self-attention over the tokens of a text, and the mean over them: (B, size)."""

    def __init__(self, vocabulary: int, size: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        self.blocks = nn.ModuleList(Block(size, heads, 2 * size) for _ in range(blocks))
        self.norm = nn.LayerNorm(size)

    def forward(self, texts: Mapping[str, Tensor]) -> Tensor:
        mask, places = _mask(texts), self.embedding(texts["ids"])
        places = places + positions(places)
        for block in self.blocks:
            places = block(places, mask[:, None, None])
        return _mean(self.norm(places), mask)


def fasttext(form: Texts, outputs: int, width: float) -> Classifier:
    """The mean of 64-entry embeddings, then a linear layer. As fastText, arXiv 1607.01759, without n-grams."""
    size = narrow(SIZE, width)
    return Classifier(MeanOfTokens(form.vocabulary, size), nn.Linear(size, outputs))


def textcnn(form: Texts, outputs: int, width: float) -> Classifier:
    """TextCNN: 32 filters for windows of 3, 4 and 5 tokens each. Kim, arXiv 1408.5882, smaller and without dropout."""
    size, filters = narrow(SIZE, width), narrow(FILTERS, width)
    return Classifier(Windows(form.vocabulary, size, filters), nn.Linear(len(WINDOWS) * filters, outputs))


def lstm(form: Texts, outputs: int, width: float) -> Classifier:
    """One LSTM layer of 64 units."""
    return Classifier(Recurrent(nn.LSTM, form.vocabulary, SIZE), nn.Linear(SIZE, outputs))


def gru(form: Texts, outputs: int, width: float) -> Classifier:
    """One GRU layer of 64 units."""
    return Classifier(Recurrent(nn.GRU, form.vocabulary, SIZE), nn.Linear(SIZE, outputs))


def transformer(form: Texts, outputs: int, width: float) -> Classifier:
    """Two blocks of self-attention with 4 heads and 64 entries."""
    return Classifier(Encoder(form.vocabulary, SIZE, heads=4, blocks=2), nn.Linear(SIZE, outputs))
