"""Checkpoints as a run goes: when they are written, what they hold, and how a run goes on from one."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.records import Evaluation
from engine.run.rounds import Rounds
from engine.store.checkpoint import Checkpoint, CheckpointError, Keep, after, latest, save
from engine.store.journal import Journal

log = logging.getLogger(__name__)

SHARE = 0.03
"""Share of a run's time that its checkpoints take at most: after fast rounds not each has one. A run that is killed
does the rounds since the last one again."""


class Keeper:
    """Writes checkpoints, and brings a run back to the last one.

    Attributes:
        refusals: what was wrong with checkpoints that were passed over, in words.
    """

    def __init__(
        self, folder: Path, journal: Journal, keep: Keep, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._folder, self._journal, self._keep, self._now = folder, journal, keep, now
        self._cost, self._last_write = 0.0, now()
        self.refusals: list[str] = []

    def restore_latest(self, rounds: Rounds) -> None:
        """Bring a run that has just been made to where its last trustworthy checkpoint was, if there is one.

        Raises:
            CheckpointError: there are some and none can be used.
        """
        found = latest(self._folder, type(rounds.state), lambda error: self.refusals.append(str(error)))
        if found is not None:
            apply_checkpoint(rounds, found)
            self._journal.restore(found.memories)

    def begin(self, round: int) -> None:
        """A round begins, for the first time or anew."""
        self._journal.begin(round)

    def end(self, rounds: Rounds, last: bool) -> None:
        """A round is over and all have heard of it: write a checkpoint where one is due, always after the last and
        after the best so far, whose model may be the one that is kept."""
        best = _best(rounds)
        if not (last or best == rounds.next or self._due(rounds.next)):
            return
        start = self._now()
        with rounds.clock.during("server:checkpoint"):
            save(self._folder, checkpoint_of(rounds, self._journal), self._keep, best)
            self._journal.drop(before=rounds.next)
        self._last_write = self._now()
        self._cost = self._last_write - start

    def best(self, rounds: Rounds) -> Checkpoint[Any] | None:
        """The checkpoint after the best round, where rounds were judged; None where it cannot be used."""
        done = _best(rounds)
        try:
            return None if done is None else after(self._folder, done, type(rounds.state))
        except CheckpointError as error:
            log.warning("the folder keeps the model of the last round, not of the best: %s", error)
            return None

    def forget(self, rounds: Rounds) -> None:
        """Drop what was written down of requests after the last round, which no round will ask for again."""
        self._journal.drop(before=rounds.next)

    def _due(self, done: int) -> bool:
        kept = self._keep.every is not None and done % self._keep.every == 0
        return kept or self._cost <= SHARE * (self._now() - self._last_write)


def _best(rounds: Rounds) -> int | None:
    """The number of rounds that were complete after the best one; None where no round was judged."""
    return rounds.stopping.best.round + 1 if rounds.stopping and rounds.stopping.best else None


def checkpoint_of(rounds: Rounds, journal: Journal) -> Checkpoint[Any]:
    """The checkpoint of a run after its last finished round, wall time so far included."""
    extra = {
        "seconds": rounds.clock.read(),
        "client_seconds": rounds.book.client_seconds,
        "bytes": rounds.book.bytes,
        "metrics": rounds.metrics,
        "processors": rounds.processors,
        "stop": rounds.stopping and rounds.stopping.tree(),
        "stages": {
            name: {"figures": dict(e.figures), "by_class": {figure: v.tolist() for figure, v in e.by_class.items()}}
            for name, e in rounds.stages.items()
        },
    }
    return Checkpoint(rounds.next, rounds.state, journal.memories(), extra)


def apply_checkpoint(rounds: Rounds, checkpoint: Checkpoint[Any]) -> None:
    """The inverse of `checkpoint_of`, but for the memories."""
    extra = checkpoint.extra
    rounds.next, rounds.state = checkpoint.done, checkpoint.state
    for phase, seconds in extra["seconds"].items():
        rounds.clock.add(phase, seconds)
    rounds.book.client_seconds.update(extra["client_seconds"])
    rounds.book.bytes.update({way: Counter(counts) for way, counts in extra["bytes"].items()})
    rounds.metrics.update(extra["metrics"])
    rounds.processors.update(extra.get("processors", {}))
    if rounds.stopping is not None and extra.get("stop") is not None:
        rounds.stopping = rounds.stopping.restore(extra["stop"])
    rounds.stages.update(
        {
            name: Evaluation(e["figures"], {f: np.array(v, dtype=np.float64) for f, v in e["by_class"].items()})
            for name, e in extra["stages"].items()
        }
    )
