"""A run on a time line: what the trace of a run says, as Perfetto and speedscope read it."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from click.testing import CliRunner

from actors.cohort.delivery import StepSpan
from actors.steps.orders import Span
from engine.commands.cli import cli
from engine.views.trace import Trace
from tests.engine.runs import round_record, start_of


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Events of a run of two rounds with ten clients, inline."""
    folder = tmp_path_factory.mktemp("profiled") / "run"
    overrides = ("rounds=2", "runner.kind=inline", "clients.steps=1", "mlflow.enabled=false")
    words = [word for one in overrides for word in ("--set", one)]
    ended = CliRunner().invoke(cli, ["run", "fedavg-digits", *words, "--profile", "--out", str(folder)])
    assert ended.exit_code == 0, ended.output
    return json.loads((folder / "profile.json").read_text())


def spans(events, process, line=0):
    """Events with a duration, of one line of a process."""
    return [event for event in events if (event["ph"], event["pid"], event["tid"]) == ("X", process, line)]


def test_every_round_is_on_the_drivers_first_line(events):
    assert [event["name"] for event in spans(events, 0)] == ["round 1", "round 2"]


def test_the_drivers_phases_follow_each_other_from_the_command_on_with_waiting_among_them(events):
    phases = spans(events, 0, line=1)
    assert phases[0]["name"] == "start:data"
    assert {"waiting for train", "evaluate"} <= {phase["name"] for phase in phases}
    for one, next_one in pairwise(phases):
        assert one["ts"] + one["dur"] <= next_one["ts"] + 1


def test_every_step_is_on_the_line_of_its_host(events):
    steps = spans(events, 1)
    assert [step["args"] for step in steps] == [{"client": k, "round": n} for n in (1, 2) for k in range(10)]
    first, last = spans(events, 0)
    assert all(first["ts"] <= step["ts"] <= last["ts"] + last["dur"] for step in steps)


def test_processes_and_lines_have_names(events):
    names = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names["process_name", 0, 0] == "driver"
    assert names["process_name", 1, 0].startswith("host ")
    assert names["thread_name", 0, 1] == "phases"


def test_each_host_has_a_line_of_its_own(tmp_path):
    trace = Trace()
    trace.started(start_of(tmp_path))
    spans_of = [StepSpan("train", k, Span(host, 10.0 + k, 10.5 + k)) for k, host in enumerate(["a 1", "b 2", "a 1"])]
    record = replace(round_record(0), spans=tuple(spans_of))
    trace.round(record)
    trace.failed(RuntimeError())
    found = [e for e in json.loads((tmp_path / "profile.json").read_text()) if e["ph"] == "X" and e["pid"]]
    assert [(e["pid"], e["name"], e["ts"], e["dur"]) for e in found] == [
        (1, "train 0", 10_000_000, 500_000),
        (2, "train 1", 11_000_000, 500_000),
        (1, "train 2", 12_000_000, 500_000),
    ]


def test_steps_of_a_host_that_overlap_lie_on_lines_of_their_own(tmp_path):
    trace = Trace()
    trace.started(start_of(tmp_path))
    times = [(1.0, 4.0), (2.0, 5.0), (4.0, 6.0), (4.5, 7.0)]
    trace.round(replace(round_record(0), spans=tuple(StepSpan("train", k, Span("a", *t)) for k, t in enumerate(times))))
    trace.failed(RuntimeError())
    found = [e for e in json.loads((tmp_path / "profile.json").read_text()) if e["ph"] == "X" and e["pid"]]
    assert [e["tid"] for e in found] == [0, 1, 0, 2]


def test_the_trace_of_a_run_that_failed_is_whole(tmp_path):
    trace = Trace()
    trace.phase("start:data", 1.0, 2.0)
    trace.started(start_of(tmp_path))
    trace.failed(KeyboardInterrupt())
    assert [e["name"] for e in json.loads((tmp_path / "profile.json").read_text()) if e["ph"] == "X"] == ["start:data"]


def test_a_run_that_failed_before_it_started_leaves_no_trace(tmp_path):
    trace = Trace()
    trace.phase("start:data", 1.0, 2.0)
    trace.failed(KeyboardInterrupt())
    assert not (tmp_path / "profile.json").exists()
