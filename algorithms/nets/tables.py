"""Networks for rows of numbers and categories: a perceptron, and a linear model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.nets.classifier import Classifier
from algorithms.nets.forms import Images, Signals, Tables
from algorithms.nets.width import narrow

HIDDEN = 64

LONGEST = 50
"""Entries of an embedding at most."""


class EmbeddedColumns(nn.Module):
    """Numbers, and an embedding of each category, side by side: (B, features).

    A category of c values has min(50, (c + 1) // 2) entries, as in fastai's tabular models at first.
    """

    def __init__(self, form: Tables) -> None:
        super().__init__()
        sizes = [min(LONGEST, (values + 1) // 2) for values in form.categories]
        self.features = form.numbers + sum(sizes)
        self.embeddings = nn.ModuleList(map(nn.Embedding, form.categories, sizes))

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        codes = rows["categories"].unbind(1)
        embedded = (layer(code) for layer, code in zip(self.embeddings, codes, strict=True))
        return torch.cat([rows["numbers"], *embedded], 1)


class OneHot(nn.Module):
    """Numbers, and a 1 among zeros for each category, side by side: (B, features)."""

    def __init__(self, form: Tables) -> None:
        super().__init__()
        self.categories: Sequence[int] = form.categories
        self.features = form.numbers + sum(form.categories)

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        codes = rows["categories"].unbind(1)
        hot = (F.one_hot(code, values) for code, values in zip(codes, self.categories, strict=True))
        return torch.cat([rows["numbers"], *hot], 1)


def table_mlp(form: Tables, outputs: int, width: float) -> Classifier:
    """Numbers and embedded categories - 64 - outputs, with ReLU and without normalisation."""
    rows, hidden = EmbeddedColumns(form), narrow(HIDDEN, width)
    return Classifier(nn.Sequential(rows, nn.Linear(rows.features, hidden), nn.ReLU()), nn.Linear(hidden, outputs))


def table_linear(form: Tables, outputs: int, width: float) -> Classifier:
    """Linear in the numbers, with one weight for each value of a category."""
    rows = OneHot(form)
    return Classifier(rows, nn.Linear(rows.features, outputs))


def flat_linear(form: Images | Signals, outputs: int, width: float) -> Classifier:
    """Linear in the pixels or samples."""
    return Classifier(nn.Flatten(), nn.Linear(math.prod(form.shape), outputs))
