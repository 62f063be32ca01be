"""Distillation of a teacher into a student on generated images: what a job is, and the loop that performs it here.

A job says what flows: latents (drawn from a seed) -> images and labels -> teacher's logits -> one step of the student.
The same four functions are a plain loop here, and a Ray Data pipeline with a Ray Train job in `actors`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from algorithms.core.payload import Tensors
from algorithms.core.states import snapshot
from algorithms.nets import Classifier

Precision = Literal["float32", "bfloat16"]


class Source(Protocol):
    """Where generated images come from. Pure: one index always gives the same bits."""

    def latents(self, index: int) -> dict[str, Tensor]:
        """The random numbers and asked labels of batch `index`."""
        ...

    def images(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        """Latents to network inputs float32 (B, C, H, W) and labels int64 (B,), -1 where no class was asked."""
        ...


class DistillationLoss(Protocol):
    """(student's logits, teacher's logits, asked labels) -> scalar, mean over the batch."""

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Distillation:
    """One distillation job. All its parts can be sent to other processes.

    Attributes:
        source: generated images by batch number.
        teacher: images to logits; frozen, in eval mode, without gradients.
        student: the network to train, holding its first weights; it is copied, not changed.
        loss: see `DistillationLoss`.
        steps: optimiser steps of Adam (default betas, no weight decay).
        distinct: batches sampled and labelled; step s trains on batch s modulo `distinct`, so `distinct = steps` makes
            every batch fresh.
        lr: learning rate.
        freeze_norm: batch normalisation uses its running statistics and leaves them as they are.
        precision: of the student's forward and backward pass.
    """

    source: Source
    teacher: nn.Module
    student: Classifier
    loss: DistillationLoss
    steps: int
    distinct: int
    lr: float
    freeze_norm: bool = False
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.distinct <= max(self.steps, 1):
            raise ValueError(f"distinct = {self.distinct}: must lie between 1 and the {self.steps} steps")


@dataclass(frozen=True)
class Labelled:
    """A batch ready for the student: inputs float32 (B, C, H, W), labels int64 (B,), teacher's logits (B, classes)."""

    images: Tensor
    labels: Tensor
    logits: Tensor


@torch.no_grad()
def generate(job: Distillation, latents: Tensors) -> tuple[Tensor, Tensor]:
    """Images and labels of one batch, without a graph."""
    return job.source.images(latents)


@torch.no_grad()
def label(job: Distillation, images: Tensor) -> Tensor:
    """The teacher's logits (B, classes) on a batch."""
    job.teacher.eval()
    logits: Tensor = job.teacher(images)
    return logits


def labelled(job: Distillation, index: int) -> Labelled:
    """Batch `index`, from latents to logits, in this process."""
    images, labels = generate(job, job.source.latents(index))
    return Labelled(images, labels, label(job, images))


class Learner:
    """The student and its optimiser: one step a batch, and a state that can be saved between steps."""

    def __init__(self, job: Distillation, student: nn.Module) -> None:
        """Train `student` in place (a copy of `job.student`, perhaps wrapped) as the job says."""
        self.job = job
        self.student = student
        self.optimiser = torch.optim.Adam(student.parameters(), lr=job.lr)
        self.device = next(student.parameters()).device

    def step(self, batch: Labelled) -> float:
        """One optimiser step; the loss before it."""
        self._set_mode()
        images, labels, logits = (t.to(self.device) for t in (batch.images, batch.labels, batch.logits))
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bfloat16"):
            outputs = self.student(images)
        loss = self.job.loss(outputs.float(), logits, labels)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def _set_mode(self) -> None:
        self.student.train()
        if self.job.freeze_norm:
            freeze_norm(self.student)


def freeze_norm(net: nn.Module) -> None:
    """Put every batch normalisation of a network in eval mode: running statistics are used and do not move."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _batches(job: Distillation) -> Iterator[Labelled]:
    """The batches of all steps in order; the distinct ones are kept only where they come again."""
    kept: list[Labelled] = []
    for step in range(job.steps):
        if step < job.distinct:
            batch = labelled(job, step)
            if job.distinct < job.steps:
                kept.append(batch)
        else:
            batch = kept[step % job.distinct]
        yield batch


def distil_here(job: Distillation) -> dict[str, Tensor]:
    """Perform a job as a plain loop in this process; the student's state dict after the last step, on the CPU."""
    learner = Learner(job, copy_of(job.student))
    for batch in _batches(job):
        learner.step(batch)
    return snapshot(learner.student)


def copy_of(net: Classifier) -> Classifier:
    """A copy that shares nothing."""
    return copy.deepcopy(net)
