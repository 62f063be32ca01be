"""FedSA-LoRA: low-rank adapters of which one factor is averaged and the other stays with its client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Reply, client_side
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.payload import Payload, Tensors, memory_part, memory_tensors
from algorithms.core.settings import setting
from algorithms.core.states import snapshot, tensor_bytes, without
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.methods.fedavg import FedAvg, FedAvgState
from algorithms.parts.low_rank import B, entries


class FedSALoRA(FedAvg):
    """Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025, arXiv 2410.01463.

    Client k trains (A, B_k) from the received A and its own B_k, which starts at 0, and sends A alone; the server
    averages A, weighted by examples. What all clients have in common is thought to lie in A, what is a client's own in
    B.

    No B ever reaches the server, so the method is personal: client k predicts with (A, B_k), which for a client that
    has not trained yet is the frozen model. With `keeps: nothing` B is averaged too, which is FedIT, told by client.

    Travels, per client and round: A each way, r d_in numbers of 4 bytes a matrix; n_k up.
    """

    paper = "Guo et al. 2025, arXiv 2410.01463"
    task_traits = frozenset({"adapters"})
    personal = True

    @dataclass(frozen=True, kw_only=True)
    class Config(FedAvg.Config):
        keeps: Literal["B", "nothing"] = setting("B", "factor that stays with its client; nothing: both are averaged")

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        shared = Volume(mean_bytes(task, clients, lambda net: tensor_bytes(_shared_entries(config, net.state_dict()))))
        common = super().needs(config, task, clients, work, counts)
        return common.adding(up={"weights": shared}, down={"weights": shared})

    def start(self, clients: Sequence[ClientSpec]) -> FedAvgState:
        state = super().start(clients)
        return replace(state, model=_shared_entries(self.config, state.model))

    def received_network(self, client: Client) -> nn.Module:
        """The client's network of the received A and its own B."""
        net = self.kit.network(client.spec.net)
        start = {} if memory_tensors("own", client.memory) else self.kit.initial(client.spec.net)
        net.load_state_dict({**start, **memory_tensors("own", client.memory), **client.received.tensors("weights")})
        return net

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training of (A, B_k); A for the server, B_k for the client's next round."""
        net = self.received_network(client)
        fitted = self.fit(client, net)
        state = snapshot(net)
        shared = _shared_entries(self.config, state)
        return self.reply(client, fitted, memory=memory_part("own", without(state, shared)), weights=shared)

    def predictor(self, state: FedAvgState) -> nn.Module:
        raise NotImplementedError("FedSA-LoRA's server has no B, so no network: ask evaluate_own of clients")

    def own_message(self, state: FedAvgState) -> Payload:
        return Payload.of(weights=state.model)

    def own_predictor(self, client: Client) -> nn.Module:
        return self.received_network(client).eval()


def _shared_entries(config: FedSALoRA.Config, state: Tensors) -> dict[str, Tensor]:
    """The entries that are averaged."""
    return without(state, entries(state, B)) if config.keeps == "B" else dict(state)
