"""Relative paths of a run mean the folder where it was started, wherever it is resumed."""

import json
import sqlite3
from contextlib import closing

import pytest

from engine.config import load
from engine.config.anchoring import with_paths_from
from engine.errors import ConfigError
from engine.run.launch import launch, resume
from engine.run.resuming import apply_overrides
from engine.store.folder import RunFolder
from tests.engine.test_compare import Silent


@pytest.fixture
def start(tmp_path):
    for name in ("data", "public"):
        (tmp_path / "start" / name).mkdir(parents=True)
    (tmp_path / "start" / "part.parquet").touch()
    return tmp_path / "start"


def test_what_lies_in_the_folder_of_the_start_is_named_in_full(start):
    tree = {"data": {"source": "parquet:data", "root": None, "public": "public"}, "partition": {"path": "part.parquet"}}
    assert with_paths_from(tree, start) == {
        "data": {"source": f"parquet:{start}/data", "root": None, "public": f"{start}/public"},
        "partition": {"path": f"{start}/part.parquet"},
    }


@pytest.mark.parametrize("source", ["digits", "parquet:/elsewhere/data", "parquet:mnist", "torchvision:data"])
def test_any_other_source_stays_as_it_is(start, source):
    assert with_paths_from({"data": {"source": source, "public": 0.1}}, start) == {
        "data": {"source": source, "public": 0.1}
    }


def test_where_the_start_is_not_known_nothing_changes():
    assert with_paths_from({"data": {"source": "csv:x.csv"}}, None) == {"data": {"source": "csv:x.csv"}}


def test_a_run_that_is_resumed_from_another_folder_stays_one_run_in_its_relative_store(tmp_path, monkeypatch):
    for name in ("start", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "start")
    keys = ["runner.kind=inline", "rounds=1", "clients.steps=1", "mlflow.tracking_uri=sqlite:///own.db"]
    launch(load("fedavg-digits", keys), "fedavg-digits", tmp_path / "start" / "run", Silent())
    monkeypatch.chdir(tmp_path / "other")
    config, changes = apply_overrides(RunFolder(tmp_path / "start" / "run"), ("rounds=2",))
    assert config.mlflow.tracking_uri == f"sqlite:///{tmp_path}/start/own.db"
    assert list(changes) == ["rounds"]
    assert resume(tmp_path / "start" / "run", ("rounds=2",), Silent()) is not None
    assert list((tmp_path / "other").iterdir()) == []
    with closing(sqlite3.connect(tmp_path / "start" / "own.db")) as store:
        assert store.execute("select count(*) from runs").fetchone() == (1,)
        assert store.execute("select step from metrics where key = 'bytes/up' order by step").fetchall() == [(0,), (1,)]


def test_a_run_is_resumed_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    rows = "".join(f"{n},{n % 7},{'ab'[n % 2]}\n" for n in range(60))
    for half in ("train", "test"):
        (tmp_path / "start" / f"{half}.csv").write_text(f"x,y,label\n{rows}")
    keys = ["data.source=csv:train.csv", "runner.kind=inline", "rounds=1", "mlflow.enabled=false"]
    launch(load("fedavg-diabetes", keys), "fedavg-diabetes", tmp_path / "start" / "run", Silent())
    monkeypatch.chdir(tmp_path / "other")
    for _ in range(2):
        config, changes = apply_overrides(RunFolder(tmp_path / "start" / "run"), ("rounds=2",))
        assert config.data.source == f"csv:{tmp_path}/start/train.csv"
        assert list(changes) == ["rounds"]
    assert resume(tmp_path / "start" / "run", ("rounds=2",), Silent()) is not None
    started = json.loads((tmp_path / "start" / "run" / "start.json").read_text())
    assert started["start_folder"] == str(tmp_path / "start")


OWN = """
clients: {net: [small_cnn, "own_of_the_start.nets:make"]}
task: {name: "json:decoder"}
"""


@pytest.fixture
def run_with_own_code(start):
    """A run's folder that names code: of the user's own in the folder of the start, and of the standard library."""
    (start / "own_of_the_start").mkdir()
    (start / "own_of_the_start" / "nets.py").write_text("raise RuntimeError('imported')")
    (start / "run").mkdir()
    (start / "run" / "config.yaml").write_text(OWN)
    (start / "run" / "start.json").write_text(json.dumps({"start_folder": str(start)}))
    return RunFolder(start / "run")


def test_code_of_ones_own_is_not_taken_from_the_folder_of_the_start_but_that_folder_is_named(
    run_with_own_code, start, monkeypatch
):
    monkeypatch.chdir(start.parent)
    with pytest.raises(ConfigError) as caught:
        apply_overrides(run_with_own_code, (), code={"own_of_the_start.nets", "json"})
    (problem,) = caught.value.problems
    assert (problem.place, problem.value) == ("clients.net.1", "own_of_the_start.nets")
    assert f"the run was started in {start}: call this there" in problem.reason
    assert f"with PYTHONPATH={start}" in problem.reason


def test_code_of_ones_own_that_is_found_from_here_is_no_reason_to_refuse(run_with_own_code, start, monkeypatch):
    monkeypatch.syspath_prepend(start)
    with pytest.raises(ConfigError, match="method: is needed") as caught:
        apply_overrides(run_with_own_code, (), code={"own_of_the_start.nets", "json"})
    assert "own_of_the_start" not in str(caught.value)
