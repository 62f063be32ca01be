"""Two runs of the suite side by side: what changed, and what got slower by more than the noise. Nothing is measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure


@dataclass(frozen=True)
class Row:
    """A figure beside the one of the last run.

    Attributes:
        last: None where the last run did not have it.
        change: (now - last) / last of the medians, both relative to their calibration loops; None without a last one.
        noise: the larger of both runs' ranges, relative to their medians; None where one of them has a single value.
    """

    now: Figure
    last: Figure | None
    change: float | None
    noise: float | None

    @property
    def worse(self) -> bool:
        """Whether it changed to the worse by more than the noise."""
        if self.change is None or self.noise is None:
            return False
        return (self.change if self.now.better == "lower" else -self.change) > self.noise

    @property
    def misses_goal(self) -> bool:
        """Whether the median does not reach the goal."""
        if self.now.goal is None:
            return False
        median = statistics.median(self.now.values)
        return median > self.now.goal if self.now.better == "lower" else median < self.now.goal


def compare(now: Sequence[Figure], last: Sequence[Figure]) -> list[Row]:
    """Every figure of this run beside that of the same name and unit in the last one."""
    before = {(figure.name, figure.unit): figure for figure in last}
    return [_row(figure, before.get((figure.name, figure.unit))) for figure in now]


def _row(now: Figure, last: Figure | None) -> Row:
    if last is None or statistics.median(last.values) == 0:
        return Row(now, last, None, None)
    both = bool(now.loops) and bool(last.loops)
    new, old = (_relative(figure, both) for figure in (now, last))
    change = statistics.median(new) / statistics.median(old) - 1
    noise = None if min(len(new), len(old)) < 2 else max(spread(new), spread(old))
    return Row(now, last, change, noise)


def _relative(figure: Figure, to_loops: bool) -> list[float]:
    """Values as multiples of their calibration loops, so that a slower machine is not taken for slower code."""
    if not to_loops:
        return list(figure.values)
    return [value / loop for value, loop in zip(figure.values, figure.loops, strict=True)]


def spread(values: Sequence[float]) -> float:
    """The range of some values, relative to their median; 0 where that is 0."""
    median = statistics.median(values)
    return (max(values) - min(values)) / abs(median) if median else 0.0


def table(rows: Sequence[Row]) -> str:
    """Markdown, a row for each figure."""
    lines = [
        "| figure | unit | goal | last | now | change | noise | |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    now, last = row.now, row.last
    sign = "<=" if now.better == "lower" else ">="
    remarks = ["worse"] * row.worse + ["goal missed"] * row.misses_goal
    return [
        now.name,
        now.unit,
        "" if now.goal is None else f"{sign} {now.goal:g}",
        "" if last is None else number(statistics.median(last.values)),
        number(statistics.median(now.values)),
        "" if row.change is None else f"{row.change:+.1%}",
        "" if row.noise is None else f"{row.noise:.1%}",
        ", ".join(remarks),
    ]


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def verdict(rows: Sequence[Row]) -> list[str]:
    """A line for each figure that got worse by more than the noise; one that says so where none did."""
    lines = [
        f"worse by more than the noise: {row.now.name}: {row.change:+.1%}, noise {row.noise:.1%}"
        for row in rows
        if row.worse
    ]
    return lines or ["nothing got worse by more than the noise"]
