"""MLflow as a view of a run: parameters, metrics by round and stage, pictures, the run's folder.

It is a view: nothing is read back from it, and a store that fails in the middle of a run costs the view, not the run. A
store that cannot be reached at the start is a mistake to put right, and is said before anything else happens.

MLflow is imported when it is first needed (about 1.5 s), with its usage reports to its makers switched off unless the
person switched them on. A new SQLite store takes 1 to 6 s more for its tables, an existing one under 0.1 s.
"""

from __future__ import annotations

import io
import json
import logging
import os
import posixpath
import re
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from algorithms.core.callbacks import ignore
from engine.config.own_code import named_modules
from engine.errors import UserError
from engine.records import VALIDATION, Result, RoundRecord, RunStart, StageRecord
from engine.store.folder import RunFolder, replacing
from engine.units import count_text
from engine.views.local_store import anchored_uri, making, uri_of
from engine.views.report.pictures import grid
from engine.views.report.words import settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

EXPERIMENT = "tessera"
"""Name of the experiment that all runs belong to."""

T = TypeVar("T")

_METRICS, _PARAMS = 1000, 100
_KNOWN = "mlflow.json"
_EVERY_ROUND = "bytes/up"
_GRID_COLUMNS = 10
_LOG = logging.getLogger(__name__)
_VARIABLE = "MLFLOW_TRACKING_URI"
_FIRST_CALL = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_ENDING_SECONDS = 20.0
_LATER_CALLS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class TrackingError(UserError):
    """The MLflow store cannot be used; the message names its URI and the way out."""


def default_uri(folder: Path) -> str:
    """The SQLite store beside a run's folder, which all runs of the parent folder share."""
    return uri_of(folder.absolute().parent / "mlflow.db")


def wanted_uri(uri: str | None, folder: Path) -> str:
    """The URI of the store that a run is told to, the same from every folder: the configuration's, else
    MLFLOW_TRACKING_URI's, else the default."""
    return anchored_uri(uri or os.environ.get(_VARIABLE) or default_uri(folder), Path.cwd())


def ui_command(uri: str) -> str:
    """The command that shows a store; a server's own address, which serves its pages, stays as it is."""
    return uri if _is_server(uri) else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


@dataclass(frozen=True)
class TrackingStore:
    """A tracking store that answers, and the experiment in it."""

    client: MlflowClient
    uri: str
    experiment: str


def reach(uri: str | None, folder: Path) -> TrackingStore:
    """Reach the store, so that a run that cannot be tracked does not start.

    Args:
        uri: of a server or database; None takes that of MLFLOW_TRACKING_URI, or else `default_uri(folder)`.
        folder: of the run, not yet made.

    Raises:
        TrackingError: within 10 seconds for a server that does not answer.
    """
    given, uri = uri, wanted_uri(uri, folder)
    try:
        with _environment(_FIRST_CALL), making(uri):
            client = _client(uri)
            experiment = _experiment(client, uri, folder)
    except Exception as error:
        raise TrackingError(
            f"{_key(given, uri)}: this store cannot be used ({_first_line(error)}); start its server, correct "
            "the URI, leave it out to keep mlflow.db beside the run's folder (name another folder if it is that which "
            "cannot be written), or set mlflow.enabled=false"
        ) from error
    return TrackingStore(client, uri, experiment)


def _key(given: str | None, uri: str) -> str:
    """The key that named a store, and the store."""
    if given:
        return f"mlflow.tracking_uri = {given}"
    variable = os.environ.get(_VARIABLE)
    return f"{_VARIABLE} = {variable}" if variable else f"mlflow.tracking_uri = null, which is {uri}"


def connect(uri: str | None, folder: Path, note: Callable[[str], object] = ignore) -> MlflowWatcher:
    """A watcher for a run; see `reach` and `MlflowWatcher`."""
    return MlflowWatcher(reach(uri, folder), note=note)


def fetch() -> None:
    """Import MLflow, which takes seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # which it shows where tqdm is
    import mlflow  # noqa: F401


def _client(uri: str) -> MlflowClient:
    fetch()
    from mlflow import MlflowClient

    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _experiment(client: MlflowClient, uri: str, folder: Path) -> str:
    """Its number. Files go beside the run's folder, except where a server says where they go."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        place = None if _is_server(uri) else (folder.absolute().parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(EXPERIMENT, artifact_location=place))
        except MlflowException:  # another run that starts at this moment may have been first
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(f"its experiment {EXPERIMENT!r} was deleted; `mlflow experiments restore` brings it back")
    return str(found.experiment_id)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """MLflow reads its limits from the environment at each call; what the person has set there is left alone."""
    ours = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


class MlflowWatcher:
    """Tells MLflow of a run; to be told after the report is written, so that it is among the files kept."""

    def __init__(self, store: TrackingStore, parent: str | None = None, note: Callable[[str], object] = ignore) -> None:
        """`parent` is the run under which this one is shown; `note` hears where the store fails, and what it lacks."""
        self.uri = store.uri
        self.run_id: str | None = None
        self._client, self._experiment = store.client, store.experiment
        self._parent = parent
        self._stages: dict[str, float] = {}
        self._folder: Path | None = None
        self._code: tuple[str, ...] = ()
        self._known_rounds: frozenset[int] = frozenset()
        self._lost = False
        self._machine: SystemMetricsMonitor | None = None
        self._note, self._missing = note, 0

    def started(self, start: RunStart) -> None:
        self._folder = start.folder
        self._code = tuple(sorted(set(named_modules(start.config).values())))
        self._attempt(lambda: self._start(start))
        self._attempt(lambda: self._watch_machine(start))

    def step(self, round: int, step: str, done: int, total: int) -> None:
        """A store is told of whole rounds only."""

    def stage(self, record: StageRecord) -> None:
        for name, value in record.evaluation.figures.items():
            place = record.stage if record.stage == VALIDATION else f"test/{record.stage}"
            self._stages[f"{place}/{name}"] = value

    def round(self, record: RoundRecord) -> None:
        values, self._stages = {**round_metrics(record), **self._stages}, {}
        if record.round not in self._known_rounds:
            self._attempt(lambda: self._log_metrics(values, record.round))
        self._missing += self._lost

    def finished(self, result: Result) -> None:
        self._leave_machine()
        self._attempt(lambda: self._finish(result))
        self._note_what_is_missing()

    def failed(self, error: BaseException) -> None:
        self._leave_machine()
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        if self.run_id is not None:
            self._attempt(lambda: self._client.set_terminated(self._id, status))
        self._note_what_is_missing()

    def _note_what_is_missing(self) -> None:
        if self._lost:
            rounds = f"the figures of {count_text(self._missing, 'round')}, " if self._missing else ""
            self._note(
                f"MLflow at {self.uri} lacks {rounds}the result and the run's files; the run's folder has them all"
            )

    def _watch_machine(self, start: RunStart) -> None:
        """Let a thread of MLflow's own log what the machine does, every 10 seconds, where the run asks for it."""
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        asked = (start.config.get("mlflow") or {}).get("system_metrics")
        if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() if asked is None else asked:
            # That it ends where the store is lost is said by us, once.
            logging.getLogger(SystemMetricsMonitor.__module__).setLevel(logging.CRITICAL)
            self._machine = SystemMetricsMonitor(self._id, resume_logging=start.done > 0, tracking_uri=self.uri)
            self._machine.start()

    def _leave_machine(self) -> None:
        """End that thread, with a last sample, so that a run of a few seconds has one too.

        It may wait for an answer for minutes, as MLflow's own limits have it, which a run does not; where the store is
        lost it ends by itself.
        """
        machine, self._machine = self._machine, None
        if machine is None:
            return
        ending = Thread(target=machine.finish, name="MLflow's metrics end", daemon=True)
        ending.start()
        self._attempt(lambda: self._log_last_sample(machine, ending))

    def _log_last_sample(self, machine: SystemMetricsMonitor, ending: Thread) -> None:
        ending.join(_ENDING_SECONDS)
        if ending.is_alive():
            raise TimeoutError(f"what the machine does waits for an answer for over {_ENDING_SECONDS:g} s")
        machine.collect_metrics()
        machine.publish_metrics(machine.aggregate_metrics())
        machine.mlflow_logger.flush()

    @property
    def _id(self) -> str:
        assert self.run_id is not None, "the run was not started"
        return self.run_id

    def _attempt(self, action: Callable[[], object]) -> None:
        """Call MLflow; on failure, log it once and leave MLflow alone for the rest of the run."""
        if self._lost:
            return
        try:
            with _environment(_LATER_CALLS):
                action()
        except Exception as error:  # whatever a store raises: a view never ends a run
            self._lost = True
            words = f"Stopped logging to MLflow at {self.uri}: {_first_line(error)}; the run continues"
            _LOG.warning("%s", words)
            self._note(words)

    def _start(self, start: RunStart) -> None:
        self.run_id = _known_run(start.folder, self.uri)
        if self.run_id is None:
            self._create(start)
        else:
            self._client.update_run(self._id, status="RUNNING")
            # A run that was killed may have been told here of rounds that it must do again.
            self._known_rounds = frozenset(m.step for m in self._client.get_metric_history(self._id, _EVERY_ROUND))

    def _create(self, start: RunStart) -> None:
        from mlflow.entities import Param

        from engine.partition.picture import who_holds_what

        tags = {
            "method": start.method,
            "preset": start.preset,
            "seed": str(start.config.get("seed")),
            "folder": str(start.folder.absolute()),
        }
        if self._parent:
            tags["mlflow.parentRunId"] = self._parent
        made = self._client.create_run(self._experiment, tags=tags, run_name=start.folder.absolute().name)
        self.run_id = made.info.run_id
        with replacing(start.folder / _KNOWN) as temporary:
            temporary.write_text(json.dumps({"tracking_uri": self.uri, "run_id": self.run_id}))
        kind = start.config.get("partition", {}).get("kind", "")
        drawn = who_holds_what(start.label_counts, start.class_names, kind)
        self._client.log_figure(self._id, drawn, "label_map.png" if start.class_names else "client_sizes.png")
        params = [Param(_name(key), _text(value)) for key, value in settings(dict(start.config)).items()]
        for some in _batches(params, _PARAMS):
            self._client.log_batch(self._id, params=some)

    def _log_metrics(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_name(name), float(value), now, step) for name, value in values.items()]
        for some in _batches(metrics, _METRICS):
            self._client.log_batch(self._id, metrics=some)

    def _finish(self, result: Result) -> None:
        values = result.values
        last = {**values["metrics"], **values["figures"], **client_metrics(values.get("clients") or {})}
        self._log_metrics({k: v for k, v in last.items() if v is not None}, values["rounds"])
        self._client.set_tag(self._id, "digest", values["digest"])
        assert self._folder is not None
        for file in kept_files(self._folder):
            self._client.log_artifact(self._id, str(file))
        for shown in result.pictures:
            for way, some in (("generated", shown.generated), ("real", shown.real)):
                if len(some):
                    sheet = Image.open(io.BytesIO(grid(some, _GRID_COLUMNS)))
                    self._client.log_image(self._id, sheet, artifact_file=f"images/{way}-{shown.client:04d}.png")
        self._log_model()
        self._client.set_terminated(self._id, "FINISHED")

    def _log_model(self) -> None:
        """Log the model, or its clients' own ones, in the form that MLflow serves, under `model`. A failure costs this
        alone."""
        from engine.models import serving

        assert self._folder is not None
        if not RunFolder(self._folder).description.exists():
            return
        with tempfile.TemporaryDirectory(prefix="tessera-mlflow-") as place:
            try:
                serving.save(self._folder, Path(place) / "model", self._code)
            except Exception as error:  # a network or a task of one's own, asked about an example, may fail in any way
                words = "MLflow gets no model that it can serve of %s, whose folder has it whole: %s"
                _LOG.warning(words, self._folder, _first_line(error))
                return
            self._client.log_artifacts(self._id, str(Path(place) / "model"), "model")


def _known_run(folder: Path, uri: str) -> str | None:
    """The ID of a resumed run in this store; None where the store does not know it."""
    file = folder / _KNOWN
    known = json.loads(file.read_text()) if file.exists() else {}
    return str(known["run_id"]) if known.get("tracking_uri") == uri else None


def client_metrics(clients: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures over clients that result.json has, under names such as `clients/accuracy/worst`."""
    return {f"clients/{figure}/{what}": value for figure, found in clients.items() for what, value in found.items()}


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """A round's numbers by name: means over the clients of what they measured, the server's, seconds, bytes."""
    measured: dict[str, list[float]] = {}
    for metric in record.client_metrics:
        measured.setdefault(f"client/{metric.phase}/{metric.name}", []).append(metric.value)
    return {
        **{name: statistics.fmean(values) for name, values in measured.items()},
        **{f"server/{name}": value for name, value in record.metrics.items()},
        **{f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()},
        **{f"bytes/{way}": float(sum(e.bytes for e in record.entries if e.direction == way)) for way in ("up", "down")},
    }


def kept_files(folder: Path) -> Sequence[Path]:
    """The files that go to MLflow: those of the run's folder itself, without checkpoints, which are large, and without
    the model, which goes there in a form of its own."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if path != RunFolder(folder).model())


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _name(text: str) -> str:
    """A name that MLflow takes: no sign of markup, and no path that leads elsewhere."""
    name = re.sub(r"[^\w.\-:/ ]", "_", text)
    leads_astray = posixpath.normpath(name) != name or name.startswith(("/", "."))
    return re.sub(r"[./]", "_", name) if leads_astray else name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
