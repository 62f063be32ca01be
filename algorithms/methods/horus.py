"""Horus: adapters of a few layers, averaged so that poisonous clients do no harm, whatever honest ones hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, client_side
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.payload import Payload, Tensors
from algorithms.core.settings import setting
from algorithms.core.states import only, snapshot, tensor_bytes
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.parts.averaging import Averaging, GlobalModel
from algorithms.parts.low_rank import A, B, learning_only, pairs
from algorithms.parts.robust import clip_rows, krum, median, norm_bounded_mean, robust_z, trimmed_mean

SINGULAR_VALUES = 5
"""The most of them whose share in A's energy is looked at."""

TINY = 1e-8


@dataclass(frozen=True)
class HorusState(GlobalModel):
    """The adapters of the chosen layers.

    Attributes:
        direction: the last round's change of them; {} before there was one.
    """

    direction: dict[str, Tensor]


class Horus(Averaging[HorusState]):
    """Zhang et al., "Heterogeneity-Oblivious Robust Federated Learning", arXiv 2508.03579.

    No code and no formulas are public. Certain are: adapters of some layers alone are trained and averaged; clients are
    scored by features of A, which data and poison move less than B; the suspicious are dropped, and the rest weighted
    by agreement with a common direction. The formulas are this project's. u_k is the change of (A_k, B_k).

    1. Of each client and matrix: the share of the q = min(5, r - 1) largest squared singular values of A_k in all;
       log ||dA_k||; 1 - cos(dA_k, median of dA); and 1 - ||V_k^T V||_F^2 / r, V_k and V spanning the rows of A_k and of
       A as received.
    2. Each becomes |f - median| / (1.4826 MAD + 1e-8) over the clients; a client's score is the mean of all of its.
    3. Those whose score is above `threshold` are dropped, the highest first and at most floor((m - 1) / 2) of m; nobody
       of less than three, nor before round `first_scores`, since A does not move while B = 0.
    4. g is the median of the u_k that are left, or the mean of that and of the last round's change. Weights are in
       proportion to n_k max(0, cos(u_k, g)), equal where that is 0 for all, and the adapters change by

           sum_k w_k u_k min(1, M / ||u_k||),    M the median of the norms ||u_k|| that are left.

    Medians are of each coordinate. Honest clients of rare data look like others' poison: `dropped` without any attack
    is what that costs. The other rules of `rule` are applied to the same u_k.

    Travels, per client and round: the adapters of the chosen layers each way; n_k up.
    """

    paper = "Zhang et al. 2025, arXiv 2508.03579"
    task_traits = frozenset({"adapters"})
    State = HorusState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        layers: tuple[int, ...] = setting(
            (),
            "numbers of the blocks whose adapters are trained, from 0; none: the first, the middle and the last",
            ge=0,
        )
        rule: Literal["horus", "fedavg", "median", "trimmed_mean", "krum", "norm_bound"] = setting(
            "horus", "how updates become one: as above, by another robust rule, or by FedAvg's mean"
        )
        threshold: float = setting(3.0, "score above which a client is dropped", gt=0)
        first_scores: int = setting(1, "first round, from 0, in which clients are scored", ge=0)

    config: Config

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        chosen = Volume(
            mean_bytes(task, clients, lambda net: tensor_bytes(chosen_entries(net.state_dict(), config.layers)))
        )
        common = super().needs(config, task, clients, work, counts)
        refusals = () if chosen.bytes != 0 or "adapters" not in task.traits else (_no_layers(config.layers),)
        return common.adding(up={"weights": chosen}, down={"weights": chosen}, refusals=refusals)

    def start(self, clients: Sequence[ClientSpec]) -> HorusState:
        net, state = self.initial_model(clients)
        return HorusState(net, chosen_entries(state, self.config.layers), direction={})

    def round(self, state: HorusState, plan: Plan, cohort: Cohort) -> tuple[HorusState, dict[str, float]]:
        updates = list(cohort.ask(self.train, Payload.of(weights=state.model)))
        if not updates:
            return state, {}
        sent = [update.payload.tensors("weights") for update in updates]
        shares = torch.tensor([self.share(update) for update in updates], dtype=torch.float64)
        changes = torch.stack([_vector(one) - _vector(state.model) for one in sent])
        left, figures = list(range(len(sent))), {}
        if self.config.rule == "horus" and plan.round >= self.config.first_scores:
            scores = poison_scores(state.model, sent)
            left = clients_left(scores, self.config.threshold)
            figures = {"dropped": float(len(sent) - len(left)), "largest_score": float(scores.max())}
        change = self._combine(changes[left], shares[left], state.direction)
        direction = _tensors(change, state.model)
        model = {name: (value.double() + direction[name]).to(value.dtype) for name, value in state.model.items()}
        return replace(state, model=model, direction=direction), figures

    def _combine(self, changes: Tensor, shares: Tensor, last: Tensors) -> Tensor:
        """The adapters' change, of those of clients."""
        p = shares / shares.sum() if shares.sum() else torch.full_like(shares, 1 / len(shares))
        match self.config.rule:
            case "horus":
                g = median(changes)
                return directed_mean(changes, p, (g + _vector(last)) / 2 if last else g)
            case "fedavg":
                return p @ changes
            case "median":
                return median(changes)
            case "trimmed_mean":
                return trimmed_mean(changes)
            case "krum":
                return krum(changes)
            case "norm_bound":
                return norm_bounded_mean(changes, p)

    def predictor(self, state: HorusState) -> nn.Module:
        return super().predictor(replace(state, model={**self.kit.initial(state.net), **state.model}))

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training of the chosen layers' adapters; the others stay as they start, which is no change at all."""
        net, received = self.kit.network(client.spec.net), client.received.tensors("weights")
        net.load_state_dict({**self.kit.initial(client.spec.net), **received})
        with learning_only(net, tuple(received)):
            fitted = self.fit(client, net)
        return self.reply(client, fitted, weights=only(snapshot(net), received))


def chosen_entries(state: Tensors, layers: Sequence[int]) -> dict[str, Tensor]:
    """The adapters of some blocks of a model, by number; of the first, the middle and the last where none is named."""
    blocks = {name: block_of(name) for name in state if name.endswith((A, B))}
    there = sorted(set(blocks.values()))
    wanted = set(layers) if layers or not there else {there[0], there[len(there) // 2], there[-1]}
    return {name: state[name] for name, block in blocks.items() if block in wanted}


def block_of(name: str) -> int:
    """The number of the block that a matrix belongs to, the first number in its name; -1 where there is none."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(found[1]) if found else -1


def _no_layers(layers: Iterable[int]) -> str:
    return f"trains adapters of blocks {', '.join(map(str, layers))} (layers), of which the language model has none"


def poison_scores(received: Tensors, states: Sequence[Tensors]) -> Tensor:
    """float64 (m,): how far each client's A stand out, the mean over matrices and features."""
    each = []
    for matrix, a, _ in pairs(received):
        own = torch.stack([one[matrix + A].double() for one in states])
        each.append(robust_z(features(a.double(), own)))
    return torch.stack(each).mean(dim=(0, 2))


def features(received: Tensor, own: Tensor) -> Tensor:
    """(m, 4): the features of one matrix's A, received (r, d) and the clients' own (m, r, d)."""
    rank = received.shape[0]
    squares = torch.linalg.svdvals(own).square()
    energy = squares[:, : min(SINGULAR_VALUES, rank - 1)].sum(1) / squares.sum(1).clamp(min=TINY)
    moves = (own - received).flatten(1)
    size = moves.norm(dim=1).clamp(min=TINY).log()
    turn = 1 - _cosines(moves, median(moves))
    return torch.stack([energy, size, turn, torch.stack([row_space_distance(a, received) for a in own])], dim=1)


def row_space_distance(one: Tensor, other: Tensor) -> Tensor:
    """1 - ||V^T V'||_F^2 / r, V and V' orthonormal bases of the rows of two (r, d): 0 for the same space, 1 for
    orthogonal ones."""
    v, w = (torch.linalg.svd(a, full_matrices=False).Vh for a in (one, other))
    return 1 - (v @ w.T).square().sum() / one.shape[0]


def _cosines(rows: Tensor, direction: Tensor) -> Tensor:
    """Cosines between rows and a direction; 0 where one of both is 0."""
    norms = rows.norm(dim=1) * direction.norm()
    return torch.where(norms > 0, (rows @ direction) / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)


def clients_left(scores: Tensor, threshold: float) -> list[int]:
    """Places of those who are not dropped, in their order."""
    count = len(scores)
    most = (count - 1) // 2 if count >= 3 else 0
    suspicious = [k for k in range(count) if scores[k] > threshold]
    dropped = set(sorted(suspicious, key=lambda k: (-float(scores[k]), k))[:most])
    return [k for k in range(count) if k not in dropped]


def directed_weights(changes: Tensor, shares: Tensor, direction: Tensor) -> Tensor:
    """Weights (m,) of the sum 1, in proportion to shares and to agreement with a direction; equal where nobody
    agrees."""
    weights = shares * _cosines(changes, direction).clamp(min=0)
    total = weights.sum()
    return weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))


def directed_mean(changes: Tensor, shares: Tensor, direction: Tensor) -> Tensor:
    """The mean by `directed_weights` of changes that are cut at the median of their norms."""
    return directed_weights(changes, shares, direction) @ clip_rows(changes, median(changes.norm(dim=1)))


def _vector(state: Tensors) -> Tensor:
    """All entries in one, float64."""
    return torch.cat([value.double().flatten() for value in state.values()])


def _tensors(vector: Tensor, like: Tensors) -> dict[str, Tensor]:
    """The inverse of `_vector`, float64 of the shapes of `like`."""
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape).clone() for (name, value), part in zip(like.items(), parts, strict=True)}
