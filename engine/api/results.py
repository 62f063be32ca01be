"""Finished runs, comparisons and partitions as a Python caller gets them: figures, and tables in Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from algorithms.core.contract import ClientSpec
from algorithms.core.seeds import Seed
from engine.compare import ComparisonResult
from engine.config import ClientsConfig
from engine.models import LoadedModel, load
from engine.partition import Partition
from engine.planning.federation import Federation
from engine.records import GLOBAL
from engine.store.folder import StoredRun
from engine.store.tables import NOBODY, SERVER
from engine.sweep import SweepResult
from engine.units import figure_text


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished run, as its folder holds it.

    Attributes:
        stored: the whole of the folder.
        code: modules of one's own that `model` may import.
    """

    stored: StoredRun
    code: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.stored.folder

    @property
    def config(self) -> Mapping[str, Any]:
        """The complete configuration."""
        return self.stored.config

    @property
    def result(self) -> Mapping[str, Any]:
        """The contents of result.json: final figures, bytes, seconds, the digest."""
        return self.stored.result

    @property
    def score(self) -> float:
        """The final value of the headline figure; NaN where it was not finite."""
        return self.stored.score

    @cached_property
    def rounds(self) -> pa.Table:
        """One row for each round, from 0: the task's figures after it (null where it was not evaluated), those of other
        stages as `STAGE/FIGURE`, the server's numbers as `server/NAME`, `seconds`, `bytes_up` and `bytes_down`."""
        return pa.Table.from_pylist(list(self._round_rows()))

    @cached_property
    def clients(self) -> pa.Table:
        """One row for each client: `client`, `net`, `width`, its number of training `examples` and of each class,
        `asked` (rounds in which it was), `bytes_up`, `bytes_down`, and of each number that its steps report the last
        one, as `STEP/NAME`."""
        return pa.Table.from_pylist(list(self._client_rows()))

    @property
    def ledger(self) -> pa.Table:
        """One row for each message and kind: round, phase, client, direction, kind, bytes."""
        return self.stored.ledger

    @property
    def measurements(self) -> pa.Table:
        """One row for each number that was measured (rounds.parquet): round, phase, client, name, value."""
        return self.stored.rounds

    @property
    def seconds(self) -> pa.Table:
        """Wall time of each round by phase: round, phase, seconds."""
        return self.stored.seconds

    @property
    def items(self) -> Mapping[str, pa.Table]:
        """Tables of what clients' steps did, a row for each thing, by the step's name, such as `rewrite`."""
        return self.stored.items

    @property
    def confusion(self) -> np.ndarray | None:
        """int64 (classes, classes): test examples by class and predicted class at the end; None without classes."""
        return self.stored.confusion

    @property
    def report(self) -> Path:
        """The run's page, which needs no network."""
        return self.folder / "report.html"

    def model(self, client: int | None = None) -> LoadedModel:
        """The model that the run ended with, which predicts; of a method with personal models that of a client.

        Raises:
            UserError: there is none, a client must be named, or it is of code that was not named.
        """
        return load(self.folder, client, self.code)

    def __repr__(self) -> str:
        head = self.stored.headline
        reached = f"{head.name} {figure_text(self.score, head.unit)}"
        return f"Run({self.result['method']}, {self.result['rounds']} rounds, {reached}, {self.folder})"

    def _round_rows(self) -> Iterator[dict[str, Any]]:
        ledger, seconds = self.ledger.to_pylist(), self.seconds.to_pylist()
        measured = [row for row in self.measurements.to_pylist() if row["phase"] == SERVER]
        numbers = range(self.result["rounds"])
        rows: list[dict[str, Any]] = [{"round": number} for number in numbers]
        names = [_column(stage.stage, figure) for stage in self.stored.stages for figure in stage.evaluation.figures]
        names += [f"{SERVER}/{row['name']}" for row in measured]
        for row in rows:
            row.update(dict.fromkeys(names), seconds=0.0, bytes_up=0, bytes_down=0)
        for stage in self.stored.stages:
            figures = stage.evaluation.figures.items()
            rows[stage.round].update({_column(stage.stage, figure): value for figure, value in figures})
        for found in measured:
            rows[found["round"]][f"{SERVER}/{found['name']}"] = found["value"]
        for found in seconds:
            rows[found["round"]]["seconds"] += found["seconds"]
        for found in ledger:
            rows[found["round"]][f"bytes_{found['direction']}"] += found["bytes"]
        yield from rows

    def _client_rows(self) -> Iterator[dict[str, Any]]:
        rows = [_row_of(spec, self.stored) for spec in self._specs()]
        measured = [row for row in self.measurements.to_pylist() if row["client"] != NOBODY]
        names = dict.fromkeys(f"{found['phase']}/{found['name']}" for found in measured)
        asked: dict[int, set[int]] = {}
        for row in rows:
            row.update(dict.fromkeys(names), asked=0, bytes_up=0, bytes_down=0)
        for found in self.ledger.to_pylist():
            rows[found["client"]][f"bytes_{found['direction']}"] += found["bytes"]
            asked.setdefault(found["client"], set()).add(found["round"])
        for found in measured:
            rows[found["client"]][f"{found['phase']}/{found['name']}"] = found["value"]
        for client, rounds in asked.items():
            rows[client]["asked"] = len(rounds)
        yield from rows

    def _specs(self) -> Sequence[ClientSpec]:
        clients = ClientsConfig.model_validate_json(json.dumps(self.config["clients"]))
        return clients.specs(len(self.stored.label_counts), Seed(self.config["seed"]))


def _column(stage: str, figure: str) -> str:
    return figure if stage == GLOBAL else f"{stage}/{figure}"


def _row_of(spec: ClientSpec, run: StoredRun) -> dict[str, Any]:
    counts = run.label_counts[spec.id]
    by_class = {f"examples/{name}": int(count) for name, count in zip(run.class_names, counts, strict=False)}
    return {"client": spec.id, "net": spec.net, "width": spec.width, "examples": int(counts.sum()), **by_class}


@dataclass(frozen=True, eq=False)
class Comparison:
    """A comparison that was carried out.

    Attributes:
        folder: with table.md, table.csv, report.html and a folder for each run.
        table: one row for each method: `method`, the headline figure's mean and deviation over the seeds
            (`accuracy_mean`, `accuracy_std`), its value by seed, what the method cost. Read from table.csv.
        runs: those that finished, by `LABEL-seed-SEED`.
        failed: what ended the others, by the same names.
    """

    folder: Path
    table: pa.Table
    runs: Mapping[str, Run]
    failed: Mapping[str, str]

    @classmethod
    def of(cls, result: ComparisonResult) -> Comparison:
        from pyarrow import csv

        return cls(
            folder=result.folder,
            table=csv.read_csv(result.folder / "table.csv"),
            runs={one.cell.name: Run(one.run) for one in result.finished if one.run is not None},
            failed={one.cell.name: one.error for one in result.finished if one.run is None},
        )


@dataclass(frozen=True, eq=False)
class SweepTable:
    """A sweep that was carried out.

    Attributes:
        folder: with table.md, table.csv, best.yaml and a folder for each run.
        table: one row for each setting, the best first: its number, the keys, the figure on validation rows and on test
            rows (which had no part in the choice), rounds, state. Read from table.csv.
        best: the values of the best setting by key; {} where none was complete.
        runs: those that finished, by `NUMBER-seed-SEED`.
    """

    folder: Path
    table: pa.Table
    best: Mapping[str, Any]
    runs: Mapping[str, Run]

    @classmethod
    def of(cls, done: SweepResult) -> SweepTable:
        from pyarrow import csv

        return cls(
            folder=done.folder,
            table=csv.read_csv(done.folder / "table.csv"),
            best=done.rows[0].values if done.rows[0].state == "complete" else {},
            runs={run.folder.name: Run(run) for one in done.finished for run in one.runs},
        )


@dataclass(frozen=True, eq=False, repr=False)
class DealtData:
    """Training rows dealt to clients. Nothing is trained.

    Attributes:
        partition: int64 rows by client.
        class_names: () where there are no classes.
    """

    partition: Partition
    class_names: tuple[str, ...]
    _federation: Federation

    @classmethod
    def of(cls, federation: Federation) -> DealtData:
        return cls(federation.partition, tuple(federation.dataset.task.class_names), federation)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over who holds which rows."""
        return self.partition.fingerprint

    @cached_property
    def table(self) -> pa.Table:
        """One row for each training row: `row` and `client`, as partition.parquet has them."""
        clients = np.repeat(np.arange(self.partition.clients, dtype=np.int64), self.partition.sizes)
        return pa.table({"row": np.concatenate(self.partition.rows), "client": clients})

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 (clients, classes), examples by client and class; (clients, 1) where there are no classes."""
        data = self._federation.dataset
        return self.partition.counts(data.train_labels, data.task.classes)

    def save(self, path: str | Path) -> None:
        """Write a file that `partition={"kind": "file", "path": path}` takes."""
        self.partition.save(Path(path), self._federation.dataset.fingerprint)

    def draw(self, path: str | Path) -> None:
        """Write a picture (PNG) of who holds which classes."""
        from engine.partition.picture import draw

        draw(self.partition, self._federation.dataset.train_labels, self.class_names, Path(path))

    def __repr__(self) -> str:
        from engine.partition.picture import table

        return table(self.partition, self._federation.dataset.train_labels, self.class_names)
