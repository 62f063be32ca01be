"""Classification from several modalities, of which an example may lack some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from algorithms.core import batches, settings
from algorithms.core.classification import Classification, classes_of, has_label, no_labels
from algorithms.core.columns import MEDIA, Column, ColumnError, Columns, Roles, inputs_of, same_column
from algorithms.core.settings import setting
from algorithms.core.task import LABEL, PreparedTask, Shard
from algorithms.nets.forms import Inputs, Modalities
from algorithms.tasks._tables import TABLE
from algorithms.tasks.images import IMAGE, ImageTask
from algorithms.tasks.signals import SIGNAL, SignalTask
from algorithms.tasks.tables import TableTask
from algorithms.tasks.texts import TEXT, TextTask

PRESENT = "present"
"""Name of the column of which modalities an example has, bool (N, modalities)."""

_CLASS = "(class)"
"""Name of the column of classes for a part's task; no name that a column is likely to have."""

Part = ImageTask | SignalTask | TextTask | TableTask


@dataclass(frozen=True)
class ModalityTask(Classification):
    """Classification from several modalities. Each is prepared as the task of it alone would, by the training rows that
    have it; one that an example lacks is zeros.

    Attributes:
        parts: the task of each modality, by its name.
    """

    title: ClassVar[str] = "classification from several modalities"

    @dataclass(frozen=True, kw_only=True)
    class Settings(settings.Config):
        vocabulary: int = setting(10_000, "texts: different words that are told apart", ge=1)
        length: int = setting(64, "texts: words that are read, from the beginning", ge=1)

    parts: tuple[tuple[str, Part], ...]

    @classmethod
    def fits(cls, columns: Columns, roles: Roles) -> bool:
        return len(inputs_of(columns, roles)) > 1 and has_label(columns, roles)

    @classmethod
    def prepare(cls, train: Columns, test: Columns, roles: Roles, settings: Any) -> PreparedTask:
        names, labels, test_labels = classes_of(train, test, roles)
        modalities = inputs_of(train, roles)
        _refuse_names(modalities)
        classes = Column("class", labels, names), Column("class", test_labels, names)
        found = {name: _Modality.of(name, columns, train, test) for name, columns in modalities.items()}
        made = {name: one.prepare(*classes, settings) for name, one in found.items()}
        return PreparedTask(
            cls(names, tuple((name, task) for name, (task, _, _) in made.items())),
            train=_join({name: ours for name, (_, ours, _) in made.items()}, [one.ours for one in found.values()])
            | {LABEL: labels},
            test=_join({name: its for name, (_, _, its) in made.items()}, [one.theirs for one in found.values()])
            | {LABEL: test_labels},
        )

    def question_columns(self, columns: Columns, roles: Roles) -> tuple[str, ...]:
        return tuple(name for one, part in self.parts for name in _columns_of(one, part, roles))

    def question(self, columns: Columns, roles: Roles) -> Mapping[str, np.ndarray]:
        """A modality of which no column is there is one that no row has."""
        count = len(next(iter(columns.values())))
        found: dict[str, Mapping[str, np.ndarray]] = {}
        has = []
        for one, part in self.parts:
            names = _columns_of(one, part, roles)
            own = {name: columns[name] for name in names if name in columns}
            blank = _blank(part, names, count)
            filled = _fill(own, blank) if own else blank
            made = part.question(filled, {_role_of(part): names})
            found[one] = {key: values for key, values in made.items() if key != LABEL}
            has.append(_any_value(own) if own else np.zeros(count, dtype=bool))
        return _join(found, has) | {LABEL: no_labels(count)}

    @property
    def form(self) -> Modalities:
        return Modalities({name: part.form for name, part in self.parts})

    def batch(
        self,
        shard: Shard,
        picks: Tensor,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Inputs, Tensor]:
        """Inputs as `Modalities` has them, and classes, int64 (B,). Nothing is drawn."""
        rows = shard.rows[picks]
        present = shard.columns[PRESENT][rows].to(device)
        inputs: dict[str, Tensor] = {PRESENT: present.to(torch.float32)}
        for (name, part), has in zip(self.parts, present.unbind(1), strict=True):
            own = {key.removeprefix(f"{name}."): v for key, v in shard.columns.items() if key.startswith(f"{name}.")}
            made, _ = part.batch(Shard({**own, LABEL: shard.columns[LABEL]}, shard.rows), picks, device=device)
            made = _zero_where_absent(made, has)
            inputs |= {name: made} if isinstance(made, Tensor) else {f"{name}.{key}": v for key, v in made.items()}
        return inputs, shard.columns[LABEL][rows].to(device)


@dataclass(frozen=True, eq=False)
class _Modality:
    """One modality's columns in both halves of a data set, and which rows have it.

    Attributes:
        task: of a data set that had this alone.
        roles: of the columns for that task.
        train, test: the columns by name.
        ours, theirs: bool (N,), of training and of test rows.
    """

    task: type[Part]
    roles: Roles
    train: Columns
    test: Columns
    ours: np.ndarray
    theirs: np.ndarray

    @classmethod
    def of(cls, name: str, columns: Sequence[str], train: Columns, test: Columns) -> _Modality:
        lacking = [column for column in columns if column not in train]
        if lacking:
            raise ColumnError(name, f"there is no column {lacking[0]!r}", f"there are {', '.join(train)}")
        own = {column: train[column] for column in columns}
        theirs = {column: same_column(test, column, name, train[column].content, "test") for column in columns}
        content = own[columns[0]].content
        task, role = _PARTS[content if content in MEDIA and len(columns) == 1 else TABLE]
        has = _any_value(own)
        if not has.any():
            raise ColumnError(
                name, f"no training row has a value in column {columns[0]!r}", "leave this modality out by data.columns"
            )
        return cls(task, {role: tuple(columns), LABEL: (_CLASS,)}, own, theirs, has, _any_value(theirs))

    def prepare(
        self, classes: Column, test_classes: Column, options: Any
    ) -> tuple[Part, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """The task, with statistics of the training rows that have the modality, and the columns of both halves."""
        rows = np.flatnonzero(self.ours)
        settings = (
            self.task.Settings(vocabulary=options.vocabulary, length=options.length)
            if issubclass(self.task, TextTask)
            else self.task.Settings()
        )
        known = {name: column.take(rows) for name, column in self.train.items()} | {_CLASS: classes.take(rows)}
        halves = [
            self.task.prepare(known, {**_fill(columns, known), _CLASS: of_class}, self.roles, settings)
            for columns, of_class in ((self.train, classes), (self.test, test_classes))
        ]
        task: Any = halves[0].task
        ours, theirs = ({name: v for name, v in one.test.items() if name != LABEL} for one in halves)
        return task, ours, theirs


_PARTS: Mapping[str, tuple[type[Part], str]] = {
    "image": (ImageTask, IMAGE),
    "signal": (SignalTask, SIGNAL),
    "text": (TextTask, TEXT),
    TABLE: (TableTask, TABLE),
}
"""The task and the role of a column of some content, and of the columns of a table."""


def _role_of(part: Part) -> str:
    return next(role for task, role in _PARTS.values() if isinstance(part, task))


def _columns_of(name: str, part: Part, roles: Roles) -> tuple[str, ...]:
    """The columns of a modality."""
    return part.encoding.names if isinstance(part, TableTask) else roles.get(name, (name,))


def _blank(part: Part, names: Sequence[str], count: int) -> dict[str, Column]:
    """The columns of rows that lack a modality."""
    match part:
        case ImageTask(shape=shape):
            return {names[0]: Column("image", np.zeros((count, *shape), np.uint8))}
        case SignalTask(shape=shape):
            return {names[0]: Column("signal", np.zeros((count, *shape), np.float32))}
        case TextTask():
            return {names[0]: Column("text", np.full(count, "", dtype=object))}
        case TableTask(encoding=encoding):
            numbers = {one.name: Column("number", np.full(count, np.nan)) for one in encoding.numbers}
            words = {one.name: Column("category", np.full(count, None, object)) for one in encoding.categories}
            return {**numbers, **words}


def _any_value(columns: Columns) -> np.ndarray:
    return np.any([column.has_value() for column in columns.values()], axis=0)


def _fill(columns: Columns, known: Columns) -> Columns:
    """Columns in which rows without a medium have an empty one. A table's own values may be missing.

    Args:
        known: the same columns of rows that have the modality. Where no row of `columns` has a medium, nothing else
            says what shape it has.
    """
    return {name: _without_gaps(column, known[name]) for name, column in columns.items()}


def _without_gaps(column: Column, known: Column) -> Column:
    gaps = ~column.has_value()
    if column.content not in MEDIA or not gaps.any():
        return column
    values = column.values.copy()
    if gaps.all():
        values = np.empty((len(column), *known.values.shape[1:]), values.dtype)
    values[gaps] = "" if column.content == "text" else 0
    return Column(column.content, values)


def _join(parts: Mapping[str, Mapping[str, np.ndarray]], has: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    columns = {f"{name}.{key}": values for name, own in parts.items() for key, values in own.items()}
    return {**columns, PRESENT: np.stack(has, 1)}


def _zero_where_absent(inputs: Inputs, has: Tensor) -> Inputs:
    return batches.each(inputs, lambda tensor: tensor.masked_fill(~has.view(-1, *[1] * (tensor.dim() - 1)), 0))


def _refuse_names(modalities: Mapping[str, Sequence[str]]) -> None:
    wrong = [name for name in modalities if name == PRESENT or "." in name]
    if wrong:
        problem = f"a modality cannot be called {wrong[0]!r}"
        raise ColumnError(wrong[0], problem, f"name it by data.columns, without a point and other than {PRESENT!r}")
