"""A sweep: settings judged on validation rows, in one table that follows from the seed; called again it goes on."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import engine as tessera
from actors.jobs.recall import FolderStore
from algorithms.core.task import Figure
from docs import make
from engine.commands.cli import cli
from engine.compare.cell import Files
from engine.config import load
from engine.errors import ConfigError
from engine.store.folder import read
from engine.sweep.conduct import Knowledge, SettingResult, better_of, data_key, try_setting
from engine.sweep.page import write_page
from engine.sweep.spec import Setting, sweep_of
from engine.sweep.table import rows_of

ACCURACY, LOSS = Figure("accuracy", "higher", "%"), Figure("loss", "lower")
QUICK = {
    "base": "fedavg-digits",
    "rounds": 3,
    "data": {"source": "digits", "limit": 200},
    "partition": {"clients": 3},
    "clients": {"net": "mlp", "steps": 2, "lr": 0.1},
    "mlflow": {"enabled": False},
}


def planned(*overrides, **section):
    return sweep_of({**QUICK, "sweep": section}, overrides)


def refusal(*overrides, **section):
    with pytest.raises(ConfigError) as error:
        planned(*overrides, **section)
    return str(error.value)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- What is tried ------------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_the_last_key_first():
    found = planned(keys={"clients.lr": [0.1, 0.2], "clients.momentum": [0.0, 0.9]})
    assert [tuple(one.values.values()) for one in found.settings] == [(0.1, 0.0), (0.1, 0.9), (0.2, 0.0), (0.2, 0.9)]
    assert [one.cells[0].config.clients.lr for one in found.settings] == [0.1, 0.1, 0.2, 0.2]
    assert [one.name for one in found.settings] == ["000", "001", "002", "003"]


def test_each_setting_is_tried_under_every_seed_and_partition():
    (one,) = planned(
        "seed=5", keys={"clients.lr": [0.1]}, seeds=2, partitions=[{"alpha": 0.1}, {"alpha": 5.0}]
    ).settings
    found = [(cell.name, cell.seed, cell.config.partition.alpha) for cell in one.cells]
    assert found == [
        ("000-partition-0-seed-5", 5, 0.1),
        ("000-partition-0-seed-6", 6, 0.1),
        ("000-partition-1-seed-5", 5, 5.0),
        ("000-partition-1-seed-6", 6, 5.0),
    ]


KEYS = {
    "clients.lr": {"from": 0.001, "to": 0.1, "log": True},
    "clients.batch": {"from": 4, "to": 7, "whole": True},
    "clients.momentum": {"from": 0.25, "to": 0.75},
    "clients.net": ["mlp", "small_cnn"],
}


def test_drawn_settings_follow_from_the_seed_and_stay_where_more_are_drawn():
    few, more = (planned(search="random", samples=n, keys=KEYS).settings for n in (3, 6))
    assert [one.values for one in few] == [one.values for one in more[:3]]
    assert [one.values for one in few] != [
        one.values for one in planned("seed=1", search="random", samples=3, keys=KEYS).settings
    ]


def test_what_is_drawn_lies_where_it_was_asked_for_whole_numbers_at_both_ends_too():
    values = [one.values for one in planned(search="random", samples=80, keys=KEYS).settings]
    rates = [value["clients.lr"] for value in values]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    # Equal chances of equal factors: as many below the geometric mean of the ends as above.
    assert abs(np.mean([rate < 0.01 for rate in rates]) - 0.5) < 0.2
    assert {value["clients.batch"] for value in values} == {4, 5, 6, 7}
    assert all(0.25 <= value["clients.momentum"] <= 0.75 for value in values)
    assert {value["clients.net"] for value in values} == {"mlp", "small_cnn"}


def test_without_a_section_stop_there_are_validation_rows_and_no_run_ends_early():
    plain, own = planned(keys={"rounds": [2, 4]}), planned("stop.patience=1", keys={"rounds": [2, 4]})
    assert [one.cells[0].config.stop.patience for one in plain.settings] == [2, 4]
    assert [one.cells[0].config.stop.patience for one in own.settings] == [1, 1]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({}, "sweep.keys: is needed: by key, as clients.lr"),
        ({"keys": {}}, "sweep.keys = {}: must name a key at least"),
        ({"keys": {"clients.lr": []}}, "sweep.keys.clients.lr = []: must hold a value at least"),
        ({"keys": {"clients.lr": 0.1}}, "sweep.keys.clients.lr = 0.1: must be a list of values, or {from: A, to: B}"),
        ({"keys": {"clients.lr": {"from": 0, "to": 1}}}, "an interval has no end of values: give a list"),
        ({"keys": {"clients.lr": {"from": 0, "to": 1, "log": True}}, "search": "random", "samples": 1}, "above 0"),
        ({"keys": {"clients.lr": [0.1]}, "search": "random"}, "sweep.samples: is needed where sweep.search is random"),
        ({"keys": {"clients.lr": [0.1]}, "samples": 3}, "sweep.samples = 3: is for random and asha"),
        ({"keys": {"clients.lr": [0.1]}, "factor": 3.0}, "sweep.factor = 3.0: is for asha"),
        ({"keys": {"clients.lr": [0.1]}, "serch": "grid"}, 'sweep.serch = "grid": unknown key; did you mean search?'),
        ({"keys": {"seed": [1]}}, "sweep.keys.seed = [1]: cannot be tried: sweep.seeds says over how many"),
        ({"keys": {"stop.share": [0.5]}}, "sweep.keys.stop.share = [0.5]: cannot be tried: it says on which rows"),
        ({"keys": {"clients.rl": [1]}}, "clients.rl = 1: unknown key; known here are net"),
        (
            {"keys": {"clients.lr": [-1, -2]}},
            "for 2 reasons:\n  clients.lr = -1: must be larger than 0\n  clients.lr = -2",
        ),
        ({"keys": {"clients.lr": [0.1]}, "partitions": [{"alpha": -1}]}, "partition.alpha = -1: must be larger than 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(section, told):
    assert told in refusal(**section)


def test_a_configuration_without_a_section_sweep_is_told_what_one_is():
    with pytest.raises(ConfigError, match="sweep: is needed: which keys are tried"):
        sweep_of("fedavg-digits", [])


# --- How a setting is judged --------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1))
def test_the_best_value_is_a_number_where_there_is_one(values):
    numbers = [value for value in values if value == value]
    assert better_of(ACCURACY, values) == max(numbers) if numbers else math.isnan(better_of(ACCURACY, values))
    assert better_of(LOSS, values) == min(numbers) if numbers else math.isnan(better_of(LOSS, values))


def tried(setting, known, folder, rounds=3):
    """What a setting reports, and what it hands over."""
    reports, kept = [], {}
    config = setting.cells[0].config
    datasets = {data_key(config): dataset()}
    try_setting(
        setting,
        known,
        "test",
        ACCURACY,
        rounds,
        datasets,
        FolderStore(folder),
        lambda step, score: reports.append((step, score)),
        lambda name, files: kept.update({name: files}),
    )
    return reports, kept


def dataset():
    from engine.data import load as load_data

    return load_data(load("fedavg-digits", ["data.limit=200"]).data)


def validated(files: Files, folder: Path):
    files.write(folder)
    return [s.evaluation.figures["accuracy"] for s in read(folder).stages if s.stage == "validation"]


def test_a_score_is_the_mean_over_the_runs_of_the_best_value_so_far_on_validation_rows(tmp_path):
    (setting,) = planned(keys={"clients.lr": [0.5]}, seeds=2).settings
    reports, kept = tried(setting, Knowledge(), tmp_path / "store")
    first, second = (validated(files, tmp_path / name) for name, files in kept.items())
    expected = [max(first[: n + 1]) for n in range(3)] + [(max(first) + max(second[: n + 1])) / 2 for n in range(3)]
    assert [step for step, _ in reports] == [1, 2, 3, 4, 5, 6]
    assert [score for _, score in reports] == pytest.approx(expected)
    again, more = tried(setting, Knowledge({setting.cells[0].name: tuple(enumerate(first))}), tmp_path / "store")
    assert again == reports
    assert list(more) == [setting.cells[1].name]


def test_equal_client_training_of_two_settings_is_done_once(tmp_path):
    settings = planned("method.name=fedavgm", keys={"method.server_momentum": [0.0, 0.9]}).settings
    spared = []
    for setting in settings:
        _, kept = tried(setting, Knowledge(), tmp_path / "store")
        (files,) = kept.values()
        spared.append(json.loads(files.contents["training.json"])["spared"])
    assert spared[0] == 0
    assert spared[1] > 0  # the first round begins from the same weights


def test_a_trial_shows_a_step_after_those_before_it_have():
    from actors.jobs.tuning import _Place

    place, passed = _Place(Path.cwd(), Path("store"), 3), []
    waiting = threading.Thread(target=lambda: (place.wait(2, 4), passed.append(True)))
    waiting.start()
    place.show(0, 5)
    place.show(1, 3)
    waiting.join(timeout=0.05)
    assert not passed
    place.show(1, math.inf)  # it has ended
    waiting.join(timeout=20)
    assert passed


# --- The table ----------------------------------------------------------------------------------------------------


def early(setting: Setting, *scores: float):
    return SettingResult(setting, (), tuple(enumerate(scores, 1)))


def test_settings_that_ended_early_stand_below_by_how_far_they_came_and_those_that_failed_last():
    found = planned(keys={"clients.lr": [0.1, 0.2, 0.3, 0.4]})
    a, b, c, d = found.settings
    results = [early(a, 0.9), SettingResult(b, (), error="no"), early(c, 0.1, 0.5), early(d, 0.1, 0.6)]
    rows = rows_of(found, results)
    assert [row.number for row in rows] == [3, 2, 0, 1]
    assert [row.state for row in rows] == ["ended early"] * 3 + ["failed"]


# --- In this process ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_ray(monkeypatch):
    """A process in which Ray cannot be imported."""
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)


def here(out, *overrides, progress=False, **section):
    tree = {**QUICK, "runner": {"kind": "inline"}, "sweep": {"keys": {"clients.lr": [0.001, 0.3]}, **section}}
    return tessera.sweep(tree, *overrides, out=out, progress=progress)


def test_an_inline_sweep_needs_no_ray_and_has_the_best_setting_first(tmp_path, no_ray):
    found = here(tmp_path / "one")
    rows = found.table.to_pylist()
    assert [row["clients.lr"] for row in rows] == [0.3, 0.001]
    assert [row["state"] for row in rows] == ["complete", "complete"]
    best = found.runs["000-seed-0" if rows[0]["setting"] == 0 else "001-seed-0"]
    assert rows[0]["validation_accuracy_mean"] == best.result["stop"]["best_value"]


def test_an_inline_sweep_goes_on_with_what_is_missing(tmp_path, no_ray):
    first = here(tmp_path / "one")
    before = (first.folder / "table.csv").read_bytes()
    shutil.rmtree(first.folder / "001-seed-0")
    (first.folder / "table.csv").unlink()
    assert (here(tmp_path / "one").folder / "table.csv").read_bytes() == before


def test_a_setting_that_fails_in_this_process_is_told_and_the_others_go_on(tmp_path, no_ray, monkeypatch):
    conduct = sys.modules["engine.sweep.conduct"]  # the package has a function of this name

    def carry(cell, *rest):
        if cell.config.clients.lr == 0.001:
            raise ValueError("sour grapes")
        return proper(cell, *rest)

    proper = conduct.carry
    monkeypatch.setattr(conduct, "carry", carry)
    found = here(tmp_path / "one")
    assert [row["state"] for row in found.table.to_pylist()] == ["complete", "failed"]
    assert "sour grapes" in (found.folder / "000-failed.txt").read_text()
    assert "setting 000: ValueError: sour grapes" in (found.folder / "report.html").read_text()


# --- The page -----------------------------------------------------------------------------------------------------


def test_the_page_needs_no_network_and_shows_every_setting_and_its_run(tmp_path, no_ray):
    folder = here(tmp_path / "one").folder
    page = (folder / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<h1>2 settings of python</h1>" in page
    assert "Setting 001 (clients.lr 0.3) is best" in page
    for name in ("000-seed-0", "001-seed-0"):
        assert f'href="{name}/report.html"' in page
        assert (folder / name / "report.html").exists()


def test_the_page_draws_the_values_on_validation_rows_and_none_of_the_test_set(tmp_path, no_ray):
    found = here(tmp_path / "one")
    page = (found.folder / "report.html").read_text()
    drawn = set(re.findall(r"00[01], round (\d): ([0-9.]+) %", page))
    for name in found.runs:
        for stage in (stage for stage in read(found.folder / name).stages if stage.stage == "validation"):
            assert (str(stage.round + 1), f"{100 * stage.evaluation.headline:.1f}") in drawn, name
    assert len(drawn) <= 2 * QUICK["rounds"]


def test_a_page_without_a_complete_setting_says_so(tmp_path):
    found = planned(keys={"clients.lr": [0.1, 0.2]})
    results = [early(found.settings[0], 0.5), SettingResult(found.settings[1], (), error="no <memory>")]
    write_page(found, results, rows_of(found, results), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "No setting was tried to its end." in page
    assert "setting 001: no &lt;memory&gt;" in page


# --- On Ray Tune --------------------------------------------------------------------------------------------------

PAGE = (make.ROOT / "docs/sweeping.md").read_text()


@pytest.fixture(scope="module")
def swept(tmp_path_factory, ray_cluster):
    """The sweep that the page shows, by asynchronous halving."""
    folder = tmp_path_factory.mktemp("sweep")
    make.write_files(PAGE, folder)
    keys = {"mlflow": {"enabled": True}, "data": {"limit": 300}}
    return folder / "lr.yaml", keys, tessera.sweep(folder / "lr.yaml", out=folder / "one", progress=False, **keys)


def test_the_best_setting_is_that_with_the_best_score_and_one_seed_gives_one_table(swept, tmp_path):
    file, keys, first = swept
    tessera.sweep(file, out=tmp_path / "two", progress=False, **{**keys, "mlflow": {"enabled": False}})
    assert (first.folder / "table.csv").read_bytes() == (tmp_path / "two" / "table.csv").read_bytes()
    states = first.table["state"].to_pylist()
    assert {"complete", "ended early"} == set(states)
    complete = [row for row in first.table.to_pylist() if row["state"] == "complete"]
    best = max(complete, key=lambda row: row["validation_accuracy_mean"])
    assert first.best["clients.lr"] == pytest.approx(best["clients.lr"])
    assert load(str(first.folder / "best.yaml")).clients.lr == first.best["clients.lr"]
    runs = [run for name, run in first.runs.items() if name.startswith(f"{best['setting']:03}-")]
    values = [run.result["stop"]["best_value"] for run in runs]
    assert best["validation_accuracy_mean"] == pytest.approx(np.mean(values))
    assert not list(first.folder.glob("shared/*"))


def test_called_again_it_tries_what_is_missing_and_gives_the_same_table(swept, capfd):
    file, keys, first = swept
    folder = first.folder
    before = (folder / "table.csv").read_bytes()
    lost = next(iter(first.runs))
    kept = {name: (folder / name / "result.json").stat().st_mtime_ns for name in first.runs if name != lost}
    shutil.rmtree(folder / lost)
    tessera.sweep(file, out=folder, **keys)
    assert "settings are there already" in capfd.readouterr().err
    assert (folder / "table.csv").read_bytes() == before
    assert {name: (folder / name / "result.json").stat().st_mtime_ns for name in kept} == kept


def test_mlflow_shows_one_parent_with_the_runs_under_it(swept):
    from mlflow import MlflowClient

    first = swept[2]
    client = MlflowClient(f"sqlite:///{first.folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tessera").experiment_id
    runs = client.search_runs([experiment])
    parents = [run for run in runs if "sweep" in run.data.tags]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[-1].info.run_id]
    assert sorted(run.info.run_name for run in nested) == sorted(first.runs)


def test_another_sweep_does_not_go_on_in_its_folder(swept):
    file, _, first = swept
    refused = CliRunner().invoke(cli, ["sweep", str(file), "--set", "sweep.samples=3", "--out", str(first.folder)])
    assert refused.exit_code == 2
    assert "is of another sweep" in refused.output


def test_the_file_of_the_page_has_a_sweep_of_each_kind():
    for text in make._FILE.findall(PAGE):
        assert sweep_of({**yaml.safe_load(text[0])}, []).settings
