"""A comparison on the terminal: a line for each run that ends, one that moves, the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from engine.compare.conduct import CellResult
from engine.compare.spec import Comparison
from engine.units import duration, figure_text
from engine.views.screen import Screen


class ComparisonTerminal:
    """A `ComparisonWatcher` that writes to a console.

    Attributes:
        screen: with the line that moves.
    """

    def __init__(self, screen: Console | Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self.screen, self._clock = screen if isinstance(screen, Screen) else Screen(screen, clock), clock
        self._start = clock()
        self._all = self._missing = self._done = 0

    def __enter__(self) -> ComparisonTerminal:
        self.screen.say("reading the data")
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.stop()

    def started(self, comparison: Comparison, folder: Path, missing: int, facts: Sequence[str]) -> None:
        self._start, self._all, self._missing = self._clock(), len(comparison.cells), missing
        for fact in facts:
            self.screen.print(fact)
        self.screen.print(f"folder: {folder}")
        if missing < self._all:
            self.screen.print(f"{self._all - missing} of {self._all} runs are there already")
        self.screen.say("the first runs begin")

    def progress(self, lines: dict[str, str]) -> None:
        under_way = " · ".join(f"{name} {text}" for name, text in lines.items())
        parts = (under_way, f"{self._done} of {self._missing} done", self._time_left())
        line = " · ".join(part for part in parts if part)
        self.screen.say(line, plain=f"{duration(self._clock() - self._start):>8}  {line}")

    def finished(self, finished: CellResult) -> None:
        if finished.earlier:
            return
        self._done += 1
        spent = duration(self._clock() - self._start)
        if finished.run is None:
            self.screen.print(f"{spent:>8}  {finished.cell.name:<28}  failed: {finished.error}")
            return
        score = figure_text(finished.run.score, finished.run.headline.unit)
        seconds = finished.run.result["seconds"]["total"]
        text = f"{spent:>8}  {finished.cell.name:<28}  {score:>6}  {seconds:6.1f} s"
        self.screen.print(
            text + (f", {finished.saved_seconds:.1f} s of training spared" if finished.saved_seconds else "")
        )

    def _time_left(self) -> str:
        """From the runs that are done, which may be quicker than those to come."""
        if not self._done:
            return ""
        return f"about {duration((self._clock() - self._start) / self._done * (self._missing - self._done))} left"


class ComparisonSilence:
    """A `ComparisonWatcher` that says nothing."""

    def started(self, comparison: Comparison, folder: Path, missing: int, facts: Sequence[str]) -> None: ...

    def progress(self, lines: dict[str, str]) -> None: ...

    def finished(self, finished: CellResult) -> None: ...
