"""A data set, decoded once into arrays of bytes that every client shares."""

from __future__ import annotations

import hashlib
import inspect
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from algorithms.core.columns import MEDIA, Column, ColumnError, Content, SettingError
from algorithms.core.task import LABEL, PreparedTask, Task
from engine.data.config import INSTRUCTIONS, DataConfig
from engine.data.contents import Contents, plain_columns
from engine.data.half import Half, HalfName, fixed_order
from engine.data.images import digits, image_folder, torchvision_sets
from engine.data.instructions import source as instructions
from engine.data.tables import csv_files, hub, json_lines, parquet, sentences, sklearn_sets
from engine.data.task import TaskChoice, fitting_task
from engine.errors import ConfigError, DataError, Problem, nearest

GENERATED = {"generated:sentences": sentences.read, INSTRUCTIONS: instructions.read}


def _read_generated(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    return GENERATED[config.source](config, half, limit)


READERS = {
    "digits": digits.read,
    "generated": _read_generated,
    "sklearn": sklearn_sets.read,
    "torchvision": torchvision_sets.read,
    "hf": hub.read,
    "csv": csv_files.read,
    "jsonl": json_lines.read,
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
        facts: how values of the source became classes, where that is not plain, and what was left out or changed.
        contents: of every column of the source, by name.
    """

    name: str
    task: Task
    train: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]
    fingerprint: str
    public: Mapping[str, np.ndarray] | None = None
    facts: tuple[str, ...] = ()
    contents: Mapping[str, Content] = field(default_factory=dict)

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
    """The number of rows of columns."""
    return len(next(iter(columns.values())))


def load(
    config: DataConfig, choice: TaskChoice | None = None, net: str | None = None, folder: str | None = None
) -> DataSet:
    """Read, decode and check a data set.

    With `config.validation` above 0 the test half is rows held out of the training half, and so are public rows where
    `config.public` is a share; see `DataConfig`.

    Args:
        choice: the task that is learnt; the one that fits the columns where None.
        net: the clients' network, for tasks that read data as networks do; None where clients have several.
        folder: where that network lies on this machine, if its name does not say so.

    Raises:
        DataError: for files that are missing or damaged, and for halves that are empty or do not fit each other.
    """
    read = READERS[config.kind]
    found = read(config, "train", config.limit)
    contents = Contents.of(config, found)
    whole = contents.apply(found, "training")
    _check_named(config, whole)
    chosen = (choice or fitting_task(config, whole)).reading_for(net, folder)
    train, held_out, owned = _deal(config, whole)
    facts = (*contents.facts, *found.facts)
    if config.validation:
        test = held_out
        _check_held_out(config, train, held_out)
    else:
        other = read(config, "test", config.test_limit)
        test = contents.apply(other, "test")
        facts = (*facts, *(fact for fact in other.facts if fact not in facts))
    prepared = _prepare(config, chosen, train, test)
    public = _public(config, chosen, contents, train, owned)
    inputs = [] if public is None else [values for name, values in public.items() if name != LABEL]
    return DataSet(
        name=config.place.replace("\\", "/").rstrip("/").rpartition("/")[2] or config.kind,
        task=prepared.task,
        train=prepared.train,
        test=prepared.test,
        columns=_by_example(plain_columns(train.columns, _label(config, train)), prepared.rows),
        fingerprint=fingerprint(*prepared.train.values(), *prepared.test.values(), *inputs),
        public=public,
        facts=(*facts, *prepared.facts),
        contents={name: column.content for name, column in whole.columns.items()},
    )


def _check_named(config: DataConfig, half: Half) -> None:
    """Refuse columns that are named and not there, and others than images, signals or words in the part of such."""
    for role, names in config.columns.items():
        for name in names:
            has = f"{half.origin} has {', '.join(half.columns)}"
            if name in half.unread:
                problem = f"{half.unread[name]}, which cannot be read; {has}"
            elif name not in half.columns:
                problem = f"there is no column {name!r}; {nearest(name, half.columns)}{has}"
            elif role in MEDIA and half.columns[name].content != role:
                problem = f"column {name!r} of {half.origin} holds {half.columns[name].content} values, not {role}"
            else:
                continue
            raise DataError(f"data.columns.{role}", name, problem, "name a column that is there and holds such values")


def _check_held_out(config: DataConfig, train: Half, held_out: Half) -> None:
    if not len(held_out) or not len(train):
        word, share = ("training", 1 - config.validation) if len(held_out) else ("held-out", config.validation)
        problem = f"the {word} set of {share:g} of the rows is empty"
        raise DataError("data.source", config.source, problem, "each set needs one row at least")


def _label(config: DataConfig, train: Half) -> str | None:
    """The column of classes: the one that is named, or the only one."""
    classes = [name for name, column in train.columns.items() if column.content == "class"]
    named = config.columns.get(LABEL, (LABEL,))[0]
    return named if named in classes else classes[0] if len(classes) == 1 else None


def _by_example(columns: Mapping[str, np.ndarray], rows: np.ndarray | None) -> Mapping[str, np.ndarray]:
    """Columns of rows as columns of the examples made of them."""
    return columns if rows is None else {name: values[rows] for name, values in columns.items()}


def _prepare(config: DataConfig, chosen: TaskChoice, train: Half, test: Half) -> PreparedTask:
    try:
        return chosen.type.prepare(train.columns, test.columns, config.columns, chosen.settings)
    except SettingError as error:
        value = getattr(chosen.settings, error.setting)
        raise DataError(f"task.{error.setting}", value, error.problem, error.remedy) from error
    except ColumnError as error:
        raise _refusal(config, {"training": train, "test": test}, error) from error
    # Whatever goes wrong in a user's class is the answer to why there is no task; the traceback travels as cause.
    except Exception as error:
        if not chosen.is_own:
            raise
        place = _place_in(inspect.getfile(chosen.type), error)
        reason = f"fails on the columns of {train.origin}: {type(error).__name__}: {error}{place}"
        raise ConfigError([Problem("task.name", chosen.name, reason)]) from error


def _place_in(file: str, error: Exception) -> str:
    """The last line of a file that an error went through, in brackets, a blank before it; empty where there is none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if lines else ""


def _refusal(config: DataConfig, halves: Mapping[str, Half], error: ColumnError) -> DataError:
    """A task's error about columns, at the key that chose them; a row of a half, and all of them, by their place in the
    source."""

    def place_text(found: re.Match[str]) -> str:
        half, row = halves[found[1]], found[2]
        return half.place(int(row)) if row else f"{found[0]} of {half.origin}"

    train = halves["training"]
    if train.ragged and error.role in ("signal", "table"):
        remedy = "cut or pad its lists: a signal has as many samples in every row"
        return DataError("data.source", config.source, "; ".join(train.ragged.values()), remedy)
    problem, places = re.subn(rf"\b({'|'.join(halves)}) row(?: (\d+)|s)\b", place_text, error.problem)
    problem = problem if places else f"{train.origin}: {problem}"
    unread = {**halves["test"].unread, **train.unread}
    problem += f" ({'; '.join(unread.values())})" if unread else ""
    if error.role not in config.columns:
        return DataError("data.source", config.source, problem, error.remedy)
    names = config.columns[error.role]
    value = names[0] if len(names) == 1 else list(names)
    return DataError(f"data.columns.{error.role}", value, problem, error.remedy)


def _deal(config: DataConfig, whole: Half) -> tuple[Half, Half, Half]:
    """Training rows, held-out rows and public rows, by one fixed permutation, each in their first order."""
    order = fixed_order(len(whole))
    held = round(config.validation * len(order))
    owned = round(config.public * len(order)) if isinstance(config.public, float) else 0
    test, public, train = (np.sort(rows) for rows in np.split(order, [held, held + owned]))
    return whole.take(train), whole.take(test[: config.test_limit]), whole.take(public)


def _public(
    config: DataConfig, chosen: TaskChoice, contents: Contents, train: Half, owned: Half
) -> Mapping[str, np.ndarray] | None:
    """The examples that the server owns, in the columns of the training examples; of a folder without labels."""
    if config.public is None:
        return None
    if isinstance(config.public, float):
        if not len(owned):
            raise DataError("data.public", config.public, "is less than one row", "make it larger")
        return _prepare(config, chosen, train, owned).test
    try:
        columns = _prepare(config, chosen, train, _without_labels(config, contents, train)).test
    except DataError as error:
        raise DataError("data.public", config.public, error.problem, error.remedy) from error
    return {name: values for name, values in columns.items() if name != LABEL}


def _without_labels(config: DataConfig, contents: Contents, train: Half) -> Half:
    """The rows of a public folder, as the training rows have them, all of the first class."""
    found = parquet.read(config.model_copy(update={"source": f"parquet:{config.public}"}), "train", None)
    label = _label(config, train)
    plain = {name: column for name, column in found.columns.items() if name != label}
    half = contents.apply(found.with_columns(plain), "public")
    if label is None:
        return half
    first = Column("class", np.zeros(len(half), np.int64), train.columns[label].names)
    return half.with_columns({**half.columns, label: first})


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 (hex) over types, shapes and values, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
