"""The prospectus of a method: what it answers once, before anything starts, about one problem and its clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from algorithms.core.clients import ClientSpec
from algorithms.core.payload import KINDS
from algorithms.core.seeds import torch_seeded
from algorithms.core.states import state_bytes
from algorithms.core.task import Task, Trait
from algorithms.nets import NetworkError

PublicData = Literal["nothing", "examples", "labelled examples"]


@dataclass(frozen=True)
class Volume:
    """The bytes of one kind that travel in one direction.

    Attributes:
        bytes: of one client in a round, on average over the clients; in the whole run where `once`. None where they
            depend on the data.
        once: each client sends or receives it once in a run, and not in every round.
    """

    bytes: float | None = None
    once: bool = False


@dataclass(frozen=True)
class ServerStorage:
    """Objects of one size that the server will store besides its models, declared up front so that memory can be
    planned.

    Attributes:
        name: in the plural, as `generators`.
        count: how many.
        bytes: of one, on average.
        making: bytes that a client takes at the most while it makes one; 0 where the server makes them.
        loaded: bytes of libraries that a client loads which makes one.
        kept: every client receives all of them once, and remembers them.
    """

    name: str
    count: int
    bytes: int
    making: int = 0
    loaded: int = 0
    kept: bool = False

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self.count * self.bytes


@dataclass(frozen=True)
class PlannedDistillation:
    """A distillation that a method will ask for (`kit.distil`), as far as it is known before the start.

    Attributes:
        students: networks that are taught, one after another.
        batch: examples in a step.
        kept: batches that come again in later steps, which are kept until then.
        source: bytes of what examples are generated with.
        teacher: bytes of what labels them.
    """

    students: tuple[str, ...]
    batch: int
    kept: int
    source: int
    teacher: int


@dataclass(frozen=True)
class LeastRounds:
    """The shortest run that makes sense.

    Attributes:
        rounds: how many.
        setting: field of the method's Config that asks for them.
    """

    rounds: int
    setting: str


@dataclass(frozen=True)
class Stage:
    """A stage of a round that a method shows (`kit.show`).

    Attributes:
        name: under which it is shown.
        caption: what it is, in words for the report.
        against: name of the stage that it is compared with, class by class; none where empty.
    """

    name: str
    caption: str
    against: str = ""


@dataclass(frozen=True)
class Needs:
    """Everything that must be known of a method before a run starts.

    A kind of which a client receives tensors and sends some back holds the same names both ways, each tensor in the
    same shape and type. One may come back under a kind that was not received instead: a change in the place of a
    weight.

    Attributes:
        up, down: what travels to the server and to clients, by kind. A kind that is not named here is refused.
        own_kinds: a sentence on each kind that `algorithms.core.payload.KINDS` lacks: what it tells about a client.
        refusals: reasons why the method cannot serve this problem, these clients or their work.
        lacking: properties that the task lacks and the method requires; then nothing else is known.
        storage: what the server will store besides its models.
        distillation: the one that the method will ask for; None for most methods.
        public: what the server must own itself: `kit.public`.
        least_rounds: None where one round will do.
        stages: those that the method may show, the most telling comparison first.
        state_kind: the kind that states of networks are, which methods send as `weights`; see `Task`.
        trained_alone: why clients of this method cannot be trained several at once; empty where they can.
        for_mixture: the same settings, changed where clients of unrelated networks need it: which of these is
            evaluated, say. None where nothing has to be changed.
    """

    up: Mapping[str, Volume]
    down: Mapping[str, Volume]
    own_kinds: Mapping[str, str] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    lacking: frozenset[Trait] = frozenset()
    storage: tuple[ServerStorage, ...] = ()
    distillation: PlannedDistillation | None = None
    public: PublicData = "nothing"
    least_rounds: LeastRounds | None = None
    stages: tuple[Stage, ...] = ()
    for_mixture: Any = None
    trained_alone: str = ""
    state_kind: str = "weights"

    def naming_states(self, kind: str) -> Needs:
        """The same with another name for the kind `weights`."""

        def rename(volumes: Mapping[str, Volume]) -> dict[str, Volume]:
            return {kind if name == "weights" else name: volume for name, volume in volumes.items()}

        return replace(self, up=rename(self.up), down=rename(self.down), state_kind=kind)

    @property
    def sent_kinds(self) -> frozenset[str]:
        """The kinds that clients may send, by the names that payloads have."""
        return frozenset("weights" if kind == self.state_kind else kind for kind in self.up)

    def kind_of(self, kind: str) -> str:
        """The name of a kind in ledgers and policies."""
        return self.state_kind if kind == "weights" else kind

    def adding(
        self,
        up: Mapping[str, Volume] | None = None,
        down: Mapping[str, Volume] | None = None,
        refusals: Sequence[str] = (),
    ) -> Needs:
        """The same with further kinds, or other sizes of them, and further refusals."""
        return replace(
            self,
            up={**self.up, **(up or {})},
            down={**self.down, **(down or {})},
            refusals=(*self.refusals, *refusals),
        )

    @property
    def known_kinds(self) -> dict[str, str]:
        """A sentence on each kind that there is a word for, sent or not."""
        return {**KINDS, **self.own_kinds}

    @property
    def kinds(self) -> dict[str, str]:
        """A sentence on each kind that travels; empty for one that nobody explains, which no run may send."""
        return {kind: self.known_kinds.get(kind, "") for kind in sorted({*self.up, *self.down})}


def network_of(net: str, task: Task, width: float = 1.0) -> nn.Module:
    """A network to look at, not to use: its weights mean nothing.

    Raises:
        NetworkError: there is none of this name or width for the task.
    """
    with torch_seeded(0):
        return task.network(net, width)


def mean_bytes(
    task: Task, clients: Sequence[ClientSpec], measure: Callable[[nn.Module], int] = state_bytes
) -> float | None:
    """Bytes of what is measured of a client's network, on average over the clients.

    None where a network cannot be built, which is refused elsewhere, by name.
    """
    forms = Counter((client.net, client.width) for client in clients)
    try:
        sizes = {(net, width): measure(network_of(net, task, width)) for net, width in forms}
    except NetworkError:
        return None
    return sum(count * sizes[form] for form, count in forms.items()) / len(clients)
