"""FedProx: local training that stays near the global model."""

from __future__ import annotations

from dataclasses import dataclass

from algorithms.core.contract import Client, Reply, client_side
from algorithms.core.settings import setting
from algorithms.core.states import snapshot
from algorithms.methods.fedavg import FedAvg
from algorithms.parts.corrections import proximal


class FedProx(FedAvg):
    """Li et al., "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127.

    Client k minimises f_k(w) + (mu / 2) ||w - theta||^2 from w = theta (equation 2), by adding mu (w - theta) to the
    gradient of every trainable parameter; batch normalisation's statistics and counters are no part of it. Clients may
    take different numbers of steps. The server averages as FedAvg does; the paper's analysis, which draws clients by
    their number of examples, has `weights: uniform`.

    The term is added before the gradient is clipped, and enters the moments of Adam where clients have that. Weight
    decay pulls towards 0 beside it. The loss told is f_k.

    Travels: as in FedAvg.
    """

    paper = "Li et al. 2020, arXiv 1812.06127"

    @dataclass(frozen=True, kw_only=True)
    class Config(FedAvg.Config):
        mu: float = setting(0.01, "weight of the proximal term; 0 is FedAvg", ge=0)

    config: Config

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training on the proximal objective."""
        net = self.received_network(client)
        fitted = self.fit(client, net, correct=proximal(self.config.mu, self.received_parameters(client)))
        return self.reply(client, fitted, weights=snapshot(net))
