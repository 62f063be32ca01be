"""A console with one line at its foot that moves: on a terminal, and plain lines anywhere else and in CI."""

from __future__ import annotations

import os
from typing import Self

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
