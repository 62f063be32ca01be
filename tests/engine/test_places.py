"""Places of runs: folders, and URIs that fsspec knows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from engine.commands.cli import cli
from engine.store.folder import FolderExists
from engine.store.places import PlaceError, fetch, folder_for

QUICK = ["--set=runner.kind=inline", "--set=rounds=1", "--set=clients.steps=1", "--set=mlflow.enabled=false"]


@pytest.fixture
def memory():
    """fsspec's store in this process's memory, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    return store


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def play(place: str, run: Callable[[Path], None]) -> None:
    with folder_for(place) as folder:
        run(folder)


def test_a_path_is_the_folder_itself(tmp_path):
    with folder_for(str(tmp_path / "here")) as folder:
        assert folder == tmp_path / "here"


def test_what_was_written_lies_at_the_uri_and_nowhere_else(memory):
    with folder_for("memory://bucket/runs/first/") as folder:
        write(folder, "config.yaml", "checkpoints/1.bin")
    assert not folder.parent.exists()
    assert memory.cat("/bucket/runs/first/checkpoints/1.bin") == b"checkpoints/1.bin"
    assert sorted(memory.find("/bucket")) == ["/bucket/runs/first/checkpoints/1.bin", "/bucket/runs/first/config.yaml"]


def test_a_result_comes_last(memory, monkeypatch):
    order = []
    put = type(memory).put_file
    monkeypatch.setattr(type(memory), "put_file", lambda self, a, b, **k: (order.append(b), put(self, a, b, **k)))
    with folder_for("memory://bucket/run") as folder:
        write(folder, "result.json", "zz.parquet", "a.parquet")
    assert order[-1].endswith("/result.json")
    assert len(order) == 3


def test_of_a_run_that_fails_there_is_what_it_had_written(memory):
    def fails(folder):
        write(folder, "run.log")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play("memory://bucket/run", fails)
    assert memory.find("/bucket") == ["/bucket/run/run.log"]


def test_of_a_run_that_never_began_there_is_nothing(memory):
    with pytest.raises(ZeroDivisionError), folder_for("memory://bucket/run") as folder:
        raise ZeroDivisionError
    assert memory.find("/bucket") == []
    assert not folder.parent.exists()


def test_what_cannot_be_sent_is_kept_and_said(memory, monkeypatch):
    def full(*_, **__):
        raise OSError("quota exceeded")

    def fills(folder):
        write(folder, "result.json")
        monkeypatch.setattr(type(memory), "put_file", full)

    with pytest.raises(PlaceError, match="memory://bucket/run could not be written: quota exceeded") as caught:
        play("memory://bucket/run", fills)
    kept = Path(str(caught.value).rpartition(" ")[2])
    assert (kept / "result.json").read_text() == "result.json"
    shutil.rmtree(kept.parent)


def test_a_taken_or_impossible_uri_is_refused_before_the_run(memory):
    memory.pipe("/bucket/run/x", b"mine")
    for uri, error, said in (
        ("memory://bucket/run", FolderExists, "already holds something"),
        ("nosuch://bucket/run", PlaceError, "nosuch://bucket/run: nothing can be written there"),
    ):
        with pytest.raises(error, match=said), folder_for(uri):
            pytest.fail("the run began")


def test_fetched_is_what_was_sent_from_a_uri_and_from_a_folder(memory, tmp_path):
    write(tmp_path / "run", "result.json", "checkpoints/1.bin")
    with folder_for("memory://bucket/run") as folder:
        write(folder, "result.json", "checkpoints/1.bin")
    for number, place in enumerate(("memory://bucket/run", str(tmp_path / "run"))):
        back = tmp_path / f"back-{number}"
        fetch(place, back)
        assert (back / "checkpoints/1.bin").read_text() == "checkpoints/1.bin"
        assert {p.name for p in back.iterdir()} == {"result.json", "checkpoints"}


def test_nothing_to_fetch_is_said_with_the_way_out(memory, tmp_path):
    for place in ("memory://bucket/none", str(tmp_path / "none")):
        with pytest.raises(PlaceError, match="as seen from this machine"):
            fetch(place, tmp_path / "back")
    write(tmp_path / "back", "mine")
    with pytest.raises(FolderExists):
        fetch("memory://bucket/none", tmp_path / "back")


def test_a_run_keeps_its_folder_at_a_uri(memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["run", "fedavg-digits", *QUICK[:-1], "--out", "memory://bucket/run"])
    assert done.exit_code == 0, done.output
    assert "mlflow" not in done.output
    assert done.output.endswith("copied to: memory://bucket/run\n")
    assert json.loads(memory.cat("/bucket/run/result.json"))["rounds"] == 1
    assert list(tmp_path.iterdir()) == []
    again = CliRunner().invoke(cli, ["run", "fedavg-digits", *QUICK, "--out", "memory://bucket/run"])
    assert again.exit_code == 2
