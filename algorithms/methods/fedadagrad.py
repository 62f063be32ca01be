"""FedAdagrad: Adagrad on the server."""

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
from algorithms.parts.server_optimisers import adaptive_step


@dataclass(frozen=True)
class FedAdagradState(GlobalModel):
    """The global model and the moments of its changes.

    Attributes:
        first: m, one tensor for each trainable parameter.
        second: v, likewise; starts at tau^2.
    """

    first: dict[str, Tensor]
    second: dict[str, Tensor]


class FedAdagrad(Averaging[FedAdagradState]):
    """Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2.

    Clients train as in FedAvg. With Delta = sum_k p_k theta_k - theta, the server sets
    m <- beta1 m + (1 - beta1) Delta, v <- v + Delta^2, and theta <- theta + eta m / (sqrt(v) + tau). FedYogi and
    FedAdam differ in v alone. Buffers are averaged. A round without examples changes nothing.

    Travels: as in FedAvg.
    """

    paper = "Reddi et al. 2021, arXiv 2003.00295"
    State = FedAdagradState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        server_lr: float = setting(0.1, "eta, the server's step", gt=0)
        beta1: float = setting(0.0, "decay of m", ge=0, lt=1)
        tau: float = setting(1e-3, "adaptivity: the smaller, the more the step's size is the same for all", gt=0)

    config: Config

    def start(self, clients: Sequence[ClientSpec]) -> FedAdagradState:
        net, model = self.initial_model(clients)
        first = combine(torch.zeros_like, self.trainable(net, model))
        second = combine(lambda value: torch.full_like(value, self.config.tau**2), first)
        return FedAdagradState(net, model, first, second)

    def round(self, state: FedAdagradState, plan: Plan, cohort: Cohort) -> tuple[FedAdagradState, dict[str, float]]:
        mean = self.mean(cohort, Payload.of(weights=state.model))
        if mean.weight == 0:
            return state, {}
        averaged = mean.result(otherwise=state.model)
        theta, first, second = adaptive_step(
            only(state.model, state.first),
            averaged,
            state.first,
            state.second,
            next_second=self.next_second,
            lr=self.config.server_lr,
            beta1=self.config.beta1,
            tau=self.config.tau,
        )
        return replace(state, model={**averaged, **theta}, first=first, second=second), {}

    def next_second(self, v: Tensor, square: Tensor) -> Tensor:
        """v + Delta^2."""
        return v + square
