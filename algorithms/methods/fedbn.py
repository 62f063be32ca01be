"""FedBN: batch normalisation stays with its client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Reply, client_side
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.payload import Payload, memory_part, memory_tensors
from algorithms.core.settings import setting
from algorithms.core.states import norm_entries, only, snapshot, tensor_bytes, without
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.methods.fedavg import FedAvg, FedAvgState
from algorithms.parts.calibration import measure_norm


class FedBN(FedAvg):
    """Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", arXiv 2102.07623.

    A network's entries are B, all those of its batch normalisation modules (found by type: weights, biases, running
    statistics, counters), and A, the rest. Client k trains (A, B_k) and sends A alone; the server averages A
    (uniformly, as the authors do). B_k is the client's memory, and starts from the common initial weights.

    No B ever reaches the server, so it has no network to evaluate: the method is personal, and client k predicts with
    (A, B_k). A client that has not trained yet has no B_k: it measures the statistics on its own training examples, and
    keeps weights 1 and biases 0. Under label skew alone expect less than FedAvg.

    Travels, per client and round: A each way.
    """

    paper = "Li et al. 2021, arXiv 2102.07623"
    personal = True

    @dataclass(frozen=True, kw_only=True)
    class Config(FedAvg.Config):
        weights: Literal["examples", "uniform"] = setting(
            "uniform", "a client's share in the average of A: the same for all, or by its number of examples"
        )

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        shared = Volume(
            mean_bytes(task, clients, lambda net: tensor_bytes(without(net.state_dict(), norm_entries(net))))
        )
        common = super().needs(config, task, clients, work, counts)
        return common.adding(up={"weights": shared}, down={"weights": shared})

    def start(self, clients: Sequence[ClientSpec]) -> FedAvgState:
        state = super().start(clients)
        return replace(state, model=without(state.model, norm_entries(self.kit.network(state.net))))

    def received_network(self, client: Client) -> nn.Module:
        """The client's network of the received A and its own B."""
        net = self.kit.network(client.spec.net)
        net.load_state_dict({**client.received.tensors("weights"), **self._own(client, net)})
        return net

    def _own(self, client: Client, net: nn.Module) -> dict[str, Tensor]:
        """B_k."""
        own = memory_tensors("norm", client.memory)
        return own or only(self.kit.initial(client.spec.net), sorted(norm_entries(net)))

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training of (A, B_k); A for the server, B_k for the client's next round."""
        net = self.received_network(client)
        fitted = self.fit(client, net)
        own, state = norm_entries(net), snapshot(net)
        return self.reply(
            client, fitted, memory=memory_part("norm", only(state, sorted(own))), weights=without(state, own)
        )

    def predictor(self, state: FedAvgState) -> nn.Module:
        raise NotImplementedError(
            "FedBN's server has no batch normalisation, so no network: ask evaluate_own of clients"
        )

    def own_message(self, state: FedAvgState) -> Payload:
        return Payload.of(weights=state.model)

    def own_predictor(self, client: Client) -> nn.Module:
        net = self.received_network(client)
        if norm_entries(net) and not memory_tensors("norm", client.memory):
            measure_norm(net, self.kit.task, client.shard, self.kit.work.batch, client.seed, self.kit.device)
        return net.eval()
