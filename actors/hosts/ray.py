"""The runner on Ray: errands become calls to hosts, whatever finishes first comes back in cohort order."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from torch import Tensor

from actors.distillation.plan import DistilResources
from actors.failures import FailurePolicy
from actors.hosts.dispatch import Chunk, Dispatch, chunk_size, chunks_for_any, chunks_for_own, look_ahead
from actors.hosts.fleet import Call, Fleet, HostStartError
from actors.hosts.placement import Placement
from actors.runner import UNHEARD, Errand, Listener, MemoryLostError
from actors.steps.folding import whole_groups
from actors.steps.orders import Casting, Failure, Order, Outcome
from actors.steps.shards import ShardArrays
from actors.steps.wire import Head, Packed, pack_memory, pack_payload, unpack_memory, unpack_outcome
from algorithms.core.distillation import Distillation, distil_here
from algorithms.core.payload import Memory, Payload

LOOK_SECONDS = 10.0
"""While nothing comes back, hosts that have not started are looked at this often."""

GRACE_SECONDS = 20.0
"""Beyond its deadline, after which a host that has not ended itself is ended."""

MEMORIES_AT_ONCE = 64

log = logging.getLogger(__name__)


class RayRunner:
    """Carries errands out on hosts.

    Clients' memories lie in Ray's object store, owned by the driver, which passes references on and does not read
    them: so they outlive the host that made them. A large one is lost with the node that it lies on.
    """

    def __init__(
        self,
        casting: Casting,
        shards: ShardArrays,
        placement: Placement,
        *,
        distillation: DistilResources | None = None,
        policy: FailurePolicy | None = None,
    ) -> None:
        """Start the hosts; returns before they have started.

        Args:
            distillation: what a distillation takes on the cluster beside the hosts; where None, it is done in this
                process.
            policy: what is done where a host is lost, and when one is held for lost.
        """
        self.policy = policy or FailurePolicy()
        self.fleet = Fleet(casting, shards, placement, self.policy.deadline)
        self.memory_refs: dict[int, ray.ObjectRef] = {}
        self._casting, self._placement = casting, placement
        self._distillation = distillation
        self._reply_bytes: dict[str, int] = {}

    def run(self, errand: Errand) -> Iterator[Outcome | Failure]:
        journey = _Journey(self, errand)
        journey.send()
        return journey.outcomes()

    def distil(self, job: Distillation, listener: Listener = UNHEARD, storage: Path | None = None) -> dict[str, Tensor]:
        if self._distillation is None:
            return distil_here(job, listener.done)
        from actors.distillation import job as on_ray  # Ray Train and Ray Data are slow to import

        if storage is not None:
            return on_ray.distil_on_ray(job, self._distillation, storage, listener)
        with tempfile.TemporaryDirectory(prefix="tessera-") as place:
            return on_ray.distil_on_ray(job, self._distillation, Path(place), listener)

    def memories(self, clients: Collection[int] | None = None) -> dict[int, Memory]:
        held = sorted(c for c in self.memory_refs if clients is None or c in clients)
        found: dict[int, Memory] = {}
        for i in range(0, len(held), MEMORIES_AT_ONCE):
            some = held[i : i + MEMORIES_AT_ONCE]
            packed = self._fetched(some)
            found.update({c: unpack_memory(p, private=True) for c, p in zip(some, packed, strict=True)})
        return found

    def _fetched(self, clients: Sequence[int]) -> list[Packed]:
        try:
            packed: list[Packed] = ray.get([self.memory_refs[client] for client in clients])
        except ObjectLostError as error:
            raise self.memory_lost(error, clients) from error
        return packed

    def memory_lost(self, error: ObjectLostError, clients: Sequence[int]) -> MemoryLostError:
        """Whose memory it was that Ray has lost: one of these clients', or of all where Ray does not say."""
        named = [c for c in clients if c in self.memory_refs and self.memory_refs[c].hex() == error.object_ref_hex]
        return MemoryLostError(named or clients)

    def remember(self, client: int, memory: Memory) -> None:
        self.memory_refs[client] = ray.put(pack_memory(memory))

    def restore(self, memories: Mapping[int, Memory]) -> None:
        self.memory_refs = {client: ray.put(pack_memory(memory)) for client, memory in memories.items()}

    def peak_rss_mb(self) -> dict[str, float]:
        return self.fleet.peak_rss_mb()

    def close(self) -> None:
        self.fleet.close()

    def dispatch_of(self, errand: Errand, message_bytes: int) -> Dispatch:
        """The plan for an errand, from the size of its messages and of the replies seen so far."""
        hosts = self._placement.hosts
        if self._placement.kind == "dedicated":
            chunks, size = chunks_for_own(errand.clients), 1
        else:
            size = chunk_size(len(errand.clients), hosts, self._bytes_each(errand, message_bytes))
            size = whole_groups(size) if errand.terms else size
            chunks = chunks_for_any(errand.clients, size)
        ahead = look_ahead(size, hosts, self._bytes_each(errand, message_bytes))
        return Dispatch(errand.step, chunks, hosts, ahead, self.policy)

    def _bytes_each(self, errand: Errand, message_bytes: int) -> int:
        return self._reply_bytes.get(errand.step, message_bytes)

    def note_reply(self, step: str, count: int) -> None:
        """A reply of `count` bytes has come: the largest one sizes the next errand's calls."""
        self._reply_bytes[step] = max(count, self._reply_bytes.get(step, 0))

    def gone(self, errand: Errand, client: int, reason: str) -> Failure:
        """What comes of a client that is left out because its host was lost."""
        method, seed = self._casting.method, errand.seed_of(client)
        return Failure(client, method, errand.step, seed, f"its host was lost: {reason}", "", fault="host_lost")

    def blamed(self, failure: Failure, errand: Errand) -> Failure:
        """A failure with its order, which did not travel: the driver has all that it holds."""
        memory = self.memories((failure.client,)).get(failure.client, {})
        order = Order(errand.step, failure.client, failure.seed, errand.message(failure.client), memory)
        return replace(failure, order=order)


def full_store(error: Exception) -> str | None:
    """Ray's object store ran full, in words with its sizes and what helps; None where an error says something else."""
    if not isinstance(error, OutOfDiskError | ObjectStoreFullError):
        return None
    sizes = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    words = ", ".join(f"{size / 2**20:,.0f} MiB" for size in sizes)
    return (
        f"Ray's object store is full ({words} on its nodes), and so is the disk that it spills to, where Ray has its "
        "temporary files. It holds clients' memories, messages and replies: make room on that disk, or start Ray with "
        "a larger --object-store-memory or another --object-spilling-directory"
    )


class _Mail:
    """An errand's messages as they are sent: one that several clients receive is put into the object store once."""

    def __init__(self, errand: Errand) -> None:
        self._errand = errand
        payloads = [errand.message(client) for client in errand.clients]
        self._readers = Counter(map(id, payloads))
        self._put: dict[int, ray.ObjectRef] = {}
        self.largest = max((sum(p.nbytes().values()) for p in {id(p): p for p in payloads}.values()), default=0)

    def parcels(self, clients: tuple[int, ...]) -> tuple[list[ray.ObjectRef | Packed], tuple[int, ...]]:
        """The different messages of some clients, and for each client which of them it receives."""
        payloads = {id(p): p for p in map(self._errand.message, clients)}
        places = {key: i for i, key in enumerate(payloads)}
        reads = tuple(places[id(self._errand.message(client))] for client in clients)
        return [self._parcel(payload) for payload in payloads.values()], reads

    def _parcel(self, payload: Payload) -> ray.ObjectRef | Packed:
        if self._readers[id(payload)] == 1:
            return pack_payload(payload)
        if id(payload) not in self._put:
            self._put[id(payload)] = ray.put(pack_payload(payload))
        return self._put[id(payload)]


@dataclass(frozen=True)
class _Flight:
    """A call under way."""

    host: int
    handle: ActorHandle
    chunk: Chunk
    memories: Sequence[ray.ObjectRef]


class _Journey:
    """One errand on its way."""

    def __init__(self, runner: RayRunner, errand: Errand) -> None:
        self._runner, self._errand = runner, errand
        self._mail = _Mail(errand)
        self._dispatch = runner.dispatch_of(errand, self._mail.largest)
        self._flights: dict[ray.ObjectRef, _Flight] = {}
        self._heard: dict[int, float] = {}
        self._landed: dict[int, tuple[Sequence[Head], Sequence[ray.ObjectRef | None]]] = {}

    def send(self) -> None:
        """Send all that may be sent now."""
        fleet = self._runner.fleet
        for host, chunk in self._dispatch.send(fleet.absent()):
            messages, reads = self._mail.parcels(chunk.clients)
            errand = self._errand
            call = Call(
                errand.step,
                chunk.clients,
                len(messages),
                reads,
                errand.seed,
                first=chunk.start,
                asked=len(errand.clients),
                terms=errand.terms,
            )
            memories = [self._runner.memory_refs.get(client) for client in chunk.clients]
            head, *kept = fleet.perform(host, call, [*messages, *memories])
            if self._dispatch.under_way(host) is chunk:
                self._heard[host] = time.monotonic()
            self._flights[head] = _Flight(host, fleet.handles[host], chunk, kept)

    def outcomes(self) -> Iterator[Outcome | Failure]:
        """Outcomes in cohort order. A client's memory is its new one from the moment its outcome is taken."""
        while not self._dispatch.finished:
            chunk = self._dispatch.take()
            if chunk is None:
                self._wait()
                continue
            self.send()
            heads, memories = self._landed.pop(chunk.start)
            for head, memory in zip(heads, memories, strict=True):
                yield self._taken(head, memory, chunk.losses)

    def _taken(self, head: Head, memory: ray.ObjectRef | None, lost: int) -> Outcome | Failure:
        if isinstance(head, Failure):
            return head if head.fault == "host_lost" else self._runner.blamed(head, self._errand)
        outcome = unpack_outcome(head)
        if not head.keeps and memory is not None:
            self._runner.memory_refs[outcome.client] = memory
        self._runner.note_reply(self._errand.step, sum(outcome.nbytes().values()))
        return replace(outcome, lost=lost)

    def _wait(self) -> None:
        """Until a call has ended, well or badly."""
        ended, _ = ray.wait(list(self._flights), num_returns=1, timeout=LOOK_SECONDS)
        if not ended:
            self._runner.fleet.check_started()
            self._give_up_the_silent()
            self.send()
            return
        flight = self._flights[ended[0]]
        try:
            heads = ray.get(ended[0])
        except RayTaskError as error:  # comes first: Ray makes it an instance of its cause's class too
            if isinstance(error.cause, ObjectLostError):
                self._flights.clear()  # now, while what Ray says of the others goes to the log
                raise self._runner.memory_lost(error.cause, flight.chunk.clients) from error
            raise error.cause from error
        except (RayActorError, OutOfMemoryError, ObjectLostError) as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise HostStartError(f"host {flight.host} could not start: {error}") from error
            self._host_lost(flight, str(error))
        else:
            del self._flights[ended[0]]
            self._heard[flight.host] = time.monotonic()
            self._dispatch.landed(flight.host, flight.chunk)
            self._landed[flight.chunk.start] = (heads, flight.memories)
        self.send()

    def _give_up_the_silent(self) -> None:
        """Hold those hosts for lost that are far beyond the deadline of what they perform.

        A host ends itself at its deadline. One that cannot even do that, because it was stopped or its machine hangs,
        is ended from here.
        """
        deadline = self._runner.policy.deadline
        if deadline is None:
            return
        for flight in {flight.host: flight for flight in self._flights.values()}.values():
            if self._runner.fleet.starts(flight.host):
                self._heard[flight.host] = time.monotonic()
            chunk = self._dispatch.under_way(flight.host)
            silence = time.monotonic() - self._heard[flight.host]
            if chunk is not None and silence > deadline * len(chunk.clients) + GRACE_SECONDS:
                self._host_lost(flight, f"it has not answered for {silence:.0f} s (failures.deadline = {deadline:g})")

    def _host_lost(self, flight: _Flight, reason: str) -> None:
        """Replace the host. Its clients are sent again, to any host or to the replacement where each has its own; or
        those that it was performing are left out."""
        self._flights = {ref: f for ref, f in self._flights.items() if f.handle is not flight.handle}
        loss = self._dispatch.lost(flight.host, reason)
        self._runner.fleet.replace(flight.host, flight.handle)
        if loss.left_out:
            gone = [self._runner.gone(self._errand, client, reason) for client in loss.left_out.clients]
            self._landed[loss.left_out.start] = (gone, [None] * len(gone))
        again = ", ".join(str(client) for chunk in loss.again for client in chunk.clients) or "none"
        left_out = ", ".join(map(str, loss.left_out.clients)) if loss.left_out else "none"
        log.warning(
            "host %d was lost in step %s, round %s; clients sent again: %s; left out: %s; %s",
            *(flight.host, self._errand.step, self._errand.seed.round, again, left_out, reason),
        )
