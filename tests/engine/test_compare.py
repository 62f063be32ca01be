"""A comparison: the same partition, weights and work for all; one table; called again, it runs what is missing."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
import yaml
from click.testing import CliRunner

from algorithms import methods
from algorithms.core.task import Figure
from engine.commands.cli import cli
from engine.compare import compare, comparison_of
from engine.compare.conduct import conduct, finished_runs
from engine.compare.page import write_page
from engine.compare.spec import differences
from engine.compare.table import Row, Spread, as_csv, best, markdown, rows_of
from engine.config import load
from engine.config.reading import comparison_names, preset_text
from engine.errors import ConfigError
from engine.run.launch import launch
from engine.store.folder import FolderError, read

SMALL = [
    "rounds=2",
    "clients.steps=2",
    "clients.net=mlp",
    "partition.clients=3",
    "data.limit=200",
    "runner.kind=inline",
    "mlflow.enabled=false",
]


class Ear:
    """Notes what it hears."""

    def __init__(self):
        self.missing, self.ended = None, []

    def started(self, comparison, folder, missing, facts):
        self.missing = missing

    def progress(self, lines): ...

    def finished(self, finished):
        if not finished.earlier:
            self.ended.append(finished.cell.name)


def planned(methods="fedavg,fedprox", source="fedavg-digits", seeds=2, more=()):
    return comparison_of(methods.split(",") if methods else [], source, [*SMALL, *more], seeds)


# --- What is compared ---------------------------------------------------------------------------------------------


def test_a_method_has_its_defaults_and_the_presets_own_method_what_the_preset_says():
    comparison = planned("fedavg,mosaic", "mosaic-lean-digits", more=["methods.mosaic.warmup=1"])
    fedavg, mosaic = (comparison.of(label)[0].config.method for label in comparison.labels)
    assert fedavg.settings == load("fedavg-digits").method.settings
    assert (mosaic.settings.generator, mosaic.settings.warmup) == ("pca", 1)


def test_a_method_may_stand_under_several_labels(tmp_path):
    file = tmp_path / "mine.yaml"
    tree = yaml.safe_load("{methods: {weak: {name: fedprox, mu: 0.1}, strong: {name: fedprox, mu: 1.0}}}")
    common = yaml.safe_load(
        "{data: {source: digits}, partition: {kind: iid, clients: 2}, rounds: 1, "
        "clients: {net: mlp, steps: 1, batch: 8, lr: 0.1}}"
    )
    file.write_text(yaml.safe_dump({**tree, **common}, sort_keys=False))
    comparison = comparison_of([], str(file), [], 1)
    assert [cell.config.method.settings.mu for cell in comparison.cells] == [0.1, 1.0]
    assert [cell.name for cell in comparison.cells] == ["weak-seed-0", "strong-seed-0"]


def test_a_label_with_dots_is_one_key(tmp_path):
    file = tmp_path / "comparison.yaml"
    tree = yaml.safe_load(preset_text("fedavg-digits"))
    del tree["method"]
    tree["methods"] = {"fedprox": {"name": "fedprox"}, "fedprox.1": {"name": "fedprox", "mu": 0.1}}
    file.write_text(yaml.safe_dump(tree))
    own = "algorithms.methods.fedprox:FedProx"
    changes = [
        "methods.fedprox.1.mu=0.2",
        "methods.fedprox.mu=0.3",
        "methods.algorithms.methods.fedprox.FedProx.mu=0.4",
    ]
    comparison = comparison_of(["fedprox", "fedprox.1", own], str(file), changes, 1)
    found = {cell.label: cell.config.method.settings.mu for cell in comparison.cells}
    assert found == {"fedprox": 0.3, "fedprox.1": 0.2, "algorithms.methods.fedprox.FedProx": 0.4}


def test_seeds_are_counted_up_from_the_configurations_own():
    assert planned(seeds=3, more=["seed=5"]).seeds == (5, 6, 7)


@pytest.mark.parametrize(
    ("methods", "more", "told"),
    [
        ("fedavg,fedprx", [], 'methods.fedprx.name = "fedprx": no such method; did you mean fedprox?'),
        ("fedavg,fedprox", ["methods.fedprox.mu=-1"], "methods.fedprox.mu = -1"),
        ("fedavg,fedprox", ["methods.fedprox.my=1"], "methods.fedprox.my = 1: unknown key; known here are weights, mu"),
        ("fedavg", ["methods.fedprox=3"], "methods.fedprox = 3: must hold a method's settings"),
        ("fedavg", ["methods={../up: {name: fedavg}}"], "methods.../up: a label names a folder"),
    ],
)
def test_what_is_wrong_for_a_method_is_said_under_its_label(methods, more, told):
    with pytest.raises(ConfigError) as error:
        planned(methods, more=more)
    assert told in str(error.value)


def test_what_is_wrong_for_all_methods_is_said_once():
    with pytest.raises(ConfigError) as error:
        planned(more=["clients.lr=-1"])
    assert str(error.value).count("clients.lr") == 1


def test_a_misspelt_comparison_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean fedavg-digits"):
        comparison_of([], "fedavg-digit", [], 1)


@pytest.mark.parametrize("name", comparison_names())
def test_every_comparison_that_comes_with_tessera_can_be_planned_and_describes_itself(name):
    comparison = comparison_of([], name, [], 3)
    assert len(comparison.cells) == 3 * len(comparison.labels) >= 9


def test_a_comparison_based_on_another_says_what_differs_and_nothing_else():
    whole, sharp = comparison_of([], "mnist", [], 1).tree(), comparison_of([], "mnist-0.01", [], 1).tree()
    assert differences(sharp, whole) == ["partition.alpha = 0.01 now, 0.1 then"]


# --- How it is carried out ----------------------------------------------------------------------------------------


def test_a_method_that_cannot_serve_the_clients_is_refused_before_anything_starts(tmp_path):
    comparison = planned("fedavg,fedprox", more=["clients.net=[mlp, small_cnn]"])
    with pytest.raises(ConfigError) as error:
        conduct(comparison, tmp_path / "out", Ear())
    assert "methods.fedavg.name" in str(error.value)
    assert "methods.fedprox.name" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_all_runs_of_a_seed_have_one_partition_and_the_digests_that_they_have_alone(tmp_path):
    finished = conduct(planned("fedavg,fedprox,fedbn"), tmp_path / "out", Ear())
    by_seed: dict[int, set[str]] = {}
    for one in finished:
        rows = read(tmp_path / "out" / one.cell.name)
        by_seed.setdefault(one.cell.seed, set()).add(rows.label_counts.tobytes().hex())
        alone = launch(one.cell.config, "alone", tmp_path / "alone" / one.cell.name, Silent())
        assert alone.values["digest"] == one.run.result["digest"]
    assert [len(counts) for counts in by_seed.values()] == [1, 1]
    assert by_seed[0] != by_seed[1]


class Silent:
    """A watcher without a word."""

    def started(self, start): ...
    def step(self, round, step, done, asked): ...
    def stage(self, record): ...
    def round(self, record): ...
    def finished(self, result): ...
    def failed(self, error): ...


def test_equal_client_training_is_done_once(tmp_path):
    """FedBN trains as FedAvg does where a network has no batch normalisation; FedProx never does."""
    finished = {one.cell.name: one for one in conduct(planned("fedavg,fedprox,fedbn"), tmp_path / "out", Ear())}
    assert finished["fedbn-seed-0"].saved_seconds > 0
    assert finished["fedprox-seed-0"].saved_seconds == finished["fedavg-seed-0"].saved_seconds == 0
    assert not (tmp_path / "out" / "shared").exists()


def test_side_by_side_on_ray_the_runs_have_the_digests_that_they_have_here(tmp_path, ray_cluster):
    here = conduct(planned("fedavg,fedbn"), tmp_path / "here", Ear())
    there = conduct(planned("fedavg,fedbn", more=["runner.kind=ray"]), tmp_path / "there", Ear())
    assert [one.run.result["digest"] for one in there] == [one.run.result["digest"] for one in here]
    assert [one.saved_seconds > 0 for one in there] == [one.cell.label == "fedbn" for one in there]


def test_called_again_it_runs_what_is_missing_alone(tmp_path):
    folder, first, second = tmp_path / "out", Ear(), Ear()
    whole = compare(planned(), folder, "tessera compare ...", first)
    (folder / "fedprox-seed-1" / "result.json").unlink()
    again = compare(planned(), folder, "tessera compare ...", second)
    assert (first.missing, second.missing) == (4, 1)
    assert second.ended == ["fedprox-seed-1"]
    assert [row.values for row in again.rows] == [row.values for row in whole.rows]


def test_more_methods_and_seeds_are_added_to_what_is_there(tmp_path):
    conduct(planned("fedavg", seeds=1), tmp_path / "out", Ear())
    ear = Ear()
    conduct(planned("fedavg,fedprox", seeds=2), tmp_path / "out", ear)
    assert sorted(ear.ended) == ["fedavg-seed-1", "fedprox-seed-0", "fedprox-seed-1"]


def test_a_folder_of_other_settings_is_refused_and_says_which(tmp_path):
    conduct(planned(seeds=1), tmp_path / "out", Ear())
    with pytest.raises(FolderError, match=r"clients\.lr = 0\.2 now, 0\.05 then.*--out"):
        finished_runs(planned(seeds=1, more=["clients.lr=0.2"]), tmp_path / "out")


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FolderError, match="no comparison"):
        conduct(planned(), tmp_path, Ear())


FAILING = '''
from algorithms.core.contract import client_side
from algorithms.methods.fedavg import FedAvg

class Sour(FedAvg):
    """Fails at its second round."""

    @client_side
    def train(self, client):
        if client.seed.round == 1:
            raise ValueError("sour grapes")
        return super().train(client)
'''


@pytest.fixture
def sour(tmp_path, monkeypatch):
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "sour.py").write_text(FAILING)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    monkeypatch.setattr("engine.config.method.method_names", lambda: ["fedavg", "sour"])
    monkeypatch.setattr("actors.steps.orders.method_names", lambda: ["fedavg", "sour"])


def test_a_run_that_fails_is_told_and_ends_no_other(tmp_path, sour):
    compared = compare(planned("sour,fedavg", seeds=1), tmp_path / "out", "...", Ear())
    failed, fine = compared.rows
    assert "sour grapes" in failed.failed[0]
    assert len(fine.values) == 1
    assert compared.has_failed
    assert "sour grapes" in (tmp_path / "out" / "report.html").read_text()
    whole = (tmp_path / "out" / "sour-seed-0-failed.txt").read_text()
    assert 'raise ValueError("sour grapes")' in whole
    assert "step train, client 0, round 1, seed 0" in whole
    assert not (tmp_path / "out" / "sour-seed-0").exists()
    assert (tmp_path / "out" / "shared" / "seed-0").exists()


# --- The table ----------------------------------------------------------------------------------------------------


ACCURACY, PERPLEXITY = Figure("accuracy", "higher", "%"), Figure("perplexity", "lower")


def row(label, *values, personal=False, seconds=(1.0, 3.0), figure=ACCURACY):
    """Its worst clients have half of what all have."""
    some, steps, up = Spread(seconds), Spread((40.0, 40.0)), Spread((2e6, 2e6))
    by_seed, worst = dict(enumerate(values)), Spread(tuple(value / 2 for value in values))
    return Row(label, label, figure, by_seed, steps, some, some, up, some, personal, {}, worst)


def test_mean_and_standard_deviation_are_those_of_a_sample():
    spread = Spread((0.5, 0.6, 0.7))
    assert (spread.mean, spread.deviation) == (pytest.approx(0.6), pytest.approx(math.sqrt(0.02 / 2)))
    assert Spread((0.5,)).deviation is None


def test_the_best_mean_is_bold_and_equal_means_are_bold_together():
    rows = [row("a", 0.5, 0.7), row("b", 0.6, 0.6), row("c", 0.1, 0.2)]
    assert best(rows) == {"a", "b"}
    lines = markdown(rows).splitlines()
    assert (
        lines[0] == "| method | accuracy % | worst client % | seeds | client steps | client s | server s | up | down |"
    )
    assert lines[2] == "| a | **60.0 ± 14.1** | 30.0 ± 7.1 | 2 | 40 | 2.0 ± 1.4 | 2.0 ± 1.4 | 2.0 MB | 2 B |"
    assert lines[3].startswith("| b | **60.0 ± 0.0** |")
    assert "**" not in lines[4]


def test_where_less_is_better_the_lowest_mean_is_bold_and_the_head_says_so():
    rows = [row(label, *values, figure=PERPLEXITY) for label, values in [("a", (9.0, 8.0)), ("b", (8.25, 8.25))]]
    lines = markdown(rows).splitlines()
    assert lines[0].startswith("| method | perplexity (lower is better) | worst client | seeds |")
    # Means 8.5 and 8.25; the deviation of 9 and 8 is the root of 0.5.
    assert lines[2].startswith("| a | 8.5 ± 0.707 | 4.25 ± 0.354 | 2 |")
    assert lines[3].startswith("| b | **8.25 ± 0** | 4.125 ± 0 | 2 |")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((10.46, 10.5), "10.48 ± 0.03"),
        ((12_000.0, 12_690.0), "12,345 ± 488"),
        ((0.2301, 0.2303), "0.2302 ± 0.0001"),
        ((0.0, 0.0), "0 ± 0"),
        ((math.inf, 1.0), "inf ± not a number"),
    ],
)
def test_a_deviation_is_no_finer_than_its_mean(values, words):
    assert row("a", *values, figure=PERPLEXITY).score_text == words


def test_a_mean_that_is_no_number_is_never_the_best():
    rows = [row("a", math.nan, 8.0, figure=PERPLEXITY), row("b", 9.0, 9.0, figure=PERPLEXITY)]
    assert best(rows) == {"b"}
    assert "| a | not a number ± not a number | not a number ± not a number | 2 |" in markdown(rows)


def test_for_machines_the_columns_are_named_by_the_figure():
    one = row("a", 8.0, 9.0, figure=PERPLEXITY)
    (line,) = csv.DictReader(io.StringIO(as_csv([one])))
    assert (line["perplexity_mean"], line["perplexity_seed_1"]) == ("8.5", "9.0")
    tree = one.tree()
    assert (tree["perplexity"], tree["perplexity_mean"]) == ({0: 8.0, 1: 9.0}, 8.5)
    assert tree["figure"] == {"name": "perplexity", "better": "lower", "unit": ""}


def test_own_models_are_named_as_such_and_never_the_best():
    rows = [row("a", 0.5, 0.5), row("own", 0.9, 0.9, personal=True)]
    assert best(rows) == {"a"}
    assert "| own (own models) | 90.0" in markdown(rows)


def test_the_csv_holds_each_seed_and_every_digit():
    (line,) = csv.DictReader(io.StringIO(as_csv([row("a", 0.123456789, 0.5)])))
    assert float(line["accuracy_seed_0"]) == 0.123456789
    assert float(line["accuracy_mean"]) == (0.123456789 + 0.5) / 2
    assert float(line["up_mean"]) == 2e6


def test_client_steps_are_the_mini_batches_of_all_clients_and_rounds(tmp_path):
    compared = compare(planned("fedavg", seeds=1), tmp_path / "out", "...", Ear())
    assert compared.rows[0].steps.mean == 2 * 3 * 2  # rounds, clients, steps
    sent = 2 * 3 * sum(value.numel() * value.element_size() for value in state_of_mlp().values())
    assert compared.rows[0].down.mean == sent


def state_of_mlp():
    from algorithms.nets import Images, build

    return build("mlp", Images((1, 8, 8)), 10).state_dict()


def test_the_page_needs_no_network_and_shows_every_method(tmp_path):
    comparison = planned()
    finished = conduct(comparison, tmp_path / "out", Ear())
    write_page(comparison, finished, rows_of(finished), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count('href="fedprox-seed-') == 2
    assert "standard deviation over seeds 0, 1" in page


# --- The command --------------------------------------------------------------------------------------------------


def test_the_command_writes_a_table_beside_its_own_words_and_tells_mlflow_of_nested_runs(tmp_path):
    sets = [f"--set={text}" for text in SMALL if not text.startswith("mlflow")]
    arguments = ["compare", "fedavg,fedprox", "fedavg-digits", "--seeds", "1", *sets, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.startswith("`tessera compare fedavg,fedprox fedavg-digits --seeds 1")
    assert table in done.output
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tessera").experiment_id])
    (parent,) = [run for run in runs if "comparison" in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.data.tags["method"] for run in children) == ["fedavg", "fedprox"]
    for child in children:
        method = child.data.tags["method"]
        own = json.loads((tmp_path / "out" / f"{method}-seed-0" / "result.json").read_text())
        assert parent.data.metrics[f"accuracy/{method}"] == own["accuracy"]
        assert [m.value for m in client.get_metric_history(child.info.run_id, "test/global/accuracy")][-1] == own[
            "accuracy"
        ]


def test_more_than_methods_and_a_configuration_is_wrong_usage():
    done = CliRunner().invoke(cli, ["compare", "fedavg", "fedprox", "fedavg-digits"])
    assert done.exit_code == 2
    assert "join methods by commas" in done.output
