"""Every benchmark, each in a process of its own, beside the last run of the suite.

    python -m benchmarks.suite [--only NAME ...] [--out DIR]

Writes bench-DATE.json and bench-DATE.md into the folder, with the change since the newest run that lies there, and
names what got worse by more than the noise that both runs measured. Takes under 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.comparison import compare, table, verdict
from benchmarks.figures import Figure, figure_of, read

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Benchmark:
    """A module to run as `python -m MODULE ARGUMENTS`.

    Attributes:
        limit: seconds after which it is ended and counts as failed.
        times: how often it runs, for modules that do not repeat their figures themselves.
        figures: from all that its runs have printed.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    limit: float = 180.0
    times: int = 1
    figures: Callable[[str], list[Figure]] = read


def of_rounds(output: str) -> list[Figure]:
    """From the lines of `benchmarks.rounds`, whose calibration loop is plain PyTorch on the very same work."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    goals = {"a": 1.0, "b": 1.05}
    figures = []
    for case in sorted({line["case"] for line in lines}):
        mine = [line for line in lines if line["case"] == case]
        ours, theirs = (tuple(line[f"{who}_median_s"] for line in mine) for who in ("tessera", "plain"))
        stacked = ", clients stacked" if mine[0]["stack"] else ""
        figures.append(Figure(f"round ({case}){stacked}", "s", ours, loops=theirs))
        ratios = tuple(line["ratio"] for line in mine)
        figures.append(Figure(f"round ({case}){stacked} against plain PyTorch", "times", ratios, goal=goals[case]))
    return figures


SUITE = (
    Benchmark("rounds a", "benchmarks.rounds", ("--rounds", "15", "a"), times=3, figures=of_rounds),
    Benchmark("rounds a stacked", "benchmarks.rounds", ("--rounds", "15", "--stack", "a"), 180.0, 3, of_rounds),
    Benchmark("rounds b", "benchmarks.rounds", ("--rounds", "4", "b"), times=3, figures=of_rounds),
    Benchmark("growth", "benchmarks.growth"),
    Benchmark("payloads", "benchmarks.payloads"),
    Benchmark("steady", "benchmarks.steady", limit=300.0),
    Benchmark("start", "benchmarks.start"),
    Benchmark("phases", "benchmarks.phases"),
    Benchmark("distillation", "benchmarks.distillation", ("--steps", "90"), limit=300.0),
)


@dataclass(frozen=True)
class Run:
    """The outcome of a run of the suite.

    Attributes:
        seconds: by benchmark.
        failed: why a benchmark did not come to its end, by name.
    """

    machine: Mapping[str, Any]
    figures: tuple[Figure, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Run:
        """The inverse of `save`."""
        tree = json.loads(path.read_text())
        return cls(**{**tree, "figures": tuple(map(figure_of, tree["figures"]))})

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Facts on which the figures depend besides the code."""
    packages = ("torch", "ray", "numpy")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": commit,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@dataclass(frozen=True)
class Output:
    """The output of a benchmark's runs, and why they ended too early; "" where they did not."""

    output: str
    failure: str = ""


def output_of(benchmark: Benchmark) -> Output:
    """All runs of a benchmark, up to one that fails."""
    outputs: list[str] = []
    for _ in range(benchmark.times):
        printed = _output_once(benchmark)
        outputs.append(printed.output)
        if printed.failure:
            return Output("".join(outputs), printed.failure)
    return Output("".join(outputs))


def _output_once(benchmark: Benchmark) -> Output:
    command = [sys.executable, "-m", benchmark.module, *benchmark.arguments]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        try:
            process.wait(timeout=benchmark.limit)
            failure = ""
        except subprocess.TimeoutExpired:
            _end(process)
            failure = f"did not end within {benchmark.limit:g} s"
        texts = [_whole(file).strip() for file in (output, errors)]
    if process.returncode and not failure:
        failure = texts[1].rpartition("\n")[2] or f"ended with {process.returncode}"
    return Output(texts[0] + "\n", failure)


def _whole(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


def perform(benchmarks: Sequence[Benchmark]) -> Run:
    """Run benchmarks one after the other."""
    figures: list[Figure] = []
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    facts = machine()
    for benchmark in benchmarks:
        start = time.monotonic()
        printed = output_of(benchmark)
        found = benchmark.figures(printed.output)
        figures += found
        seconds[benchmark.name] = time.monotonic() - start
        outcome = f"{len(found)} figures, {seconds[benchmark.name]:.0f} s"
        if printed.failure:
            failed[benchmark.name] = printed.failure
            outcome += f"; {printed.failure}"
        print(f"{benchmark.name}: {outcome}", file=sys.stderr, flush=True)
    return Run(facts, tuple(figures), seconds, failed)


def page(run: Run, last: Run | None, date: str) -> str:
    """The Markdown page about a run."""
    rows = compare(run.figures, last.figures if last else ())
    spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in run.seconds.items())
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in run.machine.items())
    parts = [
        f"# make bench, {date}",
        facts,
        table(rows),
        "\n".join(
            f"- {line}" for line in [*verdict(rows), *(f"not finished: {n}: {r}" for n, r in run.failed.items())]
        ),
        "Medians. The change is of values relative to the calibration loop beside them, where a figure depends on the "
        "machine's speed; the noise is the larger range of both runs' repeats, relative to the median.",
        f"Seconds: {spent}; {sum(run.seconds.values()):.0f} in all.",
    ]
    return "\n\n".join(parts) + "\n"


def newest(folder: Path) -> Path | None:
    """The last run of the suite that lies in a folder."""
    return max(folder.glob("bench-*.json"), default=None)


def main() -> int:
    """The command; 1 where a benchmark did not come to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[b.name for b in SUITE], default=[b.name for b in SUITE])
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    before = newest(asked.out)
    run = perform([benchmark for benchmark in SUITE if benchmark.name in asked.only])
    date = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    written = page(run, Run.load(before) if before else None, date)
    asked.out.mkdir(parents=True, exist_ok=True)
    run.save(asked.out / f"bench-{date}.json")
    (asked.out / f"bench-{date}.md").write_text(written)
    print(written)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
