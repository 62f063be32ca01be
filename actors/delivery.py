"""The one delivery path: every message passes here, is checked against the declared kinds, counted and written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from actors.clock import PhaseClock
from actors.orders import Failure, Outcome, StepError
from actors.runner import Errand, Runner
from algorithms.core.contract import Client, ClientSpec, Kinds, Plan, Reply, Update
from algorithms.core.payload import EMPTY, Payload, PayloadError


@dataclass(frozen=True)
class Entry:
    """A row of the ledger: one message's part of one kind."""

    round: int
    phase: str
    client: int
    direction: Literal["up", "down"]
    kind: str
    bytes: int


@dataclass(frozen=True)
class ClientMetric:
    """A row of rounds.parquet: one number of one client's step."""

    round: int
    phase: str
    client: int
    name: str
    value: float


class Book:
    """What was sent and measured, in the order in which it happened.

    Attributes:
        entries, metrics: since this process began.
        bytes: of the whole run, by direction and then by kind.
        client_seconds: of the whole run, by step.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.metrics: list[ClientMetric] = []
        self.bytes: dict[str, Counter[str]] = {"up": Counter(), "down": Counter()}
        self.client_seconds: dict[str, float] = {}

    def note_sent(self, entry: Entry) -> None:
        """Write a message's part down."""
        self.entries.append(entry)
        self.bytes[entry.direction][entry.kind] += entry.bytes

    def note_metrics(self, round: int, phase: str, outcome: Outcome) -> None:
        """Write a step's metrics and seconds down."""
        self.client_seconds[phase] = self.client_seconds.get(phase, 0.0) + outcome.seconds
        for name, value in outcome.metrics.items():
            self.metrics.append(ClientMetric(round, phase, outcome.client, name, float(value)))


class Delivery:
    """The cohort of one round: asks clients through a runner and keeps the book."""

    def __init__(
        self,
        plan: Plan,
        runner: Runner,
        kinds: Kinds,
        book: Book,
        clock: PhaseClock,
        told: Callable[[str, int, int], None],
    ) -> None:
        """`told(step, done, asked)` hears that clients are asked, then of every update.

        Waiting for updates is booked under `client:STEP`.
        """
        self._plan, self._runner, self._kinds, self._book = plan, runner, kinds, book
        self._clock, self._told = clock, told
        self._open: dict[int, Errand] = {}

    def ask(
        self,
        step: Callable[[Client], Reply],
        message: Payload | Mapping[int, Payload] = EMPTY,
        clients: Sequence[ClientSpec] | None = None,
    ) -> Iterator[Update]:
        """See `algorithms.core.contract.Cohort`."""
        name = _step_name(step)
        asked = tuple(c.id for c in (self._plan.clients if clients is None else clients))
        errand = Errand(name, asked, message, self._plan.seed)
        for client in asked:
            self._write(name, client, "down", errand.message(client))
            self._open[client] = errand
        self._told(name, 0, len(asked))
        return self._updates(errand, self._runner.run(errand))

    def _updates(self, errand: Errand, outcomes: Iterator[Outcome | Failure]) -> Iterator[Update]:
        step, asked = errand.step, errand.clients
        for done, outcome in enumerate(self._awaited(step, outcomes), start=1):
            if isinstance(outcome, Failure):
                raise StepError(outcome)
            self._refuse_overlap(errand, outcome.client)
            self._write(step, outcome.client, "up", outcome.payload)
            self._book.note_metrics(self._plan.round, step, outcome)
            self._told(step, done, len(asked))
            yield Update(outcome.client, outcome.payload)

    def _refuse_overlap(self, errand: Errand, client: int) -> None:
        """Two steps of one client at a time would read and leave its memory in an order that nothing determines."""
        later = self._open[client]
        if later is not errand:
            raise PayloadError(
                f"client {client} was asked for {later.step} before its update of {errand.step} was taken; "
                f"take the updates of one step before asking the same clients for the next"
            )

    def _awaited(self, step: str, outcomes: Iterator[Outcome | Failure]) -> Iterator[Outcome | Failure]:
        while True:
            with self._clock.during(f"client:{step}"):
                outcome = next(outcomes, None)
            if outcome is None:
                return
            yield outcome

    def _write(self, step: str, client: int, direction: Literal["up", "down"], payload: Payload) -> None:
        declared = self._kinds.up if direction == "up" else self._kinds.down
        for kind, count in payload.nbytes().items():
            if kind not in declared:
                raise PayloadError(
                    f"step {step} sends {kind} {direction} (client {client}), which the method does not declare; "
                    f"declared are {', '.join(sorted(declared))}"
                )
            self._book.note_sent(Entry(self._plan.round, step, client, direction, kind, count))


def _step_name(step: Callable[..., Any]) -> str:
    if not getattr(step, "__client_side__", False):
        name = getattr(step, "__qualname__", repr(step))
        raise PayloadError(f"{name} is not marked @client_side, so no client may be asked to perform it")
    return step.__name__
