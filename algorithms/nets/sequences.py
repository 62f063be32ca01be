"""Networks for sequences: an answer at every place, made from the tokens up to it, as of the token that comes next."""

from __future__ import annotations

from torch import Tensor, nn

from algorithms.nets.attention import Block, positions
from algorithms.nets.classifier import Classifier
from algorithms.nets.forms import Sequences

SIZE = 64
"""Entries of a token's embedding, and of what attention passes on."""

UNITS = 128
"""Hidden units of the LSTM."""


class Reader(nn.Module):
    """The output of an LSTM after each token: int64 (B, T) to float (B, T, units)."""

    def __init__(self, vocabulary: int, size: int, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        self.recurrence = nn.LSTM(size, units, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.recurrence(self.embedding(tokens))[0]
        return outputs


class Decoder(nn.Module):
    """Blocks of self-attention in which a token sees itself and those before: int64 (B, T) to float (B, T, size)."""

    def __init__(self, vocabulary: int, size: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        self.blocks = nn.ModuleList(Block(size, heads, 4 * size) for _ in range(blocks))
        self.norm = nn.LayerNorm(size)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.embedding(tokens)
        places = places + positions(places)
        for block in self.blocks:
            places = block(places)
        features: Tensor = self.norm(places)
        return features


def lstm_lm(form: Sequences, outputs: int, width: float) -> Classifier:
    """One LSTM layer of 128 units, as for characters in LEAF, arXiv 1812.01097, which has two of 256."""
    return Classifier(Reader(form.vocabulary, SIZE, UNITS), nn.Linear(UNITS, outputs))


def decoder(form: Sequences, outputs: int, width: float) -> Classifier:
    """Two blocks of causal self-attention with 4 heads and 64 entries."""
    return Classifier(Decoder(form.vocabulary, SIZE, heads=4, blocks=2), nn.Linear(SIZE, outputs))
