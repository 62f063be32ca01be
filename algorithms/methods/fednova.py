"""FedNova: normalised averaging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, Terms, Update, client_side
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.payload import Payload
from algorithms.core.settings import setting
from algorithms.core.states import combine, only, snapshot, state_bytes, trainable_bytes, without
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.parts.averaging import ONE_NUMBER, Averaging, GlobalModel
from algorithms.parts.corrections import proximal


@dataclass(frozen=True)
class FedNovaState(GlobalModel):
    """The global model and the server's momentum.

    Attributes:
        velocity: u, one tensor for each trainable parameter, as a change at the rate before any schedule.
    """

    velocity: dict[str, Tensor]


class FedNova(Averaging[FedNovaState]):
    """Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", arXiv
    2007.07481.

    Client i takes tau_i steps from x to y_i and sends the normalised direction d_i = (x - y_i) / |a_i|, a_i being the
    weights with which its gradients have entered x - y_i (in units of the learning rate), and |a_i| their sum. With
    p_i = n_i / sum n: x <- x - tau_eff sum_i p_i d_i, tau_eff = sum_i p_i |a_i|. So a client that takes more steps
    has no larger say in where the model goes. Local momentum and the proximal term of FedProx are allowed
    for in a_i, the latter at the round's rate; weight decay is a part of the local gradient. Of Adam's steps no a_i is
    known, so it is refused. Buffers are averaged by p_i. The server's momentum is of gradients, as in the released
    code: with s the schedule's factor in a round, u <- rho u + change / s and x <- x - s u.

    Travels, per client and round: state dict down; d_i, buffers, n_i and the client's term of tau_eff (8 bytes each)
    up.
    """

    paper = "Wang et al. 2020, arXiv 2007.07481"
    State = FedNovaState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        mu: float = setting(0.0, "weight of the clients' proximal term; 0 for none", ge=0)
        server_momentum: float = setting(0.0, "rho of u <- rho u + change, x <- x - u; 0 for none", ge=0, lt=1)
        effective_steps: Literal["paper", "released"] = setting(
            "paper", "tau_eff: paper: sum p_i |a_i|; released: sum p_i tau_i where mu is not 0"
        )

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        gradients = Volume(mean_bytes(task, clients, trainable_bytes))
        buffers = Volume(mean_bytes(task, clients, lambda net: state_bytes(net) - trainable_bytes(net)))
        return (
            super()
            .needs(config, task, clients, work, counts)
            .adding(up={"gradients": gradients, "weights": buffers, "steps": ONE_NUMBER}, refusals=_refusals(work))
        )

    def start(self, clients: Sequence[ClientSpec]) -> FedNovaState:
        net, model = self.initial_model(clients)
        return FedNovaState(net, model, velocity=combine(torch.zeros_like, self.trainable(net, model)))

    def round(self, state: FedNovaState, plan: Plan, cohort: Cohort) -> tuple[FedNovaState, dict[str, float]]:
        means = cohort.means(self.train, self.terms, Payload.of(weights=state.model))
        if means["gradients"].weight == 0:
            return state, {}
        effective = float(means["steps"].result({})["effective"])
        momentum, direction = self.config.server_momentum, means["gradients"].result({})
        factor = self.kit.work.schedule.at(plan.round)
        velocity = combine(lambda u, d: momentum * u + effective * d / factor, state.velocity, direction)
        moved = combine(lambda x, u: x - factor * u, only(state.model, velocity), velocity)
        model = {**state.model, **means["weights"].result({}), **moved}
        return replace(state, model=model, velocity=velocity), {"effective steps": effective}

    def terms(self, update: Update) -> Terms:
        """Directions, buffers and effective steps, weighted alike."""
        share = self.share(update)
        steps = torch.tensor(update.payload.number("steps", "effective"), dtype=torch.float64)
        gradients, buffers = (update.payload.tensors(kind) for kind in ("gradients", "weights"))
        return {"gradients": (gradients, share), "weights": (buffers, share), "steps": ({"effective": steps}, share)}

    @client_side
    def train(self, client: Client) -> Reply:
        """Local SGD; the change of the trainable parameters, normalised, and the buffers as they are."""
        net = self.received_network(client)
        fitted = self.fit(client, net, correct=proximal(self.config.mu, self.received_parameters(client)))
        trained = snapshot(net)
        x = self.trainable(client.spec.net, client.received.tensors("weights"))
        work = self.kit.work.at(client.seed.round)
        total = normaliser(fitted.steps, work.momentum, work.lr * self.config.mu)
        direction = combine(lambda before, after: (before - after) / (total or 1.0), x, only(trained, x))
        counts_steps = self.config.effective_steps == "released" and self.config.mu > 0
        effective = {"effective": float(fitted.steps) if counts_steps else total}
        return self.reply(client, fitted, gradients=direction, weights=without(trained, x), steps=effective)


def _refusals(work: Work) -> list[str]:
    if work.optimiser == "sgd":
        return []
    return [f"weighs steps of SGD, but the clients' optimiser is {work.optimiser}"]


def normaliser(steps: int, momentum: float, pull: float) -> float:
    """|a|: what `steps` gradients of 1 add up to in (x - y) / learning rate.

    One recursion for all of these solvers. Without `pull`, in closed form,
    (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho); without momentum as well, tau.

    Args:
        steps: tau, at least 0.
        momentum: rho, of torch's SGD.
        pull: learning rate times mu, by which the proximal term shrinks the change at each step.
    """
    velocity = change = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1 - pull * change
        change += velocity
    return change
