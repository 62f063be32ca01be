"""Problems small enough for arithmetic by hand, and runners that misbehave in one way each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.clock import PhaseClock
from actors.cohort.delivery import Book, Delivery
from actors.runner import InlineRunner, Runner, StepRequest
from actors.steps.orders import Failure, Outcome, WorkerSetup, find_method
from actors.steps.shards import ShardArrays
from actors.steps.worker import one_thread
from algorithms.core.contract import Client, ClientSpec, Method, Reply
from algorithms.core.kit import Kit
from algorithms.core.payload import Memory, Payload
from algorithms.core.records import digest, flatten, rebuild
from algorithms.core.seeds import Seed
from algorithms.core.training import Work
from algorithms.nets import Classifier
from algorithms.tasks.images import ImageTask
from tests.support import needs_of, tiny_plan, tiny_shards

# --- Squared error in one weight: z = w x, f(w) = mean of (w x - y)^2 / 2, gradient x (w x - y) -------------------


class Regression(ImageTask):
    """Labels are the numbers to predict; the one logit is compared with them."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Half the squared error, mean over the batch."""
        return (logits[:, 0] - labels).square().mean() / 2


SCALAR = "tests.algorithms.support_methods:scalar"
LINEAR = "tests.algorithms.support_methods:linear"
NORMED_SCALAR = "tests.algorithms.support_methods:normed_scalar"


def scalar(shape: tuple[int, int, int], classes: int) -> Classifier:
    """z = w x with w = 0 at first; its bias is 0 and is not trained."""
    head = nn.Linear(1, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    head.bias.requires_grad_(False)
    return Classifier(nn.Flatten(), head)


def linear(shape: tuple[int, int, int], classes: int) -> Classifier:
    """Pixels to logits, weights and biases 0 at first."""
    head = nn.Linear(math.prod(shape), classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return Classifier(nn.Flatten(), head)


def normed_scalar(shape: tuple[int, int, int], classes: int) -> Classifier:
    """`scalar` behind a batch normalisation without weights: the buffers of every kind, and one trained number."""
    net = scalar(shape, classes)
    return Classifier(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1, affine=False)), net.head)


def regression(
    method: str,
    points: Sequence[Sequence[tuple[int, int]]],
    work: Work,
    *,
    net: str = SCALAR,
    **config: Any,
) -> tuple[WorkerSetup, ShardArrays]:
    """A federation whose client k holds the points (x, y) of `points[k]`; x in 0..255, y any integer."""
    flat = [point for own in points for point in own]
    pixels = np.array([x for x, _ in flat], dtype=np.uint8).reshape(-1, 1, 1, 1)
    labels = np.array([y for _, y in flat], dtype=np.int64)
    ends = np.cumsum([len(own) for own in points])
    rows = [np.arange(end - len(own), end) for own, end in zip(points, ends, strict=True)]
    task = Regression(names=("value",), shape=(1, 1, 1), mean=(0.0,), std=(1 / 255,))
    clients = tuple(ClientSpec(id=k, net=net) for k in range(len(points)))
    setup = WorkerSetup(method, find_method(method).Config(**config), task, work, clients, seed=3)
    return setup, ShardArrays.of({"image": pixels, "label": labels}, rows)


def sgd(steps: int, lr: float, batch: int = 100, **changes: Any) -> Work:
    """`steps` steps; on all of a client's points at once unless `batch` is smaller."""
    return Work(steps=steps, epochs=None, batch=batch, lr=lr, **changes)


def weight_of(state: Any) -> float:
    """w of the global model."""
    return float(state.model["head.weight"].item())


# --- One step of one client ---------------------------------------------------------------------------------------


def method_of(setup: WorkerSetup) -> Method[Any]:
    """The method as a worker or the server would have it."""
    return find_method(setup.method)(setup.config, Kit(task=setup.task, work=setup.work, seed=Seed(setup.seed)))


def client_of(
    setup: WorkerSetup,
    shards: ShardArrays,
    number: int,
    received: Payload,
    memory: Memory | None = None,
    *,
    round: int = 0,
    step: str = "train",
    test: int | None = None,
) -> Client:
    """A client at the beginning of a step; `test` is the number of the client whose examples it is tested on."""
    return Client(
        spec=setup.client(number, Seed(setup.seed, round=round)),
        shard=shards(number),
        received=received,
        memory=memory or {},
        seed=Seed(setup.seed, round=round, phase=step, client=number),
        test=None if test is None else shards(test),
    )


def train(method: Method[Any], client: Client) -> Reply:
    """The step `train`, with one thread."""
    with one_thread():
        return method.train(client)  # type: ignore[attr-defined, no-any-return]


# --- Rounds, one at a time ----------------------------------------------------------------------------------------


class Federation:
    """A method and its runner, played round by round, so that a test can look, save and load in between."""

    def __init__(self, setup: WorkerSetup, runner: Runner, rounds: int) -> None:
        self.setup, self.runner, self.rounds = setup, runner, rounds
        self.method = method_of(setup)
        self.method.kit.distil = runner.distil
        self.book = Book()
        with one_thread():
            self.state = self.method.start(setup.clients)

    @classmethod
    def inline(cls, setup: WorkerSetup, shards: ShardArrays, rounds: int = 2) -> Federation:
        """Played in this process."""
        return cls(setup, InlineRunner(setup, shards), rounds)

    def play(self, number: int, asked: Sequence[int] | None = None) -> Federation:
        """Round `number` with the clients asked, all where None."""
        plan = tiny_plan(self.setup, number, self.rounds, asked)
        needs = needs_of(self.setup)
        cohort = Delivery(plan, self.runner, needs, self.book, PhaseClock("server"), lambda step, done, asked: None)
        with one_thread():
            self.state, _ = self.method.round(self.state, plan, cohort)
        return self

    def play_all(self) -> Federation:
        """All rounds, with all clients."""
        for number in range(self.rounds):
            self.play(number)
        return self

    def reloaded(self, runner: Runner) -> Federation:
        """A federation as another process would have it after a checkpoint: rebuilt from tensors and JSON text."""
        other = Federation(self.setup, runner, self.rounds)
        other.state = saved_and_loaded(self.state, type(self.method).State)
        runner.restore({k: saved_and_loaded(dict(m), dict[str, Any]) for k, m in self.runner.memories().items()})
        return other


def saved_and_loaded(value: Any, annotation: Any) -> Any:
    """A value by way of tensors and JSON text, which share nothing with it."""
    tensors, tree = flatten(value)
    return rebuild(annotation, json.loads(json.dumps(tree)), {name: t.clone() for name, t in tensors.items()})


# --- What travels -------------------------------------------------------------------------------------------------

Travel = dict[tuple[str, str], int | None]
"""(direction, kind) to the bytes of one client in a whole run; None where its data decide."""


@dataclass(frozen=True)
class Sizes:
    """Of a run over `small_cnn` on the tiny task, in bytes, for formulas.

    Attributes:
        rounds: how many; no bytes.
        norms: weights and biases of batch normalisation, of 8, 16 and 32 channels.
        statistics: their running means and variances.
        trainable: convolutions 1-8-16-32 of 3x3, those norms, and a head of 128 features and 3 classes.
        model: the whole state dict, with three counters of 8 bytes.
    """

    rounds: int
    norms: int = 4 * 2 * (8 + 16 + 32)
    statistics: int = 4 * 2 * (8 + 16 + 32)
    trainable: int = 4 * (9 * (8 + 8 * 16 + 16 * 32) + 2 * (8 + 16 + 32) + (128 + 1) * 3)
    model: int = 4 * (9 * (8 + 8 * 16 + 16 * 32) + 4 * (8 + 16 + 32) + (128 + 1) * 3) + 3 * 8


def as_fedavg(size: Sizes) -> Travel:
    """The model each way and a number of examples, in every round."""
    model = size.rounds * size.model
    return {("down", "weights"): model, ("up", "weights"): model, ("up", "examples"): 8 * size.rounds}


# --- Runners that do one thing differently ------------------------------------------------------------------------


class BackwardsRunner(InlineRunner):
    """Performs every step when it is asked, the last client's first; yields in cohort order, as every runner must."""

    def run(self, request: StepRequest) -> Iterator[Outcome | Failure]:
        done = {client: self._perform(request, (client,)) for client in reversed(request.clients)}
        return iter([self._accept(*done[client]) for client in request.clients])


class DroppingRunner(InlineRunner):
    """Yields nothing for some clients, as a failure policy that goes on without them."""

    def __init__(self, setup: WorkerSetup, shards: ShardArrays, dropped: Mapping[int, Sequence[int]]) -> None:
        """`dropped[round]` are the numbers of the clients that do not answer in that round."""
        super().__init__(setup, shards)
        self._dropped = dropped

    def run(self, request: StepRequest) -> Iterator[Outcome | Failure]:
        dropped = self._dropped.get(request.seed.round, ())
        return super().run(replace(request, clients=tuple(c for c in request.clients if c not in dropped)))


class WatchfulRunner(InlineRunner):
    """Remembers what every client received, remembered and sent, and what it hashed to at that moment."""

    def __init__(self, setup: WorkerSetup, shards: ShardArrays) -> None:
        super().__init__(setup, shards)
        self.seen: list[tuple[str, Mapping[str, Any], str]] = []
        self.bytes: dict[tuple[str, int, str], int] = {}

    def run(self, request: StepRequest) -> Iterator[Outcome | Failure]:
        for outcome in super().run(request):
            if isinstance(outcome, Outcome):
                self._look(f"{request.step}: sent by {outcome.client}", outcome.payload.parts)
                self._count(request.step, outcome.client, request.message(outcome.client), outcome.payload)
            yield outcome

    def _perform(self, request: StepRequest, clients: Sequence[int]) -> list[Outcome | Failure]:
        for client in clients:
            self._look(f"{request.step}: received by {client}", request.message(client).parts)
            self._look(f"{request.step}: remembered by {client}", self._memories.get(client, {}))
        return super()._perform(request, clients)

    def _look(self, where: str, value: Mapping[str, Any]) -> None:
        self.seen.append((where, value, digest(value)))

    def _count(self, step: str, client: int, received: Payload, sent: Payload) -> None:
        for direction, payload in (("down", received), ("up", sent)):
            key = (step, client, direction)
            self.bytes[key] = self.bytes.get(key, 0) + sum(
                value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 8
                for part in payload.parts.values()
                for value in part.values()
            )

    def changed(self) -> list[str]:
        """Places of what is no longer as it was when it was seen."""
        return [where for where, value, seen in self.seen if digest(value) != seen]


def by_class(clients: int = 6) -> ShardArrays:
    """The tiny images, dealt so that every client holds one class."""
    whole = tiny_shards(1)
    rows = [
        np.flatnonzero(whole.columns["label"] == k % 3)[k // 3 :: (clients + 2 - k % 3) // 3] for k in range(clients)
    ]
    return ShardArrays.of({"image": whole.columns["image"], "label": whole.columns["label"]}, rows)


def lone_example(clients: int = 6) -> ShardArrays:
    """The tiny images, dealt in turn, but client 0 keeps one example only."""
    dealt = tiny_shards(clients)
    rows = [dealt(k).rows.numpy() for k in range(clients)]
    return ShardArrays.of({"image": dealt.columns["image"], "label": dealt.columns["label"]}, [rows[0][:1], *rows[1:]])
