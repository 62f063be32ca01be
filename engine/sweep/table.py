"""A sweep as a table: one row for each setting, the best first."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from algorithms.core.task import Figure
from engine.compare.table import UNKNOWN, Spread
from engine.errors import one_line
from engine.sweep.conduct import SettingResult
from engine.sweep.spec import Sweep
from engine.units import figure_digits, rounded_like


@dataclass(frozen=True)
class Row:
    """A setting.

    Attributes:
        figure: by which settings are judged.
        score: the best values on validation rows of its runs; of one that ended early its last score alone.
        tested: the same figure of the same models on test rows, which had no part in any choice; empty of others.
        rounds: that were played, of all its runs.
        state: `complete`, `ended early` or `failed`.
        error: where it failed.
    """

    number: int
    values: Mapping[str, Any]
    figure: Figure
    score: Spread
    tested: Spread
    rounds: int
    state: str
    error: str

    @property
    def score_text(self) -> str:
        """The score without its unit."""
        return _text(self.score, self.figure)

    def tree(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "setting": self.number,
            **self.values,
            f"validation_{self.figure.name}_mean": self.score.mean if self.score.values else None,
            f"validation_{self.figure.name}_std": self.score.deviation,
            f"test_{self.figure.name}_mean": self.tested.mean if self.tested.values else None,
            "rounds": self.rounds,
            "state": self.state,
            "error": self.error,
        }


def rows_of(sweep: Sweep, finished: Sequence[SettingResult]) -> list[Row]:
    """Complete settings by their scores, then those that ended early by how far they came, then those that failed."""
    figures = next((run.figures for one in finished for run in one.runs), (UNKNOWN,))
    rows = [_row(one, sweep.figure(figures)) for one in finished]
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[int, int, float, int]:
    rank = row.figure.rank_key(row.score.mean)
    order = ("complete", "ended early", "failed").index(row.state)
    return order, 0 if row.state == "complete" else -row.rounds, rank, row.number


def _row(one: SettingResult, figure: Figure) -> Row:
    stops = [run.result["stop"] or {} for run in one.runs]
    state = "complete" if one.is_complete else "failed" if one.error else "ended early"
    if state == "complete":
        values, tests, rounds = (
            tuple(_number(stop.get("best_value")) for stop in stops),
            tuple(_number((stop.get("best_figures") or {}).get(figure.name)) for stop in stops),
            sum(run.result["rounds"] for run in one.runs),
        )
    else:
        values, tests = tuple(score for _, score in one.scores[-1:]), ()
        rounds = len(one.scores) or sum(run.result["rounds"] for run in one.runs)
    setting = one.setting
    return Row(setting.number, setting.values, figure, Spread(values), Spread(tests), rounds, state, one.error)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def head_of(sweep: Sweep, rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the columns."""
    figure = rows[0].figure
    name = f"{figure.name} {figure.unit}".rstrip()
    return ("setting", *sweep.section.keys, f"validation {name}", f"test {name}", "rounds", "")


def cells_of(sweep: Sweep, row: Row) -> tuple[str, ...]:
    """A row in words, under `head_of`."""
    values = [value_text(row.values[key]) for key in sweep.section.keys]
    words = "" if row.state == "complete" else row.error or row.state
    return (f"{row.number:03}", *values, row.score_text, _text(row.tested, row.figure), str(row.rounds), words)


def value_text(value: Any) -> str:
    """A key's value as a person reads it."""
    return one_line(value).strip('"')


def markdown(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The table as Markdown, the best score in bold."""
    head, score = head_of(sweep, rows), 1 + len(sweep.section.keys)
    lines = ["| " + " | ".join(head) + " |", "| ---: |" + " ---: |" * (len(head) - 2) + " --- |"]
    for place, row in enumerate(rows):
        cells = list(cells_of(sweep, row))
        if place == 0 and row.state == "complete":
            cells[score] = f"**{cells[score]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _text(spread: Spread, figure: Figure) -> str:
    return spread.text(lambda value: figure_digits(rounded_like(value, spread.mean), figure.unit))


def as_csv(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The table with every digit."""
    file = io.StringIO()
    trees = [row.tree() for row in rows]
    writer = csv.DictWriter(file, list(trees[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trees)
    return file.getvalue()
