"""Whole runs over a language model: killed in rewriting and in training, on Ray hosts, and what their folders hold."""

from __future__ import annotations

import csv
import json
import shutil

import pyarrow.parquet as pq
import pytest

from engine import compare as compare_in_python
from engine import run as run_in_python
from engine.models import load
from engine.store.folder import read
from tests.algorithms.support_language import base, rows
from tests.engine import kills


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The rows of `support_language` as a CSV file."""
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("instruction", "answer", "key", "domain"), *rows()])
    return path


@pytest.fixture(scope="module")
def settings(data):
    """A short FedSDR run: of 72 rows a fifth are for tests, and clients rewrite the others in two steps each."""
    return {
        "method": {"name": "fedsdr", "rewrites_at_once": 10, "rewrite_check": "none"},
        "data": {"source": f"csv:{data}"},
        "task": {"name": "instructions", "context": 48, "rank": 4, "alpha": 8.0},
        "partition": {"kind": "iid", "clients": 3},
        "clients": {"net": base(), "steps": 2, "batch": 4, "lr": 0.05},
        "rounds": 2,
        "mlflow": {"enabled": False},
    }


@pytest.fixture(scope="module")
def configuration(settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(json.dumps(settings))
    return str(path)


@pytest.fixture(scope="module")
def undisturbed(configuration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    kills.whole(folder, configuration, ())
    return folder


def items_of(folder):
    return pq.read_table(folder / "items-rewrite.parquet").to_pylist()


def digest_of(folder):
    return json.loads((folder / "result.json").read_text())["digest"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [("step", 0, "rewrite", 2), ("step", 0, "train", 1), ("step", 1, "train", 2)],
    ids=["in rewriting", "in the first training", "in the second"],
)
def test_a_run_that_was_killed_goes_on_to_the_same_digest_and_rewrites_nothing_twice(
    where, configuration, undisturbed, tmp_path
):
    kills.killed(tmp_path / "run", configuration, (), where)
    assert kills.gone_on(tmp_path / "run") == 0
    assert digest_of(tmp_path / "run") == digest_of(undisturbed)
    assert items_of(tmp_path / "run") == items_of(undisturbed)


def test_a_table_has_one_row_for_each_answer_that_was_rewritten(undisturbed):
    found = [(row["client"], row["item"]) for row in items_of(undisturbed)]
    assert sorted(found) == [(client, item) for client, held in enumerate((20, 19, 19)) for item in range(held)]
    assert {row["round"] for row in items_of(undisturbed)} == {0}


@pytest.mark.parametrize("allowed", [True, False])
def test_texts_are_kept_and_shown_only_where_the_run_allows_it(allowed, settings, tmp_path):
    done = run_in_python(settings, out=tmp_path / "run", privacy={"texts": allowed}, rounds=1)
    assert ("text" in done.items["rewrite"].column_names) == allowed
    page = done.report.read_text()
    assert "Item by item" in page
    answers = {answer for _, answer, *_ in rows()}
    assert any(f">{answer}<" in page for answer in answers) == allowed


def test_a_longer_run_keeps_the_rows_of_its_first_rounds(configuration, undisturbed, tmp_path):
    kills.whole(tmp_path / "run", configuration, ("rounds=1",))
    assert kills.gone_on(tmp_path / "run", ("rounds=2",)) == 0
    assert items_of(tmp_path / "run") == items_of(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_hosts_give_the_digest_of_one_process(hosts, settings, undisturbed, tmp_path):
    runner = {"kind": "ray", "placement": "pooled", "hosts": hosts, "cpus": 0.1}
    done = run_in_python(settings, out=tmp_path / "run", runner=runner)
    assert done.result["digest"] == digest_of(undisturbed)


def test_the_ledger_calls_what_travels_adapters_and_a_policy_can_forbid_them(undisturbed, settings, tmp_path):
    assert set(read(undisturbed).ledger["kind"].to_pylist()) == {"adapters", "examples"}
    with pytest.raises(Exception, match=r"privacy\.forbid.*adapters"):
        run_in_python(settings, out=tmp_path / "run", privacy={"forbid": ["adapters"]})
    assert not (tmp_path / "run").exists()


def test_the_model_of_a_run_is_its_adapters(undisturbed):
    model = load(undisturbed)
    assert sum(value.numel() for value in model.net.state_dict().values()) == 1_792
    assert model.network == base()


@pytest.mark.parametrize("task", [{}, {"net": "llama-nano"}])
def test_the_place_where_a_tiny_model_is_kept_changes_no_bit(task, settings, tmp_path, monkeypatch):
    digests = set()
    for place in ("here", "there"):
        shutil.copytree(base().removeprefix("hf:"), tmp_path / place)
        monkeypatch.setattr("engine.planning.federation.ensure_base", lambda name, tell, place=place: tmp_path / place)
        changed = {"clients": {**settings["clients"], "net": "llama-nano"}, "task": {**settings["task"], **task}}
        done = run_in_python({**settings, **changed}, out=tmp_path / f"run {place}")
        digests.add(done.result["digest"])
        assert str(tmp_path / place) not in (done.folder / "config.yaml").read_text()
        assert load(done.folder).network == "llama-nano"
    assert len(digests) == 1


def test_methods_are_compared_on_one_language_model(settings, tmp_path):
    shared = {key: value for key, value in settings.items() if key != "method"}
    found = compare_in_python(["fedit", "fedsd"], shared, out=tmp_path / "compare", seeds=2, rounds=1)
    assert found.table.num_rows == 2
    assert len(list((tmp_path / "compare").rglob("result.json"))) == 4
