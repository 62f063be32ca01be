"""Small data sets of every kind, as columns; tasks, federations and clients made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from actors.runner import InlineRunner, StepRequest
from actors.steps.orders import Failure, Outcome, WorkerSetup, find_method
from actors.steps.shards import ShardArrays
from algorithms.core.columns import Column, Columns, Roles
from algorithms.core.contract import ClientSpec
from algorithms.core.task import PreparedTask
from algorithms.core.training import Work
from engine.data.task import find_task

ROWS = 24
CLIENTS = 3


def number(*values: float | None) -> Column:
    return Column("number", np.array([np.nan if value is None else value for value in values]))


def category(*values: str | None) -> Column:
    return Column("category", np.array([*values, None], dtype=object)[:-1])


def text(*values: str | None) -> Column:
    return Column("text", np.array([*values, None], dtype=object)[:-1])


def classes(*values: int, names: tuple[str, ...] = ("no", "yes")) -> Column:
    return Column("class", np.array(values, dtype=np.int64), names)


def signal(values: Any) -> Column:
    return Column("signal", np.array(values, dtype=np.float32))


def image(values: Any) -> Column:
    return Column("image", np.array(values, dtype=np.uint8))


@dataclass(frozen=True)
class Case:
    """A task by name, a network for it, and a maker of so many rows of a data set by a seed."""

    name: str
    net: str
    columns: Callable[[int, int], Columns]
    roles: Roles = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prepared(self) -> PreparedTask:
        """The task, and the columns of 24 training rows and 12 test rows."""
        return _prepared(self.name)

    def setup(self, method: str, net: str | None = None, **config: Any) -> WorkerSetup:
        """Three clients who do two steps of four examples a round."""
        return WorkerSetup(
            method=method,
            config=find_method(method).Config(**config),
            task=self.prepared.task,
            work=Work(steps=2, epochs=None, batch=4, lr=0.1),
            clients=tuple(ClientSpec(id=k, net=net or self.net) for k in range(CLIENTS)),
            seed=3,
        )

    @property
    def shards(self) -> ShardArrays:
        """The training examples dealt out in turn."""
        count = len(next(iter(self.prepared.train.values())))
        return ShardArrays.of(self.prepared.train, [np.arange(k, count, CLIENTS) for k in range(CLIENTS)])


def prepare(task: str, train: Columns, test: Columns | None = None, roles: Roles | None = None, **settings: Any) -> Any:
    """Prepare a task's examples of columns; the training rows are the test rows too where None are given."""
    kind = find_task(task)
    return kind.prepare(train, train if test is None else test, roles or {}, kind.Settings(**settings))


@cache
def _prepared(name: str) -> PreparedTask:
    case = CASES[name]
    return prepare(name, case.columns(ROWS, 1), case.columns(ROWS // 2, 2), case.roles, **case.settings)


def _labels(rows: int) -> np.ndarray:
    return np.arange(rows) % 2


def _images(rows: int, seed: int) -> Columns:
    pixels = np.random.default_rng(seed).integers(0, 100, (rows, 1, 8, 8))
    return {"image": image(pixels + 120 * _labels(rows)[:, None, None, None]), "label": classes(*_labels(rows))}


def _signals(rows: int, seed: int) -> Columns:
    samples = np.random.default_rng(seed).normal(size=(rows, 2, 12))
    return {"signal": signal(samples + 2 * _labels(rows)[:, None, None]), "label": classes(*_labels(rows))}


def _texts(rows: int, seed: int) -> Columns:
    rng = np.random.default_rng(seed)
    kinds = ("red apples fall early", "Blue whales don't fly !")
    said = [" ".join(rng.permutation(kinds[label].split())) for label in _labels(rows)]
    return {"text": text(*said), "label": classes(*_labels(rows))}


def _tables(rows: int, seed: int) -> Columns:
    rng = np.random.default_rng(seed)
    age = 50 + 10 * _labels(rows) + rng.normal(size=rows)
    age[::5] = np.nan
    town = [("Bern", "Oslo", None)[place] for place in rng.integers(0, 3, rows)]
    return {"age": number(*age), "town": category(*town), "label": classes(*_labels(rows))}


def _regression(rows: int, seed: int) -> Columns:
    rng = np.random.default_rng(seed)
    size = rng.normal(size=rows)
    return {"size": number(*size), "town": category(*np.where(size > 0, "Bern", "Oslo")), "target": number(*7 * size)}


def _language(rows: int, seed: int) -> Columns:
    rng = np.random.default_rng(seed)
    return {"text": text(*("abcab"[: 3 + place] * 2 for place in rng.integers(0, 3, rows)))}


def _modalities(rows: int, seed: int) -> Columns:
    images, texts = _images(rows, seed), _texts(rows, seed)
    present = np.arange(rows) % 3 > 0
    said = [None if row % 4 == 1 else words for row, words in enumerate(texts["text"].values)]
    photo = Column("image", images["image"].values, present=present)
    return {"photo": photo, "caption": text(*said), "label": classes(*_labels(rows))}


CASES = {
    case.name: case
    for case in (
        Case("images", "small_cnn", _images),
        Case("signals", "cnn1d", _signals),
        Case("texts", "fasttext", _texts, settings={"vocabulary": 6, "length": 4}),
        Case("tables", "mlp", _tables),
        Case("regression", "mlp", _regression),
        Case("language", "lstm_lm", _language, settings={"length": 4}),
        Case("modalities", "two_branch", _modalities, settings={"length": 4}),
    )
}
"""A small data set for every task, by the task's name."""

WITH_CLASSES = [name for name in CASES if name not in ("regression", "language")]


class GroupedRunner(InlineRunner):
    """Performs the steps of three clients in one call, as a host that carries several does."""

    def run(self, request: StepRequest) -> Iterator[Outcome | Failure]:
        for first in range(0, len(request.clients), CLIENTS):
            yield from map(self._accept, self._perform(request, request.clients[first : first + CLIENTS]))
