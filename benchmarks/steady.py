"""Memory of driver and hosts over 1,000 rounds of workload (a) of `benchmarks.rounds`, as `tessera run` does them.

    python -m benchmarks.steady [--rounds 1000] [--hosts N]

After round 50 nothing may grow by more than 2 %. The memory of a process is what is resident and its own: pages of the
object store, which all processes map and fill once, are left out. Ledger, journal and checkpoints are written as ever.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.data import with_place
from benchmarks.figures import Figure, tell
from benchmarks.rounds import CASES, LR
from engine.config import RunConfig, resolve
from engine.data import DataError
from engine.records import RoundRecord
from engine.run.launch import launch

SETTLED = 50
"""Rounds after which memory must not grow."""

TENTHS = 10
"""Parts of the later rounds: the last three are held against the first, so that the noise is known."""


def configuration(rounds: int, hosts: int) -> RunConfig:
    """Workload (a) as a run."""
    case = CASES["a"]
    return resolve(
        {
            "method": {"name": "fedavg"},
            "data": {"source": case.source, "limit": case.clients * case.examples},
            "partition": {"kind": "iid", "clients": case.clients},
            "clients": {"net": case.net, "cohort": case.cohort, "epochs": 1, "batch": case.batch, "lr": LR},
            "rounds": rounds,
            "evaluate": {"every": rounds},
            "runner": {"kind": "ray", "placement": "pooled", "hosts": hosts},
            "mlflow": {"enabled": False},
        }
    )


def own_mb(process: psutil.Process) -> float:
    """Resident memory of a process that no other process has too, in MiB."""
    memory = process.memory_info()
    return (memory.rss - memory.shared) / 2**20


class Scale:
    """A watcher that weighs the driver and the largest host after each round."""

    def __init__(self) -> None:
        self.driver: list[float] = []
        self.host: list[float] = []
        self._me = psutil.Process()
        self._hosts: list[psutil.Process] = []

    def round(self, record: RoundRecord) -> None:
        """Weigh."""
        self._hosts = self._hosts or [p for p in self._me.children(recursive=True) if "ray::Host" in _title(p)]
        self.driver.append(own_mb(self._me))
        self.host.append(max(map(own_mb, self._hosts)))

    def started(self, *_: Any) -> None: ...

    def step(self, *_: Any) -> None: ...

    def stage(self, *_: Any) -> None: ...

    def finished(self, *_: Any) -> None: ...

    def failed(self, *_: Any) -> None: ...


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline()[:1])


def growth(weights: Sequence[float]) -> tuple[float, ...]:
    """By how many percent the last three tenths of the later rounds are heavier than the first one."""
    first, *_, eighth, ninth, last = np.array_split(weights[SETTLED:], TENTHS)
    return tuple(100 * (statistics.median(part) / statistics.median(first) - 1) for part in (eighth, ninth, last))


def slope(weights: Sequence[float]) -> float:
    """Mean growth over the later rounds, in KiB a round."""
    later = weights[SETTLED:]
    return 1024 * float(np.polyfit(np.arange(len(later)), later, 1)[0])


def figures(who: str, weights: Sequence[float]) -> list[Figure]:
    """A process's memory over the rounds."""
    return [
        Figure(f"steady: growth of the {who} after round {SETTLED}", "%", growth(weights), goal=2.0),
        Figure(f"steady: slope of the {who}", "KiB a round", (slope(weights),)),
        Figure(f"steady: {who} after the last round", "MiB", (weights[-1],)),
    ]


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--hosts", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    if asked.rounds < SETTLED + TENTHS:
        parser.error(f"--rounds {asked.rounds}: {SETTLED} to settle and {TENTHS} to weigh are the least")
    scale = Scale()
    try:
        with tempfile.TemporaryDirectory() as place:
            launch(configuration(asked.rounds, asked.hosts), "fedavg", Path(place) / "run", scale)
    except DataError as error:
        print(with_place(error, CASES["a"].source), file=sys.stderr)
        return 2
    tell([*figures("driver", scale.driver), *figures("largest host", scale.host)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
