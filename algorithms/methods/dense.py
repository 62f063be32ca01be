"""DENSE: one-shot learning by distillation of the clients' ensemble on synthesised images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.callbacks import ignore
from algorithms.core.contract import ClientSpec
from algorithms.core.seeds import Seed
from algorithms.parts.ensembles import Ensemble, GroupedModels
from algorithms.parts.losses import NormGap, kl, kl_each
from algorithms.parts.one_shot import OneShot
from algorithms.parts.synthesis import ImageLoss, Pool, as_inputs, synthesise_batch
from algorithms.tasks.images import images_of


@dataclass(frozen=True)
class DenseState(GroupedModels):
    """The global models alone: clients' networks, images and generators are those of one round."""


class Dense(OneShot[DenseState]):
    """Zhang et al., "DENSE: Data-Free One-Shot Federated Learning", NeurIPS 2022, arXiv 2112.12371.

    Clients train once and send their networks f_k. For `epochs` times the server makes a batch of images by a new
    generator (section 3.2) and takes one pass of SGD over all images so far (section 3.3). With the ensemble
    A(x) = mean_k f_k(x) and the student s, the generator and its noise minimise, for labels y drawn alike,

        label CE(A(x), y) + norm L_BN + adversarial L_div,
        L_BN  = mean_k sum_layers ||mean - running mean||_2 + ||var - running var||_2,
        L_div = - mean_b 1[argmax A != argmax s] KL(A(x_b) || s(x_b)),

    and the student tau^2 KL(A(x) / tau || s(x) / tau), KL between softmaxes. The weights of the losses are those of the
    released code's README. L_BN is the mean over clients, where the code sums, so that its weight does not grow with
    them. While it judges images the student is in eval mode, where the code lets its batch statistics follow them.
    Images are kept as they are, not rounded to 8 bits, and are augmented as the run's training images are.

    See `algorithms.parts.one_shot` for runs of several rounds and clients of several networks. Travels: as in FedAvg.
    """

    paper = "Zhang et al. 2022, arXiv 2112.12371"
    State = DenseState
    budgets = {
        "laptop": {
            "epochs": 8,
            "generator_steps": 15,
            "generator_width": 16,
            "latent": 64,
            "synthesis_batch": 64,
            "student_batch": 64,
            "student_lr": 1e-3,
            "start": "average",  # from fresh weights so few batches teach the student little
        }
    }

    def start(self, clients: Sequence[ClientSpec]) -> DenseState:
        return DenseState(*self.initial_groups(clients))

    def teach(self, student: nn.Module, ensemble: Ensemble, seed: Seed) -> dict[str, float]:
        config, pool, loss = self.config, Pool(), 0.0
        optimiser = torch.optim.SGD(student.parameters(), lr=config.student_lr, momentum=config.student_momentum)
        progress = self.kit.progress("distillation", self.server_steps())
        for epoch in range(config.epochs):
            judge = self.image_loss(ensemble, ensemble.norm_gap(), student.eval())
            report = progress.count_step
            pool.add(*synthesise_batch(config, self.kit, seed, epoch, judge, augmented=True, report=report))
            loss = self.train_epoch(student, optimiser, ensemble, pool, seed, epoch, report)
        return {"distillation_loss": loss, "pool": len(pool)}

    def image_loss(self, ensemble: Ensemble, gap: NormGap, student: nn.Module) -> ImageLoss:
        """The loss that the generator minimises."""
        config = self.config

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with gap.watching():
                teacher = ensemble.logits(images).mean(1)
            total = config.label * F.cross_entropy(teacher, labels)
            if config.norm:
                total = total + config.norm * gap.value()
            if config.adversarial:
                total = total + config.adversarial * disagreement(teacher, student(images))
            return total

        return loss

    def train_epoch(
        self,
        student: nn.Module,
        optimiser: torch.optim.Optimizer,
        ensemble: Ensemble,
        pool: Pool,
        seed: Seed,
        epoch: int,
        report: Callable[[], None] = ignore,
    ) -> float:
        """Train the student for one pass over the pool, in place; the mean loss of its steps, each reported."""
        draws, tau, losses = seed.torch("pass", epoch), self.config.temperature, []
        student.train()
        for images, _ in pool.batches(self.config.student_batch, draws):
            inputs = as_inputs(images_of(self.kit.task), images, draws)
            with torch.no_grad():
                teacher = ensemble.logits(inputs).mean(1)
            loss = tau**2 * kl(teacher / tau, student(inputs) / tau)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            report()
        return sum(losses) / len(losses)


def disagreement(teacher: Tensor, student: Tensor) -> Tensor:
    """L_div of logits (B, C): minus KL(teacher || student) of the images that both classify otherwise, mean over all.

    Which these are is a constant: no gradient passes through it.
    """
    differ = (teacher.argmax(1) != student.argmax(1)).to(teacher.dtype)
    return -(differ * kl_each(teacher, student)).mean()
