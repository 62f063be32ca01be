"""FedDPA: a shared adapter and one that stays with its client, mixed by how like the client's own a prompt is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side
from algorithms.core.payload import EMPTY, Memory, Payload, Tensors, memory_part, memory_tensors
from algorithms.core.seeds import ANY_ROUND, torch_seeded
from algorithms.core.settings import setting
from algorithms.core.states import snapshot
from algorithms.core.training import Fit, with_amount
from algorithms.nets.adapters import AdaptedModel, Branch, freeze
from algorithms.parts.averaging import Averaging, GlobalModel
from algorithms.tasks.instructions import InstructionTask

Pooling: TypeAlias = Literal["last", "mean"]
Mix: TypeAlias = Literal["similar", "dissimilar"]


@dataclass(frozen=True)
class FedDPAState(GlobalModel):
    """The shared adapter G, and the number of clients."""

    clients: int


class FedDPA(Averaging[FedDPAState]):
    """Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024, arXiv 2403.19211.

    G = (A_g, B_g) is averaged as FedIT averages it, and each client k has an adapter L_k = (A_l, B_l) of its own, which
    is its memory. Clients train G alone:

        h_out = W0 h + s B_g A_g h.

    FedDPA-T: from round 1 on a client that is asked first trains L_k, which begins as a fresh adapter, beside the
    received G,

        h_out = W0 h + a s B_l A_l h + (1 - a) stopgrad(s B_g A_g h),

    where neither a gradient of G nor one through it is had, as in the authors' code. FedDPA-F: after the last round all
    clients of the federation receive G once more, and train L_k from it, alone. A run that ends early has no L_k then.

    The method is personal. For a prompt x, client k answers with

        h_out = W0 h + w s B_l A_l h + (1 - w) s B_g A_g h,    w = clip(cap * sim, 0, 1),

    sim being the mean cosine between the last layer's hidden state of x and those of q prompts of the client's own
    training examples, at a prompt's last token, with L_k active. The authors' code gives this weight to G instead,
    which is `mix: dissimilar`: w = 1 - clip(cap * sim, 0, 1). A client without L_k has w = 0.

    Travels, per client and round: as FedIT, G each way and n_k up; nothing of L_k. In FedDPA-F G goes down once more.
    """

    paper = "Yang et al. 2024, arXiv 2403.19211"
    task_traits = frozenset({"adapters"})
    personal = True
    State = FedDPAState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        variant: Literal["F", "T"] = setting("T", "local adapters are trained: F: after the last round; T: in each")
        local_work: int | None = setting(
            None,
            "steps or epochs of a local adapter's training; null: as many as clients have",
            ge=0,
        )
        local_weight: float = setting(0.5, "a, the local adapter's weight in its training; of T", gt=0, le=1)
        mix: Mix = setting("similar", "prompts that lean on the local adapter: those like the client's own, or others")
        cap: float = setting(0.5, "the weight for a prompt that is the client's own", ge=0, le=1)
        samples: int = setting(5, "q, the client's own prompts with which another one is compared", ge=1)
        pooling: Pooling = setting("last", "what is compared: hidden states of the last token, or the mean over all")

    config: Config

    def start(self, clients: Sequence[ClientSpec]) -> FedDPAState:
        return FedDPAState(*self.initial_model(clients), clients=len(clients))

    def round(self, state: FedDPAState, plan: Plan, cohort: Cohort) -> tuple[FedDPAState, dict[str, float]]:
        mean = self.mean(cohort, Payload.of(weights=state.model))
        state = replace(state, model=mean.result(otherwise=state.model))
        if self.config.variant == "F" and plan.round == plan.rounds - 1:
            everyone = [ClientSpec(client, state.net) for client in range(state.clients)]
            for _ in cohort.ask(self.fine_tune, Payload.of(weights=state.model), everyone):
                pass  # what they learn stays with them
        return state, {}

    def predictor(self, state: FedDPAState) -> nn.Module:
        raise NotImplementedError("FedDPA's clients mix G with adapters of their own: ask evaluate_own of them")

    def own_message(self, state: FedDPAState) -> Payload:
        return Payload.of(weights=state.model)

    # On the client's side

    @client_side
    def train(self, client: Client) -> Reply:
        """Training of L_k beside the received G, in FedDPA-T; then of G alone, which is sent."""
        own = self._train_beside(client) if self.config.variant == "T" and client.seed.round > 0 else client.memory
        net = self.received_network(client)
        fitted = self.fit(client, net)
        return self.reply(client, fitted, memory={**own, "position": fitted.position}, weights=snapshot(net))

    @client_side
    def fine_tune(self, client: Client) -> Reply:
        """Training of L_k from the received G, in FedDPA-F."""
        net = self.received_network(client)
        fitted = self._fit_local(client, net)
        memory = {**client.memory, **memory_part("local", snapshot(net))}
        return Reply(EMPTY, memory, {"loss": fitted.loss, "steps": fitted.steps})

    def _train_beside(self, client: Client) -> Memory:
        """L_k after its training beside the frozen G."""
        net, received = self._adapted_net(client), self._branch(client, client.received.tensors("weights"))
        net.load_state_dict(memory_tensors("local", client.memory) or self._fresh(client))
        weight = self.config.local_weight
        with freeze(received), net.beside(received, weight=1 - weight, own=weight, passes_gradient=False):
            fitted = self._fit_local(client, net)
        return {**memory_part("local", snapshot(net)), "local_position": fitted.position}

    def _fit_local(self, client: Client, net: nn.Module) -> Fit:
        """Training of a network as it stands, going on in an order of examples of its own."""
        position = int(client.memory.get("local_position", 0))
        # With an objective, it is this network's alone: what stands beside it is not to be seen from its state.
        return self.kit.fit(
            net,
            self.kit.task,
            client.shard,
            with_amount(self.kit.work, self.config.local_work),
            client.seed,
            position=position,
            objective=lambda net, inputs, targets: self.kit.loss(net(inputs), targets),
        )

    def _adapted_net(self, client: Client) -> AdaptedModel:
        net = self.kit.network(client.spec.net)
        assert isinstance(net, AdaptedModel)
        return net

    def _branch(self, client: Client, state: Tensors) -> Branch:
        branch = self._adapted_net(client).new_branch()
        branch.load_state_dict(dict(state))
        return branch

    def _fresh(self, client: Client) -> dict[str, Tensor]:
        with torch_seeded(client.seed.number("local")):
            return snapshot(self._adapted_net(client).new_branch())

    def own_predictor(self, client: Client) -> nn.Module:
        net, local = self.received_network(client), memory_tensors("local", client.memory)
        if not local or not len(client.shard):
            return net.eval()
        assert isinstance(net, AdaptedModel)
        task = self.kit.task
        assert isinstance(task, InstructionTask)
        order = client.seed.at(round=ANY_ROUND, phase="prompts").torch("prompts")
        rows = client.shard.rows[torch.randperm(len(client.shard), generator=order)[: self.config.samples]]
        mixture = Mixture(net, self._branch(client, local), task, self.config)
        return mixture.compare_with(task.prompts(client.shard, rows)).eval()


class Mixture(nn.Module):
    """An adapted model, and an adapter beside it whose weight each prompt decides; a `Writer`."""

    references: Tensor

    def __init__(self, net: AdaptedModel, local: Branch, task: InstructionTask, config: FedDPA.Config) -> None:
        """Without `compare_with`, the model speaks alone."""
        super().__init__()
        self.shared, self.local = net, local
        self._task, self._config = task, config
        self.register_buffer("references", torch.zeros(0))

    @property
    def base(self) -> Any:
        """The frozen model."""
        return self.shared.base

    @property
    def tokenizer(self) -> Any:
        """The frozen model's."""
        return self.shared.tokenizer

    @torch.no_grad()
    def compare_with(self, prompts: Sequence[Sequence[int]]) -> Mixture:
        """This mixture, with such prompts as those that others are compared with."""
        self.eval()
        self.references = F.normalize(self._states(*self._pad(prompts)), dim=1)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """float (B, T, vocabulary)."""
        lengths = self._task.prompt_lengths(ids)
        with self._mixing(ids[:, : int(lengths.max())], lengths):
            logits: Tensor = self.shared(ids)
        return logits

    @contextmanager
    def answer_scope(self, prompts: Sequence[Sequence[int]]) -> Iterator[None]:
        """A block in which the frozen model answers these prompts with the mixture that each of them decides."""
        with self._mixing(*self._pad(prompts)):
            yield

    @contextmanager
    def _mixing(self, ids: Tensor, lengths: Tensor) -> Iterator[None]:
        weight = self.local_weights(ids, lengths)[:, None, None]
        with self.shared.beside(self.local, weight=weight, own=1 - weight):
            yield

    @torch.no_grad()
    def local_weights(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """w, float (B,): the local adapter's weight for each of some prompts, with zeros after their ends."""
        if not len(self.references):
            return torch.zeros(len(ids), device=ids.device)
        cosines = F.normalize(self._states(ids, lengths), dim=1) @ self.references.T
        weight = (self._config.cap * cosines.mean(1)).clamp(0, 1)
        return weight if self._config.mix == "similar" else 1 - weight

    def _states(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """float32 (B, d): hidden states of the last layer, pooled over each prompt, with the local adapter alone."""
        with self.shared.beside(self.local, own=0.0):
            states = self.base(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1].float()
        if self._config.pooling == "last":
            return states[torch.arange(len(ids), device=ids.device), lengths - 1]
        within = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return (states * within[:, :, None]).sum(1) / lengths[:, None]

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """int64 (B, T) with zeros after each end, and the lengths."""
        device = next(self.local.parameters()).device
        rows = [torch.tensor(prompt) for prompt in prompts]
        return pad_sequence(rows, batch_first=True).to(device), torch.tensor([len(row) for row in rows], device=device)
