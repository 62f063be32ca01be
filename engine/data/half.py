"""One half of a data set as columns: the return value of every reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from algorithms.core.columns import Column, Columns
from algorithms.core.seeds import Seed

HalfName = Literal["train", "test"]

TEST_SHARE = 0.2
"""Share of the test half in a source that does not come as two."""


@dataclass(frozen=True, eq=False)
class Half:
    """The training or the test half, as it lies in the source; `engine.data.contents` decides what its words are.

    Attributes:
        columns: by name, of equal length. Words are `text` of str, or None where a value is missing; class numbers are
            `number`.
        place: the words for a row in an error message.
        origin: the words for the whole half.
        names: class names by column, where the half itself says them.
        whole: columns over more rows than these, all those of the half, where `limit` left some out: what they hold
            decides what the classes are.
        unread: columns that are none of the contents there are, and what they are instead.
        facts: notes on what was left out or changed as it was read.
        ragged: those of `unread` that would be signals if all their lists had one length.
    """

    columns: Columns
    place: Callable[[int], str]
    origin: str
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    whole: Columns = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    ragged: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def take(self, rows: np.ndarray) -> Half:
        """The rows of these numbers, in ascending order; the arrays themselves, without a copy, where they are all."""
        if len(rows) == len(self):
            return self
        columns = {name: column.take(rows) for name, column in self.columns.items()}
        return replace(self, columns=columns, place=lambda row: self.place(int(rows[row])))

    def with_columns(self, columns: Columns) -> Half:
        """The same rows with other columns."""
        return replace(self, columns=dict(columns))


def fixed_order(count: int) -> np.ndarray:
    """int64, (count,): a shuffled order of rows that never changes, so that any prefix is a fair sample."""
    return Seed(0).at(phase="data").numpy("order").permutation(count)


def rows_of_half(count: int, half: HalfName) -> np.ndarray:
    """Rows of one half of a source that has a single set of rows: of a fixed shuffled order, the first fifth is the
    test half and the rest the training half."""
    order = fixed_order(count)
    held = round(TEST_SHARE * count)
    return order[:held] if half == "test" else order[held:]


def image_half(
    images: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...] | None,
    place: Callable[[int], str],
    origin: str,
    facts: tuple[str, ...] = (),
) -> Half:
    """Images, uint8 (N, C, H, W), in a column `image`, and their classes, int64 (N,), in a column `label`.

    Args:
        labels: those of further rows behind the images' may follow.
    """
    whole = Column("number", labels.astype(np.float64))
    columns = {"image": Column("image", images), "label": Column("number", whole.values[: len(images)])}
    known = {} if names is None else {"label": names}
    return Half(columns, place, origin, known, {"label": whole}, facts=facts)
