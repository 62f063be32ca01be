"""What a person sees of a run: plain lines, a moving line, the time left, the table at the end."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actors.cohort.delivery import Book, FaultEntry
from algorithms.core.task import Figure
from engine.compare.cell import _Teller
from engine.compare.progress import ComparisonTerminal
from engine.records import Evaluation, Result, StageRecord
from engine.units import difference_text, duration, figure_digits, figure_text, size
from engine.views.terminal import Pace, Terminal
from tests.engine.runs import evaluation, play, result_values, round_record, start_of


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def screen(monkeypatch, terminal=False, ci=False):
    """A console into memory."""
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, _environ={})


def written(console):
    return console.file.getvalue()


def test_away_from_a_terminal_every_line_is_plain_and_stays(monkeypatch):
    console, folder = screen(monkeypatch), Path("runs/here")
    play(Terminal(console, Clock()), folder)
    lines = written(console).splitlines()
    assert "\x1b" not in written(console)
    assert lines[:3] == ["runner: inline", "placement: in this process", "folder: runs/here"]
    assert lines[3:6] == [
        "    0:00  round 1/3  global      accuracy 25.0 %  loss 0.500",
        "    0:00  round 2/3  global      accuracy 50.0 %  loss 0.500",
        "    0:00  round 3/3  global      accuracy 75.0 %  loss 0.500",
    ]


def test_what_goes_wrong_has_a_line_for_each_kind_with_its_clients(monkeypatch):
    console = screen(monkeypatch)
    terminal = Terminal(console, Clock())
    terminal.started(start_of(Path("here")))
    lost = [FaultEntry(1, "train", client, "host_lost", "retry") for client in (3, 4)]
    lost += 2 * [FaultEntry(1, "distillation", -1, "worker_lost", "retry")]
    terminal.round(replace(round_record(1), faults=(*lost, FaultEntry(1, "train", 7, "bad_update", "leave out"))))
    assert written(console).splitlines()[3:] == [
        "    0:00  round 2/3  train: host lost, tried again: clients 3, 4",
        "    0:00  round 2/3  distillation: process lost, tried again 2 times",
        "    0:00  round 2/3  train: update refused, left out: client 7",
    ]


def test_away_from_a_terminal_a_long_phase_tells_how_far_it_is_once_in_five_seconds_of_silence(monkeypatch):
    console, clock = screen(monkeypatch), Clock()
    terminal = Terminal(console, clock)
    terminal.started(start_of(Path("here")))
    for second in range(14):
        clock.now = float(second)
        terminal.step(0, "distillation", second, 300)
    assert written(console).splitlines()[3:] == [
        "    0:05  round 1/3 · distillation 5/300",
        "    0:10  round 1/3 · distillation 10/300",
    ]
    terminal.stage(StageRecord(0, "global", evaluation(0.5)))  # at 13 s, after which it is silent again
    for now in (17.9, 18.0):
        clock.now = now
        terminal.step(1, "synthesis", 1, 2)
    assert written(console).splitlines()[6:] == ["    0:18  round 2/3 · synthesis 1/2 · accuracy 50.0 %"]


def test_away_from_a_terminal_an_hour_s_phase_takes_about_fifty_lines(monkeypatch):
    """Every 5 s up to 50 s, and then each time that the last line is a tenth of the time old: t grows by 1 / 0.9."""
    console, clock = screen(monkeypatch), Clock()
    terminal = Terminal(console, clock)
    terminal.started(start_of(Path("here")))
    for second in range(3600):
        clock.now = float(second)
        terminal.step(0, "distillation", second, 3600)
    lines = 10 + math.log(3600 / 50) / -math.log(0.9)
    assert len(written(console).splitlines()) - 3 == pytest.approx(lines, abs=3)


def test_a_phase_of_less_than_five_seconds_has_no_line_of_its_own(monkeypatch):
    console, clock = screen(monkeypatch), Clock()
    terminal = Terminal(console, clock)
    terminal.started(start_of(Path("here")))
    for number in range(3):
        for done in range(5):
            clock.now = 4.0 * number + done
            terminal.step(number, "distillation", done, 5)
        terminal.stage(StageRecord(number, "global", evaluation(0.5)))
    assert len(written(console).splitlines()) == 3 + 3


def test_a_run_of_a_comparison_tells_of_its_phases_once_a_second_at_most_and_of_every_round():
    heard, clock = [], Clock()
    teller = _Teller(heard.append, clock)
    teller.started(start_of(Path("here")))
    for now in (0.5, 1.0, 1.5):
        clock.now = now
        teller.step(0, "distillation", int(2 * now), 9)
    teller.stage(StageRecord(0, "global", evaluation(0.5)))
    teller.round(round_record(0))
    assert heard == ["1/3 distillation 2/9", "1/3 50.0 %"]


def test_a_comparison_away_from_a_terminal_says_after_five_seconds_of_silence_which_runs_are_under_way(monkeypatch):
    console, clock = screen(monkeypatch), Clock()
    terminal = ComparisonTerminal(console, clock)
    for second in range(9):
        clock.now = float(second)
        terminal.progress({"dense-seed-0": f"16/16 distillation {second}/99", "mosaic-seed-0": "3/16 41.0 %"})
    (line,) = written(console).splitlines()
    assert line == "    0:05  dense-seed-0 16/16 distillation 5/99 · mosaic-seed-0 3/16 41.0 % · 0 of 0 done"


def test_a_run_that_ends_early_says_how_to_go_on(monkeypatch):
    console = screen(monkeypatch)
    terminal = Terminal(console, Clock())
    terminal.failed(RuntimeError("before anything was written"))
    assert written(console) == ""
    terminal.started(start_of(Path("a run")))
    terminal.failed(RuntimeError("later"))
    assert written(console).splitlines()[-1] == "to go on with this run: tessera resume 'a run'"


def test_a_run_that_goes_on_says_after_which_round_and_counts_only_what_is_left(monkeypatch):
    console, clock = screen(monkeypatch), Clock()
    terminal = Terminal(console, clock)
    terminal.started(replace(start_of(Path("here")), done=1))
    assert "goes on after round 1 of 3" in written(console)
    pace = Pace(3, clock, done=1)
    clock.now = 10.0
    pace.round()
    assert pace.seconds_left() == 10.0  # one round of the three is left


def test_in_ci_a_terminal_gets_plain_lines_too(monkeypatch):
    console = screen(monkeypatch, terminal=True, ci=True)
    with Terminal(console, Clock()) as terminal:
        terminal.started(start_of(Path("here")))
        terminal.step(0, "train", 1, 2)
    assert "train 1/2" not in written(console)


def test_a_terminal_shows_stage_round_clients_accuracy_and_time_left(monkeypatch):
    console, clock = screen(monkeypatch, terminal=True), Clock()
    terminal = Terminal(console, clock)
    terminal.started(start_of(Path("here")))
    clock.now = 4.0
    terminal.stage(StageRecord(0, "global", evaluation(0.5)))
    terminal.round(round_record(0))
    terminal.step(1, "train", 1, 2)
    # Two rounds of 4 s each are left of three.
    assert terminal.screen.line == "round 2/3 · train 1/2 · accuracy 50.0 % · about 0:08 left"
    terminal.failed(KeyboardInterrupt())
    assert "round 1/3  global" in written(console)


def test_the_accuracy_shown_is_that_of_the_global_model(monkeypatch):
    terminal = Terminal(screen(monkeypatch, terminal=True), Clock())
    terminal.started(start_of(Path("here")))
    terminal.stage(StageRecord(0, "experts", evaluation(0.25)))
    terminal.step(0, "train", 1, 2)
    assert terminal.screen.line == "round 1/3 · train 1/2"
    terminal.failed(ValueError())


def test_the_end_shows_stages_bytes_seconds_and_where_to_look(monkeypatch):
    console = screen(monkeypatch)
    terminal = Terminal(console, Clock())
    start = start_of(Path("runs/here"))
    terminal.started(
        replace(start, config={**start.config, "mlflow": {"enabled": True, "tracking_uri": "sqlite:///all.db"}})
    )
    stages = {"fedavg": 0.5, "experts": 0.25, "teacher": 0.625, "distilled": 0.7, "final": 0.75}
    terminal.finished(Result(result_values(stages=stages), Book()))
    text = written(console)
    for name, share in [("fedavg", "50.0 %"), ("experts", "25.0 %"), ("teacher", "62.5 %"), ("final", "75.0 %")]:
        assert any(f"accuracy, {name} " in line and share in line for line in text.splitlines())
    assert "report: runs/here/report.html" in text
    assert f"mlflow ui --backend-store-uri sqlite:///{Path.cwd() / 'all.db'}" in text
    assert "648 B" in text


def test_the_default_store_of_mlflow_lies_beside_the_folder(monkeypatch, tmp_path):
    console = screen(monkeypatch)
    terminal = Terminal(console, Clock())
    start = start_of(tmp_path / "run")
    terminal.started(replace(start, config={**start.config, "mlflow": {"enabled": True, "tracking_uri": None}}))
    terminal.finished(Result(result_values(), Book()))
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in written(console)


def paced(lengths, rounds, clock):
    pace = Pace(rounds, clock)
    for length in lengths:
        clock.now += length
        pace.round()
    return pace


def test_nothing_is_said_of_the_time_left_before_a_round_is_over():
    assert paced([], 5, Clock()).seconds_left() is None


def test_the_time_left_is_that_of_usual_rounds():
    # 100 s is the first round with its generators; the median of (100, 2, 2) is 2, and 7 rounds are left.
    assert paced([100, 2, 2], 10, Clock()).seconds_left() == pytest.approx(2 * 7)


def test_a_round_under_way_takes_at_least_what_its_phase_still_needs():
    clock = Clock()
    pace = paced([2, 2], 4, clock)
    pace.step("distillation", 0, 100)
    clock.now += 10
    pace.step("distillation", 25, 100)
    # 25 parts took 10 s, so 75 take 30 s; then one usual round of 2 s.
    assert pace.seconds_left() == pytest.approx(30 + 2)


def test_the_pace_of_a_phase_leaves_out_what_passed_before_its_first_part_began():
    clock = Clock()
    pace = paced([2, 2], 3, clock)
    pace.step("distillation", 0, 100)
    clock.now += 18
    pace.step("distillation", 0, 100)
    clock.now += 5
    pace.step("distillation", 20, 100)
    # 20 parts took 5 s, so 80 take 20 s.
    assert pace.seconds_left() == pytest.approx(20)


def test_a_phase_that_begins_again_has_a_pace_of_its_own():
    clock = Clock()
    pace = paced([2], 2, clock)
    for done, seconds in [(0, 0), (100, 100), (0, 0), (50, 4)]:
        clock.now += seconds
        pace.step("distillation", done, 100)
    assert pace.seconds_left() == pytest.approx(4)


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=6))
def test_at_the_end_nothing_is_left_and_before_it_never_less(lengths):
    pace = paced(lengths, len(lengths) + 1, Clock())
    assert pace.seconds_left() >= 0


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (44_734_408, "44.7 MB"), (4.5e9, "4.5 GB")]
)
def test_bytes_are_told_in_powers_of_a_thousand(count, words):
    assert size(count) == words


def test_seconds_are_told_in_words():
    assert [duration(s) for s in (0, 65, 3600 + 125)] == ["0:00", "1:05", "1:02:05"]


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.8125, "%", "81.2 %"),
        (1.0, "%", "100.0 %"),
        (8.3149, "", "8.315"),
        (54321.6, "", "54,322"),
        (3e12, "", "3e+12"),
        (0.5, "nats", "0.5 nats"),
        (math.nan, "%", "not a number"),
        (None, "nats", "not a number"),
    ],
)
def test_a_figure_is_told_in_its_unit(value, unit, words):
    assert figure_text(value, unit) == words
    assert figure_digits(value, unit) == words.removesuffix(f" {unit}")


def test_shares_are_points_apart_and_other_figures_by_themselves():
    assert [difference_text(0.25, "%"), difference_text(0.25, ""), difference_text(2.0, "nats")] == [
        "25.0 points",
        "0.25",
        "2 nats",
    ]


def test_a_figure_of_another_task_is_told_by_its_own_name_and_unit(monkeypatch):
    console = screen(monkeypatch)
    terminal = Terminal(console, Clock())
    rmse, share = Figure("rmse", "lower", "mm"), Figure("within", "higher", "%")
    terminal.started(replace(start_of(Path("here"), class_names=()), figures=(rmse, share)))
    terminal.stage(StageRecord(0, "global", Evaluation({"rmse": 54.25, "within": 0.5})))
    terminal.finished(Result(result_values(stages={"final": 54.25}, figures={"rmse": 54.25, "within": 0.5}), Book()))
    lines = [" ".join(line.split()) for line in written(console).splitlines()]
    assert "0:00 round 1/3 global rmse 54.25 mm" in lines
    assert any("rmse, final" in line and "54.25 mm" in line for line in lines)
    assert any("within" in line and "50.0 %" in line for line in lines)
