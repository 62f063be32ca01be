"""What Mosaic's server comes to hold, in bytes, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.core.contract import ClientSpec, Holding, Teaching
from algorithms.core.seeds import torch_seeded
from algorithms.core.states import state_bytes
from algorithms.core.task import Task
from algorithms.nets import require_head
from algorithms.nets.dcgan import DCGenerator
from algorithms.parts.clusters import LIBRARY_BYTES
from algorithms.tasks.images import images_of

SUMS = 4
"""Times an expert's bytes that forming it takes: the last one is still there, and its sums are of 64 bits."""


def holdings(config: Any, task: Task, clients: Sequence[ClientSpec], counts: Tensor) -> tuple[Holding, ...]:
    """Every client's generator, and the experts."""
    nets = {name: _network(name, task) for name in sorted({client.net for client in clients})}
    return (*_generators(config, task, counts, nets), *_experts(config, task, clients, nets))


def teaching(config: Any, task: Task, clients: Sequence[ClientSpec], counts: Tensor) -> Teaching:
    """Every network is taught from all generators, by the experts without the sums that they were made from."""
    held = holdings(config, task, clients, counts)
    student = config.student or clients[0].net
    again = config.distinct is not None and config.distinct < config.distil_steps
    return Teaching(
        students=tuple(sorted({student, *(client.net for client in clients)})),
        batch=config.distil_batch,
        kept=config.distinct if again else 0,
        source=sum(h.count * h.bytes for h in held if h.kind),
        teacher=sum(h.count * h.bytes for h in held if not h.kind) // SUMS,
    )


def _network(name: str, task: Task) -> nn.Module:
    with torch_seeded(0):
        return task.network(name)


def _generators(config: Any, task: Task, counts: Tensor, nets: dict[str, nn.Module]) -> tuple[Holding, ...]:
    if config.generator == "dcgan":
        # A network on the device `meta` has shapes and no memory.
        with torch.device("meta"):
            classes = task.classes if config.conditional else None
            net = DCGenerator(images_of(task).shape, config.latent, config.gan_width, classes)
        return (Holding("generator", "generators", len(counts), state_bytes(net)),)
    entries = (
        math.prod(images_of(task).shape)
        if config.generator == "pca"
        else max(require_head(net).head.in_features for net in nets.values())
    )
    cells = (counts // config.least_in_cell).clamp(max=config.cells).sum() / len(counts)
    bytes = round(4 * float(cells) * (1 + config.directions) * entries)
    return (Holding("statistics", "sets of Gaussians", len(counts), bytes, loaded=LIBRARY_BYTES),)


def _experts(config: Any, task: Task, clients: Sequence[ClientSpec], nets: dict[str, nn.Module]) -> tuple[Holding, ...]:
    counts = {
        "class": dict.fromkeys(nets, task.classes),
        "client": {name: sum(client.net == name for client in clients) for name in nets},
        "global": dict.fromkeys(nets, 1),
        "replay": {},
    }[config.experts]
    return tuple(
        Holding("", f"experts of {name}, with the sums they are made from,", count, SUMS * state_bytes(nets[name]))
        for name, count in counts.items()
    )
