"""Records that a run passes to its watchers: the terminal, the run's folder, MLflow, the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.cohort.delivery import Book, ClientMetric, ClientRows, Entry, FaultEntry, StepSpan
from algorithms.core.callbacks import ignore
from algorithms.core.needs import Stage
from algorithms.core.task import Figure, Sums, Task

GLOBAL = "global"
"""Name of the stage that is the method's own predictor after a round."""

VALIDATION = "validation"
"""Name of the stage that is the same predictor on validation rows, where the configuration has a section `stop`."""


@dataclass(frozen=True)
class Evaluation:
    """A predictor on test examples.

    Attributes:
        figures: the task's figures by name, the headline first.
        by_class: figures by class, float64 (classes,), NaN for a class without test examples; {} without classes.
        confusion: int64 (classes, classes), examples by class and predicted class; None where nobody counted them.
    """

    figures: Mapping[str, float]
    by_class: Mapping[str, np.ndarray] = field(default_factory=dict)
    confusion: np.ndarray | None = None

    @property
    def headline(self) -> float:
        """The figure that stands for the whole; see `Task.headline`."""
        return next(iter(self.figures.values()))


def evaluation_of(task: Task, sums: Sums) -> Evaluation:
    """An evaluation made of a task's sums."""
    confusion = task.confusion(sums)
    return Evaluation(
        figures=task.report(sums),
        by_class={name: values.numpy() for name, values in task.by_class(sums).items()},
        confusion=None if confusion is None else confusion.numpy(),
    )


@dataclass(frozen=True)
class ClientSpread:
    """One figure over the clients that have test examples.

    Attributes:
        mean: of the clients, each counted once.
        deviation: standard deviation over them.
        worst: the figure of the client that is served worst; of several the first.
        client: its number.
        clients: how many have a figure.
    """

    mean: float
    deviation: float
    worst: float
    client: int
    clients: int


@dataclass(frozen=True, eq=False)
class ClientFigures:
    """Figures of each client: of the model that predicts for it, the global one or its own, on test examples of its
    own, which are dealt as its training examples are.

    Attributes:
        examples: int64 (clients,), test examples of each.
        values: float64 (clients,) by the figure's name, NaN for a client without test examples.
    """

    examples: np.ndarray
    values: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, figures: Sequence[Figure], found: Sequence[Mapping[str, float]]) -> ClientFigures:
        """From the figures of each client and its `examples`, by name; what is not there is NaN, and no example."""
        examples = np.array([client.get("examples", 0) for client in found], dtype=np.int64)
        values = {f.name: np.array([client.get(f.name, np.nan) for client in found]) for f in figures}
        return cls(examples, {name: np.where(examples > 0, value, np.nan) for name, value in values.items()})

    def spread(self, figure: Figure) -> ClientSpread | None:
        """None where no client has a figure."""
        values = self.values[figure.name]
        clients = np.flatnonzero(~np.isnan(values))
        if not len(clients):
            return None
        worst = max(clients.tolist(), key=lambda client: figure.rank_key(float(values[client])))
        known = values[clients]
        with np.errstate(invalid="ignore"):  # of infinite losses
            mean, deviation = float(known.mean()), float(known.std())
        return ClientSpread(mean, deviation, float(values[worst]), worst, len(clients))

    def tree(self, figures: Sequence[Figure]) -> dict[str, Any]:
        """As result.json has it: the spread of each figure that some client has."""
        found = {figure.name: self.spread(figure) for figure in figures}
        return {
            name: {
                "mean": spread.mean,
                "spread": spread.deviation,
                "worst": spread.worst,
                "worst_client": spread.client,
                "clients": spread.clients,
            }
            for name, spread in found.items()
            if spread is not None
        }


@dataclass(frozen=True)
class StageRecord:
    """A stage of a round as a method showed it, on test rows; `global` is what `evaluate.every` asks for, and
    `validation` the same on validation rows."""

    round: int
    stage: str
    evaluation: Evaluation


@dataclass(frozen=True)
class RoundRecord:
    """A finished round.

    Attributes:
        metrics: of the method's server side, by name.
        seconds: wall time by phase: `client:STEP` for waiting on clients, `server`, `server:PHASE`, `evaluate`.
        entries, client_metrics, faults, spans, rows: what the book gained in this round, so that a watcher can write it
            down.
    """

    round: int
    clients: tuple[int, ...]
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    entries: tuple[Entry, ...]
    client_metrics: tuple[ClientMetric, ...]
    faults: tuple[FaultEntry, ...] = ()
    spans: tuple[StepSpan, ...] = ()
    rows: tuple[ClientRows, ...] = ()


@dataclass(frozen=True)
class GeneratedPictures:
    """Pictures by a client's generator beside the client's own, for the report; only where the run allows it.

    Attributes:
        generated, real: uint8 (n, C, H, W).
        labels, real_labels: int64 (n,), -1 where no class was asked.
    """

    client: int
    generated: np.ndarray
    labels: np.ndarray
    real: np.ndarray
    real_labels: np.ndarray


@dataclass(frozen=True)
class RunStart:
    """Facts known before the first round.

    Attributes:
        folder: the run's folder, already made.
        config: complete and resolved, as it is written to config.yaml.
        label_counts: int64 (clients, classes), or (clients, 1), the examples of each, where there are no classes.
        figures: those of the task, the headline first.
        facts: what the plan says, in words: runner, placement and why, hosts.
        preset: name or file that the run was started from.
        done: rounds that were complete when this process took the run up.
        kinds: a sentence on each kind of content that travels.
        stages: those that the method may show.
        processors: who computes on each kind of processor.
        weights: digest of what `clients.weights` gave; None where the run draws its own.
    """

    folder: Path
    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    label_counts: np.ndarray
    figures: tuple[Figure, ...]
    facts: Mapping[str, str]
    preset: str = ""
    done: int = 0
    kinds: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    processors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    weights: str | None = None

    @property
    def headline(self) -> Figure:
        """The figure that stands for a predictor."""
        return self.figures[0]

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.config["method"]["name"])

    @property
    def rounds(self) -> int:
        """The number of rounds of the whole run."""
        return int(self.config["rounds"])

    @property
    def log(self) -> Path:
        """File with what happened to the run, and Ray's own output."""
        return self.folder / "run.log"


@dataclass(frozen=True)
class Result:
    """The whole of result.json, plus the book. Keys are those of the design, section 8.

    Attributes:
        clients: what each client gets; None where nobody asked.
    """

    values: Mapping[str, Any]
    book: Book
    pictures: tuple[GeneratedPictures, ...] = field(default=())
    clients: ClientFigures | None = None


class Watcher(Protocol):
    """Hears of a run as it goes. Called in the driver, in this order; must not change anything of the run."""

    def started(self, start: RunStart) -> None: ...

    def step(self, round: int, step: str, done: int, total: int) -> None:
        """`done` of `total` clients have answered; server phases are told as (phase, done, total) too."""
        ...

    def stage(self, record: StageRecord) -> None: ...

    def round(self, record: RoundRecord) -> None: ...

    def finished(self, result: Result) -> None: ...

    def failed(self, error: BaseException) -> None: ...


def note_of(watcher: Watcher) -> Callable[[str], object]:
    """The `note` of a watcher, which takes a line that a person should read now; one that takes none ignores it."""
    note: Callable[[str], object] = getattr(watcher, "note", ignore)
    return note
