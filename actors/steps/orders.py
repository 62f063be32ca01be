"""The records that pass between the driver and its workers: an order out, an outcome back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from actors.failures import Fault
from actors.steps.finding import find_class, module_names
from algorithms import methods
from algorithms.core.contract import ClientSpec, Method, drawn_width
from algorithms.core.needs import Needs
from algorithms.core.payload import Memory, Payload, Tensors
from algorithms.core.seeds import Seed
from algorithms.core.states import WeightedMean
from algorithms.core.task import Sums, Task
from algorithms.core.training import Work

Stack: TypeAlias = bool | Literal["convolutions"]
"""See `WorkerSetup`."""


@dataclass(frozen=True)
class WorkerSetup:
    """Everything a worker process needs to serve this run; small, sent once to each.

    Attributes:
        method: name of the method in `algorithms/methods`, or `pkg.module:Class`.
        config: the method's Config.
        task: the learning problem.
        work: what a client does in a round.
        clients: every client of the federation, by number; see `client` for their widths.
        seed: of the run.
        device: `cpu` or `cuda`.
        stack: clients are trained several at once where their networks are stackable, which gives other bits; with
            `convolutions` where they have convolutions too.
        starts: tensors that a network starts with, by its name.
        widths: fractions from which every client's width is drawn anew in each round; none: its own.
    """

    method: str
    config: Any
    task: Task
    work: Work
    clients: tuple[ClientSpec, ...]
    seed: int
    device: str = "cpu"
    widths: tuple[float, ...] = ()
    stack: Stack = False
    starts: Mapping[str, Tensors] = field(default_factory=dict, compare=False)

    def client(self, number: int, seed: Seed) -> ClientSpec:
        """A client as it is in the round of a seed; the server and the client's worker find the same."""
        client = self.clients[number]
        return replace(client, width=drawn_width(self.widths, seed.at(client=number))) if self.widths else client

    def variants(self) -> tuple[ClientSpec, ...]:
        """The clients with every width that they may come to have."""
        if not self.widths:
            return self.clients
        return tuple(replace(client, width=width) for client in self.clients for width in self.widths)

    def needs(self, counts: Tensor) -> Needs:
        """The method's answer about this problem and these clients.

        Args:
            counts: int64 (clients, classes), the examples by client and class.
        """
        method = find_method(self.method)
        lacking = method.requires(self.config) - self.task.traits
        if lacking:
            return Needs(up={}, down={}, lacking=lacking)
        found = method.needs(self.config, self.task, self.variants(), self.work, counts)
        return found.naming_states(self.task.state_kind)

    @property
    def torch_device(self) -> torch.device:
        """The device on which networks compute."""
        return torch.device(self.device)


def step_seed(seed: Seed, step: str, client: int) -> Seed:
    """The seed of one client's step, from that of the run and round."""
    return seed.at(phase=step, client=client)


@dataclass(frozen=True)
class Order:
    """One step to be performed for one client: everything its result depends on, besides the client's data."""

    step: str
    client: int
    seed: Seed
    received: Payload
    memory: Memory


@dataclass(frozen=True)
class Span:
    """The time span and place of a step; no result depends on it.

    Attributes:
        host: the machine's name and the process's number.
        start, end: seconds since the epoch, by that machine's clock.
    """

    host: str
    start: float
    end: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of an order that was performed.

    Attributes:
        payload: None where it was added to others, for `Cohort.means`.
        memory: None where the step kept the memory as it was.
        sums: of an evaluation; see `Reply`.
        rows, texts: see `Reply`.
        seconds: of computing, CPU time on a CPU; no result depends on it.
        bytes: that the client sent, by kind, where the payload is None.
        group: the means that the payloads were added to, by name; with the last client of its group alone.
        lost: hosts that were lost over this step before one performed it.
        span: None where the step was not performed in this run.
    """

    client: int
    payload: Payload | None
    memory: Memory | None
    metrics: Mapping[str, float]
    seconds: float
    lost: int = 0
    span: Span | None = None
    sums: Sums = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)
    group: Mapping[str, WeightedMean] | None = None
    rows: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def nbytes(self) -> Mapping[str, int]:
        """Bytes that the client sends, by kind."""
        return self.bytes if self.payload is None else self.payload.nbytes()


@dataclass(frozen=True)
class Failure:
    """A step that gave no update, with all that is needed to look at it again.

    Attributes:
        error: what was wrong, in a line.
        traceback: the original one, as text.
        order: what was to be performed, so that it can be performed again; None where it cannot be known.
        fault: which kind of fault it was.
    """

    client: int
    method: str
    step: str
    seed: Seed
    error: str
    traceback: str
    order: Order | None = None
    fault: Fault = "client_error"


class StepError(RuntimeError):
    """A step raised. The message holds method, step, client, round, seed and the original traceback.

    `replay` is added by who knows the run's folder: the command that performs this one step again, inline.
    """

    def __init__(self, failure: Failure, replay: str = "") -> None:
        self.failure = failure
        self.replay = replay
        super().__init__(failure, replay)

    def __str__(self) -> str:
        f = self.failure
        lines = [
            f"{f.error}",
            f"  in method {f.method}, step {f.step}, client {f.client}, round {f.seed.round}, seed {f.seed.run}",
            "  the step's own traceback:",
            *("  | " + line for line in f.traceback.rstrip().splitlines()),
        ]
        if self.replay:
            lines.append(f"  to perform this one step again under a debugger: {self.replay}")
        return "\n".join(lines)


def find_method(name: str) -> type[Method[Any]]:
    """The method of the module `algorithms.methods.NAME`, or of one's own `pkg.module:Class`.

    Raises:
        LookupError: no such module or class; the message lists the methods there are.
    """
    return find_class(name, methods, Method, "method")


def method_names() -> Sequence[str]:
    """Names of all methods: the files and folders of `algorithms/methods`, sorted."""
    return module_names(methods)
