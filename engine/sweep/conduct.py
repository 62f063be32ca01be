"""Carry a sweep out: what is missing in its folder, as many settings at a time as there is room for."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import psutil

from actors.jobs.recall import Store
from actors.jobs.trials import Trial, try_one_by_one
from actors.process import set_kernels
from algorithms.core.task import Figure
from engine.compare.cell import Files, carry
from engine.compare.conduct import SHARED, read_training, require_same
from engine.compare.room import room_on_ray
from engine.compare.spec import Cell, differences
from engine.config import RunConfig, to_tree
from engine.config.reading import dump, parse
from engine.data import DataSet
from engine.errors import ConfigError, Problem, UserError
from engine.planning.checking import check
from engine.planning.federation import Federation, read_data
from engine.planning.report import plan
from engine.records import VALIDATION, Result, RoundRecord, RunStart, StageRecord
from engine.run.hosting import this_machine
from engine.store.folder import FolderError, StoredRun, make, read, write_text
from engine.sweep.spec import Setting, Sweep

SPEC, TOLD = "sweep.yaml", "ended-early.json"
"""Files of a sweep's folder: what it is; and the scores of settings that did not go on to their end."""

WORST = 1e30
"""Stands for what is no number in comparisons of scores."""

Scores: TypeAlias = tuple[tuple[int, float], ...]
"""The scores of a setting, (step, score after it); a step is a round, counted over all its runs."""


@dataclass(frozen=True)
class SettingResult:
    """A setting that was tried.

    Attributes:
        runs: that were finished, in the order of its cells; all of them unless it ended early or failed.
        scores: of one that ended early, as far as it went; () of others.
        error: where it failed; else empty.
        earlier: whether all was there already.
    """

    setting: Setting
    runs: tuple[StoredRun, ...]
    scores: Scores = ()
    saved_seconds: float = 0.0
    error: str = ""
    earlier: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether all its runs were finished."""
        return len(self.runs) == len(self.setting.cells)


class SweepWatcher(Protocol):
    """Hears of a sweep as it goes."""

    def started(self, sweep: Sweep, folder: Path, missing: int, facts: Sequence[str]) -> None: ...

    def progress(self, setting: str, step: int, steps: int, score: float, figure: Figure) -> None:
        """Hear that a setting has come so far."""
        ...

    def finished(self, finished: SettingResult, figure: Figure) -> None: ...


class _Judge:
    """A watcher that hands the figure on validation rows on, after each round that has one."""

    def __init__(self, figure: str, judge: Callable[[int, float], None]) -> None:
        self._figure, self._judge = figure, judge

    def started(self, start: RunStart) -> None: ...

    def step(self, round: int, step: str, done: int, total: int) -> None: ...

    def stage(self, record: StageRecord) -> None:
        if record.stage == VALIDATION:
            self._judge(record.round, record.evaluation.figures[self._figure])

    def round(self, record: RoundRecord) -> None: ...

    def finished(self, result: Result) -> None: ...

    def failed(self, error: BaseException) -> None: ...


@dataclass(frozen=True)
class Knowledge:
    """Knowledge of a setting from before: the judged rounds of its finished runs, or all its scores."""

    rounds: Mapping[str, Scores] = field(default_factory=dict)
    scores: Scores = ()


def better_of(figure: Figure, values: Sequence[float]) -> float:
    """The best of some values, NaN where none is a number."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return math.nan
    return max(numbers) if figure.better == "higher" else min(numbers)


def try_setting(
    setting: Setting,
    known: Knowledge,
    source: str,
    figure: Figure,
    rounds: int,
    datasets: Mapping[str, DataSet],
    store: Store,
    report: Callable[[int, float], None],
    keep: Callable[[str, Files], None],
) -> None:
    """Run a setting's cells one after another, and report its score after every judged round: the mean over its runs,
    finished and under way, of the best value so far.

    Args:
        rounds: of the longest run of the sweep.
        datasets: by `data_key`.
    """
    for step, score in known.scores:  # where it ended then, it ends now
        report(step, score)
    best: list[float] = []
    for number, cell in enumerate(setting.cells):
        values: list[float] = []

        def judge(round: int, value: float, number: int = number, values: list[float] = values) -> None:
            values.append(value)
            score = math.fsum([*best, better_of(figure, values)]) / (number + 1)
            worst = -WORST if figure.better == "higher" else WORST
            report(number * rounds + round + 1, score if math.isfinite(score) else worst)

        if cell.name in known.rounds:
            for round, value in known.rounds[cell.name]:
                judge(round, value)
        else:
            dataset = datasets[data_key(cell.config)]
            files = carry(cell, source, dataset, store, lambda text: None, [_Judge(figure.name, judge)])
            keep(cell.name, files)
        best.append(better_of(figure, values))


def data_key(config: RunConfig) -> str:
    """A text that is the same for configurations of the same data and task, read for the same network."""
    tree = to_tree(config)
    return json.dumps([tree["data"], tree["task"], tree["clients"]["net"]], sort_keys=True)


def conduct(sweep: Sweep, folder: Path, watcher: SweepWatcher) -> list[SettingResult]:
    """Try what is missing, and return all settings in the sweep's order. One that fails does not end the others.

    Raises:
        UserError and its like: before anything is written, for what a person can put right.
    """
    if _needs_ray(sweep) and importlib.util.find_spec("ray") is None:
        raise UserError(
            "a sweep needs Ray Tune, which is not installed: pip install 'tessera-fl[sweep]'; or, where sweep.search "
            "is grid or random, set runner.kind to inline"
        )
    set_kernels(sweep.common.runner.bits)
    datasets = _datasets(sweep)
    figures = next(iter(datasets.values())).task.figures
    figure, memory = sweep.figure(figures), _memory_of_all(sweep, datasets)
    known = _knowledge_of(sweep, folder, figure)
    make(folder)
    write_text(folder / SPEC, f"# {sweep.source}\n{dump(sweep.tree)}")
    missing = [one for one in sweep.settings if not _is_over(one, known[one.name])]
    ear = _Ear(sweep, folder, figure, watcher, known)
    if missing:
        _perform(sweep, folder, datasets, memory, figure, known, ear, len(missing))
    else:
        ear.start(0, [])
        for setting in sweep.settings:
            ear.finished(setting.name)
    results = [ear.results[setting.name] for setting in sweep.settings]
    if not any(one.error for one in results):
        shutil.rmtree(folder / SHARED, ignore_errors=True)
    return results


def _datasets(sweep: Sweep) -> dict[str, DataSet]:
    configs = {data_key(cell.config): cell.config for setting in sweep.settings for cell in setting.cells}
    return {key: read_data(config) for key, config in configs.items()}


def _memory_of_all(sweep: Sweep, datasets: Mapping[str, DataSet]) -> int:
    """Check every setting against the data, the clients and this machine; predicted bytes of the largest run.

    Raises:
        ConfigError: everything that is wrong, for all settings together.
    """
    problems: dict[str, Problem] = {}
    largest, free, seeds = 0, psutil.virtual_memory().available, sweep.section.seeds
    for cell in (cell for setting in sweep.settings for cell in setting.cells[::seeds]):
        federation = Federation.of(cell.config, datasets[data_key(cell.config)])
        try:
            check(federation)
            largest = max(largest, plan(federation, (this_machine(),), free).memory.driver)
        except ConfigError as error:
            problems.update({str(problem): problem for problem in error.problems})
    if problems:
        raise ConfigError(list(problems.values()))
    return largest


def _knowledge_of(sweep: Sweep, folder: Path, figure: Figure) -> dict[str, Knowledge]:
    """The knowledge that a folder has of each setting, by name.

    Raises:
        FolderError: it is of another sweep, or of something else.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return {setting.name: Knowledge() for setting in sweep.settings}
    if not (folder / SPEC).exists():
        raise FolderError(f"{folder} holds something that is no sweep: name another folder with --out")
    wrong = differences(json.loads(json.dumps(sweep.tree)), parse((folder / SPEC).read_bytes(), SPEC))
    if wrong:
        raise FolderError(
            f"{folder} is of another sweep ({'; '.join(wrong[:5])}): name another folder with --out, or remove it"
        )
    early: dict[str, Any] = json.loads((folder / TOLD).read_text()) if (folder / TOLD).exists() else {}
    return {
        setting.name: Knowledge(
            {cell.name: _judged_rounds(cell, folder, figure) for cell in setting.cells if _is_there(folder, cell)},
            tuple((step, score) for step, score in early.get(setting.name, [])),
        )
        for setting in sweep.settings
    }


def _is_there(folder: Path, cell: Cell) -> bool:
    return (folder / cell.name / "result.json").exists()


def _judged_rounds(cell: Cell, folder: Path, figure: Figure) -> Scores:
    run = read(folder / cell.name)
    require_same(cell, run)
    judged = (stage for stage in run.stages if stage.stage == VALIDATION)
    return tuple((stage.round, stage.evaluation.figures[figure.name]) for stage in judged)


def _is_over(setting: Setting, known: Knowledge) -> bool:
    return bool(known.scores) or len(known.rounds) == len(setting.cells)


class _Ear:
    """Hears of trials, keeps what they showed, and tells the sweep's watcher."""

    def __init__(
        self, sweep: Sweep, folder: Path, figure: Figure, watcher: SweepWatcher, known: Mapping[str, Knowledge]
    ) -> None:
        self._sweep, self._folder, self._figure, self._watcher, self._known = sweep, folder, figure, watcher, known
        self._settings = {setting.name: setting for setting in sweep.settings}
        self._scores: dict[str, list[tuple[int, float]]] = {name: [] for name in self._settings}
        self._early = {name: one.scores for name, one in known.items() if one.scores}
        self.results: dict[str, SettingResult] = {}

    def start(self, missing: int, facts: Sequence[str]) -> None:
        """The sweep begins."""
        self._watcher.started(self._sweep, self._folder, missing, facts)

    def score(self, name: str, step: int, score: float) -> None:
        self._scores[name].append((step, score))
        steps = self._sweep.rounds * len(self._settings[name].cells)
        self._watcher.progress(name, step, steps, score, self._figure)

    def finished(self, name: str) -> None:
        if name not in self.results:
            self.results[name] = self._result(self._settings[name])
            self._watcher.finished(self.results[name], self._figure)

    def _result(self, setting: Setting) -> SettingResult:
        there = [cell for cell in setting.cells if _is_there(self._folder, cell)]
        runs = tuple(read(self._folder / cell.name) for cell in there)
        saved = sum(read_training(self._folder / cell.name)["spared"] for cell in there)
        log, earlier = self._folder / f"{setting.name}-failed.txt", _is_over(setting, self._known[setting.name])
        if len(there) == len(setting.cells):
            return SettingResult(setting, runs, saved_seconds=saved, earlier=earlier)
        if log.exists():
            last = (log.read_text(encoding="utf-8").strip().splitlines() or ["no message"])[-1]
            return SettingResult(setting, runs, error=f"{last} (the whole of it is in {log.name})")
        scores = tuple(self._scores[setting.name]) or self._early.get(setting.name, ())
        if not scores:
            return SettingResult(setting, runs, error="its process was lost; call again, and it is tried again")
        self._early[setting.name] = scores
        write_text(self._folder / TOLD, json.dumps(self._early))
        return SettingResult(setting, runs, scores, saved, earlier=earlier)


def _perform(
    sweep: Sweep,
    folder: Path,
    datasets: Mapping[str, DataSet],
    memory: int,
    figure: Figure,
    known: Mapping[str, Knowledge],
    ear: _Ear,
    missing: int,
) -> None:
    """Try all settings. Those that are over show what they showed, which the choice of others needs."""
    for log in folder.glob("*-failed.txt"):
        log.unlink()
    trials = [
        Trial(one.name, partial(try_setting, one, known[one.name], sweep.source, figure, sweep.rounds))
        for one in sweep.settings
    ]
    if _needs_ray(sweep):
        _perform_on_ray(sweep, folder, trials, datasets, memory, figure, ear, missing)
    else:
        ear.start(missing, ["runner: one setting after another in this process"])
        try_one_by_one(trials, datasets, folder, folder / SHARED, ear)


def _needs_ray(sweep: Sweep) -> bool:
    """Whether settings are tried side by side, or ended early by Ray Tune, which decides that."""
    return sweep.common.runner.kind != "inline" or sweep.section.search == "asha"


def _perform_on_ray(
    sweep: Sweep,
    folder: Path,
    trials: Sequence[Trial],
    datasets: Mapping[str, DataSet],
    memory: int,
    figure: Figure,
    ear: _Ear,
    missing: int,
) -> None:
    from actors.jobs.tuning import Halving, tune_trials
    from clusters.chatter import redirect_all_output

    section = sweep.section
    steps = sweep.rounds * len(sweep.settings[0].cells)
    halving = Halving(section.first or 1, section.factor or 3.0, steps) if section.search == "asha" else None
    with room_on_ray(sweep.common, len(trials), memory, datasets.values(), folder) as room:
        ear.start(missing, [f"runner: Ray Tune, {room.where}; {room.places} settings at a time, each on one CPU"])
        with redirect_all_output(folder / "ray.log"):
            tune_trials(trials, datasets, folder, folder / SHARED, room.share, figure.better, halving, ear)
    for setting in sweep.settings:
        ear.finished(setting.name)
