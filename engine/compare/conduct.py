"""Carry a comparison out: what is missing in its folder, as many runs at a time as there is room for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

from actors.jobs.job import Job, JobResult, one_by_one
from actors.process import set_kernels
from clusters.grants import free_memory
from engine.compare.cell import TRAINING, Files, carry
from engine.compare.room import room_on_ray
from engine.compare.spec import Cell, Comparison, differences
from engine.config import RunConfig, to_tree
from engine.config.reading import dump
from engine.data import DataSet
from engine.errors import ConfigError, Problem
from engine.planning.checking import check
from engine.planning.federation import Federation, read_data
from engine.planning.report import plan
from engine.run.hosting import this_machine
from engine.run.resuming import binding_settings
from engine.store.folder import FolderError, StoredRun, make, read, write_text

SHARED = "shared"
"""Folder of the trained networks that runs of one seed share; gone when the seed's runs are done."""


@dataclass(frozen=True)
class CellResult:
    """A cell with its run; or with what went wrong, in a line.

    Attributes:
        saved_seconds: seconds of client training that were not spent because another run of the comparison had done it.
        earlier: whether it was there already.
    """

    cell: Cell
    run: StoredRun | None
    saved_seconds: float = 0.0
    earlier: bool = False
    error: str = ""


class ComparisonWatcher(Protocol):
    """Hears of a comparison as it goes."""

    def started(self, comparison: Comparison, folder: Path, missing: int, facts: Sequence[str]) -> None: ...

    def progress(self, lines: dict[str, str]) -> None:
        """Hear the last line of each run under way, by the cell's name."""
        ...

    def finished(self, finished: CellResult) -> None: ...


ProgressReport: TypeAlias = Callable[[dict[str, str]], None]


def memory_of_all(comparison: Comparison, dataset: DataSet) -> int:
    """Check every method against the data, the clients and this machine, before anything starts.

    Returns:
        predicted bytes of the process of the largest run.

    Raises:
        ConfigError: everything that is wrong, for all methods together.
    """
    problems: dict[str, Problem] = {}
    largest, free = 0, free_memory()
    for label in comparison.labels:
        federation = Federation.of(comparison.of(label)[0].config, dataset)
        try:
            check(federation)
            largest = max(largest, plan(federation, (this_machine(),), free).memory.driver)
        except ConfigError as error:
            for problem in error.problems:
                own = problem.place.startswith("method.")
                named = replace(problem, place=f"methods.{label}{problem.place[6:]}") if own else problem
                problems.setdefault(str(named), named)
    if problems:
        raise ConfigError(list(problems.values()))
    return largest


def finished_runs(comparison: Comparison, folder: Path) -> dict[str, CellResult]:
    """The comparison's runs that are finished in a folder, by the cells' names.

    Raises:
        FolderError: a run there is of another configuration; or the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "comparison.yaml").exists():
        raise FolderError(f"{folder} holds something that is no comparison: name another folder with --out")
    done = {}
    for cell in comparison.cells:
        path = folder / cell.name
        if (path / "result.json").exists():
            run = read(path)
            require_same(cell, run)
            done[cell.name] = CellResult(cell, run, read_training(path)["spared"], earlier=True)
    return done


def require_same(cell: Cell, run: StoredRun) -> None:
    wrong = differences(binding_settings(to_tree(cell.config)), binding_settings(run.config))
    if wrong:
        raise FolderError(
            f"{run.folder} was run with other settings ({'; '.join(wrong[:5])}): name another folder with --out, or "
            "remove it to run it anew"
        )


def read_training(folder: Path) -> dict[str, float]:
    numbers: dict[str, float] = json.loads((folder / TRAINING).read_text())
    return numbers


def conduct(comparison: Comparison, folder: Path, watcher: ComparisonWatcher) -> list[CellResult]:
    """Run what is missing, and return all runs in the comparison's order.

    A run that fails does not end the others.

    Raises:
        UserError and its like: before anything is written, for what a person can put right.
    """
    set_kernels(comparison.common.runner.bits)
    dataset = read_data(comparison.common)
    memory = memory_of_all(comparison, dataset)
    done = finished_runs(comparison, folder)
    missing = [cell for cell in comparison.cells if cell.name not in done]
    make(folder)
    write_text(folder / "comparison.yaml", _yaml(comparison))
    cells = {cell.name: cell for cell in missing}
    jobs = _jobs(comparison, missing)
    with _performing(comparison.common, jobs, memory, dataset, folder, watcher.progress) as (ended, facts):
        watcher.started(comparison, folder, len(missing), facts)
        for finished in done.values():
            watcher.finished(finished)
        for end in ended:
            finished = _keep(cells[end.name], end, folder)
            done[end.name] = finished
            watcher.finished(finished)
            _drop_store(comparison, finished.cell.seed, done, folder)
    return [done[cell.name] for cell in comparison.cells]


def _yaml(comparison: Comparison) -> str:
    seeds = ", ".join(map(str, comparison.seeds))
    return f"# {comparison.source}, seeds {seeds}\n{dump(comparison.tree())}"


def _jobs(comparison: Comparison, missing: Sequence[Cell]) -> list[Job]:
    """The missing cells as jobs, those of the first method first: the others of its seed find its training done."""
    first = comparison.labels[0]
    names = {cell.name for cell in missing}
    ordered = [cell for cell in missing if cell.label == first] + [cell for cell in missing if cell.label != first]
    leaders = {cell.seed: cell.name for cell in comparison.of(first) if cell.name in names}
    return [
        Job(
            name=cell.name,
            group=_group(cell.seed),
            after=None if cell.label == first else leaders.get(cell.seed),
            call=partial(carry, cell, comparison.source),
        )
        for cell in ordered
    ]


def _group(seed: int) -> str:
    return f"seed-{seed}"


def _keep(cell: Cell, end: JobResult, folder: Path) -> CellResult:
    """Store a cell's result in the comparison's folder; of one that failed, its traceback."""
    path, log = folder / cell.name, folder / f"{cell.name}-failed.txt"
    shutil.rmtree(path, ignore_errors=True)
    if end.value is None:
        log.write_text(end.traceback, encoding="utf-8")
        return CellResult(cell, None, error=f"{end.error} (the whole of it is in {log.name})")
    log.unlink(missing_ok=True)
    files: Files = end.value
    files.write(path)
    return CellResult(cell, read(path), read_training(path)["spared"])


def _drop_store(comparison: Comparison, seed: int, done: Mapping[str, CellResult], folder: Path) -> None:
    """Trained networks are kept while a run of their seed is missing, also one that failed: it may be run again."""
    finished = [done.get(cell.name) for cell in comparison.cells if cell.seed == seed]
    if all(cell is not None and cell.run is not None for cell in finished):
        shutil.rmtree(folder / SHARED / _group(seed), ignore_errors=True)
        if not any((folder / SHARED).glob("*")):
            shutil.rmtree(folder / SHARED, ignore_errors=True)


@contextmanager
def _performing(
    config: RunConfig, jobs: Sequence[Job], memory: int, dataset: DataSet, folder: Path, report: ProgressReport
) -> Iterator[tuple[Iterator[JobResult], list[str]]]:
    """The jobs as they end, and in words how they are carried out."""
    if config.runner.kind == "inline" or not jobs:
        yield one_by_one(jobs, dataset, folder / SHARED, report), ["runner: one run after another in this process"]
        return
    from actors.jobs.side_by_side import side_by_side

    with room_on_ray(config, len(jobs), memory, [dataset], folder) as room:
        facts = [f"runner: Ray, {room.where}; {room.places} runs at a time, each on one CPU"]
        yield side_by_side(jobs, dataset, folder / SHARED, room.share, report), facts
