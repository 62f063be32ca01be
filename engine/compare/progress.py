"""What a person at a terminal sees of a comparison: a line for each run that ends, one that moves, the table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from engine.compare.conduct import Finished
from engine.compare.spec import Comparison
from engine.units import duration, percent


class Terminal:
    """An ear that writes to a console: with a moving line on a terminal, plain lines anywhere else and in CI."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._moves = console.is_terminal and not os.environ.get("CI")
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        self._begun = clock()
        self._all = self._missing = self._done = 0

    def __enter__(self) -> Terminal:
        self._say("reading the data")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def started(self, comparison: Comparison, folder: Path, missing: int, facts: Sequence[str]) -> None:
        self._begun, self._all, self._missing = self._clock(), len(comparison.cells), missing
        for fact in facts:
            self.print(fact)
        self.print(f"folder: {folder}")
        if missing < self._all:
            self.print(f"{self._all - missing} of {self._all} runs are there already")
        self._say("the first runs begin")

    def told(self, lines: dict[str, str]) -> None:
        under_way = " · ".join(f"{name} {text}" for name, text in lines.items())
        self._say(
            " · ".join(part for part in (under_way, f"{self._done} of {self._missing} done", self._left()) if part)
        )

    def finished(self, finished: Finished) -> None:
        if finished.earlier:
            return
        self._done += 1
        spent = duration(self._clock() - self._begun)
        if finished.run is None:
            self.print(f"{spent:>8}  {finished.cell.name:<28}  failed: {finished.error}")
            return
        result = finished.run.result
        text = (
            f"{spent:>8}  {finished.cell.name:<28}  {percent(result['accuracy'])}  {result['seconds']['total']:6.1f} s"
        )
        self.print(text + (f", {finished.spared:.1f} s of training spared" if finished.spared else ""))

    def print(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        """From the runs that are done, which may be quicker than those to come."""
        if not self._done:
            return ""
        return f"about {duration((self._clock() - self._begun) / self._done * (self._missing - self._done))} left"

    def _say(self, text: str) -> None:
        if not self._moves:
            return
        self._spinner.update(text=Text(text))
        if self._live is None:
            self._live = Live(
                self._spinner,
                console=self._console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
