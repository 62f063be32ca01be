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

    Attributes:
        console: where all is written.
        line: what the moving line says, "" where there is none.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.line = ""
        self._moves = console.is_terminal and not os.environ.get("CI")
        self._spinner = Spinner("dots")
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def print(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Write the moving line, where there is one."""
        if not self._moves:
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
        super().__init__(console)
        self._clock, self._changed = clock, -self.SECONDS
        self._handle: Any = None

    def say(self, text: str) -> None:
        """Write the moving line, unless it was changed a moment ago."""
        if self._clock() - self._changed < self.SECONDS:
            return
        self.line, self._changed = text, self._clock()
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
