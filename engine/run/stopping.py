"""Early stopping: a run ends where its model has not become better on validation rows for so many rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from algorithms.core.task import Figure
from engine.units import figure_text


@dataclass(frozen=True)
class Best:
    """The best round so far.

    Attributes:
        round: from 0.
        value: of the figure on validation rows.
        figures: of the same model on the test set, which had no part in the choice.
    """

    round: int
    value: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Stopping:
    """A rule for when a run ends, and what it has seen so far. A value: each evaluation gives the next one.

    Attributes:
        figure: of the task, by which rounds are judged.
        patience: rounds after the best one, at the last of which the run ends.
        change: by which a value must be better than the best one to count as better, >= 0.
        first: the first round that counts: before it the method is not complete.
        best: None before the first evaluation that counts.
        last: the last round that was judged, -1 for none.
    """

    figure: Figure
    patience: int
    change: float = 0.0
    first: int = 0
    best: Best | None = None
    last: int = -1

    def learn(self, round: int, value: float, figures: Mapping[str, float]) -> Stopping:
        """The rule after a round's evaluation.

        Args:
            value: of the figure on validation rows; NaN is no better than anything.
            figures: on the test set.
        """
        if round < self.first:
            return self
        better = Best(round, value, dict(figures)) if self._is_better(value) else self.best
        return replace(self, best=better, last=round)

    def _is_better(self, value: float) -> bool:
        if self.best is None or math.isnan(self.best.value):
            return self.best is None or not math.isnan(value)
        gain = value - self.best.value if self.figure.better == "higher" else self.best.value - value
        return gain > self.change

    @property
    def is_over(self) -> bool:
        """Whether the run ends now."""
        return self.best is not None and self.last - self.best.round >= self.patience

    def tree(self) -> dict[str, Any]:
        """The figures seen so far, as JSON has them."""
        return {"best": None if self.best is None else asdict(self.best), "last": self.last}

    def restore(self, tree: Mapping[str, Any]) -> Stopping:
        """The rule with what `tree` says was seen."""
        best = tree["best"]
        return replace(self, best=None if best is None else Best(**best), last=tree["last"])

    def summary(self, rounds: int, kept: int) -> dict[str, Any] | None:
        """The entry of result.json after a run of so many rounds; None where nothing was judged.

        Args:
            kept: the round whose model the run's folder holds, from 0.
        """
        if self.best is None:
            return None
        return {
            "early": self.is_over,
            "reason": self._reason(self.best, rounds, kept),
            "metric": self.figure.name,
            "best_round": self.best.round,
            "best_value": self.best.value,
            "best_figures": dict(self.best.figures),
            "model_round": kept,
        }

    def _reason(self, best: Best, rounds: int, kept: int) -> str:
        value = figure_text(best.value, self.figure.unit)
        words = f"{self.figure.name} on validation rows was best after round {best.round + 1} ({value}"
        words += ", whose model is kept)" if kept == best.round else ")"
        if self.is_over:
            return f"stopped after round {rounds}: {words} and not better in the {self.last - best.round} after it"
        return f"all {rounds} rounds were played: {words}"
