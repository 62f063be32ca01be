"""Mosaic's needs and traffic, known before anything starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.core.contract import ClientSpec
from algorithms.core.needs import (
    LeastRounds,
    Needs,
    PlannedDistillation,
    ServerStorage,
    Stage,
    Volume,
    mean_bytes,
    network_of,
)
from algorithms.core.states import state_bytes
from algorithms.core.task import Task
from algorithms.methods.mosaic.refusals import refusals
from algorithms.nets import Classifier, NetworkError
from algorithms.nets.dcgan import DCGenerator
from algorithms.parts.averaging import BEFORE_DISTILLATION
from algorithms.parts.clusters import LIBRARY_BYTES
from algorithms.parts.label_counts import label_counts
from algorithms.tasks.images import images_of

SUMS = 4
"""Times an expert's bytes that forming it takes: the last one is still there, and its sums are of 64 bits."""

MAKING = 2 * 5
"""Times a generator's bytes that making it takes: it and its adversary, each with gradients, two moments, and a copy
that is sent."""

STAGES = (
    Stage("teacher", "the experts, fused by the meta model", against="fedavg"),
    Stage("distilled", "the student, just distilled", against="fedavg"),
    Stage("experts", "the plain sum of the experts"),
    BEFORE_DISTILLATION,
)


def needs(config: Any, task: Task, clients: Sequence[ClientSpec], counts: Tensor) -> Needs:
    """The answer of `Mosaic.needs`; see there."""
    generators, experts = _generators(config, task, clients, counts), _experts(config, task, clients)
    kind = "generator" if config.generator == "dcgan" else "statistics"
    network = Volume(mean_bytes(task, clients))
    up = {
        "weights": network,
        "label_counts": label_counts(task),
        kind: Volume(generators.bytes if generators else None, once=True),
    }
    down = {"weights": network}
    if config.uses_prototypes:
        up["prototypes"] = Volume()
    if config.mixed:
        down |= {
            kind: Volume(generators.total if generators else None, once=True),
            "label_counts": Volume(8 * task.classes * len(counts), once=True),
        }
    return Needs(
        up=up,
        down=down,
        refusals=tuple(refusals(config, task, clients)),
        storage=(*([generators] if generators else []), *experts),
        distillation=_distillation(config, clients, generators, experts),
        least_rounds=LeastRounds(config.warmup, "warmup"),
        stages=STAGES,
        for_mixture=_for_mixture(config, clients),
    )


def _for_mixture(config: Any, clients: Sequence[ClientSpec]) -> Any:
    """Unrelated networks have no features in common: the meta model learns from images of known class instead."""
    return replace(
        config,
        student=config.student or clients[0].net,
        meta_data="images",
        conditional=config.conditional or config.generator == "dcgan",
    )


def _distillation(
    config: Any, clients: Sequence[ClientSpec], generators: ServerStorage | None, experts: Sequence[ServerStorage]
) -> PlannedDistillation:
    """Every network is taught from all generators, by the experts without the sums that they were made from."""
    student = config.student or clients[0].net
    again = config.distinct is not None and config.distinct < config.distil_steps
    return PlannedDistillation(
        students=tuple(sorted({student, *(client.net for client in clients)})),
        batch=config.distil_batch,
        kept=config.distinct if again else 0,
        source=generators.total if generators else 0,
        teacher=sum(expert.total for expert in experts) // SUMS,
    )


def _generators(config: Any, task: Task, clients: Sequence[ClientSpec], counts: Tensor) -> ServerStorage | None:
    """Every client's generator; None where there is none for these images, which is refused."""
    if config.generator == "dcgan":
        classes = task.classes if config.conditional else None
        try:
            # A network on the device `meta` has shapes and no memory.
            with torch.device("meta"):
                size = state_bytes(DCGenerator(images_of(task).shape, config.latent, config.gan_width, classes))
        except NetworkError:
            return None
        return ServerStorage("generators", len(counts), size, making=MAKING * size, kept=config.mixed)
    if config.generator == "pca":
        entries = math.prod(images_of(task).shape)
    else:
        nets = _networks(task, clients).values()
        entries = max((net.head.in_features for net in nets if isinstance(net, Classifier)), default=0)
    cells = (counts // config.least_in_cell).clamp(max=config.cells).sum() / len(counts)
    size = round(4 * float(cells) * (1 + config.directions) * entries)
    return ServerStorage(
        "sets of Gaussians", len(counts), size, making=MAKING * size, loaded=LIBRARY_BYTES, kept=config.mixed
    )


def _experts(config: Any, task: Task, clients: Sequence[ClientSpec]) -> tuple[ServerStorage, ...]:
    nets, owners = _networks(task, clients), {client.id: client.net for client in clients}.values()
    count = {
        "class": dict.fromkeys(nets, task.classes),
        "client": {name: list(owners).count(name) for name in nets},
        "global": dict.fromkeys(nets, 1),
        "replay": {},
    }[config.experts]
    return tuple(
        ServerStorage(f"experts of {name}, with the sums they are made from,", number, SUMS * state_bytes(nets[name]))
        for name, number in count.items()
    )


def _networks(task: Task, clients: Sequence[ClientSpec]) -> dict[str, nn.Module]:
    """The clients' networks by name; none where one cannot be built, which is refused elsewhere."""
    try:
        return {name: network_of(name, task) for name in sorted({client.net for client in clients})}
    except NetworkError:
        return {}
