"""Runners, which perform clients' steps: their interface, and the one without Ray."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from actors.steps.orders import Failure, Order, Outcome, WorkerSetup, step_seed
from actors.steps.stacking import Crew
from actors.steps.wire import pack_outcome, unpack_memory, unpack_outcome
from actors.steps.worker import Shards
from algorithms.core.callbacks import ignore
from algorithms.core.distillation import Distillation, distil_here
from algorithms.core.payload import Memory, Payload
from algorithms.core.seeds import Seed
from algorithms.core.training import TrainingLoop


@dataclass(frozen=True)
class StepRequest:
    """A request to perform one step for a group of clients.

    Attributes:
        step: name of the step.
        clients: numbers, in cohort order.
        messages: one payload for all, or one by client number.
        seed: of the run and round; the runner completes it with step and client.
        terms: name of the method's function that says what of an update enters which mean, where means alone are
            wanted: then the runner may add updates up (`actors.steps.folding`). "" where every update is wanted.
    """

    step: str
    clients: tuple[int, ...]
    messages: Payload | Mapping[int, Payload]
    seed: Seed
    terms: str = ""

    def message(self, client: int) -> Payload:
        """The message that this client receives."""
        return self.messages if isinstance(self.messages, Payload) else self.messages[client]

    def seed_of(self, client: int) -> Seed:
        """The seed of this client's step."""
        return step_seed(self.seed, self.step, client)


@dataclass(frozen=True)
class Listener:
    """Callbacks for the progress of a distillation.

    Attributes:
        done: now and then, the number of the student's steps done.
        replaced: that a process of it was lost, and which kind of process it was that another one has replaced.
    """

    done: Callable[[int], None] = ignore
    replaced: Callable[[str], None] = ignore


NO_LISTENER = Listener()


class MemoryLostError(RuntimeError):
    """Memories of clients that were lost with the machine that held them. A run can go on from its last checkpoint.

    Attributes:
        clients: whose memory it was.
    """

    def __init__(self, clients: Collection[int]) -> None:
        self.clients = tuple(sorted(clients))
        super().__init__(self.clients)

    def __str__(self) -> str:
        who = ("client " if len(self.clients) == 1 else "clients ") + ", ".join(map(str, self.clients))
        return f"the memory of {who} was lost with the node that held it"


class Runner(Protocol):
    """Carries requests out and keeps the clients' memories where the steps run.

    All methods that need a memory raise MemoryLostError where it is lost.
    """

    def run(self, request: StepRequest) -> Iterator[Outcome | Failure]:
        """Start the request's steps now; outcomes come in cohort order, whatever finished first.

        Outcomes carry memory None: the runner has kept it.
        """
        ...

    def distil(
        self, job: Distillation, listener: Listener = NO_LISTENER, storage: Path | None = None
    ) -> dict[str, Tensor]:
        """Perform a distillation job: the one way to do it, wherever it is done.

        Args:
            storage: a folder in which a runner may keep checkpoints of the job, and finds those of an unfinished run
                of this very job; where None, nothing is kept.

        Returns:
            The student's state dict after the last step, on the CPU.
        """
        ...

    def memories(self, clients: Collection[int] | None = None) -> dict[int, Memory]:
        """The memories of these clients, or of all, as far as they have one; brought here for a checkpoint."""
        ...

    def remember(self, client: int, memory: Memory) -> None:
        """Give one client a memory."""
        ...

    def restore(self, memories: Mapping[int, Memory]) -> None:
        """Give clients the memories of a checkpoint, and all others none."""
        ...

    def processors(self) -> dict[str, str]:
        """The kind of processor of each machine that a host has started on so far, by name, but for this one."""
        ...

    def peak_rss_mb(self) -> dict[str, float]:
        """Largest resident memory of hosts by name, in MiB."""
        ...

    def close(self) -> None:
        """Release what the runner holds; may be called twice."""
        ...


class InlineRunner:
    """One step after another in this process, without Ray.

    Outcomes are packed and unpacked as on their way between processes: so they share nothing with the step's networks,
    and a method cannot tell where its steps ran.
    """

    def __init__(self, setup: WorkerSetup, shards: Shards, loop: TrainingLoop | None = None) -> None:
        """`loop` trains the clients' networks, one by one, where given."""
        self._crew = Crew(setup, shards, loop)
        self._memories: dict[int, Memory] = {}

    def run(self, request: StepRequest) -> Iterator[Outcome | Failure]:
        for first in range(0, len(request.clients), self._crew.size):
            yield from map(self._accept, self._perform(request, request.clients[first : first + self._crew.size]))

    def _perform(self, request: StepRequest, clients: Sequence[int]) -> Iterable[Outcome | Failure]:
        return self._crew.perform([self._order(request, client) for client in clients])

    def _order(self, request: StepRequest, client: int) -> Order:
        memory = self._memories.get(client, {})
        return Order(request.step, client, request.seed_of(client), request.message(client), memory)

    def _accept(self, outcome: Outcome | Failure) -> Outcome | Failure:
        head, kept = pack_outcome(outcome)
        if isinstance(head, Failure):
            return head
        if kept is not None:
            self._memories[head.outcome.client] = unpack_memory(kept, private=False)
        return unpack_outcome(head, private=False)  # the packed outcome is a copy already

    def distil(
        self, job: Distillation, listener: Listener = NO_LISTENER, storage: Path | None = None
    ) -> dict[str, Tensor]:
        return distil_here(job, listener.done)

    def memories(self, clients: Collection[int] | None = None) -> dict[int, Memory]:
        return {c: m for c, m in self._memories.items() if clients is None or c in clients}

    def remember(self, client: int, memory: Memory) -> None:
        self._memories[client] = memory

    def restore(self, memories: Mapping[int, Memory]) -> None:
        self._memories = dict(memories)

    def processors(self) -> dict[str, str]:
        return {}

    def peak_rss_mb(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass
