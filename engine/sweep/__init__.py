"""Sweeps: many settings of one configuration, chosen between by validation rows, never by test rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.compare.table import write_tables
from engine.config import to_yaml
from engine.store.folder import write_text
from engine.sweep.conduct import SettingResult, SweepWatcher, conduct
from engine.sweep.following import follow
from engine.sweep.page import write_page
from engine.sweep.spec import Sweep, sweep_of
from engine.sweep.table import Row, as_csv, markdown, rows_of
from engine.views.tracking import reach

__all__ = ["SweepResult", "sweep", "sweep_of"]


@dataclass(frozen=True)
class SweepResult:
    """A sweep that was carried out.

    Attributes:
        rows: of the table, the best setting first.
        finished: in the order in which settings were drawn.
    """

    rows: tuple[Row, ...]
    finished: tuple[SettingResult, ...]
    folder: Path

    @property
    def saved_seconds(self) -> float:
        """Seconds of client training that were not spent, because another run had done the very same."""
        return sum(one.saved_seconds for one in self.finished)

    @property
    def has_failed(self) -> bool:
        """Whether any setting failed."""
        return any(row.state == "failed" for row in self.rows)


def sweep(plan: Sweep, folder: Path, command: str, watcher: SweepWatcher) -> SweepResult:
    """Carry a sweep out and write table.md, table.csv, report.html and best.yaml.

    Args:
        folder: new; or of this sweep, interrupted or finished, which then goes on with what is missing.
        command: as it was typed, kept beside the table.

    Raises:
        UserError and its like: before anything is written, for what a person can put right.
    """
    mlflow = plan.common.mlflow
    reached = reach(mlflow.tracking_uri, folder) if mlflow.enabled else None
    finished = conduct(plan, folder, watcher)
    rows = rows_of(plan, finished)
    write_tables(folder, command, markdown(plan, rows), as_csv(plan, rows))
    write_page(plan, finished, rows, folder / "report.html")
    if rows[0].state == "complete":
        best = plan.settings[rows[0].number]
        write_text(folder / "best.yaml", f"# setting {best.name} of {plan.source}\n{to_yaml(plan.usual(best))}")
    if reached is not None:
        follow(reached, plan, finished, rows, folder)
    return SweepResult(tuple(rows), tuple(finished), folder)
