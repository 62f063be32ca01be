"""FFA-LoRA: low-rank adapters of which one factor stays at its random start, so that averages are exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Reply, client_side
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.settings import setting
from algorithms.core.states import snapshot, tensor_bytes
from algorithms.core.task import Task
from algorithms.core.training import Objective, Work
from algorithms.methods.fedavg import FedAvg, FedAvgState
from algorithms.nets.interventions import orthonormal_rows
from algorithms.parts.low_rank import A, B, entries, learning_only
from algorithms.parts.private_gradients import private_objective


class FFALoRA(FedAvg):
    """Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313.

    As FedIT, but A stays at its random start A0, the same for all clients, and B, which starts at 0, alone is trained
    and sent:

        B <- sum_k p_k B_k,    so that    sum_k p_k (B_k A0) = (sum_k p_k B_k) A0:

    the mean of the products is the product of the means. A0 follows from the run's seed and is never sent.

    `privacy_clip` C and `privacy_noise` sigma make each step one of DP-SGD: every example's gradient of B is clipped to
    the norm C, and N(0, sigma^2 C^2) is added to their sum. Noise xi on B is noise s xi A0 on the weight, linear in xi,
    where in FedIT it is multiplied by noise. What epsilon this makes is not told.

    alpha is the choice of a rate and no more: alpha times q with a rate of SGD over q^2 gives the same s B A0.

    Travels, per client and round: B each way, r d_out numbers of 4 bytes a matrix; n_k up.
    """

    paper = "Sun et al. 2024, arXiv 2403.12313"
    task_traits = frozenset({"adapters"})

    @dataclass(frozen=True, kw_only=True)
    class Config(FedAvg.Config):
        init: Literal["uniform", "orthogonal"] = setting(
            "uniform", "A0 as adapters start elsewhere, or with orthonormal rows"
        )
        privacy_clip: float | None = setting(
            None, "largest norm of an example's gradient; null: gradients as they are", gt=0
        )
        privacy_noise: float = setting(
            0.0, "standard deviation of the noise on the sum of a batch's gradients, as a factor of privacy_clip", ge=0
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.privacy_noise and self.privacy_clip is None:
                raise ValueError(
                    f"privacy_noise = {self.privacy_noise:g} is a factor of privacy_clip, which is not set"
                )

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        trained = Volume(mean_bytes(task, clients, lambda net: tensor_bytes(entries(net.state_dict(), B))))
        common = super().needs(config, task, clients, work, counts)
        in_pieces = config.privacy_clip is not None and work.micro_batch is not None
        refusals = ("adds noise once for a batch (privacy_clip): leave clients.micro_batch out",) if in_pieces else ()
        return common.adding(up={"weights": trained}, down={"weights": trained}, refusals=refusals)

    def start(self, clients: Sequence[ClientSpec]) -> FedAvgState:
        state = super().start(clients)
        return replace(state, model=entries(state.model, B))

    def fixed_factors(self, net: str) -> dict[str, Tensor]:
        """A0 of every matrix, which all parties make from the run's seed."""
        usual = entries(self.kit.initial(net), A)
        if self.config.init == "uniform":
            return usual
        return {name: orthonormal_rows(a) for name, a in usual.items()}

    def predictor(self, state: FedAvgState) -> nn.Module:
        return super().predictor(replace(state, model={**self.fixed_factors(state.net), **state.model}))

    def received_network(self, client: Client) -> nn.Module:
        """The client's network of A0 and the received B."""
        net = self.kit.network(client.spec.net)
        net.load_state_dict({**self.fixed_factors(client.spec.net), **client.received.tensors("weights")})
        return net

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training of B."""
        net = self.received_network(client)
        with learning_only(net, B):
            fitted = self.fit(client, net, objective=self._objective(client))
        return self.reply(client, fitted, weights=entries(snapshot(net), B))

    def _objective(self, client: Client) -> Objective | None:
        if self.config.privacy_clip is None:
            return None
        return private_objective(
            self.kit.task,
            self.config.privacy_clip,
            self.config.privacy_noise,
            client.seed.torch("privacy noise"),
            is_lone=min(self.kit.work.batch, len(client.shard)) == 1,
        )
