"""Prototypes: centres of a client's features, class by class.

Source: Mosaic, arXiv 2505.19699, and its released code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from algorithms.parts.clusters import groups

RELEASED_STATE = 42
"""The random state of k-means in the released code."""

RELEASED_CENTRES = 10
"""Centres that the released code reads, however many there are."""


def prototypes(features: Tensor, labels: Tensor, most: int, least: int, random_state: int) -> dict[int, Tensor]:
    """Centres of features by label.

    A label with fewer than `most` features has one, their mean; otherwise k-means finds `most`, or as many as there are
    distinct features. Fewer, where a centre would stand for less than `least` features; none, where the label has less.

    Args:
        features: float32 (m, F).
        labels: int64 (m,).
        random_state: of k-means, in [0, 2^32).

    Returns:
        label to float32 (1 to `most`, F), labels in rising order.
    """
    found = {}
    for label in labels.unique().tolist():
        members = features[labels == label]
        owners = groups(members.numpy(), most if len(members) >= most else 1, least, random_state)
        if owners is not None:
            owner = torch.from_numpy(owners)
            found[label] = torch.stack([members[owner == c].mean(0) for c in range(int(owner.max()) + 1)])
    return found


def join_prototypes(old: Mapping[int, Tensor], new: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """One tensor (P, F) for each label, those of `old` first; labels in rising order."""
    labels = sorted(old.keys() | new.keys())
    return {label: torch.cat([part[label] for part in (old, new) if label in part]) for label in labels}


def as_examples(by_label: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """All prototypes in one tensor (P, F), and their labels int64 (P,)."""
    labels = [torch.full((len(part),), label) for label, part in by_label.items()]
    return torch.cat(list(by_label.values())), torch.cat(labels)
