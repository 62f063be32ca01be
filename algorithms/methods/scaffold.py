"""SCAFFOLD: control variates against client drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, Terms, Update, client_side
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.payload import Payload, Tensors, memory_part, memory_tensors
from algorithms.core.settings import setting
from algorithms.core.states import WeightedMean, clip_norm, combine, only, snapshot, trainable_bytes
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.parts.averaging import Averaging, GlobalModel
from algorithms.parts.corrections import constant


@dataclass(frozen=True)
class ScaffoldState(GlobalModel):
    """The global model and its control.

    Attributes:
        control: c, one tensor for each trainable parameter.
        clients: N, all clients of the federation, asked or not.
    """

    control: dict[str, Tensor]
    clients: int


class Scaffold(Averaging[ScaffoldState]):
    """Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", arXiv 1910.06378.

    Algorithm 1 with option II. Client i takes tau steps y <- y - eta_l (g(y) - c_i + c) from y = x, sets
    c_i+ = c_i - c + (x - y) / (tau eta_l), which is the mean of the gradients g, and sends y and c_i+ - c_i. Then
    x <- x + eta_g mean(y - x) and c <- c + (1 / N) sum (c_i+ - c_i), N counting every client. Controls start at 0 and
    belong to trainable parameters alone; buffers are averaged. eta_l is the rate of the round.

    c_i+ is a mean of gradients under plain SGD only, so momentum and other optimisers are refused. Weight decay is a
    part of f_i. Where the gradient is clipped, its sum with c - c_i is. With few of many clients in a round controls
    grow stale; then `control_clip` bounds them.

    Travels, per client and round: state dict and control down; the same up.
    """

    paper = "Karimireddy et al. 2020, arXiv 1910.06378"
    State = ScaffoldState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        weights: Literal["examples", "uniform"] = setting(
            "uniform", "a client's share in the mean of y - x: the same for all, or by its number of examples"
        )
        server_lr: float = setting(1.0, "eta_g, the server's step along the mean change", gt=0)
        control_clip: float | None = setting(None, "largest 2-norm of a client's control; null for any", gt=0)

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        control = Volume(mean_bytes(task, clients, trainable_bytes))
        return (
            super()
            .needs(config, task, clients, work, counts)
            .adding(up={"control": control}, down={"control": control}, refusals=_refusals(work))
        )

    def start(self, clients: Sequence[ClientSpec]) -> ScaffoldState:
        net, model = self.initial_model(clients)
        control = combine(torch.zeros_like, self.trainable(net, model))
        return ScaffoldState(net, model, control, clients=len(clients))

    def round(self, state: ScaffoldState, plan: Plan, cohort: Cohort) -> tuple[ScaffoldState, dict[str, float]]:
        means = cohort.means(self.train, self.terms, Payload.of(weights=state.model, control=state.control))
        model, control = self._next_model(state, means["weights"]), _next_control(state, means["control"])
        return replace(state, model=model, control=control), {}

    def terms(self, update: Update) -> Terms:
        """The trained networks, and every change of a c_i alike."""
        return {**super().terms(update), "control": (update.payload.tensors("control"), 1.0)}

    def _next_model(self, state: ScaffoldState, weights: WeightedMean) -> dict[str, Tensor]:
        """x + eta_g mean(y - x); the mean itself for buffers, and for eta_g = 1 to the bit."""
        mean = weights.result(otherwise=state.model)
        x, y = (only(whole, state.control) for whole in (state.model, mean))
        return {**mean, **combine(lambda a, b: a.lerp(b, self.config.server_lr), x, y)}

    @client_side
    def train(self, client: Client) -> Reply:
        """Local SGD with gradients corrected by c - c_i; the trained network, and the change of c_i."""
        net = self.received_network(client)
        c = client.received.tensors("control")
        own = memory_tensors("control", client.memory) or combine(torch.zeros_like, c)
        drift = combine(torch.sub, c, own)
        fitted = self.fit(client, net, correct=constant([value.to(self.kit.device) for value in drift.values()]))
        trained = snapshot(net)
        moved = combine(torch.sub, only(client.received.tensors("weights"), c), only(trained, c))
        new = self._next_own_control(own, drift, moved, fitted.steps * self.kit.work.at(client.seed.round).lr)
        change = combine(torch.sub, new, own)
        return self.reply(client, fitted, memory=memory_part("control", new), weights=trained, control=change)

    def _next_own_control(self, own: Tensors, drift: Tensors, moved: Tensors, length: float) -> dict[str, Tensor]:
        """c_i+, of c_i, c - c_i, x - y and tau eta_l: option II; c_i where the client took no step."""
        if length == 0:
            return dict(own)
        scale = 1 / length
        new = combine(lambda d, m: m * scale - d, drift, moved)
        return new if self.config.control_clip is None else clip_norm(new, self.config.control_clip)


def _refusals(work: Work) -> list[str]:
    if work.optimiser != "sgd":
        return [f"needs plain SGD, but the clients' optimiser is {work.optimiser}"]
    return [f"needs plain SGD, but the clients' momentum is {work.momentum:g}"] if work.momentum else []


def _next_control(state: ScaffoldState, changes: WeightedMean) -> dict[str, Tensor]:
    """c + (1 / N) sum (c_i+ - c_i) over the clients that answered."""
    answered = changes.weight / state.clients
    mean = changes.result(otherwise=combine(torch.zeros_like, state.control))
    return combine(lambda c, change: c + answered * change, state.control, mean)
