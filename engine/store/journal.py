"""A journal of the round under way: finished steps on disk, so that a resumed run need not redo them.

A client's step is a pure function of its order, and a round asks for the same orders whenever it is begun anew. So an
outcome that was written down stands for the step itself: a round that finds some gives the bits of one that finds none.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from actors.runner import NO_LISTENER, Listener, Runner, StepRequest
from actors.steps.orders import Failure, Outcome
from actors.steps.vetting import refuse_faults
from algorithms.core.distillation import Distillation
from algorithms.core.payload import Memory, Payload
from algorithms.core.records import flatten, rebuild
from engine.store.sealed import is_whole, seal, stem_of, unseal

log = logging.getLogger(__name__)


def worth_keeping(seconds: float, bytes: int) -> bool:
    """Whether to write down what took so long: writing it takes a few per cent of the time that it may save."""
    return seconds >= 0.2 + bytes / 5e6


class Journal:
    """A runner that asks another one, writes down what was finished, and reads that instead where it is asked again."""

    def __init__(
        self,
        runner: Runner,
        folder: Path,
        kinds: Collection[str],
        worth: Callable[[float, int], bool] = worth_keeping,
    ) -> None:
        """
        Args:
            folder: of the run's checkpoints; each round has a folder of its own there.
            kinds: of what clients may send; a file that holds another kind is not used.
            worth: whether something that took so many seconds and has so many bytes is written down.
        """
        self._runner, self._folder, self._kinds, self._worth = runner, folder, frozenset(kinds), worth
        self._round = folder
        self._files: dict[str, Path] = {}
        self._counts: Counter[str] = Counter()
        self._not_worth: set[str] = set()

    def begin(self, round: int) -> None:
        """Begin a round: requests from now on belong to it."""
        self._round = self._folder / f"round-{round:06d}"
        self._files = {stem: path for path in sorted(self._round.glob("*")) if (stem := stem_of(path))}
        self._counts = Counter()

    def drop(self, before: int | None = None) -> None:
        """Forget the rounds before a number, or all."""
        for path in sorted(self._folder.glob("round-*")):
            if before is None or int(path.name.removeprefix("round-")) < before:
                shutil.rmtree(path, ignore_errors=True)

    def run(self, request: StepRequest) -> Iterator[Outcome | Failure]:
        names = {client: self._name(f"{request.step}-{client:06d}") for client in request.clients}
        found = {client: path for client, name in names.items() if (path := self._whole(name))}
        missing = tuple(client for client in request.clients if client not in found)
        if found or request.step not in self._not_worth:
            request = replace(request, terms="")  # what is to be written down must come client by client
        asked = self._runner.run(replace(request, clients=missing)) if missing else iter(())
        return self._outcomes(request, names, found, asked)

    def _name(self, what: str) -> str:
        """Steps that a client has finished before in this round are told apart by a number."""
        return f"{what}-{self._counts[what]}"

    def _whole(self, name: str) -> Path | None:
        path = self._files.get(name)
        if path is not None and not is_whole(path):
            log.warning("%s is truncated or modified; redoing that step", path)
            return None
        return path

    def _outcomes(
        self,
        request: StepRequest,
        names: Mapping[int, str],
        found: Mapping[int, Path],
        outcomes: Iterator[Outcome | Failure],
    ) -> Iterator[Outcome | Failure]:
        for client in request.clients:
            known = self._read_outcome(request, client, found[client]) if client in found else None
            outcome = known or (next(self._alone(request, client)) if client in found else next(outcomes))
            if isinstance(outcome, Outcome):
                self._counts[names[client].rpartition("-")[0]] += 1
                if known is None:
                    self._keep(request.step, names[client], outcome)
            yield outcome

    def _alone(self, request: StepRequest, client: int) -> Iterator[Outcome | Failure]:
        return self._runner.run(replace(request, clients=(client,)))

    def _keep(self, step: str, name: str, outcome: Outcome) -> None:
        if not self._worth(outcome.seconds, sum(outcome.nbytes().values())):
            self._not_worth.add(step)
            return
        self._not_worth.discard(step)
        if outcome.payload is None:  # added to others before it was known that the step takes long
            return
        memory = self._runner.memories((outcome.client,)).get(outcome.client)
        tensors, tree = flatten(replace(outcome, memory=memory))
        seal(self._round, name, tree, tensors)

    def _read_outcome(self, request: StepRequest, client: int, path: Path) -> Outcome | None:
        """Read an outcome from a file and vet it as if the client had just sent it; None where it cannot be used."""
        try:
            tree, tensors = unseal(path)
            payload = Payload(rebuild(dict[str, dict[str, Any]], tree["payload"]["parts"], tensors))
            memory = rebuild(dict[str, Any] | None, tree["memory"], tensors)
            if not payload.parts.keys() <= self._kinds:
                raise ValueError(
                    f"kinds of payload that no client may send: {sorted(payload.parts.keys() - self._kinds)}"
                )
            refuse_faults(payload, request.message(client))
            sums = rebuild(dict[str, Tensor], tree["sums"], tensors)
            outcome = Outcome(
                client,
                payload,
                None,
                tree["metrics"],
                tree["seconds"],
                tree["lost"],
                sums=sums,
                rows=tree["rows"],
                texts=tree["texts"],
            )
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be used (%r); redoing that step", path, error)
            return None
        if memory is not None:
            self._runner.remember(client, memory)
        return outcome

    def distil(
        self, job: Distillation, listener: Listener = NO_LISTENER, storage: Path | None = None
    ) -> dict[str, Tensor]:
        """A job done, or read where it was written down; unless told otherwise, its checkpoints lie with its round."""
        name = self._name("student")
        self._counts["student"] += 1
        path = self._whole(name)
        if path is not None:
            tree, tensors = unseal(path)
            return dict(rebuild(dict[str, Tensor], tree, tensors))
        start = time.perf_counter()
        storage = storage or self._round / name
        student = self._runner.distil(job, listener, storage)
        shutil.rmtree(storage, ignore_errors=True)
        if self._worth(time.perf_counter() - start, sum(t.nbytes for t in student.values())):
            tensors, tree = flatten(student)
            seal(self._round, name, tree, tensors)
        return student

    def memories(self, clients: Collection[int] | None = None) -> dict[int, Memory]:
        return self._runner.memories(clients)

    def remember(self, client: int, memory: Memory) -> None:
        self._runner.remember(client, memory)

    def restore(self, memories: Mapping[int, Memory]) -> None:
        self._runner.restore(memories)

    def processors(self) -> dict[str, str]:
        return self._runner.processors()

    def peak_rss_mb(self) -> dict[str, float]:
        return self._runner.peak_rss_mb()

    def close(self) -> None:
        self._runner.close()
