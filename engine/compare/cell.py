"""One run of a comparison: in one process, from data that is there already, to the files of a run's folder."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.clock import PhaseClock
from actors.jobs.job import Tell
from actors.jobs.recall import RecallingLoop, RecallingRunner, Store
from actors.process import set_kernels
from actors.steps.stacking import single_client_loop
from actors.steps.wire import accept_read_only
from clusters.bits import processor
from engine.compare.spec import Cell
from engine.config.budget import budget_fact
from engine.data import DataSet
from engine.planning.federation import Federation
from engine.records import GLOBAL, Result, RoundRecord, RunStart, StageRecord, Watcher
from engine.run.context import RunContext
from engine.run.simulation import simulate
from engine.store.folder import RunFolder
from engine.units import figure_text

TRAINING = "training.json"
"""File of a cell's folder: seconds of client training done in its process, and those spared."""

FACTS = {"runner": "in one process of a comparison; equal client training of several methods was done once"}


@dataclass(frozen=True)
class Files:
    """A run's folder as it travels: bytes by path in it."""

    contents: Mapping[str, bytes]

    def write(self, folder: Path) -> None:
        """Make the folder, under another name first, so that one that is there is whole."""
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        for path, content in self.contents.items():
            file = part / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        part.replace(folder)

    @classmethod
    def of(cls, folder: Path) -> Files:
        """Read all files of a folder."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})


class _Teller:
    """A watcher that says in a line how far the run is: after each round, and of its phases once a second at most."""

    SECONDS = 1.0

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._rounds, self._unit, self._score = tell, 0, "", ""
        self._clock, self._last = clock, clock()

    def started(self, start: RunStart) -> None:
        self._rounds, self._unit = start.rounds, start.headline.unit

    def step(self, round: int, step: str, done: int, total: int) -> None:
        if self._clock() - self._last >= self.SECONDS:
            self._say(f"{round + 1}/{self._rounds}{self._score} {step} {done}/{total}")

    def stage(self, record: StageRecord) -> None:
        if record.stage == GLOBAL:
            self._score = f" {figure_text(record.evaluation.headline, self._unit)}"

    def round(self, record: RoundRecord) -> None:
        self._say(f"{record.round + 1}/{self._rounds}{self._score}")

    def _say(self, text: str) -> None:
        self._tell(text)
        self._last = self._clock()

    def finished(self, result: Result) -> None: ...

    def failed(self, error: BaseException) -> None: ...


def carry(
    cell: Cell, source: str, dataset: DataSet, store: Store, tell: Tell, watchers: Sequence[Watcher] = ()
) -> Files:
    """Run a cell.

    Args:
        source: what the comparison came from.
        store: of trained networks, shared by all cells of the seed.
        watchers: hear of the run as it goes.
    """
    clock = PhaseClock("start:data")
    set_kernels(cell.config.runner.bits)
    with tempfile.TemporaryDirectory(prefix="tessera-") as place, accept_read_only():
        folder = Path(place) / cell.name
        federation = Federation.of(cell.config, dataset)
        loop = RecallingLoop(store, f"{dataset.fingerprint} {processor()}", single_client_loop(federation.setup))
        run = RunContext(
            federation,
            RunFolder.create(folder),
            source,
            clock,
            facts={**FACTS, **budget_fact(cell.config)},
            processors={processor(): ["driver"]},
        )
        simulate(run, RecallingRunner(federation.setup, federation.shards, loop), [_Teller(tell), *watchers])
        (folder / TRAINING).write_text(json.dumps({"done": loop.train_seconds, "spared": loop.saved_seconds}))
        return Files.of(folder)
