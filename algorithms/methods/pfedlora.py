"""pFedLoRA: clients' networks are their own, and one small low-rank adapter beside each of them is shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, Terms, Update, client_side
from algorithms.core.needs import Needs, Volume, network_of
from algorithms.core.payload import Payload, memory_part, memory_tensors
from algorithms.core.seeds import torch_seeded
from algorithms.core.settings import setting
from algorithms.core.states import snapshot, tensor_bytes
from algorithms.core.task import Task, Trait
from algorithms.core.training import Fit, Objective, Work, with_amount
from algorithms.nets import Classifier, NetworkError
from algorithms.nets.adapters import freeze
from algorithms.nets.classifier import require_head
from algorithms.nets.forms import Inputs
from algorithms.parts.averaging import ONE_NUMBER, Averaging
from algorithms.parts.heads import head_refusal


class FeatureAdapter(nn.Module):
    """z_A = B D x of features x, pooled to a common number: D `down.weight` (r, d_in), B `up.weight` (C, r).

    Both are drawn from torch's global generator: with one of them 0, z_A would tell the features nothing at first.
    """

    def __init__(self, d_in: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(d_in, rank, bias=False), nn.Linear(rank, outputs, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """float (B, C) of features (B, F); of sequences (B, length, C)."""
        logits: Tensor = self.up(self.down(F.adaptive_avg_pool1d(features, self.down.in_features)))
        return logits


class TwoHeads(nn.Module):
    """A network whose answer is the logarithm of mu softmax(z_A) + (1 - mu) softmax(z_F)."""

    def __init__(self, net: Classifier, adapter: FeatureAdapter, mu: float) -> None:
        super().__init__()
        self.net, self.adapter, self.mu = net, adapter, mu

    def forward(self, inputs: Inputs) -> Tensor:
        """float (B, C)."""
        features = self.net.features(inputs)
        shared, own = self.adapter(features).softmax(1), self.net.head(features).softmax(1)
        return (self.mu * shared + (1 - self.mu) * own).log()


@dataclass(frozen=True)
class PFedLoRAState:
    """The shared adapter's state."""

    adapter: dict[str, Tensor]


class PFedLoRA(Averaging[Any]):
    """ "pFedLoRA: Model-Heterogeneous Personalized Federated Learning with LoRA Tuning", arXiv 2310.13283.

    Each client k has a network F_k of any architecture, which is its memory, and receives one adapter A of a common
    shape. Of the features x of F_k, the inputs of its last linear layer, averaged over windows to d_in numbers,

        z_A = B D x,    D (r, d_in),  B (C, r),    z_F = F_k's own logits.

    In a round it minimises twice

        mu CE(z_A, y) + (1 - mu) CE(z_F, y):

    first over F_k, which learns through both, with A frozen; then over A, with F_k frozen, its batch statistics
    included. The server averages A by numbers of examples. The method is personal: a client predicts with z_F, or with
    mu softmax(z_A) + (1 - mu) softmax(z_F).

    No code of the authors could be had: the place of the adapter, that it has no activation, and the weights of the
    loss are choices of this project.

    Travels, per client and round: A each way, 4 r (d_in + C) bytes; n_k up.
    """

    paper = "Yi et al. 2023, arXiv 2310.13283"
    personal = True
    State = PFedLoRAState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        rank: int = setting(8, "r, hidden units of the adapter", ge=1)
        mu: float = setting(0.5, "weight of the adapter's loss, and of its share in a mixed prediction", ge=0, le=1)
        features: int | None = setting(
            None, "d_in, numbers to which features are pooled; null: the least number of features of a client", ge=1
        )
        adapter_work: int | None = setting(
            None, "steps or epochs of the adapter's training; null: as many as clients have", ge=0
        )
        predict: Literal["own", "mixed"] = setting("own", "what clients predict with: z_F, or the mixture of both")

    config: Config

    @classmethod
    def requires(cls, config: Any) -> frozenset[Trait]:
        return frozenset({"classes"}) if config.predict == "mixed" else frozenset()

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        refusals = head_refusal((client.net for client in clients), task, "the adapter")
        if max(Counter(client.id for client in clients).values(), default=0) > 1:
            refusals.append(
                "keeps each client's network from round to round, but widths are drawn anew; draw them once"
            )
        adapter = Volume(None if refusals else _adapter_bytes(config, task, clients))
        counted = {"examples": ONE_NUMBER} if config.weights == "examples" else {}
        return Needs(up={"adapters": adapter, **counted}, down={"adapters": adapter}, refusals=tuple(refusals))

    def start(self, clients: Sequence[ClientSpec]) -> PFedLoRAState:
        with torch_seeded(self.kit.seed.number("adapter")):
            adapter = _new_adapter(self.config, self.kit.task, clients)
        return PFedLoRAState(snapshot(adapter))

    def round(self, state: PFedLoRAState, plan: Plan, cohort: Cohort) -> tuple[PFedLoRAState, dict[str, float]]:
        mean = cohort.means(self.train, self.terms, Payload.of(adapters=state.adapter))["adapters"]
        return PFedLoRAState(mean.result(otherwise=state.adapter)), {}

    def terms(self, update: Update) -> Terms:
        return {"adapters": (update.payload.tensors("adapters"), self.share(update))}

    def predictor(self, state: PFedLoRAState) -> nn.Module:
        raise NotImplementedError("pFedLoRA's server has an adapter and no network: ask evaluate_own of clients")

    def own_message(self, state: PFedLoRAState) -> Payload:
        return Payload.of(adapters=state.adapter)

    # On the client's side

    @client_side
    def train(self, client: Client) -> Reply:
        """Training of F_k beside the frozen adapter, then of the adapter on the frozen F_k; the adapter is sent."""
        net, adapter = self._own_network(client), self._received_adapter(client)
        with freeze(adapter):
            fitted = self._fit(client, net, self.kit.work, "position", self._objective(net, adapter))
        net.eval()
        with freeze(net):
            amount = with_amount(self.kit.work, self.config.adapter_work)
            tuned = self._fit(client, adapter, amount, "adapter_position", self._objective(net, adapter))
        memory = {**memory_part("own", snapshot(net)), "adapter_position": tuned.position}
        return self.reply(client, fitted, memory=memory, adapters=snapshot(adapter))

    def _fit(self, client: Client, module: nn.Module, work: Work, position: str, objective: Objective) -> Fit:
        """Training of one of both parts, in an order of examples of its own."""
        place = int(client.memory.get(position, 0))
        return self.kit.fit(module, self.kit.task, client.shard, work, client.seed, position=place, objective=objective)

    def _objective(self, net: Classifier, adapter: FeatureAdapter) -> Objective:
        """mu CE(z_A, y) + (1 - mu) CE(z_F, y), whichever part of it learns."""

        def objective(_: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            features = net.features(inputs)
            shared, own = (self.kit.loss(logits, targets) for logits in (adapter(features), net.head(features)))
            return self.config.mu * shared + (1 - self.config.mu) * own

        return objective

    def _own_network(self, client: Client) -> Classifier:
        """F_k; before it has learned anything, as all networks of its name begin."""
        spec = client.spec
        own = memory_tensors("own", client.memory) or snapshot(self.kit.new_network(spec.net, spec.width))
        net = require_head(self.kit.network(spec.net, spec.width))
        net.load_state_dict(own)
        return net

    def _received_adapter(self, client: Client) -> FeatureAdapter:
        state = client.received.tensors("adapters")
        (rank, d_in), outputs = state["down.weight"].shape, len(state["up.weight"])
        adapter = FeatureAdapter(d_in, outputs, rank).to(self.kit.device)
        adapter.load_state_dict(state)
        return adapter

    def own_predictor(self, client: Client) -> nn.Module:
        net = self._own_network(client)
        if self.config.predict == "own":
            return net.eval()
        return TwoHeads(net, self._received_adapter(client), self.config.mu).eval()


def _new_adapter(config: PFedLoRA.Config, task: Task, clients: Sequence[ClientSpec]) -> FeatureAdapter:
    forms = sorted({(client.net, client.width) for client in clients})
    d_in = config.features or min(require_head(network_of(net, task, w)).head.in_features for net, w in forms)
    return FeatureAdapter(d_in, task.outputs, config.rank)


def _adapter_bytes(config: PFedLoRA.Config, task: Task, clients: Sequence[ClientSpec]) -> float | None:
    """None where a network cannot be built, which is refused elsewhere."""
    with torch.random.fork_rng(devices=[]):
        try:
            return tensor_bytes(_new_adapter(config, task, clients).state_dict())
        except NetworkError:
            return None
