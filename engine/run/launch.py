"""From a configuration to a finished run: data, checks, folder, runner, watchers, report."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from actors.clock import PhaseClock
from actors.runner import MemoryLostError
from actors.steps.orders import StepError
from engine.config import RunConfig, to_tree
from engine.config.own_code import code_options
from engine.errors import NoRoom, mistakes
from engine.planning.checking import check
from engine.planning.federation import Federation
from engine.records import Result, Watcher, note_of
from engine.run.context import RunContext
from engine.run.hosting import open_runner
from engine.run.keeping import Keeper
from engine.run.replay import save_failed_order
from engine.run.resuming import apply_overrides, same_inputs
from engine.run.simulation import simulate
from engine.store.checkpoint import Keep
from engine.store.folder import RunFolder, read
from engine.store.journal import Journal
from engine.views import tracking
from engine.views.local_store import drop, file_of
from engine.views.report import write_report
from engine.views.trace import Trace

log = logging.getLogger(__name__)


def free_folder(configuration: str, seed: int) -> Path:
    """`runs/NAME-seed-SEED`, or the same with the first number that is free."""
    base = Path("runs") / f"{Path(configuration).stem}-seed-{seed}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


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
    clock = PhaseClock("start:data", report=trace.phase) if trace else PhaseClock("start:data")
    federation = Federation.gather(config)
    check(federation)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    store = _store_to_be_made(config, folder)
    files, watchers = RunFolder.create(folder), [*([trace] if trace else []), terminal]
    is_begun = True
    try:
        with files.lock():
            try:
                return _carry_out(RunContext(federation, files, preset, clock), watchers)
            except mistakes():
                is_begun = (folder / "config.yaml").exists()
                raise
    finally:
        if not is_begun:
            _discard(folder, missing, store)


def _store_to_be_made(config: RunConfig, folder: Path) -> Path | None:
    """The file of MLflow's store that this run is the first to be told to."""
    file = file_of(tracking.wanted_uri(config.mlflow.tracking_uri, folder)) if config.mlflow.enabled else None
    return None if file is None or file.exists() else file


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
    with files.lock():
        config, changes = apply_overrides(files, overrides, code)
        finished = files.rounds_finished()
        if finished is not None and (finished >= config.rounds or files.is_stopped()):
            _finish_cleanup(files)
            return None
        federation = Federation.gather(config)
        check(federation)
        same_inputs(files, federation)
        return _carry_out(RunContext(federation, files, files.preset(), clock, changes), [terminal])


def _finish_cleanup(files: RunFolder) -> None:
    """Complete the housekeeping of a run that was killed after result.json was written."""
    files.drop_parts()
    if not files.report.exists():
        write_report([read(files.path)], files.report)


def _carry_out(run: RunContext, watchers: Sequence[Watcher]) -> Result:
    """Perform a run from where its folder has it to its end, as often as clients' memories may be lost."""
    lost: list[tuple[int, ...]] = []
    while True:
        observers = list(watchers)
        try:
            with _explaining(run):
                return _attempt(run, observers, lost)
        except BaseException as error:
            if not isinstance(error, MemoryLostError) or _gives_up(run, len(lost)):
                for watcher in observers:
                    watcher.failed(error)
                raise
            lost.append(error.clients)
        run = replace(run, clock=run.clock.fresh_copy("start:data"))


def _gives_up(run: RunContext, losses: int) -> bool:
    return run.config.failures.policy().decide("memory_lost", losses) == "stop"


def _attempt(run: RunContext, watchers: list[Watcher], lost: Sequence[tuple[int, ...]]) -> Result:
    """Perform a run from where its folder has it, in the hope that nothing is lost that cannot be replaced.

    Args:
        watchers: MLflow's is added to them where the run has one.
        lost: whose memories were lost, for each attempt that ended so.
    """
    config, checkpoints = run.config, run.files.checkpoints
    tell = note_of(watchers[-1])

    def note(text: str) -> None:
        run.notes.append(text)
        tell(text)

    with (
        logging_to(run.folder / "run.log"),
        _connecting_mlflow(run, note) as mlflow_watcher,
        open_runner(run) as (run, runner),
    ):
        if lost:
            log.warning("%s; the run goes on from its last checkpoint", MemoryLostError(lost[-1]))
        if config.mlflow.enabled:
            run.clock.switch("start:mlflow")
            watchers.insert(-1, mlflow_watcher())
        journal = Journal(runner, checkpoints, run.federation.needs.sent_kinds)
        if "rounds" in run.changes:
            journal.drop()  # what a round asks for may depend on how many there are
        keeper = Keeper(checkpoints, journal, Keep(config.checkpoint.last, config.checkpoint.every))
        return simulate(run, journal, watchers, keeper, lost[-1] if lost else ())


@contextmanager
def _explaining(run: RunContext) -> Iterator[None]:
    """A block whose errors say what a person can do: perform the failed step again, or make room and go on."""
    try:
        yield
    except StepError as error:
        command = save_failed_order(run.folder, error.failure)
        raise StepError(error.failure, command and command + code_options(to_tree(run.config))) from None
    except Exception as error:
        if not is_full(error):
            raise
        raise NoRoom(
            f"there is no room left, on the disk of {run.folder} or of Ray's own files: {error}\n"
            f"what was written whole stays; make room, {run.way_on}"
        ) from error


@contextmanager
def _connecting_mlflow(run: RunContext, note: Callable[[str], object]) -> Iterator[Callable[[], Watcher]]:
    """A block in which MLflow comes up, and a function that waits for its watcher.

    `note` takes lines for a person. MLflow's modules and the tables of a new store take seconds, in which Ray starts,
    whose processes do that.
    """
    connect = partial(tracking.connect, run.config.mlflow.tracking_uri, run.folder, note)
    if run.config.runner.kind != "ray" or not run.config.mlflow.enabled:
        yield connect
        return
    import actors.hosts.ray  # noqa: F401  # modules that two threads import at once may meet half made

    with ThreadPoolExecutor(1, thread_name_prefix="mlflow") as thread:
        yield thread.submit(connect).result


def is_full(error: Exception) -> bool:
    """Whether a disk ran full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return not isinstance(error, NoRoom) and "No space left on device" in str(error)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log a block's events to the run's log file."""
    handler = logging.FileHandler(path, delay=True, encoding="utf-8", errors="backslashreplace")
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


def _discard(folder: Path, missing: Sequence[Path], store: Path | None) -> None:
    """Leave nothing of a run that could not start: no file in its folder, no store, and none of the folders that were
    missing, unless another run has begun there."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if store is not None and store.parent.is_dir():
        drop(store)
    for path in missing:
        with suppress(OSError):
            path.rmdir()
