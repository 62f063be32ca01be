"""A method whose clients do nothing, for what remains when no work is done: the cost of asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.contract import Client, Cohort, Method, Plan, Reply, Terms, Update, client_side
from algorithms.core.payload import Payload
from algorithms.core.settings import setting


@dataclass(frozen=True)
class Sum:
    """Bytes of the first element of every update that came back."""

    answers: int


class Idle(Method[Sum]):
    """Every client receives a tensor and sends one of the same size."""

    paper = "none"
    State = Sum

    @dataclass(frozen=True, kw_only=True)
    class Config(settings.Config):
        bytes: int = setting(4, "of the tensor that travels, in each direction", ge=4)

    config: Config

    def start(self, clients: Any) -> Sum:
        return Sum(0)

    def round(self, state: Sum, plan: Plan, cohort: Cohort) -> tuple[Sum, dict[str, float]]:
        message = Payload.of(weights={"w": torch.zeros(self.config.bytes // 4)})
        answers = sum(1 for _ in cohort.ask(self.nothing, message))
        return Sum(state.answers + answers), {}

    @client_side
    def nothing(self, client: Client) -> Reply:
        """Send back what was received."""
        received: dict[str, Tensor] = client.received.tensors("weights")
        return Reply(Payload.of(weights=received))

    def predictor(self, state: Sum) -> nn.Module:
        return nn.Identity()


class Mean(Idle):
    """The server takes the mean of what comes back, as methods that average do."""

    def round(self, state: Sum, plan: Plan, cohort: Cohort) -> tuple[Sum, dict[str, float]]:
        message = Payload.of(weights={"w": torch.zeros(self.config.bytes // 4)})
        mean = cohort.means(self.nothing, self.terms, message)["weights"]
        return Sum(state.answers + mean.result(otherwise={})["w"].numel()), {}

    def terms(self, update: Update) -> Terms:
        """The terms of the mean: every update alike."""
        return {"weights": (update.payload.tensors("weights"), 1.0)}
