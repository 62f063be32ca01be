"""HetLoRA: one adapter of which every client holds as many ranks as it can, and gives up those that do not help it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side, net_mixture
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.payload import Payload, Tensors
from algorithms.core.settings import setting
from algorithms.core.states import WeightedMean, snapshot
from algorithms.core.task import Task
from algorithms.core.training import Objective, Work
from algorithms.parts.averaging import ONE_NUMBER, Averaging, GlobalModel
from algorithms.parts.low_rank import cut, pad, pairs, product_norm, rank_of

TINY = 1e-12
"""Under the root of a norm, which has no gradient at 0."""


@dataclass(frozen=True)
class HetLoRAState(GlobalModel):
    """The global adapters of the largest rank.

    Attributes:
        ranks: by client, the rank that it kept when it was last asked; of those that have been.
    """

    ranks: dict[int, int]


class HetLoRA(Averaging[HetLoRAState]):
    """Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024,
    arXiv 2401.06432. No code of the authors was found.

    The global adapters have the rank r_max = `task.rank`; client k holds r_k of it, its width times r_max at first. The
    scale s = alpha / r_max is the same for all. In a round, client k
    - receives the first r_k ranks, A[:r_k] and B[:, :r_k];
    - trains them on NLL + lambda sum_m ||B_k[:, tail]||_F ||A_k[tail]||_F over the adapted matrices m, the tail being
      ranks from floor(gamma r_k) on, one at least, and none below `least_rank`;
    - cuts the tail off, for good, where that sum (without lambda) is less than before training;
    - sends what is left.

    The server fills up with zeros and averages by norm, factor by factor:

        q_k = S_k / sum_j S_j,    S_k = sqrt(sum_m ||B_k A_k||_F^2);    uniformly where all S_k are 0.

    `weights: examples` multiplies S_k by n_k. Zeros count: a rank is divided by all clients, also those that lack it.

    Travels, per client and round: r_k (d_in + d_out) numbers of 4 bytes a matrix each way; up with r_k, 8 bytes.
    """

    paper = "Cho et al. 2024, arXiv 2401.06432"
    task_traits = frozenset({"adapters"})
    State = HetLoRAState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        by_norm: bool = setting(True, "a client's share in the average is in proportion to the norm of its product")
        weights: Literal["examples", "uniform"] = setting(
            "uniform", "what its share is in proportion to besides: nothing, or its number of examples"
        )
        gamma: float = setting(0.99, "share of its ranks that a client keeps where it prunes", gt=0, lt=1)
        decay: float = setting(0.01, "lambda, the weight of the tail's norm in the clients' loss", ge=0)
        least_rank: int = setting(2, "rank below which no client prunes", ge=1)

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        adapters = Volume(mean_bytes(task, clients))
        common = super().needs(config, task, clients, work, counts).adding(up={"rank": ONE_NUMBER})
        return replace(
            common,
            down={"first_ranks": adapters},
            own_kinds={
                "first_ranks": "the first ranks of the global adapters, as many as the client holds",
                "rank": "how many ranks of the adapters the client has kept",
            },
            refusals=tuple(net_mixture([replace(client, width=1.0) for client in clients])),
        )

    def start(self, clients: Sequence[ClientSpec]) -> HetLoRAState:
        return HetLoRAState(*self.initial_model(clients), ranks={})

    def round(self, state: HetLoRAState, plan: Plan, cohort: Cohort) -> tuple[HetLoRAState, dict[str, float]]:
        largest = rank_of(state.model)
        held = {client.id: self.rank(state, client, largest) for client in plan.clients}
        parts = {rank: Payload.of(first_ranks=cut(state.model, rank)) for rank in set(held.values())}
        by_norm, otherwise, ranks = WeightedMean(), WeightedMean(), dict(state.ranks)
        for update in cohort.ask(self.train, {client: parts[rank] for client, rank in held.items()}):
            sent = update.payload.tensors("weights")
            full = pad(sent, largest)
            by_norm.add(full, self.share(update) * (product_norm(sent) if self.config.by_norm else 1.0))
            otherwise.add(full, self.share(update))
            ranks[update.client] = int(update.payload.number("rank", "r"))
        model = by_norm.result(otherwise=otherwise.result(otherwise=state.model))
        kept = [ranks.get(client.id, held[client.id]) for client in plan.clients]
        return replace(state, model=model, ranks=ranks), {"mean_rank": sum(kept) / len(kept)}

    def rank(self, state: HetLoRAState, client: ClientSpec, largest: int) -> int:
        """r_k: what the client's width allows, or less where it has pruned."""
        return min(max(1, round(client.width * largest)), state.ranks.get(client.id, largest))

    # On the client's side

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training of the first ranks, with a brake on the last of them, which go where they have shrunk."""
        received = client.received.tensors("first_ranks")
        rank = rank_of(received)
        net = self.kit.network(client.spec.net, rank / self._largest(client))
        net.load_state_dict(received)
        first = self.tail(rank)
        fitted = self.fit(client, net, objective=self._objective(first, rank))
        trained = snapshot(net)
        if first < rank and tail_size(trained, first) < tail_size(received, first):
            trained, rank = cut(trained, first), first
        reply = self.reply(client, fitted, weights=trained, rank={"r": rank})
        return replace(reply, metrics={**reply.metrics, "rank": rank})

    def _largest(self, client: Client) -> int:
        """r_max."""
        return rank_of(self.kit.network(client.spec.net).state_dict())

    def tail(self, rank: int) -> int:
        """The first rank of the tail; `rank` where there is none."""
        # The little more undoes the rounding of gamma: 0.29 x 100 is less than 29.
        first = min(math.floor(self.config.gamma * rank + 1e-9), rank - 1)
        return min(rank, max(self.config.least_rank, first))

    def _objective(self, first: int, rank: int) -> Objective | None:
        if not self.config.decay or first >= rank:
            return None

        def loss(net: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
            brake = tail_norms(dict(net.named_parameters()), first, TINY)
            return self.kit.loss(net(inputs), targets) + self.config.decay * brake

        return loss


def tail_norms(state: Tensors, first: int, tiny: float = 0.0) -> Tensor:
    """sum_m ||B[:, first:]||_F ||A[first:]||_F, with `tiny` under each root."""
    terms = [
        (b[:, first:].square().sum() + tiny).sqrt() * (a[first:].square().sum() + tiny).sqrt()
        for _, a, b in pairs(state)
    ]
    return torch.stack(terms).sum()


def tail_size(state: Tensors, first: int) -> float:
    """The same as a number."""
    return float(tail_norms({name: value.double() for name, value in state.items()}, first))
