"""Mosaic's own phases, each against a plain PyTorch loop that does the same work in this process with one thread.

    python -m benchmarks.phases [--times 3]

The settings of the preset mosaic-mnist, in fewer steps, on random images of MNIST's shape, which cost the same.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from actors.steps.worker import one_thread
from algorithms.core.contract import Client, ClientSpec
from algorithms.core.distillation import Distillation, distil_here
from algorithms.core.kit import Kit
from algorithms.core.payload import EMPTY, Payload
from algorithms.core.seeds import Seed
from algorithms.core.task import Shard
from algorithms.core.training import Work
from algorithms.methods.mosaic import Mosaic
from algorithms.methods.mosaic.experts import ClassWiseMeans, Teacher
from algorithms.methods.mosaic.generators.shelf import ClientGenerator
from algorithms.methods.mosaic.meta import Examples, MetaModel, train_meta
from algorithms.methods.mosaic.student import distillation
from algorithms.nets.dcgan import DCDiscriminator, DCGenerator
from algorithms.parts.bank import Bank, Expert
from algorithms.parts.submodels import part_of
from algorithms.tasks.images import ImageTask
from benchmarks.figures import Figure, seconds_of, tell

CLIENTS, IMAGES, CLASSES, NET = 10, 1000, 10, "small_cnn"
CONFIG = Mosaic.Config(
    conditional=True,
    gan_width=16,
    gan_steps=60,
    gan_batch=32,
    gan_lr=2e-3,
    classifier_steps=60,
    classify=1.0,
    diversity=0.0,
    inversion=0.0,
    meta_data="images",
    meta_width=40,
    meta_heads=4,
    meta_feedforward=128,
    expert_embedding=True,
    meta_steps=120,
    label="generator",
    distil_steps=40,
    distil_batch=128,
    distinct=20,
    distil_lr=1e-3,
)
WORK = Work(steps=10, epochs=None, batch=64, lr=0.05)
AVERAGINGS = 10


@dataclass(frozen=True)
class Stage:
    """Inputs of both sides.

    Attributes:
        states: of the clients' networks.
        counts: int64 (CLIENTS, CLASSES), examples by client and class.
        generators: state dicts of the clients' generators.
    """

    method: Mosaic
    client: Client
    states: tuple[dict[str, Tensor], ...]
    counts: Tensor
    generators: tuple[dict[str, Tensor], ...]

    @property
    def kit(self) -> Kit:
        """The method's kit."""
        return self.method.kit


def stage() -> Stage:
    """Random images, networks and generators."""
    draws = torch.Generator().manual_seed(0)
    task = ImageTask(tuple(map(str, range(CLASSES))), (1, 28, 28), mean=(0.5,), std=(0.25,))
    kit = Kit(task=task, work=WORK, seed=Seed(0))
    images = torch.randint(0, 256, (IMAGES, 1, 28, 28), dtype=torch.uint8, generator=draws)
    shard = Shard(
        {"image": images, "label": torch.randint(0, CLASSES, (IMAGES,), generator=draws)}, torch.arange(IMAGES)
    )
    initial = kit.initial(NET)
    states = tuple({n: _move(v, draws) for n, v in initial.items()} for _ in range(CLIENTS))
    client = Client(ClientSpec(0, NET), shard, Payload.of(weights=initial), {}, Seed(0, round=0, client=0))
    generators = tuple(DCGenerator(task.shape, CONFIG.latent, CONFIG.gan_width, CLASSES).state_dict() for _ in states)
    counts = torch.randint(0, 200, (CLIENTS, CLASSES), generator=draws)
    return Stage(Mosaic(CONFIG, kit), client, states, counts, generators)


def _move(value: Tensor, draws: torch.Generator) -> Tensor:
    return value + 0.01 * torch.randn(value.shape, generator=draws) if value.is_floating_point() else value


# --- Generators -----------------------------------------------------------------------------------------------------


def plain_generator(on: Stage) -> None:
    """A classifier, then generator and discriminator in turn."""
    shard, task = on.client.shard, on.kit.task
    classifier = on.kit.new_network(NET)
    sgd = torch.optim.SGD(classifier.parameters(), lr=WORK.lr)
    for _ in range(CONFIG.classifier_steps or 0):
        picks = torch.randint(IMAGES, (WORK.batch,))
        sgd.zero_grad()
        F.cross_entropy(
            classifier(task.normalise(shard.columns["image"][picks])), shard.columns["label"][picks]
        ).backward()
        sgd.step()
    classifier.eval().requires_grad_(False)
    made = DCGenerator(task.shape, CONFIG.latent, CONFIG.gan_width, CLASSES)
    judge = DCDiscriminator(task.shape, CONFIG.gan_width, CLASSES)
    by_judge, by_made = (
        torch.optim.Adam(net.parameters(), lr=CONFIG.gan_lr, betas=(0.5, 0.999)) for net in (judge, made)
    )
    for _ in range(CONFIG.gan_steps or 0):
        picks = torch.randint(IMAGES, (CONFIG.gan_batch,))
        real, labels = task.to_signed(shard.columns["image"][picks]), shard.columns["label"][picks]
        asked = shard.columns["label"][torch.randint(IMAGES, (CONFIG.gan_batch,))]
        fake = made(torch.randn(CONFIG.gan_batch, CONFIG.latent), asked)
        by_judge.zero_grad()
        (F.softplus(-judge(real, labels)).mean() + F.softplus(judge(fake.detach(), asked)).mean()).backward()
        by_judge.step()
        by_made.zero_grad()
        class_loss = F.cross_entropy(classifier(task.from_signed(fake)), asked)
        (F.softplus(-judge(fake, asked)).mean() + CONFIG.classify * class_loss).backward()
        by_made.step()


# --- Experts --------------------------------------------------------------------------------------------------------


def averages(on: Stage) -> list[dict[str, Tensor]]:
    """Mosaic's averages: one pass over the clients."""
    whole = part_of(on.kit, NET, 1.0, 0)
    for _ in range(AVERAGINGS):
        means = ClassWiseMeans(CLASSES, on.states[0])
        for state, counts in zip(on.states, on.counts, strict=True):
            means.add(state, counts, whole)
        experts = means.experts(otherwise=means.plain(otherwise=on.states[0]))
    return experts


def plain_averages(on: Stage) -> list[dict[str, Tensor]]:
    """The average of all clients' states, and one for each class, with all states at hand."""
    shares = on.counts.T.to(torch.float64)
    for _ in range(AVERAGINGS):
        _mean(on.states, on.counts.sum(1).to(torch.float64))
        experts = [_mean(on.states, share) for share in shares]
    return experts


def _mean(states: tuple[dict[str, Tensor], ...], weights: Tensor) -> dict[str, Tensor]:
    share = (weights / weights.sum()).tolist()
    return {
        name: sum(w * state[name].double() for w, state in zip(share, states, strict=True)).to(value.dtype)  # type: ignore[union-attr]
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


# --- Prototypes -----------------------------------------------------------------------------------------------------


def plain_prototypes(on: Stage) -> None:
    """Features of a round's batches, and ten centres of each class."""
    shard, net = on.client.shard, on.kit.new_network(NET).eval()
    picks = torch.randperm(IMAGES)[: (WORK.steps or 0) * WORK.batch]
    with torch.no_grad():
        batches = [net.body(on.kit.task.normalise(shard.columns["image"][some])) for some in picks.split(WORK.batch)]
    features, labels = torch.cat(batches).flatten(1).numpy(), shard.columns["label"][picks].numpy()
    with threadpool_limits(1):
        for label in range(CLASSES):
            KMeans(CONFIG.prototypes, n_init=1, random_state=0).fit(features[labels == label])


# --- The meta model -------------------------------------------------------------------------------------------------


def examples() -> Examples:
    """Random logits of ten experts."""
    draws = torch.Generator().manual_seed(1)
    labels = torch.arange(6400) % CLASSES
    return Examples(torch.randn(len(labels), CLASSES, CLASSES, generator=draws), labels)


def plain_meta(data: Examples) -> None:
    """Adam on the meta model, and a moving average of its weights."""
    model = MetaModel(CLASSES, CLASSES, CONFIG).train()
    average = copy.deepcopy(model)
    adam = torch.optim.Adam(model.parameters(), lr=CONFIG.meta_lr)
    for step in range(1, CONFIG.meta_steps + 1):
        picks = torch.randint(len(data.labels), (CONFIG.meta_batch,))
        adam.zero_grad()
        F.cross_entropy(model(data.logits[picks]), data.labels[picks]).backward()
        adam.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - min(0.99, step / (step + 9)))


# --- Distillation ---------------------------------------------------------------------------------------------------


def job(on: Stage) -> Distillation:
    """The student's distillation from ten experts and ten generators."""
    experts = [Expert(NET, state) for state in on.states]
    teacher = Teacher(Bank(experts, on.kit), MetaModel(CLASSES, CLASSES, CONFIG).eval().requires_grad_(False))
    sent = {k: ClientGenerator(state, on.counts[k]) for k, state in enumerate(on.generators)}
    source = on.method._source(sent, Seed(0), CONFIG.distil_batch)
    return distillation(CONFIG, (), source, teacher, on.kit.new_network(NET), CLASSES, Seed(0))


def plain_distillation(on: Stage, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Generators, experts, meta model and student as networks of their own."""
    task = on.kit.task
    makers = [_load(DCGenerator(task.shape, CONFIG.latent, CONFIG.gan_width, CLASSES), s) for s in on.generators]
    experts = [_load(on.kit.new_network(NET), state) for state in on.states]
    meta = MetaModel(CLASSES, CLASSES, CONFIG).eval()
    student = on.kit.new_network(NET).train()
    adam = torch.optim.Adam(student.parameters(), lr=CONFIG.distil_lr)
    batches = []
    for step in range(CONFIG.distil_steps):
        if step < (CONFIG.distinct or CONFIG.distil_steps):
            with torch.no_grad():
                asked = torch.randint(CLASSES, (CONFIG.distil_batch,))
                parts = [
                    maker(torch.randn(len(labels), CONFIG.latent), labels)
                    for maker, labels in zip(makers, asked.chunk(CLIENTS), strict=True)
                ]
                images = task.from_signed(torch.cat(parts))
                logits = meta(torch.stack([expert(images) for expert in experts], 1))
            batches.append((images, logits, asked))
        images, logits, asked = batches[step % len(batches)]
        adam.zero_grad()
        loss(student(images), logits, asked).backward()
        adam.step()


def _load(net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


# --- Side by side ---------------------------------------------------------------------------------------------------


def phases(on: Stage) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """By name: Mosaic's work, and the plain loop's."""
    data, distilled = examples(), job(on)
    client = on.client
    without = Client(client.spec, client.shard, EMPTY, {}, client.seed)
    return {
        "generator": (partial(on.method.make_generator, without), partial(plain_generator, on)),
        "expert averaging": (partial(averages, on), partial(plain_averages, on)),
        "prototypes": (partial(on.method.send_prototypes, client), partial(plain_prototypes, on)),
        "meta model": (
            partial(train_meta, data, CONFIG, (), Seed(0), lambda done: None),
            partial(plain_meta, data),
        ),
        "distillation": (partial(distil_here, distilled), partial(plain_distillation, on, distilled.loss)),
    }


def measure(name: str, ours: Callable[[], object], theirs: Callable[[], object], times: int) -> list[Figure]:
    """One phase, both sides in turn, after a first time that does not count."""
    ours(), theirs()
    pairs = [(seconds_of(ours), seconds_of(theirs)) for _ in range(times)]
    mine, plain = (tuple(side) for side in zip(*pairs, strict=True))
    ratios = tuple(m / p for m, p in pairs)
    return [
        Figure(f"phase {name}", "s", mine, loops=plain),
        Figure(f"phase {name} against plain PyTorch", "times", ratios),
    ]


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    with one_thread():
        for name, (ours, theirs) in phases(stage()).items():
            tell(measure(name, ours, theirs, asked.times))


if __name__ == "__main__":
    main()
