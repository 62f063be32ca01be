"""From a configuration to a finished run: data, checks, folder, runner, watchers, report."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import psutil
from torch import Tensor

from actors.clock import PhaseClock
from actors.distillation.plan import DistilResources
from actors.runner import Listener, MemoryLostError, Runner, distil_inline
from actors.steps.orders import StepError
from algorithms.core.distillation import Distillation
from clusters.nodes import Node
from engine.config import RunConfig, to_tree
from engine.config.own_code import options, refuse_unnamed, resume_command
from engine.errors import NoRoom, mistakes
from engine.planning.checking import check
from engine.planning.federation import Federation
from engine.planning.report import PlanReport, plan
from engine.records import Result, RunStart, Watcher
from engine.run.keeping import Keeper
from engine.run.replay import save_failed_order
from engine.run.resuming import changed, same_data
from engine.run.simulation import Setting, run_start, simulate
from engine.store.checkpoint import Keep
from engine.store.folder import FolderWatcher, RunFolder, read
from engine.store.journal import Distil, Journal
from engine.views import tracking
from engine.views.report import ReportWatcher, write_report
from engine.views.trace import Trace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Stage:
    """A runner that is ready, and what to tell of it."""

    runner: Runner
    placement: str | None
    hosts: int
    facts: dict[str, str]
    distil: Distil


def free_folder(configuration: str, seed: int) -> Path:
    """`runs/NAME-seed-SEED`, or the same with the first number that is free."""
    base = Path("runs") / f"{Path(configuration).stem}-seed-{seed}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def look_ahead(config: RunConfig) -> PlanReport:
    """What a run would need, on the cluster of its address, or else on this machine. Nothing starts but the look.

    Raises:
        ConfigError, DataError, PartitionError, PlacementError, ClusterError: what cannot run, and what would.
    """
    federation = Federation.gather(config)
    check(federation)
    return plan(federation, _nodes_ahead(config), psutil.virtual_memory().available)


def _nodes_ahead(config: RunConfig) -> Sequence[Node]:
    if config.runner.kind == "inline" or _starts_its_own(config.runner.address):
        return (this_machine(),)
    from clusters.session import attach_or_start

    with (
        tempfile.TemporaryDirectory() as place,
        attach_or_start(config.runner.address, log=Path(place) / "ray.log") as cluster,
    ):
        return cluster.nodes


def _starts_its_own(address: str | None) -> bool:
    """Whether a run on Ray starts a cluster, as `clusters.session.attach_or_start` does where there is none."""
    import ray

    return not (address or os.environ.get("RAY_ADDRESS") or ray.is_initialized())


def this_machine() -> Node:
    """The node that a cluster started here would have."""
    import torch

    memory = psutil.virtual_memory()
    return Node(float(psutil.cpu_count() or 1), float(torch.cuda.device_count()), memory.available)


def launch(config: RunConfig, preset: str, folder: Path, terminal: Watcher, trace: Trace | None = None) -> Result:
    """Run a configuration and keep everything in a folder.

    Args:
        preset: name or file that the configuration came from.
        folder: new or empty.
        trace: hears of all that happens, and writes it there.

    Raises:
        UserError and its like: before anything is written, for what a person can put right.
        StepError: a client's step raised; its order lies in the folder, and the message says how to replay it.
    """
    clock = PhaseClock("start:data", told=trace.phase) if trace else PhaseClock("start:data")
    federation = Federation.gather(config)
    check(federation)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    files, watchers = RunFolder.create(folder), [*([trace] if trace else []), terminal]
    with files.held():
        try:
            return _carried(federation, files, _Telling(preset, {}, clock), watchers)
        except mistakes():
            if not (folder / "config.yaml").exists():
                _discard(folder, missing)
            raise


def resume(folder: Path, overrides: tuple[str, ...], terminal: Watcher, code: Collection[str] = ()) -> Result | None:
    """Go on with a run that ended before its last round, in whatever way; None where it is finished.

    Args:
        folder: of the run.
        overrides: `key=value` of what is to differ from now on; see `engine.run.resuming`.
        code: modules of one's own that may be imported where the folder names them; see `engine.config.own_code`.

    Raises:
        UserError and its like: for what a person can put right; the run stays as it is.
        StepError: as `launch`.
    """
    clock = PhaseClock("start:data")
    files = RunFolder.of_run(folder)
    with files.held():
        config, differing = changed(files, overrides)
        refuse_unnamed(to_tree(config), code)
        finished = files.rounds_finished()
        if finished is not None and finished >= config.rounds:
            _round_off(files)
            return None
        federation = Federation.gather(config)
        check(federation)
        same_data(files, federation)
        return _carried(federation, files, _Telling(files.preset(), differing, clock), [terminal])


def _round_off(files: RunFolder) -> None:
    """What a run that was killed after its last file of results had still to do."""
    files.drop_parts()
    if not files.report.exists():
        write_report([read(files.path)], files.report)


@dataclass(frozen=True)
class _Telling:
    """What to tell of a run besides what it is.

    Attributes:
        preset: name or file that the configuration came from.
        differing: what differs from how the run began, by key.
        clock: runs since the command began.
    """

    preset: str
    differing: Mapping[str, str]
    clock: PhaseClock


def _carried(
    federation: Federation,
    files: RunFolder,
    telling: _Telling,
    others: Sequence[Watcher],
    lost: Sequence[tuple[int, ...]] = (),
) -> Result:
    """A run from where its folder has it to its end.

    Args:
        lost: for each time that clients' memories were lost and the run taken up again, whose they were.
    """
    config, folder = federation.config, files.path
    watchers: list[Watcher] = [FolderWatcher(files), ReportWatcher(files), *others]
    try:
        _fetch_mlflow(config)
        with logged_to(folder / "run.log"), _staged(federation, folder, telling.clock) as stage:
            if lost:
                log.warning("%s; the run goes on from its last checkpoint", MemoryLostError(lost[-1]))
            if config.mlflow.enabled:
                telling.clock.switch("start:mlflow")
                watchers.insert(-1, tracking.connect(config.mlflow.tracking_uri, folder))
            federation.partition.save(files.partition, federation.dataset.fingerprint)
            journal = Journal(stage.runner, files.checkpoints, stage.distil)
            if "rounds" in telling.differing:
                journal.drop()  # what a round asks for may depend on how many there are
            keep = Keep(config.checkpoint.last, config.checkpoint.every)
            setting = Setting(telling.preset, stage.placement, stage.hosts, telling.clock)
            start = _start(federation, folder, stage, telling)
            keeper = Keeper(files.checkpoints, journal, keep)
            return simulate(federation, journal, start, setting, watchers, keeper, lost[-1] if lost else ())
    except MemoryLostError as error:
        if config.failures.policy().decide("memory_lost", len(lost)) == "stop":
            _tell_failed(watchers, error)
            raise
        gone = error.clients
    except BaseException as error:
        _tell_failed(watchers, error)
        if isinstance(error, StepError):
            command = save_failed_order(folder, error.failure)
            raise StepError(error.failure, command and command + options(to_tree(config))) from None
        if isinstance(error, Exception) and is_full(error):
            raise NoRoom(
                f"there is no room left, on the disk of {folder} or of Ray's own files: {error}\n"
                f"what was written whole stays; make room, {_go_on(folder, config)}"
            ) from error
        raise
    again = replace(telling, clock=telling.clock.anew("start:data"))
    return _carried(federation, files, again, others, (*lost, gone))


def _tell_failed(watchers: Sequence[Watcher], error: BaseException) -> None:
    for watcher in watchers:
        watcher.failed(error)


def _go_on(folder: Path, config: RunConfig) -> str:
    return f"then go on with `{resume_command(folder, to_tree(config))}`"


def _fetch_mlflow(config: RunConfig) -> None:
    """Import MLflow in a thread of its own: it takes seconds, in which Ray starts."""
    if config.runner.kind == "ray" and config.mlflow.enabled:
        import actors.hosts.ray  # noqa: F401  # modules that two threads import at once may meet half made

        Thread(target=tracking.fetch, name="mlflow").start()


def is_full(error: Exception) -> bool:
    """Whether a disk ran full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return not isinstance(error, NoRoom) and "No space left on device" in str(error)


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """A block in which what happens to a run is written to its log, warnings to the terminal too."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("actors", "engine")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def _discard(folder: Path, missing: Sequence[Path]) -> None:
    """Leave nothing of a run that could not start: no file in its folder, and none of the folders that were missing."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in missing:
        path.rmdir()


def _start(federation: Federation, folder: Path, stage: _Stage, telling: _Telling) -> RunStart:
    facts = {**stage.facts, **{f"changed: {key}": words for key, words in telling.differing.items()}}
    return run_start(federation, folder, facts, telling.preset)


@contextmanager
def _staged(federation: Federation, folder: Path, clock: PhaseClock) -> Iterator[_Stage]:
    """The runner that the configuration asks for, closed at the end."""
    if federation.config.runner.kind == "inline":
        report = plan(federation, (this_machine(),), psutil.virtual_memory().available)
        facts = {"runner": "inline: one step after another in this process", **report.facts()}
        yield _Stage(federation.inline(), None, 0, facts, distil=lambda job, listener, _: distil_inline(job, listener))
        return
    clock.switch("start:ray")
    with _on_ray(federation, folder, clock) as stage:
        yield stage


def _distilled(job: Distillation, listener: Listener, resources: DistilResources, storage: Path) -> dict[str, Tensor]:
    """A distillation on Ray; its checkpoints are kept until it is done."""
    from actors.distillation.job import distil_on_ray

    student = distil_on_ray(job, resources, storage, listener)
    shutil.rmtree(storage, ignore_errors=True)
    return student


@contextmanager
def _on_ray(federation: Federation, folder: Path, clock: PhaseClock) -> Iterator[_Stage]:
    from actors.hosts.ray import RayRunner, full_store
    from clusters.session import attach_or_start

    runner = federation.config.runner
    log = folder / "run.log"
    free = psutil.virtual_memory().available
    if _starts_its_own(runner.address):
        plan(federation, (this_machine(),), free)  # what cannot run is refused before anything starts
    with attach_or_start(runner.address, log=log, data_bytes=federation.shards.nbytes) as cluster:
        clock.switch("start:hosts")
        report = plan(federation, cluster.nodes, free)
        placement = report.placement
        assert placement is not None
        policy = federation.config.failures.policy()
        carried = RayRunner(federation.casting, federation.shards, placement, policy=policy)
        pipeline = replace(runner.distillation.resources(), retries=policy.retries("worker_lost"))
        try:
            where = "started here" if cluster.started else cluster.address
            facts = {"runner": f"Ray, {where}", **report.facts()}
            yield _Stage(
                carried,
                placement.kind,
                placement.hosts,
                facts,
                distil=lambda job, listener, storage: _distilled(job, listener, pipeline, storage),
            )
        except Exception as error:
            if (words := full_store(error)) is not None:
                raise NoRoom(f"{words}; {_go_on(folder, federation.config)}") from error
            raise
        finally:
            carried.close()
