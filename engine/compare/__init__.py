"""Comparisons: several methods under the same partition, initial weights, client work and seeds, and one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.compare.conduct import CellResult, ComparisonWatcher, conduct
from engine.compare.following import Follower
from engine.compare.page import write_page
from engine.compare.spec import Comparison, comparison_of
from engine.compare.table import Row, as_csv, markdown, rows_of, write_tables
from engine.views.tracking import reach

__all__ = ["Compared", "compare", "comparison_of"]


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison that was carried out."""

    rows: tuple[Row, ...]
    finished: tuple[CellResult, ...]
    folder: Path

    @property
    def saved_seconds(self) -> float:
        """Seconds of client training that were not spent, because another run had done the very same."""
        return sum(one.saved_seconds for one in self.finished)

    @property
    def has_failed(self) -> bool:
        """Whether any run failed."""
        return any(one.run is None for one in self.finished)


def compare(comparison: Comparison, folder: Path, command: str, watcher: ComparisonWatcher) -> ComparisonResult:
    """Carry a comparison out and write table.md, table.csv and report.html.

    Args:
        folder: new; or of this comparison, interrupted or finished, which then goes on with what is missing.
        command: as it was typed, kept beside the table.

    Raises:
        UserError and its like: before anything is written, for what a person can put right.
    """
    mlflow = comparison.common.mlflow
    reached = reach(mlflow.tracking_uri, folder) if mlflow.enabled else None
    finished = conduct(comparison, folder, watcher)
    rows = rows_of(finished)
    write_tables(folder, command, markdown(rows), as_csv(rows))
    write_page(comparison, finished, rows, folder / "report.html")
    if reached is not None:
        follower = Follower(reached, comparison, folder)
        for one in finished:
            follower.run(one)
        follower.close(rows, [folder / name for name in ("table.md", "table.csv", "report.html", "comparison.yaml")])
    return ComparisonResult(tuple(rows), tuple(finished), folder)
