"""Steps of several clients that meet in their training: it is done for all of them at once, and no method knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import nn

from actors.steps.orders import Failure, Order, Outcome, WorkerSetup
from actors.steps.worker import Shards, Worker
from algorithms.core.seeds import Seed
from algorithms.core.stacking import LANES, TrainingRequest, TrainingResult, fit_together, serves_stacking, stackable
from algorithms.core.task import Shard, Task
from algorithms.core.training import Correction, Fit, Objective, OutputsObjective, TrainingLoop, Work, fit


class _TrainingReached(BaseException):
    """A step has come to its training, which waits for that of others. No method's `except Exception` may catch it."""


class StackedLoop:
    """`training.fit` in stacked arithmetic where networks are stackable; elsewhere, and where an objective asks the
    network for more than its outputs, or the work is not plain SGD, `training.fit` itself.

    Between `gather` and `train` it only notes what is asked, and ends the step that asks. Steps depend on nothing but
    their orders, so that a step performed again asks for the very same, and then finds it done.
    """

    def __init__(self, convolutions: bool = False) -> None:
        """`convolutions`: networks with convolutions are stacked too."""
        self._convolutions = convolutions
        self._gathering = False
        self._stackable: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
        self._requests: dict[tuple[Seed, int], tuple[nn.Module, Task, Work, TrainingRequest]] = {}
        self._done: dict[tuple[Seed, int], TrainingResult] = {}

    def __call__(
        self,
        net: nn.Module,
        task: Task,
        shard: Shard,
        work: Work,
        seed: Seed,
        *,
        position: int = 0,
        objective: Objective | None = None,
        correct: Correction | None = None,
    ) -> Fit:
        own = objective if isinstance(objective, OutputsObjective) else None
        is_apart = objective is not own or not serves_stacking(task) or not work.is_plain
        if is_apart or not self._is_stackable(net):
            return fit(net, task, shard, work, seed, position=position, objective=objective, correct=correct)
        work = work.at(seed.round)
        before = [p.detach().clone() for p in net.parameters()]
        asked = TrainingRequest(before, shard, seed, position, correct, own)
        if self._gathering:
            self._requests[seed, position] = net, task, work, asked
            raise _TrainingReached
        trained = self._done.pop((seed, position), None) or fit_together(net, task, work, [asked])[0]
        with torch.no_grad():
            torch._foreach_copy_(list(net.parameters()), list(trained.parameters))
        net.train()
        return trained.fit

    def _is_stackable(self, net: nn.Module) -> bool:
        if net not in self._stackable:
            self._stackable[net] = stackable(net, self._convolutions)
        return self._stackable[net]

    def gather(self) -> None:
        """Begin to collect training requests instead of performing them."""
        self._gathering = True
        self._requests, self._done = {}, {}

    def train(self) -> None:
        """Perform the collected requests, together for all with the same network and work."""
        self._gathering = False
        alike: dict[tuple[int, Work], list[tuple[Seed, int]]] = {}
        for place, (net, _, work, _) in self._requests.items():
            alike.setdefault((id(net), work), []).append(place)
        for places in alike.values():
            net, task, work, _ = self._requests[places[0]]
            try:
                trained = fit_together(net, task, work, [self._requests[place][3] for place in places])
            except Exception:  # a correction of one client: each meets its own when its step trains alone
                continue
            self._done.update(zip(places, trained, strict=True))
        self._requests = {}


def single_client_loop(setup: WorkerSetup) -> TrainingLoop:
    """The training loop for a single client, bit-identical to training it in a stack."""
    return StackedLoop(setup.stack == "convolutions") if setup.stack else fit


class Crew:
    """A worker that performs orders in groups, where `setup.stack` asks for it.

    Attributes:
        size: of a group.
        terms: see `Worker.terms`.
    """

    def __init__(self, setup: WorkerSetup, shards: Shards, loop: TrainingLoop | None = None) -> None:
        """`loop` trains the clients' networks, one by one, where given."""
        own = loop or single_client_loop(setup)
        self._loop = own if isinstance(own, StackedLoop) else None
        self._worker = Worker(setup, shards, own)
        self.size = LANES if self._loop else 1
        self.terms = self._worker.terms

    def perform(self, orders: Sequence[Order]) -> Iterator[Outcome | Failure]:
        """See `Worker.perform`; at most `size` orders, of different clients. The bits are those of each order alone.

        An outcome may hold tensors that the next step writes into: it is to be copied before the next one is asked for.
        """
        if self._loop is None or len(orders) == 1:
            yield from map(self._worker.perform, orders)
            return
        clock = self._worker.clock
        start = clock()
        self._loop.gather()
        whole = [self._perform_or_wait(order) for order in orders]
        self._loop.train()
        share = (clock() - start) / len(orders)
        for one, order in zip(whole, orders, strict=True):
            yield _add_seconds(one or self._worker.perform(order), share)

    def _perform_or_wait(self, order: Order) -> Outcome | Failure | None:
        """Perform a step that asks for no training; None for one that waits for its training."""
        try:
            return self._worker.perform(order)
        except _TrainingReached:
            return None


def _add_seconds(outcome: Outcome | Failure, seconds: float) -> Outcome | Failure:
    return replace(outcome, seconds=outcome.seconds + seconds) if isinstance(outcome, Outcome) else outcome
