"""The distillation of a teacher into a student as settings name it, and the loss it minimises."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.distillation import Distillation, Precision, Source
from algorithms.core.seeds import Seed
from algorithms.core.settings import setting
from algorithms.parts.losses import AskedLabel, DistillationObjective, LabelObjective


@dataclass(frozen=True, kw_only=True)
class StudentConfig(settings.Config):
    """Settings of the distillation."""

    distil_steps: int = setting(1500, "optimiser steps of the student", ge=1)
    distil_batch: int = setting(320, "generated samples in a step, from all generators together", ge=1)
    distinct: int | None = setting(None, "different batches, over which the steps go round; null: every one", ge=1)
    distil_lr: float = setting(1e-4, "learning rate of Adam for the student", gt=0)
    alpha: float = setting(0.8, "weight of KL(teacher || student); 1 - alpha is the cross-entropy's", ge=0, le=1)
    beta: float = setting(1.0, "weight of the divergence J of student and teacher", ge=0)
    temperature: float = setting(1.0, "divides the logits before KL and J", gt=0)
    label: AskedLabel = setting("teacher", "answer in the cross-entropy: the teacher's own, or the class asked")
    precision: Precision = setting("float32", "of the student's passes in the distillation")


def distillation(
    config: StudentConfig,
    released: Collection[str],
    source: Source,
    teacher: nn.Module | None,
    student: nn.Module,
    classes: int,
    seed: Seed,
) -> Distillation:
    """The job of `algorithms.core.distillation`.

    Args:
        released: rules of the released code that apply: `bhattacharyya`, `frozen_norm`.
        teacher: None for the class asked as the only answer.
    """
    objective = DistillationObjective(
        alpha=config.alpha,
        beta=config.beta,
        temperature=config.temperature,
        divergence="bhattacharyya" if "bhattacharyya" in released else "js",
        label=config.label,
    )
    return Distillation(
        source=source,
        teacher=teacher or Silent(classes),
        student=student,
        loss=objective if teacher else LabelObjective(),
        steps=config.distil_steps,
        distinct=config.distinct or config.distil_steps,
        lr=config.distil_lr,
        freeze_norm="frozen_norm" in released,
        precision=config.precision,
        seed=seed,
    )


class Silent(nn.Module):
    """A teacher that says nothing: zeros (B, classes). For a loss that listens to the class asked alone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), self.classes)
