"""Figures of benchmarks with every repeat's value, each beside a calibration loop of plain PyTorch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

_LOOP_STEPS = 300


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
        name: unique in a run of the suite.
        values: one for each repeat.
        loops: seconds of the calibration loop beside each value; () where the machine's speed does not matter, as for
            bytes.
        goal: what is to be reached; None where nothing is asked.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    better: Literal["lower", "higher"] = "lower"
    loops: tuple[float, ...] = ()
    goal: float | None = None

    def __post_init__(self) -> None:
        if not self.values or len(self.loops) not in (0, len(self.values)):
            raise ValueError(f"{self.name}: {len(self.values)} values beside {len(self.loops)} calibration loops")

    def line(self) -> str:
        """One line of JSON, the inverse of `read`."""
        return json.dumps(asdict(self))


def figure_of(tree: dict[str, object]) -> Figure:
    """A figure from what JSON gave, where tuples are lists."""
    return Figure(**{key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()})  # type: ignore[arg-type]


def read(output: str) -> list[Figure]:
    """The figures in what a benchmark has printed, one a line."""
    return [figure_of(json.loads(line)) for line in output.splitlines() if line.startswith("{")]


def loop_seconds() -> float:
    """Seconds of a fixed piece of plain PyTorch in one thread: SGD on an MLP 784-64-10."""
    net = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    inputs, labels = torch.zeros(32, 784), torch.zeros(32, dtype=torch.int64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    for _ in range(_LOOP_STEPS):
        optimiser.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        optimiser.step()
    seconds = time.perf_counter() - start
    torch.set_num_threads(threads)
    return seconds


def measure_repeatedly(
    name: str, unit: str, measure: Callable[[], float], times: int, goal: float | None = None, better: str = "lower"
) -> Figure:
    """Measure several times, each time between two calibration loops, whose mean stands beside the value."""
    values, loops, before = [], [], loop_seconds()
    for _ in range(times):
        values.append(measure())
        after = loop_seconds()
        loops.append((before + after) / 2)
        before = after
    return Figure(name, unit, tuple(values), better, tuple(loops), goal)  # type: ignore[arg-type]


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of a piece of work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def tell(figures: Iterable[Figure]) -> None:
    """Print figures as the suite reads them, each as soon as it is known."""
    for figure in figures:
        print(figure.line(), flush=True)
