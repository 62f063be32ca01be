"""DFRD: the average is taught by a generator and by its moving average, which remembers earlier rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side, net_mixture
from algorithms.core.distillation import freeze_norm
from algorithms.core.needs import Needs
from algorithms.core.payload import Payload, Tensors
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.settings import setting
from algorithms.core.states import combine, snapshot
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.nets.server_generators import Merge, MergedGenerator
from algorithms.parts.averaging import BEFORE_DISTILLATION, Averaging, GlobalModel
from algorithms.parts.ensembles import Ensemble, load_network, weighted_sum
from algorithms.parts.label_counts import label_counts, labels_like, seen_counts, shares_by_class
from algorithms.parts.losses import distances, kl, kl_each, sameness
from algorithms.parts.submodels import PartialMean, part_of, width_refusals
from algorithms.parts.synthesis import BETAS, image_refusals
from algorithms.tasks.images import images_of


@dataclass(frozen=True)
class DFRDState(GlobalModel):
    """The global model and the server's two generators, which are never sent.

    Attributes:
        generator: w, whole state dict.
        average: w~, its moving average over the rounds, batch statistics included.
    """

    generator: dict[str, Tensor]
    average: dict[str, Tensor]


class DFRD(Averaging[DFRDState]):
    """Luo et al., "DFRD: Data-Free Robustness Distillation for Heterogeneous Federated Learning", NeurIPS 2023,
    arXiv 2309.13546.

    Clients train as in FedAvg and send their network f_i and how many examples of each class n_i^y this round's
    training has met. With tau_i^y = n_i^y / sum_j n_j^y the teacher of an image of label y is
    T(x) = sum_i tau_i^y f_i(x) on logits; labels are as frequent as the n^y. The server averages to f and then,
    with h = o(z, y) the merge of noise and label and x = G(h),

    1. `generator_steps` times takes a step of Adam of G on CE(T(x), y) + tran L_tran + div L_div,
       L_tran = -mean_b e_b KL(T(x_b) || f(x_b)), where e_b is 1 for images that T classifies as y and f does not,
       L_div = exp(-mean_jk ||x_j - x_k|| ||h_j - h_k||);
    2. w~ <- keep w~ + (1 - keep) w;
    3. `student_steps` times takes a step of SGD of f on KL(T(x) || f(x)) + replay KL(T(x~) || f(x~)), x~ by w~.

    e and the h of L_div are constants. The norms of L_div are per entry (root mean squares): plain ones are so large
    that the exponential is 0 in 32 bits, and so is its gradient.

    A client of width beta trains and sends the sub-network of FedRolex (arXiv 2212.01548) of that width: windows of
    every hidden layer's channels that move on by one channel a round. The sub-network itself, with its own batch
    statistics, is the teacher, so hidden outputs are not scaled in its training. Each entry of f becomes the mean over
    the clients that have it; one that nobody has keeps its value.

    Written after a summary of the paper, whose code could not be had: the numbers of steps, the rates, the layers of
    G, and that f keeps the clients' batch statistics (`freeze_norm`) are choices of ours.

    Travels, per client and round: as in FedAvg, of the client's sub-network, and C label counts up (8 C bytes).
    """

    paper = "Luo et al. 2023, arXiv 2309.13546"
    task_traits = frozenset({"classes", "images"})
    State = DFRDState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        generator_steps: int = setting(50, "steps of the generator in a round", ge=0)
        student_steps: int = setting(50, "steps of the student in a round; 0 is FedAvg", ge=0)
        batch: int = setting(64, "generated images in a step, of each generator", ge=2)
        latent: int = setting(100, "entries of the generator's noise vector", ge=1)
        generator_width: int = setting(64, "channels of the generator's last hidden layer", ge=1)
        merge: Merge = setting("multiply", "how noise and label become the generator's input")
        generator_lr: float = setting(2e-4, "learning rate of Adam for the generator", gt=0)
        tran: float = setting(
            1.0, "weight of the disagreement of teacher and student, where the teacher is right", ge=0
        )
        div: float = setting(1.0, "weight of the sameness of images", ge=0)
        keep: float = setting(0.5, "part of the moving average that a round keeps; 0: it is the generator", ge=0, le=1)
        replay: float = setting(0.5, "weight of the moving average's images in the student's loss; 0: unused", ge=0)
        student_lr: float = setting(0.01, "learning rate of SGD for the student", gt=0)
        freeze_norm: bool = setting(True, "the student keeps the batch statistics of the clients' average")

    config: Config

    budgets = {"laptop": {"generator_steps": 5, "student_steps": 5, "generator_width": 16, "student_lr": 1e-3}}

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        reasons = net_mixture([replace(client, width=1.0) for client in clients]) + image_refusals(task)
        reasons += width_refusals(clients[0].net, [client.width for client in clients], task)
        return replace(
            super().needs(config, task, clients, work, counts).adding(up={"label_counts": label_counts(task)}),
            refusals=tuple(reasons),
            stages=(BEFORE_DISTILLATION,),
        )

    def start(self, clients: Sequence[ClientSpec]) -> DFRDState:
        with torch_seeded(self.kit.seed.number("server generator")):
            generator = snapshot(self._new_generator())
        return DFRDState(*self.initial_model(clients), generator=generator, average=generator)

    def round(self, state: DFRDState, plan: Plan, cohort: Cohort) -> tuple[DFRDState, dict[str, float]]:
        widths = {client.id: client.width for client in plan.clients}
        parts = {width: part_of(self.kit, state.net, width, plan.round) for width in sorted(set(widths.values()))}
        messages = {width: Payload.of(weights=part.extract(state.model)) for width, part in parts.items()}
        mean, nets, counts = PartialMean(state.model), [], []
        for update in cohort.ask(self.train, {client: messages[width] for client, width in widths.items()}):
            width, weights = widths[update.client], update.payload.tensors("weights")
            mean.add(weights, parts[width], self.share(update))
            nets.append(load_network(self.kit, state.net, weights, width))
            counts.append(update.payload.tensors("label_counts")["counts"])
        if not nets:
            return state, {}
        state = replace(state, model=mean.result(otherwise=state.model))
        if plan.round + 1 == plan.rounds:
            self.kit.show("fedavg", self.predictor(state))
        return self.run_server_phase(state, ByClass(Ensemble(nets), counts), plan.seed)

    def run_server_phase(self, state: DFRDState, teacher: ByClass, seed: Seed) -> tuple[DFRDState, dict[str, float]]:
        """Run the server's phase: train the generator, then the student; the new state and its last losses."""
        student = load_network(self.kit, state.net, state.model)
        generator = self._generator(state.generator)
        metrics = self.train_generator(generator, student, teacher, seed.at(phase="generator"))
        fresh = snapshot(generator)
        average = moving_average(state.average, fresh, self.config.keep)
        metrics |= self.train_student(student, [generator, self._generator(average)], teacher, seed.at(phase="student"))
        return replace(state, model=snapshot(student), generator=fresh, average=average), metrics

    def train_generator(
        self, generator: MergedGenerator, student: nn.Module, teacher: ByClass, seed: Seed
    ) -> dict[str, float]:
        """Train the generator in place; its last losses."""
        config, metrics = self.config, {}
        optimiser = torch.optim.Adam(generator.parameters(), lr=config.generator_lr, betas=BETAS)
        generator.train()
        student.eval()
        progress = self.kit.progress("generator", config.generator_steps)
        for step, labels in enumerate(self._labels(teacher, config.generator_steps, seed)):
            h = generator.merge_noise(self._noise(seed, "noise", step), labels)
            images = generator(h)
            answers = teacher(images, labels)
            parts = {
                "fidelity": F.cross_entropy(answers, labels),
                "transferability": config.tran * transferability(answers, student(images), labels),
                "diversity": config.div * sameness(distances(images, 2), distances(h.detach(), 2)),
            }
            optimiser.zero_grad(set_to_none=True)
            torch.stack(list(parts.values())).sum().backward(inputs=list(generator.parameters()))
            optimiser.step()
            metrics = {name: float(value.detach()) for name, value in parts.items()}
            progress.count_step()
        return metrics

    def train_student(
        self, student: nn.Module, generators: Sequence[MergedGenerator], teacher: ByClass, seed: Seed
    ) -> dict[str, float]:
        """Train the student in place on the images of the generator and of its moving average; its last loss."""
        config, metrics = self.config, {}
        optimiser = torch.optim.SGD(student.parameters(), lr=config.student_lr)
        student.train()
        if config.freeze_norm:
            freeze_norm(student)
        weights = (1.0, config.replay) if config.replay else (1.0,)
        progress = self.kit.progress("distillation", config.student_steps)
        for step, labels in enumerate(self._labels(teacher, config.student_steps, seed)):
            losses = []
            for number, weight in enumerate(weights):
                with torch.no_grad():
                    generator = generators[number].eval()
                    images = generator(generator.merge_noise(self._noise(seed, f"noise {number}", step), labels))
                    answers = teacher(images, labels)
                losses.append(weight * kl(answers, student(images)))
            optimiser.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            optimiser.step()
            metrics = {"distillation_loss": float(torch.stack(losses).sum().detach())}
            progress.count_step()
        return metrics

    def _labels(self, teacher: ByClass, steps: int, seed: Seed) -> Sequence[Tensor]:
        """The labels asked in each of some steps, together as frequent as the clients' examples."""
        if not steps:
            return []
        labels = labels_like(teacher.counts.sum(0), steps * self.config.batch, seed.torch("labels"))
        return labels.to(self.kit.device).split(self.config.batch)

    def _noise(self, seed: Seed, purpose: str, step: int) -> Tensor:
        z = torch.randn(self.config.batch, self.config.latent, generator=seed.torch(purpose, step))
        return z.to(self.kit.device)

    def _generator(self, state: Tensors) -> MergedGenerator:
        with torch_seeded(0):
            generator = self._new_generator()
        generator.load_state_dict(state)
        return generator.to(self.kit.device)

    def _new_generator(self) -> MergedGenerator:
        """A generator with weights from torch's global generator, on the CPU."""
        task, config = images_of(self.kit.task), self.config
        return MergedGenerator(task.shape, task.classes, config.latent, config.generator_width, config.merge)

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training as in FedAvg, and the examples by class that it has met."""
        net = self.kit.network(client.spec.net, client.spec.width)
        net.load_state_dict(client.received.tensors("weights"))
        fitted = self.fit(client, net)
        counts = seen_counts(client, self.kit.work, fitted, self.kit.task.classes)
        return self.reply(client, fitted, weights=snapshot(net), label_counts={"counts": counts})


class ByClass:
    """The teacher T(x) = sum_i tau_i^y f_i(x).

    Attributes:
        counts: int64 (K, C), n_i^y.
    """

    def __init__(self, ensemble: Ensemble, counts: Sequence[Tensor]) -> None:
        self.ensemble, self.counts = ensemble, torch.stack(list(counts))
        self._shares = shares_by_class(counts)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Network inputs (B, C, H, W) and the labels asked (B,) to logits (B, classes)."""
        return weighted_sum(self.ensemble.logits(images), self._shares.to(labels.device)[:, labels].T)


def transferability(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    """L_tran of logits (B, C): minus KL(teacher || student) where the teacher alone gives the label, mean over all."""
    counts = (teacher.argmax(1) == labels) & (student.argmax(1) != labels)
    return -(counts.to(teacher.dtype) * kl_each(teacher, student)).mean()


def moving_average(average: Tensors, fresh: Tensors, keep: float) -> dict[str, Tensor]:
    """keep w~ + (1 - keep) w of every floating-point entry, buffers included; of counters, the fresh ones."""

    def mix(old: Tensor, new: Tensor) -> Tensor:
        return keep * old + (1 - keep) * new if new.is_floating_point() else new

    return combine(mix, average, fresh)
