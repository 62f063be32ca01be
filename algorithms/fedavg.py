"""FedAvg: federated averaging."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.contract import (
    Client,
    ClientSpec,
    Cohort,
    Kinds,
    Method,
    Plan,
    Reply,
    Update,
    client_side,
    net_mixture,
)
from algorithms.core.payload import Payload
from algorithms.core.settings import setting
from algorithms.core.states import snapshot, weighted_mean
from algorithms.core.task import ImageTask
from algorithms.core.training import Correction, Fit, Objective, Work, fit
from algorithms.nets import Classifier


@dataclass(frozen=True)
class FedAvgState:
    """The global model.

    Attributes:
        net: name of the network.
        model: every entry of its state dict, batch normalisation's statistics included.
    """

    net: str
    model: dict[str, Tensor]


class FedAvg(Method[FedAvgState]):
    """McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv 1602.05629.

    Each round, every client k asked takes the global weights theta, trains them on its n_k examples to theta_k, and
    theta becomes sum_k n_k theta_k / sum_k n_k (algorithm 1). Weights and floating-point buffers are averaged alike;
    integer counters take the maximum.

    Travels, per client and round: one state dict down; one up with n_k (8 bytes).
    """

    paper = "McMahan et al. 2017, arXiv 1602.05629"
    State = FedAvgState

    @dataclass(frozen=True, kw_only=True)
    class Config(settings.Config):
        weights: Literal["examples", "uniform"] = setting(
            "examples", "a client's share in the average: by its number of examples, or the same for all"
        )

    config: Config

    @classmethod
    def kinds(cls, config: Any) -> Kinds:
        return Kinds(up=frozenset({"weights", "examples"}), down=frozenset({"weights"}))

    @classmethod
    def refuse(cls, config: Any, task: ImageTask, clients: Sequence[ClientSpec]) -> list[str]:
        return net_mixture(clients)

    def start(self, clients: Sequence[ClientSpec]) -> FedAvgState:
        return FedAvgState(net=clients[0].net, model=self.kit.initial(clients[0].net))

    def round(self, state: FedAvgState, plan: Plan, cohort: Cohort) -> tuple[FedAvgState, dict[str, float]]:
        updates = cohort.ask(self.train, Payload.of(weights=state.model))
        return replace(state, model=self.average(updates, state.model)), {}

    def average(self, updates: Iterator[Update], previous: dict[str, Tensor]) -> dict[str, Tensor]:
        """sum_k p_k theta_k over the updates; the previous weights where there is none."""
        weigh = self.config.weights == "examples"
        return weighted_mean(
            ((u.payload.tensors("weights"), u.payload.number("examples", "n") if weigh else 1.0) for u in updates),
            otherwise=previous,
        )

    @client_side
    def train(self, client: Client) -> Reply:
        """Local SGD from the received weights on the client's own examples."""
        net, fitted = self.train_received(client, self.kit.work)
        return Reply(
            payload=Payload.of(weights=snapshot(net), examples={"n": len(client.shard)}),
            memory={"position": fitted.position},
            metrics={"loss": fitted.loss, "steps": fitted.steps},
        )

    def train_received(
        self, client: Client, work: Work, objective: Objective | None = None, correct: Correction | None = None
    ) -> tuple[Classifier, Fit]:
        """The client's network trained from the received weights, and what training did."""
        net = self.kit.network(client.spec.net)
        net.load_state_dict(client.received.tensors("weights"))
        position = int(client.memory.get("position", 0))
        fitted = fit(
            net, self.kit.task, client.shard, work, client.seed, position=position, objective=objective, correct=correct
        )
        return net, fitted

    def predictor(self, state: FedAvgState) -> nn.Module:
        net = self.kit.network(state.net)
        net.load_state_dict(state.model)
        return net.eval()
