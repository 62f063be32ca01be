"""DENSE: one-shot learning by distillation of the clients' ensemble on synthesised images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from algorithms.core.contract import ClientSpec, Cohort, Plan
from algorithms.core.ensembles import (
    Ensemble,
    Ensembling,
    GroupedModels,
    WeightedLogits,
    held,
    no_norm_anywhere,
)
from algorithms.core.experts import Expert
from algorithms.core.losses import NormGap, kl, kl_each
from algorithms.core.seeds import Seed
from algorithms.core.settings import setting
from algorithms.core.states import snapshot
from algorithms.core.synthesis import ImageLoss, Pool, SynthesisConfig, as_inputs, image_refusals, synthesised
from algorithms.core.task import ImageTask
from algorithms.core.training import Work
from algorithms.nets import Classifier


@dataclass(frozen=True)
class DenseState(GroupedModels):
    """The global models alone: clients' networks, images and generators are those of one round."""


class Dense(Ensembling[DenseState]):
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

    A run of one round is the paper's. Rounds before the last are FedAvg, or, under `when: every round`, end in a
    distillation as well. Clients' networks may differ; each is averaged apart, and only the student is taught.

    Travels: as in FedAvg.
    """

    paper = "Zhang et al. 2022, arXiv 2112.12371"
    State = DenseState

    @dataclass(frozen=True, kw_only=True)
    class Config(SynthesisConfig, Ensembling.Config):
        when: Literal["last round", "every round"] = setting("last round", "rounds that end in a distillation")
        start: Literal["initial", "average"] = setting(
            "initial", "the student's first weights: fresh ones, or the average of the clients of its network"
        )
        epochs: int = setting(200, "batches synthesised, each followed by a pass over all of them", ge=0)
        label: float = setting(1.0, "weight of the cross-entropy of the label asked", ge=0)
        norm: float = setting(1.0, "weight of the gap to the clients' batch statistics", ge=0)
        adversarial: float = setting(1.0, "weight of the disagreement of student and ensemble", ge=0)
        temperature: float = setting(20.0, "divides the logits in the student's loss", gt=0)
        student_lr: float = setting(0.005, "learning rate of SGD for the student", gt=0)
        student_momentum: float = setting(0.9, "momentum of SGD for the student", ge=0, lt=1)
        student_batch: int = setting(256, "images in a step of the student", ge=2)

    config: Config

    @classmethod
    def refuse(cls, config: Any, task: ImageTask, clients: Sequence[ClientSpec], work: Work) -> list[str]:
        reasons = super().refuse(config, task, clients, work) + image_refusals(task)
        bare = no_norm_anywhere(clients, task) if config.norm else []
        if bare:
            reasons.append(
                f"norm = {config.norm:g} needs batch normalisation, which {', '.join(bare)} lacks; set norm: 0"
            )
        return reasons

    def start(self, clients: Sequence[ClientSpec]) -> DenseState:
        return DenseState(*self.initial_groups(clients))

    def round(self, state: DenseState, plan: Plan, cohort: Cohort) -> tuple[DenseState, dict[str, float]]:
        state, members = self.gathered(state, plan, cohort)
        last = plan.round + 1 == plan.rounds
        if not members or not (last or self.config.when == "every round"):
            return state, {}
        return self.distilled(state, members, plan.seed)

    def distilled(
        self, state: DenseState, members: Sequence[Expert], seed: Seed
    ) -> tuple[DenseState, dict[str, float]]:
        """The state with the student taught by the clients' networks, and the loss of its last pass."""
        ensemble = Ensemble(members, self.kit)
        self.kit.show("fedavg", self.predictor(state))
        self.kit.show("ensemble", WeightedLogits(ensemble))
        first = state.model if self.config.start == "average" else self.kit.initial(state.net)
        student, pool, loss = held(self.kit, state.net, first), Pool(), 0.0
        optimiser = torch.optim.SGD(
            student.parameters(), lr=self.config.student_lr, momentum=self.config.student_momentum
        )
        for epoch in range(self.config.epochs):
            judge = self.image_loss(ensemble, ensemble.norm_gap(), student.eval())
            pool.add(*synthesised(self.config, self.kit, seed, epoch, judge))
            loss = self.taught(student, optimiser, ensemble, pool, seed, epoch)
            self.kit.tell("distillation", epoch + 1, self.config.epochs)
        return replace(state, model=snapshot(student)), {"distillation_loss": loss, "pool": len(pool)}

    def image_loss(self, ensemble: Ensemble, gap: NormGap, student: Classifier) -> ImageLoss:
        """What the generator minimises."""
        config = self.config

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with gap.watching():
                teacher = ensemble.logits(images).mean(1)
            total = config.label * nn.functional.cross_entropy(teacher, labels)
            if config.norm:
                total = total + config.norm * gap.value()
            if config.adversarial:
                total = total + config.adversarial * disagreement(teacher, student(images))
            return total

        return loss

    def taught(
        self,
        student: Classifier,
        optimiser: torch.optim.Optimizer,
        ensemble: Ensemble,
        pool: Pool,
        seed: Seed,
        epoch: int,
    ) -> float:
        """One pass of the student over the pool, in place; the mean loss of its steps."""
        draws, tau, losses = seed.torch("pass", epoch), self.config.temperature, []
        student.train()
        for images, _ in pool.batches(self.config.student_batch, draws):
            inputs = as_inputs(self.kit.task, images, draws)
            with torch.no_grad():
                teacher = ensemble.logits(inputs).mean(1)
            loss = tau**2 * kl(teacher / tau, student(inputs) / tau)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        return sum(losses) / len(losses)


def disagreement(teacher: Tensor, student: Tensor) -> Tensor:
    """L_div of logits (B, C): minus KL(teacher || student) of the images that both classify otherwise, mean over all.

    Which these are is a constant: no gradient passes through it.
    """
    differ = (teacher.argmax(1) != student.argmax(1)).to(teacher.dtype)
    return -(differ * kl_each(teacher, student)).mean()
