"""Regression on rows of a table: a number from numbers and categories, some of them missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.core import settings
from algorithms.core.classification import has_label
from algorithms.core.columns import ASKED, ColumnError, Columns, Roles, contents_of, full_column, only_column
from algorithms.core.settings import setting
from algorithms.core.task import Figure, PreparedTask, Shard, Sums, Task, Trait
from algorithms.nets.forms import Inputs, Tables
from algorithms.tasks._tables import NUMBERS, Encoding, features, mean_and_std, refuse_infinite, table_batch

TARGET = "target"
"""Role of the column of numbers to predict, and name of the column of what networks learn, float32 (N,)."""


@dataclass(frozen=True)
class RegressionTask(Task):
    """Tabular regression. Networks learn (y - mean) / std; figures but the loss are of y itself, in its own unit.

    Attributes:
        encoding: of the columns that are read.
        mean, std: of the training rows' targets.
    """

    title: ClassVar[str] = "tabular regression"
    traits: ClassVar[frozenset[Trait]] = frozenset({"numbers"})
    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("rmse", "lower"),
        Figure("mae", "lower"),
        Figure("r2", "higher"),
        Figure("loss", "lower"),
    )

    @dataclass(frozen=True, kw_only=True)
    class Settings(settings.Config):
        ignore: tuple[str, ...] = setting((), "columns that are not learnt from")

    encoding: Encoding
    mean: float
    std: float

    @classmethod
    def fits(cls, columns: Columns, roles: Roles) -> bool:
        is_told = TARGET in roles and "label" not in roles
        is_named = TARGET in columns and columns[TARGET].content == "number" and not has_label(columns, roles)
        return contents_of(columns, roles) in ([], ["number"]) and (is_told or is_named)

    @classmethod
    def prepare(cls, train: Columns, test: Columns, roles: Roles, settings: Any) -> PreparedTask:
        name = _target_column(train, roles)
        targets, test_targets = (_targets(half, name, word) for half, word in ((train, "training"), (test, "test")))
        encoding = Encoding.of(train, features(train, roles, settings.ignore, otherwise=(name,)))
        mean, std = mean_and_std(targets)
        return PreparedTask(
            cls(encoding, mean, std),
            train={**encoding.encode(train, "training"), TARGET: ((targets - mean) / std).astype(np.float32)},
            test={**encoding.encode(test, "test"), TARGET: ((test_targets - mean) / std).astype(np.float32)},
        )

    def question_columns(self, columns: Columns, roles: Roles) -> tuple[str, ...]:
        return self.encoding.names

    def question(self, columns: Columns, roles: Roles) -> Mapping[str, np.ndarray]:
        encoded = self.encoding.encode(columns, ASKED)
        return {**encoded, TARGET: np.zeros(len(encoded[NUMBERS]), dtype=np.float32)}

    def answers(self, outputs: Tensor, inputs: Inputs) -> dict[str, np.ndarray]:
        """`prediction`, float64 (B,), of y itself, in its own unit."""
        return {"prediction": self.mean + self.std * outputs[:, 0].double().cpu().numpy()}

    @property
    def form(self) -> Tables:
        return self.encoding.form

    @property
    def outputs(self) -> int:
        return 1

    def batch(
        self,
        shard: Shard,
        picks: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Inputs, Tensor]:
        """`numbers`, float32 (B, D), and `categories`, int64 (B, K); and standardised targets, float32 (B,). Nothing is
        drawn."""
        rows = shard.rows[picks]
        return table_batch(shard, rows, device), shard.columns[TARGET][rows].to(device)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """float (B,): the squared error of each standardised target."""
        return F.mse_loss(outputs[:, 0], targets, reduction="none")

    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """`examples`; of standardised targets z and errors e `squares` (e^2), `absolutes` (|e|), `targets` (z) and
        `target_squares` (z^2)."""
        errors, wanted = (outputs.detach()[:, 0] - targets).double().cpu(), targets.double().cpu()
        return {
            "examples": torch.tensor(len(targets)),
            "squares": errors.square().sum(),
            "absolutes": errors.abs().sum(),
            "targets": wanted.sum(),
            "target_squares": wanted.square().sum(),
        }

    def report(self, sums: Sums) -> dict[str, float]:
        """Root of the mean squared error and mean absolute error in the target's unit; 1 - squared errors over squared
        deviations of these targets from their mean, NaN where all are alike; mean squared error of z."""
        if not sums:
            return dict.fromkeys((figure.name for figure in self.figures), float("nan"))
        examples, squares = float(sums["examples"]), float(sums["squares"])
        spread = float(sums["target_squares"]) - float(sums["targets"]) ** 2 / examples
        return {
            "rmse": self.std * (squares / examples) ** 0.5,
            "mae": self.std * float(sums["absolutes"]) / examples,
            # Of targets that are all alike rounding may leave a spread.
            "r2": 1 - squares / spread if spread > 1e-12 * float(sums["target_squares"]) else float("nan"),
            "loss": squares / examples,
        }


def _target_column(columns: Columns, roles: Roles) -> str:
    """The column that `roles` names, or the one called `target`."""
    if TARGET not in roles and TARGET not in columns:
        remedy = f"say which by data.columns: {{{TARGET}: NAME}}; there are {', '.join(columns)}"
        raise ColumnError(TARGET, "no column is said to be what is predicted", remedy)
    return only_column(columns, {TARGET: (TARGET,), **roles}, TARGET, ("number",))


def _targets(columns: Columns, name: str, half: str) -> np.ndarray:
    targets = full_column(columns, name, TARGET, "number", half).values
    refuse_infinite(name, targets, TARGET, half)
    return targets
