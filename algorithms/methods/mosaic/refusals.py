"""Mosaic's refusals: reasons, in words, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from algorithms.core.contract import ClientSpec
from algorithms.core.needs import network_of
from algorithms.core.task import Task
from algorithms.methods.mosaic.meta import meta_size
from algorithms.nets import NetworkError
from algorithms.nets.dcgan import DCGenerator
from algorithms.parts.ensembles import norm_refusal
from algorithms.parts.heads import head_refusal
from algorithms.parts.prototypes import RELEASED_CENTRES
from algorithms.parts.submodels import width_refusals
from algorithms.tasks.images import images_of

OF_DCGAN = ("no_class_zero", "live_classifier", "diversity_over_all", "dead_inversion", "tanh_range")
OF_PROTOTYPES = ("ten_centres", "stale_prototypes", "shared_batches")
OF_TEACHER = ("sum_pooling", "plain_average", "bhattacharyya", "unbalanced")


def refusals(config: Any, task: Task, clients: Sequence[ClientSpec]) -> list[str]:
    """Reasons why a configuration of Mosaic cannot serve a task and these clients."""
    return [
        *_about_classes(config),
        *_about_features(config),
        *_about_networks(config, task, clients),
        *_about_generators(config, task, clients),
        *_about_teacher(config, task),
        *_about_deviations(config),
    ]


def _about_classes(config: Any) -> Iterator[str]:
    """Reasons to refuse settings that need a class with each generated sample, which an unconditional DCGAN does not
    give."""
    if config.generator != "dcgan" or config.conditional:
        return
    needs = {
        f"meta_data: {config.meta_data}": config.experts != "replay" and config.meta_data != "prototypes",
        "label: generator": config.experts != "replay" and config.label == "generator",
        "experts: replay": config.experts == "replay",
        "mixed: true": config.mixed,
        f"classify: {config.classify:g}": config.classify > 0,
    }
    for name, needed in needs.items():
        if needed:
            yield f"{name} needs generated images of known class: set conditional: true, or another generator"


def _about_features(config: Any) -> Iterator[str]:
    """Feature Gaussians retrain the head alone: there is no image to show to an expert or to mix into a batch."""
    if config.generator != "features":
        return
    if config.experts != "replay":
        yield f"generator: features makes no images for experts: {config.experts} to answer; set experts: replay"
    if config.mixed:
        yield "generator: features makes no images for mixed batches; set mixed: false"


def _about_networks(config: Any, task: Task, clients: Sequence[ClientSpec]) -> Iterator[str]:
    nets = sorted({client.net for client in clients})
    for net in nets:
        yield from width_refusals(net, [client.width for client in clients if client.net == net], task)
    if config.experts == "client" and config.uses_prototypes and any(client.width < 1 for client in clients):
        yield "prototypes are features of whole networks, and narrow clients make narrow experts; set meta_data: images"
    if len(nets) > 1 and config.student is None:
        yield f"the clients have {', '.join(nets)}: say by student which network is to be evaluated"
    if len({*nets, config.student or nets[0]}) > 1 and config.generator == "features":
        yield f"generator: features needs one network everywhere, but there are {', '.join(nets)} and the student"
    if len(nets) > 1 and config.uses_prototypes:
        yield f"prototypes are features of one network, but the clients have {', '.join(nets)}; set meta_data: images"
    if config.generator == "features":
        yield from head_refusal(nets, task, "generator: features", "set generator: pca")
    elif config.uses_prototypes:
        yield from head_refusal(nets, task, f"meta_data: {config.meta_data}", "set meta_data: images")
    if config.student is not None and config.student not in nets:
        try:
            network_of(config.student, task)
        except NetworkError as error:
            yield f"student: {error}"


def _about_generators(config: Any, task: Task, clients: Sequence[ClientSpec]) -> Iterator[str]:
    if config.noise and config.clip is None:
        yield f"noise = {config.noise:g} is a multiple of clip, which is not set"
    if config.generator == "dcgan":
        try:
            with torch.device("meta"):
                DCGenerator(images_of(task).shape, config.latent, config.gan_width)
        except NetworkError as error:
            yield f"generator: dcgan: {error}; generator: pca fits any size"
        if config.inversion_below and "dead_inversion" not in config.released_rules:
            yield from norm_refusal("inversion", config.inversion, clients, task)


def _about_teacher(config: Any, task: Task) -> Iterator[str]:
    if config.distinct is not None and config.distinct > config.distil_steps:
        yield f"distinct = {config.distinct}: must be at most distil_steps = {config.distil_steps}"
    if config.experts == "replay":
        return
    try:
        meta_size(config, task.classes)
    except ValueError as error:
        yield str(error)


def _about_deviations(config: Any) -> Iterator[str]:
    for name in config.deviations:
        if name in OF_DCGAN and config.generator != "dcgan":
            yield f"deviation {name} is of generator: dcgan, but it is {config.generator}"
        if name in OF_PROTOTYPES and not config.uses_prototypes:
            yield f"deviation {name} is of prototypes, and none are sent"
        if name in OF_TEACHER and config.experts == "replay":
            yield f"deviation {name} is of the teacher, and experts: replay has none"
    if "ten_centres" in config.released_rules and config.uses_prototypes and config.prototypes < RELEASED_CENTRES:
        yield f"prototypes = {config.prototypes}: the released rule ten_centres fails below {RELEASED_CENTRES}"
