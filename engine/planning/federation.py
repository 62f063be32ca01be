"""A federation: the data, who holds which of it, and the casting of a run's workers. Nothing has started yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from actors.runner import InlineRunner
from actors.steps.orders import Casting
from actors.steps.shards import ShardArrays
from algorithms.core.scoring import score
from algorithms.core.seeds import Seed
from algorithms.core.task import LABEL, Shard
from engine.config import RunConfig
from engine.data import DataSet, load
from engine.data.load import rows_of
from engine.partition import Partition, divide
from engine.records import Evaluation, evaluation_of


def _own_tests(dataset: DataSet, partition: Partition, seed: Seed) -> ShardArrays:
    """The test set dealt to clients class by class, in proportion to what each holds of the class for training; without
    classes, in proportion to their examples."""
    counts = partition.counts(dataset.train_labels, dataset.task.classes)
    groups = np.zeros(rows_of(dataset.test), np.int64) if dataset.test_labels is None else dataset.test_labels
    dealt: list[list[np.ndarray]] = [[] for _ in range(len(counts))]
    draw = seed.at(phase="tests").numpy("order")
    for group in range(counts.shape[1]):
        rows = draw.permutation(np.flatnonzero(groups == group))
        held = np.cumsum(counts[:, group])
        if held[-1]:
            ends = np.rint(len(rows) * held / held[-1]).astype(np.int64)
            for client, part in enumerate(np.split(rows, ends[:-1])):
                dealt[client].append(part)
    own = [np.sort(np.concatenate(parts)) for parts in dealt]
    return ShardArrays.of(dataset.test, own)


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
        return cls.of(config, load(config.data, config.task))

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
        shards = ShardArrays.of(dataset.train, partition.rows)
        if config.method.type.personal:
            shards = replace(shards, tests=_own_tests(dataset, partition, Seed(config.seed)))
        return cls(config, dataset, partition, casting, shards)

    @property
    def public(self) -> Shard | None:
        """The examples that the server owns, None where it owns none; every label is -1 unless the method uses them."""
        owned = self.dataset.public
        if owned is None:
            return None
        labelled = self.config.method.type.owns(self.config.method.settings) == "labelled images"
        known = owned if labelled else {}
        return ShardArrays.whole({**owned, LABEL: known.get(LABEL, np.full(rows_of(owned), -1))})

    def inline(self) -> InlineRunner:
        """A runner in this process."""
        return InlineRunner(self.casting, self.shards)

    def evaluate(self, predictor: torch.nn.Module) -> Evaluation:
        """A predictor on the test set."""
        task, device = self.dataset.task, self.casting.torch_device
        return evaluation_of(task, score(predictor, task, self._test, device, self.config.evaluate.batch))

    @cached_property
    def _test(self) -> Shard:
        return ShardArrays.whole(self.dataset.test)
