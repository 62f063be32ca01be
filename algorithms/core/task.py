"""The learning problem: what an example is, what a network takes and answers, the loss, and how good an answer is.

The contract and the engine know this interface alone; what images, texts or tables are stands in `algorithms.tasks`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.core import settings
from algorithms.core.columns import Columns, Roles, inputs_of
from algorithms.nets import build
from algorithms.nets.forms import Form, Inputs

LABEL = "label"
"""Name of the column of classes, int64 (N,), -1 where a class is not known."""


@dataclass(frozen=True)
class Shard:
    """The examples of one client, as rows of columns that all clients of a machine share.

    Attributes:
        columns: tensors (N, ...) by name, every training example of the data set; never written to.
        rows: int64, (n,), the rows this client holds.
    """

    columns: Mapping[str, Tensor]
    rows: Tensor

    def __len__(self) -> int:
        return self.rows.numel()

    def own(self, column: str) -> Tensor:
        """(n, ...): a column's values of this client's examples, in the order of `rows`."""
        return self.columns[column][self.rows]

    @cached_property
    def own_labels(self) -> Tensor:
        """int64, (n,): the classes of this client's examples, in the order of `rows`."""
        return self.own(LABEL)

    def label_counts(self, classes: int) -> Tensor:
        """int64, (classes,): how many examples of each class the client holds."""
        return torch.bincount(self.own_labels, minlength=classes)


@dataclass(frozen=True)
class Figure:
    """A number that says how good a predictor is.

    Attributes:
        name: such as `accuracy`.
        better: whether more or less of it is better.
        unit: `%` for a share in [0, 1] that people read in percent; otherwise what follows the number.
    """

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""

    def rank_key(self, value: float) -> float:
        """A key for `sorted`: better values come first, NaN last, beside what is infinitely bad."""
        if math.isnan(value):
            return math.inf
        return -value if self.better == "higher" else value


Sums: TypeAlias = Mapping[str, Tensor]
"""Sums over examples, of which figures are made; those of two sets of examples add up to those of both."""


def add(one: Sums, other: Sums) -> Sums:
    """Sums over both sets of examples; {} adds nothing."""
    return {name: one[name] + value for name, value in other.items()} if one and other else one or other


@dataclass(frozen=True)
class PreparedTask:
    """A task and the columns that its batches are made of, (N, ...) each, of the training and of the test examples.

    Attributes:
        rows: int64, (N,), the row of the data set from which each training example was made; None where each row is
            one, in their order.
        facts: notes for people on how the rows became examples.
    """

    task: Task
    train: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    rows: np.ndarray | None = None
    facts: tuple[str, ...] = ()


Trait: TypeAlias = Literal["adapters", "classes", "images", "language", "numbers"]
"""A property that a method may need of a task, or that decides what a person is shown.

- `adapters`: networks are frozen language models with low-rank adapters, `algorithms.nets.adapters`.
- `classes`: one class a row in column `label`; a network answers with a logit for each.
- `images`: inputs are normalised images, and images that a generator makes can be inputs.
- `language`: targets are the next tokens.
- `numbers`: targets are numbers.
"""


class Task(ABC):
    """Base of all tasks: frozen dataclasses, which travel to workers.

    Attributes:
        title: what is learnt, in words, such as `image classification`.
        traits: see `Trait`.
        figures: what is reported, the headline first.
        target: name of the prepared column that is to be predicted, None where inputs are their own targets.
        state_kind: the kind, of `algorithms.core.payload.KINDS`, that the state of a network of the task is. Methods
            send states as `weights`; ledgers and policies call them by this name.
        Settings: of how columns become batches; see `algorithms.core.settings`.
    """

    title: ClassVar[str]
    traits: ClassVar[frozenset[Trait]] = frozenset()
    figures: ClassVar[tuple[Figure, ...]]
    target: ClassVar[str | None] = LABEL
    state_kind: ClassVar[str] = "weights"
    Settings: ClassVar[type[settings.Config]] = settings.Config

    # What networks take and answer

    @property
    @abstractmethod
    def form(self) -> Form:
        """The form of a network's inputs."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Size of the last axis of what a network answers."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each class, or for each group by which a task without classes tells examples apart; () where there
        are none."""
        return ()

    @property
    def classes(self) -> int:
        """C of the formulas, 0 where there are none."""
        return len(self.class_names)

    def network(self, name: str, width: float = 1.0) -> nn.Module:
        """A network of some name for this task, with fresh weights drawn from torch's global generator.

        Raises:
            NetworkError: see `algorithms.nets.build`.
        """
        return build(name, self.form, self.outputs, width)

    def foundation(self, name: str) -> str:
        """A checksum of what a network of this name has besides its state, which states of another foundation do not
        fit; empty where there is nothing."""
        return ""

    # Batches

    @classmethod
    def fits(cls, columns: Columns, roles: Roles) -> bool:
        """Whether this is the task that people mean by such columns, where no task is named; never, of a task that is
        always named."""
        return False

    @classmethod
    @abstractmethod
    def prepare(cls, train: Columns, test: Columns, roles: Roles, settings: settings.Config) -> PreparedTask:
        """The task of a data set, and the arrays that batches are made of; statistics are of training rows alone.

        Args:
            roles: what `data.columns` says; the rest is found where one candidate stands alone.

        Raises:
            ColumnError: a column that is missing, of another kind, or holds values that the task cannot have.
        """

    @abstractmethod
    def batch(
        self,
        shard: Shard,
        picks: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Inputs, Tensor]:
        """Network inputs and targets of some of a client's examples, on a device.

        Args:
            picks: int64, (B,), positions in `shard.rows`.
            generator: for random changes of training examples; None leaves them as they are.
        """

    @property
    def is_random(self) -> bool:
        """Whether `batch` draws from its generator, so that batches cannot be made several at a time."""
        return False

    # How good an answer is

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """float (B,): the loss of each example."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, a scalar: the mean over its examples."""
        return self.losses(outputs, targets).mean()

    def amount(self, targets: Tensor) -> int:
        """The number of what `loss` is the mean over, by which a batch counts in a mean over several: examples."""
        return len(targets)

    @abstractmethod
    def sums(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Mergeable sums over a batch that `report` needs, `examples` among them: float64 or int64, on the CPU."""

    @abstractmethod
    def report(self, sums: Sums) -> dict[str, float]:
        """The figures of `figures`, by name; NaN without examples."""

    def group_sums(self, outputs: Tensor, targets: Tensor, labels: Tensor) -> Sums:
        """Further sums over a batch, by the examples' own labels, int64 (B,) on the CPU, where targets do not say
        them."""
        return {}

    def generation_sums(self, predictor: nn.Module, shard: Shard) -> Sums:
        """Further sums over a shard, of what a predictor writes by itself and not of its outputs."""
        return {}

    # What a network answers about rows that nobody has labelled

    def question_columns(self, columns: Columns, roles: Roles) -> tuple[str, ...]:
        """Names of the columns that `question` reads, of the columns that `prepare` had."""
        return tuple(name for names in inputs_of(columns, roles).values() for name in names)

    def question(self, columns: Columns, roles: Roles) -> Mapping[str, np.ndarray]:
        """The arrays that batches of further rows are made of, in the place of targets -1 or 0, which mean nothing.

        Args:
            columns: those of `question_columns`, an example a row.

        Raises:
            ColumnError: rows that the task cannot have; they are called asked rows.
        """
        raise NotImplementedError

    def answers(self, outputs: Tensor, inputs: Inputs) -> dict[str, np.ndarray]:
        """The columns of a table, a row an example, that say to a person what a network's outputs mean."""
        raise NotImplementedError

    def answers_about(self, predictor: nn.Module, shard: Shard, picks: Tensor) -> dict[str, np.ndarray]:
        """The columns of `answers` about some of the rows that `question` made, of a predictor in eval mode."""
        inputs, _ = self.batch(shard, picks)
        return self.answers(predictor(inputs), inputs)

    # What a person may look at besides

    def by_class(self, sums: Sums) -> dict[str, Tensor]:
        """Figures by class, float64 (C,), NaN for a class without examples; {} where there are no classes."""
        return {}

    def confusion(self, sums: Sums) -> Tensor | None:
        """int64 (C, C): examples by their class (rows) and the class that was predicted."""
        return None

    def pictures(self, inputs: Tensor) -> Tensor | None:
        """uint8 (B, C, H, W) of network inputs, where they are images."""
        return None

    @property
    def headline(self) -> Figure:
        """The figure that stands for the whole."""
        return self.figures[0]
