"""A run's folder: what is written there, when, and how it is read again.

Every file is written under a temporary name, synced and renamed, so that a reader, or a run that goes on after a crash,
finds a whole file or none.

While a run goes on, each round's rows are written as small Parquet files of their own in `parts/`, and joined when the
run is finished. One file per table could only be written anew in each round, which grows with the square of the rounds;
a part costs under a millisecond and about 5 kB, whatever has gone before, and a run that goes on from round r drops the
parts after r and has neither gaps nor doubles. `result.json` is written last: where it is, the run is complete.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algorithms.core.needs import Stage
from algorithms.core.payload import KINDS
from algorithms.core.task import Figure
from engine.config.reading import dump, parse
from engine.errors import UserError
from engine.records import GLOBAL, ClientFigures, GeneratedPictures, Result, RoundRecord, RunStart, StageRecord
from engine.store import tables
from engine.store.locking import Busy, locked_by_us

RESULT_KEYS = (
    "method",
    "preset",
    "budget",
    "seed",
    "runner",
    "placement",
    "hosts",
    "rounds",
    "stop",
    "headline",
    "figures",
    "accuracy",
    "loss",
    "clients",
    "metrics",
    "stages",
    "bytes_up",
    "bytes_down",
    "bytes_by_kind",
    "seconds",
    "virtual_seconds",
    "peak_rss_mb",
    "digest",
    "versions",
    "processors",
    "notes",
)
"""The keys of result.json, all of them in every run."""

LOCK = ".lock"
"""File of a run's folder that whoever writes there holds; it means nothing to anybody else."""

ITEMS = "items-"
"""Begins the names of the tables of `RunFolder.items`; the step's name follows."""

_PARTS = {"ledger": tables.LEDGER, "rounds": tables.ROUNDS, "seconds": tables.SECONDS}


class FolderError(UserError):
    """A run's folder that cannot be used; the message names the file and the way out."""


class FolderExists(FolderError):
    """A new run was pointed at a folder that already holds something."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write at; at the end of the block what was written there is synced and takes the place of `path`.

    Where the block raises, `path` is as before and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in the place of what a file held, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def settle(temporary: Path, path: Path) -> None:
    """Sync a file's bytes, give it its name, and sync the folder, so that a loss of power keeps both or neither."""
    _sync(temporary, os.O_RDWR)
    os.replace(temporary, path)
    if os.name != "nt":  # Windows opens no folder
        _sync(path.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make(path: Path) -> None:
    """Make a folder, its parents included, unless it is there.

    Raises:
        FolderError: where it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{path} cannot be made: {error.strerror}; name another folder with --out") from error


class RunFolder:
    """The files of one run. Made by `create` for a new run; `RunFolder(path)` for one that is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder, its parents included.

        Raises:
            FolderExists: where there is a file, or a folder that is not empty.
            FolderError: where it cannot be made.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FolderExists(
                f"{path} already holds something, and a run never writes over another: "
                "name another folder with --out, or remove this one"
            )
        make(path)
        return cls(path)

    @classmethod
    def of_run(cls, path: Path) -> RunFolder:
        """The folder of a run that has begun.

        Raises:
            FolderError: where there is none.
        """
        if not (path / "config.yaml").is_file():
            raise FolderError(
                f"{path} holds no run that has begun: {path / 'config.yaml'} is missing; "
                "name the folder of a run, as `tessera run` printed it, or start one with `tessera run`"
            )
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for a block: this process alone may write.

        Raises:
            FolderError: another process is at work here, or nothing can be written.
        """
        file = self.path / LOCK
        try:
            with locked_by_us(file):
                yield
        except Busy as error:
            way_out = f"; if {error.holder} is gone, remove {file}" if error.holder else ""
            raise FolderError(
                f"another process is at work on {self.path}; wait for it, or end it first{way_out}"
            ) from None

    @property
    def partition(self) -> Path:
        """The path of the partition, which `engine.partition` writes."""
        return self.path / "partition.parquet"

    @property
    def checkpoints(self) -> Path:
        """The folder of `engine.store.checkpoint`."""
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        """The page that `engine.views.report` writes."""
        return self.path / "report.html"

    @property
    def description(self) -> Path:
        """The file that says what the models of a finished run are; see `engine.store.models`."""
        return self.path / "model.json"

    def model(self, client: int | None = None) -> Path:
        """The file of the model that a run ended with, or of a client's own."""
        return self.path / ("model.safetensors" if client is None else f"models/client-{client:04d}.safetensors")

    def drop_models(self) -> None:
        """Remove the models of a run that goes on; what says what they are goes first."""
        self.description.unlink(missing_ok=True)
        self.model().unlink(missing_ok=True)
        shutil.rmtree(self.path / "models", ignore_errors=True)

    def write_start(self, start: RunStart) -> None:
        """config.yaml, and in start.json what else is known before the first round.

        config.yaml comes last: where it is, there is all that a run needs to go on.
        """
        known = {
            "preset": start.preset,
            "start_folder": str(self.start_folder() or Path.cwd()),
            "class_names": list(start.class_names),
            "label_counts": start.label_counts.tolist(),
            "figures": [dataclasses.asdict(figure) for figure in start.figures],
            "facts": dict(start.facts),
            "kinds": dict(start.kinds),
            "stages": [dataclasses.asdict(stage) for stage in start.stages],
            "processors": {kind: list(places) for kind, places in start.processors.items()},
            "weights": start.weights,
        }
        self._write_text("start.json", json.dumps(known, ensure_ascii=False))
        self._write_text("config.yaml", dump(dict(start.config)))

    def start_folder(self) -> Path | None:
        """The folder where the run was started, which its relative paths are of; None where it is not known."""
        start = self.path / "start.json"
        place = _read_json(start).get("start_folder") if start.exists() else None
        return Path(place) if isinstance(place, str) else None

    def preset(self) -> str:
        """Name or file that the run was started from."""
        return str(_read_json(self.path / "start.json").get("preset", ""))

    def weights(self) -> str | None:
        """Digest of the weights that the run started from; None where it named none, or an older version made it."""
        start = self.path / "start.json"
        return _read_json(start).get("weights") if start.exists() else None

    def processors(self) -> dict[str, list[str]]:
        """The places that computed on each kind of processor so far; {} for a new run."""
        start = self.path / "start.json"
        if not start.exists():
            return {}
        with _naming(start):
            known = _mapping(_read_json(start).get("processors", {}))
        return {kind: [*map(str, places)] if isinstance(places, list) else [] for kind, places in known.items()}

    def rounds_finished(self) -> int | None:
        """The number of rounds of a finished run; None where it has not finished."""
        result = self.path / "result.json"
        return int(_read_json(result)["rounds"]) if result.exists() else None

    def is_stopped(self) -> bool:
        """Whether the run has ended before its last round, since its section `stop` asked for that."""
        result = self.path / "result.json"
        return result.exists() and bool((_read_json(result).get("stop") or {}).get("early"))

    def reopen(self, done: int) -> None:
        """Let the tables end before round `done`, for a run that goes on with it.

        Of a finished run the tables become parts again; until result.json is gone they are what counts.
        """
        parts = self.path / "parts"
        self.drop_models()
        if self.rounds_finished() is not None:
            self.drop_parts()
            parts.mkdir()
            for name, schema in _PARTS.items():
                rows = _read_table(self.path / f"{name}.parquet", schema).filter(pc.field("round") < done)
                self._write_table(f"parts/{name}-{done - 1:06d}.parquet", rows)
            (self.path / "result.json").unlink()
            for path in self.items().values():
                rows = pq.read_table(path, partitioning=None).filter(pc.field("round") < done)
                self._write_table(f"parts/{path.stem}-{done - 1:06d}.parquet", rows)
        for part in sorted(parts.glob("*.parquet")):
            if int(part.stem.rpartition("-")[2]) >= done:
                part.unlink()

    def write_round(self, record: RoundRecord, stages: Sequence[StageRecord]) -> None:
        """The rows of one round, in parts; written again with the same round number they replace the old ones.

        confusion.parquet is of the last round that was evaluated, which the last round of a run always is.
        """
        parts = self.path / "parts"
        parts.mkdir(exist_ok=True)
        rows = {
            "ledger": tables.ledger_rows(record),
            "rounds": tables.metric_rows(record, stages),
            "seconds": tables.second_rows(record),
        }
        for name, table in rows.items():
            self._write_table(f"parts/{name}-{record.round:06d}.parquet", table)
        for stage in stages:
            if stage.stage == GLOBAL and stage.evaluation.confusion is not None:
                self._write_table("confusion.parquet", tables.confusion_rows(stage.evaluation.confusion))

    def write_items(self, record: RoundRecord, has_texts: bool) -> None:
        """Rows of what the clients' steps of one round did, in parts; see `items`."""
        (self.path / "parts").mkdir(exist_ok=True)
        for step, table in tables.item_rows(record, has_texts).items():
            self._write_table(f"parts/{ITEMS}{step}-{record.round:06d}.parquet", table)

    def items(self) -> dict[str, Path]:
        """Tables of what clients' steps did, a row for each thing, by the name of the step; of a finished run."""
        return {path.stem.removeprefix(ITEMS): path for path in sorted(self.path.glob(f"{ITEMS}*.parquet"))}

    def write_pictures(self, pictures: Sequence[GeneratedPictures]) -> None:
        """images.parquet, where the run has pictures to show."""
        if pictures:
            self._write_table("images.parquet", tables.picture_rows(pictures))

    def write_clients(self, figures: ClientFigures) -> None:
        """clients.parquet."""
        self._write_table("clients.parquet", tables.client_rows(figures))

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Join the parts, then result.json. Numbers that are not finite become null, which JSON can say.

        Raises:
            ValueError: for keys other than `RESULT_KEYS`.
        """
        if set(values) != set(RESULT_KEYS):
            raise ValueError(f"result.json has other keys than it should: {sorted(set(values) ^ set(RESULT_KEYS))}")
        for name, schema in _PARTS.items():
            self._write_table(f"{name}.parquet", self._join_parts(name, schema))
        parts = sorted((self.path / "parts").glob(f"{ITEMS}*.parquet"))
        for name in dict.fromkeys(part.stem.rpartition("-")[0] for part in parts):
            read = [pq.read_table(part, partitioning=None) for part in parts if part.stem.rpartition("-")[0] == name]
            self._write_table(f"{name}.parquet", pa.concat_tables(read))
        text = json.dumps(_plain({key: values[key] for key in RESULT_KEYS}), indent=2, ensure_ascii=False)
        self._write_text("result.json", text + "\n")
        self.drop_parts()

    def drop_parts(self) -> None:
        """Remove the parts of a finished run, whose tables hold them."""
        shutil.rmtree(self.path / "parts", ignore_errors=True)

    def _join_parts(self, name: str, schema: pa.Schema) -> pa.Table:
        parts = sorted((self.path / "parts").glob(f"{name}-*.parquet"))
        return pa.concat_tables([schema.empty_table(), *(_read_table(part, schema) for part in parts)])

    def _write_table(self, name: str, table: pa.Table) -> None:
        with replacing(self.path / name) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def _write_text(self, name: str, text: str) -> None:
        with replacing(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class StoredRun:
    """A finished run as its folder tells it.

    Attributes:
        config: complete and resolved.
        facts: what the plan said, in words.
        kinds: a sentence on each kind of content that may have travelled.
        captions: the stages that the method may have shown.
        label_counts: int64 (clients, classes); see `RunStart`.
        figures: those of the task, the headline first.
        result: result.json, with null where a number was not finite.
        stages: every evaluation, in the order in which they were made.
        confusion: int64 (classes, classes), of the last evaluation; None where nothing was counted.
        ledger, rounds, seconds: see `engine.store.tables`.
        clients: what each client gets; None where the folder does not say.
        items: what clients' steps did, a row for each thing, by the step's name; see `RunFolder.items`.
        pictures: what generators draw beside what clients hold; empty where the run has none or may not show them.
    """

    folder: Path
    config: Mapping[str, Any]
    facts: Mapping[str, str]
    class_names: tuple[str, ...]
    label_counts: np.ndarray
    figures: tuple[Figure, ...]
    result: Mapping[str, Any]
    stages: tuple[StageRecord, ...]
    confusion: np.ndarray | None
    ledger: pa.Table
    rounds: pa.Table
    seconds: pa.Table
    pictures: tuple[GeneratedPictures, ...]
    kinds: Mapping[str, str]
    captions: tuple[Stage, ...]
    clients: ClientFigures | None = None
    items: Mapping[str, pa.Table] = field(default_factory=dict)

    @property
    def headline(self) -> Figure:
        """The figure that stands for a predictor."""
        return self.figures[0]

    @property
    def score(self) -> float:
        """The final value of the headline figure; NaN where it was not finite."""
        value = self.result["figures"].get(self.headline.name)
        return math.nan if value is None else float(value)


def read(path: Path) -> StoredRun:
    """A finished run's folder.

    Raises:
        FolderError: naming the file that is missing or damaged.
    """
    if not path.is_dir():
        raise FolderError(f"{path} is not a folder; name the folder of a run, as `tessera run` printed it")
    if not (path / "result.json").exists():
        raise FolderError(f"{path}/result.json is missing: the run has not finished")
    result, start = _read_json(path / "result.json"), _read_json(path / "start.json")
    result = {"notes": [], **result}  # which older runs had not
    _require(path / "result.json", result, RESULT_KEYS)
    _require(path / "start.json", start, ("class_names", "label_counts", "figures", "facts"))
    rounds = _read_table(path / "rounds.parquet", tables.ROUNDS)
    pictures = path / "images.parquet"
    return StoredRun(
        folder=path,
        config=_read_yaml(path / "config.yaml"),
        facts=start["facts"],
        class_names=tuple(start["class_names"]),
        label_counts=np.array(start["label_counts"], dtype=np.int64),
        figures=_figures(path / "start.json", start["figures"]),
        result=result,
        stages=tables.stages_of(rounds),
        confusion=_confusion(path / "confusion.parquet", len(start["class_names"])),
        ledger=_read_table(path / "ledger.parquet", tables.LEDGER),
        rounds=rounds,
        seconds=_read_table(path / "seconds.parquet", tables.SECONDS),
        pictures=tables.pictures_of(_read_table(pictures, tables.PICTURES)) if pictures.exists() else (),
        kinds=_sentences(path / "start.json", start),
        captions=_captions(path / "start.json", start),
        clients=_clients(path / "clients.parquet", len(start["label_counts"])),
        items={step: _read_items(table) for step, table in RunFolder(path).items().items()},
    )


def _figures(path: Path, known: Any) -> tuple[Figure, ...]:
    with _naming(path):
        try:
            return tuple(Figure(**figure) for figure in known)
        except TypeError as error:
            raise ValueError(f"its figures are none: {error}") from None


def _clients(path: Path, clients: int) -> ClientFigures | None:
    if not path.exists():
        return None
    with _naming(path):
        return tables.client_figures_of(_read_table(path, tables.CLIENTS), clients)


def _confusion(path: Path, classes: int) -> np.ndarray | None:
    if not path.exists():
        return None
    with _naming(path):
        return tables.confusion_of(_read_table(path, tables.CONFUSION), classes)


def _sentences(path: Path, start: Mapping[str, Any]) -> Mapping[str, str]:
    """Those that a run wrote down; before runs did, those that all methods have in common."""
    with _naming(path):
        return _mapping(start.get("kinds", dict(KINDS)))


def _captions(path: Path, start: Mapping[str, Any]) -> tuple[Stage, ...]:
    with _naming(path):
        try:
            return tuple(Stage(**stage) for stage in start.get("stages", []))
        except TypeError as error:
            raise ValueError(f"its stages are none: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    with _naming(path):
        return _mapping(json.loads(path.read_text(encoding="utf-8")))


def _read_yaml(path: Path) -> dict[str, Any]:
    with _naming(path):
        return _mapping(parse(path.read_bytes(), str(path)))


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    with _naming(path):
        table = pq.read_table(path, partitioning=None)
        table.validate(full=True)  # texts that are no UTF-8 would fail where they are first looked at
        if not table.schema.equals(schema):
            raise ValueError(f"its columns are {', '.join(table.schema.names)} instead of {', '.join(schema.names)}")
        return table


def _read_items(path: Path) -> pa.Table:
    with _naming(path):
        table = pq.read_table(path, partitioning=None)
        table.validate(full=True)
        return table


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it holds no keys")
    return value


def _require(path: Path, values: Mapping[str, Any], keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in values]
    if missing:
        raise FolderError(f"{path} is damaged: it lacks {', '.join(missing)}")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FolderError(f"{path} is missing; the run's folder was changed after the run") from error
    except (pa.ArrowException, ValueError, OSError) as error:
        raise FolderError(f"{path} is damaged: {error}") from error


class FolderWatcher:
    """Writes a run's folder as the run goes."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._stages: list[StageRecord] = []
        self._has_texts = False

    def started(self, start: RunStart) -> None:
        self._has_texts = bool(start.config.get("privacy", {}).get("texts"))
        self._folder.write_start(start)
        self._folder.reopen(start.done)

    def step(self, round: int, step: str, done: int, total: int) -> None:
        """Nothing is written before a round is complete: a resumed run would do it again."""

    def stage(self, record: StageRecord) -> None:
        self._stages.append(record)

    def round(self, record: RoundRecord) -> None:
        self._folder.write_items(record, self._has_texts)
        self._folder.write_round(record, self._stages)
        self._stages = []

    def finished(self, result: Result) -> None:
        self._folder.write_pictures(result.pictures)
        if result.clients is not None:
            self._folder.write_clients(result.clients)
        self._folder.write_result(result.values)

    def failed(self, error: BaseException) -> None:
        """The parts of the finished rounds stay where they are."""
