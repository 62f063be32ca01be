"""Co-Boosting: one-shot learning whose synthesised images and ensemble make each other better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.callbacks import ignore
from algorithms.core.contract import ClientSpec
from algorithms.core.needs import Needs, Stage
from algorithms.core.schedules import cosine
from algorithms.core.seeds import Seed
from algorithms.core.settings import setting
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.parts.ensembles import Ensemble, GroupedModels, WeightedLogits, normalise, weighted_sum
from algorithms.parts.losses import NormGap, kl
from algorithms.parts.one_shot import OneShot
from algorithms.parts.synthesis import ImageLoss, Pool, as_inputs, batches_in_pass, synthesise_batch
from algorithms.tasks.images import images_of

CLIP = 10.0
"""Largest 2-norm of the gradients of generator and student, as in the released code."""


@dataclass(frozen=True)
class CoBoostingState(GroupedModels):
    """The global models alone: the ensemble and its weights are those of one round."""


class CoBoosting(OneShot[CoBoostingState]):
    """Dai et al., "Enhancing One-Shot Federated Learning Through Data and Ensemble Co-Boosting", ICLR 2024,
    arXiv 2402.15070.

    Clients train once and send their networks f_k. The ensemble is A_w(x) = sum_k w_k f_k(x) / sum_k w_k with weights w
    in [0, 1], alike at first. For `epochs` times, numbered e, the server

    1. makes a batch of images by a new generator, which minimises with its noise, for labels y drawn alike,
       label mean[(1 - p_y)^hardness CE(A_w(x), y)] + norm L_BN - adversarial t^2 KL(A_w(x) / t || s(x) / t), where p_y
       is the constant probability that A_w gives to y, t is `adversarial_temperature`, and L_BN is DENSE's;
    2. from e = 1 on takes, for each batch of `weight_passes` passes over the images of the epochs before, a signed step
       of the ensemble, w <- clip(w - weight_step weight_decay^e sign(grad_w CE(A_w(x), y)), 0, 1);
    3. takes one pass of SGD of the student s over all images, the new ones included, each moved to where the ensemble's
       answer changes in a random direction, x <- x + eta sign(grad_x <u, softmax(A_w(x) / tau)>), u uniform in [-1, 1],
       eta in units of pixels in [0, 1], minimising tau^2 KL(A_w(x) / tau || s(x) / tau). Its rate falls along half a
       cosine.

    The generator is judged by its images as they are; ensemble and student see them augmented as the run's training
    images are.

    Weights that have all fallen to 0 begin again alike. See `algorithms.parts.one_shot` for runs of several rounds and
    clients of several networks. Travels: as in FedAvg.
    """

    paper = "Dai et al. 2024, arXiv 2402.15070"
    State = CoBoostingState

    @dataclass(frozen=True, kw_only=True)
    class Config(OneShot.Config):
        norm: float = setting(0.0, "generator: weight of the gap to the clients' batch statistics", ge=0)
        hardness: float = setting(1.0, "generator: power of 1 - p_y, by which hard images weigh more; 0: alike", ge=0)
        adversarial_temperature: float = setting(3.0, "generator: divides the logits in the disagreement", gt=0)
        weight_step: float = setting(0.01, "size mu of a signed step of the ensemble's weights", ge=0)
        weight_decay: float = setting(0.99, "factor of that size from one epoch to the next", gt=0, le=1)
        weight_passes: int = setting(1, "passes of the ensemble's weights over the images, in each epoch", ge=0)
        eta: float = setting(8 / 255, "how far an image's pixels, in [0, 1], are moved before it is taught", ge=0)
        temperature: float = setting(4.0, "divides the logits in the student's loss, and where images are moved", gt=0)
        student_lr: float = setting(0.01, "learning rate of SGD for the student, in the first epoch", gt=0)
        student_weight_decay: float = setting(1e-4, "weight decay of SGD for the student", ge=0)
        student_batch: int = setting(128, "images in a step of the student or of the ensemble", ge=2)
        synthesis_batch: int = setting(128, "images that a generator adds to the pool", ge=2)

    config: Config

    budgets = {
        "laptop": {
            "epochs": 15,
            "generator_steps": 15,
            "generator_width": 16,
            "latent": 64,
            "synthesis_batch": 64,
            "student_batch": 64,
            "student_lr": 2e-3,
            "start": "average",  # from fresh weights so few batches teach the student little
        }
    }

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        needs = super().needs(config, task, clients, work, counts)
        boosted = Stage("boosted ensemble", "the clients' networks, weighted by boosting", against="fedavg")
        return replace(needs, stages=(boosted, *needs.stages))

    def start(self, clients: Sequence[ClientSpec]) -> CoBoostingState:
        return CoBoostingState(*self.initial_groups(clients))

    def teach(self, student: nn.Module, ensemble: Ensemble, seed: Seed) -> dict[str, float]:
        config, pool, loss = self.config, Pool(), 0.0
        weights = torch.full((len(ensemble),), 1 / len(ensemble))
        optimiser = torch.optim.SGD(
            student.parameters(),
            lr=config.student_lr,
            momentum=config.student_momentum,
            weight_decay=config.student_weight_decay,
        )
        report = self.kit.progress("distillation", self.server_steps()).count_step
        for epoch in range(config.epochs):
            judge = self.image_loss(ensemble, ensemble.norm_gap(), weights, student.eval())
            fresh = synthesise_batch(config, self.kit, seed, epoch, judge, clip=CLIP, report=report)
            if epoch:
                weights = self.boost_weights(weights, ensemble, pool, seed, epoch, report)
            pool.add(*fresh)
            optimiser.param_groups[0]["lr"] = config.student_lr * cosine(epoch, config.epochs)
            loss = self.train_epoch(student, optimiser, ensemble, weights, pool, seed, epoch, report)
        shares = normalise(weights)
        self.kit.show("boosted ensemble", WeightedLogits(ensemble, shares))
        spread = {"least_weight": float(shares.min()), "largest_weight": float(shares.max())}
        return {"distillation_loss": loss, "pool": len(pool), **spread}

    def image_loss(self, ensemble: Ensemble, gap: NormGap, weights: Tensor, student: nn.Module) -> ImageLoss:
        """The loss that the generator minimises."""
        config, shares, t = self.config, normalise(weights), self.config.adversarial_temperature

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with gap.watching():
                teacher = weighted_sum(ensemble.logits(images), shares)
            errors = self.kit.task.losses(teacher, labels)
            total = config.label * (hard(errors, config.hardness) * errors).mean()
            if config.norm:
                total = total + config.norm * gap.value()
            if config.adversarial:
                total = total - config.adversarial * t**2 * kl(teacher / t, student(images) / t)
            return total

        return loss

    def server_steps(self) -> int:
        pools = [epoch * self.config.synthesis_batch for epoch in range(1, self.config.epochs)]
        boosting = sum(batches_in_pass(images, self.config.student_batch) for images in pools)
        return super().server_steps() + self.config.weight_passes * boosting

    def boost_weights(
        self,
        weights: Tensor,
        ensemble: Ensemble,
        pool: Pool,
        seed: Seed,
        epoch: int,
        report: Callable[[], None] = ignore,
    ) -> Tensor:
        """Boost the ensemble: its weights (K,) after one epoch's signed steps, each of which is reported."""
        config, size = self.config, self.config.weight_step * self.config.weight_decay**epoch
        draws = seed.torch("ensemble", epoch)
        for _ in range(config.weight_passes):
            for images, labels in pool.batches(config.student_batch, draws):
                with torch.no_grad():
                    logits = ensemble.logits(as_inputs(images_of(self.kit.task), images, draws))
                weights = signed_step(weights, logits, labels, size)
                report()
        return weights

    def train_epoch(
        self,
        student: nn.Module,
        optimiser: torch.optim.Optimizer,
        ensemble: Ensemble,
        weights: Tensor,
        pool: Pool,
        seed: Seed,
        epoch: int,
        report: Callable[[], None] = ignore,
    ) -> float:
        """Train the student for one pass over the moved images, in place; the mean loss of its steps, each reported."""
        draws, tau, losses = seed.torch("pass", epoch), self.config.temperature, []
        teacher = WeightedLogits(ensemble, normalise(weights))
        student.train()
        for images, _ in pool.batches(self.config.student_batch, draws):
            inputs = as_inputs(images_of(self.kit.task), self.move_images(images, teacher, draws), None)
            with torch.no_grad():
                answers = teacher(inputs)
            loss = tau**2 * kl(answers / tau, student(inputs) / tau)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), CLIP)
            optimiser.step()
            losses.append(float(loss.detach()))
            report()
        return sum(losses) / len(losses)

    def move_images(self, images: Tensor, teacher: WeightedLogits, draws: torch.Generator) -> Tensor:
        """Images in [0, 1], augmented, then moved by eta in every pixel along or against a drawn direction's gradient.

        Output diversified sampling: Tashiro et al., arXiv 2003.06878. Moved pixels may lie a little outside [0, 1].
        """
        images = images_of(self.kit.task).augment(images, draws).requires_grad_()
        answers = F.softmax(teacher(as_inputs(images_of(self.kit.task), images, None)) / self.config.temperature, 1)
        direction = (2 * torch.rand(answers.shape, generator=draws) - 1).to(answers.device)
        (gradient,) = torch.autograd.grad((direction * answers).sum(), images)
        return images.detach() + self.config.eta * gradient.sign()


def hard(errors: Tensor, power: float) -> Tensor:
    """(1 - p_y)^power in [0, 1] of each image, as constants (B,): small where the ensemble is sure of the label.

    Args:
        errors: float (B,), the cross-entropies -log p_y.
    """
    sure = torch.exp(-errors.detach())
    return (1 - sure).clamp(0, 1) ** power


def signed_step(weights: Tensor, logits: Tensor, labels: Tensor, size: float) -> Tensor:
    """w <- clip(w - size sign(grad_w CE(A_w, y)), 0, 1) for the networks' logits (B, K, C); alike where w is all 0."""
    leaf = (weights if bool(weights.any()) else torch.full_like(weights, 1 / len(weights))).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(weighted_sum(logits, normalise(leaf)), labels), leaf)
    return (leaf.detach() - size * gradient.sign()).clamp(0, 1)
