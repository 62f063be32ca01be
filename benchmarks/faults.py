"""A run under a seeded schedule of faults, with real signals to real processes, beside the same run left in peace.

    python -m benchmarks.faults --faults 100 --seed 1 --out DIR

Faults come after so many signs of progress (a client's answer, steps of the student) as the schedule says, drawn from
the seed beforehand:

- process killed: SIGKILL to one of the hosts or, while a student is distilled, to its train worker or an actor of its
  pipeline;
- host stopped: SIGSTOP to a host, which answers no more and is given up at the deadline;
- driver killed: SIGKILL to the driver, and `tessera resume`;
- checkpoint cut: the same, with the newest checkpoint cut short before the run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq

KINDS = {"process killed": 0.76, "host stopped": 0.04, "driver killed": 0.15, "checkpoint cut": 0.05}
"""Every kind of fault with its share."""

ALONE = ("driver killed", "checkpoint cut")

DISTURBED = "disturbed"
"""Folder of the run under faults."""

PROCESSES = {"ray::Host": "host", "ray::RayTrainWorker": "train worker", "ray::MapWorker": "actor of the pipeline"}
"""Processes that may be hit, by the beginning of their command line."""


@dataclass(frozen=True)
class Fault:
    """A fault, so many signs of progress after the one before it.

    Attributes:
        victim: which of the processes that may be hit, from 0 for the first to 1 for the last.
    """

    kind: str
    after: int
    victim: float


def schedule(seed: int, faults: int, signs: int) -> list[Fault]:
    """Faults spread over so many signs of progress."""
    draw = np.random.default_rng(seed)
    kinds = draw.choice(list(KINDS), size=faults, p=list(KINDS.values()))
    gaps = draw.integers(1, max(2, 2 * signs // (faults + 1)), size=faults)
    return [Fault(str(k), int(g), float(h)) for k, g, h in zip(kinds, gaps, draw.random(faults), strict=True)]


class Injector:
    """A watcher that lets the faults of a schedule happen; how far it has come stands in a file, beside the run's
    folder."""

    def __init__(self, faults: Sequence[Fault], file: Path) -> None:
        self._faults, self._file = faults, file
        self._record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"done": [], "rounds": []}
        self._waits = 0

    def started(self, start: Any) -> None:
        self._record["rounds"].append([start.done, start.done])
        self._write()

    def step(self, round: int, step: str, done: int, total: int) -> None:
        self._record["rounds"][-1][1] = round
        number = len(self._record["done"])
        if not done or number == len(self._faults):
            return
        self._waits += 1
        fault = self._faults[number]
        if self._waits >= fault.after and self._happen(fault, step):
            self._waits = 0

    def _happen(self, fault: Fault, step: str) -> bool:
        if fault.kind == "checkpoint cut" and len(_checkpoints(self._file.parent / DISTURBED)) < 2:
            return False  # without an older one there is nothing to go on from
        if fault.kind in ALONE:
            self._note(fault.kind)
            os.kill(os.getpid(), signal.SIGKILL)
        killed = fault.kind == "process killed"
        there = _processes("ray::RayTrainWorker", "ray::MapWorker") if step == "distillation" and killed else None
        there = there or _processes("ray::Host")
        if not there:
            return False
        pid, what = there[int(fault.victim * len(there))]
        self._note(f"{what} {'killed' if killed else 'stopped'}")
        os.kill(pid, signal.SIGKILL if killed else signal.SIGSTOP)
        return True

    def _note(self, kind: str) -> None:
        self._record["done"].append(kind)
        self._write()

    def _write(self) -> None:
        self._file.write_text(json.dumps(self._record))

    def stage(self, record: Any) -> None: ...

    def round(self, record: Any) -> None: ...

    def finished(self, result: Any) -> None: ...

    def failed(self, error: BaseException) -> None: ...


def _processes(*beginnings: str) -> list[tuple[int, str]]:
    """Processes of this run that can be hit: their ids, in order, and what they are."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if (title := " ".join(process.cmdline())).startswith(
                beginnings
            ) and process.status() != psutil.STATUS_STOPPED:
                found.append((process.pid, next(what for start, what in PROCESSES.items() if title.startswith(start))))
    return sorted(found)


def _drive(out: Path, preset: str, overrides: tuple[str, ...]) -> None:
    """One process of the disturbed run."""
    from engine.config import load
    from engine.run.launch import launch, resume

    faults = [Fault(**one) for one in json.loads((out / "schedule.json").read_text())]
    injector, folder = Injector(faults, out / "told.json"), out / DISTURBED
    if (folder / "config.yaml").exists():
        resume(folder, (), injector)
    else:
        launch(load(preset, overrides), preset, folder, injector)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run's folder, the newest last."""
    return sorted(folder.glob("checkpoints/*.safetensors"))


def _cut_newest(folder: Path) -> None:
    newest = _checkpoints(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])


def run_under_faults(out: Path, preset: str, overrides: tuple[str, ...]) -> tuple[Counter[str], int]:
    """The run under its schedule: faults by kind, and rounds that were begun more than once."""
    driver = [sys.executable, "-m", "benchmarks.faults", "--drive", "--out", str(out), "--preset", preset]
    driver += [word for one in overrides for word in ("--set", one)]
    while (code := subprocess.run(driver).returncode) == -signal.SIGKILL:
        if json.loads((out / "told.json").read_text())["done"][-1] == "checkpoint cut":
            _cut_newest(out / DISTURBED)
    if code:
        raise SystemExit(f"the disturbed run ended with {code}; see {out / 'disturbed' / 'run.log'}")
    record = json.loads((out / "told.json").read_text())
    starts = [number for first, last in record["rounds"] for number in range(first, last + 1)]
    return Counter(record["done"]), len(starts) - len(set(starts))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--preset", default="fedavg-digits")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.drive:
        _drive(options.out, options.preset, tuple(options.overrides))
        return
    _compare(options)


def _compare(options: argparse.Namespace) -> None:
    from engine.config import load
    from engine.run.launch import launch

    options.out.mkdir(parents=True)
    overrides = ("mlflow.enabled=false", "failures.max_retries=20", "failures.deadline=20", *options.overrides)
    config = load(options.preset, (*overrides, "runner.kind=inline", "runner.placement=auto", "runner.hosts=null"))
    peace = launch(config, options.preset, options.out / "peace", Injector((), options.out / "peace.json"))
    signs = config.rounds * (config.clients.cohort or config.partition.clients or 1)
    faults = schedule(options.seed, options.faults, signs)
    (options.out / "schedule.json").write_text(json.dumps([asdict(fault) for fault in faults]))
    kinds, again = run_under_faults(options.out, options.preset, overrides)
    digest = json.loads((options.out / DISTURBED / "result.json").read_text())["digest"]
    figures = {
        "preset": options.preset,
        "overrides": overrides,
        "seed": options.seed,
        "faults": dict(sorted(kinds.items())),
        "faults_in_all": kinds.total(),
        "rounds": config.rounds,
        "rounds_lost": count_lost_rounds(options.out / DISTURBED, options.out / "peace", config.rounds),
        "rounds_begun_again": again,
        "digest": digest,
        "digest_equal": digest == peace.values["digest"],
    }
    (options.out / "faults.json").write_text(json.dumps(figures, indent=1) + "\n")
    for kind, count in figures["faults"].items():
        print(f"{kind}: {count}")
    print(f"faults: {kinds.total()} of {len(faults)}")
    print(f"rounds lost: {figures['rounds_lost']} of {config.rounds}; begun again after the driver was killed: {again}")
    print(f"digest: {'equal' if figures['digest_equal'] else 'NOT EQUAL'} ({digest[:16]})")


def count_lost_rounds(folder: Path, expected: Path, rounds: int) -> int:
    """Rounds whose messages are not those of the run in peace, client by client and byte by byte."""
    ours, theirs = (pq.read_table(path / "ledger.parquet") for path in (folder, expected))
    return sum(
        not ours.filter(here).equals(theirs.filter(here)) for here in (pc.field("round") == n for n in range(rounds))
    )


if __name__ == "__main__":
    main()
