"""FedSDR: self-distillation at home, rectification in common: two branches of adapters, of which one is averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from algorithms.core.contract import Client, Reply, client_side
from algorithms.core.payload import memory_part, memory_tensors
from algorithms.core.scoring import score
from algorithms.core.seeds import ANY_ROUND, torch_seeded
from algorithms.core.settings import setting
from algorithms.core.states import snapshot
from algorithms.core.task import Shard
from algorithms.core.training import Fit, Work
from algorithms.methods.fedsd import FedSD, FedSDState
from algorithms.nets.adapters import AdaptedModel, Branch, freeze

SHARED = "S/"
"""Begins the names of the local branch's tensors where it is averaged too."""


class FedSDR(FedSD):
    """Ren et al., "FedSDR: Federated Self-Distillation with Rectification", arXiv 2605.18028.

    Two branches of adapters stand side by side at every adapted matrix,

        h_out = W0 h + s B_r A_r h + s B_s A_s h,

    R for rectification and S for smoothing. In a round, client k receives R, takes its own S, and

    1. trains S alone on its rewritten answers: min over S of E[NLL_{R,S}(y~ | c, x)];
    2. trains R alone on the answers that it holds: min over R of E[NLL_{R,S}(y | c, x)];

    then sends R. S stays at home. The server averages R factor by factor, so that the global model is W0 + R, which
    was trained with S beside it and is deployed without: `loss_global` and `loss_personal` tell what that costs, on
    the first examples of each client.

    Public text leaves open how stages alternate, their steps, and the optimisers, which begin anew in each stage here.
    `targets: raw` trains both branches on the same answers (is it the steps and numbers?), `canonical` has a rewriter
    without errors, and `share_s` averages S too.

    Travels: as in FedIT, whatever the rank of S; with `share_s` twice that.
    """

    paper = "Ren et al. 2026, arXiv 2605.18028"

    @dataclass(frozen=True, kw_only=True)
    class Config(FedSD.Config):
        cycles: int = setting(1, "times that both stages come in a round", ge=1)
        budget: Literal["equal_steps", "equal_total"] = setting(
            "equal_steps", "each stage has the steps of clients.steps, or half of them, as many in all as without S"
        )
        reset_s: bool = setting(False, "S begins anew in each round, with B = 0")
        rank_s: int | None = setting(None, "rank of S; null: that of R", ge=1)
        lr_s: float | None = setting(None, "learning rate of S; null: that of R", gt=0)
        steps_s: int | None = setting(None, "steps of each first stage; null: those of the second", ge=0)
        share_s: bool = setting(False, "S is sent and averaged as well, an ablation")
        gap_examples: int = setting(32, "examples of a client on which W0 + R and W0 + R + S are compared", ge=0)

    config: Config

    local_weight: float = 1.0

    def initial_model(self, clients: Any) -> tuple[str, dict[str, Tensor]]:
        net, model = super().initial_model(clients)
        if not self.config.share_s:
            return net, model
        with torch_seeded(self.kit.seed.number("branch S")):
            local = snapshot(self._network(net).new_branch(self.config.rank_s))
        return net, {**model, **{SHARED + name: value for name, value in local.items()}}

    def predictor(self, state: FedSDState) -> nn.Module:
        net = self._network(state.net)
        net.load_state_dict(_branch(state.model, shared=False))
        if not self.config.share_s:
            return net.eval()
        local = net.new_branch(self.config.rank_s)
        local.load_state_dict(_branch(state.model, shared=True))
        return BothBranches(net, local).eval()

    # On the client's side

    @client_side
    def train(self, client: Client) -> Reply:
        """Both stages; R for the server, S for the client's next round."""
        received = client.received.tensors("weights")
        net = self._network(client.spec.net)
        net.load_state_dict(_branch(received, shared=False))
        local = self._local(client, net)
        rewritten, position_s = self.rewritten_shard(client), int(client.memory.get("position_s", 0))
        fitted = Fit(0.0, 0, int(client.memory.get("position", 0)))
        for cycle in range(self.config.cycles):
            smoothed = self._smooth(client, net, local, rewritten, position_s, cycle)
            fitted = self._rectify(client, net, local, fitted.position, cycle)
            position_s = smoothed.position
        sent, own = snapshot(net), snapshot(local)
        memory = {**self.remember(client), **memory_part("local", own), "position_s": position_s}
        shared = {SHARED + name: value for name, value in own.items()} if self.config.share_s else {}
        reply = self.reply(client, fitted, memory=memory, weights={**sent, **shared})
        gap = self._gap(client, net, local)
        return replace(reply, metrics={**reply.metrics, "loss_smooth": smoothed.loss, **gap})

    def _smooth(self, client: Client, net: AdaptedModel, local: Branch, shard: Shard, position: int, cycle: int) -> Fit:
        """Stage 1: S learns, R is frozen."""
        seed = client.seed.at(phase=f"smooth {cycle}" if cycle else "smooth")
        work = self._work(self.config.steps_s, self.config.lr_s)
        # What this stage draws, for dropout say, leaves the draws of the second stage where they are.
        with torch_seeded(seed.number("dropout")), freeze(net), net.beside(local, self.local_weight):
            return self.kit.fit(
                local,
                self.kit.task,
                shard,
                work,
                seed,
                position=position,
                objective=lambda _, inputs, targets: self.kit.loss(net(inputs), targets),
            )

    def _rectify(self, client: Client, net: AdaptedModel, local: Branch, position: int, cycle: int) -> Fit:
        """Stage 2: R learns, S is frozen."""
        seed = client.seed.at(phase=f"{client.seed.phase} {cycle}") if cycle else client.seed
        with freeze(local), net.beside(local, self.local_weight):
            return self.kit.fit(net, self.kit.task, client.shard, self._work(), seed, position=position)

    def _work(self, steps: int | None = None, lr: float | None = None) -> Work:
        """A stage's work: the clients', with other steps or another rate where these are set."""
        work = self.kit.work
        if self.config.budget == "equal_total" and work.steps is not None:
            work = replace(work, steps=max(1, work.steps // 2))
        if steps is not None:
            work = replace(work, steps=steps, epochs=None)
        return work if lr is None else replace(work, lr=lr)

    def _local(self, client: Client, net: AdaptedModel) -> Branch:
        """S of a client: as it was, or fresh."""
        with torch_seeded(client.seed.at(round=ANY_ROUND, phase="branch S").number("fresh")):
            local = net.new_branch(self.config.rank_s)
        received = _branch(client.received.tensors("weights"), shared=True)
        known = received or memory_tensors("local", client.memory)
        if known and not self.config.reset_s:
            local.load_state_dict(known)
        return local

    def _gap(self, client: Client, net: AdaptedModel, local: Branch) -> dict[str, float]:
        """The loss without and with S on the first answers that the client holds."""
        few = Shard(client.shard.columns, client.shard.rows[: self.config.gap_examples])
        if not len(few):
            return {}
        task = self.kit.task
        alone = task.report(score(net, task, few, self.kit.device))["loss"]
        with net.beside(local.eval(), self.local_weight):
            both = task.report(score(net, task, few, self.kit.device))["loss"]
        return {"loss_global": alone, "loss_personal": both}

    def _network(self, name: str) -> AdaptedModel:
        net = self.kit.network(name)
        assert isinstance(net, AdaptedModel)
        return net


class BothBranches(nn.Module):
    """A model with another branch beside its own."""

    def __init__(self, net: AdaptedModel, local: Branch) -> None:
        super().__init__()
        self.net, self.local = net, local

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of W0 + R + S."""
        with self.net.beside(self.local):
            logits: Tensor = self.net(ids)
        return logits


def _branch(state: Mapping[str, Tensor], shared: bool) -> dict[str, Tensor]:
    """R of a state, or S under R's names."""
    if shared:
        return {name.removeprefix(SHARED): value for name, value in state.items() if name.startswith(SHARED)}
    return {name: value for name, value in state.items() if not name.startswith(SHARED)}
