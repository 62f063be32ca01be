"""MLflow's view of a comparison: one run for the whole, and under it one for each method and seed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from actors.cohort.delivery import Book, ClientMetric, Entry
from engine.compare.conduct import CellResult
from engine.compare.spec import Comparison
from engine.compare.table import Row
from engine.records import Result, RoundRecord, RunStart
from engine.store.folder import StoredRun
from engine.store.tables import NOBODY, SERVER
from engine.views.tracking import MlflowWatcher, TrackingStore

_LOG = logging.getLogger(__name__)


class Follower:
    """Tells a store of a comparison; runs that an interrupted one had finished are told again, under the new parent."""

    def __init__(self, store: TrackingStore, comparison: Comparison, folder: Path) -> None:
        tags = {
            "comparison": comparison.source,
            "methods": ",".join(comparison.labels),
            "folder": str(folder.absolute()),
        }
        self._store = store
        made = store.client.create_run(store.experiment, tags=tags, run_name=folder.absolute().name)
        self._id: str = made.info.run_id

    def run(self, result: CellResult) -> None:
        """A run, as its folder tells it; one that failed is not told."""
        if result.run is not None:
            retell(result.run, MlflowWatcher(self._store, parent=self._id))

    def close(self, rows: Sequence[Row], files: Sequence[Path]) -> None:
        """Means and deviations by method, and the comparison's own files."""
        try:
            client = self._store.client
            for row in rows:
                if row.values:
                    client.log_metric(self._id, f"{row.figure.name}/{row.label}", row.score.mean)
                    client.log_metric(self._id, f"{row.figure.name}_std/{row.label}", row.score.deviation or 0.0)
            for file in files:
                client.log_artifact(self._id, str(file))
            client.set_terminated(self._id, "FAILED" if any(row.failed for row in rows) else "FINISHED")
        except Exception as error:  # whatever a store raises: a view never ends a comparison
            _LOG.warning("Stopped logging to MLflow at %s: %s; the comparison continues", self._store.uri, error)


def retell(run: StoredRun, watcher: MlflowWatcher) -> None:
    """Tell a watcher a finished run from the start."""
    watcher.started(
        RunStart(
            folder=run.folder,
            config=run.config,
            class_names=run.class_names,
            label_counts=run.label_counts,
            figures=run.figures,
            facts=run.facts,
        )
    )
    for record in rounds_of(run):
        for stage in run.stages:
            if stage.round == record.round:
                watcher.stage(stage)
        watcher.round(record)
    watcher.finished(Result(run.result, Book(), run.pictures))


def rounds_of(run: StoredRun) -> Iterator[RoundRecord]:
    """A stored run's rounds as they were told when it was made."""
    stages = {stage.stage for stage in run.stages}
    for number in range(run.result["rounds"]):
        here = pc.field("round") == number
        entries = tuple(Entry(**row) for row in run.ledger.filter(here).to_pylist())
        measured: list[dict[str, Any]] = run.rounds.filter(here).to_pylist()
        yield RoundRecord(
            number,
            clients=tuple(sorted({entry.client for entry in entries})),
            metrics={row["name"]: row["value"] for row in measured if row["phase"] == SERVER},
            seconds={row["phase"]: row["seconds"] for row in run.seconds.filter(here).to_pylist()},
            entries=entries,
            client_metrics=tuple(
                ClientMetric(**row) for row in measured if row["client"] != NOBODY and row["phase"] not in stages
            ),
        )
