"""The suite's own parts: what it reads, keeps and says. Nothing is measured here."""

import importlib
import json
import sys

import pytest

from benchmarks import suite
from benchmarks.figures import Figure
from benchmarks.suite import Benchmark, Run, newest, of_rounds, page, perform


def script(tmp_path, monkeypatch, text):
    """A benchmark that is this Python text."""
    (tmp_path / "toy_benchmark.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Benchmark("toy", "toy_benchmark", limit=30.0)


@pytest.mark.parametrize("benchmark", suite.SUITE, ids=lambda b: b.name)
def test_every_benchmark_of_the_suite_is_a_command(benchmark):
    assert callable(importlib.import_module(benchmark.module).main)


def test_a_benchmark_is_a_process_of_its_own_that_prints_figures(tmp_path, monkeypatch):
    line = Figure("pace", "s", (1.0, 2.0)).line()

    run = perform([script(tmp_path, monkeypatch, f"print({line!r})")])

    assert run.figures == (Figure("pace", "s", (1.0, 2.0)),)
    assert run.failed == {}


def test_a_benchmark_that_fails_is_named_with_its_own_last_words_and_the_others_go_on(tmp_path, monkeypatch):
    fails = script(tmp_path, monkeypatch, "import sys; sys.exit('there is no folder mnist; set TESSERA_DATA')")
    (tmp_path / "other.py").write_text(f"print({Figure('pace', 's', (1.0,)).line()!r})")

    run = perform([fails, Benchmark("other", "other")])

    assert run.failed == {"toy": "there is no folder mnist; set TESSERA_DATA"}
    assert [figure.name for figure in run.figures] == ["pace"]


def test_what_a_benchmark_printed_before_it_failed_is_kept(tmp_path, monkeypatch):
    line = Figure("1,000 clients", "s", (1.0,)).line()
    fails = script(tmp_path, monkeypatch, f"print({line!r}); import sys; sys.exit('memory ran out')")

    run = perform([fails])

    assert [figure.name for figure in run.figures] == ["1,000 clients"]
    assert run.failed == {"toy": "memory ran out"}


def test_a_benchmark_that_does_not_end_is_ended(tmp_path, monkeypatch):
    waits = script(tmp_path, monkeypatch, "import threading; threading.Event().wait()")

    run = perform([Benchmark(waits.name, waits.module, limit=0.5)])

    assert run.failed == {"toy": "did not end within 0.5 s"}


def test_rounds_are_read_as_seconds_beside_plain_pytorch_and_as_their_ratio():
    lines = [{"case": "a", "stack": False, "tessera_median_s": 0.3, "plain_median_s": 0.1, "ratio": 3.0}]
    lines += [{"case": "a", "stack": False, "tessera_median_s": 0.4, "plain_median_s": 0.2, "ratio": 2.0}]

    figures = of_rounds("\n".join(map(json.dumps, lines)))

    assert figures == [
        Figure("round (a)", "s", (0.3, 0.4), loops=(0.1, 0.2)),
        Figure("round (a) against plain PyTorch", "times", (3.0, 2.0), goal=1.0),
    ]


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = Run({"cores": 2}, (Figure("pace", "s", (1.0, 2.0), loops=(0.1, 0.1)),), {"toy": 3.0}, {"other": "no data"})
    run.save(tmp_path / "bench-1.json")

    assert Run.load(tmp_path / "bench-1.json") == run


def test_the_last_run_is_the_newest_by_its_date(tmp_path):
    assert newest(tmp_path) is None
    for date in ("20260102-000000", "20260301-000000", "20251231-235959"):
        (tmp_path / f"bench-{date}.json").touch()

    assert newest(tmp_path) == tmp_path / "bench-20260301-000000.json"


def test_the_page_names_what_got_worse_and_what_did_not_run():
    last = Run({}, (Figure("pace", "s", (1.0, 1.0)),))
    run = Run({"cores": 2}, (Figure("pace", "s", (2.0, 2.0)),), {"toy": 3.0}, {"rounds": "no data"})

    said = page(run, last, "20260101-000000").splitlines()

    assert "- worse by more than the noise: pace: +100.0%, noise 0.0%" in said
    assert "- not finished: rounds: no data" in said
    assert "cores 2" in said


def test_the_command_writes_its_run_beside_the_last_one(tmp_path, monkeypatch, capsys):
    toy = script(tmp_path, monkeypatch, f"print({Figure('pace', 's', (2.0, 2.0)).line()!r})")
    monkeypatch.setattr(suite, "SUITE", (toy,))
    monkeypatch.setattr(sys, "argv", ["suite", "--out", str(tmp_path)])
    Run({}, (Figure("pace", "s", (1.0, 1.0)),)).save(tmp_path / "bench-20000101-000000.json")

    assert suite.main() == 0

    written = newest(tmp_path)
    assert Run.load(written).figures == (Figure("pace", "s", (2.0, 2.0)),)
    assert "| pace | s |  | 1 | 2 | +100.0% | 0.0% | worse |" in written.with_suffix(".md").read_text()
    assert "+100.0%" in capsys.readouterr().out
