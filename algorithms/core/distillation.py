"""Distillation of a teacher into a student on generated inputs: what a job is, and the loop that performs it here.

A job says what flows: latents (drawn from a seed) -> inputs and labels -> teacher's logits -> one step of the student.
The same four functions are a plain loop here, and a Ray Data pipeline with a Ray Train job in `actors`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from algorithms.core.callbacks import ignore
from algorithms.core.payload import Tensors
from algorithms.core.schedules import cosine
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.states import snapshot

Precision = Literal["float32", "bfloat16"]


class Source(Protocol):
    """A source of generated inputs. Pure: one index gives the same bits, in any order of asking."""

    def latents(self, index: int) -> dict[str, Tensor]:
        """The random numbers and asked labels of batch `index`."""
        ...

    def inputs(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        """Latents to network inputs float32 (B, ...) and labels int64 (B,), -1 where no class was asked."""
        ...


class DistillationLoss(Protocol):
    """(student's logits, teacher's logits, asked labels) -> scalar, mean over the batch."""

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Distillation:
    """One distillation job. All its parts can be sent to other processes.

    Attributes:
        source: generated inputs by batch number.
        teacher: inputs to logits; frozen, in eval mode, without gradients.
        student: the network to train, holding its first weights; it is copied, not changed.
        loss: see `DistillationLoss`.
        steps: optimiser steps of Adam (default betas, no weight decay).
        distinct: batches sampled and labelled; step s trains on batch s modulo `distinct`, so `distinct = steps` makes
            every batch fresh.
        lr: learning rate.
        cosine: the rate falls from `lr` towards 0 along half a cosine over the steps.
        clip: largest 2-norm of the student's gradient, or None.
        freeze_norm: batch normalisation uses its running statistics and leaves them as they are.
        precision: of the student's forward and backward pass.
        seed: what the student draws in a step (dropout) depends on this and the step's number alone.
    """

    source: Source
    teacher: nn.Module
    student: nn.Module
    loss: DistillationLoss
    steps: int
    distinct: int
    lr: float
    cosine: bool = False
    clip: float | None = None
    freeze_norm: bool = False
    precision: Precision = "float32"
    seed: Seed = Seed(0)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps = {self.steps}: must be at least 0")
        if not 1 <= self.distinct <= max(self.steps, 1):
            raise ValueError(f"distinct = {self.distinct}: must lie between 1 and the {self.steps} steps")


@dataclass(frozen=True)
class LabelledBatch:
    """A batch ready for the student: inputs float32 (B, ...), labels int64 (B,), teacher's logits (B, classes)."""

    inputs: Tensor
    labels: Tensor
    logits: Tensor


@torch.no_grad()
def generate(source: Source, latents: Tensors) -> tuple[Tensor, Tensor]:
    """Images and labels of one batch, without a graph.

    Contiguous, since a convolution may round otherwise on other strides, and these do not survive a transport.
    """
    inputs, labels = source.inputs(latents)
    return inputs.contiguous(), labels.contiguous()


@torch.no_grad()
def label(teacher: nn.Module, inputs: Tensor) -> Tensor:
    """The teacher's logits (B, classes) on a batch, on the teacher's device."""
    teacher.eval()
    logits: Tensor = teacher(inputs.to(device_of(teacher, otherwise=inputs.device)))
    return logits.contiguous()


def labelled_batch(job: Distillation, index: int) -> LabelledBatch:
    """Batch `index`, from latents to logits, in this process."""
    inputs, labels = generate(job.source, job.source.latents(index))
    return LabelledBatch(inputs, labels, label(job.teacher, inputs))


class Learner:
    """The student and its optimiser: one step a batch.

    Attributes:
        done: steps made; set it, beside the states of student and optimiser, to go on where another learner stopped.
    """

    def __init__(self, job: Distillation, student: nn.Module) -> None:
        """Train `student` in place (a copy of `job.student`, perhaps wrapped) as the job says."""
        self.job = job
        self.student = student
        self.optimiser = torch.optim.Adam(student.parameters(), lr=job.lr)
        self.device = next(student.parameters()).device
        self.done = 0

    def step(self, batch: LabelledBatch) -> float:
        """One optimiser step; the loss before it."""
        with torch_seeded(self.job.seed.number("student", self.done)):
            loss = self._step(batch)
        self.done += 1
        return loss

    def _step(self, batch: LabelledBatch) -> float:
        self._set_mode()
        inputs, labels, logits = (t.to(self.device) for t in (batch.inputs, batch.labels, batch.logits))
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bfloat16"):
            outputs = self.student(inputs)
        loss = self.job.loss(outputs.float(), logits, labels)
        loss.backward()
        if self.job.clip is not None:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.job.clip)
        self.optimiser.param_groups[0]["lr"] = self.rate()
        self.optimiser.step()
        return float(loss.detach())

    def rate(self) -> float:
        """The learning rate of the step to come."""
        return self.job.lr * cosine(self.done, self.job.steps) if self.job.cosine else self.job.lr

    def _set_mode(self) -> None:
        self.student.train()
        if self.job.freeze_norm:
            freeze_norm(self.student)


def freeze_norm(net: nn.Module) -> None:
    """Put every batch normalisation of a network in eval mode: running statistics are used and do not move."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


BatchT = TypeVar("BatchT")

TELLINGS = 50
"""Reports of progress by a job that runs in this process, if it has so many steps."""


class BatchCache(Generic[BatchT]):
    """The batches that come again in a job's later steps, and no others: at most `distinct`."""

    def __init__(self, job: Distillation) -> None:
        self._job = job
        self._batches: dict[int, BatchT] = {}

    def at(self, step: int, fresh: Callable[[int], BatchT]) -> BatchT:
        """The batch of a step: a kept one, or `fresh(index)`; steps must be asked in order, from any first one on."""
        index = step % self._job.distinct
        batch = self._batches.pop(index) if index in self._batches else fresh(index)
        if step + self._job.distinct < self._job.steps:
            self._batches[index] = batch
        return batch


def distil_here(job: Distillation, report: Callable[[int], None] = ignore) -> dict[str, Tensor]:
    """Perform a job as a plain loop in this process.

    Args:
        report: hears the number of steps done, after each of them.

    Returns:
        The student's state dict after the last step, on the CPU.
    """
    learner, kept = Learner(job, copy_of(job.student)), BatchCache[LabelledBatch](job)
    for step in range(job.steps):
        learner.step(kept.at(step, lambda index: labelled_batch(job, index)))
        report(learner.done)
    return snapshot(learner.student)


def copy_of(net: nn.Module) -> nn.Module:
    """A copy that shares nothing."""
    return copy.deepcopy(net)


def device_of(net: nn.Module, otherwise: torch.device) -> torch.device:
    """The device of a network's first parameter or buffer; `otherwise` where it has none."""
    first = next(itertools.chain(net.parameters(), net.buffers()), None)
    return otherwise if first is None else first.device
