"""FLoRA: clients' adapters of any ranks are stacked, which adds them up exactly, and merged into the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side, net_mixture
from algorithms.core.needs import Needs, Volume
from algorithms.core.payload import Payload, Tensors, memory_part, memory_tensors
from algorithms.core.seeds import torch_seeded
from algorithms.core.states import snapshot
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.nets.adapters import AdaptedModel, DenseChange
from algorithms.parts.averaging import Averaging, GlobalModel
from algorithms.parts.low_rank import products, stack

DENSE = "sum/"
"""Begins the names of the tensors of the sum of all that was merged so far, where that is sent."""


@dataclass(frozen=True)
class FLoRAState(GlobalModel):
    """All that has been merged into the frozen model.

    Attributes:
        model: W - W0 of each adapted matrix by its name, float32 (d_out, d_in).
        stacks: by round, the adapters that it stacked, of the last rounds; not of more than together have fewer numbers
            than `model`.
        complete_from: first round of which every later one's stack is there.
        rounds_seen: by client, rounds of which it has merged everything; of those that have been asked.
    """

    stacks: dict[int, dict[str, Tensor]]
    complete_from: int
    rounds_seen: dict[int, int]


class FLoRA(Averaging[FLoRAState]):
    """Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations",
    NeurIPS 2024, arXiv 2409.05976.

    In each round, client k attaches fresh adapters to the merged model W (A_k random, a draw of its own; B_k = 0), of
    its own rank r_k, trains and sends them. The server stacks them,

        A = [p_1 A_1; p_2 A_2; ...],    B = [B_1, B_2, ...],    so that    s B A = sum_k p_k s B_k A_k

    exactly, and everybody merges W <- W + s B A. The scale s is the same for all ranks. Ranks are widths of
    `task.rank`.

    The frozen weights themselves stay as they are, shared by all clients of a process: W - W0 is kept beside them, by
    every client. A client that was not asked for some rounds receives all stacks that it missed, or their sum W - W0
    where that has no more numbers. Note that a stack shows every client the adapters of all others.

    Travels, per client and round: r_k (d_in + d_out) numbers of 4 bytes a matrix up, with n_k; R (d_in + d_out) down
    for each round since the client was last asked, R the sum of that round's ranks, and never more than d_in d_out.
    """

    paper = "Wang et al. 2024, arXiv 2409.05976"
    task_traits = frozenset({"adapters"})
    State = FLoRAState

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        common = super().needs(config, task, clients, work, counts)
        return replace(
            common,
            down={"stack": Volume()},
            own_kinds={"stack": "adapters of all clients that trained since the client was last asked, or their sum"},
            refusals=tuple(net_mixture([replace(client, width=1.0) for client in clients])),
        )

    def start(self, clients: Sequence[ClientSpec]) -> FLoRAState:
        net = clients[0].net
        return FLoRAState(net, self._nothing(net), stacks={}, complete_from=0, rounds_seen={})

    def round(self, state: FLoRAState, plan: Plan, cohort: Cohort) -> tuple[FLoRAState, dict[str, float]]:
        messages = {client.id: Payload.of(stack=news(state, client.id)) for client in plan.clients}
        updates = list(cohort.ask(self.train, messages))
        seen = {**state.rounds_seen, **{update.client: plan.round for update in updates}}
        total = sum(self.share(update) for update in updates)
        if not total:
            return replace(state, rounds_seen=seen), {}
        new = stack([u.payload.tensors("weights") for u in updates], [self.share(u) / total for u in updates])
        change = self.merge(state.net, state.model, new)
        stacks = last_stacks({**state.stacks, plan.round: new}, numbers(change))
        dropped = {*state.stacks, plan.round} - {*stacks}
        complete = max(dropped) + 1 if dropped else state.complete_from
        return FLoRAState(state.net, change, stacks, complete, seen), {}

    def predictor(self, state: FLoRAState) -> nn.Module:
        return MergedModel(self._network(state.net), DenseChange(state.model).to(self.kit.device)).eval()

    def merge(self, net: str, change: Tensors, factors: Tensors) -> dict[str, Tensor]:
        """W - W0 after a stack has been merged; the same bits wherever it is done."""
        scale = self._network(net).adapter.scale
        return {matrix: change[matrix] + scale * product for matrix, product in products(factors).items()}

    # On the client's side

    @client_side
    def train(self, client: Client) -> Reply:
        """Merge what is new, train fresh adapters on it."""
        change = self.merged_change(client)
        net = self._network(client.spec.net, client.spec.width)
        net.load_state_dict(self.fresh(client, net))
        with net.beside(DenseChange(change).to(self.kit.device)):
            fitted = self.fit(client, net)
        memory = {**memory_part("change", change), "seen": client.seed.round}
        return self.reply(client, fitted, memory=memory, weights=snapshot(net))

    def fresh(self, client: Client, net: AdaptedModel) -> dict[str, Tensor]:
        """The adapters that a client begins a round with."""
        with torch_seeded(client.seed.number("fresh adapters")):
            return net.new_branch().state_dict()

    def merged_change(self, client: Client) -> dict[str, Tensor]:
        """W - W0 as the server has it."""
        received = client.received.tensors("stack")
        whole = {name.removeprefix(DENSE): value for name, value in received.items() if name.startswith(DENSE)}
        if whole:
            return whole
        change = memory_tensors("change", client.memory) or self._nothing(client.spec.net)
        stacks = by_round(received)
        # What the server did not hear of may have been merged already.
        for number in sorted(number for number in stacks if number >= int(client.memory.get("seen", 0))):
            change = self.merge(client.spec.net, change, stacks[number])
        return change

    def _nothing(self, net: str) -> dict[str, Tensor]:
        """W - W0 of the frozen model."""
        sizes = self._network(net).sizes
        return {matrix: torch.zeros(d_out, d_in) for matrix, (d_in, d_out) in sizes.items()}

    def _network(self, net: str, width: float = 1.0) -> AdaptedModel:
        found = self.kit.network(net, width)
        assert isinstance(found, AdaptedModel)
        return found


class MergedModel(nn.Module):
    """A frozen model with whole matrices beside its own, and no adapters."""

    def __init__(self, net: AdaptedModel, change: DenseChange) -> None:
        super().__init__()
        self._net = (net,)
        self.change = change

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of W0 + change."""
        (net,) = self._net
        with net.beside(self.change, own=0.0):
            logits: Tensor = net(ids)
        return logits

    @property
    def base(self) -> Any:
        """The frozen model, a causal model of transformers."""
        return self._net[0].base

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the frozen model."""
        return self._net[0].tokenizer

    def answer_scope(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        """A block in which `base` is about to answer these prompts."""
        return self._net[0].beside(self.change, own=0.0)

    def train(self, mode: bool = True) -> MergedModel:
        self._net[0].train(mode)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MergedModel:
        self._net[0]._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self


def news(state: FLoRAState, client: int) -> dict[str, Tensor]:
    """All that a client lacks: every stack that it has not merged, or the sum of all where that has no more numbers."""
    since = state.rounds_seen.get(client, 0)
    missed = {number: one for number, one in state.stacks.items() if number >= since}
    if since < state.complete_from or sum(map(numbers, missed.values())) >= numbers(state.model):
        return {DENSE + name: value for name, value in state.model.items()}
    return {f"{number}/{name}": value for number, one in missed.items() for name, value in one.items()}


def by_round(received: Tensors) -> dict[int, dict[str, Tensor]]:
    """Stacks by their rounds."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in received.items():
        number, _, name = key.partition("/")
        found.setdefault(int(number), {})[name] = value
    return found


def last_stacks(stacks: dict[int, dict[str, Tensor]], most: int) -> dict[int, dict[str, Tensor]]:
    """The last of some rounds' stacks, as many as together have fewer than `most` numbers."""
    kept: dict[int, dict[str, Tensor]] = {}
    total = 0
    for number in sorted(stacks, reverse=True):
        total += numbers(stacks[number])
        if total >= most:
            break
        kept[number] = stacks[number]
    return {number: kept[number] for number in sorted(kept)}


def numbers(state: Tensors) -> int:
    """Entries of tensors together."""
    return sum(value.numel() for value in state.values())
