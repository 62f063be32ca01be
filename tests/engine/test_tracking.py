"""MLflow as a view: it holds what was told, and its loss costs nothing."""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from actors.cohort.delivery import Book, ClientMetric, Entry
from engine.records import Evaluation, Result, RoundRecord, StageRecord
from engine.store.folder import FolderWatcher, RunFolder
from engine.views.local_store import file_of
from engine.views.tracking import (
    MlflowWatcher,
    TrackingError,
    TrackingStore,
    connect,
    default_uri,
    kept_files,
    reach,
    round_metrics,
    ui_command,
    wanted_uri,
)
from tests.engine.runs import pictures_of, play, result_values, round_record, start_of


def start_in(folder):
    """The start of a run whose folder has been made."""
    folder.mkdir(exist_ok=True)
    return start_of(folder)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder, and what a process wrote to its terminal that made a store there and told it of a first run."""
    folder = tmp_path_factory.mktemp("runs")
    code = (
        "import sys; from pathlib import Path; import engine.views.tracking; "
        "print('mlflow' in sys.modules); from tests.engine.runs import play; "
        "run = Path(sys.argv[1]) / 'first'; watcher = engine.views.tracking.connect(None, run); "
        "run.mkdir(); play(watcher, run)"
    )
    return folder, subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(first):
    """A folder of runs with a store in it, which takes seconds to make."""
    return first[0]


def tracked(runs: Path, name: str, **changes) -> tuple[MlflowWatcher, object]:
    """A run told to the store and to its folder, and what MLflow says of it."""
    watcher = connect(None, runs / name)
    folder = RunFolder.create(runs / name)
    play(FolderWatcher(folder), folder.path, **changes)
    play(watcher, folder.path, **changes)
    return watcher, watcher._client.get_run(watcher.run_id)


def test_the_store_lies_beside_the_runs_folder(runs):
    watcher, run = tracked(runs, "place")
    assert watcher.uri == default_uri(runs / "place") == f"sqlite:///{runs}/mlflow.db"
    assert (runs / "mlflow.db").is_file()
    assert run.info.artifact_uri.startswith((runs / "mlartifacts").as_uri())


def test_two_runs_of_one_folder_share_an_experiment(runs):
    assert tracked(runs, "one")[1].info.experiment_id == tracked(runs, "two")[1].info.experiment_id


def test_the_whole_configuration_becomes_parameters(runs):
    watcher = connect(None, runs / "config")
    tree = {"method": {"name": "fedavg"}, "clients": {"lr": 0.05, "net": ["mlp", "cnn"]}, "limit": None}
    many = {f"key {n}": n for n in range(150)}
    watcher.started(replace(start_in(runs / "config"), config=tree | {"many": many}))
    params = watcher._client.get_run(watcher.run_id).data.params
    assert params["method.name"] == "fedavg"
    assert (params["clients.lr"], params["clients.net"], params["limit"]) == ("0.05", '["mlp", "cnn"]', "null")
    assert params["many.key 149"] == "149"
    assert len(params) == 4 + 150


def test_every_round_has_its_metrics_and_stages(runs):
    watcher, run = tracked(runs, "metrics")

    def history(name):
        return [(m.step, m.value) for m in watcher._client.get_metric_history(run.info.run_id, name)]

    assert history("test/global/accuracy") == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert history("test/global/loss") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert history("client/train/loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert history("server/drift") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert history("seconds/client:train") == [(0, 2.0), (1, 2.0), (2, 2.0)]
    # Two clients: 100 + 8 bytes up and 100 down each.
    assert history("bytes/up") == [(0, 216.0), (1, 216.0), (2, 216.0)]
    assert history("bytes/down") == [(0, 200.0), (1, 200.0), (2, 200.0)]
    assert history("accuracy") == [(3, 0.75)]


def test_of_another_task_every_figure_is_logged_under_its_name(runs):
    watcher = connect(None, runs / "perplexity")
    start = replace(start_in(runs / "perplexity"), class_names=(), label_counts=np.array([[3], [4]]))
    figures = {"perplexity": 8.5, "bits": 3.0}
    watcher.started(start)
    watcher.stage(StageRecord(0, "global", Evaluation(figures)))
    watcher.round(round_record(0))
    watcher.finished(Result(result_values(figures=figures, metrics={"bits": 7.0, "drift": 1.0}, rounds=1), Book()))
    metrics = watcher._client.get_run(watcher.run_id).data.metrics
    assert (metrics["test/global/perplexity"], metrics["test/global/bits"]) == (8.5, 3.0)
    # A metric of the server by a figure's name does not take its place.
    assert (metrics["perplexity"], metrics["bits"], metrics["drift"]) == (8.5, 3.0, 1.0)
    assert next(f.path for f in watcher._client.list_artifacts(watcher.run_id)) == "client_sizes.png"


def test_tags_tell_what_ran_and_how_it_ended(runs):
    _, run = tracked(runs, "tags")
    tags = {name: run.data.tags[name] for name in ("method", "preset", "seed", "digest", "folder")}
    assert tags == {
        "method": "fedavg",
        "preset": "fedavg-digits",
        "seed": "7",
        "digest": "ab" * 32,
        "folder": str(runs / "tags"),
    }
    assert (run.info.run_name, run.info.status) == ("tags", "FINISHED")


def test_the_folder_and_pictures_are_kept_without_checkpoints(runs):
    watcher = connect(None, runs / "files")
    folder = RunFolder.create(runs / "files")
    play(FolderWatcher(folder), folder.path)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "large.safetensors").write_bytes(b"0")
    watcher.started(start_in(folder.path))
    watcher.finished(Result(result_values(), Book(), (pictures_of(3),)))
    kept = [f.path for f in watcher._client.list_artifacts(watcher.run_id)]
    assert kept == [
        "config.yaml",
        "images",
        "label_map.png",
        "ledger.parquet",
        "mlflow.json",
        "result.json",
        "rounds.parquet",
        "seconds.parquet",
        "start.json",
    ]
    pictures = [f.path for f in watcher._client.list_artifacts(watcher.run_id, "images")]
    assert pictures == ["images/generated-0003.png", "images/real-0003.png"]


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("lost"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_ended_early_is_marked_so(runs, error, status):
    watcher = connect(None, runs / status)
    watcher.started(start_in(runs / status))
    watcher.failed(error)
    assert watcher._client.get_run(watcher.run_id).info.status == status


def test_numbers_that_are_not_finite_and_odd_names_are_taken(runs, caplog):
    watcher = connect(None, runs / "odd")
    watcher.started(start_in(runs / "odd"))
    watcher.stage(
        StageRecord(0, "global", Evaluation({"accuracy": 0.1, "loss": math.nan}, {"accuracy": np.array([0.1])}))
    )
    watcher.round(replace(round_record(0), metrics={"gap[%]": math.inf}))
    metrics = watcher._client.get_run(watcher.run_id).data.metrics
    assert math.isnan(metrics["test/global/loss"])
    assert "server/gap___" in metrics
    assert caplog.text == ""


def test_a_result_without_numbers_is_finished_all_the_same(runs, caplog):
    _, run = tracked(runs, "empty", accuracy=None, loss=None)
    assert run.info.status == "FINISHED"
    assert caplog.text == ""


def test_mlflow_is_imported_when_it_is_used_and_making_a_store_says_nothing(first):
    folder, done = first
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
    assert (folder / "mlflow.db").exists()


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_server_that_is_not_there_is_named_with_the_way_out(tmp_path):
    uri = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(TrackingError, match=rf"mlflow\.tracking_uri = {uri}.*start its server.*mlflow\.enabled=false"):
        connect(uri, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_is_given_up_in_the_time_the_person_set(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(TrackingError, match="ReadTimeout"):
            connect(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "run")


@pytest.mark.parametrize("uri", ["foo://bar", "sqlite:////proc/nowhere/mlflow.db"])
def test_a_store_that_cannot_be_is_refused(tmp_path, uri):
    with pytest.raises(TrackingError, match=uri):
        connect(uri, tmp_path / "run")


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("notes" * 100)
    with pytest.raises(TrackingError, match="not a database"):
        connect(None, tmp_path / "run")


class Store:
    """Stands in for MLflow's client: notes every call, and fails from the n-th on."""

    def __init__(self, fails_from: int) -> None:
        self.calls: list[str] = []
        self._fails_from = fails_from

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append(name)
            if len(self.calls) >= self._fails_from:
                raise ConnectionError("the server went away")
            return type("Run", (), {"info": type("Info", (), {"run_id": "abc"})})

        return call


@pytest.mark.parametrize("fails_from", [1, 2, 3, 4, 6])
def test_a_store_that_fails_is_said_once_and_left_alone_while_the_run_goes_on(tmp_path, caplog, fails_from):
    store = Store(fails_from)
    watcher = MlflowWatcher(TrackingStore(store, "http://store", "0"))
    with caplog.at_level(logging.WARNING):
        play(watcher, tmp_path)
    assert len(store.calls) == fails_from
    assert [r.getMessage() for r in caplog.records] == [
        "Stopped logging to MLflow at http://store: the server went away; the run continues"
    ]


def test_a_person_is_told_at_once_and_at_the_end_what_a_store_lacks_that_failed(tmp_path):
    store, told = Store(fails_from=5), []  # the run, its picture, its parameters, and one round of three are taken
    play(MlflowWatcher(TrackingStore(store, "http://store", "0"), note=told.append), tmp_path)
    assert told == [
        "Stopped logging to MLflow at http://store: the server went away; the run continues",
        "MLflow at http://store lacks the figures of 2 rounds, the result and the run's files; "
        "the run's folder has them all",
    ]


def test_a_run_that_goes_on_stays_the_same_run_and_hears_of_no_round_twice(runs):
    first, folder = connect(None, runs / "goes on"), runs / "goes on"
    first.started(start_in(folder))
    first.round(round_record(0))
    first.round(round_record(1))
    second = connect(None, folder)
    second.started(replace(start_in(folder), done=1))
    second.round(round_record(1))
    second.round(round_record(2))
    second.finished(Result(result_values(), Book()))
    assert second.run_id == first.run_id
    assert [m.step for m in second._client.get_metric_history(first.run_id, "bytes/up")] == [0, 1, 2]
    assert second._client.get_run(first.run_id).info.status == "FINISHED"


def test_a_run_that_goes_on_with_another_store_is_a_run_of_its_own_there(runs):
    folder = runs / "moves"
    first, other = connect(None, folder), connect(f"sqlite:///{runs}/other.db", folder)
    first.started(start_in(folder))
    other.started(start_in(folder))
    assert other.run_id != first.run_id
    assert other._client.get_run(other.run_id).info.status == "RUNNING"


def test_a_run_that_fails_before_it_started_is_not_told(caplog):
    store = Store(fails_from=100)
    MlflowWatcher(TrackingStore(store, "http://store", "0")).failed(RuntimeError("lost"))
    assert (store.calls, caplog.text) == ([], "")


def test_metrics_of_a_round_are_means_over_clients_and_sums_of_bytes():
    record = RoundRecord(
        4,
        clients=(0, 1),
        metrics={"gap": 2.0},
        seconds={"server": 0.5},
        entries=(Entry(4, "train", 0, "up", "weights", 7), Entry(4, "train", 1, "up", "weights", 5)),
        client_metrics=(ClientMetric(4, "train", 0, "loss", 1.0), ClientMetric(4, "train", 1, "loss", 2.0)),
    )
    assert round_metrics(record) == {
        "client/train/loss": 1.5,
        "server/gap": 2.0,
        "seconds/server": 0.5,
        "bytes/up": 12.0,
        "bytes/down": 0.0,
    }


def test_files_in_the_making_are_not_kept(tmp_path):
    for name in ("result.json", ".result.json.part"):
        (tmp_path / name).write_text("")
    assert kept_files(tmp_path) == [tmp_path / "result.json"]


@pytest.mark.parametrize("name", ["a b", "é中", "50%20of", "what?", "a#b&c;d=e"])
def test_any_name_of_a_folder_makes_a_uri_that_leads_back_to_it(tmp_path, name):
    assert file_of(default_uri(tmp_path / name / "run")) == tmp_path / name / "mlflow.db"


def test_a_folder_with_signs_of_a_uri_in_its_name_holds_its_store(tmp_path):
    folder = tmp_path / "50%20é?"
    watcher = connect(None, folder / "run")
    watcher.started(start_in_new(folder / "run"))
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == ["mlartifacts", "mlflow.db", "run"]
    assert [path.name for path in tmp_path.iterdir()] == ["50%20é?"]
    assert [f.path for f in watcher._client.list_artifacts(watcher.run_id)] == ["label_map.png"]


def start_in_new(folder):
    folder.mkdir(parents=True)
    return start_of(folder)


def test_the_environment_names_the_store_where_the_configuration_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert wanted_uri(None, tmp_path) == "http://there:5000"
    assert wanted_uri("http://here:5000", tmp_path) == "http://here:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert wanted_uri(None, tmp_path / "run") == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_store_of_the_environment_that_is_not_there_is_named_by_the_variable(tmp_path, monkeypatch):
    uri = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=f"MLFLOW_TRACKING_URI = {uri}: this store cannot be used"):
        reach(None, tmp_path / "run")


def test_a_relative_store_is_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert wanted_uri("sqlite:///own.db", tmp_path / "run") == f"sqlite:///{tmp_path}/own.db"
    assert wanted_uri("sqlite:///own.db?timeout=9", tmp_path / "run") == f"sqlite:///{tmp_path}/own.db?timeout=9"
    for uri in ("sqlite:////there/own.db", "http://there:5000", "file:mlruns"):
        assert wanted_uri(uri, tmp_path / "run") == uri


def test_a_store_that_cannot_be_written_is_refused_before_mlflow_tries_for_two_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.views.tracking._client", lambda uri: pytest.fail("MLflow was asked"))
    (tmp_path / "mlflow.db").mkdir()  # as a folder that may not be written
    with pytest.raises(TrackingError, match=rf"null, which is sqlite:///{tmp_path}/mlflow.db.*unable to open database"):
        reach(None, tmp_path / "run")


MAKING = """
import sys
from pathlib import Path
from engine.views import tracking
print("ready", flush=True)
sys.stdin.readline()
print(tracking.reach(None, Path(sys.argv[1]) / sys.argv[2]).experiment)
"""


@pytest.mark.slow
def test_runs_that_start_together_in_a_new_folder_share_the_store_that_one_of_them_makes(tmp_path):
    words = [sys.executable, "-c", MAKING, str(tmp_path)]
    both = [subprocess.Popen([*words, name], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) for name in ("a", "b")]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate() for process in both]
    assert [err for _, err in said] == ["", ""]
    assert said[0][0] == said[1][0] != ""


def test_a_person_is_told_what_to_type():
    assert ui_command("sqlite:////my runs/mlflow.db") == "mlflow ui --backend-store-uri 'sqlite:////my runs/mlflow.db'"
    assert ui_command("http://server:5000") == "http://server:5000"


@pytest.mark.parametrize(
    ("asked", "by_environment", "are_logged"),
    [(True, "", True), (None, "true", True), (None, "", False), (False, "true", False)],
)
def test_what_the_machine_does_is_logged_where_the_run_or_mlflows_own_variable_says_so(
    runs, monkeypatch, asked, by_environment, are_logged
):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", by_environment or "false")
    name = f"machine-{asked}-{by_environment}"
    watcher, start = connect(None, runs / name), start_in(runs / name)
    watcher.started(replace(start, config={**start.config, "mlflow": {"system_metrics": asked}}))
    threads = [thread.name for thread in threading.enumerate()]
    watcher.finished(Result(result_values(), Book()))
    metrics = watcher._client.get_run(watcher.run_id).data.metrics
    assert ("SystemMetricsMonitor" in threads) == are_logged
    assert any(name.startswith("system/cpu") for name in metrics) == are_logged
    assert "SystemMetricsMonitor" not in [thread.name for thread in threading.enumerate()]


def test_the_end_does_not_wait_for_the_thread_that_watches_the_machine_where_it_waits_for_an_answer(
    runs, monkeypatch, caplog
):
    answers = threading.Event()

    class Waiting:
        def start(self): ...

        def finish(self):
            answers.wait()

    monkeypatch.setattr("engine.views.tracking._ENDING_SECONDS", 0.01)
    told, start = [], start_in(runs / "waits")
    watcher = connect(None, runs / "waits", told.append)
    watcher.started(start)
    watcher._machine = Waiting()
    watcher.finished(Result(result_values(), Book()))
    answers.set()
    assert "what the machine does waits for an answer for over 0.01 s; the run continues" in told[0]
    assert told[1].endswith("lacks the result and the run's files; the run's folder has them all")


def test_where_the_store_is_lost_the_thread_that_watches_the_machine_is_told_to_end(runs):
    watcher, start = connect(None, runs / "lost"), start_in(runs / "lost")
    watcher.started(replace(start, config={**start.config, "mlflow": {"system_metrics": True}}))
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
    watcher._lost = True
    watcher.finished(Result(result_values(), Book()))
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_run_that_fails_leaves_no_thread_of_mlflows(runs):
    watcher, start = connect(None, runs / "machine"), start_in(runs / "machine")
    watcher.started(replace(start, config={**start.config, "mlflow": {"system_metrics": True}}))
    watcher.failed(RuntimeError("no more"))
    assert "SystemMetricsMonitor" not in [thread.name for thread in threading.enumerate()]


@contextmanager
def mlflow_server(folder):
    """The address of a server of MLflow's own on this machine, and its process, which leads a group of its own."""
    port = closed_port()
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    place = ["--backend-store-uri", f"sqlite:///{folder}/there.db", "--artifacts-destination", str(folder / "files")]
    with (folder / "server.txt").open("w") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words, *place], stdout=said, stderr=said, start_new_session=True
        )
    try:
        for _ in range(LOOKS):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                break
            assert server.poll() is None, (folder / "server.txt").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", server
    finally:
        end_group(server)


def end_group(leader):
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


LOOKS = 1200
"""A tenth of a second apart, before something is held for stuck."""


@pytest.mark.slow
def test_a_server_that_dies_in_mid_run_costs_the_view_and_is_told_once(tmp_path):
    """The run waits after its first round until the server is gone, since it watches its machine too."""
    code = (
        "import pathlib, sys, time; import engine as tessera; "
        "wait = lambda done: [time.sleep(0.1) for _ in range(1200) if not pathlib.Path('gone').exists()]; "
        "tessera.run('fedavg-digits', rounds=3, out='run', on_round=wait, runner={'kind': 'inline'}, "
        "mlflow={'tracking_uri': sys.argv[1], 'system_metrics': True}, clients={'steps': 1})"
    )
    with mlflow_server(tmp_path) as (uri, server):
        run = subprocess.Popen([sys.executable, "-c", code, uri], cwd=tmp_path, stdout=PIPE, stderr=PIPE, text=True)
        for _ in range(LOOKS):
            if (tmp_path / "run/parts/ledger-000000.parquet").exists() or run.poll() is not None:
                break
            time.sleep(0.1)
        assert run.poll() is None, run.communicate()
        end_group(server)
        (tmp_path / "gone").touch()
        said = "".join(run.communicate(timeout=120))
    assert run.returncode == 0, said
    lost = f"Stopped logging to MLflow at {uri}: "
    words = " ".join(said.split())
    assert words.count(lost) == 1
    assert words.count(f"MLflow at {uri} lacks the figures of") == 1
    assert "Retrying" not in said
    assert "Traceback" not in said
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["rounds"] == 3
    assert [note.startswith(lost) for note in result["notes"]] == [True]
