"""Base of tasks with classes: cross-entropy, and figures from a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.core.columns import Column, ColumnError, Columns, Roles, only_column
from algorithms.core.task import LABEL, Figure, Sums, Task, Trait
from algorithms.nets.forms import Inputs


@dataclass(frozen=True)
class Classification(Task):
    """Base of classification, whatever the inputs are: targets are classes, int64 (B,).

    Attributes:
        names: one per class; their number is C of the formulas.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"classes"})
    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("accuracy", "higher", "%"),
        Figure("macro_f1", "higher", "%"),
        Figure("loss", "lower"),
    )

    names: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.names

    @property
    def outputs(self) -> int:
        return len(self.names)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over the batch."""
        return F.cross_entropy(outputs, targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """float (B,): cross-entropy of each example."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """`examples`, `loss` (summed cross-entropy) and `confusion`, see `Task.confusion`."""
        pairs = (targets * self.classes + outputs.argmax(dim=1)).cpu()
        return {
            "examples": torch.tensor(len(targets)),
            "loss": F.cross_entropy(outputs, targets, reduction="sum").detach().double().cpu(),
            "confusion": torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes),
        }

    def report(self, sums: Sums) -> dict[str, float]:
        """Share of right answers; F1 = 2 TP / (2 TP + FP + FN), mean over the classes that have examples; mean loss."""
        if not sums:
            return dict.fromkeys((figure.name for figure in self.figures), float("nan"))
        confusion, examples = sums["confusion"].double(), int(sums["examples"])
        hits = confusion.diag()
        present = confusion.sum(1) > 0
        f1 = 2 * hits / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
        return {
            "accuracy": float(hits.sum()) / examples,
            "macro_f1": float(f1[present].mean()),
            "loss": float(sums["loss"]) / examples,
        }

    def answers(self, outputs: Tensor, inputs: Inputs) -> dict[str, np.ndarray]:
        """`class`, the name of the most likely one, object (B,); and for each class `p_NAME`, its softmax, float32."""
        shares = outputs.float().softmax(1).cpu().numpy()
        best = np.array(self.names, dtype=object)[shares.argmax(1)]
        return {"class": best, **{f"p_{name}": shares[:, number] for number, name in enumerate(self.names)}}

    def by_class(self, sums: Sums) -> dict[str, Tensor]:
        """Accuracy among the examples of each class."""
        if not sums:
            return {"accuracy": torch.full((self.classes,), torch.nan, dtype=torch.float64)}
        confusion = sums["confusion"].double()
        return {"accuracy": confusion.diag() / confusion.sum(1)}

    def confusion(self, sums: Sums) -> Tensor | None:
        return sums["confusion"] if sums else torch.zeros(self.classes, self.classes, dtype=torch.int64)


def has_label(columns: Columns, roles: Roles) -> bool:
    """Whether some column says the classes: one that `roles` names, or any of classes."""
    ignored = roles.get("ignore", ())
    return LABEL in roles or any(c.content == "class" and name not in ignored for name, c in columns.items())


def no_labels(count: int) -> np.ndarray:
    """int64 (count,): the classes of rows of which none is known."""
    return np.full(count, -1, dtype=np.int64)


def label_column(columns: Columns, roles: Roles) -> str:
    """Name of the column that plays `label`.

    Raises:
        ColumnError: see `only_column`.
    """
    return only_column(columns, roles, LABEL, ("class",) if LABEL not in roles else ("class", "category", "number"))


def classes_of(train: Columns, test: Columns, roles: Roles) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Class names, and the classes of training and test rows, int64 (N,), of the column that plays `label`.

    A `class` column has its own names; the different values of a `category` column, sorted, are its classes, and so are
    those of a `number` column of whole numbers.

    Raises:
        ColumnError: a missing label, a test label that no training row has, a number that is not whole.
    """
    name = label_column(train, roles)
    if name not in test:
        raise ColumnError(LABEL, f"the test rows have no column {name!r}", "write it into both halves")
    ours, theirs = train[name], test[name]
    if ours.content == "class":
        return ours.names, ours.values, theirs.values
    codes = _sorted_values(name, ours)
    return tuple(codes), _class_codes(name, ours, codes, "training"), _class_codes(name, theirs, codes, "test")


def _sorted_values(name: str, column: Column) -> dict[str, int]:
    if column.content == "category":
        words = sorted({value for value in column.values if value is not None})
    else:
        numbers = np.unique(column.values[~np.isnan(column.values)])
        is_odd = (numbers != np.rint(numbers)) | np.isinf(numbers)
        if is_odd.any():
            odd = float(numbers[is_odd][0])
            raise ColumnError(
                LABEL, f"column {name!r} holds {odd:g}, which is no class", "classes are whole numbers or words"
            )
        words = [str(int(number)) for number in numbers]
    return {word: code for code, word in enumerate(words)}


def _class_codes(name: str, column: Column, codes: dict[str, int], half: str) -> np.ndarray:
    missing = [row for row, value in enumerate(column.values) if value is None or value != value]
    if missing:
        raise ColumnError(LABEL, f"{half} row {missing[0]} has no value in column {name!r}", "leave such rows out")
    words = [value if isinstance(value, str) else _whole(float(value)) for value in column.values]
    unknown = [(row, word) for row, word in enumerate(words) if word not in codes]
    if unknown:
        row, word = unknown[0]
        raise ColumnError(LABEL, f"{half} row {row} is of class {word!r}, which no training row has", "leave it out")
    return np.array([codes[word] for word in words], dtype=np.int64)


def _whole(number: float) -> str:
    """A number as the classes are written; one that is not whole as it is, which is no class."""
    return str(int(number)) if number.is_integer() else f"{number:g}"
