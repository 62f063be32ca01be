"""Methods of one round: clients train once, and the server distils their ensemble on images that it makes itself.

DENSE and Co-Boosting. They differ in the generator's loss, in the ensemble's weights and in what the student is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from algorithms.core.contract import ClientSpec, Cohort, Plan
from algorithms.core.needs import Needs
from algorithms.core.seeds import Seed
from algorithms.core.settings import setting
from algorithms.core.states import snapshot
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.parts.bank import Expert
from algorithms.parts.ensembles import (
    Ensemble,
    Ensembling,
    GroupsT,
    WeightedLogits,
    equal_weights,
    load_network,
    norm_refusal,
)
from algorithms.parts.synthesis import SynthesisConfig, batches_in_pass, image_refusals


class OneShot(Ensembling[GroupsT]):
    """Base of both. A subclass gives `teach`.

    A run of one round is the papers'. Rounds before the last are FedAvg, or, under `when: every round`, end in a
    distillation as well. Clients' networks may differ; each is averaged apart, and only the student is taught.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SynthesisConfig, Ensembling.Config):
        when: Literal["last round", "every round"] = setting("last round", "rounds that end in a distillation")
        start: Literal["initial", "average"] = setting(
            "initial", "the student's first weights: fresh ones, or the average of the clients of its network"
        )
        epochs: int = setting(200, "batches synthesised, each followed by a pass over all of them", ge=0)
        label: float = setting(1.0, "generator: weight of the cross-entropy of the label asked", ge=0)
        norm: float = setting(1.0, "generator: weight of the gap to the clients' batch statistics", ge=0)
        adversarial: float = setting(1.0, "generator: weight of the disagreement of student and ensemble", ge=0)
        temperature: float = setting(20.0, "divides the logits in the student's loss", gt=0)
        student_lr: float = setting(0.005, "learning rate of SGD for the student", gt=0)
        student_momentum: float = setting(0.9, "momentum of SGD for the student", ge=0, lt=1)
        student_batch: int = setting(256, "images in a step of the student", ge=2)

    task_traits = frozenset({"classes", "images"})
    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        reasons = [*image_refusals(task), *norm_refusal("norm", config.norm, clients, task)]
        return super().needs(config, task, clients, work, counts).adding(refusals=reasons)

    def round(self, state: GroupsT, plan: Plan, cohort: Cohort) -> tuple[GroupsT, dict[str, float]]:
        state, members = self.gather_networks(state, plan, cohort)
        last = plan.round + 1 == plan.rounds
        if not members or not (last or self.config.when == "every round"):
            return state, {}
        return self.distil_ensemble(state, members, plan.seed)

    def distil_ensemble(
        self, state: GroupsT, members: Sequence[Expert], seed: Seed
    ) -> tuple[GroupsT, dict[str, float]]:
        """Distil the clients' networks into the student: the new state, and metrics by name."""
        ensemble = Ensemble.of(members, self.kit)
        self.kit.show("fedavg", self.predictor(state))
        self.kit.show("ensemble", WeightedLogits(ensemble, equal_weights(len(ensemble))))
        first = state.model if self.config.start == "average" else self.kit.initial(state.net)
        student = load_network(self.kit, state.net, first)
        metrics = self.teach(student, ensemble, seed)
        return replace(state, model=snapshot(student)), metrics

    def server_steps(self) -> int:
        """Steps of all generators and of the student, by which progress is told."""
        config = self.config
        pools = [(epoch + 1) * config.synthesis_batch for epoch in range(config.epochs)]
        passes = sum(batches_in_pass(images, config.student_batch) for images in pools)
        return config.epochs * config.generator_steps + passes

    def teach(self, student: nn.Module, ensemble: Ensemble, seed: Seed) -> dict[str, float]:
        """Train the student in place; metrics by name."""
        raise NotImplementedError
