"""The resources of a distillation on Ray, and whether a cluster has room for them. Pure: nothing here needs Ray."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from clusters.bits import Bits


class DistillationError(RuntimeError):
    """A distillation that cannot run, stood still, or failed; the message says which and what was waiting."""


Row: TypeAlias = dict[str, np.ndarray]
"""One row of the pipeline's data set: tensor columns by name."""


@dataclass(frozen=True)
class Actors:
    """Actors of one kind.

    Attributes:
        count: how many, at least 1.
        cpus, gpus: what each of them holds, in processors and cards; fractions are allowed.
    """

    count: int = 1
    cpus: float = 0.25
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count = {self.count}: must be at least 1")
        if self.cpus < 0 or self.gpus < 0:
            raise ValueError(f"cpus = {self.cpus:g}, gpus = {self.gpus:g}: must be at least 0")


@dataclass(frozen=True)
class DistilResources:
    """Resources that a distillation holds beside the hosts, and its limits on waiting and retrying.

    Attributes:
        samplers: draw latents and generate inputs.
        teachers: label inputs with the teacher's logits.
        trainers: train the student; each takes its share of every batch's rows. Ray Train workers.
        ahead_mb: MiB of generated batches that may lie in the object store ahead of the student.
        checkpoint_every: steps between two checkpoints of the student; what a lost train worker costs at most.
        retries: train workers that may be lost before the distillation fails.
        patience: seconds in which no batch and no step is finished, after which it is stopped.
        bits: that all of them compute.
    """

    samplers: Actors = Actors()
    teachers: Actors = Actors()
    trainers: Actors = Actors(cpus=0.5)
    ahead_mb: float = 256.0
    checkpoint_every: int = 200
    retries: int = 3
    patience: float = 300.0
    bits: Bits = "native"

    def __post_init__(self) -> None:
        for name, least in (("ahead_mb", 1), ("checkpoint_every", 1), ("retries", 0), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name):g}: must be at least {least}")

    def by_kind(self) -> dict[str, Actors]:
        """All actors, by the names of the fields."""
        return {kind: getattr(self, kind) for kind in KINDS}


KINDS = {"samplers": "sampler", "teachers": "teacher", "trainers": "train worker"}
"""The actors of a distillation by field of DistilResources, and what one of them is called."""

Room = Mapping[str, float]
"""Free resources of one node, as Ray counts them: {"CPU": 1.5, "GPU": 1.0, ...}."""


def shortage(resources: DistilResources, nodes: Sequence[Room], beside: str = " beside what hosts hold") -> str | None:
    """The reason why a distillation cannot run in what is free, with the numbers that would fit; None where it can.

    An actor lies on one node, so shares are packed node by node, largest first.

    Args:
        beside: what the free room lies beside, in words.
    """
    if _fits(resources, nodes):
        return None
    reason = f"the distillation asks for {_words(resources)}, and {_free(nodes)} free{beside}"
    smaller = _largest_fitting(resources, nodes)
    if smaller is not None:
        return f"{reason}; {_actors_in_words(smaller)} would fit"
    one = _with_counts(resources, dict.fromkeys(KINDS, 1))
    cpus, gpus = _totals(one)
    return f"{reason}; even one of each does not fit: {_amount(cpus, gpus)} must be free on nodes that can hold them"


def _fits(resources: DistilResources, nodes: Sequence[Room]) -> bool:
    return place_all(resources, [RemainingRoom.of(node) for node in nodes])


def place_all(resources: DistilResources, left: Sequence[RemainingRoom]) -> bool:
    """Place all actors of a distillation, taking their room from `left`; whether they all found some.

    Each goes where the least is left, so that the order of the nodes does not matter.
    """
    shares = sorted(_shares(resources), key=lambda share: (-share[1], -share[0]))
    return all(any(node.take(cpus, gpus) for node in sorted(left, key=RemainingRoom.size)) for cpus, gpus in shares)


@dataclass
class RemainingRoom:
    """Processors and card fractions that a node still has free while actors are placed."""

    cpus: float
    cards: list[float]

    @classmethod
    def of(cls, node: Room) -> RemainingRoom:
        """Everything that is free on a node."""
        whole, rest = divmod(node.get("GPU", 0.0), 1)
        return cls(node.get("CPU", 0.0), [1.0] * int(whole) + [rest])

    def size(self) -> tuple[float, float, list[float]]:
        """Cards and processors that are free, for an order of nodes."""
        return sum(self.cards), self.cpus, sorted(self.cards)

    def take(self, cpus: float, gpus: float) -> bool:
        """Place one actor if there is room. A fraction of a card lies on one card; more are whole cards."""
        each = min(gpus, 1.0)
        wanted = math.ceil(gpus)
        able = [i for i, free in enumerate(self.cards) if each <= free + _EPSILON][:wanted]
        if cpus > self.cpus + _EPSILON or len(able) < wanted:
            return False
        self.cpus -= cpus
        for i in able:
            self.cards[i] -= each
        return True


_EPSILON = 1e-6
"""Ray counts in ten-thousandths; sums of fractions differ from round numbers by less."""


def _shares(resources: DistilResources) -> Iterator[tuple[float, float]]:
    for actors in resources.by_kind().values():
        yield from [(actors.cpus, actors.gpus)] * actors.count


def _largest_fitting(resources: DistilResources, nodes: Sequence[Room]) -> DistilResources | None:
    """The plan with fewer actors that fits, taking one at a time from the kind that has most; None where none does."""
    while not _fits(resources, nodes):
        kind, most = max(resources.by_kind().items(), key=lambda item: item[1].count)
        if most.count == 1:
            return None
        resources = _with_counts(resources, {kind: most.count - 1})
    return resources


def _with_counts(resources: DistilResources, counts: Mapping[str, int]) -> DistilResources:
    changed: dict[str, Any] = {
        kind: replace(actors, count=counts.get(kind, actors.count)) for kind, actors in resources.by_kind().items()
    }
    return replace(resources, **changed)


def _totals(resources: DistilResources) -> tuple[float, float]:
    shares = list(_shares(resources))
    return sum(cpus for cpus, _ in shares), sum(gpus for _, gpus in shares)


def _words(resources: DistilResources) -> str:
    parts = [f"{_number(a.count, KINDS[kind])} of {_amount(a.cpus, a.gpus)}" for kind, a in resources.by_kind().items()]
    return f"{', '.join(parts)} ({_amount(*_totals(resources))} in all)"


def _actors_in_words(resources: DistilResources) -> str:
    return ", ".join(_number(actors.count, KINDS[kind]) for kind, actors in resources.by_kind().items())


def _free(nodes: Sequence[Room]) -> str:
    held = [_amount(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    return f"{' and '.join(held) or 'nothing'} {'is' if len(held) < 2 else 'are'}"


def _number(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
