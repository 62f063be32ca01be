"""Hosts: Ray actors that perform clients' steps, and the fleet of them."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError

from actors.hosts.placement import Placement
from actors.process import keep_freed_memory, peak_rss_mb, set_kernels, take_huge_pages
from actors.steps.folding import fold
from actors.steps.orders import Failure, Order, WorkerSetup, step_seed
from actors.steps.shards import ShardArrays
from actors.steps.stacking import Crew
from actors.steps.wire import (
    Head,
    PackedOutcome,
    PackedParts,
    pack_outcome,
    unpack_memory,
    unpack_outcome,
    unpack_payload,
    without_payload,
)
from algorithms.core.seeds import Seed
from clusters.bits import Bits, processor, worker_options
from clusters.processors import machine_here

START_SECONDS = 120.0
"""A host that has not started after this time, and 5 seconds more for each host of the fleet, never will."""

SECONDS_PER_START = 5.0

ANSWER_SECONDS = 30.0
"""A host that has nothing to do and does not answer for so long was stopped, or its node hangs."""


class HostStartError(RuntimeError):
    """A host could not start; the message says why and what to do."""


@dataclass(frozen=True)
class Call:
    """One call to a host. The messages and then the memories with tensors travel beside it.

    Attributes:
        clients: numbers, in cohort order.
        messages: how many different messages there are.
        reads: for each client, which of the messages it receives.
        seed: of the run and round, completed here by step and client.
        first, cohort: place of the first client in the cohort, and clients of the cohort.
        terms: see `actors.runner.StepRequest`.
        memories: by client, those of numbers alone.
        beside: clients whose memories travel beside the call, in the order in which they do.
        parts: whether new memories with tensors are returned beside the outcomes, each by itself: Ray counts and keeps
            every such part, which takes longer than all else about a small one.
    """

    step: str
    clients: tuple[int, ...]
    messages: int
    reads: tuple[int, ...]
    seed: Seed
    first: int
    cohort: int
    terms: str
    memories: Mapping[int, PackedParts] = field(default_factory=dict)
    beside: tuple[int, ...] = ()
    parts: bool = True


@contextmanager
def ending_after(deadline: float | None) -> Iterator[None]:
    """A block after whose deadline, in seconds, the stacks of all threads are written to stderr and the process ends.

    A thread of C does this, which needs nothing of Python: not even of one that waits for a lock for ever.
    """
    if deadline is None:
        yield
        return
    faulthandler.dump_traceback_later(deadline, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class Host:
    """Performs steps for clients in turn. Lives in a process of its own as a Ray actor."""

    def __init__(
        self,
        setup: WorkerSetup,
        shards: ShardArrays,
        gpus: float,
        deadline: float | None = None,
        bits: Bits = "native",
    ) -> None:
        """`deadline` in seconds: a step that takes longer ends this process."""
        self._deadline = deadline
        take_huge_pages()
        keep_freed_memory()
        set_kernels(bits)
        torch.set_num_threads(1)
        if setup.torch_device.type == "cuda" and 0 < gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)
        self._crew = Crew(setup, shards)

    def perform(self, call: Call, *parcels: PackedParts) -> Any:
        """Perform a call: a list of packed outcomes, then for `call.parts` one memory per client, None where it stays
        as it was or comes with the outcome.

        What clients receive, and their memories, are views on Ray's object store; the worker refuses writes.
        """
        received = [unpack_payload(p, private=False) for p in parcels[: call.messages]]
        memories = {**call.memories, **dict(zip(call.beside, parcels[call.messages :], strict=True))}
        orders = [
            Order(
                call.step,
                client,
                step_seed(call.seed, call.step, client),
                received[read],
                unpack_memory(memories.get(client), private=False),
            )
            for client, read in zip(call.clients, call.reads, strict=True)
        ]
        packed: list[tuple[Head, PackedParts | None]] = []
        for first in range(0, len(orders), self._crew.size):
            together = orders[first : first + self._crew.size]
            with ending_after(None if self._deadline is None else self._deadline * len(together)):
                for outcome in self._crew.perform(together):
                    # The next step may write into what this one gives; after the last one comes none before it is sent.
                    packed.append(pack_outcome(outcome, copy=len(packed) + 1 < len(orders)))
        # The driver has all that an order holds.
        whole = [replace(head, order=None) if isinstance(head, Failure) else head for head, _ in packed]
        memories_beside = [memory if call.parts and memory and memory.buffers else None for _, memory in packed]
        heads = [
            replace(head, memory=memory) if isinstance(head, PackedOutcome) and memory is not beside else head
            for head, (_, memory), beside in zip(self._fold(call, whole), packed, memories_beside, strict=True)
        ]
        return (heads, *memories_beside) if call.parts else heads

    def _fold(self, call: Call, heads: Sequence[Head]) -> Sequence[Head]:
        """Replace the payloads of whole groups by their sums, where only means are wanted."""
        if not call.terms:
            return heads
        outcomes = [head if isinstance(head, Failure) else unpack_outcome(head, private=False) for head in heads]
        sums = fold(outcomes, call.first, call.cohort, self._crew.terms(call.terms))
        return [
            head if isinstance(head, Failure) or isinstance(one, Failure) else without_payload(head, one)
            for head, one in zip(heads, sums, strict=True)
        ]

    def place(self) -> tuple[str, str]:
        """This machine's name, and the kind of its processor."""
        return machine_here(), processor()

    def peak_rss_mb(self) -> float:
        """Largest resident memory of this process so far, in MiB; pages of the object store that it maps included."""
        return peak_rss_mb()


class Fleet:
    """The hosts of a run by number. A host that died is replaced under its number."""

    def __init__(
        self,
        setup: WorkerSetup,
        shards: ShardArrays,
        placement: Placement,
        deadline: float | None = None,
        bits: Bits = "native",
    ) -> None:
        """Start all hosts; returns before they have started. Setup and data are sent to the object store once."""
        self.placement = placement
        self._actor: Any = ray.remote(Host)
        self._arguments = (ray.put(setup), ray.put(shards), placement.gpus, deadline, bits)
        self._options = worker_options(bits)
        self.handles: list[Any] = []
        self._here, self._processors = machine_here(), dict[str, str]()
        self._starting: dict[int, tuple[ray.ObjectRef, float]] = {}
        self._replacing: set[int] = set()
        for number in range(placement.hosts):
            self.handles.append(self._start(number))

    def _start(self, number: int) -> Any:
        # Spread over the nodes by what each wants. A placement group would hold all hosts back until there is room for
        # every one; so those that have started get work, and the place of a lost one is sought anew.
        wants = self._actor.options(
            num_cpus=self.placement.cpus,
            num_gpus=self.placement.gpus,
            scheduling_strategy="SPREAD",
            **self._options,
        )
        handle = wants.remote(*self._arguments)
        self._starting[number] = (handle.place.remote(), time.monotonic())
        return handle

    def perform(self, number: int, call: Call, parcels: Sequence[Any]) -> list[ray.ObjectRef]:
        """Send a call to a host: references to the list of outcomes, then for `call.parts` to each client's memory."""
        if not call.parts:
            return [self.handles[number].perform.remote(call, *parcels)]
        method = self.handles[number].perform.options(num_returns=1 + len(call.clients))
        refs: list[ray.ObjectRef] = method.remote(call, *parcels)
        return refs

    def replace(self, number: int, dead: Any) -> None:
        """Start a new host in the place of a dead one, unless that has been done."""
        if self.handles[number] is dead:
            ray.kill(dead, no_restart=True)
            self.handles[number] = self._start(number)
            self._replacing.add(number)

    def absent(self) -> set[int]:
        """Hosts that took the place of dead ones and have not been heard of."""
        if self._replacing:
            self._look()
        return self._replacing

    def is_starting(self, number: int) -> bool:
        """Whether a host has not been heard of yet, as of the last `check_started`."""
        return number in self._starting

    def check_started(self) -> None:
        """Look at the hosts that have not been heard of.

        A pooled host that died with its node may wait for another node as long as it takes: others do its work.

        Raises:
            HostStartError: one has been starting for so long that the cluster cannot have room for it.
        """
        self._look()
        limit = START_SECONDS + SECONDS_PER_START * len(self.handles)
        exempt = self._replacing if self.placement.kind == "pooled" and len(self._starting) < len(self.handles) else ()
        late = [n for n, (_, since) in self._starting.items() if n not in exempt and time.monotonic() - since > limit]
        if late:
            free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
            raise HostStartError(
                f"{len(late)} of {len(self.handles)} hosts have not started in {limit:.0f} s; each wants "
                f"{self.placement.cpus:g} CPU and {self.placement.gpus:g} GPU, and free are {free or 'none'}; "
                "ask for fewer hosts, or smaller shares"
            )

    def _look(self) -> None:
        """Forget the starts of the hosts that answer, and note where they are."""
        waiting = [ref for ref, _ in self._starting.values()]
        up = set(ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]) if waiting else set()
        for ref in up:
            with suppress(RayActorError):  # it died before it could say where it was
                place, kind = ray.get(ref)
                self._processors[place] = kind
        self._starting = {n: (ref, since) for n, (ref, since) in self._starting.items() if ref not in up}
        self._replacing &= self._starting.keys()

    def processors(self) -> dict[str, str]:
        """See `actors.runner.Runner.processors`."""
        if self._starting:
            self._look()
        return {place: kind for place, kind in self._processors.items() if place != self._here}

    def peak_rss_mb(self) -> dict[str, float]:
        """Largest resident memory by host, in MiB; a host that has died meanwhile or does not answer is left out."""
        away = self.absent()
        refs = {f"host {n}": handle.peak_rss_mb.remote() for n, handle in enumerate(self.handles) if n not in away}
        waiting = list(refs.values())
        answered = set(ray.wait(waiting, num_returns=len(waiting), timeout=ANSWER_SECONDS)[0]) if waiting else set()
        peaks: dict[str, float] = {}
        for name, ref in refs.items():
            try:
                if ref in answered:
                    peaks[name] = ray.get(ref)
            except RayActorError:
                continue
        return peaks

    def close(self) -> None:
        """End all hosts; may be called twice."""
        for handle in self.handles:
            ray.kill(handle, no_restart=True)
        self.handles = []
