"""Progress of a run for a Python caller: lines in a script, a notebook's cell, a call after each round."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from engine.records import GLOBAL, Result, RoundRecord, RunStart, StageRecord, Watcher, note_of
from engine.views.screen import NotebookScreen, Screen, is_in_notebook, notebook_console
from engine.views.terminal import Terminal, console


@dataclass(frozen=True)
class Round:
    """A finished round, as a callback gets it.

    Attributes:
        number: from 0, as in the run's tables.
        rounds: of the whole run.
        figures: of the model after the round, by name, the headline first; empty where it was not evaluated.
        stages: figures of what else the method showed in this round, by stage.
        metrics: of the method's server side.
        clients: that were asked.
        seconds: wall time.
        bytes_up, bytes_down: from and to clients.
    """

    number: int
    rounds: int
    figures: Mapping[str, float]
    stages: Mapping[str, Mapping[str, float]]
    metrics: Mapping[str, float]
    clients: tuple[int, ...]
    seconds: float
    bytes_up: int
    bytes_down: int


OnRound = Callable[[Round], object]


class RoundCaller:
    """A watcher that calls back after each round, and passes all it hears on to another. What the call raises ends the
    run, which can be resumed."""

    def __init__(self, then: Watcher, call: OnRound) -> None:
        self._then, self._call, self._rounds = then, call, 0
        self._stages: dict[str, Mapping[str, float]] = {}

    def started(self, start: RunStart) -> None:
        self._rounds = start.rounds
        self._then.started(start)

    def step(self, round: int, step: str, done: int, total: int) -> None:
        self._then.step(round, step, done, total)

    def stage(self, record: StageRecord) -> None:
        self._stages[record.stage] = MappingProxyType(dict(record.evaluation.figures))
        self._then.stage(record)

    def round(self, record: RoundRecord) -> None:
        self._then.round(record)
        stages, self._stages = self._stages, {}
        self._call(_round_of(record, self._rounds, stages))

    def note(self, text: str) -> None:
        note_of(self._then)(text)

    def finished(self, result: Result) -> None:
        self._then.finished(result)

    def failed(self, error: BaseException) -> None:
        self._then.failed(error)


def _round_of(record: RoundRecord, rounds: int, stages: dict[str, Mapping[str, float]]) -> Round:
    figures = stages.pop(GLOBAL, MappingProxyType({}))
    return Round(
        number=record.round,
        rounds=rounds,
        figures=figures,
        stages=MappingProxyType(stages),
        metrics=MappingProxyType(dict(record.metrics)),
        clients=record.clients,
        seconds=sum(record.seconds.values()),
        bytes_up=sum(entry.bytes for entry in record.entries if entry.direction == "up"),
        bytes_down=sum(entry.bytes for entry in record.entries if entry.direction == "down"),
    )


class Silence:
    """A watcher that says nothing."""

    def started(self, start: RunStart) -> None: ...

    def step(self, round: int, step: str, done: int, total: int) -> None: ...

    def stage(self, record: StageRecord) -> None: ...

    def round(self, record: RoundRecord) -> None: ...

    def note(self, text: str) -> None: ...

    def finished(self, result: Result) -> None: ...

    def failed(self, error: BaseException) -> None: ...


def open_screen() -> Screen:
    """A screen on stderr, so that a script's own output stays its own; in a notebook, the cell's output."""
    return NotebookScreen(notebook_console(sys.stdout)) if is_in_notebook() else Screen(console(to_stderr=True))


@contextmanager
def listening(progress: bool, on_round: OnRound | None) -> Iterator[Watcher]:
    """A watcher for a run of a Python caller, which says nothing more after the block."""
    if not progress:
        yield _calling(Silence(), on_round)
        return
    with Terminal(open_screen()) as terminal:
        yield _calling(terminal, on_round)


def _calling(watcher: Watcher, on_round: OnRound | None) -> Watcher:
    return watcher if on_round is None else RoundCaller(watcher, on_round)
