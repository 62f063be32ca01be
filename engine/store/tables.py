"""The tables of a run's folder: what happened, as rows.

`rounds.parquet` and `ledger.parquet` hold only what repeats exactly, so that a run that was resumed has the very rows
of one that was not. Wall time stands apart, in `seconds.parquet`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.cohort.delivery import NOBODY, FaultEntry
from engine.records import ClientFigures, Evaluation, GeneratedPictures, RoundRecord, StageRecord

SERVER = "server"
"""Phase of the metrics of a method's server side."""

FAULT = "fault/"
"""Begins the names of rows that say what went wrong: `fault/host_lost/retry`."""

LEDGER = pa.schema(
    [
        ("round", pa.int32()),
        ("phase", pa.string()),
        ("client", pa.int32()),
        ("direction", pa.string()),
        ("kind", pa.string()),
        ("bytes", pa.int64()),
    ]
)
"""One row for each message and kind; `direction` is `up` (to the server) or `down`."""

ROUNDS = pa.schema(
    [
        ("round", pa.int32()),
        ("phase", pa.string()),
        ("client", pa.int32()),
        ("name", pa.string()),
        ("value", pa.float64()),
    ]
)
"""One row for each number, in five families.

- of a client's step: `phase` is the step, `client` its number from 0;
- of what went wrong in one: the same, `name` begins with `FAULT`, and the value is how often; `client` is -1 where it
  was in the server's own work, and `phase` names that;
- of the server's side: `phase` is `server`, `client` -1;
- of the same model on validation rows, where the run has some: the same, `phase` is `validation`;
- of a stage on the global test set: `phase` is the stage (`global` is the model after the round), `client` -1, `name`
  is one of the task's figures, as `accuracy` in [0, 1] or `loss`, or `accuracy[c]` for class c from 0 (NaN where the
  test set has none).
"""

SECONDS = pa.schema([("round", pa.int32()), ("phase", pa.string()), ("seconds", pa.float64())])
"""Wall time of each round by phase."""

CONFUSION = pa.schema([("class", pa.int32()), ("predicted", pa.int32()), ("examples", pa.int64())])
"""Test examples by their class and the class that the model after the last evaluated round predicted; pairs without
examples have no row."""

CLIENTS = pa.schema([("client", pa.int32()), ("name", pa.string()), ("value", pa.float64())])
"""A row for each figure of a client after the last round: `examples`, its test examples, and the task's figures of the
model that predicts for it on these; a client without any has no figures."""

PICTURES = pa.schema(
    [
        ("client", pa.int32()),
        ("made", pa.bool_()),
        ("label", pa.int64()),
        ("channels", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixels", pa.binary()),
    ]
)
"""One row for each image: `made` by the client's generator, or real; `pixels` are uint8 in the order (C, H, W)."""


def ledger_rows(record: RoundRecord) -> pa.Table:
    """A round's messages, in the order in which they were sent."""
    rows = [(e.round, e.phase, e.client, e.direction, e.kind, e.bytes) for e in record.entries]
    return _table(LEDGER, rows)


def metric_rows(record: RoundRecord, stages: Sequence[StageRecord]) -> pa.Table:
    """A round's numbers: of its clients, of the server, of the stages shown."""
    rows: list[tuple[Any, ...]] = [(m.round, m.phase, m.client, m.name, m.value) for m in record.client_metrics]
    rows += [(f.round, f.phase, f.client, f"{FAULT}{f.fault}/{f.action}", float(f.times)) for f in record.faults]
    rows += [(record.round, SERVER, NOBODY, name, value) for name, value in record.metrics.items()]
    for stage in stages:
        if stage.stage == SERVER:
            raise ValueError(f"a stage may not be called {SERVER!r}: its rows would read as the server's metrics")
        rows += [(stage.round, stage.stage, NOBODY, name, value) for name, value in _numbers(stage.evaluation)]
    return _table(ROUNDS, rows)


def _numbers(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    yield from evaluation.figures.items()
    for figure, values in evaluation.by_class.items():
        for index, value in enumerate(values):
            yield f"{figure}[{index}]", float(value)


def faults_of(rounds: pa.Table) -> tuple[FaultEntry, ...]:
    """The faults in a `ROUNDS` table."""
    rows = rounds.filter(pc.starts_with(pc.field("name"), FAULT)).to_pylist()
    return tuple(_fault(row) for row in rows)


def _fault(row: dict[str, Any]) -> FaultEntry:
    _, fault, action = row["name"].split("/")
    return FaultEntry(row["round"], row["phase"], row["client"], fault, action, int(row["value"]))


def item_rows(record: RoundRecord, has_texts: bool) -> dict[str, pa.Table]:
    """Tables of what clients' steps did, by the step's name, a row for each thing: `round`, `client`, and others.

    Args:
        has_texts: whether columns of clients' texts are among them.
    """
    found: dict[str, list[pa.Table]] = {}
    for some in record.rows:
        columns = {**some.rows, **(some.texts if has_texts else {})}
        count = len(next(iter(columns.values())))
        places = {
            "round": pa.array([some.round] * count, pa.int32()),
            "client": pa.array([some.client] * count, pa.int32()),
        }
        found.setdefault(some.phase, []).append(pa.table({**places, **{n: pa.array(v) for n, v in columns.items()}}))
    return {step: pa.concat_tables(parts) for step, parts in found.items()}


def second_rows(record: RoundRecord) -> pa.Table:
    """A round's wall time."""
    return _table(SECONDS, [(record.round, phase, seconds) for phase, seconds in record.seconds.items()])


def stages_of(rounds: pa.Table) -> tuple[StageRecord, ...]:
    """The evaluations in a `ROUNDS` table, in the order in which they were made: the inverse of `metric_rows`."""
    found: list[tuple[int, str, dict[str, float], dict[str, list[float]]]] = []
    shown = (pc.field("client") == NOBODY) & (pc.field("phase") != SERVER) & ~pc.starts_with(pc.field("name"), FAULT)
    for row in rounds.filter(shown).to_pylist():
        figure, _, index = row["name"].partition("[")
        if not found or found[-1][:2] != (row["round"], row["phase"]) or (not index and figure in found[-1][2]):
            found.append((row["round"], row["phase"], {}, {}))
        if index:
            found[-1][3].setdefault(figure, []).append(row["value"])
        else:
            found[-1][2][figure] = row["value"]
    return tuple(
        StageRecord(round, stage, Evaluation(figures, {f: np.array(v, dtype=np.float64) for f, v in by_class.items()}))
        for round, stage, figures, by_class in found
    )


def client_rows(figures: ClientFigures) -> pa.Table:
    """A row for each client and figure."""
    rows: list[tuple[Any, ...]] = []
    for client, examples in enumerate(figures.examples.tolist()):
        rows.append((client, "examples", float(examples)))
        rows += [(client, name, float(values[client])) for name, values in figures.values.items() if examples]
    return _table(CLIENTS, rows)


def client_figures_of(table: pa.Table, clients: int) -> ClientFigures:
    """The inverse of `client_rows`.

    Raises:
        ValueError: a client that there is not.
    """
    rows = table.to_pylist()
    outside = [row["client"] for row in rows if not 0 <= row["client"] < clients]
    if outside:
        raise ValueError(f"it is about client {outside[0]}, which is none of the {clients}")
    examples = np.zeros(clients, dtype=np.int64)
    values: dict[str, np.ndarray] = {}
    for row in rows:
        if row["name"] == "examples":
            examples[row["client"]] = int(row["value"])
        else:
            values.setdefault(row["name"], np.full(clients, np.nan))[row["client"]] = row["value"]
    return ClientFigures(examples, values)


def confusion_rows(confusion: np.ndarray) -> pa.Table:
    """A matrix of counts, int64 (classes, classes), as rows."""
    classes, predicted = np.nonzero(confusion)
    counts = confusion[classes, predicted]
    return _table(CONFUSION, list(zip(classes.tolist(), predicted.tolist(), counts.tolist(), strict=True)))


def confusion_of(table: pa.Table, classes: int) -> np.ndarray:
    """The inverse of `confusion_rows`.

    Raises:
        ValueError: a class that is none of `classes`.
    """
    rows, columns = table["class"].to_numpy(), table["predicted"].to_numpy()
    if not all(((found >= 0) & (found < classes)).all() for found in (rows, columns)):
        raise ValueError(f"it holds a class that is none of the {classes}")
    confusion = np.zeros((classes, classes), dtype=np.int64)
    confusion[rows, columns] = table["examples"].to_numpy()
    return confusion


def picture_rows(pictures: Sequence[GeneratedPictures]) -> pa.Table:
    """Generated and real images of clients."""
    rows = []
    for of_client in pictures:
        for made, some, labels in (
            (True, of_client.generated, of_client.labels),
            (False, of_client.real, of_client.real_labels),
        ):
            rows += [
                (of_client.client, made, int(label), *picture.shape, np.ascontiguousarray(picture).tobytes())
                for picture, label in zip(some, labels, strict=True)
            ]
    return _table(PICTURES, rows)


def pictures_of(table: pa.Table) -> tuple[GeneratedPictures, ...]:
    """The inverse of `picture_rows`."""
    rows = table.to_pylist()
    clients = dict.fromkeys(row["client"] for row in rows)
    return tuple(_pictures_of_client(client, [row for row in rows if row["client"] == client]) for client in clients)


def _pictures_of_client(client: int, rows: list[dict[str, Any]]) -> GeneratedPictures:
    generated, labels = _stack([row for row in rows if row["made"]])
    real, real_labels = _stack([row for row in rows if not row["made"]])
    return GeneratedPictures(client, generated, labels, real, real_labels)


def _stack(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    if not rows:
        return np.zeros((0, 1, 1, 1), dtype=np.uint8), np.zeros(0, dtype=np.int64)
    shape = (rows[0]["channels"], rows[0]["height"], rows[0]["width"])
    stack = np.stack([np.frombuffer(row["pixels"], dtype=np.uint8).reshape(shape) for row in rows])
    return stack, np.array([row["label"] for row in rows], dtype=np.int64)


def _table(schema: pa.Schema, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    return pa.table([pa.array(values, type=f.type) for values, f in zip(columns, schema, strict=True)], schema=schema)
