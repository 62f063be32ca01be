"""A comparison as a table: one row for each method, means and standard deviations over the seeds."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from engine.compare.conduct import Finished
from engine.store.folder import StoredRun
from engine.units import size


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
        """The sample's standard deviation (n - 1); None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

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
        accuracy: by seed, in [0, 1].
        steps: mini-batches of local training of all clients in a whole run; what generators take is not among them.
        client_seconds: of computing, summed over clients, as if nothing had been shared between runs.
        server_seconds: wall time of the server's own phases.
        up, down: bytes from and to clients.
        personal: whether clients were evaluated each with a model of its own, on test images of its own classes.
        failed: what ended a run, by seed.
    """

    label: str
    method: str
    accuracy: Mapping[int, float]
    steps: Spread
    client_seconds: Spread
    server_seconds: Spread
    up: Spread
    down: Spread
    personal: bool
    failed: Mapping[int, str]

    @property
    def score(self) -> Spread:
        """The accuracies."""
        return Spread(tuple(self.accuracy.values()))

    def tree(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**dataclasses.asdict(self), "accuracy_mean": self.score.mean, "accuracy_std": self.score.deviation}


def rows_of(finished: Sequence[Finished]) -> list[Row]:
    """A row for each label, in the order in which labels come first."""
    labels = dict.fromkeys(f.cell.label for f in finished)
    return [_row(label, [f for f in finished if f.cell.label == label]) for label in labels]


def _row(label: str, finished: Sequence[Finished]) -> Row:
    runs = {f.cell.seed: f.run for f in finished if f.run is not None}
    method = finished[0].cell.config.method

    def spread(value: Callable[[StoredRun], float]) -> Spread:
        return Spread(tuple(float(value(run)) for run in runs.values()))

    return Row(
        label=label,
        method=method.name,
        accuracy={seed: _number(run.result["accuracy"]) for seed, run in runs.items()},
        steps=spread(_steps),
        client_seconds=spread(lambda run: run.result["seconds"]["client_work"]),
        server_seconds=spread(lambda run: run.result["seconds"]["server"]),
        up=spread(lambda run: run.result["bytes_up"]),
        down=spread(lambda run: run.result["bytes_down"]),
        personal=method.type.personal,
        failed={f.cell.seed: f.error for f in finished if f.run is None},
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _steps(run: StoredRun) -> float:
    found = pc.sum(run.rounds.filter(pc.field("name") == "steps")["value"]).as_py()
    return float(found or 0.0)


def best(rows: Sequence[Row]) -> set[str]:
    """Labels of the highest mean accuracy, as it is shown; personal models are measured otherwise and left out."""
    shown = {row.label: round(row.score.mean, 3) for row in rows if row.accuracy and not row.personal}
    highest = max(shown.values(), default=None)
    return {label for label, mean in shown.items() if mean == highest}


HEAD = ("method", "accuracy %", "seeds", "client steps", "client s", "server s", "up", "down")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:,.1f}"


def cells_of(row: Row) -> tuple[str, ...]:
    """A row in words, under `HEAD`."""
    name = f"{row.label} (own models)" if row.personal else row.label
    return (
        name,
        row.score.text(_percent),
        str(len(row.accuracy)),
        _whole(row.steps.mean) if row.steps.values else "-",
        row.client_seconds.text(_seconds),
        row.server_seconds.text(_seconds),
        size(row.up.mean) if row.up.values else "-",
        size(row.down.mean) if row.down.values else "-",
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, the best mean accuracy in bold."""
    winners = best(rows)
    lines = ["| " + " | ".join(HEAD) + " |", "| --- |" + " ---: |" * (len(HEAD) - 1)]
    for row in rows:
        name, accuracy, *rest = cells_of(row)
        accuracy = f"**{accuracy}**" if row.label in winners else accuracy
        lines.append("| " + " | ".join([name, accuracy, *rest]) + " |")
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """The table with every digit, a column for each seed's accuracy."""
    seeds = sorted({seed for row in rows for seed in [*row.accuracy, *row.failed]})
    spreads = ("steps", "client_seconds", "server_seconds", "up", "down")
    head = ["label", "method", "personal", "accuracy_mean", "accuracy_std"]
    head += [f"accuracy_seed_{seed}" for seed in seeds]
    head += [f"{name}_{what}" for name in spreads for what in ("mean", "std")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        line: list[object] = [row.label, row.method, row.personal, row.score.mean, row.score.deviation]
        line += [row.accuracy.get(seed) for seed in seeds]
        for name in spreads:
            spread: Spread = getattr(row, name)
            line += [spread.mean, spread.deviation]
        writer.writerow(line)
    return file.getvalue()
