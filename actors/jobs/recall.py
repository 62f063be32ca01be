"""Training that was done before is not done again: a training loop that remembers, for methods that are compared.

Methods that ask clients for the same training (FedAvg, the rounds of Mosaic before its distillation, one-shot methods)
differ in what they make of it. Local training without an objective or a correction of the method's own is a pure
function of the network, its weights, the client's rows, the work at the round's rate and the seed; so its outcome can
be kept under a digest of these, and taken from there by any run of any method that asks for the very same, to the bit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from actors.runner import InlineRunner, StepRequest
from actors.steps.orders import Failure, Outcome, WorkerSetup
from actors.steps.worker import Shards
from algorithms.core.records import digest
from algorithms.core.seeds import Seed
from algorithms.core.task import Shard, Task
from algorithms.core.training import Correction, Fit, Objective, TrainingLoop, Work, fit

_STATE, _FIT, _RANDOM = "state/", "fit", "random"


class Store(Protocol):
    """A store of outcomes: a mapping from a digest (hex) to a file's bytes."""

    def get(self, key: str) -> bytes | None:
        """The bytes stored under a key, None where there are none."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Store bytes under a key."""
        ...


class FolderStore:
    """One file for each outcome, written under another name first, so that an interrupted write leaves none."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def get(self, key: str) -> bytes | None:
        path = self._folder / key
        return path.read_bytes() if path.exists() else None

    def put(self, key: str, value: bytes) -> None:
        temporary = self._folder / f".{key}.part"
        temporary.write_bytes(value)
        temporary.replace(self._folder / key)


class RecallingLoop:
    """`training.fit` for plain local training of whole networks (no objective or correction of a method's own), done
    once for all runs.

    Attributes:
        train_seconds: of training done here.
        saved_seconds: that training took when it was done, and that were not spent again here.
    """

    def __init__(self, store: Store, data: str, loop: TrainingLoop = fit) -> None:
        """`data` names the data set, without which a shard's rows mean nothing, and the kind of processor. `loop`
        trains."""
        self._store, self._data, self._fit = store, data, loop
        self.train_seconds = self.saved_seconds = 0.0

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
        # What stands beside adapters, and rows that a method made, are not to be seen from a network and its rows.
        if objective is not None or correct is not None or "adapters" in task.traits:
            return self._fit(net, task, shard, work, seed, position=position, objective=objective, correct=correct)
        key = self._key(net, task, shard, work, seed, position)
        kept = self._store.get(key)
        if kept is not None:
            return self._restore(net, load(kept))
        start = time.process_time()
        fitted = self._fit(net, task, shard, work, seed, position=position)
        seconds = time.process_time() - start
        self.train_seconds += seconds
        self._store.put(key, save(_outcome(net, fitted, seconds)))
        return fitted

    def _key(self, net: nn.Module, task: Task, shard: Shard, work: Work, seed: Seed, position: int) -> str:
        # Dropout draws from torch's global generator. A network's repr names its layers and their settings.
        asked = {
            "data": self._data,
            "network": f"{type(net).__module__}.{type(net).__qualname__} {net!r}",
            "trained": [name for name, p in net.named_parameters() if p.requires_grad],
            "task": repr(task),
            "work": repr(work.at(seed.round)),
            "seed": repr(seed),
            "position": position,
            "stacked": self._fit is not fit,
            "rows": shard.rows,
            "state": dict(net.state_dict()),
            "random": torch.get_rng_state(),
        }
        return hashlib.sha256(digest(asked).encode()).hexdigest()

    def _restore(self, net: nn.Module, kept: dict[str, Tensor]) -> Fit:
        state = {name.removeprefix(_STATE): value for name, value in kept.items() if name.startswith(_STATE)}
        net.load_state_dict(state)
        net.train()
        torch.set_rng_state(kept[_RANDOM])
        loss, steps, position, seconds = kept[_FIT].tolist()
        self.saved_seconds += seconds
        return Fit(loss=loss, steps=int(steps), position=int(position))


def _outcome(net: nn.Module, result: Fit, seconds: float) -> dict[str, Tensor]:
    """Each tensor with memory of its own, as safetensors takes them."""
    state = {f"{_STATE}{name}": value.detach().cpu().clone() for name, value in net.state_dict().items()}
    numbers = torch.tensor([result.loss, result.steps, result.position, seconds], dtype=torch.float64)
    return {**state, _FIT: numbers, _RANDOM: torch.get_rng_state()}


class RecallingRunner(InlineRunner):
    """The inline runner with a loop that remembers. Client seconds are told as if every training had been done here, so
    that methods' costs can be compared."""

    def __init__(self, setup: WorkerSetup, shards: Shards, loop: RecallingLoop) -> None:
        super().__init__(setup, shards, loop)
        self._loop = loop

    def _perform(self, request: StepRequest, clients: Sequence[int]) -> Iterable[Outcome | Failure]:
        before = self._loop.saved_seconds
        (outcome,) = super()._perform(request, clients)
        if isinstance(outcome, Failure):
            return [outcome]
        return [replace(outcome, seconds=outcome.seconds + self._loop.saved_seconds - before)]
