"""What each client gets of a run: figures on its own share of the test set, their mean, spread and the worst."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from torch import nn

from algorithms.core.task import Figure
from engine.config import resolve
from engine.planning.federation import Federation
from engine.records import ClientFigures
from engine.run.launch import launch
from engine.store import tables
from engine.store.folder import FolderError, FolderWatcher, RunFolder, read
from engine.views.report import write_report
from engine.views.terminal import Terminal, client_lines
from engine.views.tracking import client_metrics
from tests.engine.runs import FIGURES, play, result_values, stored
from tests.engine.test_config import changed

ACCURACY, LOSS = Figure("accuracy", "higher", "%"), Figure("loss", "lower")

FOUND = [
    {"examples": 4.0, "accuracy": 0.75, "loss": 1.0},
    {"examples": 0.0, "accuracy": math.nan, "loss": math.nan},
    {"examples": 2.0, "accuracy": 0.5, "loss": 3.0},
    {},
    {"examples": 1.0, "accuracy": 1.0, "loss": 0.5},
    {"examples": 9.0, "accuracy": 0.5, "loss": 1.5},
]

TREE = {
    "accuracy": {
        "mean": (0.75 + 0.5 + 1 + 0.5) / 4,
        "spread": math.sqrt((0.0625**2 + 2 * 0.1875**2 + 0.3125**2) / 4),
        "worst": 0.5,
        "worst_client": 2,
        "clients": 4,
    },
    "loss": {
        "mean": 6 / 4,
        "spread": math.sqrt((0.5**2 + 1.5**2 + 1) / 4),
        "worst": 3.0,
        "worst_client": 2,
        "clients": 4,
    },
}


@pytest.fixture
def figures():
    return ClientFigures.of((ACCURACY, LOSS), FOUND)


def test_mean_deviation_and_the_worst_client_count_each_client_once_and_leave_out_those_without_examples(figures):
    tree = figures.tree((ACCURACY, LOSS))
    assert tree.keys() == TREE.keys()
    for name, expected in TREE.items():
        assert tree[name] == pytest.approx(expected), name
    assert figures.examples.tolist() == [4, 0, 2, 0, 1, 9]


def test_where_nobody_has_test_examples_nothing_is_said():
    figures = ClientFigures.of((ACCURACY,), [{}, {"examples": 0.0}])
    assert figures.spread(ACCURACY) is None
    assert figures.tree((ACCURACY,)) == {}


def test_an_infinite_loss_is_the_worst():
    found = ClientFigures.of((LOSS,), [{"examples": 1, "loss": 2.0}, {"examples": 1, "loss": math.inf}]).spread(LOSS)
    assert (found.worst, found.client) == (math.inf, 1)


class AlwaysFirst(nn.Module):
    """Answers class 0."""

    def forward(self, images):
        return nn.functional.one_hot(torch.zeros(len(images), dtype=torch.int64), 10).float()


def gathered(**sections):
    return Federation.gather(resolve(changed(**sections)))


def test_the_global_model_is_judged_on_each_clients_share_of_the_test_set():
    federation = gathered(partition={"kind": "dirichlet", "alpha": 0.3, "clients": 6}, evaluate={"batch": 7})
    found = federation.evaluate_clients(AlwaysFirst())
    labels = federation.dataset.test_labels
    # Who holds a share of a class for training has that share of its test rows, to one row.
    held = federation.partition.counts(federation.dataset.train_labels, 10)
    dealt = np.stack([np.bincount(labels[rows], minlength=10) for rows in federation.test_rows])
    assert np.abs(dealt - held / held.sum(0) * np.bincount(labels, minlength=10)).max() <= 1
    assert found.examples.tolist() == dealt.sum(1).tolist()
    assert found.examples.sum() == len(labels)
    for client, accuracy in enumerate(found.values["accuracy"]):
        assert accuracy == pytest.approx(dealt[client, 0] / dealt[client].sum(), nan_ok=True)


class Looking(nn.Module):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.images = []

    def forward(self, images):
        self.images.append(images)
        return torch.zeros(len(images), 10)


def shown(method, **shift):
    looking = Looking()
    gathered(method={"name": method}, shift=shift).evaluate_clients(looking)
    return torch.cat(looking.images)


def test_each_client_is_judged_on_the_shifted_examples_on_which_its_own_model_would_be():
    seen = shown("fedavg", noise=0.5, rotation=40.0)
    assert torch.equal(seen, shown("fedbn", noise=0.5, rotation=40.0))
    assert not torch.equal(seen, shown("fedavg"))


class Silent(Terminal):
    def __init__(self):
        super().__init__(Console(quiet=True))


@pytest.mark.parametrize("method", ["fedavg", "fedbn"])
def test_a_run_says_what_each_client_gets(method, tmp_path):
    config = resolve(changed(method={"name": method}, rounds=2, mlflow={"enabled": False}))
    launch(config, "mine", tmp_path / "run", Silent())
    run = read(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())["clients"]
    assert result == run.clients.tree(run.figures)
    values, examples = run.clients.values["accuracy"], run.clients.examples
    judged = examples > 0
    assert result["accuracy"]["worst"] == values[judged].min()
    assert values[result["accuracy"]["worst_client"]] == values[judged].min()
    assert result["accuracy"]["mean"] == pytest.approx(values[judged].mean())
    # Every class of digits is held by someone, so the clients' shares are the whole test set.
    assert examples.sum() == len(Federation.gather(config).dataset.test_labels)
    if method == "fedavg":
        assert run.score == pytest.approx((values[judged] * examples[judged]).sum() / examples.sum())
    else:
        last = [row for row in run.rounds.to_pylist() if row["phase"] == "evaluate_own" and row["round"] == 1]
        own = {row["client"]: row["value"] for row in last if row["name"] == "accuracy"}
        assert {client: values[client] for client in own} == pytest.approx(own, nan_ok=True)


def test_a_personal_run_that_is_taken_up_after_its_last_round_asks_its_clients_again(tmp_path):
    from actors.runner import InlineRunner
    from engine.run.rounds import Rounds, Schedule

    federation = gathered(method={"name": "fedbn"})
    setup, needs = federation.setup, federation.needs
    runner = InlineRunner(setup, federation.shards)
    rounds = Rounds(setup, needs, Schedule(1, 4, 1), runner, federation.evaluate, ())
    rounds.play()
    before = dict(rounds.evaluate_own())
    rounds.own = {}
    assert dict(rounds.evaluate_own()) == before
    assert len(before) == 4


# --- Files and views --------------------------------------------------------------------------------------------------


def test_the_table_of_clients_gives_back_what_was_written(figures):
    table = tables.client_rows(figures)
    again = tables.client_figures_of(table, len(FOUND))
    assert again.examples.tolist() == figures.examples.tolist()
    for name, values in figures.values.items():
        assert np.array_equal(again.values[name], values, equal_nan=True)


def test_a_table_about_other_clients_is_damaged(figures, tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    play(FolderWatcher(folder), folder.path)
    assert read(folder.path).clients is None
    pq.write_table(tables.client_rows(figures), folder.path / "clients.parquet")
    with pytest.raises(FolderError, match=r"clients\.parquet is damaged: it is about client 2, .* none of the 2"):
        read(folder.path)


def test_the_terminal_says_mean_deviation_and_worst_client():
    assert list(client_lines(TREE, ACCURACY)) == [
        ("mean of 4 clients", "68.8 %"),
        ("  standard deviation", "20.7 points"),
        ("  worst, client 2", "50.0 %"),
    ]
    assert list(client_lines({}, ACCURACY)) == []


def test_mlflow_has_a_metric_for_each():
    assert client_metrics(TREE)["clients/loss/worst"] == 3.0
    assert client_metrics(TREE)["clients/accuracy/worst_client"] == 2
    assert len(client_metrics(TREE)) == 10


def test_the_report_has_a_bar_for_each_client_and_names_the_worst(figures, tmp_path):
    run = stored(tmp_path / "run", clients=figures)
    write_report([run], tmp_path / "one.html")
    page = (tmp_path / "one.html").read_text()
    assert "Client by client" in page
    assert "The accuracy is 68.8 % in the mean of 4 clients, with a standard deviation of 20.7 points; " in page
    assert "client 2 is served worst, with 50.0 %." in page
    assert [f"client {client}<" in page for client in range(6)] == [True, False, True, False, True, True]
    write_report([run, replace(run, folder=tmp_path / "other")], tmp_path / "two.html")
    assert "<th>worst client</th>" in (tmp_path / "two.html").read_text()


def test_of_many_clients_the_report_shows_the_worst(tmp_path):
    found = [{"examples": 1, "accuracy": client / 100, "loss": 1.0} for client in range(30)]
    run = stored(tmp_path / "run", clients=ClientFigures.of(FIGURES, found))
    write_report([run], tmp_path / "one.html")
    page = (tmp_path / "one.html").read_text()
    assert [f">client {client}<" in page for client in (0, 19, 20, 29)] == [True, True, False, False]
    assert "The 20 worst are shown." in page


def test_runs_that_say_nothing_of_clients_have_no_such_section(tmp_path):
    write_report([stored(tmp_path / "run")], tmp_path / "one.html")
    assert "Client by client" not in (tmp_path / "one.html").read_text()
    assert result_values()["clients"] is None
