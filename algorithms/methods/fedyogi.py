"""FedYogi: Yogi on the server."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms.methods.fedadam import FedAdam


class FedYogi(FedAdam):
    """Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, algorithm 2.

    FedAdam with v <- v - (1 - beta2) Delta^2 sign(v - Delta^2): v follows Delta^2 additively, so that it forgets
    large changes slowly.

    Travels: as in FedAvg.
    """

    def next_second(self, v: Tensor, square: Tensor) -> Tensor:
        """v - (1 - beta2) Delta^2 sign(v - Delta^2)."""
        return v - (1 - self.config.beta2) * square * torch.sign(v - square)
