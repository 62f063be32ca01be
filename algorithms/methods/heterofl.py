"""HeteroFL: clients train nested parts of one network, each the first of its channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from algorithms.core.contract import Client, ClientSpec, Cohort, Plan, Reply, Update, client_side, net_mixture
from algorithms.core.needs import Needs, Volume, mean_bytes
from algorithms.core.payload import NUMBER_BYTES, Payload
from algorithms.core.settings import setting
from algorithms.core.states import WeightedMean, norm_buffers, only, snapshot, state_bytes, tensor_bytes, without
from algorithms.core.task import Task, Trait
from algorithms.core.training import Objective, OutputsObjective, Work
from algorithms.parts.averaging import Averaging, GlobalModel
from algorithms.parts.calibration import measure_norm
from algorithms.parts.heads import head_refusal
from algorithms.parts.submodels import PartialMean, part_of, scaled_objective, width_refusals


@dataclass(frozen=True)
class HeteroFLState(GlobalModel):
    """The global model at full width."""


class HeteroFL(Averaging[HeteroFLState]):
    """Diao et al., "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients",
    ICLR 2021, arXiv 2010.01264.

    A client of width r has, of a hidden layer's J channels, the first ceil(r J); the images' channels and the classes
    are whole. Each entry of the global model becomes the mean over the clients that have it; one that nobody has keeps
    its value. While a client trains:
    - `scaler`: what each hidden layer gives out is divided by r;
    - `mask`: the logits of classes that the client does not hold are 0 (not minus infinity: they keep their share of
      the softmax), and the classifier's rows of these classes are not averaged;
    - `norm: static`: batch normalisation keeps no running statistics. The global model's are measured afterwards: the
      clients of the round receive it whole, pass over their examples, and send the statistics. The code measures them
      on the images of all clients, cropped and flipped as for training; here images are as they are.

    `norm: running` averages running statistics like weights, which costs no pass, no whole model at narrow clients and
    no statistics of theirs, but they are those of narrow networks.

    Travels, per client and round: 4 P_r bytes each way, P_r the trainable entries at width r; up with one byte a class
    (mask). Where batch normalisation is measured: the state dict down; running means and variances up, with 8 bytes.
    """

    paper = "Diao et al. 2021, arXiv 2010.01264"
    State = HeteroFLState

    @dataclass(frozen=True, kw_only=True)
    class Config(Averaging.Config):
        weights: Literal["examples", "uniform"] = setting(
            "uniform", "a client's share in each entry's mean: the same for all, or by its number of examples"
        )
        scaler: bool = setting(True, "divide hidden outputs by the width while training")
        mask: bool = setting(True, "logits of a client's missing classes are 0 in training, their rows not averaged")
        norm: Literal["static", "running"] = setting(
            "static", "batch statistics: measured with the global model, or averaged like weights"
        )
        measure_every: int = setting(1, "rounds from one measurement of static statistics to the next", ge=1)

    config: Config

    @classmethod
    def requires(cls, config: Any) -> frozenset[Trait]:
        return frozenset({"classes"} if config.mask else ())

    @classmethod
    def needs(cls, config: Any, task: Task, clients: Sequence[ClientSpec], work: Work, counts: Tensor) -> Needs:
        everywhere = [replace(client, width=1.0) for client in clients]
        reasons = net_mixture(everywhere) + width_refusals(clients[0].net, [c.width for c in clients], task)
        if config.mask:
            reasons += head_refusal([clients[0].net], task, "mask: true", "set mask: false")
        needs = replace(super().needs(config, task, clients, work, counts), refusals=tuple(reasons))
        if config.scaler and any(client.width < 1 for client in clients):
            needs = replace(
                needs, trained_alone="scaler: true changes what hidden layers give out where width is below 1"
            )
        if config.mask:
            needs = needs.adding(up={"label_counts": Volume(task.classes)})  # a truth value a class
        if config.norm == "running":
            return needs
        trained = mean_bytes(task, clients, lambda net: state_bytes(net) - buffer_bytes(net))
        # Statistics are measured with the whole model, but in some rounds, and of networks that have any.
        whole = mean_bytes(task, everywhere, lambda net: state_bytes(net) if norm_buffers(net) else 0)
        measured = mean_bytes(task, everywhere, statistics_bytes)
        if trained is None or whole is None or measured is None:
            return needs.adding(up={"statistics": Volume()})
        return needs.adding(
            up={"weights": Volume(trained), "statistics": Volume(measured / config.measure_every)},
            down={"weights": Volume(trained + whole / config.measure_every)},
        )

    def start(self, clients: Sequence[ClientSpec]) -> HeteroFLState:
        return HeteroFLState(*self.initial_model(clients))

    def offset(self, plan: Plan) -> int:
        """The first channel of this round's windows."""
        return 0

    def round(self, state: HeteroFLState, plan: Plan, cohort: Cohort) -> tuple[HeteroFLState, dict[str, float]]:
        widths = {client.id: client.width for client in plan.clients}
        parts = {w: part_of(self.kit, state.net, w, self.offset(plan)) for w in sorted(set(widths.values()))}
        full = self.travelling(state.net, state.model)
        messages = {width: Payload.of(weights=part.extract(full)) for width, part in parts.items()}
        mean = PartialMean(full)
        for update in cohort.ask(self.train, {client: messages[width] for client, width in widths.items()}):
            part = parts[widths[update.client]]
            mean.add(update.payload.tensors("weights"), part, self.share(update), self._rows(update))
        state = replace(state, model={**state.model, **mean.result(otherwise=full)})
        due = (plan.round + 1) % self.config.measure_every == 0 or plan.round + 1 == plan.rounds
        return (self.with_statistics(state, cohort) if due and self.config.norm == "static" else state), {}

    def travelling(self, net: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The entries that go to clients for training and come back."""
        return state if self.config.norm == "running" else without(state, norm_buffers(self.kit.network(net)))

    def _rows(self, update: Update) -> dict[str, Tensor]:
        """The classifier's rows of the classes that a client holds; none of it where all count."""
        if not self.config.mask:
            return {}
        held = update.payload.tensors("label_counts")["held"].nonzero()[:, 0]
        return {"head.weight": held, "head.bias": held}

    def with_statistics(self, state: HeteroFLState, cohort: Cohort) -> HeteroFLState:
        """The state with statistics of batch normalisation as the clients measure them, weighted by batches."""
        if not norm_buffers(self.kit.network(state.net)):
            return state
        mean = WeightedMean()
        for update in cohort.ask(self.measure, Payload.of(weights=state.model)):
            mean.add(update.payload.tensors("statistics"), update.payload.number("statistics", "batches"))
        return replace(state, model={**state.model, **mean.result(otherwise={})})

    @client_side
    def train(self, client: Client) -> Reply:
        """Local training of the client's part."""
        net = self.kit.network(client.spec.net, client.spec.width)
        # Buffers that were not sent stay what they are: training does not read them.
        buffers = only(net.state_dict(), sorted(norm_buffers(net)))
        net.load_state_dict({**buffers, **client.received.tensors("weights")})
        scale = client.spec.width if self.config.scaler else 1.0
        held = self._classes_held(client)
        masked = None if held is None else self._masked_objective(held.to(self.kit.device))
        fitted = self.fit(client, net, objective=scaled_objective(self.kit.loss, scale, masked))
        classes = {} if held is None else {"label_counts": {"held": held}}
        return self.reply(client, fitted, weights=self.travelling(client.spec.net, snapshot(net)), **classes)

    def _classes_held(self, client: Client) -> Tensor | None:
        """bool (C,): the classes that the client has; None without `mask`, which alone needs them."""
        return client.shard.label_counts(self.kit.task.classes) > 0 if self.config.mask else None

    def _masked_objective(self, classes: Tensor) -> Objective:
        """The cross-entropy in which the logits of missing classes are 0."""

        return OutputsObjective(lambda logits, labels: self.kit.loss(logits.masked_fill(~classes, 0.0), labels))

    @client_side
    def measure(self, client: Client) -> Reply:
        """One pass over the client's examples: what the global model's batch normalisation sees."""
        kit, net = self.kit, self.received_network(client)
        batches = measure_norm(net, kit.task, client.shard, kit.work.batch, client.seed, kit.device)
        measured = only(snapshot(net), sorted(norm_buffers(net)))
        statistics = {name: value for name, value in measured.items() if value.is_floating_point()}
        return Reply(Payload.of(statistics={**statistics, "batches": batches}))


def buffer_bytes(net: nn.Module) -> int:
    """Bytes of batch normalisation's running statistics and counters."""
    return tensor_bytes(only(net.state_dict(), norm_buffers(net)))


def statistics_bytes(net: nn.Module) -> int:
    """Bytes of what `measure` sends: means and variances, and the number of batches; none without any."""
    buffers = only(net.state_dict(), norm_buffers(net))
    floats = {name: value for name, value in buffers.items() if value.is_floating_point()}
    return tensor_bytes(floats) + NUMBER_BYTES if floats else 0
