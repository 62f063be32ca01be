"""Images that a server makes by training a generator against classifiers, and the pool in which they are kept.

Source: DENSE, arXiv 2112.12371, algorithm 1, and Co-Boosting, arXiv 2402.15070, which train it for different losses;
DENSE's code augments the images that the loss sees, Co-Boosting's does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.callbacks import ignore
from algorithms.core.kit import Kit
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.settings import setting
from algorithms.core.task import Task
from algorithms.nets import NetworkError
from algorithms.nets.server_generators import UpsamplingGenerator, first_map
from algorithms.tasks.images import ImageTask, images_of

ImageLoss = Callable[[Tensor, Tensor], Tensor]
"""(network inputs (B, C, H, W), labels asked int64 (B,)) -> scalar that the generator makes small."""

BETAS = (0.5, 0.999)


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig(settings.Config):
    """Settings of the generator."""

    latent: int = setting(256, "entries of the generator's noise vector", ge=1)
    generator_width: int = setting(64, "channels of the generator's last hidden layer", ge=1)
    generator_steps: int = setting(30, "optimiser steps of a new generator, for one batch of images", ge=1)
    generator_lr: float = setting(1e-3, "learning rate of Adam for the generator and its noise", gt=0)
    synthesis_batch: int = setting(256, "images that a generator adds to the pool", ge=2)


def synthesise_batch(
    config: SynthesisConfig,
    kit: Kit,
    seed: Seed,
    index: int,
    loss: ImageLoss,
    *,
    augmented: bool = False,
    clip: float | None = None,
    report: Callable[[], None] = ignore,
) -> tuple[Tensor, Tensor]:
    """One batch of images: those of the step with the smallest loss of a new generator, trained with its noise.

    Args:
        seed, index: what is drawn depends on them alone.
        loss: its networks must be frozen or their gradients unused.
        augmented: it sees the images as training images are shown, and not as they are.
        clip: largest 2-norm of the generator's gradient, or None.
        report: hears of every step of the generator.

    Returns:
        images float32 (B, C, H, W) in [0, 1], before any augmentation, and the labels asked, int64 (B,).
    """
    task, draws = images_of(kit.task), seed.torch("synthesis", index)
    with torch_seeded(seed.number("generator", index)):
        generator = UpsamplingGenerator(task.shape, config.latent, config.generator_width).to(kit.device).train()
    z = torch.randn(config.synthesis_batch, config.latent, generator=draws).to(kit.device).requires_grad_()
    labels = torch.randint(task.classes, (config.synthesis_batch,), generator=draws).to(kit.device)
    trained = [*generator.parameters(), z]
    optimiser = torch.optim.Adam(trained, lr=config.generator_lr, betas=BETAS)
    best, least = torch.empty(0), float("inf")
    for step in range(config.generator_steps):
        images = generator(z)
        value = loss(as_inputs(task, images, draws if augmented else None), labels)
        if step == 0 or float(value.detach()) < least:
            best, least = images.detach(), float(value.detach())
        optimiser.zero_grad(set_to_none=True)
        # The networks that judge keep no gradient: the student among them has an optimiser of its own.
        value.backward(inputs=trained)
        if clip is not None:
            nn.utils.clip_grad_norm_(generator.parameters(), clip)
        optimiser.step()
        report()
    return best, labels


def as_inputs(task: ImageTask, images: Tensor, draws: torch.Generator | None) -> Tensor:
    """Images in [0, 1] to network inputs, augmented as training images are where there are draws; differentiable."""
    return task.from_signed(2 * (images if draws is None else task.augment(images, draws)) - 1)


class Pool:
    """Images that were synthesised, and the labels asked for them; it only grows.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1]; not rounded to 8 bits, as files of images would be.
        labels: int64 (N,).
    """

    def __init__(self) -> None:
        self.images, self.labels = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Put a batch beside those there are."""
        if len(self):
            images, labels = torch.cat([self.images, images]), torch.cat([self.labels, labels])
        self.images, self.labels = images, labels

    def batches(self, batch: int, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over all images in a drawn order. A remainder of one joins the batch before it, for the sake of
        batch normalisation."""
        picks = list(torch.randperm(len(self), generator=order).split(batch))
        if len(picks) > 1 and len(picks[-1]) == 1:
            picks[-2:] = [torch.cat(picks[-2:])]
        for some in picks:
            chosen = some.to(self.images.device)
            yield self.images[chosen], self.labels[chosen]


def batches_in_pass(images: int, batch: int) -> int:
    """The number of batches in one pass over a pool of so many images, one at least; see `Pool.batches`."""
    whole, rest = divmod(images, batch)
    return max(1, whole + (rest > 1))


def image_refusals(task: Task) -> list[str]:
    """Reasons why the generator cannot make images of this task."""
    try:
        first_map(images_of(task).shape)
    except NetworkError as error:
        return [str(error)]
    return []
