"""FedAvg: federated averaging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from algorithms.core.contract import ClientSpec, Cohort, Plan
from algorithms.core.payload import Payload
from algorithms.parts.averaging import Averaging, GlobalModel


@dataclass(frozen=True)
class FedAvgState(GlobalModel):
    """The global model alone."""


class FedAvg(Averaging[FedAvgState]):
    """McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv 1602.05629.

    Each round, every client k asked takes the global weights theta, trains them on its n_k examples to theta_k, and
    theta becomes sum_k n_k theta_k / sum_k n_k (algorithm 1). Weights and floating-point buffers are averaged alike;
    integer counters take the maximum. A round without examples leaves theta as it was.

    The client's step is `Averaging.train`: tau_k mini-batch SGD steps on the cross-entropy.

    Travels, per client and round: one state dict down; one up with n_k (8 bytes).
    """

    paper = "McMahan et al. 2017, arXiv 1602.05629"
    State = FedAvgState

    def start(self, clients: Sequence[ClientSpec]) -> FedAvgState:
        return FedAvgState(*self.initial_model(clients))

    def round(self, state: FedAvgState, plan: Plan, cohort: Cohort) -> tuple[FedAvgState, dict[str, float]]:
        mean = self.mean(cohort, Payload.of(weights=state.model))
        return replace(state, model=mean.result(otherwise=state.model)), {}
