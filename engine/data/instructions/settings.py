"""Settings of `generated:instructions`, as the section `data` of a configuration has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The number of tasks, and the differences between their writers.

    Attributes:
        writers: their number; writer w has the domain w modulo 5, and a style that no other has.
        items: training tasks of each writer; the test half has a quarter as many.
        content_shift: share of a writer's tasks that are of its one domain, in [0, 1].
        style_shift: share of a writer's answers that are in its own style, in [0, 1].
        seed: of every draw.
    """

    writers: int = 10
    items: int = 200
    content_shift: float = 1.0
    style_shift: float = 1.0
    seed: int = 0
