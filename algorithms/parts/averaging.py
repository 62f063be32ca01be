"""Base of methods that send a global model out and average what comes back: FedAvg and its kin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.contract import (
    Client,
    ClientSpec,
    Cohort,
    Method,
    Reply,
    Terms,
    Update,
    client_side,
)
from algorithms.core.needs import Needs, Stage, Volume
from algorithms.core.payload import NOTHING, NUMBER_BYTES, Memory, Payload, Value
from algorithms.core.settings import setting
from algorithms.core.states import WeightedMean, only, snapshot, trainable
from algorithms.core.task import Task
from algorithms.core.training import Correction, Fit, Objective, Work

ONE_NUMBER = Volume(NUMBER_BYTES)
"""A number from each client in every round."""

BEFORE_DISTILLATION = Stage("fedavg", "the global model before distillation")


@dataclass(frozen=True)
class GlobalModel:
    """The global model.

    Attributes:
        net: name of the network.
        model: every entry of its state dict, batch normalisation's statistics included.
    """

    net: str
    model: dict[str, Tensor]


ModelT = TypeVar("ModelT", bound=GlobalModel)


class Averaging(Method[ModelT]):
    """Base of FedAvg and its kin: the parts of a round on both sides, and the global model as predictor."""

    @dataclass(frozen=True, kw_only=True)
    class Config(settings.Config):
        weights: Literal["examples", "uniform"] = setting(
            "examples", "a client's share in the average: by its number of examples, or the same for all"
        )

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        common = super().needs(config, task, clients, work, counts)
        return common.adding(up={"examples": ONE_NUMBER}) if config.weights == "examples" else common

    def predictor(self, state: ModelT) -> nn.Module:
        net = self.kit.network(state.net)
        net.load_state_dict(state.model)
        return net.eval()

    def initial_model(self, clients: Sequence[ClientSpec]) -> tuple[str, dict[str, Tensor]]:
        """The clients' network, by name, and its initial weights."""
        return clients[0].net, self.kit.initial(clients[0].net)

    def trainable(self, net: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a state that an optimiser changes."""
        return only(state, trainable(self.kit.network(net)))

    def mean(self, cohort: Cohort, message: Payload, clients: Sequence[ClientSpec] | None = None) -> WeightedMean:
        """Ask clients to train, all of the round where None; sum_k p_k theta_k / sum_k p_k of what they send."""
        return cohort.means(self.train, self.terms, message, clients)["weights"]

    def terms(self, update: Update) -> Terms:
        """The parts of an update that enter the means of a round."""
        return {"weights": (update.payload.tensors("weights"), self.share(update))}

    def share(self, update: Update) -> float:
        """p_k, up to a factor that all clients have in common."""
        return update.payload.number("examples", "n") if self.config.weights == "examples" else 1.0

    # On the client's side

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training from the received weights on the client's own examples: what clients do by default."""
        net = self.received_network(client)
        fitted = self.fit(client, net)
        return self.reply(client, fitted, weights=snapshot(net))

    def received_network(self, client: Client) -> nn.Module:
        """The client's resident network with the received weights."""
        net = self.kit.network(client.spec.net)
        net.load_state_dict(client.received.tensors("weights"))
        return net

    def received_parameters(self, client: Client) -> list[Tensor]:
        """The received values of the trainable parameters, on the kit's device, in the order of a correction's."""
        received = self.trainable(client.spec.net, client.received.tensors("weights"))
        return [value.to(self.kit.device) for value in received.values()]

    def fit(
        self, client: Client, net: nn.Module, objective: Objective | None = None, correct: Correction | None = None
    ) -> Fit:
        """Train a network in place on the client's examples, going on in their order where its last round ended."""
        return self.kit.fit(
            net,
            self.kit.task,
            client.shard,
            self.kit.work,
            client.seed,
            position=int(client.memory.get("position", 0)),
            objective=objective,
            correct=correct,
        )

    def reply(self, client: Client, fitted: Fit, memory: Memory = NOTHING, **parts: Mapping[str, Value]) -> Reply:
        """These parts for the server, with n_k where its average is weighted by it; `memory` and the place in the order
        of examples for the next round."""
        counted = {"examples": {"n": len(client.shard)}} if self.config.weights == "examples" else {}
        return Reply(
            payload=Payload.of(**parts, **counted),
            memory={"position": fitted.position, **memory},
            metrics={"loss": fitted.loss, "steps": fitted.steps},
        )
