"""Assignment of clients to hosts: decisions only. Events go in, instructions come out; nothing is sent here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from actors.failures import FailurePolicy

CALLS_PER_HOST = 2
"""A host computes one call while the next one waits at its door."""

LARGEST_CHUNK = 16
"""Clients in one call: more cost no less per client, and the last call of a request would be waited for longer."""

CHUNK_BYTES = 64 * 2**20
"""The replies of one call together, unless one client alone sends more."""

CALLS_AHEAD = 16
"""Calls for each host that may be out: enough for others to go on while the first is waited for."""

AHEAD_BYTES = 512 * 2**20
"""Replies under way and not yet asked for, together; each host may have one call all the same."""

LONG = 1.5
"""Calls that cost more than this many times the median are long, and go out first."""


def _equal(_: int) -> float:
    return 1.0


@dataclass(frozen=True)
class Chunk:
    """Clients performed in one call.

    Attributes:
        start: place of the first client in cohort order.
        host: the only host that may perform it, None for any.
        losses: how many hosts have died over it.
        cost: expected seconds, or anything in proportion to them.
    """

    start: int
    clients: tuple[int, ...]
    host: int | None = None
    losses: int = 0
    cost: float = field(default=1.0, compare=False)

    def singles(self) -> list[Chunk]:
        """The same clients, one a call, with equal shares of the cost."""
        cost = self.cost / len(self.clients)
        return [replace(self, start=self.start + i, clients=(c,), cost=cost) for i, c in enumerate(self.clients)]


@dataclass(frozen=True)
class Loss:
    """The consequences of losing a host.

    Attributes:
        again: what is sent again.
        left_out: what is not, and counts as landed.
    """

    again: tuple[Chunk, ...] = ()
    left_out: Chunk | None = None


class HostLostError(RuntimeError):
    """Hosts died over the same clients more often than they may.

    Attributes:
        host: number of the last one.
        clients: those it was performing.
        losses: how many hosts died over them.
    """

    def __init__(self, host: int, step: str, clients: tuple[int, ...], losses: int, reason: str) -> None:
        self.host, self.step, self.clients, self.losses, self.reason = host, step, clients, losses, reason
        super().__init__(host, step, clients, losses, reason)

    def __str__(self) -> str:
        who = ("client " if len(self.clients) == 1 else "clients ") + ", ".join(map(str, self.clients))
        return (
            f"host {self.host} died while it performed step {self.step} for {who}; "
            f"{self.losses} {'host has' if self.losses == 1 else 'hosts have'} died over it\n"
            f"  Ray says: {self.reason}\n"
            "  if memory ran out: fewer hosts, smaller networks or batches; to see the step itself: runner.kind: inline"
        )


def chunk_size(clients: int, hosts: int, bytes_each: int) -> int:
    """Clients in a call: about four calls a host, so that hosts of different speed finish together."""
    return max(1, min(clients // (4 * hosts), LARGEST_CHUNK, CHUNK_BYTES // max(bytes_each, 1)))


def look_ahead(size: int, hosts: int, bytes_each: int) -> int:
    """The number of clients that may be sent out, or wait finished, before the first of them has been taken."""
    calls = AHEAD_BYTES // max(size * bytes_each, 1)
    return size * max(hosts, min(calls, CALLS_AHEAD * hosts))


def chunks_for_any(clients: Sequence[int], size: int, cost: Callable[[int], float] = _equal) -> list[Chunk]:
    """Clients in cohort order, `size` in a call, for whichever host has room; `cost` by client."""
    parts = [(i, tuple(clients[i : i + size])) for i in range(0, len(clients), size)]
    return [Chunk(i, part, cost=sum(map(cost, part))) for i, part in parts]


def chunks_for_own(clients: Sequence[int]) -> list[Chunk]:
    """One call a client, for the host of the client's number."""
    return [Chunk(i, (client,), host=client) for i, client in enumerate(clients)]


class Dispatch:
    """The state of one request: what waits, what each host has been sent, what has come back out of turn.

    Long calls go out first, the longest before all others, since one that is begun last is waited for alone (Graham,
    "Bounds on Multiprocessing Timing Anomalies", 1969); the others in cohort order, in which replies are taken.

    Attributes:
        ahead: see `look_ahead`. Of long calls, half as many clients more may be out.
    """

    def __init__(self, step: str, chunks: Sequence[Chunk], hosts: int, ahead: int, policy: FailurePolicy) -> None:
        self._step, self.ahead, self._policy = step, ahead, policy
        self._long = LONG * statistics.median(chunk.cost for chunk in chunks) if chunks else 0.0
        self._waiting = sorted(chunks, key=self._precedence)
        self._in_flight: list[list[Chunk]] = [[] for _ in range(hosts)]
        self._arrivals: dict[int, Chunk] = {}
        self._turn = 0
        self._end = sum(len(chunk.clients) for chunk in chunks)

    @property
    def is_finished(self) -> bool:
        """Whether every chunk has been taken."""
        return self._turn == self._end

    def send(self, absent: Collection[int] = ()) -> list[tuple[int, Chunk]]:
        """Chunks to send now, as (host, chunk): long ones first, the others in cohort order.

        Args:
            absent: hosts that took the place of lost ones and still start, or wait for room to start: what any host can
                perform goes to others, as long as there are some.
        """
        now: list[tuple[int, Chunk]] = []
        kept: list[Chunk] = []
        for chunk in self._waiting:
            host = self._host_with_room(chunk, absent) if self._may_go(chunk) else None
            if host is None:
                kept.append(chunk)
            else:
                self._in_flight[host].append(chunk)
                now.append((host, chunk))
        self._waiting = kept
        return now

    def _is_long(self, chunk: Chunk) -> bool:
        return chunk.cost > self._long

    def _precedence(self, chunk: Chunk) -> tuple[float, int]:
        return (-chunk.cost if self._is_long(chunk) else 0.0, chunk.start)

    def _may_go(self, chunk: Chunk) -> bool:
        end = self._turn + self.ahead
        if chunk.start < end or not self._is_long(chunk):
            return chunk.start < end
        beyond = [
            c for c in (*self._arrivals.values(), *(c for sent in self._in_flight for c in sent)) if c.start >= end
        ]
        return 2 * sum(len(c.clients) for c in (*beyond, chunk)) <= self.ahead

    def receive(self, host: int, chunk: Chunk) -> None:
        """Record that a chunk's reply has come."""
        self._in_flight[host].remove(chunk)
        self._arrivals[chunk.start] = chunk

    def under_way(self, host: int) -> Chunk | None:
        """The chunk that a host is performing; None where it is idle."""
        return self._in_flight[host][0] if self._in_flight[host] else None

    def lose_host(self, host: int, reason: str) -> Loss:
        """Record that a host was lost and replaced, and queue again what it had been sent.

        The loss is charged to the chunk that it was performing, about which the policy decides. Where that is sent
        again, its clients go out one by one, so that one whose step kills every host is found by name.

        Raises:
            HostLostError: the policy says stop.
        """
        sent, self._in_flight[host] = self._in_flight[host], []
        if not sent:
            return Loss()
        charged, at_the_door = replace(sent[0], losses=sent[0].losses + 1), sent[1:]
        action = self._policy.decide("host_lost", sent[0].losses)
        if action == "stop":
            raise HostLostError(host, self._step, charged.clients, charged.losses, reason)
        again = [*charged.singles(), *at_the_door] if action == "retry" else at_the_door
        self._waiting = sorted([*self._waiting, *again], key=self._precedence)
        if action == "retry":
            return Loss(tuple(again))
        self._arrivals[charged.start] = charged
        return Loss(tuple(again), charged)

    def take(self) -> Chunk | None:
        """The chunk whose turn it is, if its reply has come."""
        chunk = self._arrivals.pop(self._turn, None)
        if chunk is not None:
            self._turn += len(chunk.clients)
        return chunk

    def _host_with_room(self, chunk: Chunk, absent: Collection[int]) -> int | None:
        """The one that will be done first with what it has.

        What was lost with a host before is alone on the next one: replies may be lost with a host that dies, so that a
        loss can be charged to a step which was done, but never twice. Nothing waits behind a long call.
        """
        everyone = range(len(self._in_flight))
        there = [h for h in everyone if h not in absent] or everyone
        hosts = there if chunk.host is None else (chunk.host,)
        free = [h for h in hosts if self._has_room(h, chunk)]
        return min(free, key=lambda h: (sum(chunk.cost for chunk in self._in_flight[h]), h), default=None)

    def _has_room(self, host: int, chunk: Chunk) -> bool:
        sent = self._in_flight[host]
        is_alone = chunk.losses > 0 or any(other.losses or self._is_long(other) for other in sent)
        return not sent if is_alone else len(sent) < CALLS_PER_HOST
