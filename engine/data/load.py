"""A data set, decoded once into arrays of bytes that every client shares."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from algorithms.core.columns import Column, ColumnError, Columns
from algorithms.core.task import LABEL, Prepared, Task
from engine.data.config import DataConfig
from engine.data.images import digits, image_folder, parquet, torchvision_sets
from engine.data.split import Split, fixed_order
from engine.data.task import TaskChoice, fitting_task
from engine.errors import DataError

READERS = {
    "digits": digits.read,
    "torchvision": torchvision_sets.read,
    "parquet": parquet.read,
    "imagefolder": image_folder.read,
}


@dataclass(frozen=True, eq=False)
class DataSet:
    """Examples to learn from and examples to test on, as the task's batches need them.

    Attributes:
        name: for people, such as `digits` or `mnist`.
        task: what is learnt, with statistics of the training rows.
        train, test: columns (N, ...) by name; never written to.
        columns: further columns of the training examples by name, (N,) each, such as `domain`.
        fingerprint: SHA-256 (hex) of all columns of both halves, and of the public inputs where there are any.
        public: columns of examples that the server owns, in no client's hands; None where it owns none. Without the
            column of labels where these are not known.
    """

    name: str
    task: Task
    train: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]
    fingerprint: str
    public: Mapping[str, np.ndarray] | None = None

    @property
    def train_labels(self) -> np.ndarray | None:
        """int64, (N,), in [0, classes); None where the task has no classes."""
        return self.train.get(LABEL) if self.task.classes else None

    @property
    def test_labels(self) -> np.ndarray | None:
        """As `train_labels`, of the test rows."""
        return self.test.get(LABEL) if self.task.classes else None

    def __len__(self) -> int:
        """Training examples."""
        return rows_of(self.train)


def rows_of(columns: Mapping[str, np.ndarray]) -> int:
    """How many rows columns have."""
    return len(next(iter(columns.values())))


def load(config: DataConfig, choice: TaskChoice | None = None) -> DataSet:
    """Read, decode and check a data set.

    With `config.validation` above 0 the test half is rows held out of the training half, and so are public rows where
    `config.public` is a share; see `DataConfig`.

    Args:
        choice: the task that is learnt; the one that fits the columns where None.

    Raises:
        DataError: for files that are missing or damaged, and for halves that are empty or do not fit each other.
    """
    read = READERS[config.kind]
    train, held_out, owned = _dealt(config, read(config, "train", config.limit))
    test = held_out if config.validation else read(config, "test", config.test_limit)
    _check(config, train, test)
    chosen = choice or fitting_task(_columns(train), config)
    prepared = _prepared(config, chosen, train, test)
    public = _public(config, chosen, train, owned)
    inputs = [] if public is None else [values for name, values in public.items() if name != LABEL]
    return DataSet(
        name=config.place.replace("\\", "/").rstrip("/").rpartition("/")[2] or config.kind,
        task=prepared.task,
        train=prepared.train,
        test=prepared.test,
        columns=_by_example(train.columns, prepared.rows),
        fingerprint=fingerprint(*prepared.train.values(), *prepared.test.values(), *inputs),
        public=public,
    )


def _by_example(columns: Mapping[str, np.ndarray], rows: np.ndarray | None) -> Mapping[str, np.ndarray]:
    """Columns of rows as columns of the examples made of them."""
    return columns if rows is None else {name: values[rows] for name, values in columns.items()}


def _columns(half: Split) -> Columns:
    return {"image": Column("image", half.images), "label": Column("class", half.labels, half.class_names or ())}


def _prepared(config: DataConfig, chosen: TaskChoice, train: Split, test: Split) -> Prepared:
    try:
        return chosen.type.prepare(_columns(train), _columns(test), {}, chosen.settings)
    except ColumnError as error:
        raise DataError("data.source", config.source, error.problem, error.remedy) from error


def _dealt(config: DataConfig, whole: Split) -> tuple[Split, Split, Split]:
    """Training rows, held-out rows and public rows, by one fixed permutation, each in their first order."""
    order = fixed_order(len(whole.labels))
    held = round(config.validation * len(order))
    owned = round(config.public * len(order)) if isinstance(config.public, float) else 0
    test, public, train = (np.sort(rows) for rows in np.split(order, [held, held + owned]))
    return _rows(whole, train), _rows(whole, test[: config.test_limit]), _rows(whole, public)


def _public(config: DataConfig, chosen: TaskChoice, train: Split, owned: Split) -> Mapping[str, np.ndarray] | None:
    """The examples that the server owns, in the columns of the training examples; of a folder without labels."""
    if config.public is None:
        return None
    if isinstance(config.public, float):
        if not len(owned.labels):
            raise DataError("data.public", config.public, "is less than one row", "make it larger")
        return chosen.type.prepare(_columns(train), _columns(owned), {}, chosen.settings).test
    try:
        found = parquet.read(config.model_copy(update={"source": f"parquet:{config.public}"}), "train", None)
        if not len(found.labels):
            raise DataError("data.public", config.public, "holds no rows", "name a folder with some")
        unlabelled = replace(found, labels=np.zeros_like(found.labels))
        columns = chosen.type.prepare(_columns(train), _columns(unlabelled), {}, chosen.settings).test
    except (DataError, ColumnError) as error:
        raise DataError("data.public", config.public, error.problem, error.remedy) from error
    return {name: values for name, values in columns.items() if name != LABEL}


def _rows(split: Split, rows: np.ndarray) -> Split:
    """The rows of these numbers, in ascending order; the arrays themselves, without a copy, where they are all."""
    if len(rows) == len(split.labels):
        return split
    return replace(
        split,
        images=split.images[rows],
        labels=split.labels[rows],
        place=lambda row: split.place(int(rows[row])),
        columns={name: values[rows] for name, values in split.columns.items()},
    )


def _check(config: DataConfig, train: Split, test: Split) -> None:
    """Refuse halves that are empty or do not fit each other."""
    names = train.class_names or ()
    unprintable = [name for name in names if not name.isprintable()]
    if unprintable:
        problem = f"the class name {unprintable[0]!r} has characters that cannot be printed"
        raise DataError("data.source", config.source, problem, "rename the class")
    if test.class_names not in (None, names):
        problem = f"training classes are {_few(names)} but test classes are {_few(test.class_names)}"
        raise DataError("data.source", config.source, problem, "write the same class names into both")
    halves = {"training": train, "held-out" if config.validation else "test": test}
    for word, half in halves.items():
        if not len(half.labels):
            cause = f"of {config.validation:g} of the rows " if config.validation else ""
            raise DataError(
                "data.source", config.source, f"the {word} set {cause}is empty", "each set needs one image at least"
            )
        _check_labels(config, half, names)


def _check_labels(config: DataConfig, half: Split, names: tuple[str, ...]) -> None:
    wrong = np.flatnonzero((half.labels < 0) | (half.labels >= len(names)))
    if len(wrong):
        row = int(wrong[0])
        problem = f"{half.place(row)} has label {half.labels[row]}, but the {len(names)} classes are {_few(names)}"
        raise DataError("data.source", config.source, problem, f"labels are numbers from 0 to {len(names) - 1}")


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, ... {names[-1]}"


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 (hex) over types, shapes and values, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
