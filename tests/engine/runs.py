"""Runs made up for tests: events as the engine would tell them, and folders written from these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.cohort.delivery import Book, ClientMetric, Entry
from algorithms.core.needs import Stage
from algorithms.core.payload import KINDS
from algorithms.core.task import Figure
from engine.records import Evaluation, GeneratedPictures, Result, RoundRecord, RunStart, StageRecord, Watcher
from engine.store import tables
from engine.store.folder import RESULT_KEYS, FolderWatcher, RunFolder, StoredRun, read

ACCURACY = Figure("accuracy", "higher", "%")
FIGURES = (ACCURACY, Figure("loss", "lower"))

PERPLEXITY = Figure("perplexity", "lower")
"""Of a task without classes, whose other figure has a unit."""

STAGES = (
    Stage("teacher", "many heads", against="fedavg"),
    Stage("distilled", "one head", against="fedavg"),
    Stage("fedavg", "their mean"),
)
"""As a method declares them."""


def evaluation(accuracy: float, classes: int = 3, loss: float = 0.5) -> Evaluation:
    """The same accuracy in every class."""
    return Evaluation({"accuracy": accuracy, "loss": loss}, {"accuracy": np.full(classes, accuracy)})


def round_record(number: int, clients: int = 2) -> RoundRecord:
    """Each client gets 100 bytes of weights, sends 100 and 8 of examples, and reports a loss of 1 / (round + 1)."""
    entries = [Entry(number, "train", client, "down", "weights", 100) for client in range(clients)]
    for client in range(clients):
        entries += [
            Entry(number, "train", client, "up", "weights", 100),
            Entry(number, "train", client, "up", "examples", 8),
        ]
    return RoundRecord(
        number,
        clients=tuple(range(clients)),
        metrics={"drift": 0.25 * number},
        seconds={"client:train": 2.0, "server": 0.5, "evaluate": 0.25},
        entries=tuple(entries),
        client_metrics=tuple(ClientMetric(number, "train", c, "loss", 1 / (number + 1)) for c in range(clients)),
    )


def start_of(folder: Path, clients: int = 2, class_names: tuple[str, ...] = ("cat", "dog", "owl")) -> RunStart:
    """Client k holds k + c examples of class c."""
    counts = np.arange(clients)[:, None] + np.arange(len(class_names))[None, :]
    return RunStart(
        folder=folder,
        config={"method": {"name": "fedavg"}, "rounds": 3, "seed": 7},
        class_names=class_names,
        label_counts=counts.astype(np.int64),
        figures=FIGURES,
        facts={"runner": "inline", "placement": "in this process"},
        preset="fedavg-digits",
        kinds={"weights": KINDS["weights"], "examples": KINDS["examples"]},
        stages=STAGES,
    )


def result_values(**changes: Any) -> dict[str, Any]:
    """A whole result.json; keywords replace its values."""
    values: dict[str, Any] = dict.fromkeys(RESULT_KEYS)
    values |= {
        "figures": {"accuracy": 0.75, "loss": 0.5},
        "headline": {**asdict(ACCURACY), "value": 0.75},
        "method": "fedavg",
        "preset": "fedavg-digits",
        "seed": 7,
        "runner": "inline",
        "rounds": 3,
        "accuracy": 0.75,
        "loss": 0.5,
        "metrics": {},
        "stages": {},
        "bytes_up": 648,
        "bytes_down": 600,
        "bytes_by_kind": {"weights": 1200, "examples": 48},
        "seconds": {"total": 10.0, "start": 1.0},
        "peak_rss_mb": {"driver": 300.0},
        "digest": "ab" * 32,
        "versions": {"torch": "2.13.0"},
        "processors": {"Some CPU": ["driver"]},
        "notes": [],
    }
    return values | changes


def pictures_of(client: int, n: int = 3, shape: tuple[int, int, int] = (1, 4, 4)) -> GeneratedPictures:
    """Noise for generated and grey for real images, labels 0, 1, 2, 0, ..."""
    noise = np.random.default_rng(client).integers(0, 256, (n, *shape), dtype=np.uint8)
    labels = np.arange(n, dtype=np.int64) % 3
    return GeneratedPictures(client, noise, np.full(n, -1, dtype=np.int64), np.full_like(noise, 128), labels)


def play(watcher: Watcher, folder: Path, rounds: int = 3, **changes: Any) -> None:
    """Tell a watcher a whole run whose global accuracy is 1/4, 1/2, 3/4, ..."""
    watcher.started(start_of(folder))
    for number in range(rounds):
        watcher.stage(StageRecord(number, "global", evaluation(0.25 * (number + 1))))
        watcher.round(round_record(number))
    watcher.finished(Result(result_values(**changes), Book()))


def stored(folder: Path, **changes: Any) -> StoredRun:
    """A run that went through a folder; keywords replace attributes of what was read."""
    play(FolderWatcher(RunFolder.create(folder)), folder)
    return replace(read(folder), **changes)


def without_classes(folder: Path, method: str = "fedavg", values: Sequence[float] = (9.0, 8.5, 8.25)) -> StoredRun:
    """A run over 2 clients of 10 and 30 examples that is measured by perplexity after each round."""
    unit = Figure("bits", "lower", "bits")
    stages = tuple(StageRecord(n, "global", Evaluation({"perplexity": v, "bits": 3.0})) for n, v in enumerate(values))
    last = {"perplexity": values[-1], "bits": 3.0}
    result = result_values(
        method=method,
        figures=last,
        headline={**asdict(PERPLEXITY), "value": values[-1]},
        accuracy=None,
        loss=None,
    )
    return replace(
        stored(folder),
        class_names=(),
        label_counts=np.array([[10], [30]]),
        figures=(PERPLEXITY, unit),
        result=result,
        stages=stages,
    )


def grown(share: float, classes: int, seed: int) -> Evaluation:
    """An evaluation near a share of right answers, uneven over the classes."""
    noise = np.random.default_rng(seed).normal(0, 0.12, classes)
    per_class = np.clip(share + noise - noise.mean(), 0, 1)
    return Evaluation({"accuracy": float(per_class.mean()), "loss": float(-np.log(share))}, {"accuracy": per_class})


def telling(
    folder: Path, method: str = "mosaic", clients: int = 10, classes: int = 10, rounds: int = 50, pictures: int = 0
) -> StoredRun:
    """A run as one would look: Mosaic with its stages at 3/5 of the rounds and images of so many clients, or FedAvg."""
    stages = _stages(method, classes, rounds)
    record = replace(round_record(0), entries=tuple(_entries(method, clients, rounds)))
    shares = np.random.default_rng(5).dirichlet(np.full(clients, 0.2), classes).T
    short = classes <= 10
    return StoredRun(
        folder=folder,
        config=_config(method, clients, rounds),
        facts={"runner": "ray", "placement": "pooled: 10 dedicated clients need 2.0 GB", "hosts": "2"},
        class_names=tuple(str(c) if short else f"class {c}" for c in range(classes)),
        label_counts=np.rint(shares * 500).astype(np.int64),
        figures=FIGURES,
        result=_result(method, rounds, stages, record.entries),
        stages=tuple(stages),
        confusion=np.diag(np.full(classes, 9)) + 1,
        ledger=tables.ledger_rows(record),
        rounds=tables.metric_rows(record, stages),
        seconds=tables.second_rows(record),
        pictures=tuple(pictures_of(k, n=20, shape=(1, 8, 8)) for k in range(pictures)),
        kinds=KINDS,
        captions=STAGES,
    )


def _stages(method: str, classes: int, rounds: int) -> list[StageRecord]:
    """Accuracies that rise: of the global model after every second round, and of Mosaic's stages once."""
    warm = 3 * rounds // 5
    ceiling = 0.95 if method == "mosaic" else 0.88
    stages = []
    for number in range(rounds):
        share = ceiling * (1 - 0.7 * np.exp(-4 * (number + 1) / rounds)) - (0.08 if number < warm else 0)
        if method == "mosaic" and number == warm:
            for name, level in (("fedavg", 0.78), ("experts", 0.793), ("teacher", 0.878), ("distilled", 0.897)):
                stages.append(StageRecord(number, name, grown(level, classes, len(name))))
        if (number + 1) % 2 == 0 or number + 1 == rounds:
            stages.append(StageRecord(number, "global", grown(share, classes, number)))
    return stages


def _entries(method: str, clients: int, rounds: int) -> list[Entry]:
    """A model down and up in each round; of Mosaic, a generator in the first."""
    entries = []
    for number in range(rounds):
        for client in range(clients):
            entries.append(Entry(number, "train", client, "down", "weights", 120_000))
            entries.append(Entry(number, "train", client, "up", "weights", 120_000))
            entries.append(Entry(number, "train", client, "up", "label_counts", 80))
            if method == "mosaic" and number == 0:
                entries.append(Entry(number, "generator", client, "up", "generator", 900_000))
    return entries


def _config(method: str, clients: int, rounds: int) -> dict[str, Any]:
    return {
        "method": {"name": method},
        "data": {"source": "digits", "limit": None},
        "partition": {"kind": "dirichlet", "alpha": 0.1, "clients": clients},
        "clients": {"net": "small_cnn", "steps": 10, "batch": 64, "lr": 0.05},
        "rounds": rounds,
        "seed": 0,
        "privacy": {"forbid": ["prototypes"] if method == "mosaic" else []},
    }


SECONDS = {
    "total": 63.0,
    "start": 9.0,
    "clients": 34.0,
    "server": 14.0,
    "evaluate": 4.0,
    "client:train": 12.0,
    "client:generator": 22.0,
    "server:meta": 5.0,
    "server:distil": 8.0,
    "client_work": 60.0,
}


def _result(method: str, rounds: int, stages: Sequence[StageRecord], entries: Sequence[Entry]) -> dict[str, Any]:
    last = [s for s in stages if s.stage == "global"][-1].evaluation
    sent = {way: sum(e.bytes for e in entries if e.direction == way) for way in ("up", "down")}
    return result_values(
        method=method,
        preset=f"{method}-digits",
        seed=0,
        rounds=rounds,
        accuracy=last.headline,
        loss=last.figures["loss"],
        figures=dict(last.figures),
        headline={"name": "accuracy", "better": "higher", "unit": "%", "value": last.headline},
        stages={s.stage: s.evaluation.headline for s in stages if s.stage != "global"} | {"final": last.headline},
        bytes_up=sent["up"],
        bytes_down=sent["down"],
        seconds=SECONDS,
        peak_rss_mb={"driver": 640.2, "host_max": 512.0},
        versions={"python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0"},
    )
