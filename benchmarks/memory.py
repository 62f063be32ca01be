"""Predicted memory beside measured, of whole runs of presets on Ray: the driver, the largest host, the object store.

    python -m benchmarks.memory [--out FOLDER]

Predicted is what `tessera plan` says. Measured are `peak_rss_mb` in result.json, which counts the pages of libraries
and of the object store that a process maps, and the most that the object store held whenever a client had answered or
the student had made a step. FAIL is printed, and the exit code is 1, where a prediction is more than 30 % off. MNIST
lies in the folder TESSERA_DATA.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.config import load
from engine.records import Result
from engine.run.hosting import predicted_plan
from engine.run.launch import launch

CASES = {
    "fedavg-digits": ["rounds=4"],
    "fedavg-mnist": ["rounds=6"],
    "mosaic-digits": [],
    "mosaic-lean-mnist": ["rounds=4", "method.warmup=3"],
}
"""Presets, and what is changed of them: a few rounds show the whole of a run's memory."""

OFF = 0.3
"""Error that a prediction may have, as a share of what is measured."""

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One prediction.

    Attributes:
        part: `driver`, `host` or `object store`.
        predicted_mb, measured_mb: MiB.
    """

    preset: str
    changed: str
    part: str
    predicted_mb: float
    measured_mb: float

    @property
    def ratio(self) -> float:
        """Predicted to measured."""
        return self.predicted_mb / self.measured_mb


class StorePeak:
    """A watcher that notes the most that the object store of this machine held, in bytes."""

    def __init__(self) -> None:
        self.most = 0

    def look(self, *_: Any) -> None:
        """Ask the node manager."""
        import ray
        from ray._private.internal_api import node_stats

        (node,) = ray.nodes()
        found = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
        self.most = max(self.most, found.store_stats.object_store_bytes_used)

    started = step = stage = round = look

    def finished(self, result: Result) -> None:
        """The cluster may be gone."""

    def failed(self, error: BaseException) -> None:
        """Nothing is measured then."""


def measure(preset: str, overrides: list[str]) -> dict[str, float]:
    """Run a preset in this process: MiB at the largest by part."""
    peak = StorePeak()
    with tempfile.TemporaryDirectory() as folder:
        result = launch(load(preset, overrides), preset, Path(folder) / "run", peak)
    found = result.values["peak_rss_mb"]
    return {"driver": found["driver"], "host": found["host_max"], "object store": peak.most / MIB}


def predict(preset: str, overrides: list[str]) -> dict[str, float]:
    """The plan's prediction: MiB by part."""
    memory = predicted_plan(load(preset, overrides)).memory
    return {part: getattr(memory, part.replace(" ", "_")) / MIB for part in ("driver", "host", "object store")}


def rows(preset: str, overrides: list[str]) -> Iterator[Row]:
    """Predicted beside measured; measured in a process of its own, whose peak is nobody else's."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", preset, *overrides]
    measured = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    for part, predicted in predict(preset, overrides).items():
        yield Row(preset, " ".join(overrides), part, round(predicted, 2), round(measured[part], 2))


def table(found: list[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| preset | changed | part | predicted, MiB | measured, MiB | ratio |"]
    lines += ["| --- | --- | --- | ---: | ---: | ---: |"]
    for row in found:
        numbers = f"{row.predicted_mb:.4g} | {row.measured_mb:.4g} | {row.ratio:.2f}"
        lines.append(f"| {row.preset} | {row.changed} | {row.part} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all cases, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write memory.jsonl and memory.md into this folder")
    parser.add_argument("--one", nargs="+", metavar=("PRESET", "KEY=VALUE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one[0], asked.one[1:])))
        return 0
    found = [row for preset, overrides in CASES.items() for row in rows(preset, overrides)]
    print(table(found), end="")
    if asked.out:
        (asked.out / "memory.md").write_text(f"`python -m benchmarks.memory`\n\n{table(found)}")
        (asked.out / "memory.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in found))
    wrong = [row for row in found if abs(row.ratio - 1) > OFF]
    for row in wrong:
        print(f"FAIL {row.preset}, {row.part}: predicted {row.predicted_mb} MiB, measured {row.measured_mb} MiB")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
