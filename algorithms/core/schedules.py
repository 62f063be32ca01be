"""Learning-rate schedules: within a training, and over the rounds for the clients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias


def cosine(step: int, steps: int) -> float:
    """The factor of a learning rate that falls from 1 at step 0 to 0 at step `steps`: (1 + cos(pi s / S)) / 2."""
    return (1 + math.cos(math.pi * step / steps)) / 2


Shape: TypeAlias = Literal["constant", "step", "cosine"]
"""The course of the rate after the warm-up: always the whole rate, a fall every so many rounds, or half a cosine down
to 0."""


@dataclass(frozen=True)
class RateSchedule:
    """The rate of each round as a factor of the clients' own rate: a warm-up first, then the shape.

    Attributes:
        name: of the shape.
        rounds: R, how many the run has; read by `cosine` alone.
        warmup: W, rounds in which the factor rises along a line, (r + 1) / W; 0 for none.
        every: rounds between two falls of `step`, counted from the end of the warm-up.
        factor: of `step`, by which the rate is multiplied at each fall; in (0, 1].
        falls: of `step`, rounds of the run (from 0) with which the rate falls, in the place of `every`; () for none.
    """

    name: Shape = "constant"
    rounds: int = 1
    warmup: int = 0
    every: int = 1
    factor: float = 1.0
    falls: tuple[int, ...] = ()

    def at(self, round: int) -> float:
        """The factor in (0, 1] of a round r, r < R; of training before the first round (`ANY_ROUND`) that of round 0.

        With s = r - W rounds since the warm-up: 1 for `constant`; factor^floor(s / every) for `step`, or factor to the
        number of `falls` up to r; and (1 + cos(pi s / (R - W))) / 2 for `cosine`, which would be 0 in the round after
        the last.
        """
        round = max(round, 0)
        if round < self.warmup:
            return (round + 1) / self.warmup
        since = round - self.warmup
        if self.name == "step":
            past = sum(fall <= round for fall in self.falls) if self.falls else since // self.every
            return self.factor**past
        return cosine(since, self.rounds - self.warmup) if self.name == "cosine" else 1.0


CONSTANT = RateSchedule()
"""The same rate in all rounds."""
