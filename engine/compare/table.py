"""A comparison as a table: one row for each method, means and standard deviations over the seeds."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from algorithms.core.task import Figure
from engine.compare.conduct import CellResult
from engine.store.folder import StoredRun, write_text
from engine.units import figure_digits, rounded_like, size

UNKNOWN = Figure("score", "higher")
"""Heads the table where no run was finished that could say what it is measured by."""


@dataclass(frozen=True)
class Spread:
    """Values of several seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean; NaN where there is none."""
        return statistics.fmean(self.values) if self.values else float("nan")

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation (n - 1); NaN where a value is not finite, None of fewer than two."""
        if len(self.values) < 2:
            return None
        return statistics.stdev(self.values) if all(map(math.isfinite, self.values)) else math.nan

    def text(self, form: Callable[[float], str]) -> str:
        """Mean and deviation as a person reads them."""
        if not self.values:
            return "-"
        own = form(self.mean)
        return own if self.deviation is None else f"{own} ± {form(self.deviation)}"


@dataclass(frozen=True)
class Row:
    """A method over the seeds whose runs were finished.

    Attributes:
        figure: what the methods are measured by: the headline of the task.
        values: of the figure, by seed; NaN where it was not finite.
        steps: mini-batches of local training of all clients in a whole run; what generators take is not among them.
        client_seconds: of computing, summed over clients, as if nothing had been shared between runs.
        server_seconds: wall time of the server's own phases.
        up, down: bytes from and to clients.
        personal: whether clients were evaluated each with a model of its own, on test examples of its own.
        failed: what ended a run, by seed.
        worst: the figure of the client that is served worst, on its own share of the test set.
    """

    label: str
    method: str
    figure: Figure
    values: Mapping[int, float]
    steps: Spread
    client_seconds: Spread
    server_seconds: Spread
    up: Spread
    down: Spread
    personal: bool
    failed: Mapping[int, str]
    worst: Spread = Spread(())

    @property
    def score(self) -> Spread:
        """The figure over the seeds."""
        return Spread(tuple(self.values.values()))

    @property
    def score_text(self) -> str:
        """Mean and deviation of the figure without its unit, the deviation no finer than the mean."""
        return self._text(self.score)

    @property
    def worst_text(self) -> str:
        """As `score_text`, of the client that is served worst."""
        return self._text(self.worst)

    def _text(self, spread: Spread) -> str:
        return spread.text(lambda value: self.figure_digits(rounded_like(value, spread.mean)))

    @property
    def rank(self) -> float:
        """A key for `sorted` that puts better rows first."""
        return self.figure.rank_key(self.score.mean)

    def figure_digits(self, value: float) -> str:
        """The figure without its unit."""
        return figure_digits(value, self.figure.unit)

    def tree(self) -> dict[str, Any]:
        """As JSON has it, with keys that are named by the figure."""
        found = dataclasses.asdict(self)
        name, values = self.figure.name, found.pop("values")
        return {**found, name: values, f"{name}_mean": self.score.mean, f"{name}_std": self.score.deviation}


def rows_of(results: Sequence[CellResult]) -> list[Row]:
    """A row for each label, in the order in which labels come first."""
    labels = dict.fromkeys(f.cell.label for f in results)
    figure = next((f.run.headline for f in results if f.run is not None), UNKNOWN)
    return [_row(label, figure, [f for f in results if f.cell.label == label]) for label in labels]


def _row(label: str, figure: Figure, finished: Sequence[CellResult]) -> Row:
    runs = {f.cell.seed: f.run for f in finished if f.run is not None}
    method = finished[0].cell.config.method

    def spread(value: Callable[[StoredRun], float]) -> Spread:
        return Spread(tuple(float(value(run)) for run in runs.values()))

    return Row(
        label=label,
        method=method.name,
        figure=figure,
        values={seed: run.score for seed, run in runs.items()},
        steps=spread(_steps),
        client_seconds=spread(lambda run: run.result["seconds"]["client_work"]),
        server_seconds=spread(lambda run: run.result["seconds"]["server"]),
        up=spread(lambda run: run.result["bytes_up"]),
        down=spread(lambda run: run.result["bytes_down"]),
        personal=method.type.personal,
        failed={f.cell.seed: f.error for f in finished if f.run is None},
        worst=Spread(tuple(_worst(run) for run in runs.values() if run.clients is not None)),
    )


def _worst(run: StoredRun) -> float:
    spread = run.clients.spread(run.headline) if run.clients else None
    return math.nan if spread is None else spread.worst


def _steps(run: StoredRun) -> float:
    found = pc.sum(run.rounds.filter(pc.field("name") == "steps")["value"]).as_py()
    return float(found or 0.0)


def best(rows: Sequence[Row]) -> set[str]:
    """Labels of the best mean, as it is shown; personal models are measured otherwise and left out."""
    shown = {row.label: row.figure_digits(row.score.mean) for row in rank(rows)}
    return {label for label, digits in shown.items() if digits == next(iter(shown.values()))}


def rank(rows: Sequence[Row]) -> list[Row]:
    """Rows whose mean is a number, the best first; without personal models, which are measured otherwise."""
    alike = [row for row in rows if not row.personal and not math.isnan(row.score.mean)]
    return sorted(alike, key=lambda row: row.rank)


def head_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the columns."""
    figure = rows[0].figure if rows else UNKNOWN
    name, worst = (f"{words} {figure.unit}".rstrip() for words in (figure.name.replace("_", " "), "worst client"))
    if figure.better == "lower":
        name += " (lower is better)"
    return ("method", name, worst, "seeds", "client steps", "client s", "server s", "up", "down")


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:,.1f}"


def cells_of(row: Row) -> tuple[str, ...]:
    """A row in words, under `head_of`."""
    name = f"{row.label} (own models)" if row.personal else row.label
    return (
        name,
        row.score_text,
        row.worst_text,
        str(len(row.values)),
        _whole(row.steps.mean) if row.steps.values else "-",
        row.client_seconds.text(_seconds),
        row.server_seconds.text(_seconds),
        size(row.up.mean) if row.up.values else "-",
        size(row.down.mean) if row.down.values else "-",
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, the best mean in bold."""
    winners, head = best(rows), head_of(rows)
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in rows:
        name, score, *rest = cells_of(row)
        score = f"**{score}**" if row.label in winners else score
        lines.append("| " + " | ".join([name, score, *rest]) + " |")
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """The table with every digit, a column for each seed, named by the figure."""
    seeds = sorted({seed for row in rows for seed in [*row.values, *row.failed]})
    name = rows[0].figure.name if rows else UNKNOWN.name
    spreads = ("worst", "steps", "client_seconds", "server_seconds", "up", "down")
    head = ["label", "method", "personal", f"{name}_mean", f"{name}_std"]
    head += [f"{name}_seed_{seed}" for seed in seeds]
    head += [f"{cost}_{what}" for cost in spreads for what in ("mean", "std")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        line: list[object] = [row.label, row.method, row.personal, row.score.mean, row.score.deviation]
        line += [row.values.get(seed) for seed in seeds]
        for cost in spreads:
            spread: Spread = getattr(row, cost)
            line += [spread.mean, spread.deviation]
        writer.writerow(line)
    return file.getvalue()


def write_tables(folder: Path, command: str, text: str, digits: str) -> None:
    """Write table.md, the text under the command as it was typed, and table.csv with every digit."""
    write_text(folder / "table.md", f"`{command}`\n\n{text}")
    write_text(folder / "table.csv", digits)
