"""FedDF: ensemble distillation on unlabelled images after every average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.contract import ClientSpec, Cohort, Plan
from algorithms.core.distillation import Distillation, Source
from algorithms.core.needs import Needs, PlannedDistillation, PublicData
from algorithms.core.scoring import score
from algorithms.core.seeds import Seed
from algorithms.core.settings import setting
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.parts.bank import Bank, Expert
from algorithms.parts.ensembles import (
    Ensemble,
    Ensembling,
    GroupedModels,
    WeightedLogits,
    WeightedProbabilities,
    equal_weights,
    load_network,
    norm_refusal,
    normalise,
)
from algorithms.parts.losses import kl
from algorithms.parts.synthesis import Pool, SynthesisConfig, as_inputs, image_refusals, synthesise_batch
from algorithms.parts.unlabelled import GivenInputs, Noise
from algorithms.tasks.images import IMAGE, images_of

Average = Literal["logits", "probabilities", "losses"]

CLIP = 5.0
"""Largest 2-norm of the student's gradient, as in the released code."""


@dataclass(frozen=True)
class FedDFState(GroupedModels):
    """The global models alone, one for each of the clients' networks and one for the student."""


class FedDF(Ensembling[FedDFState]):
    """Lin et al., "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020,
    arXiv 2006.07242.

    Each round the clients' networks are averaged, those of each architecture apart, and every average s is then taught
    by all of them together (algorithm 3) in `steps` steps of Adam on batches x of unlabelled images,

        KL(softmax(mean_k f_k(x) / tau) || softmax(s(x) / tau)),

    without the factor tau^2, at a rate that falls along half a cosine. There is no early stopping, which needs labelled
    examples: `steps` is how many there are. The released code has two more schemes. `average: probabilities` puts
    mean_k softmax(f_k(x)), which tau does not soften, in the place of the first softmax (avg_probs in the code).
    `average: losses` puts mean_k softmax(f_k(x) / tau) there, which has the gradient of the mean of the clients'
    separate losses (avg_losses). The two are one at tau = 1.

    The images are `generated`: synthesised in each round against the clients' networks, as in DENSE, by label
    CE(mean_k f_k(x), y) + norm L_BN; or `public`: those that the server owns; or `noise`. `teachers: accuracy` weighs
    clients by their accuracy on the server's own examples, whose labels it then uses, and drops those that do not
    beat guessing.

    Batch normalisation learns from these images; `freeze_norm` keeps the clients' statistics. Travels: as in FedAvg.
    """

    paper = "Lin et al. 2020, arXiv 2006.07242"
    task_traits = frozenset({"classes", "images"})
    State = FedDFState

    @dataclass(frozen=True, kw_only=True)
    class Config(SynthesisConfig, Ensembling.Config):
        unlabelled: Literal["generated", "public", "noise"] = setting(
            "generated", "images to distil on: made against the clients' networks, the server's own, or noise"
        )
        batches: int = setting(40, "generated: batches of images synthesised in each round", ge=1)
        label: float = setting(1.0, "generated: weight of the cross-entropy of the label asked", ge=0)
        norm: float = setting(1.0, "generated: weight of the gap to the clients' batch statistics", ge=0)
        average: Average = setting("logits", "what of the clients' answers is averaged; losses: softened probabilities")
        teachers: Literal["alike", "accuracy"] = setting(
            "alike", "a client's share in the teacher: the same for all, or by its accuracy on the server's examples"
        )
        start: Literal["average", "previous"] = setting(
            "average", "a student's first weights: its clients' average, or what it was before the round"
        )
        steps: int = setting(10_000, "optimiser steps of each student in a round; 0 is FedAvg", ge=0)
        distinct: int | None = setting(None, "different batches, over which the steps go round; null: every one", ge=1)
        batch: int = setting(128, "unlabelled images in a step", ge=2)
        lr: float = setting(1e-3, "learning rate of Adam for the students, in the first step", gt=0)
        temperature: float = setting(1.0, "divides the logits", gt=0)
        freeze_norm: bool = setting(False, "students keep the batch statistics of their clients' average")

    config: Config

    budgets = {
        "laptop": {
            "batches": 2,
            "generator_steps": 10,
            "generator_width": 16,
            "latent": 64,
            "synthesis_batch": 64,
            "batch": 64,
            "steps": 20,
        }
    }

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        needs = super().needs(config, task, clients, work, counts)
        return replace(
            needs.adding(refusals=_refusals(config, task, clients)),
            public=_public(config),
            distillation=_distillation(config, task, clients, teacher=sum(s.total for s in needs.storage)),
        )

    def start(self, clients: Sequence[ClientSpec]) -> FedDFState:
        if self.config.unlabelled == "public" and self.kit.public is None:
            raise ValueError("unlabelled: public needs images that the server owns, and it owns none")
        return FedDFState(*self.initial_groups(clients))

    def round(self, state: FedDFState, plan: Plan, cohort: Cohort) -> tuple[FedDFState, dict[str, float]]:
        averaged, members = self.gather_networks(state, plan, cohort)
        if not members or self.config.steps == 0:
            return averaged, {}
        bank = Bank(members, self.kit)
        weights = self.weights(members)
        teacher = self.teacher(bank, weights).to(self.kit.device)
        if plan.round + 1 == plan.rounds:
            self.kit.show("fedavg", self.predictor(averaged))
            self.kit.show("ensemble", teacher)
        source = self.source(members, plan.seed)
        first = averaged if self.config.start == "average" else state
        models: dict[str, dict[str, Tensor]] = {}
        for net, model in first.models.items():
            models[net] = self.kit.distil(self.job(source, teacher, net, model, plan.seed))
        metrics = {"teachers": float((weights > 0).sum())}
        return replace(state, model=models.pop(state.net), others=models), metrics

    def teacher(self, bank: Bank, weights: Tensor) -> WeightedLogits:
        """The clients' networks as one, by shares (K,) which sum to 1."""
        if self.config.average == "logits":
            return WeightedLogits(bank, weights)
        softening = self.config.temperature if self.config.average == "losses" else 1.0
        return WeightedProbabilities(bank, weights, self.config.temperature, softening)

    def job(self, source: Source, teacher: nn.Module, net: str, model: dict[str, Tensor], seed: Seed) -> Distillation:
        """The distillation into one network."""
        config = self.config
        return Distillation(
            source=source,
            teacher=teacher,
            student=load_network(self.kit, net, model),
            loss=SoftenedKL(config.temperature),
            steps=config.steps,
            distinct=config.distinct or config.steps,
            lr=config.lr,
            cosine=True,
            clip=CLIP,
            freeze_norm=config.freeze_norm,
            seed=seed.at(phase=f"distillation {net}"),
        )

    def source(self, members: Sequence[Expert], seed: Seed) -> Source:
        """Batches of unlabelled images."""
        task, seed = images_of(self.kit.task), seed.at(phase="unlabelled")
        if self.config.unlabelled == "noise":
            return Noise(task, self.config.batch, seed)
        if self.config.unlabelled == "public" and self.kit.public is not None:
            pixels = self.kit.public.own(IMAGE)
            return GivenInputs(task.normalise(pixels), self.config.batch, seed)
        return GivenInputs(self.synthesise(members, seed), self.config.batch, seed)

    def synthesise(self, members: Sequence[Expert], seed: Seed) -> Tensor:
        """Network inputs (N, C, H, W) that are synthesised against the clients' networks, on the CPU."""
        ensemble, pool = Ensemble.of(members, self.kit), Pool()
        gap = ensemble.norm_gap()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            with gap.watching():
                teacher = ensemble.logits(images).mean(1)
            return self.config.label * F.cross_entropy(teacher, labels) + self.config.norm * gap.value()

        report = self.kit.progress("synthesis", self.config.batches * self.config.generator_steps).count_step
        for index in range(self.config.batches):
            pool.add(*synthesise_batch(self.config, self.kit, seed, index, loss, augmented=True, report=report))
        return as_inputs(images_of(self.kit.task), pool.images, None).cpu()

    def weights(self, members: Sequence[Expert]) -> Tensor:
        """The clients' shares in the teacher, float (K,), which sum to 1."""
        public = self.kit.public
        if self.config.teachers == "alike" or public is None:
            return equal_weights(len(members))
        progress, found = self.kit.progress("teachers' accuracy", len(members)), []
        for member in members:
            sums = score(load_network(self.kit, member.net, member.state), self.kit.task, public, self.kit.device)
            found.append(self.kit.task.report(sums)["accuracy"])
            progress.count_step()
        return by_accuracy(torch.tensor(found), self.kit.task.classes)


def by_accuracy(accuracies: Tensor, classes: int) -> Tensor:
    """Shares (K,) in proportion to accuracies in [0, 1], 0 at or below 1 / classes; alike where all are."""
    return normalise(torch.where(accuracies > 1 / classes, accuracies, 0.0))


@dataclass(frozen=True)
class SoftenedKL:
    """KL(softmax(t / tau) || softmax(s / tau)) of teacher's and student's logits, mean over the batch."""

    temperature: float

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return kl(teacher / self.temperature, student / self.temperature)


def _refusals(config: FedDF.Config, task: Task, clients: Sequence[ClientSpec]) -> list[str]:
    """Reasons to refuse images that cannot be made, and settings that do not fit each other."""
    reasons = []
    if config.unlabelled == "generated":
        reasons += image_refusals(task) + norm_refusal("norm", config.norm, clients, task)
    if config.teachers == "accuracy" and config.unlabelled != "public":
        reasons.append("teachers: accuracy needs examples that the server owns; set unlabelled: public")
    if config.distinct is not None and config.distinct > max(config.steps, 1):
        reasons.append(f"distinct = {config.distinct}: must be at most steps = {config.steps}")
    return reasons


def _public(config: FedDF.Config) -> PublicData:
    if config.unlabelled != "public":
        return "nothing"
    return "labelled examples" if config.teachers == "accuracy" else "examples"


def _distillation(
    config: FedDF.Config, task: Task, clients: Sequence[ClientSpec], teacher: int
) -> PlannedDistillation | None:
    """The distillation of every network, by a teacher of so many bytes."""
    if config.steps == 0:
        return None
    again = config.distinct is not None and config.distinct < config.steps
    images = config.batches * config.synthesis_batch if config.unlabelled == "generated" else 0
    return PlannedDistillation(
        students=tuple(sorted({config.student or clients[0].net, *(client.net for client in clients)})),
        batch=config.batch,
        kept=config.distinct or 0 if again else 0,
        source=4 * images * math.prod(images_of(task).shape),
        teacher=teacher,
    )
