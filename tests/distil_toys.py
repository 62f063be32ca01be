"""A small distillation to test with: noise as images, a teacher and a student of a few weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.distillation import Distillation
from algorithms.core.payload import Tensors
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.nets import Classifier
from tests.toys import wait_for

SIDE, CLASSES = 6, 3


@dataclass(frozen=True)
class Noise:
    """A source: images (batch, 1, 6, 6) and labels, known from the index alone."""

    batch: int = 9

    def latents(self, index: int) -> dict[str, Tensor]:
        draws = Seed(5).torch("latents", index)
        return {
            "z": torch.randn(self.batch, 1, SIDE, SIDE, generator=draws),
            "label": torch.randint(0, CLASSES, (self.batch,), generator=draws),
        }

    def inputs(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        return torch.tanh(latents["z"]) + 0.5, latents["label"]


def toy_net(seed: int, width: int = 4, dropout: float = 0.0) -> Classifier:
    """A convolution with batch normalisation, then a linear head.

    The convolution has no bias: behind a normalisation its gradient is nothing but rounding, which Adam would blow up.
    """
    with torch_seeded(seed):
        body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        return Classifier(body, nn.Linear(4 * width, CLASSES))


def toy_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """KL to the teacher and a little cross-entropy with the asked labels: a mean over the batch that uses all three."""
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)
    return divergence + 0.1 * F.cross_entropy(student, labels)


def toy_job(**changes: Any) -> Distillation:
    """Six steps on six batches of nine images, with the named fields changed."""
    fields: dict[str, Any] = {
        "source": Noise(),
        "teacher": toy_net(1),
        "student": toy_net(2),
        "loss": toy_loss,
        "steps": 6,
        "distinct": 6,
        "lr": 1e-2,
    }
    return Distillation(**(fields | changes))


@dataclass(frozen=True)
class Waiting:
    """The toy loss; at its third call of all it says so with a file, `waiting`, and waits for another one, `open`."""

    folder: Path

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        with (self.folder / "calls").open("a") as file:
            file.write("step\n")
        if len((self.folder / "calls").read_text().split()) == 3:
            (self.folder / "waiting").touch()
            wait_for(self.folder / "open")
        return toy_loss(student, teacher, labels)
