"""Callbacks that whoever calls may leave out, and what tells of progress through one."""

from __future__ import annotations

from collections.abc import Callable


def ignore(*_: object) -> None:
    """Default callback: does nothing."""


class Progress:
    """The progress of a phase of which it is known how many steps it has."""

    def __init__(self, tell: Callable[[str, int, int], None], phase: str, steps: int) -> None:
        """`tell(phase, done, steps)` hears of every step."""
        self._tell, self._phase, self._steps = tell, phase, steps
        self._done = 0

    def count_step(self) -> None:
        """One more step is done."""
        self._done += 1
        self._tell(self._phase, self._done, self._steps)
