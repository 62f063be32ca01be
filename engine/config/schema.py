"""A run's configuration: its sections, and a sentence for every key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from actors.distillation.plan import Actors, DistilResources
from actors.failures import Action, FailurePolicy
from algorithms.core.contract import ClientSpec, drawn_width
from algorithms.core.schedules import RateSchedule, Shape
from algorithms.core.seeds import Seed
from algorithms.core.settings import BudgetName
from algorithms.core.training import BETAS, EPS, OptimiserName, Work
from clusters.bits import Bits
from engine.config.method import MethodSection
from engine.config.task import TaskSection
from engine.data import DataConfig
from engine.partition import PartitionConfig, ShiftConfig


class Section(BaseModel):
    """Base of the sections: fixed once made, no key that is not declared, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Nets: TypeAlias = str | tuple[str, ...] | dict[str, int]


def _read_nets(value: Any) -> Nets:
    """The networks of the clients; checked by hand because a union's errors would name each spelling in turn."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Sequence) and value and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    if isinstance(value, dict) and value and all(type(count) is int and count > 0 for count in value.values()):
        return dict(value)
    raise PydanticCustomError(
        "nets",
        "must be a network's name, a list of names dealt to the clients in turn, "
        "or a mapping from name to a number of clients",
    )


@dataclass(frozen=True)
class DrawnWidths:
    """Widths that are drawn, each of `choices` as likely as the others; in every round, or once for the whole run."""

    choices: tuple[float, ...]
    every_round: bool


Widths: TypeAlias = float | tuple[float, ...] | DrawnWidths

DRAWN = {"once": False, "every round": True}


def _read_widths(value: Any) -> Widths:
    """The widths of the clients; by hand for the same reason as their networks."""
    if _is_width(value):
        return float(value)
    if _are_widths(value):
        return tuple(map(float, value))
    if isinstance(value, dict) and value.keys() == {"from", "drawn"}:
        choices, drawn = value["from"], value["drawn"]
        if _are_widths(choices) and isinstance(drawn, str) and drawn in DRAWN:
            return DrawnWidths(tuple(map(float, choices)), DRAWN[drawn])
    raise PydanticCustomError(
        "widths",
        "must be a fraction above 0 and at most 1, a list of such fractions dealt to the clients in turn, or {from}",
        {"from": "{from: LIST, drawn: once} or {from: LIST, drawn: every round} for fractions drawn from a list"},
    )


def _is_width(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _are_widths(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and all(map(_is_width, value))


def _write_widths(widths: Widths) -> Any:
    if isinstance(widths, DrawnWidths):
        drawn = next(word for word, every_round in DRAWN.items() if every_round == widths.every_round)
        return {"from": list(widths.choices), "drawn": drawn}
    return list(widths) if isinstance(widths, tuple) else widths


def _as_list(value: Any) -> Any:
    """A tuple as YAML has it."""
    return list(value) if isinstance(value, tuple) else value


def _read_betas(value: Any) -> tuple[float, float] | None:
    """By hand, because a union's errors would name each number in turn."""
    if value is None:
        return None
    if isinstance(value, Sequence) and len(value) == 2 and all(map(_is_beta, value)):
        return float(value[0]), float(value[1])
    raise PydanticCustomError("betas", "must be two numbers, each at least 0 and less than 1, as [0.9, 0.999], or null")


def _is_beta(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


class RateScheduleConfig(Section):
    """The learning rate of each round: a warm-up first, then the shape of a name."""

    name: Shape = Field(
        default="constant",
        description="what follows the warm-up: lr itself, a step down every so many rounds, or half a cosine from lr "
        "to 0, which the round after the last would have",
    )
    warmup: int = Field(
        default=0, ge=0, description="rounds in which the rate first rises to lr, by the same each time"
    )
    every: int | None = Field(default=None, ge=1, description="of step: rounds from one fall of the rate to the next")
    falls: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None,
        min_length=1,
        description="of step, in the place of every: numbers of rounds after which the rate falls, as [150, 250]",
    )
    factor: float | None = Field(default=None, gt=0, le=1, description="of step: by which the rate is then multiplied")

    def over(self, rounds: int) -> RateSchedule:
        """The same for a run of so many rounds."""
        return RateSchedule(
            self.name, rounds, self.warmup, every=self.every or 1, factor=self.factor or 1.0, falls=self.falls or ()
        )


class ClientsConfig(Section):
    """Clients, and the work of each in a round."""

    net: Annotated[
        Nets,
        PlainValidator(_read_nets),
        PlainSerializer(_as_list),
    ] = Field(
        description="network by name; a list is dealt to the clients in turn, "
        "a mapping {name: count} to the first count clients, the next, and so on"
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="what the clients' network starts from: a .safetensors file, the folder of a finished run, or "
        "torchvision:NAME for its pre-trained weights, whose last layer begins anew where the classes are others; "
        "null draws them by the seed",
    )
    width: Annotated[Widths, PlainValidator(_read_widths), PlainSerializer(_write_widths)] = Field(
        default=1.0,
        description="fraction of its network's hidden channels that a client can hold; a list is dealt to the clients "
        "in turn, {from: LIST, drawn: once} or {from: LIST, drawn: every round} draws each client's from a list",
    )
    cohort: int | None = Field(default=None, ge=1, description="clients asked in a round; null asks all")
    steps: int | None = Field(default=None, ge=1, description="mini-batches of a client in a round, or null")
    epochs: int | None = Field(default=None, ge=1, description="passes over a client's examples in a round, or null")
    batch: int = Field(ge=1, description="examples in a mini-batch")
    lr: float = Field(gt=0, description="learning rate of local training, before the schedule")
    optimiser: OptimiserName = Field(
        default="sgd", description="of local training; each round begins with a new one, which remembers nothing"
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of sgd; starts at 0 in every round")
    betas: Annotated[tuple[float, float] | None, PlainValidator(_read_betas), PlainSerializer(_as_list)] = Field(
        default=None, description="of adam and adamw, [BETA1, BETA2]; null for [0.9, 0.999]"
    )
    eps: float | None = Field(default=None, gt=0, description="of adam and adamw; null for 1e-8")
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="weight decay: a part of the gradient with sgd and adam, apart from it with adamw",
    )
    schedule: RateScheduleConfig = Field(
        default_factory=RateScheduleConfig, description="the learning rate of each round, as a factor of lr"
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of each training label that all classes have alike; evaluation has none of it",
    )
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="most examples of a mini-batch that go through the network at once, which bounds memory: their "
        "gradients add up to the mini-batch's; null lets all",
    )
    clip: float | None = Field(default=None, gt=0, description="largest 2-norm of a gradient; null leaves it as it is")
    stack: bool | Literal["convolutions"] = Field(
        default=False,
        description="train several clients at once where their networks are linear layers alone, which is faster; "
        "with convolutions, of networks of these and pooling too, which on a CPU is slower; "
        "results differ in their last digits from those of training one by one",
    )

    def work(self, rounds: int) -> Work:
        """The same as the training loop takes it, in a run of so many rounds."""
        return Work(
            steps=self.steps,
            epochs=self.epochs,
            batch=self.batch,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip=self.clip,
            optimiser=self.optimiser,
            betas=self.betas or BETAS,
            eps=self.eps or EPS,
            schedule=self.schedule.over(rounds),
            label_smoothing=self.label_smoothing,
            micro_batch=self.micro_batch,
        )

    def specs(self, clients: int, seed: Seed) -> tuple[ClientSpec, ...]:
        """Specifications of so many clients: of each its number, its network and the width it has of it.

        Args:
            seed: of the run. Widths that are drawn anew in every round are those of `redrawn`, and 1 here.
        """
        nets, widths = deal(self.net, clients), deal_widths(self.width, clients, seed)
        # A mapping of networks that is for another number of clients is refused by `engine.planning.checking`.
        return tuple(
            ClientSpec(number, net, width) for number, (net, width) in enumerate(zip(nets, widths, strict=False))
        )

    def redrawn(self) -> tuple[float, ...]:
        """Fractions from which every client's width is drawn anew in each round; () where it stays the same."""
        return self.width.choices if isinstance(self.width, DrawnWidths) and self.width.every_round else ()


def deal_widths(widths: Widths, clients: int, seed: Seed) -> list[float]:
    """The width of each client by number, 1 where it is drawn anew in every round."""
    if isinstance(widths, float):
        return [widths] * clients
    if isinstance(widths, tuple):
        return [widths[number % len(widths)] for number in range(clients)]
    if widths.every_round:
        return [1.0] * clients
    return [drawn_width(widths.choices, seed.at(client=number)) for number in range(clients)]


def deal(nets: Nets, clients: int) -> list[str]:
    """The network of each client by number."""
    if isinstance(nets, str):
        return [nets] * clients
    if isinstance(nets, tuple):
        return [nets[number % len(nets)] for number in range(clients)]
    return [name for name, count in nets.items() for _ in range(count)]


class EvaluateConfig(Section):
    """Evaluation of the global model on the test set. Nothing is chosen by what comes out."""

    every: int = Field(default=1, ge=1, description="rounds between evaluations; the last round is always evaluated")
    batch: int = Field(default=256, ge=1, description="test examples in a batch")


class DistillationConfig(Section):
    """Processes of a distillation on Ray, beside the hosts. With one trainer no result depends on it."""

    samplers: int = Field(default=1, ge=1, description="actors that draw latents and generate inputs")
    teachers: int = Field(default=1, ge=1, description="actors that label inputs with the teacher's logits")
    trainers: int = Field(default=1, ge=1, description="train workers of the student; several agree up to rounding")
    gpus: float = Field(default=0.0, ge=0, le=1, description="share of a GPU that each of them reserves")

    def resources(self) -> DistilResources:
        """The same as the distillation takes it."""
        return DistilResources(
            samplers=Actors(count=self.samplers, gpus=self.gpus),
            teachers=Actors(count=self.teachers, gpus=self.gpus),
            trainers=Actors(count=self.trainers, cpus=0.5, gpus=self.gpus),
        )


class StopConfig(Section):
    """An early end of a run: as soon as its model, or its clients' own models, have not become better
    on validation rows for some rounds. Test rows have no part in it.

    Validation rows are a share of each client's training rows, drawn by the run's seed, on which no client trains. The
    model is judged on them after the rounds that `evaluate.every` names. Rounds before a method's own least number (the
    warm-up of one that distils) do not count.
    """

    metric: str | None = Field(
        default=None, description="figure of the task by which rounds are judged; null: the headline figure"
    )
    patience: int = Field(default=5, ge=1, description="rounds after the best one, at the last of which the run ends")
    change: float = Field(default=0.0, ge=0, description="least difference from the best value that counts as better")
    share: float = Field(default=0.1, gt=0, lt=1, description="of each client's training rows that are validation rows")


class RunnerConfig(Section):
    """Execution of the clients' steps. No result depends on it, but for its last bits on `device` and `bits`."""

    kind: Literal["inline", "ray"] = Field(default="inline", description="this process alone, or actors of Ray")
    placement: Literal["auto", "dedicated", "pooled"] = Field(
        default="auto",
        description="one actor per client, or hosts that carry many in turn; auto decides by the room there is",
    )
    hosts: int | None = Field(default=None, ge=1, description="number of pooled hosts; null takes one per CPU")
    address: str | None = Field(default=None, description="of a running cluster to attach to; null starts one here")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where networks compute")
    bits: Bits = Field(
        default="native",
        description="how numbers are rounded: as the processor at hand does it fastest (native), or as every x86-64 "
        "processor with AVX2 does it under Linux (portable), which takes up to several times as long",
    )
    cpus: float | None = Field(default=None, gt=0, description="CPUs that one host reserves; null shares them out")
    gpus: float = Field(default=0.0, ge=0, le=1, description="share of a GPU that one host reserves and keeps to")
    distillation: DistillationConfig = Field(
        default_factory=DistillationConfig, description="who performs a distillation on Ray"
    )


class PrivacyConfig(Section):
    """Limits on what may be seen of the clients."""

    forbid: tuple[str, ...] = Field(default=(), description="kinds of content that must not leave a client")
    images: bool = Field(default=False, description="let the report show generated images beside clients' real ones")
    texts: bool = Field(default=False, description="keep clients' texts, and what a model made of them, beside the run")


class CheckpointConfig(Section):
    """Checkpoints of a run that are kept. They are written as rounds pass, in 3 % of the run's time at most."""

    last: int = Field(default=2, ge=1, description="newest checkpoints that are kept")
    every: int | None = Field(
        default=None, ge=1, description="besides them, those after each so many rounds are kept; null: no others"
    )


class FailuresConfig(Section):
    """Actions where something fails: retry (a retried step gives the same bits), leave out (the client, of this
    step), or stop."""

    on_host_lost: Action = Field(default="retry", description="where a host's process dies, or does not answer")
    on_client_error: Action = Field(default="stop", description="where a client's step raises")
    on_bad_update: Action = Field(default="stop", description="where a client sends NaN, infinity or other shapes")
    max_retries: int = Field(default=3, ge=0, description="retries of one client's step; then the run stops")
    deadline: float | None = Field(
        default=3600.0, gt=0, description="seconds for one client's step on Ray, then its host is lost; null: no limit"
    )

    def policy(self) -> FailurePolicy:
        """The same as runners take it."""
        return FailurePolicy(**self.model_dump())


class MlflowConfig(Section):
    """MLflow's view of the run, and its place."""

    enabled: bool = Field(default=True, description="whether MLflow is told of the run")
    tracking_uri: str | None = Field(
        default=None,
        description="of an MLflow server or store; null: MLFLOW_TRACKING_URI, else mlflow.db beside the run's folder",
    )
    system_metrics: bool | None = Field(
        default=None,
        description="log CPU, memory, disk, network and GPU of the driver's machine, as `mlflow.start_run("
        "log_system_metrics=)` does; null: where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING says so",
    )


class RunConfig(Section):
    """A whole run, complete and resolved."""

    method: MethodSection = Field(description="name of a method, and the fields of its Config")
    data: DataConfig = Field(description="which examples to learn from")
    task: TaskSection = Field(default=None, description="what is learnt from them; null: what fits their columns")
    partition: PartitionConfig = Field(description="how the training examples are dealt to clients")
    shift: ShiftConfig = Field(
        default_factory=ShiftConfig, description="how clients' examples differ beyond what they were dealt"
    )
    clients: ClientsConfig = Field(description="what clients are, and what each does in a round")
    rounds: int = Field(ge=1, description="number of rounds")
    budget: BudgetName = Field(
        default="paper",
        description="settings that are not set here are those of the method's paper, or, where it makes images on the "
        "server, such that two cores end in minutes",
    )
    seed: int = Field(default=0, ge=0, description="from which every random number of the run follows")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="when the test set is met")
    stop: StopConfig | None = Field(
        default=None, description="end early, judged on validation rows; null: all rounds are played"
    )
    runner: RunnerConfig = Field(default_factory=RunnerConfig, description="who carries the clients' steps out")
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig, description="what may be seen of the clients")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="which checkpoints stay")
    failures: FailuresConfig = Field(default_factory=FailuresConfig, description="what is done where something fails")
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig, description="where MLflow keeps its view of the run")
