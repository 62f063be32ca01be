"""Choice of a run's runner: in this process, or hosts on a cluster. The plan decides, and the runner follows it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from actors.runner import Runner
from clusters.bits import processor
from clusters.grants import free_memory, usable_cpus
from clusters.nodes import Node
from engine.config import RunConfig
from engine.errors import NoRoom
from engine.planning.checking import check
from engine.planning.federation import Federation
from engine.planning.report import PlanReport, plan
from engine.run.context import RunContext
from engine.run.processors import with_processors

if TYPE_CHECKING:
    from clusters.session import Cluster


def predicted_plan(config: RunConfig) -> PlanReport:
    """Plan a run on the cluster of its address, or else on this machine, without starting anything.

    Raises:
        ConfigError, DataError, PartitionError, PlacementError, ClusterError: what cannot run, and what would.
    """
    federation = Federation.gather(config)
    check(federation)
    if config.runner.kind == "inline" or _starts_its_own(config.runner.address):
        return _plan_here(federation)
    from clusters.session import attach_or_start

    with (
        tempfile.TemporaryDirectory() as place,
        attach_or_start(config.runner.address, log=Path(place) / "ray.log") as cluster,
    ):
        return plan(federation, cluster.nodes, free_memory())


@contextmanager
def open_runner(run: RunContext) -> Iterator[tuple[RunContext, Runner]]:
    """Open the runner that a run's configuration asks for, and close it after the block; the context gains the plan."""
    if run.config.runner.kind == "inline":
        facts = {"runner": "inline: one step after another in this process", **_plan_here(run.federation).facts()}
        yield with_processors(replace(run, facts=facts), {"driver": processor()}), run.federation.inline()
        return
    run.clock.switch("start:ray")
    with _on_cluster(run) as (cluster, report):
        where = "started here" if cluster.started else cluster.address
        facts = {"runner": f"Ray, {where}", **report.facts()}
        run = with_processors(replace(run, placement=report.placement, facts=facts), _processors(cluster, run))
        with _hosts(run) as runner:
            yield run, runner


def _processors(cluster: Cluster, run: RunContext) -> dict[str, str]:
    """Kinds of processors by place. All processes of a cluster that was started here have this one's."""
    from clusters.processors import processors_by_node

    return {"driver": processor(), **({} if cluster.started else processors_by_node(run.config.runner.bits))}


@contextmanager
def _on_cluster(run: RunContext) -> Iterator[tuple[Cluster, PlanReport]]:
    """The cluster of the run's address, or one started here, with what the run takes of it.

    One that is started counts what was planned with, so that what cannot run is refused before anything starts.
    """
    from clusters.session import attach_or_start

    address, log, data_bytes = run.config.runner.address, run.folder / "run.log", run.federation.shards.nbytes
    if _starts_its_own(address):
        report, machine = _plan_here(run.federation), this_machine()
        with attach_or_start(
            address,
            log=log,
            cpus=int(machine.cpus),
            gpus=int(machine.gpus),
            data_bytes=data_bytes,
            dashboard=run.federation.needs.distillation is not None,
        ) as cluster:
            run.clock.switch("start:hosts")
            yield cluster, report
        return
    with attach_or_start(address, log=log) as cluster:
        run.clock.switch("start:hosts")
        yield cluster, plan(run.federation, cluster.nodes, free_memory())


@contextmanager
def _hosts(run: RunContext) -> Iterator[Runner]:
    """The run's hosts, on the cluster that this process is attached to."""
    from actors.hosts.ray import RayRunner, describe_full_store

    assert run.placement is not None
    policy, bits = run.config.failures.policy(), run.config.runner.bits
    runner = RayRunner(
        run.federation.setup,
        run.federation.shards,
        run.placement,
        distillation=replace(
            run.config.runner.distillation.resources(), retries=policy.retries("worker_lost"), bits=bits
        ),
        policy=policy,
        bits=bits,
    )
    try:
        yield runner
    except Exception as error:
        if (words := describe_full_store(error)) is not None:
            raise NoRoom(f"{words}; {run.way_on}") from error
        raise
    finally:
        runner.close()


def _plan_here(federation: Federation) -> PlanReport:
    return plan(federation, (this_machine(),), free_memory())


def _starts_its_own(address: str | None) -> bool:
    """Whether a run on Ray starts a cluster, as `clusters.session.attach_or_start` does where there is none."""
    import ray

    return not (address or os.environ.get("RAY_ADDRESS") or ray.is_initialized())


def this_machine() -> Node:
    """The node that a cluster started here would have."""
    import torch

    return Node(float(usable_cpus()), float(torch.cuda.device_count()), free_memory())
