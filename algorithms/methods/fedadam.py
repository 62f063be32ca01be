"""FedAdam: Adam on the server."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from algorithms.core.settings import setting
from algorithms.methods.fedadagrad import FedAdagrad


class FedAdam(FedAdagrad):
    """Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2.

    FedAdagrad with v <- beta2 v + (1 - beta2) Delta^2, and no correction of the moments' bias.

    Travels: as in FedAvg.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(FedAdagrad.Config):
        server_lr: float = setting(0.01, "eta, the server's step", gt=0)
        beta1: float = setting(0.9, "decay of m", ge=0, lt=1)
        beta2: float = setting(0.99, "decay of v", ge=0, lt=1)

    config: Config

    def next_second(self, v: Tensor, square: Tensor) -> Tensor:
        """beta2 v + (1 - beta2) Delta^2."""
        return self.config.beta2 * v + (1 - self.config.beta2) * square
