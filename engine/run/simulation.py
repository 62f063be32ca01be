"""A whole run: from a federation and a runner to result.json."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from actors.clock import PhaseClock
from actors.cohort.delivery import FaultEntry
from actors.process import peak_rss_mb
from actors.runner import Runner
from algorithms.core.records import digest
from algorithms.core.task import Shard
from engine.config import to_tree
from engine.planning.federation import Federation
from engine.records import GLOBAL, GeneratedImages, Result, RunStart, Watcher
from engine.run.keeping import Keeper
from engine.run.rounds import Rounds, Schedule

PICTURES = 20
"""Generated and real images of each client that a report shows."""

CLIENTS_PICTURED = 12


@dataclass(frozen=True)
class Setting:
    """What result.json says of the circumstances.

    Attributes:
        preset: name or file that the run was started from.
        placement: `dedicated` or `pooled` with Ray, None inline.
        hosts: number of hosts, 0 inline.
        clock: runs since the command began.
    """

    preset: str
    placement: str | None
    hosts: int
    clock: PhaseClock


def run_start(federation: Federation, folder: Path, facts: Mapping[str, str], preset: str) -> RunStart:
    """What is known of a run before its first round."""
    task = federation.dataset.task
    return RunStart(
        folder=folder,
        config=to_tree(federation.config),
        method=federation.config.method.name,
        rounds=federation.config.rounds,
        class_names=task.class_names,
        label_counts=federation.partition.counts(federation.dataset.train_labels, task.classes),
        headline=task.headline,
        log=folder / "run.log",
        facts=facts,
        preset=preset,
    )


def simulate(
    federation: Federation,
    runner: Runner,
    start: RunStart,
    setting: Setting,
    watchers: Sequence[Watcher],
    keeper: Keeper | None = None,
    lost: Collection[int] = (),
) -> Result:
    """Play all rounds that are left and tell the watchers; the result is told to them too, and returned.

    Args:
        keeper: of the run's checkpoints; where there are some, the run goes on from the last one.
        lost: clients whose memory was lost, so that the run goes on from there.
    """
    config = federation.config
    schedule = Schedule(
        rounds=config.rounds,
        cohort=config.clients.cohort or len(federation.casting.clients),
        every=config.evaluate.every,
    )
    rounds = Rounds(
        federation.casting,
        schedule,
        runner,
        federation.evaluate,
        watchers,
        keeper,
        public=federation.public,
        policy=config.failures.policy(),
        clock=setting.clock,
    )
    if keeper:
        keeper.bring_back(rounds)
        for client in lost:
            rounds.book.faults.append(FaultEntry(rounds.next, "memory", client, "memory_lost", "retry"))
        start = replace(start, done=rounds.next, facts={**start.facts, **_told(keeper)})
    for watcher in watchers:
        watcher.started(start)
    rounds.play()
    values = _values(federation, runner, setting, rounds)
    result = Result(values, rounds.book, _pictures(federation, rounds))
    for watcher in watchers:
        watcher.finished(result)
    return result


def _told(keeper: Keeper) -> dict[str, str]:
    return {"checkpoints refused": "; ".join(keeper.refused)} if keeper.refused else {}


def _values(federation: Federation, runner: Runner, setting: Setting, rounds: Rounds) -> dict[str, Any]:
    """The contents of result.json; its keys are those of the design, section 8."""
    config, last = federation.config, rounds.stages[GLOBAL]
    up, down = rounds.book.bytes["up"], rounds.book.bytes["down"]
    hosts = runner.peak_rss_mb()
    return {
        "method": config.method.name,
        "preset": setting.preset,
        "seed": config.seed,
        "runner": config.runner.kind,
        "placement": setting.placement,
        "hosts": setting.hosts,
        "rounds": config.rounds,
        "headline": {**dataclasses.asdict(federation.dataset.task.headline), "value": last.headline},
        "figures": dict(last.figures),
        "accuracy": last.figures.get("accuracy"),
        "loss": last.figures.get("loss"),
        "metrics": dict(rounds.metrics),
        "stages": {**{s: e.headline for s, e in rounds.stages.items() if s != GLOBAL}, "final": last.headline},
        "bytes_up": sum(up.values()),
        "bytes_down": sum(down.values()),
        "bytes_by_kind": {kind: {"up": up[kind], "down": down[kind]} for kind in sorted(up.keys() | down.keys())},
        "seconds": _seconds(rounds.clock.read(), rounds.book.client_seconds),
        "virtual_seconds": None,
        "peak_rss_mb": {"driver": peak_rss_mb(), "host_max": max(hosts.values(), default=None)},
        "digest": digest(rounds.state),
        "versions": versions(),
    }


def _seconds(phases: Mapping[str, float], client_work: Mapping[str, float]) -> dict[str, float]:
    """Wall seconds: the whole, its four parts, the parts' phases; and `client_work`, summed over clients."""
    groups = {"start": 0.0, "clients": 0.0, "server": 0.0, "evaluate": 0.0}
    for phase, seconds in phases.items():
        name = phase.partition(":")[0]
        groups["clients" if name == "client" else name] += seconds
    detail = {phase: seconds for phase, seconds in phases.items() if ":" in phase}
    return {"total": sum(phases.values()), **groups, **detail, "client_work": sum(client_work.values())}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("tessera-fl", "torch", "torchvision", "numpy", "scikit-learn", "ray", "pyarrow", "mlflow")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {"python": platform.python_version(), **found}


def _pictures(federation: Federation, rounds: Rounds) -> tuple[GeneratedImages, ...]:
    """Generated images beside real ones, of the first clients that have a generator; none unless the run allows it."""
    if not federation.config.privacy.images:
        return ()
    sources = rounds.method.sources(rounds.state)
    made = (
        _of_client(client, sources[client].inputs(sources[client].latents(0)), federation.shards(client), federation)
        for client in sorted(sources)[:CLIENTS_PICTURED]
    )
    return tuple(images for images in made if images is not None)


def _of_client(
    client: int, generated: tuple[torch.Tensor, torch.Tensor], shard: Shard, federation: Federation
) -> GeneratedImages | None:
    """None where the task has nothing that can be looked at."""
    inputs, labels = generated
    task, first = federation.dataset.task, torch.arange(min(PICTURES, len(shard)))
    real, real_labels = task.batch(shard, first)
    if not isinstance(real, torch.Tensor):
        return None
    made, held = task.pictures(inputs[:PICTURES].cpu()), task.pictures(real)
    if made is None or held is None:
        return None
    return GeneratedImages(
        client=client,
        generated=made.numpy(),
        labels=labels[:PICTURES].numpy(),
        real=held.numpy(),
        real_labels=real_labels.numpy(),
    )
