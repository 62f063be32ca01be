"""A whole run: from a federation and a runner to result.json."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from actors.cohort.delivery import FaultEntry
from actors.process import peak_rss_mb
from actors.runner import Runner
from actors.steps.worker import one_thread
from algorithms.core.records import digest
from algorithms.core.task import Shard
from engine.config.budget import values_of_budget
from engine.planning.federation import Federation
from engine.records import GLOBAL, VALIDATION, ClientFigures, GeneratedPictures, Result, Watcher
from engine.run.context import RunContext
from engine.run.keeping import Keeper
from engine.run.models import model_facts, write_models
from engine.run.processors import kinds, merge
from engine.run.rounds import Rounds, Schedule, Validation
from engine.run.stopping import Stopping
from engine.store.folder import FolderWatcher
from engine.views.report import ReportWatcher

PICTURES = 20
"""Pictures of each kind and client that a report shows."""

CLIENTS_PICTURED = 12


def simulate(
    run: RunContext,
    runner: Runner,
    watchers: Sequence[Watcher],
    keeper: Keeper | None = None,
    lost: Collection[int] = (),
) -> Result:
    """Play all rounds of a run that are left, and write its folder.

    Args:
        watchers: hear of the run as it goes, after those that write its folder.
        keeper: of the run's checkpoints; where there are some, the run goes on from the last one.
        lost: clients whose memory was lost, so that the run goes on from there.
    """
    federation = run.federation
    federation.partition.save(run.files.partition, federation.dataset.fingerprint)
    watchers = [FolderWatcher(run.files), ReportWatcher(run.files), *watchers]
    rounds = _rounds(run, runner, watchers, keeper)
    start = run.start()
    start = replace(start, facts={**start.facts, **model_facts(run, rounds)})
    if keeper:
        keeper.restore_latest(rounds)
        for client in lost:
            rounds.book.faults.append(FaultEntry(rounds.next, "memory", client, "memory_lost", "retry"))
        start = replace(start, done=rounds.next, facts={**start.facts, **_refusals(keeper)})
    for watcher in watchers:
        watcher.started(start)
    rounds.play()
    clients = _client_figures(federation, rounds)
    best = keeper.best(rounds) if keeper else None
    values = _values(run, runner, rounds, clients, rounds.next - 1 if best is None else best.done - 1)
    pictures = _pictures(federation, rounds)
    write_models(run, runner, rounds, best, values["digest"], values["versions"])
    if keeper:
        keeper.forget(rounds)
    result = Result(values, rounds.book, pictures, clients)
    for watcher in watchers:
        watcher.finished(result)
    return result


def _rounds(run: RunContext, runner: Runner, watchers: Sequence[Watcher], keeper: Keeper | None) -> Rounds:
    federation, config = run.federation, run.config
    schedule = Schedule(
        rounds=config.rounds,
        cohort=config.clients.cohort or len(federation.setup.clients),
        every=config.evaluate.every,
    )
    return Rounds(
        federation.setup,
        federation.needs,
        schedule,
        runner,
        federation.evaluate,
        watchers,
        keeper,
        public=federation.public,
        policy=config.failures.policy(),
        clock=run.clock,
        validation=_validation(federation),
    )


def _validation(federation: Federation) -> Validation | None:
    """The rule by which the run may end early; None where its configuration has none."""
    stop, figures, least = federation.config.stop, federation.dataset.task.figures, federation.needs.least_rounds
    if stop is None:
        return None
    figure = next(figure for figure in figures if stop.metric in (None, figure.name))
    first = 0 if least is None else least.rounds - 1
    return Validation(federation.validate, Stopping(figure, stop.patience, stop.change, first))


def _refusals(keeper: Keeper) -> dict[str, str]:
    return {"checkpoints refused": "; ".join(keeper.refusals)} if keeper.refusals else {}


def _client_figures(federation: Federation, rounds: Rounds) -> ClientFigures:
    """The figures of each client, of the global model or of its own."""
    if rounds.method.personal:
        own = rounds.evaluate_own()
        found = [own.get(client.id, {}) for client in federation.setup.clients]
        return ClientFigures.of(federation.dataset.task.figures, found)
    with rounds.clock.during("evaluate"), one_thread():
        return federation.evaluate_clients(rounds.method.predictor(rounds.state))


def _values(
    run: RunContext, runner: Runner, rounds: Rounds, clients: ClientFigures, model_round: int
) -> dict[str, Any]:
    """The contents of result.json; its keys are those of the design, section 8.

    `model_round` is the round whose model the folder holds.
    """
    config, last = run.config, rounds.stages[GLOBAL]
    shown = {stage: e.headline for stage, e in rounds.stages.items() if stage not in (GLOBAL, VALIDATION)}
    up, down = rounds.book.bytes["up"], rounds.book.bytes["down"]
    hosts = runner.peak_rss_mb()
    return {
        "method": config.method.name,
        "preset": run.preset,
        "budget": {"name": config.budget, "set": values_of_budget(config)},
        "seed": config.seed,
        "runner": config.runner.kind,
        "placement": run.placement.kind if run.placement else None,
        "hosts": run.placement.hosts if run.placement else 0,
        "rounds": rounds.next,
        "stop": rounds.stopping and rounds.stopping.summary(rounds.next, model_round),
        "headline": {**dataclasses.asdict(run.federation.dataset.task.headline), "value": last.headline},
        "figures": dict(last.figures),
        "accuracy": last.figures.get("accuracy"),
        "loss": last.figures.get("loss"),
        "clients": clients.tree(run.federation.dataset.task.figures),
        "metrics": dict(rounds.metrics),
        "stages": {**shown, "final": last.headline},
        "bytes_up": sum(up.values()),
        "bytes_down": sum(down.values()),
        "bytes_by_kind": {kind: {"up": up[kind], "down": down[kind]} for kind in sorted(up.keys() | down.keys())},
        "seconds": _seconds(rounds.clock.read(), rounds.book.client_seconds),
        "virtual_seconds": None,
        "peak_rss_mb": {"driver": peak_rss_mb(), "host_max": max(hosts.values(), default=None)},
        "digest": digest(rounds.state),
        "versions": versions(),
        "processors": merge(run.processors, kinds(rounds.processors)),
        "notes": list(run.notes),
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


def _pictures(federation: Federation, rounds: Rounds) -> tuple[GeneratedPictures, ...]:
    """Pictures by the first clients' generators beside real examples; none unless the run allows it."""
    if not federation.config.privacy.images:
        return ()
    sources = rounds.method.sources(rounds.state)
    made = (
        _of_client(client, sources[client].inputs(sources[client].latents(0)), federation.shards(client), federation)
        for client in sorted(sources)[:CLIENTS_PICTURED]
    )
    return tuple(found for found in made if found is not None)


def _of_client(
    client: int, samples: tuple[torch.Tensor, torch.Tensor], shard: Shard, federation: Federation
) -> GeneratedPictures | None:
    """None where the task has nothing that can be looked at."""
    inputs, labels = samples
    task, first = federation.dataset.task, torch.arange(min(PICTURES, len(shard)))
    real, real_labels = task.batch(shard, first)
    if not isinstance(real, torch.Tensor):
        return None
    made, held = task.pictures(inputs[:PICTURES].cpu()), task.pictures(real)
    if made is None or held is None:
        return None
    return GeneratedPictures(
        client=client,
        generated=made.numpy(),
        labels=labels[:PICTURES].numpy(),
        real=held.numpy(),
        real_labels=real_labels.numpy(),
    )
