"""Seconds a round of FedAvg here, in plain PyTorch, in Flower and in pfl-research, on the same work in one sitting.

    python3.11 -m venv flower && flower/bin/pip install "flwr[simulation]" torch
    python3.11 -m venv pfl && pfl/bin/pip install "pfl[pytorch]" torch
    python -m benchmarks.rivals --flower flower/bin/python --pfl pfl/bin/python [--rounds 15] [--processes N]

Workload (a) of `benchmarks.rounds`: 1,000 clients, 100 a round, 60 MNIST images each, MLP 784-64-10, batch 10, one
epoch of SGD at 0.05. Every simulator has the same number of processes, one thread each, and its images ready in
memory; evaluation is left out, and the first round, which holds what happens once. What each does beyond the training
differs: Tessera counts and vets every message and returns the same bits on any number of hosts, the others do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import rounds
from benchmarks.data import first_rows, with_place
from engine.data import DataError

HERE = Path(__file__).parent


def save_data(path: Path) -> None:
    """The clients' images, normalised, and who holds which, as the yardstick of `benchmarks.rounds` takes them."""
    case = rounds.CASES["a"]
    problem = rounds.problem(case, first_rows(case.source, case.clients * case.examples), 1)
    np.savez(path, images=problem.images, labels=problem.labels, rows=np.stack(problem.rows))


def seconds_of(command: Sequence[str]) -> list[float]:
    """The seconds that a rival's script prints.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip().rpartition(chr(10))[2]}")
    found: list[float] = json.loads(done.stdout.strip().rpartition("\n")[2])["seconds"]
    return found


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower", type=Path, help="Python of an environment with Flower")
    parser.add_argument("--pfl", type=Path, help="Python of an environment with pfl-research")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    case, count = rounds.CASES["a"], str(asked.processes)
    try:
        ours = [rounds.measure(case, asked.rounds, asked.processes, stack) for stack in (False, True)]
        with tempfile.TemporaryDirectory() as place:
            data = str(Path(place) / "data.npz")
            save_data(Path(data))
            found = {
                "plain PyTorch": [ours[0]["plain_median_s"]],
                "Tessera": [ours[0]["tessera_median_s"]],
                "Tessera, clients stacked": [ours[1]["tessera_median_s"]],
            }
            if asked.flower:
                script = str(HERE / "flower.py")
                found["Flower"] = seconds_of([str(asked.flower), script, data, str(asked.rounds), count])
            if asked.pfl:
                launcher = [str(asked.pfl), "-m", "torch.distributed.run", "--nproc-per-node", count]
                found["pfl-research"] = seconds_of([*launcher, str(HERE / "pfl_research.py"), data, str(asked.rounds)])
    except (DataError, RuntimeError) as error:
        print(with_place(error, case.source) if isinstance(error, DataError) else error, file=sys.stderr)
        return 2
    print(f"{asked.processes} processes, {asked.rounds - 1} rounds", end="\n\n")
    print("| simulator | seconds a round, median | times plain |")
    print("| --- | ---: | ---: |")
    plain = found["plain PyTorch"][0]
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.3f} | {middle / plain:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
