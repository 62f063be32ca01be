"""FedGen: a small generator of features, learnt from the clients' heads, guides local training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side
from algorithms.core.needs import Needs, Volume, mean_bytes, network_of
from algorithms.core.payload import Payload, Tensors, Value
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.settings import setting
from algorithms.core.states import WeightedMean, only, snapshot, state_bytes
from algorithms.core.task import Task
from algorithms.core.training import Batches, Objective, Work
from algorithms.nets import NetworkError, require_head
from algorithms.nets.server_generators import LatentGenerator
from algorithms.parts.ensembles import Ensembling, GroupedModels
from algorithms.parts.heads import head_refusal
from algorithms.parts.label_counts import label_counts, seen_counts, shares_by_class
from algorithms.parts.losses import distances, kl, sameness

HEAD = ("head.weight", "head.bias")

LEAST = 1e-4
"""Lower bound of the decaying weights of the clients' terms, as in the released code."""


@dataclass(frozen=True)
class FedGenState(GroupedModels):
    """The global models, whose heads are one, and the generator.

    Attributes:
        generator: whole state dict.
        available: int64 (C,), 1 for a class that some client has met; all 0 before the generator has learned.
    """

    generator: dict[str, Tensor]
    available: Tensor


class FedGen(Ensembling[FedGenState]):
    """Zhu et al., "Data-Free Knowledge Distillation for Heterogeneous Federated Learning", ICML 2021, arXiv 2105.10056.

    A network is a body and a head. With G(e, y) the features that the generator makes of noise e for a label y, a
    client minimises in each step, on a real batch (x, y) of B examples and labels y' drawn alike from those that some
    client has met,

        CE(f(x), y) + alpha (B' / B) CE(head(G(e', y')), y') + beta KL(head(G(e, y)) || f(x)),

    where the second softmax is a constant, from the second round on and in its first `epochs` epochs of a round. alpha
    and beta fall by 0.98 a round. It sends how many examples n_k^y of each class this round's training has met. The
    server takes `generator_steps` of Adam of the generator, for labels y drawn alike from those that were met, on

        fidelity sum_k mean_b a_k^(y_b) CE(head_k(G(e_b, y_b)), y_b) + diversity L_div,   a_k^y = n_k^y / sum_j n_j^y,
        L_div = exp(-mean_ij mean|G_i - G_j| mean (e_i - e_j)^2),

    and averages the networks. These are the losses of the paper. In the released code those of the server's (B,)
    examples are multiplied by weights (B, 1), so that the a_k^y act through their mean alone. Its term against the
    student, of weight 0 there, is left out here, its counts begin at 1 for every class, its noise is uniform where the
    paper's is normal, and its Adam goes on from round to round, where this begins anew. Label smoothing of the clients
    is that of real batches.

    Clients' networks may differ where their features are of one size: heads are averaged over all clients, bodies over
    those of one network.

    Travels, per client and round: a state dict down and up with n_k (8 bytes) and C label counts (8 C bytes) up, and
    from the second round on down the generator's state dict and the classes that were met, as counts of 1 (8 C bytes).
    """

    paper = "Zhu et al. 2021, arXiv 2105.10056"
    task_traits = frozenset({"classes"})
    State = FedGenState

    @dataclass(frozen=True, kw_only=True)
    class Config(Ensembling.Config):
        student: str | None = setting(
            None, "which of the clients' networks is evaluated; null: the only one", network=True
        )
        alpha: float = setting(10.0, "client: weight of the cross-entropy of generated features", ge=0)
        beta: float = setting(10.0, "client: weight of the divergence from the answer to generated features", ge=0)
        decay: float = setting(0.98, "factor of alpha, beta and the generator's rate from round to round", gt=0, le=1)
        epochs: int = setting(20, "client: epochs of a round in which alpha and beta act", ge=0)
        generated_batch: int = setting(32, "client: generated features in a step", ge=1)
        noise: Literal["normal", "uniform"] = setting("normal", "distribution of e; uniform on [0, 1]: as released")
        latent: int = setting(32, "entries of the generator's noise vector", ge=1)
        hidden: int = setting(256, "hidden units of the generator", ge=1)
        generator_steps: int = setting(50, "server: steps of the generator in a round", ge=1)
        generator_batch: int = setting(32, "server: generated features in a step", ge=2)
        generator_lr: float = setting(3e-4, "server: learning rate of Adam for the generator, in the first round", gt=0)
        generator_weight_decay: float = setting(1e-2, "server: weight decay of Adam for the generator", ge=0)
        fidelity: float = setting(1.0, "server: weight of the cross-entropy of the label asked", ge=0)
        diversity: float = setting(1.0, "server: weight of the sameness of features", ge=0)

        @property
        def guides(self) -> bool:
            """Whether clients need the generator."""
            return bool(self.epochs and (self.alpha or self.beta))

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        counted = label_counts(task)
        needs = (
            super()
            .needs(config, task, clients, work, counts)
            .adding(up={"label_counts": counted}, refusals=_refusals(config, task, clients))
        )
        if config.guides:
            generator = Volume(mean_bytes(task, clients, lambda net: _generator_bytes(config, task, net)))
            needs = needs.adding(down={"generator": generator, "label_counts": counted})
            needs = replace(needs, trained_alone="their objective puts generated features beside every batch")
        return replace(needs, storage=(), stages=())

    def start(self, clients: Sequence[ClientSpec]) -> FedGenState:
        net, model, others = self.initial_groups(clients)
        head = only(model, HEAD)
        with torch_seeded(self.kit.seed.number("server generator")):
            generator = snapshot(self._new_generator(net))
        return FedGenState(
            net=net,
            model=model,
            others={name: {**other, **head} for name, other in others.items()},
            generator=generator,
            available=torch.zeros(self.kit.task.classes, dtype=torch.int64),
        )

    def round(self, state: FedGenState, plan: Plan, cohort: Cohort) -> tuple[FedGenState, dict[str, float]]:
        nets = {client.id: client.net for client in plan.clients}
        bodies, head = {net: WeightedMean() for net in state.models}, WeightedMean()
        heads, counts = [], []
        for update in cohort.ask(self.train, self._messages(state, nets)):
            weights, share = update.payload.tensors("weights"), self.share(update)
            bodies[nets[update.client]].add(weights, share)
            heads.append(only(weights, HEAD))
            head.add(heads[-1], share)
            counts.append(update.payload.tensors("label_counts")["counts"])
        if not heads:
            return state, {}
        common = head.result(otherwise=only(state.model, HEAD))
        models = {net: {**mean.result(otherwise=state.models[net]), **common} for net, mean in bodies.items()}
        generator, metrics = self.train_generator(state, Heads(heads, self.kit.device), counts, plan)
        available = state.available | (torch.stack(counts).sum(0) > 0)
        model = models.pop(state.net)
        return replace(state, model=model, others=models, generator=generator, available=available), metrics

    def train_generator(
        self, state: FedGenState, heads: Heads, counts: Sequence[Tensor], plan: Plan
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Train the generator for a round: its new state, and its last losses."""
        config, device, draws = self.config, self.kit.device, plan.seed.torch("generator")
        generator = self._generator(state.net, state.generator).train()
        optimiser = torch.optim.Adam(
            generator.parameters(),
            lr=config.generator_lr * config.decay**plan.round,
            weight_decay=config.generator_weight_decay,
        )
        shares = shares_by_class(counts).to(device)
        classes = torch.stack(list(counts)).sum(0).nonzero()[:, 0]
        metrics: dict[str, float] = {}
        progress = self.kit.progress("generator", config.generator_steps)
        for _ in range(config.generator_steps):
            labels = classes[torch.randint(len(classes), (config.generator_batch,), generator=draws)].to(device)
            noise = self._noise(len(labels), draws)
            features = generator(noise, labels)
            fidelity = config.fidelity * heads.cross_entropy(features, labels, shares)
            diversity = config.diversity * sameness(distances(features, 1), distances(noise, 2) ** 2)
            optimiser.zero_grad(set_to_none=True)
            (fidelity + diversity).backward()
            optimiser.step()
            metrics = {"fidelity": float(fidelity.detach()), "diversity": float(diversity.detach())}
            progress.count_step()
        return snapshot(generator), metrics

    def _messages(self, state: FedGenState, nets: dict[int, str]) -> dict[int, Payload]:
        extra: dict[str, dict[str, Any]] = {}
        if self.config.guides and bool(state.available.any()):
            # The name is that of what comes back, which is of the same form.
            extra = {"generator": state.generator, "label_counts": {"counts": state.available}}
        payloads = {net: Payload({"weights": model, **extra}) for net, model in state.models.items()}
        return {client: payloads[net] for client, net in nets.items()}

    def _new_generator(self, net: str) -> LatentGenerator:
        """A generator of a network's features with weights from torch's global generator, on the CPU."""
        features = require_head(self.kit.network(net)).head.in_features
        return LatentGenerator(self.kit.task.classes, features, self.config.latent, self.config.hidden)

    def _generator(self, net: str, state: Tensors) -> LatentGenerator:
        with torch_seeded(0):
            generator = self._new_generator(net)
        generator.load_state_dict(state)
        return generator.to(self.kit.device)

    def _noise(self, count: int, draws: torch.Generator) -> Tensor:
        draw = torch.randn if self.config.noise == "normal" else torch.rand
        return draw(count, self.config.latent, generator=draws).to(self.kit.device)

    # On the client's side

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training, guided by generated features once there is one; and the examples it has met by class."""
        net = self.received_network(client)
        guided = "generator" in client.received.parts
        fitted = self.fit(client, net, objective=self.guided_objective(client) if guided else None)
        counts: dict[str, Value] = {"counts": seen_counts(client, self.kit.work, fitted, self.kit.task.classes)}
        return self.reply(client, fitted, weights=snapshot(net), label_counts=counts)

    def guided_objective(self, client: Client) -> Objective:
        """The loss of the client's examples with the terms of generated features."""
        config, loss_of, draws = self.config, self.kit.loss, client.seed.torch("generated")
        generator = self._generator(client.spec.net, client.received.tensors("generator"))
        generator.eval().requires_grad_(False)
        available = client.received.tensors("label_counts")["counts"].nonzero()[:, 0]
        alpha, beta = (decayed_weight(weight, config.decay, client.seed) for weight in (config.alpha, config.beta))
        alpha = alpha * config.generated_batch / self.kit.work.batch
        left = config.epochs * Batches(len(client.shard), self.kit.work.batch, client.seed).per_epoch

        def objective(net: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            nonlocal left
            answers = net(inputs)
            loss = loss_of(answers, labels)
            left -= 1
            if left < 0:
                return loss
            head = require_head(net).head
            if alpha:
                asked = available[torch.randint(len(available), (config.generated_batch,), generator=draws)]
                asked = asked.to(answers.device)
                made = head(generator(self._noise(len(asked), draws), asked))
                loss = loss + alpha * F.cross_entropy(made, asked)
            if beta:
                target = head(generator(self._noise(len(labels), draws), labels)).detach()
                loss = loss + beta * kl(target, answers)
            return loss

        return objective


def _refusals(config: FedGen.Config, task: Task, clients: Sequence[ClientSpec]) -> list[str]:
    """Reasons to refuse students that nobody trains, and networks that cannot share a generator."""
    nets, reasons = sorted({client.net for client in clients}), []
    if config.student is not None and config.student not in nets:
        reasons.append(f"student: {config.student} is trained by no client; the clients have {', '.join(nets)}")
    reasons += head_refusal(nets, task, "the generator of features")
    try:
        sizes = {net: require_head(network_of(net, task)).head.in_features for net in nets}
    except NetworkError:  # it is refused already, or elsewhere by name
        return reasons
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{net} {size}" for net, size in sizes.items())
        reasons.append(f"generates features, which must be of one size for all clients, but they are {found}")
    return reasons


def _generator_bytes(config: FedGen.Config, task: Task, net: nn.Module) -> int:
    """Bytes of a generator of a network's features."""
    features = require_head(net).head.in_features
    # A network on the device `meta` has shapes and no memory.
    with torch.device("meta"):
        return state_bytes(LatentGenerator(task.classes, features, config.latent, config.hidden))


def decayed_weight(weight: float, decay: float, seed: Seed) -> float:
    """A weight of the clients' terms in the seed's round; 0 stays 0."""
    return max(LEAST, weight * decay**seed.round) if weight else 0.0


class Heads:
    """The clients' heads side by side."""

    def __init__(self, heads: Sequence[Tensors], device: torch.device) -> None:
        self._weight, self._bias = (torch.stack([head[name] for head in heads]).to(device) for name in HEAD)

    def cross_entropy(self, features: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
        """sum_k mean_b a_k^(y_b) CE(head_k(features_b), y_b), for features (B, F), labels (B,), shares (K, C)."""
        logits = torch.einsum("bf,kcf->kbc", features, self._weight) + self._bias[:, None]
        each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
        return (each.view(len(logits), -1) * shares[:, labels]).sum(0).mean()
