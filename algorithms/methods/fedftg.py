"""FedFTG: the average is fine-tuned on the server, on images where it and the clients disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side
from algorithms.core.distillation import freeze_norm
from algorithms.core.needs import Needs
from algorithms.core.payload import Payload
from algorithms.core.seeds import torch_seeded
from algorithms.core.settings import setting
from algorithms.core.states import WeightedMean, snapshot
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.nets.server_generators import ConditionalGenerator
from algorithms.parts.averaging import BEFORE_DISTILLATION, Averaging, GlobalModel
from algorithms.parts.bank import Expert
from algorithms.parts.ensembles import Ensemble, load_network, weighted_sum
from algorithms.parts.label_counts import label_counts, labels_like, shares_by_class
from algorithms.parts.losses import distances, kl_each, sameness
from algorithms.parts.synthesis import image_refusals
from algorithms.tasks.images import images_of

Deviation = Literal["l1_discrepancy", "averaged_weights", "divided_by_classes", "trained_norm"]


@dataclass(frozen=True)
class FedFTGState(GlobalModel):
    """The global model, and the server's generator.

    Attributes:
        generator: whole state dict; it is never sent.
    """

    generator: dict[str, Tensor]


class FedFTG(Averaging[FedFTGState]):
    """Zhang et al., "Fine-tuning Global Model via Data-Free Knowledge Distillation for Non-IID Federated Learning",
    CVPR 2022, arXiv 2203.09249.

    Clients train as in FedAvg and send their network t_k and their examples by class n_k^c. The server averages to the
    student s and fine-tunes it by a generator G(z, y), with a_k^c = n_k^c / sum_j n_j^c. For each of `server_steps`
    batches of noise z and labels y, as frequent as the clients' examples, with x = G(z, y) and K clients:

    - `generator_steps` times, for each client in turn, a step of Adam of the generator on
      mean_b a_k^(y_b) [ -KL(t_k(x_b) || s(x_b)) + cls CE(t_k(x_b), y_b) ] + dis / K L_dis,
      L_dis = exp(-mean_ij mean|x_i - x_j| mean (z_i - z_j)^2): hard images, of the label asked, that differ;
    - `student_steps` steps of SGD of the student on the mean over the batch of the cross-entropy of s(x) with
      sum_k a_k^y softmax(t_k(x)).

    Both rates fall by `decay` each round. A class that nobody holds is never asked.

    The released code's own rules are `deviations`: `l1_discrepancy` (mean |s - t_k| of logits, constant in t_k, for
    the divergence), `averaged_weights` (the cross-entropy's weights act through their mean alone),
    `divided_by_classes` (the student's loss is a mean over classes too), `trained_norm` (the student's batch
    normalisation learns from the images).

    Travels, per client and round: as in FedAvg, and C label counts up (8 C bytes).
    """

    paper = "Zhang et al. 2022, arXiv 2203.09249"
    task_traits = frozenset({"classes", "images"})
    State = FedFTGState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        server_steps: int = setting(10, "batches of noise and labels in a round; 0 is FedAvg", ge=0)
        generator_steps: int = setting(1, "rounds of the generator over the clients, for each batch", ge=1)
        student_steps: int = setting(5, "steps of the student, for each batch", ge=1)
        batch: int = setting(50, "generated images in a batch", ge=2)
        latent: int = setting(100, "entries of the generator's noise vector", ge=1)
        generator_width: int = setting(64, "channels of the generator's last hidden layer", ge=1)
        generator_lr: float = setting(0.01, "learning rate of Adam for the generator, in the first round", gt=0)
        student_lr: float = setting(0.1, "learning rate of SGD for the student, in the first round", gt=0)
        student_weight_decay: float = setting(1e-3, "weight decay of SGD for the student", ge=0)
        decay: float = setting(0.998, "factor of both rates from one round to the next", gt=0, le=1)
        cls: float = setting(1.0, "weight of the cross-entropy of the label asked", ge=0)
        dis: float = setting(1.0, "weight of the sameness of images", ge=0)
        deviations: tuple[Deviation, ...] = setting((), "single rules of the published code")

    config: Config

    budgets = {"laptop": {"server_steps": 2, "generator_width": 16, "student_lr": 1e-3}}

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        common = super().needs(config, task, clients, work, counts)
        sent = common.adding(up={"label_counts": label_counts(task)}, refusals=image_refusals(task))
        return replace(sent, stages=(BEFORE_DISTILLATION,))

    def start(self, clients: Sequence[ClientSpec]) -> FedFTGState:
        with torch_seeded(self.kit.seed.number("server generator")):
            generator = self.new_generator()
        return FedFTGState(*self.initial_model(clients), generator=snapshot(generator))

    def new_generator(self) -> ConditionalGenerator:
        """A generator with weights from torch's global generator, on the CPU."""
        task, config = images_of(self.kit.task), self.config
        return ConditionalGenerator(task.shape, task.classes, config.latent, config.generator_width)

    def round(self, state: FedFTGState, plan: Plan, cohort: Cohort) -> tuple[FedFTGState, dict[str, float]]:
        mean, members, counts = WeightedMean(), [], []
        for update in cohort.ask(self.train, Payload.of(weights=state.model)):
            members.append(Expert(state.net, update.payload.tensors("weights")))
            counts.append(update.payload.tensors("label_counts")["counts"])
            mean.add(members[-1].state, self.share(update))
        state = replace(state, model=mean.result(otherwise=state.model))
        if not members or self.config.server_steps == 0:
            return state, {}
        if plan.round + 1 == plan.rounds:
            self.kit.show("fedavg", self.predictor(state))
        return self.fine_tune(state, Ensemble.of(members, self.kit), counts, plan)

    def fine_tune(
        self, state: FedFTGState, ensemble: Ensemble, counts: Sequence[Tensor], plan: Plan
    ) -> tuple[FedFTGState, dict[str, float]]:
        """The state with the student taught and the generator moved on, and the last losses of both."""
        config, seed, device = self.config, plan.seed, self.kit.device
        with torch_seeded(0):
            generator = self.new_generator()
        generator.load_state_dict(state.generator)
        student = load_network(self.kit, state.net, state.model)
        contest = _Contest(config, generator.to(device), student, ensemble, config.decay**plan.round)
        shares = shares_by_class(counts).to(device)
        number = config.server_steps * config.batch
        asked = labels_like(torch.stack(list(counts)).sum(0), number, seed.torch("labels")).to(device)
        metrics: dict[str, float] = {}
        progress = self.kit.progress("fine-tuning", config.server_steps)
        for step, labels in enumerate(asked.split(config.batch)):
            z = torch.randn(config.batch, config.latent, generator=seed.torch("noise", step)).to(device)
            batch = _Batch(z, labels, shares[:, labels].T)
            metrics = {"generator_loss": contest.seek(batch), "student_loss": contest.learn(batch)}
            progress.count_step()
        return replace(state, model=snapshot(student), generator=snapshot(generator)), metrics

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training as in FedAvg, and the client's examples by class."""
        net = self.received_network(client)
        fitted = self.fit(client, net)
        counts = client.shard.label_counts(self.kit.task.classes)
        return self.reply(client, fitted, weights=snapshot(net), label_counts={"counts": counts})


@dataclass(frozen=True)
class _Batch:
    """Noise (B, latent), the labels asked (B,), and the clients' shares a_k^y (B, K) in the teacher."""

    z: Tensor
    labels: Tensor
    weights: Tensor


class _Contest:
    """Generator and student of one round, with the clients they contend about. Both are trained in place."""

    def __init__(
        self,
        config: FedFTG.Config,
        generator: ConditionalGenerator,
        student: nn.Module,
        ensemble: Ensemble,
        fade: float,
    ) -> None:
        self.config, self.generator, self.student, self.ensemble = config, generator, student, ensemble
        self._by_generator = torch.optim.Adam(generator.parameters(), lr=config.generator_lr * fade)
        self._by_student = torch.optim.SGD(
            student.parameters(), lr=config.student_lr * fade, weight_decay=config.student_weight_decay
        )

    def seek(self, batch: _Batch) -> float:
        """The generator's steps on one batch; the last loss."""
        self.generator.train()
        self.student.eval()
        loss = torch.zeros(())
        for number in list(range(len(self.ensemble))) * self.config.generator_steps:
            images = self.generator(batch.z, batch.labels)
            answers = self.student(images), self.ensemble.answer(number, images)
            loss = image_loss(*answers, batch.labels, batch.weights[:, number], self.config)
            same = sameness(distances(images, 1), distances(batch.z, 2) ** 2)
            loss = loss + self.config.dis / len(self.ensemble) * same
            self._by_generator.zero_grad(set_to_none=True)
            loss.backward(inputs=list(self.generator.parameters()))
            self._by_generator.step()
        return float(loss.detach())

    def learn(self, batch: _Batch) -> float:
        """The student's steps on one batch; the last loss."""
        self.generator.eval()
        self.student.train()
        if "trained_norm" not in self.config.deviations:
            freeze_norm(self.student)
        with torch.no_grad():
            images = self.generator(batch.z, batch.labels)
            target = weighted_sum(F.softmax(self.ensemble.logits(images), 2), batch.weights)
        loss = torch.zeros(())
        for _ in range(self.config.student_steps):
            loss = student_loss(self.student(images), target, self.config.deviations)
            self._by_student.zero_grad(set_to_none=True)
            loss.backward()
            self._by_student.step()
        return float(loss.detach())


def image_loss(student: Tensor, teacher: Tensor, labels: Tensor, weights: Tensor, config: FedFTG.Config) -> Tensor:
    """One client's term of the images' loss: L_md + cls L_cls, of logits (B, C), labels and weights (B,)."""
    if "l1_discrepancy" in config.deviations:
        apart = (student - teacher.detach()).abs().mean(1)
    else:
        apart = kl_each(teacher, student)
    each = F.cross_entropy(teacher, labels, reduction="none")
    averaged = "averaged_weights" in config.deviations
    asked = each.mean() * weights.mean() if averaged else (each * weights).mean()
    return config.cls * asked - (apart * weights).mean()


def student_loss(student: Tensor, target: Tensor, deviations: Sequence[str] = ()) -> Tensor:
    """Cross-entropy of the student's logits (B, C) with probabilities (B, C), mean over the batch."""
    loss = -(target * F.log_softmax(student, 1)).sum(1).mean()
    return loss / student.shape[1] if "divided_by_classes" in deviations else loss
