"""Seconds from the command to the first client's step, with a Ray cluster started for the run, and where they go.

    python -m benchmarks.start [--times 3]

Runs fedavg-digits as `tessera run` does, with a folder and an MLflow store of its own, one round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figure, loop_seconds, tell

PRESET = "fedavg-digits"


def drive(start: float, folder: Path) -> None:
    """The run itself, in a process that was started at `start` (`time.time()`)."""
    from engine.config import load
    from engine.run.launch import launch
    from engine.views.terminal import Terminal, console

    imported = time.time()
    answered: list[float] = []

    class Marking(Terminal):
        """Notes when the first client has answered."""

        def step(self, round: int, step: str, done: int, arguments: int) -> None:
            if done == 1:
                answered.append(time.time())
            super().step(round, step, done, arguments)

    config = load(PRESET, ("rounds=1", "runner.kind=ray"))
    with Marking(console(to_stderr=True)) as terminal:
        result = launch(config, PRESET, folder, terminal)
    starting = {p.partition(":")[2] or "rest": s for p, s in result.values["seconds"].items() if p.startswith("start:")}
    whole = answered[0] - start
    parts = {"imports": imported - start, **starting}
    parts["hosts and first step"] = whole - sum(parts.values())
    print(json.dumps({"to first step": whole, **parts}))


def measure() -> dict[str, float]:
    """Seconds by part of one start."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "benchmarks.start", "--folder", str(Path(place) / "run"), "--begun"]
        done = subprocess.run([*command, repr(time.time())], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return parts


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.folder:
        drive(asked.begun, asked.folder)
        return
    starts, loops = [], []
    for _ in range(asked.times):
        loops.append(loop_seconds())
        starts.append(measure())
    for part in starts[0]:
        values = tuple(start[part] for start in starts)
        goal = 8.0 if part == "to first step" else None
        tell([Figure(f"start: {part}", "s", values, loops=tuple(loops), goal=goal)])


if __name__ == "__main__":
    main()
