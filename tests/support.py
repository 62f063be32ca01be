"""A small federation to play with in tests: a task, data, clients, and the shortest possible round loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.clock import PhaseClock
from actors.cohort.delivery import Book, Delivery
from actors.failures import FailurePolicy
from actors.runner import InlineRunner, Runner
from actors.steps.orders import WorkerSetup, find_method
from actors.steps.shards import ShardArrays
from actors.steps.worker import one_thread
from algorithms.core.callbacks import ignore
from algorithms.core.contract import ClientSpec, Method, Plan
from algorithms.core.kit import Kit
from algorithms.core.needs import Needs
from algorithms.core.payload import Tensors
from algorithms.core.records import digest
from algorithms.core.seeds import Seed
from algorithms.core.states import WeightedMean
from algorithms.core.training import Work
from algorithms.tasks.images import ImageTask

SHAPE = (1, 8, 8)
CLASSES = 3
IMAGES = 120


def tiny_task() -> ImageTask:
    """Three classes of grey 8x8 images."""
    return ImageTask(names=("left", "middle", "right"), shape=SHAPE, mean=(0.25,), std=(0.25,))


def tiny_images(images: int = IMAGES, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 1, 8, 8) and int64 (N,): noise with a bright pair of columns whose place tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images, dtype=np.int64) % CLASSES
    pixels = rng.integers(0, 100, size=(images, *SHAPE), dtype=np.uint8)
    for label in range(CLASSES):
        pixels[labels == label, :, :, 3 * label : 3 * label + 2] += 120
    return pixels, labels


def tiny_columns() -> dict[str, np.ndarray]:
    """The tiny images and their labels as the columns of a data set."""
    pixels, labels = tiny_images()
    return {"image": pixels, "label": labels}


def tiny_shards(clients: int = 6, images: int = IMAGES, seed: int = 7) -> ShardArrays:
    """The tiny images dealt out in turn, so that clients hold 120 / clients images each, of all classes."""
    pixels, labels = tiny_images(images, seed)
    order = np.random.default_rng(seed + 1).permutation(images)
    return ShardArrays.of({"image": pixels, "label": labels}, [np.sort(order[k::clients]) for k in range(clients)])


def tiny_setup(
    method: str = "fedavg",
    *,
    clients: int = 6,
    nets: Sequence[str] = ("mlp",),
    work: Work | None = None,
    seed: int = 3,
    **config: Any,
) -> WorkerSetup:
    """A setup for the tiny task; client k has the k-th of `nets`, in turn; `config` goes to the method's Config."""
    return WorkerSetup(
        method=method,
        config=find_method(method).Config(**config),
        task=tiny_task(),
        work=work or Work(steps=3, epochs=None, batch=8, lr=0.1),
        clients=tuple(ClientSpec(id=k, net=nets[k % len(nets)]) for k in range(clients)),
        seed=seed,
    )


@dataclass(frozen=True)
class Played:
    """The outcome of a short run: the method and its state after each round, the states' digests, metrics and the
    book."""

    method: Method[Any]
    states: tuple[Any, ...]
    digests: tuple[str, ...]
    metrics: tuple[dict[str, float], ...]
    book: Book

    @property
    def state(self) -> Any:
        """The last state."""
        return self.states[-1]

    @property
    def digest(self) -> str:
        """The last state's digest."""
        return self.digests[-1]


def play(
    setup: WorkerSetup,
    runner: Runner | None = None,
    rounds: int = 2,
    *,
    shards: ShardArrays | None = None,
    cohort: Callable[[int], Sequence[int]] | None = None,
    policy: FailurePolicy | None = None,
    book: Book | None = None,
    tell: Callable[[str, int, int], None] = ignore,
) -> Played:
    """Play a method's rounds through a runner, through the real delivery path.

    Args:
        runner: an InlineRunner over `shards` where None.
        shards: `tiny_shards(number of clients)` where None; used where no runner is given.
        cohort: round number to the numbers of the clients asked; all where None.
        policy: what is done where something fails; the default one where None.
        book: is written into also where the run fails; a new one where None.
        tell: hears how far the phases of the server have come.
    """
    runner = runner or InlineRunner(setup, shards or tiny_shards(len(setup.clients)))
    kit = Kit(task=setup.task, work=setup.work, seed=Seed(setup.seed), distil=runner.distil, tell=tell)
    method, needs = find_method(setup.method)(setup.config, kit), needs_of(setup)
    book = book or Book()
    states: list[Any] = []
    metrics: list[dict[str, float]] = []
    with one_thread():
        state = method.start(setup.clients)
        for number in range(rounds):
            plan = tiny_plan(setup, number, rounds, cohort(number) if cohort else None)
            delivery = Delivery(
                plan,
                runner,
                needs,
                book,
                PhaseClock("server"),
                lambda step, done, asked: None,
                policy,
            )
            state, told = method.round(state, plan, delivery)
            states.append(state)
            metrics.append(told)
    return Played(method, tuple(states), tuple(map(digest, states)), tuple(metrics), book)


def needs_of(setup: WorkerSetup, each: int = 20) -> Needs:
    """The method's needs, where every client has so many examples of each class."""
    return setup.needs(torch.full((len(setup.clients), setup.task.classes), each))


def tiny_plan(setup: WorkerSetup, number: int = 0, rounds: int = 1, asked: Sequence[int] | None = None) -> Plan:
    """The plan of one round for the clients asked, all where None."""
    numbers = range(len(setup.clients)) if asked is None else asked
    seed = Seed(setup.seed).at(round=number, phase="server")
    return Plan(
        round=number,
        rounds=rounds,
        clients=tuple(setup.client(k, seed) for k in numbers),
        seed=seed,
    )


def weighted_mean(states: Iterable[tuple[Tensors, float]], otherwise: Tensors) -> Tensors:
    """`WeightedMean` over (state, weight) pairs."""
    mean = WeightedMean()
    for state, weight in states:
        mean.add(state, weight)
    return mean.result(otherwise)
