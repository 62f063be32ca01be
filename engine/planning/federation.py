"""A federation: the data, who holds which of it, and what a run's workers are set up with. Nothing has started yet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from actors.process import set_kernels, take_huge_pages
from actors.runner import InlineRunner
from actors.steps.orders import WorkerSetup
from actors.steps.shards import ShardArrays
from algorithms.core.needs import Needs
from algorithms.core.records import digest
from algorithms.core.scoring import score, score_each
from algorithms.core.seeds import Seed
from algorithms.core.task import LABEL, Shard
from engine.config import RunConfig
from engine.config.own_code import is_own
from engine.data import DataSet, load
from engine.data.load import rows_of
from engine.errors import ConfigError, Problem
from engine.partition import Partition, divide, divide_tests, hold_out, shift_columns
from engine.planning.weights import starting_weights
from engine.pretraining import ensure_base
from engine.pretraining.recipe import RECIPES
from engine.records import ClientFigures, Evaluation, evaluation_of


def _deal_tests(config: RunConfig, dataset: DataSet, partition: Partition) -> tuple[np.ndarray, ...]:
    """The rows of the test set that each client is judged by."""
    classes, seed = dataset.task.classes, Seed(config.seed)
    rows = rows_of(dataset.test)
    return tuple(divide_tests(partition, rows, dataset.train_labels, dataset.test_labels, classes, seed))


def _own_tests(config: RunConfig, dataset: DataSet, rows: Sequence[np.ndarray]) -> ShardArrays:
    """The test set dealt to clients, each client's rows shifted as those it trains on."""
    task, seed = dataset.task, Seed(config.seed)
    held = shift_columns(dataset.test, rows, config.shift, seed, target=task.target, classes=task.classes, test=True)
    return ShardArrays.of(held, rows)


def _shift_training(config: RunConfig, dataset: DataSet, partition: Partition) -> DataSet:
    """The data set with its training half as clients have it."""
    task, seed = dataset.task, Seed(config.seed)
    held = shift_columns(dataset.train, partition.rows, config.shift, seed, target=task.target, classes=task.classes)
    return replace(dataset, train=held)


def _ask_needs(setup: WorkerSetup, counts: torch.Tensor) -> Needs:
    """Ask the method for its needs. A failure of a method of one's own is reported like any other mistake."""
    try:
        return setup.needs(counts)
    except Exception as error:
        if not is_own(setup.method):
            raise
        reason = f"fails when it is asked what it needs: {type(error).__name__}: {error}"
        raise ConfigError([Problem("method.name", setup.method, reason)]) from error


def read_data(config: RunConfig) -> DataSet:
    """The data set of a run, read as its clients' network reads it where they have one.

    Raises:
        DataError: what is wrong with the data.
        PretrainingError: a tiny language model that cannot be made.
    """
    nets = config.clients.net
    named = getattr(config.task.settings, "net", None) if config.task else None
    net = named or (nets if isinstance(nets, str) else None)
    folder = str(ensure_base(net, _say)) if net is not None and net in RECIPES else None
    return load(config.data, config.task, net, folder)


def _say(line: str) -> None:
    """A line for the person who waits; standard output may be for machines."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, eq=False)
class Federation:
    """Everything that is fixed before the first round.

    Attributes:
        config: complete and resolved.
        dataset: its training half is shifted as `config.shift` says; its test half is as it was read.
        partition: of the rows that clients train on.
        validation_rows: int64 (m_k,), each client's validation rows, of the training half; () where the run has none.
        setup: what a worker is told.
        shards: every client's examples, without copies.
        needs: what the method answers, which is asked once, here.
        test_rows: int64 (n_k,) for each client, the rows of the test set that it is judged by.
    """

    config: RunConfig
    dataset: DataSet
    partition: Partition
    validation_rows: tuple[np.ndarray, ...]
    setup: WorkerSetup
    shards: ShardArrays
    needs: Needs
    test_rows: tuple[np.ndarray, ...]

    @classmethod
    def gather(cls, config: RunConfig) -> Federation:
        """Read the data and deal it out.

        Raises:
            BitsError: this process cannot compute the bits that are asked.
            DataError, PartitionError: what is wrong with the data, or with the way it is to be dealt.
            ConfigError: shifts that such data cannot have, or a method of one's own that fails when it is asked.
        """
        take_huge_pages()
        set_kernels(config.runner.bits)
        return cls.of(config, read_data(config))

    @classmethod
    def of(cls, config: RunConfig, dataset: DataSet) -> Federation:
        """Deal out what was read already from `config.data`; see `gather`."""
        partition = divide(
            config.partition,
            len(dataset),
            dataset.train_labels,
            dataset.task.classes,
            dataset.columns,
            Seed(config.seed),
            dataset.fingerprint,
        )
        setup = WorkerSetup(
            method=config.method.name,
            config=config.method.settings,
            task=dataset.task,
            work=config.clients.work(config.rounds),
            clients=config.clients.specs(len(partition.rows), Seed(config.seed)),
            seed=config.seed,
            device=config.runner.device,
            widths=config.clients.redrawn(),
            stack=config.clients.stack,
        )
        setup = replace(setup, starts=starting_weights(config.clients.weights, setup.clients, dataset.task))
        personal = config.method.type.personal
        test_rows = _deal_tests(config, dataset, partition)
        tests = _own_tests(config, dataset, test_rows) if personal else None
        dataset = _shift_training(config, dataset, partition)
        held: tuple[np.ndarray, ...] = ()
        if config.stop is not None:
            partition, held = hold_out(partition, config.stop.share, Seed(config.seed))
        validations = ShardArrays.of(dataset.train, held) if personal and held else None
        # The method is asked about the examples as clients have them.
        counts = torch.from_numpy(partition.counts(dataset.train_labels, dataset.task.classes))
        shards = replace(ShardArrays.of(dataset.train, partition.rows), tests=tests, validations=validations)
        needs = _ask_needs(setup, counts)
        return cls(config, dataset, partition, held, setup, shards, needs=needs, test_rows=test_rows)

    @property
    def public(self) -> Shard | None:
        """The examples that the server owns, None where it owns none; every label is -1 unless the method uses them."""
        owned = self.dataset.public
        if owned is None:
            return None
        known = owned if self.needs.public == "labelled examples" else {}
        return ShardArrays.whole({**owned, LABEL: known.get(LABEL, np.full(rows_of(owned), -1))})

    @property
    def weights_digest(self) -> str | None:
        """SHA-256 over the tensors that `clients.weights` gave, wherever they came from; None where it names none."""
        return digest(self.setup.starts) if self.setup.starts else None

    def inline(self) -> InlineRunner:
        """A runner in this process."""
        return InlineRunner(self.setup, self.shards)

    def evaluate(self, predictor: torch.nn.Module) -> Evaluation:
        """A predictor on the test set."""
        task, device = self.dataset.task, self.setup.torch_device
        return evaluation_of(task, score(predictor, task, self._test, device, self.config.evaluate.batch))

    def validate(self, predictor: torch.nn.Module) -> Evaluation:
        """A predictor on all clients' validation rows, as clients have them."""
        task, device = self.dataset.task, self.setup.torch_device
        return evaluation_of(task, score(predictor, task, self._validation, device, self.config.evaluate.batch))

    @cached_property
    def _validation(self) -> Shard:
        return ShardArrays.of(self.dataset.train, [np.concatenate(self.validation_rows)])(0)

    def evaluate_clients(self, predictor: torch.nn.Module) -> ClientFigures:
        """A predictor on each client's own share of the test set, in one pass over it."""
        task, device = self.dataset.task, self.setup.torch_device
        tests = self.shards.tests or _own_tests(self.config, self.dataset, self.test_rows)
        shards = [tests(client) for client in range(len(tests))]
        found = [
            {**task.report(sums), "examples": len(shard)}
            for shard, sums in zip(
                shards, score_each(predictor, task, shards, device, self.config.evaluate.batch), strict=True
            )
        ]
        return ClientFigures.of(task.figures, found)

    @cached_property
    def _test(self) -> Shard:
        return ShardArrays.whole(self.dataset.test)
