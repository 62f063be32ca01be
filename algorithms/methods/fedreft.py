"""FedReFT: every client edits hidden states in a way of its own, and mixes in what all others have learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.payload import EMPTY, Payload, Tensors, memory_part, memory_tensors
from algorithms.core.scoring import score
from algorithms.core.seeds import ANY_ROUND, torch_seeded
from algorithms.core.settings import setting
from algorithms.core.states import WeightedMean, combine, snapshot, tensor_bytes
from algorithms.core.task import Shard, Task
from algorithms.core.training import Work
from algorithms.nets.adapters import AdaptedModel
from algorithms.nets.interventions import EditedModel, Interventions, Places, blocks_of, editing, orthonormal_rows
from algorithms.parts.averaging import Averaging, GlobalModel

MIXTURES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Values of lambda among which a client chooses."""


@dataclass(frozen=True)
class FedReFTState(GlobalModel):
    """All that the clients of the last round have sent.

    Attributes:
        model: theta that everybody starts from.
        latest: theta_k of the last round's clients, by client.
    """

    latest: dict[int, dict[str, Tensor]]


class FedReFT(Averaging[FedReFTState]):
    """Siddika et al., "FedReFT: Federated Representation Fine-Tuning with All-But-Me Aggregation", arXiv 2508.20295.
    No code of the authors was found.

    In place of adapters a client learns edits of the frozen model's hidden states (LoReFT, arXiv 2404.03592), after
    each block, at the first and the last tokens of a prompt:

        Phi(h) = h + R^T (W h + b - R h),    theta = all (R, W, b),    R with orthonormal rows.

    In a round client k receives g_k, sets theta_k <- (1 - lambda_k) theta_k + lambda_k g_k, makes the rows of R
    orthonormal again, trains theta_k and sends it. For each k the server makes g_k of what the others sent in the round
    before: edit by edit, the geometric median

        g_k = argmin_x sum_{j != k} ||theta_j - x||

    by Weiszfeld's iteration from the mean. A client alone, or asked in the first round, keeps its own.

    Where the paper says nothing: all edits start as the identity, W = R and b = 0; lambda_k is the one of 0, 1/4, 1/2,
    3/4, 1 that is best on a few of the client's examples, which it then does not train on; (Q R, Q W, Q b) is the same
    edit for any rotation Q, so that the others are turned to the first of them before the median, and g_k to client k
    before it is mixed in (`align`).

    Travels, per client and round, each way: 2 r d + r numbers of 4 bytes for each block, twice that where the edits of
    first and last tokens are not one (`one_edit`); another g_k for each client.
    """

    paper = "Siddika et al. 2026, arXiv 2508.20295"
    task_traits = frozenset({"adapters"})
    State = FedReFTState
    personal = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        weights: Literal["examples", "uniform"] = setting(
            "uniform", "a client's share where means are taken: the same for all, or by its number of examples"
        )
        rank: int = setting(8, "r, rows of R", ge=1)
        first: int = setting(7, "tokens at a prompt's beginning that are edited", ge=0)
        last: int = setting(7, "tokens at its end that are edited", ge=0)
        one_edit: bool = setting(False, "one edit for both groups of tokens")
        layers: tuple[int, ...] = setting((), "blocks after which states are edited, from 0; none: all", ge=0)
        rule: Literal["geometric_median", "mean", "fedavg"] = setting(
            "geometric_median", "how the others become one: their geometric median, their mean, or the mean of all"
        )
        lambda_fixed: float | None = setting(
            None, "share of the others in the mixture; null: each client chooses", ge=0, le=1
        )
        held_out: int = setting(16, "examples by which a client chooses, at most a quarter of its own", ge=1)
        align: bool = setting(True, "turn edits to one another before they are mixed")
        iterations: int = setting(50, "most steps to the geometric median", ge=1)

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        edits = Volume(mean_bytes(task, clients, lambda net: edit_bytes(net, config)))
        common = super().needs(config, task, clients, work, counts)
        return common.adding(up={"weights": edits}, down={"weights": edits})

    def start(self, clients: Sequence[ClientSpec]) -> FedReFTState:
        return FedReFTState(clients[0].net, self._first_edits(clients[0].net), latest={})

    def round(self, state: FedReFTState, plan: Plan, cohort: Cohort) -> tuple[FedReFTState, dict[str, float]]:
        messages = {client.id: self._message(state, client.id) for client in plan.clients}
        latest = {u.client: u.payload.tensors("weights") for u in cohort.ask(self.train, messages)}
        return replace(state, latest=latest or state.latest), {}

    def _message(self, state: FedReFTState, client: int) -> Payload:
        g = self.all_but(state.latest, client)
        return Payload.of(weights=g) if g else EMPTY

    def all_but(self, latest: Mapping[int, Tensors], client: int) -> dict[str, Tensor]:
        """g_k; {} where there is nobody else."""
        everybody = self.config.rule == "fedavg"
        others = [state for number, state in latest.items() if everybody or number != client]
        if not others or latest.keys() <= {client}:
            return {}
        if self.config.align:
            others = [align_to(others[0], state) for state in others]
        if self.config.rule != "geometric_median":
            return mean_of(others)
        return median_of(others, self.config.iterations)

    def predictor(self, state: FedReFTState) -> nn.Module:
        raise NotImplementedError("FedReFT's server has no model of its own: ask evaluate_own of clients")

    def own_message(self, state: FedReFTState) -> Payload:
        return EMPTY

    # On the client's side

    def own_predictor(self, client: Client) -> nn.Module:
        return self._model(client.spec.net, self._own(client)).eval()

    @client_side
    def train(self, client: Client) -> Reply:
        """Mix in what the others have learnt, train the edits; for the server and for the client's next round."""
        own, g = self._own(client), self._others(client)
        held, rest = self._parts(client)
        share = self._share(client, own, g, held) if g else 0.0
        model = self._model(client.spec.net, mixture(own, g, share) if share else own)
        net = self._network(client.spec.net).train()
        with editing(net, model.interventions, self._places()):
            fitted = self.kit.fit(
                model.interventions,
                self.kit.task,
                rest,
                self.kit.work,
                client.seed,
                position=int(client.memory.get("position", 0)),
                objective=lambda _, inputs, targets: self.kit.loss(net(inputs), targets),
            )
        learnt = orthonormal(snapshot(model.interventions))
        reply = self.reply(client, fitted, memory=memory_part("own", learnt), weights=learnt)
        return replace(reply, metrics={**reply.metrics, "lambda": share})

    def _own(self, client: Client) -> dict[str, Tensor]:
        """theta_k."""
        return memory_tensors("own", client.memory) or self._first_edits(client.spec.net)

    def _others(self, client: Client) -> dict[str, Tensor]:
        """g_k, turned to client k; {} where there is none."""
        if "weights" not in client.received.parts:
            return {}
        g = client.received.tensors("weights")
        return align_to(self._own(client), g) if self.config.align else g

    def _parts(self, client: Client) -> tuple[Shard, Shard]:
        """The examples by which lambda is chosen, and those that are trained on."""
        rows = client.shard.rows
        count = 0 if self.config.lambda_fixed is not None else min(self.config.held_out, len(rows) // 4)
        if not count:
            return Shard(client.shard.columns, rows[:0]), client.shard
        seed = client.seed.at(round=ANY_ROUND, phase="held out")
        order = torch.randperm(len(rows), generator=seed.torch("rows"))
        held, rest = rows[order[:count].sort().values], rows[order[count:].sort().values]
        return Shard(client.shard.columns, held), Shard(client.shard.columns, rest)

    def _share(self, client: Client, own: Tensors, g: Tensors, judges: Shard) -> float:
        """lambda_k."""
        if self.config.lambda_fixed is not None:
            return self.config.lambda_fixed
        if not len(judges):
            return 0.5
        return min(MIXTURES, key=lambda share: self._loss(client, mixture(own, g, share), judges))

    def _loss(self, client: Client, edits: Tensors, shard: Shard) -> float:
        model = self._model(client.spec.net, edits)
        return self.kit.task.report(score(model, self.kit.task, shard, self.kit.device))["loss"]

    # On both sides

    def _first_edits(self, net: str) -> dict[str, Tensor]:
        """The edits that everybody starts from: the identity, with R of the run's seed."""
        with torch_seeded(self.kit.seed.number("interventions")):
            return snapshot(new_interventions(self._network(net), self.config))

    def _model(self, net: str, edits: Tensors) -> EditedModel:
        frozen = self._network(net)
        with torch_seeded(0):
            interventions = new_interventions(frozen, self.config)
        interventions.load_state_dict(edits)
        return EditedModel(frozen, interventions.to(self.kit.device), self._places())

    def _places(self) -> Places:
        task: Any = self.kit.task
        return Places(self.config.first, self.config.last, tuple(task.prompt_end))

    def _network(self, net: str) -> AdaptedModel:
        found = self.kit.network(net)
        assert isinstance(found, AdaptedModel)
        return found


def new_interventions(net: AdaptedModel, config: FedReFT.Config) -> Interventions:
    """Fresh edits for a model; R is drawn from torch's global generator."""
    blocks = [n for n in range(len(blocks_of(net))) if not config.layers or n in config.layers]
    return Interventions(blocks, net.base.config.hidden_size, config.rank, config.one_edit)


def edit_bytes(net: nn.Module, config: FedReFT.Config) -> int:
    """Bytes of a model's edits; 0 for what is no language model."""
    if not isinstance(net, AdaptedModel):
        return 0
    with torch_seeded(0):
        return tensor_bytes(new_interventions(net, config).state_dict())


def by_edit(state: Tensors) -> dict[str, dict[str, Tensor]]:
    """R, W and b of each edit."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        edit, _, part = name.rpartition(".")
        found.setdefault(edit, {})[part] = value
    return found


def orthonormal(state: Tensors) -> dict[str, Tensor]:
    """Edits with the rows of every R made orthonormal."""
    return {n: orthonormal_rows(value) if n.endswith(".R") else value for n, value in state.items()}


def mixture(own: Tensors, other: Tensors, share: float) -> dict[str, Tensor]:
    """(1 - lambda) theta + lambda g, the rows of R orthonormal; theta itself to the bit at 0."""
    if share == 0:
        return dict(own)
    return orthonormal(combine(lambda mine, theirs: (1 - share) * mine + share * theirs, own, other))


def align_to(target: Tensors, state: Tensors) -> dict[str, Tensor]:
    """The same edits as (Q R, Q W, Q b), Q the rotation that brings them nearest to others: orthogonal Procrustes."""
    theirs = by_edit(target)
    turned: dict[str, Tensor] = {}
    for edit, parts in by_edit(state).items():
        one, other = (torch.cat([p["R"], p["W"], p["b"][:, None]], 1).double() for p in (theirs[edit], parts))
        u, _, vh = torch.linalg.svd(one @ other.T)
        q = (u @ vh).to(parts["R"].dtype)
        turned |= {f"{edit}.{name}": q @ value for name, value in parts.items()}
    return {name: turned[name] for name in state}


def mean_of(states: Sequence[Tensors]) -> dict[str, Tensor]:
    """The mean of states that count alike."""
    mean = WeightedMean()
    for state in states:
        mean.add(state, 1.0)
    return mean.result(otherwise=states[0])


def median_of(states: Sequence[Tensors], iterations: int) -> dict[str, Tensor]:
    """The geometric median of states, edit by edit."""
    found: dict[str, Tensor] = {}
    split = [by_edit(state) for state in states]
    for edit, parts in split[0].items():
        points = torch.stack([torch.cat([one[edit][p].double().flatten() for p in parts]) for one in split])
        pieces = geometric_median(points, iterations).split([value.numel() for value in parts.values()])
        for (part, value), piece in zip(parts.items(), pieces, strict=True):
            found[f"{edit}.{part}"] = piece.reshape(value.shape).to(value.dtype)
    return {name: found[name] for name in states[0]}


def geometric_median(points: Tensor, iterations: int, tiny: float = 1e-8, least_step: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to points, float64 (m, d): Weiszfeld's iteration from their mean."""
    x = points.mean(0)
    for _ in range(iterations):
        weights = 1 / (points - x).norm(dim=1).clamp(min=tiny)
        before, x = x, (weights @ points) / weights.sum()
        if (x - before).norm() < least_step:
            break
    return x
