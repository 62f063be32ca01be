"""The contract: the method is the score, the engine is the orchestra.

A method is a class in a file of its own. Its server side is `start`, `round` and `predictor`; what it asks of clients
are functions marked `@client_side`, reached through the cohort alone. Networks, the device, the training loop and the
distillation job are lent to it as `self.kit`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.clients import ClientSpec as ClientSpec
from algorithms.core.distillation import Source
from algorithms.core.kit import Kit
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.payload import EMPTY, Memory, Payload, Tensors
from algorithms.core.scoring import score
from algorithms.core.seeds import Seed
from algorithms.core.states import WeightedMean, snapshot
from algorithms.core.task import Shard, Sums, Task, Trait
from algorithms.core.training import Work


@dataclass(frozen=True)
class Client:
    """A step's view of the client it runs for.

    Attributes:
        spec: number and network.
        shard: the client's examples.
        received: what the server sent; must not be written into.
        memory: what this client's last step returned as memory, {} before the first; the server never sees it.
        seed: of (run, round, step, client).
        test: examples to evaluate the client's own predictor on; given to the steps `evaluate_own` and `validate_own`
            alone.
    """

    spec: ClientSpec
    shard: Shard
    received: Payload
    memory: Memory
    seed: Seed
    test: Shard | None = None


@dataclass(frozen=True)
class Reply:
    """A step's return value.

    Attributes:
        payload: travels to the server, is counted in the ledger, and is all that the method sees.
        memory: stays with the client for its next step; None keeps the memory as it was.
        metrics: numbers for the person watching (mean loss, say); written to rounds.parquet, not seen by the method.
        sums: of an evaluation, the task's sums, of which the figures of all clients together are made; {} otherwise.
        rows: columns of equal length, a row for each thing that the step did, for the person watching; not seen by the
            method.
        texts: further columns of the same rows, of what the client holds in words; kept where the run's
            `privacy.texts` allows it.
    """

    payload: Payload
    memory: Memory | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    sums: Sums = field(default_factory=dict)
    rows: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """One client's answer, as the server receives it."""

    client: int
    payload: Payload


@dataclass(frozen=True)
class Plan:
    """One round as the server sees it.

    Attributes:
        round: number from 0.
        rounds: how many rounds the run has.
        clients: the clients asked, in the order of their numbers.
        seed: of the server's own phases in this round.
    """

    round: int
    rounds: int
    clients: tuple[ClientSpec, ...]
    seed: Seed


Step = Callable[[Any, Client], Reply]


def client_side(step: Step) -> Step:
    """Mark a method's function `(self, client: Client) -> Reply` as a step that clients may be asked to perform."""
    step.__client_side__ = True  # type: ignore[attr-defined]
    return step


Terms = Mapping[str, tuple[Tensors, float]]
"""Contributions of an update to means, by the mean's name: a state and its weight, at least 0."""


class Cohort(Protocol):
    """The clients of a round: a method's only way to reach clients."""

    def ask(
        self,
        step: Callable[[Client], Reply],
        message: Payload | Mapping[int, Payload] = EMPTY,
        clients: Sequence[ClientSpec] | None = None,
    ) -> Iterator[Update]:
        """Start a step on clients at once and yield their updates in cohort order.

        Args:
            step: a bound function of the method, marked `@client_side`.
            message: one payload for all, sent once, or one for each client's number.
            clients: those to ask; all of the round where None.

        A client that a failure policy left out yields nothing.
        """
        ...

    def means(
        self,
        step: Callable[[Client], Reply],
        terms: Callable[[Update], Terms],
        message: Payload | Mapping[int, Payload] = EMPTY,
        clients: Sequence[ClientSpec] | None = None,
    ) -> Mapping[str, WeightedMean]:
        """Ask as `ask` does, for weighted means of what the clients send and not for each update.

        Updates can so be added up where the steps run, and need not travel. They are summed in groups of equal size, in
        cohort order, and the groups in their order: the bits are the same wherever that is done.

        Args:
            terms: a bound function of the method, of the update and the method's settings alone.

        Returns:
            By name; a mean to which nobody contributed has weight 0.
        """
        ...


StateT = TypeVar("StateT")


class Method(Generic[StateT]):
    """Base of all methods. A subclass gives Config, State, `start`, `round` and `predictor`, and adds to `needs`.

    Attributes:
        paper: citation, with the arXiv number where there is one.
        State: frozen dataclass of what the server carries between rounds; see `algorithms.core.records`.
        Config: frozen dataclass of the method's settings; see `algorithms.core.settings`.
        task_traits: properties that a task must have; where settings decide it, see `requires`.
        budgets: of a method that does much on the server, settings by a budget's name; none where the defaults are it.
        personal: clients have predictors of their own and the server has none: the method gives `own_message` and
            `own_predictor` in the place of `predictor`, and is evaluated through the step `evaluate_own`.
    """

    paper: ClassVar[str]
    task_traits: ClassVar[frozenset[Trait]] = frozenset()
    personal: ClassVar[bool] = False
    State: ClassVar[type]
    Config: ClassVar[type[settings.Config]] = settings.Config
    budgets: ClassVar[settings.Budgets] = {}

    def __init__(self, config: Any, kit: Kit) -> None:
        self.config = config
        self.kit = kit

    @classmethod
    def requires(cls, config: Any) -> frozenset[Trait]:
        """Properties that a task must have for a method of these settings; `needs` is asked about no other task."""
        return cls.task_traits

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        """Everything that must be known before a run starts; asked once. A method adds what is its own.

        Unless it does, each client receives its network whole and sends it back, and all have the same one.

        Args:
            clients: all of them; one whose width is drawn anew in every round stands here once for each width.
            work: what a client does in a round.
            counts: int64 (clients, classes), the examples by client and class.
        """
        network = Volume(mean_bytes(task, clients))
        return Needs(up={"weights": network}, down={"weights": network}, refusals=tuple(net_mixture(clients)))

    def start(self, clients: Sequence[ClientSpec]) -> StateT:
        """The state before the first round, for all clients of the federation."""
        raise NotImplementedError

    def round(self, state: StateT, plan: Plan, cohort: Cohort) -> tuple[StateT, dict[str, float]]:
        """One round: the state after it, and metrics of the server's own phases by name."""
        raise NotImplementedError

    def predictor(self, state: StateT) -> nn.Module:
        """The model that is evaluated, from the task's network inputs to its outputs, in eval mode."""
        raise NotImplementedError

    def own_message(self, state: StateT) -> Payload:
        """The message that each client of a personal method receives with `evaluate_own`; the ledger leaves it out."""
        raise NotImplementedError

    def own_predictor(self, client: Client) -> nn.Module:
        """On the client's side of a personal method: what this client predicts with, in eval mode, from what it
        received and remembers; the same contract as `predictor`."""
        raise NotImplementedError

    @client_side
    def evaluate_own(self, client: Client) -> Reply:
        """The client's own predictor on `client.test`: its sums, and as metrics the task's figures and `examples`; no
        payload travels, and the memory stays as it was."""
        if client.test is None:
            raise ValueError("there are no examples to evaluate on: evaluate_own is asked with test examples")
        sums = score(self.own_predictor(client), self.kit.task, client.test, self.kit.device)
        return Reply(EMPTY, metrics={**self.kit.task.report(sums), "examples": len(client.test)}, sums=sums)

    @client_side
    def give_own(self, client: Client) -> Reply:
        """The client's own predictor for the run's folder, every entry of its state dict under the kind `model`, which
        no federation's server would see; the memory stays as it was."""
        return Reply(Payload.of(model=snapshot(self.own_predictor(client))))

    @client_side
    def validate_own(self, client: Client) -> Reply:
        """The same on validation rows, which then are `client.test`."""
        return self.evaluate_own(client)

    def sources(self, state: StateT) -> Mapping[int, Source]:
        """The clients' generators, for pictures that a person can look at; empty where there are none."""
        return {}


def steps_of(method: type[Method[Any]]) -> dict[str, Step]:
    """The steps of a method by name: its functions marked `@client_side`, inherited ones included."""
    return {
        name: function
        for name, function in inspect.getmembers(method, inspect.isfunction)
        if getattr(function, "__client_side__", False)
    }


def net_mixture(clients: Sequence[ClientSpec]) -> list[str]:
    """Reasons to refuse clients of different networks or widths, for methods that average whole networks."""
    nets = sorted({client.net for client in clients})
    widths = sorted({client.width for client in clients})
    reasons = []
    if len(nets) > 1:
        reasons.append(f"averages networks, which must be the same everywhere, but the clients have {', '.join(nets)}")
    if widths != [1.0]:
        found = ", ".join(f"{width:g}" for width in widths)
        reasons.append(f"gives every client the whole network, but the clients have widths {found}")
    return reasons


def drawn_width(widths: Sequence[float], seed: Seed) -> float:
    """One of some widths, each as likely as the others; depends on the seed's run, round and client alone."""
    return widths[int(seed.at(phase="width").numpy("draw").integers(len(widths)))]
