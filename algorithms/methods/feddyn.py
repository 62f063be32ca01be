"""FedDyn: dynamic regularisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, Terms, Update, client_side
from algorithms.core.needs import Needs, Volume
from algorithms.core.payload import EMPTY, NUMBER_BYTES, Payload, memory_part, memory_tensors
from algorithms.core.settings import setting
from algorithms.core.states import WeightedMean, combine, only, snapshot
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.parts.averaging import ONE_NUMBER, Averaging, GlobalModel
from algorithms.parts.corrections import proximal


@dataclass(frozen=True)
class FedDynState(GlobalModel):
    """The model that is sent, the one that is evaluated, and the memory of all clients' moves.

    Attributes:
        model: theta, which clients start from (the code's cloud model).
        average: mean of the networks that the last round's clients sent.
        moves: the mean of h_i over all clients, one tensor for each trainable parameter; -h / alpha in the paper.
        clients: N, all clients of the federation, asked or not.
        examples: mean number of examples of a client; 0 before it is known, and where it is not needed.
    """

    average: dict[str, Tensor]
    moves: dict[str, Tensor]
    clients: int
    examples: float = 0.0


class FedDyn(Averaging[FedDynState]):
    """Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, arXiv 2111.04263.

    Client i minimises f_i(w) - <g_i, w> + (alpha / 2) ||w - theta||^2 from w = theta, to theta_i, and then
    g_i <- g_i - alpha (theta_i - theta), from g_i = 0 (algorithm 1). With h_i = -g_i / alpha the two added terms are,
    up to a constant, (alpha / 2) ||w - (theta - h_i)||^2: FedProx around a point that moves. So h_i is what a client
    remembers, h_i <- h_i + (theta_i - theta). The server sets theta to the mean of the theta_i that came back plus the
    mean of h_i over ALL clients, whether they were asked or not.

    How a client minimises is its own affair: the two terms enter the gradients of whatever optimiser there is, at any
    rate, and g_i is made of where it ended, not of steps. (The code takes SGD, with the quadratic as weight decay.)

    Evaluated is the mean of the theta_i of the last round; `evaluated: sent` evaluates theta itself, whose norm can be
    large. Bound the clients' gradients (the code clips their norm at 10). What `clients.clip` bounds is the gradient of
    all three terms, alpha (w - theta + h_i) included; the code clips that of f_i and alpha (h_i - theta), and adds
    alpha w afterwards, as weight decay, unbounded. Without a clip the two are one. Buffers are averaged.

    `scale: released` is the authors' code: alpha_i = alpha / w_i, w_i = n_i / mean n, for which all clients are asked
    for their number of examples before the first round. Its server averages uniformly all the same, as here.

    Travels, per client and round: a state dict each way; under `scale: released` 8 bytes more down, and 8 up once.
    """

    paper = "Acar et al. 2021, arXiv 2111.04263"
    State = FedDynState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        alpha: float = setting(0.01, "weight of the regularisation", gt=0)
        scale: Literal["paper", "released"] = setting(
            "paper", "paper: alpha for every client; released: less for clients with more examples, as in the code"
        )
        evaluated: Literal["average", "sent"] = setting(
            "average", "predictor: the mean of the clients' networks, or the model that is sent to them"
        )
        weights: Literal["examples", "uniform"] = setting(
            "uniform", "a client's share in the mean of theta_i: the same for all, or by its number of examples"
        )

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        common = super().needs(config, task, clients, work, counts)
        if config.scale == "paper":
            return common
        counted = common.up.get("examples", Volume(NUMBER_BYTES, once=True))
        return common.adding(up={"examples": counted}, down={"examples": ONE_NUMBER})

    def start(self, clients: Sequence[ClientSpec]) -> FedDynState:
        net, model = self.initial_model(clients)
        moves = combine(torch.zeros_like, self.trainable(net, model))
        return FedDynState(net, model, average=model, moves=moves, clients=len(clients))

    def predictor(self, state: FedDynState) -> nn.Module:
        shown = state.average if self.config.evaluated == "average" else state.model
        return super().predictor(replace(state, model=shown))

    def round(self, state: FedDynState, plan: Plan, cohort: Cohort) -> tuple[FedDynState, dict[str, float]]:
        if self.config.scale == "released" and state.examples == 0:
            state = replace(state, examples=self._mean_examples(state, cohort))
        means = cohort.means(self.train, self.terms, self._message(state))
        if means["uniform"].weight == 0:
            return state, {}
        return self._next_state(state, means["weights"].result(state.model), means["uniform"]), {}

    def terms(self, update: Update) -> Terms:
        """The trained networks, weighted as configured and all alike."""
        return {**super().terms(update), "uniform": (update.payload.tensors("weights"), 1.0)}

    def _next_state(self, state: FedDynState, average: dict[str, Tensor], weights: WeightedMean) -> FedDynState:
        """The state after a round in which somebody answered."""
        answered = weights.weight / state.clients
        theta, mean = only(state.model, state.moves), only(weights.result(state.model), state.moves)
        moves = combine(lambda h, new, old: h + answered * (new - old), state.moves, mean, theta)
        model = {**average, **combine(torch.add, only(average, moves), moves)}
        return replace(state, model=model, average=average, moves=moves)

    def _message(self, state: FedDynState) -> Payload:
        if self.config.scale == "released":
            return Payload.of(weights=state.model, examples={"mean": state.examples})
        return Payload.of(weights=state.model)

    def _mean_examples(self, state: FedDynState, cohort: Cohort) -> float:
        everyone = [ClientSpec(id, state.net) for id in range(state.clients)]
        counts = [update.payload.number("examples", "n") for update in cohort.ask(self.count, EMPTY, everyone)]
        return sum(counts) / max(len(counts), 1)

    @client_side
    def count(self, client: Client) -> Reply:
        """The client's number of examples."""
        return Reply(Payload.of(examples={"n": len(client.shard)}))

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training on the regularised objective; h_i gains what the parameters have moved."""
        net = self.received_network(client)
        theta = self.trainable(client.spec.net, client.received.tensors("weights"))
        h = memory_tensors("moves", client.memory) or combine(torch.zeros_like, theta)
        anchor = [value.to(self.kit.device) for value in combine(torch.sub, theta, h).values()]
        fitted = self.fit(client, net, correct=proximal(self._strength(client), anchor))
        trained = snapshot(net)
        h = combine(lambda old, after, before: old + (after - before), h, only(trained, theta), theta)
        return self.reply(client, fitted, memory=memory_part("moves", h), weights=trained)

    def _strength(self, client: Client) -> float:
        """alpha_i."""
        if self.config.scale == "paper":
            return self.config.alpha
        return self.config.alpha * client.received.number("examples", "mean") / len(client.shard)
