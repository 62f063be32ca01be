"""A run's folder: written whole or not at all, read back as it was told."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.cohort.delivery import Book, FaultEntry
from engine.config.reading import parse
from engine.records import Evaluation, Result, StageRecord
from engine.store import tables
from engine.store.folder import FolderError, FolderExists, FolderWatcher, RunFolder, read, replacing
from engine.views.report import write_report
from tests.engine.runs import evaluation, pictures_of, play, result_values, round_record, start_of, stored


def written(path, **changes):
    play(FolderWatcher(RunFolder.create(path)), path, **changes)
    return path


def test_a_folder_that_holds_something_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderExists, match=r"--out, or remove this one"):
        RunFolder.create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_and_one_that_is_not_there_are_taken(tmp_path):
    assert RunFolder.create(tmp_path).path == tmp_path
    RunFolder.create(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FolderExists):
        RunFolder.create(tmp_path / "run")


def test_a_finished_run_holds_the_files_of_the_design_and_no_parts(tmp_path):
    names = {p.name for p in written(tmp_path / "run").iterdir()}
    assert names == {
        "config.yaml",
        "start.json",
        "ledger.parquet",
        "rounds.parquet",
        "seconds.parquet",
        "result.json",
    }


def test_what_was_told_is_what_is_read(tmp_path):
    run = read(written(tmp_path / "run"))
    assert run.config == {"method": {"name": "fedavg"}, "rounds": 3, "seed": 7}
    assert run.class_names == ("cat", "dog", "owl")
    assert run.label_counts.tolist() == [[0, 1, 2], [1, 2, 3]]
    assert run.facts == {"runner": "inline", "placement": "in this process"}
    assert [(s.round, s.stage, s.evaluation.headline) for s in run.stages] == [
        (0, "global", 0.25),
        (1, "global", 0.5),
        (2, "global", 0.75),
    ]
    # 3 rounds of 2 clients: weights down, weights up, examples up.
    assert run.ledger.num_rows == 3 * 2 * 3
    assert sum(run.ledger["bytes"].to_pylist()) == 3 * 2 * (100 + 100 + 8)
    assert run.seconds.num_rows == 3 * 3


def test_rows_of_a_round_are_on_disk_before_the_run_ends(tmp_path):
    watcher = FolderWatcher(RunFolder.create(tmp_path / "run"))
    watcher.started(start_of(tmp_path / "run"))
    watcher.round(round_record(0))
    part = pq.read_table(tmp_path / "run" / "parts" / "ledger-000000.parquet")
    assert part["kind"].to_pylist() == ["weights"] * 3 + ["examples", "weights", "examples"]


def test_a_round_told_twice_counts_once(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.write_start(start_of(folder.path))
    folder.write_round(round_record(0), [])
    folder.write_round(round_record(0), [])
    folder.write_result(result_values())
    assert read(folder.path).ledger.num_rows == 2 * 3


def test_a_run_without_a_round_has_empty_tables(tmp_path):
    run = read(written(tmp_path / "run", rounds=0))
    assert run.ledger.schema == tables.LEDGER
    assert run.ledger.num_rows == run.rounds.num_rows == 0
    assert run.stages == ()


def test_server_and_client_metrics_stand_beside_the_stages(tmp_path):
    rows = read(written(tmp_path / "run", rounds=2)).rounds.to_pylist()
    second = [(r["phase"], r["client"], r["name"], r["value"]) for r in rows if r["round"] == 1]
    assert second == [
        ("train", 0, "loss", 0.5),
        ("train", 1, "loss", 0.5),
        ("server", -1, "drift", 0.25),
        ("global", -1, "accuracy", 0.5),
        ("global", -1, "loss", 0.5),
        ("global", -1, "accuracy[0]", 0.5),
        ("global", -1, "accuracy[1]", 0.5),
        ("global", -1, "accuracy[2]", 0.5),
    ]


def test_a_stage_may_not_pose_as_the_server():
    with pytest.raises(ValueError, match="server"):
        tables.metric_rows(round_record(0), [StageRecord(0, "server", evaluation(0.5))])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["global", "teacher"]),
            st.floats(0, 1),
            st.floats(),
            st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=4),
        ),
        max_size=6,
    )
)
def test_stages_come_back_in_order_even_when_one_is_shown_twice(shown):
    stages = [
        StageRecord(0, name, Evaluation({"accuracy": a, "loss": loss}, {"accuracy": np.array(by)}))
        for name, a, loss, by in shown
    ]
    back = tables.stages_of(tables.metric_rows(round_record(0), stages))
    assert [(s.round, s.stage) for s in back] == [(s.round, s.stage) for s in stages]
    for one, other in zip(stages, back, strict=True):
        np.testing.assert_array_equal([one.evaluation.headline], [other.evaluation.headline])
        np.testing.assert_array_equal([one.evaluation.figures["loss"]], [other.evaluation.figures["loss"]])
        np.testing.assert_array_equal(one.evaluation.by_class["accuracy"], other.evaluation.by_class["accuracy"])


def evaluated(number, confusion, stage="global"):
    return StageRecord(number, stage, replace(evaluation(0.5), confusion=confusion))


def test_the_confusion_of_the_last_evaluated_round_is_kept(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    watcher, last = FolderWatcher(folder), np.array([[5, 0, 1], [0, 0, 0], [2, 3, 4]])
    watcher.started(start_of(folder.path))
    for number, confusion in enumerate([np.eye(3, dtype=np.int64), last]):
        watcher.stage(evaluated(number, confusion))
        watcher.stage(evaluated(number, np.ones((3, 3), dtype=np.int64), "teacher"))
        watcher.round(round_record(number))
    watcher.round(round_record(2))
    watcher.finished(Result(result_values(), Book()))
    assert read(folder.path).confusion.tolist() == last.tolist()


def test_a_run_that_counted_none_has_no_confusion(tmp_path):
    assert read(written(tmp_path / "run")).confusion is None


def test_a_confusion_of_other_classes_is_damaged(tmp_path):
    path = written(tmp_path / "run")
    pq.write_table(tables.confusion_rows(np.eye(4, dtype=np.int64)), path / "confusion.parquet")
    with pytest.raises(FolderError, match=r"confusion\.parquet is damaged: .* none of the 3"):
        read(path)


def test_figures_come_back_with_direction_and_unit_and_what_they_came_to(tmp_path):
    run = read(written(tmp_path / "run"))
    assert [(f.name, f.better, f.unit) for f in run.figures] == [("accuracy", "higher", "%"), ("loss", "lower", "")]
    assert (run.headline.name, run.score) == ("accuracy", 0.75)
    assert math.isnan(replace(run, result={"figures": {"accuracy": None}}).score)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 4), (2, 2, 2)])
def test_images_of_any_shape_come_back_to_the_byte(shape):
    given_ = (pictures_of(4, n=3, shape=shape), pictures_of(0, n=1, shape=shape))
    back = tables.pictures_of(tables.picture_rows(given_))
    assert [g.client for g in back] == [4, 0]
    for one, other in zip(given_, back, strict=True):
        for name in ("generated", "labels", "real", "real_labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_run_that_may_show_no_images_has_no_file_of_them(tmp_path):
    assert read(written(tmp_path / "run")).pictures == ()
    watcher = FolderWatcher(RunFolder.create(tmp_path / "other"))
    watcher.started(start_of(tmp_path / "other"))
    watcher.finished(Result(result_values(), Book(), (pictures_of(0),)))
    assert [g.client for g in read(tmp_path / "other").pictures] == [0]


def test_result_json_has_the_keys_of_the_design_in_their_order(tmp_path):
    result = json.loads((written(tmp_path / "run") / "result.json").read_text())
    assert " ".join(result) == (
        "method preset budget seed runner placement hosts rounds stop headline figures accuracy loss clients "
        "metrics stages bytes_up bytes_down bytes_by_kind seconds virtual_seconds peak_rss_mb digest versions "
        "processors notes"
    )


@pytest.mark.parametrize("change", [{"speed": 1}, {"accuracy": ...}])
def test_a_result_with_a_key_too_many_or_too_few_is_refused(tmp_path, change):
    values = {k: v for k, v in (result_values() | change).items() if v is not ...}
    with pytest.raises(ValueError, match=next(iter(change))):
        RunFolder.create(tmp_path / "run").write_result(values)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_result_that_is_no_number_becomes_null(tmp_path):
    path = written(tmp_path / "run", loss=math.nan, metrics={"peak": math.inf}, stages={"final": np.float32(0.5)})
    result = read(path).result
    assert (result["loss"], result["metrics"], result["stages"]) == (None, {"peak": None}, {"final": 0.5})


def test_a_run_that_did_not_finish_is_said_to_be_resumable(tmp_path):
    watcher = FolderWatcher(RunFolder.create(tmp_path / "run"))
    watcher.started(start_of(tmp_path / "run"))
    watcher.round(round_record(0))
    watcher.failed(RuntimeError("lost"))
    with pytest.raises(FolderError, match=r"result\.json is missing: the run has not finished"):
        read(tmp_path / "run")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FolderError, match="nowhere is not a folder"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["config.yaml", "start.json", "ledger.parquet", "rounds.parquet", "seconds.parquet", "result.json"]
)
def test_a_damaged_file_is_named(tmp_path, name):
    path = written(tmp_path / "run") / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"\x00{")
    with pytest.raises(FolderError, match=f"{name} is damaged"):
        read(tmp_path / "run")


@pytest.mark.parametrize("name", ["config.yaml", "start.json", "ledger.parquet", "rounds.parquet", "seconds.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    (written(tmp_path / "run") / name).unlink()
    with pytest.raises(FolderError, match=f"{name} is missing"):
        read(tmp_path / "run")


def test_a_result_without_its_keys_is_damaged(tmp_path):
    path = written(tmp_path / "run")
    (path / "result.json").write_text('{"method": "fedavg"}')
    with pytest.raises(FolderError, match=r"result\.json is damaged: it lacks preset, budget"):
        read(path)


def test_a_table_with_other_columns_is_damaged(tmp_path):
    path = written(tmp_path / "run")
    pq.write_table(pq.read_table(path / "seconds.parquet"), path / "ledger.parquet")
    with pytest.raises(FolderError, match=r"ledger\.parquet is damaged: its columns are round, phase, seconds"):
        read(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("old")

    def fail():
        with replacing(target) as temporary:
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"result.json": "old"}


# Text that YAML 1.1 and 1.2 take for numbers, dates or truth, beside any other.
plain = st.sampled_from(["1e-3", "1_000", "0x1F", "1:30", "yes", "null", "~", "2026-11-21", ".5", "-.inf", "=", ""])
# PyYAML folds these three like ends of lines, and no setting holds one.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029"))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.booleans() | numbers | plain | texts
trees = st.dictionaries(plain | texts, values | st.lists(values) | st.dictionaries(texts, values), max_size=6)


@given(tree=trees)
def test_the_configuration_that_is_written_is_read_back_as_it_was(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("run")
    RunFolder(path).write_start(replace(start_of(path), config=tree))
    found = parse((path / "config.yaml").read_bytes(), "config.yaml")
    assert found == tree
    assert [type(value) for value in found.values()] == [type(value) for value in tree.values()]


def faulty(*faults):
    return replace(round_record(0), faults=faults)


FAULTS = (
    FaultEntry(0, "train", 1, "host_lost", "retry", 2),
    FaultEntry(0, "train", 0, "bad_update", "leave out"),
    FaultEntry(0, "distillation", -1, "worker_lost", "retry"),
)


def test_what_went_wrong_is_in_the_rows_of_its_round():
    rounds = tables.metric_rows(faulty(*FAULTS), [StageRecord(0, "global", evaluation(0.5))])
    assert tables.faults_of(rounds) == FAULTS
    named = [row for row in rounds.to_pylist() if row["name"].startswith("fault/")]
    assert [(row["client"], row["name"], row["value"]) for row in named] == [
        (1, "fault/host_lost/retry", 2.0),
        (0, "fault/bad_update/leave out", 1.0),
        (-1, "fault/worker_lost/retry", 1.0),
    ]
    assert [stage.stage for stage in tables.stages_of(rounds)] == ["global"]


def test_what_went_wrong_is_in_the_report(tmp_path):
    run = stored(tmp_path / "run", rounds=tables.metric_rows(faulty(*FAULTS), []))
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "What went wrong" in page
    assert "host lost, tried again" in page
    assert "round 1, train, client 1" in page
    assert "round 1, distillation<" in page
    write_report([stored(tmp_path / "clean")], tmp_path / "clean.html")
    assert "What went wrong" not in (tmp_path / "clean.html").read_text()
