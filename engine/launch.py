"""From a configuration to a finished run: data, checks, folder, runner, watchers, report."""

from __future__ import annotations

import errno
import logging
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from torch import Tensor

from actors.distil_plan import DistilResources
from actors.orders import StepError
from actors.runner import Listener, MemoryLostError, Runner, distil_inline
from algorithms.core.distillation import Distillation
from clusters.nodes import Node
from engine.checking import check
from engine.checkpoint import Keep
from engine.config import RunConfig
from engine.errors import NoRoom, mistakes
from engine.federation import Federation
from engine.folder import FolderWatcher, RunFolder, read
from engine.journal import Distil, Journal
from engine.keeping import Keeper
from engine.planning import PlanReport, pipeline_of, plan
from engine.records import Result, RunStart, Watcher
from engine.replay import save_failed_order
from engine.report import ReportWatcher, write_report
from engine.resuming import changed, same_data
from engine.simulation import Setting, run_start, simulate
from engine.tracking import connect

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
    if config.runner.kind == "inline" or config.runner.address is None:
        return (this_machine(),)
    from clusters.session import attach_or_start

    with (
        tempfile.TemporaryDirectory() as place,
        attach_or_start(config.runner.address, log=Path(place) / "ray.log") as cluster,
    ):
        return cluster.nodes


def this_machine() -> Node:
    """The node that a cluster started here would have."""
    import torch

    memory = psutil.virtual_memory()
    return Node(float(psutil.cpu_count() or 1), float(torch.cuda.device_count()), memory.available)


def launch(config: RunConfig, preset: str, folder: Path, terminal: Watcher) -> Result:
    """Run a configuration and keep everything in a folder.

    Args:
        preset: name or file that the configuration came from.
        folder: new or empty.

    Raises:
        UserError and its like: before anything is written, for what a person can put right.
        StepError: a client's step raised; its order lies in the folder, and the message says how to replay it.
    """
    begun = time.perf_counter()
    federation = Federation.gather(config)
    check(federation)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    files = RunFolder.create(folder)
    with files.held():
        try:
            return _carried(federation, files, _Telling(preset, {}, begun), terminal)
        except mistakes():
            if not (folder / "config.yaml").exists():
                _discard(folder, missing)
            raise


def resume(folder: Path, overrides: tuple[str, ...], terminal: Watcher) -> Result | None:
    """Go on with a run that ended before its last round, in whatever way; None where it is finished.

    Args:
        folder: of the run.
        overrides: `key=value` of what is to differ from now on; see `engine.resuming`.

    Raises:
        UserError and its like: for what a person can put right; the run stays as it is.
        StepError: as `launch`.
    """
    begun = time.perf_counter()
    files = RunFolder.of_run(folder)
    with files.held():
        config, differing = changed(files, overrides)
        finished = files.rounds_finished()
        if finished is not None and finished >= config.rounds:
            _round_off(files)
            return None
        federation = Federation.gather(config)
        check(federation)
        same_data(files, federation)
        return _carried(federation, files, _Telling(files.preset(), differing, begun), terminal)


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
        begun: `time.perf_counter()` when the command began.
    """

    preset: str
    differing: Mapping[str, str]
    begun: float


def _carried(
    federation: Federation,
    files: RunFolder,
    telling: _Telling,
    terminal: Watcher,
    lost: Sequence[tuple[int, ...]] = (),
) -> Result:
    """A run from where its folder has it to its end.

    Args:
        lost: for each time that clients' memories were lost and the run taken up again, whose they were.
    """
    config, folder = federation.config, files.path
    watchers: list[Watcher] = [FolderWatcher(files), ReportWatcher(files), terminal]
    try:
        with logged_to(folder / "run.log"), _staged(federation, folder) as stage:
            if lost:
                log.warning("%s; the run goes on from its last checkpoint", MemoryLostError(lost[-1]))
            if config.mlflow.enabled:
                watchers.insert(-1, connect(config.mlflow.tracking_uri, folder))
            federation.partition.save(files.partition, federation.dataset.fingerprint)
            journal = Journal(stage.runner, files.checkpoints, stage.distil)
            if "rounds" in telling.differing:
                journal.drop()  # what a round asks for may depend on how many there are
            keep = Keep(config.checkpoint.last, config.checkpoint.every)
            setting = Setting(telling.preset, stage.placement, stage.hosts, telling.begun)
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
            raise StepError(error.failure, save_failed_order(folder, error.failure)) from None
        if isinstance(error, Exception) and is_full(error):
            raise NoRoom(
                f"there is no room left, on the disk of {folder} or of Ray's own files: {error}\n"
                f"what was written whole stays; make room, {_go_on(folder)}"
            ) from error
        raise
    return _carried(federation, files, telling, terminal, (*lost, gone))


def _tell_failed(watchers: Sequence[Watcher], error: BaseException) -> None:
    for watcher in watchers:
        watcher.failed(error)


def _go_on(folder: Path) -> str:
    return f"then go on with `tessera resume {shlex.quote(str(folder))}`"


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
def _staged(federation: Federation, folder: Path) -> Iterator[_Stage]:
    """The runner that the configuration asks for, closed at the end."""
    if federation.config.runner.kind == "inline":
        facts = {"runner": "inline: one step after another in this process"}
        yield _Stage(federation.inline(), None, 0, facts, distil=lambda job, listener, _: distil_inline(job, listener))
        return
    with _on_ray(federation, folder) as stage:
        yield stage


def _distilled(job: Distillation, listener: Listener, resources: DistilResources, storage: Path) -> dict[str, Tensor]:
    """A distillation on Ray; its checkpoints are kept until it is done."""
    from actors.distillation import distil_on_ray

    student = distil_on_ray(job, resources, storage, listener)
    shutil.rmtree(storage, ignore_errors=True)
    return student


@contextmanager
def _on_ray(federation: Federation, folder: Path) -> Iterator[_Stage]:
    from actors.ray_runner import RayRunner, full_store
    from clusters.session import attach_or_start

    runner = federation.config.runner
    log = folder / "run.log"
    with attach_or_start(runner.address, log=log, data_bytes=federation.shards.nbytes) as cluster:
        report = plan(federation, cluster.nodes, psutil.virtual_memory().available)
        placement = report.placement
        assert placement is not None
        policy = federation.config.failures.policy()
        carried = RayRunner(federation.casting, federation.shards, placement, policy=policy)
        pipeline = replace(pipeline_of(federation), retries=policy.retries("worker_lost"))
        try:
            where = "started here" if cluster.started else cluster.address
            facts = {"runner": f"Ray, {where}", "placement": f"{placement.kind}: {placement.reason}"}
            yield _Stage(
                carried,
                placement.kind,
                placement.hosts,
                facts,
                distil=lambda job, listener, storage: _distilled(job, listener, pipeline, storage),
            )
        except Exception as error:
            if (words := full_store(error)) is not None:
                raise NoRoom(f"{words}; {_go_on(folder)}") from error
            raise
        finally:
            carried.close()
