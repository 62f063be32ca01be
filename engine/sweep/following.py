"""MLflow's view of a sweep: one run for the whole, and under it one for each run of each setting."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from engine.compare.following import retell
from engine.sweep.conduct import SettingResult
from engine.sweep.spec import Sweep
from engine.sweep.table import Row
from engine.views.tracking import MlflowWatcher, TrackingStore

_LOG = logging.getLogger(__name__)

FILES = ("table.md", "table.csv", "report.html", "best.yaml", "sweep.yaml")


def follow(
    store: TrackingStore, sweep: Sweep, finished: Sequence[SettingResult], rows: Sequence[Row], folder: Path
) -> None:
    """Tell a store of a sweep that is done. A view: what it raises ends no sweep."""
    client = store.client
    try:
        tags = {"sweep": sweep.source, "search": sweep.section.search, "folder": str(folder.absolute())}
        parent = client.create_run(store.experiment, tags=tags, run_name=folder.absolute().name).info.run_id
        for one in finished:
            for run in one.runs:
                retell(run, MlflowWatcher(store, parent=parent))
        for row in sorted(rows, key=lambda row: row.number):
            if row.score.values:
                client.log_metric(parent, f"validation/{row.figure.name}", row.score.mean, step=row.number)
        for path in (folder / name for name in FILES):
            if path.exists():
                client.log_artifact(parent, str(path))
        client.set_terminated(parent, "FAILED" if any(row.state == "failed" for row in rows) else "FINISHED")
    except Exception as error:  # whatever a store raises
        _LOG.warning("Stopped logging to MLflow at %s: %s; the sweep's folder is whole", store.uri, error)
