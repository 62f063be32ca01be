"""Predicted memory beside measured: the table that the benchmark wrote, and one small run for real."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.memory import CASES, OFF, Row, predict, rows, table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
WRITTEN = [Row(**json.loads(line)) for line in (RESULTS / "memory.jsonl").read_text().splitlines()]


def test_the_written_table_holds_driver_host_and_object_store_of_each_preset():
    parts = ("driver", "host", "object store")
    assert [(row.preset, row.part) for row in WRITTEN] == [(preset, part) for preset in CASES for part in parts]
    assert table(WRITTEN) in (RESULTS / "memory.md").read_text()


@pytest.mark.parametrize("row", WRITTEN, ids=lambda row: f"{row.preset} {row.part}")
def test_predictions_lie_within_30_percent_of_what_was_measured(row):
    assert abs(row.ratio - 1) <= OFF


@pytest.mark.parametrize("preset", CASES)
def test_the_plan_still_predicts_what_the_table_says(preset):
    """Who changes the prediction measures again: `python -m benchmarks.memory --out benchmarks/results`."""
    if "mnist" in preset and not os.environ.get("TESSERA_DATA"):
        pytest.skip("MNIST is not here: TESSERA_DATA is not set")
    written = {row.part: row.predicted_mb for row in WRITTEN if row.preset == preset}
    assert predict(preset, CASES[preset]) == pytest.approx(written, rel=0.01, abs=0.01)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_run_takes_what_was_predicted():
    pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)
    for row in rows("fedavg-digits", ["rounds=2", "runner.hosts=1"]):
        assert row.ratio == pytest.approx(1, abs=OFF), row
