"""The runner on Ray: requests become calls to hosts, whatever finishes first comes back in cohort order."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import ref

import numpy as np
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
from actors.hosts.costs import StepCosts, planned_costs
from actors.hosts.dispatch import Chunk, Dispatch, chunk_size, chunks_for_any, chunks_for_own, look_ahead
from actors.hosts.fleet import Call, Fleet, HostStartError
from actors.hosts.placement import Placement
from actors.runner import NO_LISTENER, Listener, MemoryLostError, StepRequest
from actors.steps.folding import whole_groups
from actors.steps.orders import Failure, Order, Outcome, WorkerSetup
from actors.steps.shards import ShardArrays
from actors.steps.wire import (
    LARGE,
    Head,
    PackedOutcome,
    PackedParts,
    pack_memory,
    pack_payload,
    unpack_memory,
    unpack_outcome,
)
from algorithms.core.distillation import Distillation, distil_here
from algorithms.core.payload import Memory, Payload
from clusters.bits import Bits

LOOK_SECONDS = 10.0
"""While nothing comes back, hosts that have not started are looked at this often."""

GRACE_SECONDS = 20.0
"""Beyond its deadline, after which a host that has not ended itself is ended."""

MEMORIES_AT_ONCE = 64

READ_IN_PLACE_BYTES = 2**28
"""Replies that updates are read in, and so kept in the object store, together."""

log = logging.getLogger(__name__)


class RayRunner:
    """Carries requests out on hosts.

    Clients' memories lie in Ray's object store, owned by the driver, which passes references on and does not read
    them: so they outlive the host that made them. A large one is lost with the node that it lies on. Those of numbers
    alone lie with the driver itself.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        shards: ShardArrays,
        placement: Placement,
        *,
        distillation: DistilResources | None = None,
        policy: FailurePolicy | None = None,
        bits: Bits = "native",
    ) -> None:
        """Start the hosts; returns before they have started.

        Args:
            distillation: what a distillation takes on the cluster beside the hosts; where None, it is done in this
                process.
            policy: what is done where a host is lost, and when one is held for lost.
            bits: that hosts compute; those of a distillation are its own.
        """
        self.policy = policy or FailurePolicy()
        self.fleet = Fleet(setup, shards, placement, self.policy.deadline, bits)
        self.memory_refs: dict[int, ray.ObjectRef | PackedParts] = {}
        self._lean_steps: dict[str, bool] = {}
        self._setup, self._placement = setup, placement
        self._distillation = distillation
        self._reply_bytes: dict[str, int] = {}
        self._costs = StepCosts(planned_costs(setup, shards))
        self.replies = RepliesInPlace()

    def run(self, request: StepRequest) -> Iterator[Outcome | Failure]:
        run = _RequestRun(self, request)
        run.send()
        return run.outcomes()

    def distil(
        self, job: Distillation, listener: Listener = NO_LISTENER, storage: Path | None = None
    ) -> dict[str, Tensor]:
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
            packed = self._fetch(some)
            found.update({c: unpack_memory(p, private=True) for c, p in zip(some, packed, strict=True)})
        return found

    def _fetch(self, clients: Sequence[int]) -> list[PackedParts]:
        held = [self.memory_refs[client] for client in clients]
        try:
            there = iter(ray.get([ref for ref in held if isinstance(ref, ray.ObjectRef)]))
        except ObjectLostError as error:
            raise self.memory_lost_error(error, clients) from error
        return [one if isinstance(one, PackedParts) else next(there) for one in held]

    def memory_lost_error(self, error: ObjectLostError, clients: Sequence[int]) -> MemoryLostError:
        """The error for memory that Ray lost: of one of these clients, or of all where Ray does not say."""
        refs = {client: self.memory_refs.get(client) for client in clients}
        named = [c for c, ref in refs.items() if isinstance(ref, ray.ObjectRef) and ref.hex() == error.object_ref_hex]
        return MemoryLostError(named or clients)

    def remember(self, client: int, memory: Memory) -> None:
        self.keep(client, pack_memory(memory, copy=False))

    def restore(self, memories: Mapping[int, Memory]) -> None:
        self.memory_refs = {}
        for client, memory in memories.items():
            self.remember(client, memory)

    def keep(self, client: int, memory: PackedParts) -> None:
        """Keep a client's new memory."""
        self.memory_refs[client] = ray.put(memory) if memory.buffers else memory

    def is_lean(self, step: str) -> bool:
        """Whether all memories that a step has left so far are of numbers alone, or as they were."""
        return self._lean_steps.get(step, False)

    def note_memory(self, step: str, has_tensors: bool) -> None:
        """A step has left a memory, with tensors or without."""
        self._lean_steps[step] = self._lean_steps.get(step, True) and not has_tensors

    def processors(self) -> dict[str, str]:
        return self.fleet.processors()

    def peak_rss_mb(self) -> dict[str, float]:
        return self.fleet.peak_rss_mb()

    def close(self) -> None:
        self.fleet.close()

    def plan_dispatch(self, request: StepRequest, message_bytes: int) -> Dispatch:
        """The plan for a request, from the size of its messages and of the replies seen so far."""
        hosts = self._placement.hosts
        if self._placement.kind == "dedicated":
            chunks, size = chunks_for_own(request.clients), 1
        else:
            size = chunk_size(len(request.clients), hosts, self._bytes_each(request, message_bytes))
            size = whole_groups(size) if request.terms else size
            chunks = chunks_for_any(request.clients, size, lambda client: self._costs.of(request.step, client))
        ahead = look_ahead(size, hosts, self._bytes_each(request, message_bytes))
        return Dispatch(request.step, chunks, hosts, ahead, self.policy)

    def _bytes_each(self, request: StepRequest, message_bytes: int) -> int:
        return self._reply_bytes.get(request.step, message_bytes)

    def note_reply(self, step: str, outcome: Outcome) -> None:
        """A reply has come: the largest one sizes the next request's calls, its seconds settle who goes first."""
        self._reply_bytes[step] = max(sum(outcome.nbytes().values()), self._reply_bytes.get(step, 0))
        self._costs.note(step, outcome.client, outcome.seconds)

    def left_out_failure(self, request: StepRequest, client: int, reason: str) -> Failure:
        """The failure of a client that is left out because its host was lost."""
        method, seed = self._setup.method, request.seed_of(client)
        return Failure(client, method, request.step, seed, f"its host was lost: {reason}", "", fault="host_lost")

    def with_order(self, failure: Failure, request: StepRequest) -> Failure:
        """Add the order to a failure: it did not travel, since the driver has all that it holds."""
        memory = self.memories((failure.client,)).get(failure.client, {})
        order = Order(request.step, failure.client, failure.seed, request.message(failure.client), memory)
        return replace(failure, order=order)


def describe_full_store(error: Exception) -> str | None:
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


class RepliesInPlace:
    """Replies whose updates are views on Ray's object store, as long as somebody holds one of them.

    A copy of a large update takes the driver longer than all else that it does with a reply. But a method may keep
    updates for many rounds, and each keeps its whole reply in the store: so few are read in place, and the others are
    copied, as small ones are. What a method writes into an update, nobody else reads.
    """

    def __init__(self, limit: int = READ_IN_PLACE_BYTES) -> None:
        """`limit` bytes of replies at most; none yet."""
        self._limit = limit
        self._replies: list[tuple[int, list[ref[np.ndarray]]]] = []

    def admit(self, heads: Sequence[Head]) -> bool:
        """Whether the updates of a reply may be read in place; if so, it counts from now on."""
        payloads = [head.payload for head in heads if isinstance(head, PackedOutcome) and head.payload is not None]
        buffers = [buffer for payload in payloads for buffer in payload.buffers]
        size = sum(buffer.nbytes for buffer in buffers)
        if size < LARGE * len(payloads) or self.nbytes() + size > self._limit:
            return False
        self._replies.append((size, [ref(buffer) for buffer in buffers]))
        return True

    def nbytes(self) -> int:
        """Bytes of the replies that are held now."""
        self._replies = [
            (size, buffers) for size, buffers in self._replies if any(buffer() is not None for buffer in buffers)
        ]
        return sum(size for size, _ in self._replies)


class _Messages:
    """A request's messages as they are sent: one that several clients receive is put into the object store once."""

    def __init__(self, request: StepRequest) -> None:
        self._request = request
        payloads = [request.message(client) for client in request.clients]
        self._readers = Counter(map(id, payloads))
        self._put: dict[int, ray.ObjectRef] = {}
        self.largest = max((sum(p.nbytes().values()) for p in {id(p): p for p in payloads}.values()), default=0)

    def parcels(self, clients: tuple[int, ...]) -> tuple[list[ray.ObjectRef | PackedParts], tuple[int, ...]]:
        """The different messages of some clients, and for each client which of them it receives."""
        payloads = {id(p): p for p in map(self._request.message, clients)}
        places = {key: i for i, key in enumerate(payloads)}
        reads = tuple(places[id(self._request.message(client))] for client in clients)
        return [self._parcel(payload) for payload in payloads.values()], reads

    def _parcel(self, payload: Payload) -> ray.ObjectRef | PackedParts:
        if self._readers[id(payload)] == 1:
            return pack_payload(payload, copy=False)
        if id(payload) not in self._put:
            self._put[id(payload)] = ray.put(pack_payload(payload, copy=False))
        return self._put[id(payload)]


@dataclass(frozen=True)
class _PendingCall:
    """A call under way."""

    host: int
    handle: ActorHandle
    chunk: Chunk
    memories: Sequence[ray.ObjectRef | None]


class _RequestRun:
    """Performs one request: sends its calls and collects the replies in cohort order."""

    def __init__(self, runner: RayRunner, request: StepRequest) -> None:
        self._runner, self._request = runner, request
        self._messages = _Messages(request)
        self._dispatch = runner.plan_dispatch(request, self._messages.largest)
        self._pending: dict[ray.ObjectRef, _PendingCall] = {}
        self._last_heard: dict[int, float] = {}
        self._answers: dict[int, tuple[Sequence[Head], Sequence[ray.ObjectRef | None]]] = {}

    def send(self) -> None:
        """Send all that may be sent now."""
        fleet = self._runner.fleet
        for host, chunk in self._dispatch.send(fleet.absent()):
            messages, reads = self._messages.parcels(chunk.clients)
            request = self._request
            held = {c: m for c in chunk.clients if (m := self._runner.memory_refs.get(c)) is not None}
            beside = {client: ref for client, ref in held.items() if isinstance(ref, ray.ObjectRef)}
            call = Call(
                request.step,
                chunk.clients,
                len(messages),
                reads,
                request.seed,
                first=chunk.start,
                cohort=len(request.clients),
                terms=request.terms,
                memories={client: memory for client, memory in held.items() if isinstance(memory, PackedParts)},
                beside=tuple(beside),
                parts=not self._runner.is_lean(request.step),
            )
            head, *memories = fleet.perform(host, call, [*messages, *beside.values()])
            kept = memories if call.parts else [None] * len(chunk.clients)
            if self._dispatch.under_way(host) is chunk:
                self._last_heard[host] = time.monotonic()
            self._pending[head] = _PendingCall(host, fleet.handles[host], chunk, kept)

    def outcomes(self) -> Iterator[Outcome | Failure]:
        """Outcomes in cohort order. A client's memory is its new one from the moment its outcome is taken."""
        while not self._dispatch.is_finished:
            chunk = self._dispatch.take()
            if chunk is None:
                self._wait()
                continue
            self.send()
            heads, memories = self._answers.pop(chunk.start)
            in_place = self._runner.replies.admit(heads)
            for head, memory in zip(heads, memories, strict=True):
                yield self._accept(head, memory, chunk.losses, in_place)

    def _accept(self, head: Head, memory: ray.ObjectRef | None, lost: int, in_place: bool) -> Outcome | Failure:
        if isinstance(head, Failure):
            return head if head.fault == "host_lost" else self._runner.with_order(head, self._request)
        # Summed at once and dropped, it is read where it lies in any case.
        outcome = unpack_outcome(head, private=not (in_place or self._request.terms))
        if head.memory is not None:
            self._runner.keep(outcome.client, head.memory)
        elif not head.keeps and memory is not None:
            self._runner.memory_refs[outcome.client] = memory
        has_tensors = bool(head.memory.buffers) if head.memory else not head.keeps
        self._runner.note_memory(self._request.step, has_tensors)
        self._runner.note_reply(self._request.step, outcome)
        return replace(outcome, lost=lost) if lost else outcome

    def _wait(self) -> None:
        """Wait until a call has ended, well or badly."""
        ended, _ = ray.wait(list(self._pending), num_returns=1, timeout=LOOK_SECONDS)
        if not ended:
            self._runner.fleet.check_started()
            self._replace_silent_hosts()
            self.send()
            return
        pending = self._pending[ended[0]]
        try:
            heads = ray.get(ended[0])
        except RayTaskError as error:  # comes first: Ray makes it an instance of its cause's class too
            if isinstance(error.cause, ObjectLostError):
                self._pending.clear()  # now, while what Ray says of the others goes to the log
                raise self._runner.memory_lost_error(error.cause, pending.chunk.clients) from error
            raise error.cause from error
        except (RayActorError, OutOfMemoryError, ObjectLostError) as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise HostStartError(f"host {pending.host} could not start: {error}") from error
            self._lose_host(pending, str(error))
        else:
            del self._pending[ended[0]]
            self._last_heard[pending.host] = time.monotonic()
            self._dispatch.receive(pending.host, pending.chunk)
            self._answers[pending.chunk.start] = (heads, pending.memories)
        self.send()

    def _replace_silent_hosts(self) -> None:
        """Treat hosts as lost that are far beyond the deadline of what they perform.

        A host ends itself at its deadline. One that cannot even do that, because it was stopped or its machine hangs,
        is ended from here.
        """
        deadline = self._runner.policy.deadline
        if deadline is None:
            return
        for pending in {pending.host: pending for pending in self._pending.values()}.values():
            if self._runner.fleet.is_starting(pending.host):
                self._last_heard[pending.host] = time.monotonic()
            chunk = self._dispatch.under_way(pending.host)
            silence = time.monotonic() - self._last_heard[pending.host]
            if chunk is not None and silence > deadline * len(chunk.clients) + GRACE_SECONDS:
                self._lose_host(pending, f"it has not answered for {silence:.0f} s (failures.deadline = {deadline:g})")

    def _lose_host(self, pending: _PendingCall, reason: str) -> None:
        """Replace the host. Its clients are sent again, to any host or to the replacement where each has its own; or
        those that it was performing are left out."""
        self._pending = {ref: f for ref, f in self._pending.items() if f.handle is not pending.handle}
        loss = self._dispatch.lose_host(pending.host, reason)
        self._runner.fleet.replace(pending.host, pending.handle)
        if loss.left_out:
            failures = [
                self._runner.left_out_failure(self._request, client, reason) for client in loss.left_out.clients
            ]
            self._answers[loss.left_out.start] = (failures, [None] * len(failures))
        again = ", ".join(str(client) for chunk in loss.again for client in chunk.clients) or "none"
        left_out = ", ".join(map(str, loss.left_out.clients)) if loss.left_out else "none"
        request = self._request
        log.warning(
            "round %d, step %s: host %d was lost; clients sent again: %s; left out: %s; the reason: %s",
            *(request.seed.round + 1, request.step, pending.host, again, left_out, reason),
        )
