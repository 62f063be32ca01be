"""What every reader returns: one half of a data set, decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from algorithms.core.seeds import Seed

Half = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test half.

    Attributes:
        images: uint8, (N, C, H, W).
        labels: int64, (N,), not yet checked against the classes.
        class_names: one per class; None where the half itself does not say, which the training half always does.
        place: the words for a row in an error message.
        columns: what else the half knows of each row, by name, (N,) each.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    place: Callable[[int], str]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


def numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Names for classes without names: 0, 1, ... up to the largest label; () where there is none."""
    return tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1))


def fixed_order(count: int) -> np.ndarray:
    """int64, (count,): a shuffled order of rows that never changes, so that any prefix is a fair sample."""
    return Seed(0).at(phase="data").numpy("order").permutation(count)
