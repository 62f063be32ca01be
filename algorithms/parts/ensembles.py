"""Methods whose server holds the clients' networks side by side: what they carry, send and teach with.

DENSE, Co-Boosting and FedDF. Clients' networks may differ: each client trains the global model of its own network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.contract import ClientSpec, Cohort, Plan, net_mixture
from algorithms.core.kit import Kit
from algorithms.core.needs import Needs, ServerStorage, Stage, network_of
from algorithms.core.payload import Payload
from algorithms.core.settings import setting
from algorithms.core.states import WeightedMean, norm_entries, state_bytes
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.nets import NetworkError
from algorithms.parts.averaging import BEFORE_DISTILLATION, Averaging, GlobalModel
from algorithms.parts.bank import Expert
from algorithms.parts.losses import NormGap


class Ensemble:
    """Networks side by side, frozen, in eval mode, all on one device. Gradients reach the images, not the networks.

    It is no `nn.Module`, so that putting a teacher in train mode or optimising it cannot reach the networks.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        """`nets` are the ensemble's own from now on."""
        self._nets = nn.ModuleList(nets).eval().requires_grad_(False)

    @classmethod
    def of(cls, members: Sequence[Expert], kit: Kit) -> Ensemble:
        """Networks as they were sent."""
        return cls([load_network(kit, member.net, member.state) for member in members])

    def __len__(self) -> int:
        return len(self._nets)

    def logits(self, images: Tensor) -> Tensor:
        """Network inputs (B, C, H, W) to every network's logits (B, K, classes)."""
        return torch.stack([net(images) for net in self._nets], 1)

    def answer(self, number: int, images: Tensor) -> Tensor:
        """One network's logits (B, classes)."""
        logits: Tensor = self._nets[number](images)
        return logits

    def norm_gap(self) -> NormGap:
        """The gap to remembered batch statistics, summed over the layers: the mean of the networks that have any."""
        with_norm = sum(bool(norm_entries(net)) for net in self._nets)
        return NormGap(self._nets, scale=1 / max(with_norm, 1))


def load_network(kit: Kit, net: str, state: Mapping[str, Tensor], width: float = 1.0) -> nn.Module:
    """Load a state into a new network, which is the caller's own."""
    network = kit.new_network(net, width)
    network.load_state_dict(state)
    return network


class Voters(Protocol):
    """Several networks that answer together: an `Ensemble`, or a `Bank` of states."""

    def logits(self, images: Tensor) -> Tensor:
        """Network inputs (B, ...) to every network's logits (B, K, classes)."""
        ...


class WeightedLogits(nn.Module):
    """sum_k w_k f_k(x), images to logits (B, classes).

    Args:
        weights: float (K,), at least 0, which sum to 1; see `normalise`.
    """

    def __init__(self, voters: Voters, weights: Tensor) -> None:
        super().__init__()
        self.voters = voters
        # A buffer, by whose device it is known where the networks are to answer.
        self.register_buffer("weights", weights)
        self.weights: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return weighted_sum(self.voters.logits(images), self.weights)


class WeightedProbabilities(WeightedLogits):
    """tau log sum_k w_k softmax(f_k(x) / t), images to logits (B, classes): divided by tau and put through a softmax
    they are the mean of the networks' probabilities, taken at the temperature t.

    Attributes:
        temperature: tau.
        softening: t.
    """

    def __init__(self, voters: Voters, weights: Tensor, temperature: float, softening: float) -> None:
        super().__init__(voters, weights)
        self.temperature, self.softening = temperature, softening

    def forward(self, images: Tensor) -> Tensor:
        # In logarithms, since a probability that all networks round to 0 would make the loss NaN.
        answers = F.log_softmax(self.voters.logits(images) / self.softening, 2)
        return self.temperature * torch.logsumexp(answers + self.weights.to(answers.device).log()[:, None], 1)


def equal_weights(count: int) -> Tensor:
    """Equal weights, float (count,), which sum to 1."""
    return normalise(torch.ones(count))


def normalise(weights: Tensor) -> Tensor:
    """Weights (K,) divided by their sum; alike where the sum is 0."""
    total = weights.sum()
    return weights / total if bool(total > 0) else torch.full_like(weights, 1 / len(weights))


def weighted_sum(logits: Tensor, weights: Tensor) -> Tensor:
    """Values (B, K, C) and weights (K,), or (B, K) for weights of each image, to sum_k w_k values_k (B, C)."""
    weights = weights.to(logits.device)
    return torch.einsum("bkc,k->bc" if weights.dim() == 1 else "bkc,bk->bc", logits, weights)


@dataclass(frozen=True)
class GroupedModels(GlobalModel):
    """The global models of several networks. `net` and `model` are those of the student, which is evaluated.

    Attributes:
        others: whole state dicts of the clients' further networks, by name.
    """

    others: dict[str, dict[str, Tensor]]

    @property
    def models(self) -> dict[str, dict[str, Tensor]]:
        """All of them by name, the student's first."""
        return {self.net: self.model, **self.others}


GroupsT = TypeVar("GroupsT", bound=GroupedModels)


class Ensembling(Averaging[GroupsT]):
    """Base of methods with a teacher made of the clients' networks. The client's step is FedAvg's own."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        student: str | None = setting(
            None, "network that is taught and evaluated; null: the clients' own", network=True
        )

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        """Clients of several networks are served, of several widths they are not."""
        nets = sorted({client.net for client in clients})
        reasons = net_mixture([replace(client, net="") for client in clients])
        if len(nets) > 1 and config.student is None:
            reasons.append(f"the clients have {', '.join(nets)}: say by student which network is to be evaluated")
        if config.student is not None and config.student not in nets:
            try:
                network_of(config.student, task)
            except NetworkError as error:
                reasons.append(f"student: {error}")
        return replace(
            super().needs(config, task, clients, work, counts),
            refusals=tuple(reasons),
            storage=networks_of_clients(task, clients),
            stages=(
                Stage("ensemble", "the clients' networks, answering together", against="fedavg"),
                BEFORE_DISTILLATION,
            ),
            for_mixture=replace(config, student=config.student or nets[0]),
        )

    def initial_groups(
        self, clients: Sequence[ClientSpec]
    ) -> tuple[str, dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The fields of `GroupedModels` at the start."""
        student = self.config.student or clients[0].net
        others = sorted({client.net for client in clients} - {student})
        return student, self.kit.initial(student), {net: self.kit.initial(net) for net in others}

    def gather_networks(self, state: GroupsT, plan: Plan, cohort: Cohort) -> tuple[GroupsT, list[Expert]]:
        """Train locally for a round: the state with each network's average, and the clients' networks as they came."""
        payloads = {net: Payload.of(weights=model) for net, model in state.models.items()}
        nets = {client.id: client.net for client in plan.clients}
        means = {net: WeightedMean() for net in state.models}
        members = []
        for update in cohort.ask(self.train, {client: payloads[net] for client, net in nets.items()}):
            members.append(Expert(nets[update.client], update.payload.tensors("weights")))
            means[nets[update.client]].add(members[-1].state, self.share(update))
        models = {net: mean.result(otherwise=state.models[net]) for net, mean in means.items()}
        return replace(state, model=models.pop(state.net), others=models), members


def networks_of_clients(task: Task, clients: Sequence[ClientSpec]) -> tuple[ServerStorage, ...]:
    """Every client's network, side by side; none where one cannot be built, which is refused elsewhere."""
    owners = Counter({client.id: client.net for client in clients}.values())
    try:
        return tuple(
            ServerStorage(f"networks {net} of clients", owners[net], state_bytes(network_of(net, task)))
            for net in sorted(owners)
        )
    except NetworkError:
        return ()


def norm_refusal(setting: str, weight: float, clients: Sequence[ClientSpec], task: Task) -> list[str]:
    """Reasons why a loss over batch statistics, weighted by a setting, cannot be had: no client's network has any."""
    nets = sorted({client.net for client in clients})
    try:
        if not weight or any(norm_entries(network_of(net, task)) for net in nets):
            return []
    except NetworkError:  # refused elsewhere, by name
        return []
    lacking = f"which {nets[0]} lacks" if len(nets) == 1 else f"which none of {', '.join(nets)} has"
    return [f"{setting} = {weight:g} needs batch normalisation, {lacking}; set {setting}: 0"]
