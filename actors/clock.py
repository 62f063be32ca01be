"""Wall time by phase. No result depends on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from algorithms.core.callbacks import ignore


class PhaseClock:
    """Attributes every moment to exactly one phase: the one entered last."""

    def __init__(
        self,
        phase: str,
        now: Callable[[], float] = time.perf_counter,
        report: Callable[[str, float, float], None] = ignore,
    ) -> None:
        """`report(phase, start, end)` hears of every time that a phase goes on without another, as `now` has it."""
        self.seconds: dict[str, float] = {}
        self._now, self._report = now, report
        self._phase, self._since = phase, now()

    def switch(self, phase: str) -> None:
        """Time from now on belongs to `phase`."""
        if phase == self._phase:
            return
        self._book()
        self._phase = phase

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """The block belongs to `phase`; afterwards the phase before it goes on."""
        before = self._phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def fresh_copy(self, phase: str) -> PhaseClock:
        """A clock that starts from zero with the same listener."""
        return PhaseClock(phase, self._now, self._report)

    def add(self, phase: str, seconds: float) -> None:
        """Add time that passed before this clock began."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Seconds by phase so far, the phase under way included."""
        self._book()
        return dict(self.seconds)

    def _book(self) -> None:
        now = self._now()
        self.add(self._phase, now - self._since)
        self._report(self._phase, self._since, now)
        self._since = now
