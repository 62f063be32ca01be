"""FedSD: federated self-distillation, learning on answers that the model has put into its own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side
from algorithms.core.payload import Payload
from algorithms.core.states import snapshot
from algorithms.parts.averaging import GlobalModel
from algorithms.parts.rewriting import Rewriting


@dataclass(frozen=True)
class FedSDState(GlobalModel):
    """The global adapters.

    Attributes:
        rewritten: the round in which each client last rewrote its answers, by its number.
    """

    rewritten: dict[int, int] = field(default_factory=dict)


class FedSD(Rewriting[FedSDState]):
    """Ren et al., "FedSDR: Federated Self-Distillation with Rectification", arXiv 2605.18028, without rectification.

    Client k rewrites its answers y to y~ once (`Rewriting`), then trains the adapters Theta that it receives on

        L_k(Theta) = (1 / n_k) sum_i NLL_Theta(y~_i | c_i, x_i),

    and the server averages as FedAvg does. All is judged on answers as clients gave them. The prompt, the decoding and
    the check of rewrites are not public: they are choices of this project, after Yang et al., arXiv 2402.13669.

    Travels: as in FedIT; nothing for the rewriting but n_k.
    """

    paper = "Ren et al. 2026, arXiv 2605.18028"
    task_traits = frozenset({"adapters"})
    State = FedSDState

    def start(self, clients: Sequence[ClientSpec]) -> FedSDState:
        return FedSDState(*self.initial_model(clients))

    def round(self, state: FedSDState, plan: Plan, cohort: Cohort) -> tuple[FedSDState, dict[str, float]]:
        rewritten = self.ask_for_rewrites(state.rewritten, state.model, plan, cohort)
        mean = self.mean(cohort, Payload.of(weights=state.model), self.ready(plan, rewritten))
        return replace(state, model=mean.result(otherwise=state.model), rewritten=rewritten), {}

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training on the rewritten answers."""
        net = self.received_network(client)
        fitted = self.fit(replace(client, shard=self.rewritten_shard(client)), net)
        return self.reply(client, fitted, memory=self.remember(client), weights=snapshot(net))
