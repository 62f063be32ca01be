"""Trials: settings whose scores are shown step by step. Here they are tried one after another, each to its end."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from actors.jobs.recall import FolderStore, Store

Report: TypeAlias = Callable[[int, float], None]
"""Takes the number of a step, which rises, and a trial's score after it; may end the trial by raising SystemExit."""


class Writable(Protocol):
    """A thing that a trial hands over, which writes itself to a folder."""

    def write(self, folder: Path) -> None: ...


Keep: TypeAlias = Callable[[str, Writable], None]
"""Keeps what a trial hands over, under a name."""


@dataclass(frozen=True)
class Trial:
    """A setting that is tried.

    Attributes:
        name: unique.
        call: (what all trials share, their store, report, keep).
    """

    name: str
    call: Callable[[Any, Store, Report, Keep], None]


class TrialEar(Protocol):
    """Hears of trials as they go."""

    def score(self, name: str, step: int, score: float) -> None: ...

    def finished(self, name: str) -> None: ...


def write_failure(folder: Path, name: str, text: str) -> None:
    """Write down why a trial failed."""
    (folder / f"{name}-failed.txt").write_text(text, encoding="utf-8")


def try_one_by_one(trials: Sequence[Trial], shared: Any, folder: Path, store: Path, ear: TrialEar) -> None:
    """Try settings in this process, in their order; see `actors.jobs.tuning.tune_trials`."""

    def keep(name: str, handed: Writable) -> None:
        handed.write(folder / name)

    for trial in trials:
        try:
            trial.call(shared, FolderStore(store), partial(ear.score, trial.name), keep)
        except Exception:  # the other trials go on
            write_failure(folder, trial.name, traceback.format_exc())
        ear.finished(trial.name)
