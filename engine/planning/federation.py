"""A federation: the data, who holds which of it, and the casting of a run's workers. Nothing has started yet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from actors.runner import InlineRunner
from actors.steps.orders import Casting
from actors.steps.shards import ShardArrays
from algorithms.core.seeds import Seed
from algorithms.core.task import Shard
from engine.config import RunConfig
from engine.data import DataSet, load
from engine.partition import Partition, divide
from engine.planning.evaluation import evaluate
from engine.records import Evaluation


def _own_tests(dataset: DataSet, partition: Partition, seed: Seed) -> ShardArrays:
    """The test set dealt to clients class by class, in proportion to what each holds of the class for training."""
    counts = partition.counts(dataset.train_labels, dataset.task.classes)
    dealt: list[list[np.ndarray]] = [[] for _ in range(len(counts))]
    draw = seed.at(phase="tests").numpy("order")
    for label in range(dataset.task.classes):
        rows = draw.permutation(np.flatnonzero(dataset.test_labels == label))
        held = np.cumsum(counts[:, label])
        if held[-1]:
            ends = np.rint(len(rows) * held / held[-1]).astype(np.int64)
            for client, part in enumerate(np.split(rows, ends[:-1])):
                dealt[client].append(part)
    own = [np.sort(np.concatenate(parts)) for parts in dealt]
    return ShardArrays.of(dataset.test_images, dataset.test_labels, own)


@dataclass(frozen=True, eq=False)
class Federation:
    """Everything that is fixed before the first round.

    Attributes:
        config: complete and resolved.
        casting: what a worker is told.
        shards: every client's examples, without copies.
    """

    config: RunConfig
    dataset: DataSet
    partition: Partition
    casting: Casting
    shards: ShardArrays

    @classmethod
    def gather(cls, config: RunConfig) -> Federation:
        """Read the data and deal it out.

        Raises:
            DataError, PartitionError: what is wrong with the data, or with the way it is to be dealt.
        """
        return cls.of(config, load(config.data))

    @classmethod
    def of(cls, config: RunConfig, dataset: DataSet) -> Federation:
        """Deal out what was read already from `config.data`; see `gather`."""
        partition = divide(
            config.partition,
            dataset.train_labels,
            dataset.task.classes,
            dataset.columns,
            Seed(config.seed),
            dataset.fingerprint,
        )
        casting = Casting(
            method=config.method.name,
            config=config.method.settings,
            task=dataset.task,
            work=config.clients.work(),
            clients=config.clients.specs(len(partition.rows), Seed(config.seed)),
            seed=config.seed,
            device=config.runner.device,
            widths=config.clients.redrawn(),
            stack=config.clients.stack,
        )
        shards = ShardArrays.of(dataset.train_images, dataset.train_labels, partition.rows)
        if config.method.type.personal:
            shards = replace(shards, tests=_own_tests(dataset, partition, Seed(config.seed)))
        return cls(config, dataset, partition, casting, shards)

    @property
    def public(self) -> Shard | None:
        """The examples that the server owns, None where it owns none; every label is -1 unless the method uses them."""
        owned = self.dataset.public
        if owned is None:
            return None
        unknown = np.full(len(owned.images), -1)
        labelled = self.config.method.type.owns(self.config.method.settings) == "labelled images"
        labels = owned.labels if labelled and owned.labels is not None else unknown
        return ShardArrays.of(owned.images, labels, [np.arange(len(labels))])(0)

    def inline(self) -> InlineRunner:
        """A runner in this process."""
        return InlineRunner(self.casting, self.shards)

    def evaluate(self, predictor: torch.nn.Module) -> Evaluation:
        """A predictor on the test set."""
        return evaluate(
            predictor,
            self.dataset.task,
            self.dataset.test_images,
            self.dataset.test_labels,
            self.config.evaluate.batch,
            self.casting.torch_device,
        )
