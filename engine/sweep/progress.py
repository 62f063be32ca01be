"""A sweep on the terminal: a line for each setting that ends, one that moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from algorithms.core.task import Figure
from engine.errors import one_line
from engine.sweep.conduct import SettingResult, better_of
from engine.sweep.spec import Sweep
from engine.units import duration, figure_text
from engine.views.screen import Screen


class SweepTerminal:
    """A `SweepWatcher` that writes to a console.

    Attributes:
        screen: with the line that moves.
    """

    def __init__(self, screen: Console | Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self.screen, self._clock = screen if isinstance(screen, Screen) else Screen(screen), clock
        self._start = clock()
        self._lines: dict[str, str] = {}

    def __enter__(self) -> SweepTerminal:
        self.screen.say("reading the data")
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.stop()

    def started(self, sweep: Sweep, folder: Path, missing: int, facts: Sequence[str]) -> None:
        self._start = self._clock()
        for fact in facts:
            self.screen.print(fact)
        self.screen.print(f"folder: {folder}")
        if missing < len(sweep.settings):
            self.screen.print(f"{len(sweep.settings) - missing} of {len(sweep.settings)} settings are there already")
        self.screen.say("the first settings begin")

    def progress(self, setting: str, step: int, steps: int, score: float, figure: Figure) -> None:
        self._lines[setting] = f"{setting} {step}/{steps} {figure_text(score, figure.unit)}"
        self.screen.say(" · ".join(self._lines.values()))

    def finished(self, finished: SettingResult, figure: Figure) -> None:
        self._lines.pop(finished.setting.name, None)
        if finished.earlier:
            return
        values = ", ".join(f"{key} {one_line(value)}" for key, value in finished.setting.values.items())
        line = (
            f"{duration(self._clock() - self._start):>8}  setting {finished.setting.name}  {_words(finished, figure)}"
        )
        self.screen.print(f"{line}  {values}")


def _words(finished: SettingResult, figure: Figure) -> str:
    if finished.error:
        return f"failed: {finished.error}"
    if finished.is_complete:
        best = [run.result["stop"]["best_value"] for run in finished.runs if run.result["stop"]]
        mean = sum(best) / len(best) if best else better_of(figure, ())
        return figure_text(mean, figure.unit)
    step, score = finished.scores[-1]
    return f"{figure_text(score, figure.unit)}, ended early after round {step}"


class SweepSilence:
    """A `SweepWatcher` that says nothing."""

    def started(self, sweep: Sweep, folder: Path, missing: int, facts: Sequence[str]) -> None: ...

    def progress(self, setting: str, step: int, steps: int, score: float, figure: Figure) -> None: ...

    def finished(self, finished: SettingResult, figure: Figure) -> None: ...
