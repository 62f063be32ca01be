"""Runs made up for tests: events as the engine would tell them, and folders written from these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.delivery import Book, ClientMetric, Entry
from engine.folder import RESULT_KEYS, FolderWatcher, RunFolder, StoredRun, read
from engine.records import Evaluation, GeneratedImages, Result, RoundRecord, RunStart, StageRecord, Watcher


def evaluation(accuracy: float, classes: int = 3, loss: float = 0.5) -> Evaluation:
    """The same accuracy in every class."""
    return Evaluation(accuracy, loss, np.full(classes, accuracy))


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
        method="fedavg",
        rounds=3,
        class_names=class_names,
        label_counts=counts.astype(np.int64),
        log=folder / "ray.log",
        facts={"runner": "inline", "placement": "in this process"},
    )


def result_values(**changes: Any) -> dict[str, Any]:
    """A whole result.json; keywords replace its values."""
    values: dict[str, Any] = dict.fromkeys(RESULT_KEYS)
    values |= {
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
    }
    return values | changes


def images_of(client: int, n: int = 3, shape: tuple[int, int, int] = (1, 4, 4)) -> GeneratedImages:
    """Noise for generated and grey for real images, labels counting from 0."""
    noise = np.random.default_rng(client).integers(0, 256, (n, *shape), dtype=np.uint8)
    labels = np.arange(n, dtype=np.int64)
    return GeneratedImages(client, noise, np.full(n, -1, dtype=np.int64), np.full_like(noise, 128), labels)


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
