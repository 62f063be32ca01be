"""FedRS: restricted softmax for missing classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from algorithms.core.contract import Client, Reply, client_side
from algorithms.core.settings import setting
from algorithms.core.states import snapshot
from algorithms.core.training import OutputsObjective
from algorithms.methods.fedavg import FedAvg


class FedRS(FedAvg):
    """Li and Zhan, "FedRS: Federated Learning with Restricted Softmax for Label Distribution Non-IID Data", KDD 2021,
    doi 10.1145/3447548.3467254.

    While client k trains, the logit of class c is multiplied by s_c: 1 for a class it holds, alpha for a missing one.
    The row of a missing class then moves by alpha p_c h, h the features, in the place of p_c h. The whole logit is
    scaled, with its bias. Evaluation uses plain logits. The classes are those of the client, not of a batch.

    `scale: released` is the rule of the authors' code (lxcnju/FedRepo): s_c = alpha + (1 - alpha) n_k^c / max_j n_k^j,
    which also weakens classes that are present and rare.

    A logit below 0 rises when it is multiplied by alpha < 1: a known property of the method.

    Travels: as in FedAvg; the counts stay with the client.
    """

    paper = "Li and Zhan 2021, doi 10.1145/3447548.3467254"

    @dataclass(frozen=True, kw_only=True)
    class Config(FedAvg.Config):
        alpha: float = setting(0.5, "factor of a missing class's logit while training; 1 is FedAvg", ge=0, le=1)
        scale: Literal["paper", "released"] = setting(
            "paper", "paper: 1 or alpha; released: between them, by the class's examples, as in the authors' code"
        )
        missing: int = setting(0, "a class with at most so many examples is missing, in the paper's rule", ge=0)

    task_traits = frozenset({"classes"})
    config: Config

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training on the cross-entropy of scaled logits."""
        net = self.received_network(client)
        factors = self.factors(client.shard.label_counts(self.kit.task.classes)).to(self.kit.device)

        def restricted_loss(logits: Tensor, labels: Tensor) -> Tensor:
            return self.kit.loss(factors * logits, labels)

        fitted = self.fit(client, net, objective=OutputsObjective(restricted_loss))
        return self.reply(client, fitted, weights=snapshot(net))

    def factors(self, counts: Tensor) -> Tensor:
        """s_c in [alpha, 1], float32 (C,), of the numbers of examples int64 (C,), of which one at least is positive."""
        if self.config.scale == "released":
            # In this order of operations the largest class has 1 to the bit.
            return 1 - (1 - self.config.alpha) * (1 - counts.float() / counts.max())
        return torch.where(counts > self.config.missing, 1.0, self.config.alpha)
