"""The report: one file, complete, offline, and nothing in it that was not meant to be markup."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors.cohort.delivery import Book
from engine.errors import UserError
from engine.records import Evaluation, Result, StageRecord
from engine.store import tables
from engine.store.folder import FolderWatcher, RunFolder
from engine.views.report import ReportWatcher, write_report
from engine.views.report.sections import phases
from engine.views.report.summary import round_seconds
from engine.views.report.words import labels, settings
from tests.engine.runs import evaluation, pictures_of, play, result_values, start_of, stored, telling, without_classes

VOID = {"meta", "img", "link", "br", "input"}


class Page(HTMLParser):
    """A page taken apart: text, titles of sections, tags with their attributes; fails on tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.headings, self.tags = "", [], []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == [], "tags were left open"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self._open:
            self.text += data + "\n"


def report(path: Path, *runs) -> Page:
    write_report(runs, path / "report.html")
    return Page(path / "report.html")


def test_the_page_reaches_for_nothing_outside_itself(tmp_path):
    run = telling(Path("runs/mosaic"), pictures=2)
    page = report(tmp_path, run, telling(Path("runs/fedavg"), "fedavg"))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    style = re.search(r"<style>(.*)</style>", (tmp_path / "report.html").read_text(), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = telling(Path("runs/mosaic"), pictures=2)
    for name in "ab":
        write_report([run], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_run_of_mosaic_has_every_section(tmp_path):
    assert report(tmp_path, telling(Path("runs/m"), pictures=1)).headings == [
        "Round by round",
        "Stage by stage",
        "Class by class",
        "Confusion matrix",
        "Who holds what",
        "Generated beside real",
        "What left the clients",
        "What crossed the network",
        "Time by phase",
        "Settings, and how to do it again",
    ]


def test_a_run_without_stages_and_images_has_no_sections_about_them(tmp_path):
    headings = report(tmp_path, stored(tmp_path / "run")).headings
    assert not {"Stage by stage", "Confusion matrix", "Generated beside real"} & set(headings)
    assert "Round by round" in headings


def test_a_run_in_which_nothing_was_sent_says_nothing_about_it(tmp_path):
    run = stored(tmp_path / "run", ledger=tables.LEDGER.empty_table(), stages=())
    assert not {"What left the clients", "What crossed the network", "Round by round"} & set(
        report(tmp_path, run).headings
    )


def test_the_head_says_what_came_out(tmp_path):
    text = report(tmp_path, stored(tmp_path / "run")).text
    assert "After 3 rounds with 2 clients, the model of fedavg reaches accuracy 75.0 % on the test set." in text
    # 3 rounds of 2 + 0.5 + 0.25 seconds each.
    assert "a round takes 2.8 s" in text


def test_a_task_without_classes_is_told_by_its_own_figure_and_has_no_sections_by_class(tmp_path):
    page = report(tmp_path, without_classes(tmp_path / "run"))
    assert "the model of fedavg reaches perplexity 8.25 on the test set." in page.text
    assert "lower is better" in page.text
    assert "40 training examples over 2 clients, 10 to 30 each. Bars are" in " ".join(page.text.split())
    assert not {"Class by class", "Confusion matrix"} & set(page.headings)
    for word in ("accuracy", "class", "image", "%"):
        assert word not in page.text.partition("Settings, and")[0].lower(), word


def test_where_less_is_better_the_lowest_run_is_first(tmp_path):
    high, low = (without_classes(tmp_path / name, name, [v]) for name, v in [("high", 9.5), ("low", 8.25)])
    page = report(tmp_path, high, low)
    assert "low ends best, with perplexity 8.25 on the test set, better than high by 1.25." in page.text
    best = re.findall(r'<td class="best">([^<]*)<', (tmp_path / "report.html").read_text())
    assert best == ["8.25"]
    assert {"perplexity", "bits", "3 bits"} <= set(page.text.split("\n"))


def test_runs_that_are_measured_by_different_figures_are_not_compared(tmp_path):
    with pytest.raises(UserError, match=r"different figures .*: fedavg by accuracy, other by perplexity; report them"):
        report(tmp_path, stored(tmp_path / "a"), without_classes(tmp_path / "b", "other"))
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_a_finite_figure_has_no_curve(tmp_path):
    run = without_classes(tmp_path / "run", values=(math.inf, math.nan))
    assert "Round by round" not in report(tmp_path, run).headings


def test_one_run_without_stages_has_a_bar_for_each_class_and_of_many_for_the_lowest(tmp_path):
    shares = np.linspace(0.9, 0.1, 17)
    shares[3] = math.nan
    run = stored(
        tmp_path / "run",
        class_names=tuple(f"kind {c}" for c in range(17)),
        stages=(StageRecord(2, "global", Evaluation({"accuracy": 0.5}, {"accuracy": shares})),),
    )
    page = report(tmp_path, run)
    named = [line for line in page.text.split("\n") if line.startswith("kind ")]
    assert named[:12] == [f"kind {c}" for c in range(16, 4, -1)]
    assert "the lowest 12 of 17 classes" in page.text
    few = report(tmp_path, stored(tmp_path / "few"))
    assert few.text.count("\n75.0 %\n") == 1 + 3  # the tile, and the bars of three classes


def test_the_confusion_of_the_last_evaluation_is_shown(tmp_path):
    run = stored(tmp_path / "run", confusion=np.array([[5, 1, 0], [0, 7, 0], [2, 0, 41]]))
    page = report(tmp_path, run)
    counts = re.search(r"Confusion matrix.*?</section>", (tmp_path / "report.html").read_text(), re.DOTALL)[0]
    cells = re.search(r'<div class="counts".*?</div>', counts)[0]
    assert re.findall(r"<span[^>]*>(\d*)</span>", cells) == ["5", "1", "", "", "7", "", "2", "", "41"]
    assert "Confusion matrix" in page.headings


def test_what_left_the_clients_is_told_kind_by_kind(tmp_path):
    text = report(tmp_path, stored(tmp_path / "run")).text
    assert "the weights of a network after training on the client's data" in text
    # 3 rounds of 2 clients, 100 bytes of weights and 8 of examples in each message.
    assert "6 messages of 2 clients, 600 B in all, 100 B at most" in text
    assert "6 messages of 2 clients, 48 B in all, 8 B at most" in text


def test_every_example_of_a_small_federation_is_counted(tmp_path):
    page = report(tmp_path, stored(tmp_path / "run"))
    # Client k holds k + c of class c: rows are classes, columns clients.
    cells = re.search(r'<div class="counts".*?</div>', (tmp_path / "report.html").read_text())[0]
    assert re.findall(r"<span[^>]*>(\d*)</span>", cells) == ["", "1", "1", "2", "2", "3"]
    assert "9 training examples over 2 clients, 3 to 6 each" in page.text


def test_names_from_the_data_stay_text(tmp_path):
    evil = '<script>alert("1")</script>'
    run = stored(tmp_path / "run", class_names=(evil, "</style>", "a & b"))
    hostile = replace(
        run,
        result=dict(run.result) | {"method": evil, "preset": "<img src=http://x/>", "versions": {evil: evil}},
        facts={evil: "<b>"},
        config={"data": {"source": evil}, evil: evil},
        stages=(*run.stages, StageRecord(2, evil, evaluation(0.5))),
        pictures=(pictures_of(0),),
    )
    page = report(tmp_path, hostile, run)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all("x/" not in str(attributes.get("src")) for _, attributes in page.tags)
    assert page.text.count(evil) > 5
    assert "a & b" in page.text


def test_per_class_the_teacher_stands_against_fedavg(tmp_path):
    shown = {"fedavg": [0.5, 0.25, math.nan], "teacher": [0.75, 0.125, math.nan], "distilled": [1.0, 1.0, 1.0]}
    stages = tuple(
        StageRecord(1, name, Evaluation({"accuracy": 0.5, "loss": 1.0}, {"accuracy": np.array(values)}))
        for name, values in shown.items()
    )
    page = report(tmp_path, stored(tmp_path / "run", stages=stages))
    assert "With teacher, of 2 classes: 1 better, 1 worse." in page.text
    assert "50 → 75" in page.text
    assert "25 → 12" in page.text
    assert "no test examples" in page.text


def test_stages_bear_the_captions_of_the_method_and_kinds_its_sentences(tmp_path):
    run = stored(tmp_path / "run", kinds={"weights": "hats of clients", "examples": ""})
    stages = tuple(StageRecord(1, name, evaluation(0.5)) for name in ("fedavg", "secret"))
    page = report(tmp_path, replace(run, stages=(*stages, *run.stages)))
    found = " ".join(str(value) for _, attributes in page.tags for value in attributes.values())
    for words in ("their mean", "the global model after the last round"):
        assert words in found + page.text
    assert "hats of clients" in page.text
    assert "a kind of which nothing is said" in page.text


def test_without_a_comparison_of_its_own_the_last_model_stands_against_a_stage(tmp_path):
    stages = (StageRecord(1, "fedavg", evaluation(0.25)), StageRecord(2, "global", evaluation(0.5)))
    assert (
        "With final, of 3 classes: 3 better, 0 worse." in report(tmp_path, stored(tmp_path / "run", stages=stages)).text
    )


def test_where_there_is_no_teacher_the_student_stands_against_fedavg(tmp_path):
    stages = tuple(StageRecord(1, name, evaluation(share)) for name, share in [("fedavg", 0.25), ("distilled", 0.5)])
    assert (
        "With distilled, of 3 classes: 3 better, 0 worse."
        in report(tmp_path, stored(tmp_path / "run", stages=stages)).text
    )


def test_the_last_model_of_two_runs_is_compared_class_by_class(tmp_path):
    better, worse = stored(tmp_path / "a"), stored(tmp_path / "b")
    worse = replace(
        worse,
        result=dict(worse.result) | {"method": "slow", "figures": {"accuracy": 0.5, "loss": 0.5}},
        stages=(StageRecord(2, "global", evaluation(0.5)),),
    )
    text = report(tmp_path, better, worse).text
    assert "fedavg against slow, after the last round" in text
    assert text.count("50 → 75") == 3


def test_several_runs_are_ranked_and_their_settings_compared(tmp_path):
    one = stored(tmp_path / "a", config={"rounds": 3, "clients": {"lr": 0.1, "batch": 8}})
    other = stored(tmp_path / "b", config={"rounds": 3, "clients": {"lr": 0.2, "batch": 8}})
    other = replace(other, result=dict(other.result) | {"method": "slow", "figures": {"accuracy": 0.5, "loss": 0.5}})
    page = report(tmp_path, other, one)
    assert "fedavg ends best, with accuracy 75.0 % on the test set, better than slow by 25.0 points." in page.text
    assert "The runs differ in clients.lr; everything else is the same." in page.text
    assert len([1 for tag, attributes in page.tags if attributes.get("class", "").startswith("line ")]) == 2
    assert [tag for tag, _ in page.tags].count("tr") == 3


def test_of_two_methods_the_settings_of_their_own_are_not_compared(tmp_path):
    one = stored(tmp_path / "a", config={"method": {"name": "x", "mu": 1}, "rounds": 3})
    other = stored(tmp_path / "b", config={"method": {"name": "y"}, "rounds": 4})
    assert "The runs differ in method, rounds; everything else is the same." in report(tmp_path, one, other).text


def test_runs_of_one_configuration_are_said_to_be(tmp_path):
    run = stored(tmp_path / "a")
    assert "The runs have the same configuration." in report(tmp_path, run, replace(run, folder=Path("b"))).text


def test_runs_that_hold_the_same_data_share_one_map(tmp_path):
    one, other = stored(tmp_path / "a"), stored(tmp_path / "b")
    maps = [
        sum(attributes.get("class") == "map" for _, attributes in report(tmp_path, one, run).tags)
        for run in (other, replace(other, label_counts=other.label_counts + 1))
    ]
    assert maps == [1, 2]


def test_a_run_that_diverged_is_reported_as_such(tmp_path):
    run = stored(tmp_path / "run")
    broken = replace(run, result=dict(run.result) | {"figures": {"loss": None, "accuracy": None}})
    assert "not a number" in report(tmp_path, broken).text
    assert "ends best" not in report(tmp_path, broken, broken).text
    assert "In no run was accuracy a number." in report(tmp_path, broken, broken).text


@pytest.mark.parametrize(("clients", "classes"), [(10, 10), (100, 10), (100, 100), (1, 2)])
def test_any_number_of_clients_and_classes_fits_in_a_small_page(tmp_path, clients, classes):
    page = report(tmp_path, telling(Path("runs/m"), clients=clients, classes=classes, rounds=30))
    assert len([1 for _, attributes in page.tags if attributes.get("class") == "after"]) == classes + 1
    assert (tmp_path / "report.html").stat().st_size < 150_000


def test_images_are_shown_with_what_was_asked_for(tmp_path):
    page = report(tmp_path, stored(tmp_path / "run", pictures=(pictures_of(0), pictures_of(1))))
    sheets = [attributes for tag, attributes in page.tags if tag == "img" and "generated" in attributes["alt"]]
    assert [sheet["src"][:22] for sheet in sheets] == ["data:image/png;base64,"] * 2
    assert [a["alt"] for t, a in page.tags if t == "img" and "real" in a["alt"]] == ["real: cat, dog, owl"] * 2


def test_the_page_tells_how_to_do_it_again(tmp_path):
    text = report(tmp_path, stored(tmp_path / "my run")).text
    assert "tessera run 'my run/config.yaml' --out 'my run-again'" in text
    assert "ab" * 32 in text


def test_the_phases_add_up_to_the_total():
    spent = {
        "total": 20.0,
        "start": 3.0,
        "clients": 9.0,
        "client:train": 4.0,
        "client:generator": 4.5,
        "server": 5.0,
        "evaluate": 1.0,
        "client_work": 30.0,
    }
    assert phases(spent) == [
        ("start", 3.0),
        ("clients: train", 4.0),
        ("clients: generator", 4.5),
        ("clients, otherwise", 0.5),
        ("server", 5.0),
        ("evaluate", 1.0),
        ("everything else", 2.0),
    ]


def test_the_usual_round_is_the_median_of_their_sums(tmp_path):
    rows = [(0, "client:train", 90.0), (1, "client:train", 2.0), (1, "server", 1.0), (2, "client:train", 4.0)]
    table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=tables.SECONDS)
    assert round_seconds(stored(tmp_path / "run", seconds=table)) == 4.0


def test_runs_are_named_by_the_least_that_tells_them_apart(tmp_path):
    def run(folder, method, seed):
        return replace(base, folder=Path(folder), result=dict(base.result) | {"method": method, "seed": seed})

    base = stored(tmp_path / "run")
    assert labels([run("a", "x", 0), run("b", "y", 0)]) == ["x", "y"]
    assert labels([run("a", "x", 0), run("b", "x", 1)]) == ["x, seed 0", "x, seed 1"]
    assert labels([run("p/a", "x", 0), run("p/b", "x", 0)]) == ["a", "b"]
    assert labels([run("p/a", "x", 0), run("q/a", "x", 0)]) == ["p/a", "q/a"]


def test_a_configuration_is_flattened_to_its_leaves():
    assert settings({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2]}) == {"a.b": 1, "a.c.d": None, "e": [1, 2]}


def test_a_finished_run_gets_its_report(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    play(FolderWatcher(folder), folder.path)
    ReportWatcher(folder).finished(Result(result_values(), Book()))
    assert Page(folder.report).headings[0] == "Round by round"


def test_a_run_that_failed_gets_none(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    watcher = ReportWatcher(folder)
    watcher.started(start_of(folder.path))
    watcher.failed(RuntimeError("lost"))
    assert not folder.report.exists()
