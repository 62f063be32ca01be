"""FedDAT: a shared adapter and one that stays with its client, each of which teaches the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.contract import Client, Reply, client_side
from algorithms.core.payload import Payload, Tensors, memory_part, memory_tensors
from algorithms.core.seeds import torch_seeded
from algorithms.core.settings import setting
from algorithms.core.states import snapshot
from algorithms.core.training import Objective
from algorithms.methods.fedavg import FedAvg, FedAvgState
from algorithms.nets.adapters import AdaptedModel, Branch, freeze
from algorithms.nets.forms import Inputs
from algorithms.tasks._next_token import NO_TARGET

Prediction: TypeAlias = Literal["gated", "local", "shared"]


class FedDAT(FedAvg):
    """Chen et al., "FedDAT: An Approach for Foundation Model Finetuning in Multi-Modal Heterogeneous Federated
    Learning", AAAI 2024, arXiv 2308.12305. Here it is for texts alone.

    There are three adapters: a_0 of the client, which is its memory; a_1, which is averaged; and a_2, a frozen copy of
    a_1 as it was received. With u_i the change that a_i makes to an adapted matrix's output, s B_i A_i h,

        shared: h_out = W0 h + u_1,    gated: h_out = W0 h + u_0 / 2 + u_2 / 2,

    with logits z_1 and z_0. In each batch a_1 and a_0 take a step on

        L_1 = (CE(z_1, y) + KL_T(z_1 || stopgrad z_0)) / 2,
        L_0 = (CE(z_0, y) + KL_T(z_0 || stopgrad z_1)) / 2,
        KL_T(z || t) = T^2 mean KL(softmax(t / T) || softmax(z / T)),

    CE and the mean over the tokens that are learnt. Both are had of the same weights, so that one pass through each
    mode serves both, and one step of the optimiser is that of both; `clients.clip` bounds both gradients together.

    The method is personal: a client predicts in the gated mode, with the a_2 of its last round as in the authors' code,
    or with a_0 or a_1 alone. A client that never trained has a_1 alone.

    The paper's adapters are bottlenecks in models of images and texts, whose up-projections are random at first, and
    task heads are the clients' own. Here they are low-rank and change nothing at first, and there are no heads.

    Travels, per client and round: as FedIT, for a_1.
    """

    paper = "Chen et al. 2024, arXiv 2308.12305"
    task_traits = frozenset({"adapters"})
    personal = True

    @dataclass(frozen=True, kw_only=True)
    class Config(FedAvg.Config):
        weights: Literal["examples", "uniform"] = setting(
            "uniform", "a client's share in the average: the same for all, or by its number of examples"
        )
        kl: float = setting(1.0, "weight of KL_T in both losses", ge=0)
        temperature: float = setting(3.0, "T, by which logits are divided before they are compared", gt=0)
        predict: Prediction = setting("gated", "adapters that clients predict with: gated: a_0 and a_2; or one alone")

    config: Config

    def predictor(self, state: FedAvgState) -> nn.Module:
        raise NotImplementedError("FedDAT's clients predict with adapters of their own: ask evaluate_own of them")

    def own_message(self, state: FedAvgState) -> Payload:
        return Payload.of(weights=state.model)

    # On the client's side

    @client_side
    def train(self, client: Client) -> Reply:
        """Training of a_1 and a_0 by each other and the examples; a_1 is sent."""
        net, received = self._adapted_net(client), client.received.tensors("weights")
        local = self._branch(net, memory_tensors("local", client.memory) or self._fresh(client))
        copy = self._branch(net, received)
        net.load_state_dict(received)
        with freeze(copy):
            fitted = self.fit(client, nn.ModuleList([net, local]), self._objective(net, local, copy))
        memory = {**memory_part("local", snapshot(local)), **memory_part("copy", received)}
        return self.reply(client, fitted, memory=memory, weights=snapshot(net))

    def _objective(self, net: AdaptedModel, local: Branch, copy: Branch) -> Objective:
        """L_1 + L_0."""
        config = self.config

        def half(logits: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
            """L of one side."""
            distance = kl_divergence(logits, teacher.detach(), targets, config.temperature) if config.kl else 0.0
            return (self.kit.loss(logits, targets) + config.kl * distance) / 2

        def objective(_: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            shared = net(inputs)
            with gate(net, local, copy):
                gated = net(inputs)
            return half(shared, gated, targets) + half(gated, shared, targets)

        return objective

    def _adapted_net(self, client: Client) -> AdaptedModel:
        net = self.kit.network(client.spec.net)
        assert isinstance(net, AdaptedModel)
        return net

    def _branch(self, net: AdaptedModel, state: Tensors) -> Branch:
        branch = net.new_branch()
        branch.load_state_dict(dict(state))
        return branch

    def _fresh(self, client: Client) -> dict[str, Tensor]:
        with torch_seeded(client.seed.number("local")):
            return snapshot(self._adapted_net(client).new_branch())

    def own_predictor(self, client: Client) -> nn.Module:
        net, local = self._adapted_net(client), memory_tensors("local", client.memory)
        if not local or self.config.predict == "shared":
            net.load_state_dict(client.received.tensors("weights"))
            return net.eval()
        if self.config.predict == "local":
            net.load_state_dict(local)
            return net.eval()
        copy = memory_tensors("copy", client.memory)
        return GatedModel(net, self._branch(net, local), self._branch(net, copy)).eval()


def kl_divergence(logits: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """KL_T(z || t), the mean over the tokens that are learnt.

    Args:
        logits, teacher: z and t, float (B, T, vocabulary).
        targets: int64 (B, T).
    """
    counts = targets != NO_TARGET
    own, theirs = (F.log_softmax(values[counts].float() / temperature, 1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(own, theirs, reduction="batchmean", log_target=True)


@contextmanager
def gate(net: AdaptedModel, local: Branch, copy: Branch) -> Iterator[None]:
    """A block in which a model is in the gated mode: half of each of two adapters, and nothing of its own."""
    with net.beside(local, weight=0.5, own=0.0), net.beside(copy, weight=0.5, own=0.0):
        yield


class GatedModel(nn.Module):
    """A model in the gated mode; a `Writer`."""

    def __init__(self, net: AdaptedModel, local: Branch, copy: Branch) -> None:
        super().__init__()
        self._net = (net,)  # no submodule: its own adapter has no part in what is said
        self.local, self.copy = local, copy

    @property
    def base(self) -> Any:
        """The frozen model."""
        return self._net[0].base

    @property
    def tokenizer(self) -> Any:
        """The frozen model's."""
        return self._net[0].tokenizer

    def forward(self, ids: Tensor) -> Tensor:
        """float (B, T, vocabulary)."""
        with gate(self._net[0], self.local, self.copy):
            logits: Tensor = self._net[0](ids)
        return logits

    def answer_scope(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        """A block in which the frozen model answers in the gated mode."""
        return gate(self._net[0], self.local, self.copy)

    def train(self, mode: bool = True) -> GatedModel:
        self._net[0].train(mode)
        super().train(mode)
        return self
