"""What a run's configuration holds: its sections, and a sentence for every key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, field_validator
from pydantic_core import PydanticCustomError

from actors.distil_plan import Actors, DistilResources
from algorithms.core.contract import ClientSpec
from algorithms.core.payload import KINDS
from algorithms.core.training import Work
from engine.config.method import MethodSection
from engine.data import DataConfig
from engine.errors import nearest
from engine.partition import PartitionConfig


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


class ClientsConfig(Section):
    """What clients are, and what each does in a round."""

    net: Annotated[
        Nets,
        PlainValidator(_read_nets),
        PlainSerializer(lambda nets: list(nets) if isinstance(nets, tuple) else nets),
    ] = Field(
        description="network by name; a list is dealt to the clients in turn, "
        "a mapping {name: count} to the first count clients, the next, and so on"
    )
    cohort: int | None = Field(default=None, ge=1, description="clients asked in a round; null asks all")
    steps: int | None = Field(default=None, ge=1, description="mini-batches of a client in a round, or null")
    epochs: int | None = Field(default=None, ge=1, description="passes over a client's examples in a round, or null")
    batch: int = Field(ge=1, description="examples in a mini-batch")
    lr: float = Field(gt=0, description="learning rate of local SGD")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of local SGD; starts at 0 in every round")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of local SGD")
    clip: float | None = Field(default=None, gt=0, description="largest 2-norm of a gradient; null leaves it as it is")

    def work(self) -> Work:
        """The same as the training loop takes it."""
        return Work(
            steps=self.steps,
            epochs=self.epochs,
            batch=self.batch,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )

    def specs(self, clients: int) -> tuple[ClientSpec, ...]:
        """What the server knows of each of so many clients: its number and its network."""
        return tuple(ClientSpec(number, net) for number, net in enumerate(deal(self.net, clients)))


def deal(nets: Nets, clients: int) -> list[str]:
    """The network of each client by number."""
    if isinstance(nets, str):
        return [nets] * clients
    if isinstance(nets, tuple):
        return [nets[number % len(nets)] for number in range(clients)]
    return [name for name, count in nets.items() for _ in range(count)]


class EvaluateConfig(Section):
    """When and how the global model meets the test set. Nothing is chosen by what comes out."""

    every: int = Field(default=1, ge=1, description="rounds between evaluations; the last round is always evaluated")
    batch: int = Field(default=256, ge=1, description="test images in a batch")


class DistillationConfig(Section):
    """Who performs a distillation on Ray, beside the hosts. With one trainer no result depends on it."""

    samplers: int = Field(default=1, ge=1, description="actors that draw latents and generate images")
    teachers: int = Field(default=1, ge=1, description="actors that label images with the teacher's logits")
    trainers: int = Field(default=1, ge=1, description="train workers of the student; several agree up to rounding")
    gpus: float = Field(default=0.0, ge=0, le=1, description="share of a GPU that each of them reserves")

    def resources(self) -> DistilResources:
        """The same as the distillation takes it."""
        return DistilResources(
            samplers=Actors(count=self.samplers, gpus=self.gpus),
            teachers=Actors(count=self.teachers, gpus=self.gpus),
            trainers=Actors(count=self.trainers, cpus=0.5, gpus=self.gpus),
        )


class RunnerConfig(Section):
    """Who carries the clients' steps out. No result depends on it."""

    kind: Literal["inline", "ray"] = Field(default="inline", description="this process alone, or actors of Ray")
    placement: Literal["auto", "dedicated", "pooled"] = Field(
        default="auto",
        description="one actor per client, or hosts that carry many in turn; auto decides by the room there is",
    )
    hosts: int | None = Field(default=None, ge=1, description="number of pooled hosts; null takes one per CPU")
    address: str | None = Field(default=None, description="of a running cluster to attach to; null starts one here")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where networks compute")
    cpus: float | None = Field(default=None, gt=0, description="CPUs that one host reserves; null shares them out")
    gpus: float = Field(default=0.0, ge=0, le=1, description="share of a GPU that one host reserves and keeps to")
    distillation: DistillationConfig = Field(
        default_factory=DistillationConfig, description="who performs a distillation on Ray"
    )


class PrivacyConfig(Section):
    """What may be seen of the clients."""

    forbid: tuple[str, ...] = Field(default=(), description="kinds of content that must not leave a client")
    images: bool = Field(default=False, description="let the report show generated images beside clients' real ones")

    @field_validator("forbid")
    @classmethod
    def _known_kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            hint = nearest(unknown[0], KINDS)
            raise ValueError(f"{', '.join(unknown)} is no kind of content; {hint}there are {', '.join(KINDS)}")
        return kinds


class MlflowConfig(Section):
    """Where MLflow keeps its view of the run."""

    enabled: bool = Field(default=True, description="whether MLflow is told of the run")
    tracking_uri: str | None = Field(
        default=None, description="of an MLflow server or store; null keeps mlflow.db beside the run's folder"
    )


class RunConfig(Section):
    """A whole run, complete and resolved."""

    method: MethodSection = Field(description="name of a method, and the fields of its Config")
    data: DataConfig = Field(description="which images to learn from")
    partition: PartitionConfig = Field(description="how the training images are dealt to clients")
    clients: ClientsConfig = Field(description="what clients are, and what each does in a round")
    rounds: int = Field(ge=1, description="number of rounds")
    seed: int = Field(default=0, ge=0, description="from which every random number of the run follows")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="when the test set is met")
    runner: RunnerConfig = Field(default_factory=RunnerConfig, description="who carries the clients' steps out")
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig, description="what may be seen of the clients")
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig, description="where MLflow keeps its view of the run")
