"""Runs that are killed with SIGKILL where a test says so, each in a process of its own, and gone on with in another."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Where = tuple[Any, ...]
"""("step", round, step, done), ("stage", round, name), ("round", round), or ("file", number of the rename)."""

_START = multiprocessing.get_context("forkserver")
# Imported once, in the process from which all others are forked.
_START.set_forkserver_preload(
    ["engine.run.launch", "engine.views.terminal", "algorithms.methods.mosaic", "algorithms.methods.fedavg"]
)


class Killer:
    """A watcher that kills its process the moment it hears of a place, and remembers what it heard."""

    def __init__(self, where: Where | None) -> None:
        self._where = where

    def _at(self, *where: Any) -> None:
        if where == self._where:
            os.kill(os.getpid(), signal.SIGKILL)

    def started(self, start: Any) -> None: ...

    def step(self, round: int, step: str, done: int, asked: int) -> None:
        self._at("step", round, step, done)

    def stage(self, record: Any) -> None:
        self._at("stage", record.round, record.stage)

    def round(self, record: Any) -> None:
        self._at("round", record.round)

    def finished(self, result: Any) -> None: ...

    def failed(self, error: BaseException) -> None: ...


def _renaming(where: Where | None, written: Any) -> None:
    """Count the files that get their names, and die before the one that is `where`."""
    rename = os.replace

    def counted(source: Any, target: Any) -> None:
        if where == ("file", written.value):
            os.kill(os.getpid(), signal.SIGKILL)
        written.value += 1
        rename(source, target)

    os.replace = counted


def _run(folder: Path, preset: str, overrides: Sequence[str], where: Where | None, written: Any) -> None:
    import engine.run.launch
    from engine.config import load
    from engine.store.journal import Journal

    # However short a step is, it is written down.
    engine.run.launch.Journal = partial(Journal, worth=lambda seconds, bytes: True)  # type: ignore[misc]
    _renaming(where, written)
    engine.run.launch.launch(load(preset, overrides), preset, folder, Killer(where))


def _go_on(folder: Path, overrides: tuple[str, ...], where: Where | None, written: Any) -> None:
    from engine.run.launch import resume

    resume(folder, overrides, Killer(where))


def _ended(target: Callable[..., None], *arguments: Any) -> tuple[int, int]:
    """The end of a process that performed a function, and the number of files that got their names in it."""
    written = _START.Value("i", 0)
    process = _START.Process(target=target, args=(*arguments, written))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, written.value


def whole(folder: Path, preset: str, overrides: Sequence[str]) -> int:
    """A run that nobody disturbs; how many files got their names."""
    code, written = _ended(_run, folder, preset, overrides, None)
    assert code == 0
    return written


def killed(folder: Path, preset: str, overrides: Sequence[str], where: Where) -> None:
    """A run that is killed at a place."""
    assert _ended(_run, folder, preset, overrides, where)[0] == -signal.SIGKILL, f"the run never came to {where}"


def gone_on(folder: Path, overrides: tuple[str, ...] = (), where: Where | None = None) -> int:
    """A run's second process, which may be killed in turn; how it ended."""
    return _ended(_go_on, folder, overrides, where)[0]
