"""Signal classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from algorithms.core.classification import Classification, classes_of, no_labels
from algorithms.core.columns import ASKED, ColumnError, Columns, Roles, contents_of, full_column, only_column
from algorithms.core.task import LABEL, PreparedTask, Shard
from algorithms.nets.forms import Inputs, Signals

SIGNAL = "signal"
"""Name of the column of signals, float32 (N, channels, T)."""


@dataclass(frozen=True)
class SignalTask(Classification):
    """Signal classification.

    Attributes:
        shape: (channels, samples) of every signal.
        mean, std: per channel, of the training signals; what networks see is (x - mean) / std.
    """

    title: ClassVar[str] = "signal classification"

    shape: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fits(cls, columns: Columns, roles: Roles) -> bool:
        return contents_of(columns, roles) == ["signal"]

    @classmethod
    def prepare(cls, train: Columns, test: Columns, roles: Roles, settings: Any) -> PreparedTask:
        name = only_column(train, roles, SIGNAL, ("signal",))
        names, labels, test_labels = classes_of(train, test, roles)
        signals, test_signals = (_signals(half, name, word) for half, word in ((train, "training"), (test, "test")))
        shape = (signals.shape[1], signals.shape[2])
        _refuse_other_shape(name, shape, test_signals)
        return PreparedTask(
            cls(names, shape, *channel_statistics(signals)),
            train={SIGNAL: signals, LABEL: labels},
            test={SIGNAL: test_signals, LABEL: test_labels},
        )

    def question(self, columns: Columns, roles: Roles) -> Mapping[str, np.ndarray]:
        name = only_column(columns, roles, SIGNAL, ("signal",))
        signals = _signals(columns, name, ASKED)
        if signals.shape[1:] != self.shape:
            found, needed = ("x".join(map(str, shape)) for shape in (signals.shape[1:], self.shape))
            problem = f"the signals are {found} and the network takes {needed} (channels x samples)"
            raise ColumnError(SIGNAL, problem, "give signals of this shape")
        return {SIGNAL: signals, LABEL: no_labels(len(signals))}

    @property
    def form(self) -> Signals:
        return Signals(self.shape)

    @cached_property
    def _mean(self) -> Tensor:
        return torch.tensor(self.mean).view(1, -1, 1)

    @cached_property
    def _std(self) -> Tensor:
        return torch.tensor(self.std).view(1, -1, 1)

    def batch(
        self,
        shard: Shard,
        picks: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Inputs, Tensor]:
        """Normalised signals, float32 (B, channels, T), and classes, int64 (B,); nothing is drawn."""
        rows = shard.rows[picks]
        signals = shard.columns[SIGNAL].index_select(0, rows).to(device)
        normalised = (signals - self._mean.to(device)) / self._std.to(device)
        return normalised, shard.columns[LABEL][rows].to(device)


def _signals(columns: Columns, name: str, half: str) -> np.ndarray:
    signals = full_column(columns, name, SIGNAL, "signal", half).values
    if not signals.size:
        problem = f"{half} signals of column {name!r} have no sample"
        raise ColumnError(SIGNAL, problem, "give each of them one at least")
    wrong = np.flatnonzero(~np.isfinite(signals).all(axis=(1, 2)))
    if len(wrong):
        problem = f"{half} row {wrong[0]} has a sample in column {name!r} that is no finite number"
        raise ColumnError(SIGNAL, problem, "mend or leave out such rows")
    return signals


def _refuse_other_shape(name: str, shape: tuple[int, int], test: np.ndarray) -> None:
    if test.shape[1:] != shape:
        ours, theirs = ("x".join(map(str, one)) for one in (shape, test.shape[1:]))
        problem = f"training signals of column {name!r} are {ours} but test signals are {theirs} (channels x samples)"
        raise ColumnError(SIGNAL, problem, "make them the same")


def channel_statistics(signals: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of signals (N, channels, T), summed in 64 bits.

    A channel of one single value has the deviation 1, so that it can be divided by.
    """
    means = [float(signals[:, channel].mean(dtype=np.float64)) for channel in range(signals.shape[1])]
    deviations = [float(signals[:, channel].std(dtype=np.float64)) or 1.0 for channel in range(signals.shape[1])]
    return tuple(means), tuple(deviations)
