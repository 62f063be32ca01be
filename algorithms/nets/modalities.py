"""A network for several modalities: a branch for each, and one head over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from algorithms.nets.classifier import Classifier
from algorithms.nets.classifiers import small_cnn
from algorithms.nets.forms import Images, Modalities, Signals, Tables, Texts
from algorithms.nets.signals import cnn1d
from algorithms.nets.tables import table_mlp
from algorithms.nets.texts import fasttext

_norm = partial(nn.GroupNorm, 1)
"""In the place of batch normalisation, in whose statistics the zeros of absent modalities would count."""


class Branches(nn.Module):
    """Features of every modality, zeros where an example lacks it, and which it has: float (B, features)."""

    def __init__(self, form: Modalities, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.form = form
        self.branches = nn.ModuleList(branches[name] for name in form.parts)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        present = inputs["present"]
        features = [
            torch.where(has[:, None] > 0, branch(self.form.part(name, inputs)), 0.0)
            for name, branch, has in zip(self.form.parts, self.branches, present.unbind(1), strict=True)
        ]
        return torch.cat([*features, present], 1)


def two_branch(form: Modalities, outputs: int, width: float) -> Classifier:
    """A small network for each modality, its features side by side with those of the others, then a linear layer."""
    nets = {name: _branch(part) for name, part in form.parts.items()}
    features = sum(net.head.in_features for net in nets.values()) + len(nets)
    return Classifier(Branches(form, {name: net.body for name, net in nets.items()}), nn.Linear(features, outputs))


def _branch(form: Images | Signals | Texts | Tables) -> Classifier:
    """The small network of a form, of whose head nothing is used."""
    match form:
        case Images():
            return small_cnn(form, 1, 1.0, _norm)
        case Signals():
            return cnn1d(form, 1, 1.0, _norm)
        case Texts():
            return fasttext(form, 1, 1.0)
        case Tables():
            return table_mlp(form, 1, 1.0)
