"""A console with one line at its foot that moves: on a terminal, and plain lines anywhere else and in CI."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text


class Screen:
    """Lines that stay, and the one that moves. A context, after which nothing moves.

    Where no line can move, what it would say is printed as a line that stays, now and then.

    Attributes:
        console: where all is written.
        line: what the moving line says, "" where there is none.
    """

    SILENCE = 5.0
    """Seconds without any line, after which one is printed that would otherwise move."""

    PATIENCE = 0.1
    """Part of the time since the last line of `print` for which nothing is said, where that is longer than SILENCE: a
    phase of an hour takes about 50 lines."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self._last_print = self._last_line = clock()
        self.line = ""
        self._moves = console.is_terminal and not os.environ.get("CI")
        self._spinner = Spinner("dots" if console.encoding.startswith("utf") else "line")
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def print(self, text: str) -> None:
        """A line that stays."""
        self._write_plainly(text)
        self._last_print = self._last_line

    def say(self, text: str, plain: str = "") -> None:
        """Write the moving line; where there is none, and there was silence, a line that stays (`plain`, if given)."""
        if not self._moves:
            if self._clock() - self._last_line >= max(self.SILENCE, self.PATIENCE * (self._clock() - self._last_print)):
                self._write_plainly(plain or text)
            return
        self.line = text
        self._spinner.update(text=Text(text))
        if self._live is None:
            # What others print would otherwise pass through the console, Ray's chatter too, which goes to a log.
            self._live = Live(
                self._spinner,
                console=self.console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()

    def _write_plainly(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._last_line = self._clock()

    def stop(self) -> None:
        """End the moving line; the next word of `say` begins another."""
        if self._live:
            self._live.stop()
            self._live = None


def is_in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None


def notebook_console(output: TextIO) -> Console:
    """A console that writes plain lines into the output of a notebook's cell."""
    return Console(file=output, force_terminal=False, force_jupyter=False, width=100)


class NotebookScreen(Screen):
    """The same in a notebook's cell, where the line that moves stands above the others."""

    SECONDS = 0.25
    """Between two changes of the line: each is a message to the browser."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._last_change = -self.SECONDS
        self._handle: Any = None

    def say(self, text: str, plain: str = "") -> None:
        """Write the moving line, unless it was changed a moment ago."""
        if self._clock() - self._last_change < self.SECONDS:
            return
        self.line, self._last_change = text, self._clock()
        self._show(text)

    def stop(self) -> None:
        if self._handle is not None:
            self._show("")
            self._handle = None

    def _show(self, text: str) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._handle.update({"text/plain": text}, raw=True)
