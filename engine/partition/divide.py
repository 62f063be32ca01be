"""From a configuration to a partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from algorithms.core.seeds import Seed
from engine.errors import nearest
from engine.partition import rules
from engine.partition.config import BY_CLASS, NEEDS, PartitionConfig
from engine.partition.partition import Partition, PartitionError, group_rows


def divide(
    config: PartitionConfig,
    examples: int,
    labels: np.ndarray | None,
    classes: int,
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    seed: Seed,
    data_fingerprint: str | None = None,
) -> Partition:
    """Deal the training rows to clients. It always ends, and the same seed deals the same rows.

    Args:
        examples: N, the number of training rows.
        labels: int64, (N,), of the training rows, in [0, classes); None where they have no class.
        classes: their number, 0 where there are none.
        columns: further columns of the training rows, (N,) each.
        seed: of the run.
        data_fingerprint: of the data set; where given, a partition file that was saved for another one is refused.

    Raises:
        PartitionError: where a client would be empty, where the column or the file does not fit the data, or where
            rows without a class are to be dealt by class and no column is named.
    """
    seed = seed.at(phase="partition")
    if config.kind == "file":
        assert config.path is not None
        return Partition(Partition.load(config.path, examples, data_fingerprint).rows, "file")
    if config.kind == "column":
        return Partition(_by_column(config, columns, seed), config.kind)
    groups = _groups(config, examples, labels, columns)
    has_classes = config.kind in BY_CLASS and config.column is None
    sizes = np.bincount(groups, minlength=classes if has_classes else 1)
    least = _least(config, examples)
    drawn = _group_counts(config, sizes, least, seed)
    counts = rules.repair(drawn, least, seed)
    return Partition(_deal(counts, groups, seed), config.kind, moved=int(np.abs(counts - drawn).sum()) // 2)


def divide_tests(
    partition: Partition,
    examples: int,
    labels: np.ndarray | None,
    test_labels: np.ndarray | None,
    classes: int,
    seed: Seed,
) -> list[np.ndarray]:
    """Deal the test rows to clients, class by class, in proportion to what each holds of the class for training.

    Rows of a class that nobody holds are left out. Where rows have no class, they are dealt in proportion to sizes.

    Args:
        examples: number of test rows.
        labels, test_labels: int64, (N,), of the training and test rows; None where they have no class.

    Returns:
        int64, (n_k,), sorted, for each client.
    """
    if labels is None or test_labels is None:
        counts, groups = partition.sizes[:, None], np.zeros(examples, np.int64)
    else:
        counts, groups = partition.counts(labels, classes), test_labels
    dealt: list[list[np.ndarray]] = [[] for _ in range(partition.clients)]
    draw = seed.at(phase="tests").numpy("order")
    for group in range(counts.shape[1]):
        rows = draw.permutation(np.flatnonzero(groups == group))
        held = np.cumsum(counts[:, group])
        if held[-1]:
            ends = np.rint(len(rows) * held / held[-1]).astype(np.int64)
            for client, part in enumerate(np.split(rows, ends[:-1])):
                dealt[client].append(part)
    return [np.sort(np.concatenate(parts)) for parts in dealt]


def _groups(
    config: PartitionConfig, examples: int, labels: np.ndarray | None, columns: Mapping[str, Sequence[Any] | np.ndarray]
) -> np.ndarray:
    """int64, (N,): the group of rows that each is dealt with, from 0: all in one, or by class, or by a column."""
    if config.kind not in BY_CLASS:
        return np.zeros(examples, np.int64)
    if config.column is not None:
        return _values(config.column, columns)[1]
    if labels is None:
        others = ", ".join(kind for kind in NEEDS if kind not in BY_CLASS)
        problem = "deals rows by their class, and these examples have none"
        remedy = f"name a column by partition.column to deal by its values, or use one of {others}"
        raise PartitionError("partition.kind", config.kind, problem, remedy)
    return labels


def _group_counts(config: PartitionConfig, sizes: np.ndarray, least: int, seed: Seed) -> np.ndarray:
    """int64, (clients, groups): how many rows of each group the rule gives each client, `sizes` in all."""
    clients, total = cast(int, config.clients), int(sizes.sum())
    if config.kind == "classes":
        each = cast(int, config.classes_per_client)
        _check_classes(config, sizes, clients, each)
        return rules.classes(sizes, clients, each, seed)
    if config.kind == "iid":
        return rules.equal(total, clients)[:, None]
    if config.kind == "power_law":
        return rules.power_law(total, clients, cast(float, config.exponent), seed)[:, None]
    if config.kind == "log_normal":
        return rules.log_normal(total, clients, cast(float, config.sigma), least, seed)[:, None]
    draw = rules.dirichlet_balanced if config.kind == "dirichlet_balanced" else rules.dirichlet
    return draw(sizes, clients, cast(float, config.alpha), least, seed)


def _least(config: PartitionConfig, total: int) -> int:
    """The fewest rows of a client, once it is known that there are enough."""
    clients = cast(int, config.clients)
    if clients > total:
        problem = f"{total} training examples cannot be dealt to {clients} clients without leaving one empty"
        raise PartitionError("partition.clients", clients, problem, f"use at most {total} clients")
    if config.min_examples is None:
        return max(1, min(10, total // (2 * clients))) if config.kind == "dirichlet_balanced" else 1
    if config.min_examples * clients > total:
        problem = f"{clients} clients cannot have {config.min_examples} examples each, out of {total}"
        raise PartitionError("partition.min_examples", config.min_examples, problem, f"use at most {total // clients}")
    return config.min_examples


def _check_classes(config: PartitionConfig, sizes: np.ndarray, clients: int, each: int) -> None:
    present = int(np.count_nonzero(sizes))
    key = "partition.classes_per_client"
    if each > present:
        raise PartitionError(key, each, f"the data has examples of {present} classes", f"use at most {present}")
    if clients * each < present:
        problem = f"{clients} clients with {each} each hold {clients * each} classes at most, but there are {present}"
        raise PartitionError(key, each, problem, "use more clients or more classes per client")
    most = int(np.minimum(sizes, clients).sum())
    if clients * each > most:
        problem = f"{clients} clients with {each} classes each ask for {clients * each} shards, but the examples of "
        problem += f"{present} classes make {most} at most"
        raise PartitionError(key, each, problem, "use fewer clients or fewer classes per client")


def _deal(counts: np.ndarray, groups: np.ndarray, seed: Seed) -> tuple[np.ndarray, ...]:
    """Rows of each group at random, in the numbers asked for."""
    owners = np.empty(len(groups), np.int64)
    for group in range(counts.shape[1]):
        rows = seed.numpy("rows", group).permutation(np.flatnonzero(groups == group))
        owners[rows] = np.repeat(np.arange(len(counts)), counts[:, group])
    return group_rows(np.arange(len(groups)), owners, len(counts))


def _by_column(
    config: PartitionConfig, columns: Mapping[str, Sequence[Any] | np.ndarray], seed: Seed
) -> tuple[np.ndarray, ...]:
    """One client per value, in the values' order; or the values, shuffled, dealt to clients in turn."""
    name = cast(str, config.column)
    values, which = _values(name, columns)
    if config.clients is None:
        return group_rows(np.arange(len(which)), which, len(values))
    if config.clients > len(values):
        problem = f"column {name} has {len(values)} values, too few for {config.clients} clients"
        raise PartitionError("partition.clients", config.clients, problem, f"use at most {len(values)}")
    owners = np.empty(len(values), np.int64)
    owners[seed.numpy("values").permutation(len(values))] = np.arange(len(values)) % config.clients
    return group_rows(np.arange(len(which)), owners[which], config.clients)


def _values(name: str, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The different values of a column, sorted, and int64, (N,), which of them each row has."""
    if name not in columns:
        has = f"the training data has {', '.join(columns)}" if columns else "the training data has labels alone"
        raise PartitionError("partition.column", name, has, f"{nearest(name, columns)}name a column that is there")
    missing = [row for row, value in enumerate(columns[name]) if value is None or value != value]
    if missing:
        raise PartitionError("partition.column", name, f"row {missing[0]} has no value", "every row needs one")
    values, which = np.unique(np.asarray(columns[name]), return_inverse=True)
    return values, which.astype(np.int64)
