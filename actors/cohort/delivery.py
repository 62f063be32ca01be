"""The one delivery path: every message passes here, is checked against the declared kinds, counted and written down."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from actors.clock import PhaseClock
from actors.failures import Action, FailurePolicy, Fault, describe
from actors.runner import Runner, StepRequest
from actors.steps.folding import Groups
from actors.steps.orders import Failure, Outcome, Span, StepError
from algorithms.core.contract import Client, ClientSpec, Plan, Reply, Terms, Update
from algorithms.core.needs import Needs
from algorithms.core.payload import EMPTY, Payload, PayloadError
from algorithms.core.states import WeightedMean

log = logging.getLogger(__name__)

NOBODY = -1
"""Stands for the server in a client's place."""


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


@dataclass(frozen=True)
class FaultEntry:
    """A row of rounds.parquet: what went wrong in one client's step, and what was done about it.

    Attributes:
        phase: name of the step.
        times: how often, in a row.
    """

    round: int
    phase: str
    client: int
    fault: Fault
    action: Action
    times: int = 1


@dataclass(frozen=True)
class StepSpan:
    """The time span and machine of one client's step."""

    phase: str
    client: int
    span: Span


@dataclass(frozen=True)
class ClientRows:
    """A table of what one client's step did; see `algorithms.core.contract.Reply`."""

    round: int
    phase: str
    client: int
    rows: Mapping[str, Sequence[Any]]
    texts: Mapping[str, Sequence[str]]


class Book:
    """The records of a round: everything sent and measured, in the order in which it happened.

    Attributes:
        entries, metrics, faults, spans, rows: since this process began, or since the round loop took them.
        bytes: of the whole run, by direction and then by kind.
        client_seconds: of the whole run, by step.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.metrics: list[ClientMetric] = []
        self.faults: list[FaultEntry] = []
        self.spans: list[StepSpan] = []
        self.rows: list[ClientRows] = []
        self.bytes: dict[str, Counter[str]] = {"up": Counter(), "down": Counter()}
        self.client_seconds: dict[str, float] = {}

    def note_sent(self, entry: Entry) -> None:
        """Write a message's part down."""
        self.entries.append(entry)
        self.bytes[entry.direction][entry.kind] += entry.bytes

    def note_fault(
        self, request: StepRequest, client: int, fault: Fault, action: Action, reason: str, times: int = 1
    ) -> None:
        """Write a fault down, and what was done about it."""
        self.faults.append(FaultEntry(request.seed.round, request.step, client, fault, action, times))
        log.warning(
            "round %d, step %s, client %d: %s; the reason: %s",
            *(request.seed.round + 1, request.step, client, describe(fault, action), reason),
        )

    def note_replaced(self, round: int, phase: str, kind: str) -> None:
        """Write down that a process of the server's own work was lost, and another has taken its place."""
        self.faults.append(FaultEntry(round, phase, NOBODY, "worker_lost", "retry"))
        log.warning("round %d, %s: a %s was lost, and another goes on in its place", round + 1, phase, kind)

    def note_metrics(self, round: int, phase: str, outcome: Outcome) -> None:
        """Write a step's metrics and seconds down, and when and where it was performed."""
        self.client_seconds[phase] = self.client_seconds.get(phase, 0.0) + outcome.seconds
        if outcome.span is not None:
            self.spans.append(StepSpan(phase, outcome.client, outcome.span))
        if outcome.rows:
            self.rows.append(ClientRows(round, phase, outcome.client, outcome.rows, outcome.texts))
        for name, value in outcome.metrics.items():
            self.metrics.append(ClientMetric(round, phase, outcome.client, name, float(value)))


def resolve_outcome(
    runner: Runner, request: StepRequest, outcome: Outcome | Failure, policy: FailurePolicy, book: Book
) -> Outcome | None:
    """Retry a failed step as often as the policy grants: the outcome in the end, or None for a
    client that is left out. What went wrong is written into the book.

    Raises:
        StepError: the policy says stop.
    """
    tried = 0
    while isinstance(outcome, Failure):
        action = policy.decide(outcome.fault, tried)
        if action == "stop":
            raise StepError(outcome)
        book.note_fault(request, outcome.client, outcome.fault, action, outcome.error)
        if action == "leave out":
            return None
        tried += 1
        outcome = next(runner.run(replace(request, clients=(outcome.client,), terms="")))
    if outcome.lost:
        book.note_fault(request, outcome.client, "host_lost", "retry", "its host was lost", outcome.lost)
    return outcome


class Delivery:
    """The cohort of one round: asks clients through a runner and keeps the book."""

    def __init__(
        self,
        plan: Plan,
        runner: Runner,
        needs: Needs,
        book: Book,
        clock: PhaseClock,
        report: Callable[[str, int, int], None],
        policy: FailurePolicy | None = None,
    ) -> None:
        """`report(step, done, asked)` hears that clients are asked, then of every one that has answered or is left out.

        Waiting for updates is booked under `client:STEP`.
        """
        self._policy = policy or FailurePolicy()
        self._plan, self._runner, self._needs, self._book = plan, runner, needs, book
        self._clock, self._report = clock, report
        self._open: dict[int, StepRequest] = {}

    def ask(
        self,
        step: Callable[[Client], Reply],
        message: Payload | Mapping[int, Payload] = EMPTY,
        clients: Sequence[ClientSpec] | None = None,
    ) -> Iterator[Update]:
        """See `algorithms.core.contract.Cohort`."""
        found = self._ask(step, message, clients)
        return (Update(o.client, o.payload) for o in found if o is not None and o.payload is not None)

    def means(
        self,
        step: Callable[[Client], Reply],
        terms: Callable[[Update], Terms],
        message: Payload | Mapping[int, Payload] = EMPTY,
        clients: Sequence[ClientSpec] | None = None,
    ) -> Mapping[str, WeightedMean]:
        """See `algorithms.core.contract.Cohort`."""
        name = _terms_name(terms)
        groups = Groups(len(self._plan.clients if clients is None else clients), terms)
        for place, outcome in enumerate(self._ask(step, message, clients, name)):
            groups.take(place, outcome)
        return defaultdict(WeightedMean, groups.means)

    def _ask(
        self,
        step: Callable[[Client], Reply],
        message: Payload | Mapping[int, Payload],
        clients: Sequence[ClientSpec] | None,
        terms: str = "",
    ) -> Iterator[Outcome | None]:
        """Start a step on clients at once; what comes of each, None where it is left out."""
        name = _step_name(step)
        asked = tuple(c.id for c in (self._plan.clients if clients is None else clients))
        request = StepRequest(name, asked, message, self._plan.seed, terms)
        sent: dict[int, Mapping[str, int]] = {}
        for client in asked:
            payload = request.message(client)
            sent.setdefault(id(payload), payload.nbytes())
            self._write(name, client, "down", sent[id(payload)])
            self._open[client] = request
        self._report(name, 0, len(asked))
        return self._resolve(request, self._runner.run(request))

    def _resolve(self, request: StepRequest, outcomes: Iterator[Outcome | Failure]) -> Iterator[Outcome | None]:
        step, asked = request.step, request.clients
        for done, outcome in enumerate(self._wait_for(step, outcomes), start=1):
            self._refuse_overlap(request, outcome.client)
            with self._clock.during(f"client:{step}"):
                final = resolve_outcome(self._runner, request, outcome, self._policy, self._book)
            if final is not None:
                self._write(step, final.client, "up", final.nbytes())
                self._book.note_metrics(self._plan.round, step, final)
            self._report(step, done, len(asked))
            yield final

    def _refuse_overlap(self, request: StepRequest, client: int) -> None:
        """Two steps of one client at a time would read and leave its memory in an order that nothing determines."""
        later = self._open[client]
        if later is not request:
            raise PayloadError(
                f"client {client} was asked for {later.step} before its update of {request.step} was taken; "
                f"take the updates of one step before asking the same clients for the next"
            )

    def _wait_for(self, step: str, outcomes: Iterator[Outcome | Failure]) -> Iterator[Outcome | Failure]:
        while True:
            with self._clock.during(f"client:{step}"):
                outcome = next(outcomes, None)
            if outcome is None:
                return
            yield outcome

    def _write(self, step: str, client: int, direction: Literal["up", "down"], sizes: Mapping[str, int]) -> None:
        declared = self._needs.up if direction == "up" else self._needs.down
        for sent, count in sizes.items():
            kind = self._needs.kind_of(sent)
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


def _terms_name(terms: Callable[[Update], Terms]) -> str:
    """By which the worker's own instance of the method has the same function."""
    name = getattr(terms, "__name__", repr(terms))
    if getattr(getattr(terms, "__self__", None), name, None) != terms:
        raise PayloadError(
            f"{name} is no function of the method, so hosts do not have it: give a bound one, self.terms"
        )
    return name
