"""The worker: performs one step for one client, in whatever process it lives."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable
from types import MappingProxyType
from typing import Protocol

import torch

from actors.failures import Fault
from actors.steps.orders import Failure, Order, Outcome, Span, WorkerSetup, find_method
from actors.steps.vetting import BadUpdate, refuse_faults
from actors.steps.wire import tensors_of
from algorithms.core.contract import Client, Reply, Terms, Update, steps_of
from algorithms.core.kit import Kit
from algorithms.core.payload import PayloadError
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.task import Shard
from algorithms.core.training import TrainingLoop, fit

OWN = "evaluate_own"
"""The step that alone sees test examples."""

OWN_VALIDATION = "validate_own"
"""The same on validation rows, which it alone sees."""


class Shards(Protocol):
    """Access to the clients' examples."""

    def __call__(self, client: int) -> Shard:
        """The client's examples."""
        ...

    def test(self, client: int) -> Shard | None:
        """Test examples of the client's own, None where it has none."""
        ...

    def validation(self, client: int) -> Shard | None:
        """Validation examples of the client's own, None where it has none."""
        ...


class Worker:
    """The method's instance on the client's side, with its resident networks and the shards it may serve."""

    def __init__(self, setup: WorkerSetup, shards: Shards, loop: TrainingLoop = fit) -> None:
        """`loop` trains the clients' networks."""
        method = find_method(setup.method)
        self._setup = setup
        self._shards = shards
        kit = Kit(
            task=setup.task,
            work=setup.work,
            seed=Seed(setup.seed),
            device=setup.torch_device,
            fit=loop,
            starts=setup.starts,
        )
        self._method = method(setup.config, kit)
        self._steps = steps_of(method)
        # CPU time where the CPU computes: hosts may outnumber the cores, and waiting for one is no work.
        self.clock = time.process_time if setup.device == "cpu" else time.perf_counter
        self._place = f"{platform.node()} {os.getpid()}"

    def perform(self, order: Order) -> Outcome | Failure:
        """Perform an order with one thread and torch's global generator seeded; an exception comes back as a Failure.

        Raises:
            PayloadError: the order names a step that is not marked `@client_side`.
        """
        if order.step not in self._steps:
            raise PayloadError(
                f"{self._setup.method}.{order.step} is not marked @client_side: no client may be asked to perform it"
            )
        start, since = self.clock(), time.time()
        try:
            reply = self.reply(order)
        except Exception as error:
            text = traceback.format_exc()
            reason = f"{type(error).__name__}: {error}"
            fault: Fault = "bad_update" if isinstance(error, BadUpdate) else "client_error"
            return Failure(order.client, self._setup.method, order.step, order.seed, reason, text, order, fault)
        span = Span(self._place, since, time.time())
        seconds = self.clock() - start
        return Outcome(
            order.client,
            reply.payload,
            reply.memory,
            dict(reply.metrics),
            seconds,
            span=span,
            sums=dict(reply.sums),
            rows=dict(reply.rows),
            texts=dict(reply.texts),
        )

    def terms(self, name: str) -> Callable[[Update], Terms]:
        """A function of the method, for `Cohort.means`."""
        found: Callable[[Update], Terms] = getattr(self._method, name)
        return found

    def reply(self, order: Order) -> Reply:
        """Run an order's step and return its reply; exceptions propagate, for a debugger."""
        client = Client(
            spec=self._setup.client(order.client, order.seed),
            shard=self._shards(order.client),
            received=order.received,
            memory=MappingProxyType(dict(order.memory)),
            seed=order.seed,
            test=self._examples_to_score(order),
        )
        before = _versions(order)
        with one_thread(), torch_seeded(order.seed.number("global generator")):
            reply = self._steps[order.step](self._method, client)
        _refuse_writes(before, _versions(order))
        refuse_faults(reply.payload, order.received)
        return reply

    def _examples_to_score(self, order: Order) -> Shard | None:
        if order.step == OWN:
            return self._shards.test(order.client)
        return self._shards.validation(order.client) if order.step == OWN_VALIDATION else None


def _versions(order: Order) -> dict[str, int]:
    """The version counter of each tensor that a step is given, by name."""
    return {name: t._version for name, t in tensors_of(order.received, order.memory) if not t.is_inference()}


def _refuse_writes(before: dict[str, int], after: dict[str, int]) -> None:
    """Refuse a step that changed its inputs: other clients share them, here or in Ray's object store, and a retry reads
    them again."""
    written = [name for name, count in before.items() if after[name] != count]
    if written:
        raise PayloadError(f"the step wrote into what it was given ({', '.join(written)}); it must work on a copy")


class one_thread:
    """A block in which torch computes with one thread: sums of several threads round differently on other machines."""

    def __enter__(self) -> None:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads)
