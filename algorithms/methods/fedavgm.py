"""FedAvgM: momentum on the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from algorithms.core.contract import ClientSpec, Cohort, Plan
from algorithms.core.payload import Payload
from algorithms.core.settings import setting
from algorithms.core.states import combine, only
from algorithms.parts.averaging import Averaging, GlobalModel
from algorithms.parts.server_optimisers import momentum_step


@dataclass(frozen=True)
class FedAvgMState(GlobalModel):
    """The global model and the server's momentum.

    Attributes:
        velocity: v, one tensor for each trainable parameter.
    """

    velocity: dict[str, Tensor]


class FedAvgM(Averaging[FedAvgMState]):
    """Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", arXiv
    1909.06335.

    Clients train as in FedAvg. With Delta = sum_k p_k theta_k - theta, the server sets v <- beta v + Delta and
    theta <- theta + eta v (eta is 1 in the paper). Buffers are averaged. A round without examples changes nothing.

    Travels: as in FedAvg.
    """

    paper = "Hsu et al. 2019, arXiv 1909.06335"
    State = FedAvgMState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        server_momentum: float = setting(0.9, "beta; 0 with server_lr 1 is FedAvg", ge=0, lt=1)
        server_lr: float = setting(1.0, "eta, the server's step", gt=0)

    config: Config

    def start(self, clients: Sequence[ClientSpec]) -> FedAvgMState:
        net, model = self.initial_model(clients)
        return FedAvgMState(net, model, velocity=combine(torch.zeros_like, self.trainable(net, model)))

    def round(self, state: FedAvgMState, plan: Plan, cohort: Cohort) -> tuple[FedAvgMState, dict[str, float]]:
        mean = self.mean(cohort, Payload.of(weights=state.model))
        if mean.weight == 0:
            return state, {}
        averaged = mean.result(otherwise=state.model)
        theta, velocity = momentum_step(
            only(state.model, state.velocity),
            averaged,
            state.velocity,
            lr=self.config.server_lr,
            momentum=self.config.server_momentum,
        )
        return replace(state, model={**averaged, **theta}, velocity=velocity), {}
