"""Ways to train clients on a card, each beside a plain PyTorch loop of the same work there, as one table.

    python -m benchmarks.gpu [--device cuda] [--times 3] [--out FILE.md]

One client's training by Tessera's own loop and by variants of the plain one; FedAvg's rounds on hosts that share the
card; whether a host is held to its share. Random images of CIFAR-10's shape, SGD at 0.05. The first time is left out:
it holds what happens once, such as compiling. `--device cpu` tries out the code on a processor, in tiny sizes.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from actors.steps.worker import one_thread
from algorithms.core.seeds import Seed
from benchmarks.comparison import number
from benchmarks.figures import Figure, seconds_of, tell
from benchmarks.gpu_loop import TASK, VARIANTS, PlainLoop, Problem, Variant
from benchmarks.gpu_rounds import check_share, rounds

PROBLEMS = {
    "cuda": (
        Problem("small_cnn", steps=400, batch=64, clients=8, examples=2048),
        Problem("resnet18", steps=100, batch=64, clients=8, examples=640),
    ),
    "cpu": (
        Problem("small_cnn", steps=4, batch=8, clients=4, examples=16),
        Problem("resnet18", steps=2, batch=4, clients=4, examples=4),
    ),
}
HOSTS = (1, 2, 4)

NO_CARD = (
    "torch finds no GPU here; --device cpu tries out this benchmark's own code on the processor, where its ratios mean "
    "little"
)
NEEDS_CARD = "needs a card"
FAILED = "did not run"
PLAIN = "plain loop"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        seconds: one for each time; none where the case was not timed.
        plain: the plain loop's, each in the same turn.
    """

    work: str
    case: str
    seconds: tuple[float, ...] = ()
    plain: tuple[float, ...] = ()
    remark: str = ""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Seconds as multiples of the plain loop's; below 1 is faster."""
        return tuple(mine / theirs for mine, theirs in zip(self.seconds, self.plain, strict=True))

    def figures(self) -> Iterator[Figure]:
        """The timings, for machines."""
        if self.seconds:
            yield Figure(f"{self.work}, {self.case}", "s", self.seconds, loops=self.plain)
            yield Figure(f"{self.work}, {self.case} against the plain loop", "times", self.ratios)

    def cells(self) -> list[str]:
        """The line, for people."""
        return [self.work, self.case, middle(self.seconds), middle(self.ratios), self.remark]


def middle(values: Sequence[float]) -> str:
    """Median, smallest and largest; empty where there are none."""
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})" if values else ""


# --- One client -----------------------------------------------------------------------------------------------------

Making = Callable[[], Callable[[], object]]
"""Makes ready a client's whole training, which is then timed again and again."""


def own_fit(problem: Problem, device: str) -> Callable[[], object]:
    """Tessera's own loop."""
    kit = problem.kit(device)
    shard = problem.shards()(0)
    return partial(kit.fit, kit.new_network(problem.net), TASK, shard, kit.work, Seed(0, client=0))


def plainly(problem: Problem, device: str, variant: Variant) -> Callable[[], object]:
    """The plain loop, or a variant, on the very same batches."""
    net, shard = problem.kit(device).new_network(problem.net), problem.shards()(0)
    picks = problem.picks(shard, Seed(0, client=0), range(problem.steps))
    return partial(PlainLoop(net, shard.columns["image"], shard.columns["label"], variant).train, picks)


def makings(problem: Problem, device: str) -> dict[str, Making]:
    """Tessera's loop and those variants that this device can run, by name."""
    ways = {name: way for name, way in VARIANTS.items() if device == "cuda" or not way.needs_card}
    return {
        "training.fit": partial(own_fit, problem, device),
        **{name: partial(plainly, problem, device, way) for name, way in ways.items()},
    }


def side_by_side(work: str, plain: Callable[[], object], others: Mapping[str, Making], times: int) -> list[Row]:
    """The plain loop and all others in turn, so that all meet the card in the same mood; after a first time each."""
    plain()
    rows, ready = {name: Row(work, name) for name in (PLAIN, *others)}, {PLAIN: plain}
    for name, make in others.items():
        try:
            train = make()
            train()
            ready[name] = train
        except Exception as error:
            rows[name] = failed_row(rows[name], error)
    turns = [{name: seconds_of(train) for name, train in ready.items()} for _ in range(times)]
    theirs = tuple(turn[PLAIN] for turn in turns)
    return [
        replace(row, seconds=tuple(turn[name] for turn in turns), plain=theirs) if name in ready else row
        for name, row in rows.items()
    ]


def failed_row(row: Row, error: Exception) -> Row:
    """The row of a case that raised; how, for stderr: others go on, since a card may know some of them alone."""
    traceback.print_exception(error)
    reason = (str(error).splitlines() or [""])[0].replace("|", "/")
    return replace(row, remark=f"{FAILED}: {type(error).__name__}: {reason}")


def one_client(problem: Problem, device: str, times: int) -> list[Row]:
    """Tessera's loop and the variants of the plain one."""
    work = f"{problem.net}, {problem.steps} steps of {problem.batch}"
    with one_thread():
        rows = side_by_side(work, plainly(problem, device, Variant()), makings(problem, device), times)
    timed = {row.case for row in rows}
    return rows + [Row(work, name, remark=NEEDS_CARD) for name in VARIANTS if name not in timed]


# --- Several clients ------------------------------------------------------------------------------------------------


def several_clients(problem: Problem, device: str, hosts: int, times: int) -> Row:
    """Rounds on hosts that share the card."""
    work = f"{problem.net}, round of {problem.clients} clients, {problem.examples} images each"
    row = Row(work, f"on Ray, {hosts} host{'s' * (hosts > 1)} with {1 / hosts:g} of the device each")
    try:
        seconds, plain = rounds(problem, device, hosts, times)
    except Exception as error:
        return failed_row(row, error)
    return replace(row, seconds=seconds, plain=plain)


def share(problem: Problem, device: str) -> Row:
    """Whether fractions are enforced."""
    row = Row("a host's memory on the card", "held to its share")
    try:
        return replace(row, remark=check_share(problem) if device == "cuda" else NEEDS_CARD)
    except Exception as error:
        return failed_row(row, error)


# --- The table ------------------------------------------------------------------------------------------------------


def measure_all(device: str, times: int) -> Iterator[Row]:
    """All rows, each as soon as it is known."""
    for problem in PROBLEMS[device]:
        yield from one_client(problem, device, times)
        yield from (several_clients(problem, device, hosts, times) for hosts in HOSTS)
    yield share(PROBLEMS[device][0], device)


def facts(device: str) -> dict[str, Any]:
    """Facts on which the figures depend besides the code."""
    versions = {"torch": torch.__version__, "Ray": ray.__version__, "Python": platform.python_version()}
    if device == "cpu":
        return {"card": "none, the processor", **versions}
    card = torch.cuda.get_device_properties(0)
    return {
        "card": f"{card.name} with {card.total_memory / 2**30:.1f} GiB",
        "driver": driver(),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        **versions,
    }


def driver() -> str:
    """The version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return "unknown"
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0] or "unknown"


def page(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Markdown: what was measured on, and a line for each row."""
    lines = ["| work | case | seconds | ratio to the plain loop | |", "| --- | --- | ---: | ---: | --- |"]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    parts = [
        "# Training on a card",
        ", ".join(f"{name} {value}" for name, value in about.items()),
        "\n".join(lines),
        "Median (smallest to largest). The plain loop is one process of plain PyTorch that does the same work on the "
        "same device; a ratio below 1 is faster than it. It copies images as bytes, normalises them on the device, and "
        "leaves TF32 as torch does: in convolutions alone. Variants are of the plain loop, each with one change.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """The command; 2 where there is no card, 1 where a case did not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(PROBLEMS), default="cuda")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(NO_CARD, file=sys.stderr)
        return 2
    rows = []
    for row in measure_all(asked.device, asked.times):
        tell(row.figures())
        rows.append(row)
    written = page(facts(asked.device), rows)
    print(written)
    if asked.out:
        asked.out.write_text(written)
    return 1 if any(row.remark.startswith(FAILED) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
