"""The benchmark of faults: a schedule that a seed repeats, and an honest count of the rounds that were lost."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.faults import KINDS, Fault, Injector, count_lost_rounds, schedule
from engine.store.tables import ledger_rows
from tests.engine.runs import round_record


def test_a_seed_gives_the_same_faults_again_and_another_seed_others():
    assert schedule(1, 100, 300) == schedule(1, 100, 300) != schedule(2, 100, 300)


def test_all_kinds_come_and_the_faults_fit_into_the_run():
    """300 signs of progress for 100 faults: 1 to 4 each, 2.5 in the mean."""
    faults = schedule(1, 100, 300)
    assert {fault.kind for fault in faults} == KINDS.keys()
    assert {fault.after for fault in faults} == {1, 2, 3, 4}
    assert sum(fault.after for fault in faults) < 300
    assert sum(KINDS.values()) == pytest.approx(1)


def test_rounds_begun_and_faults_done_are_remembered_by_the_next_process(tmp_path):
    class Start:
        done = 2

    for process in range(2):
        injector = Injector([], tmp_path / "told.json")
        injector.started(Start)
        injector.step(2 + process, "train", 1, 4)
        injector._write()
    assert injector._record == {"done": [], "rounds": [[2, 2], [2, 3]]}


def test_a_checkpoint_is_cut_only_where_an_older_one_is_left(tmp_path, monkeypatch):
    signals = []
    monkeypatch.setattr("benchmarks.faults.os.kill", lambda process, signal: signals.append(signal))
    checkpoints = tmp_path / "disturbed" / "checkpoints"
    checkpoints.mkdir(parents=True)
    injector = Injector([Fault("checkpoint cut", after=1, victim=0.0)], tmp_path / "told.json")
    injector.started(SimpleNamespace(done=0))
    for number, kills in enumerate([0, 0, 1]):  # with none, one and two of them
        injector.step(0, "train", 1, 4)
        assert len(signals) == kills
        (checkpoints / f"{number}.safetensors").touch()


@pytest.mark.parametrize(("missing", "count"), [([], 0), ([1], 1), ([0, 2], 2)])
def test_a_round_is_lost_where_its_messages_are_not_those_of_the_run_in_peace(tmp_path, missing, count):
    for name, left_out in (("run", missing), ("peace", [])):
        (tmp_path / name).mkdir()
        rows = [ledger_rows(round_record(n, clients=1 if n in left_out else 2)) for n in range(3)]
        pq.write_table(pa.concat_tables(rows), tmp_path / name / "ledger.parquet")
    assert count_lost_rounds(tmp_path / "run", tmp_path / "peace", 3) == count
