"""Runs that were killed and gone on with: to the bit what they would have been, nothing twice and nothing missing."""

import json
import signal

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from actors.runner import InlineRunner, MemoryLostError
from engine.commands.cli import cli
from engine.config import load, to_yaml
from engine.errors import ConfigError, UserError
from engine.run.launch import launch, resume
from engine.run.resuming import apply_overrides
from engine.store.folder import FolderError, RunFolder
from engine.store.tables import faults_of
from engine.views.tracking import connect
from tests.engine.kills import Killer, gone_on, killed, whole

INLINE = ("runner.kind=inline", "mlflow.enabled=false")
FEDAVG = ("fedavg-digits", (*INLINE, "rounds=3", "clients.steps=1", "clients.cohort=4"))
MOSAIC = (
    "mosaic-lean-digits",
    (
        *INLINE,
        "rounds=4",
        "method.warmup=2",
        "clients.steps=2",
        "method.meta_images=256",
        "method.meta_steps=20",
        "method.distil_steps=40",
        "method.distil_batch=32",
        "method.distinct=4",
    ),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of each preset that nobody kills, by preset: its folder, and how many files got their names."""
    found = {}
    for preset, overrides in (FEDAVG, MOSAIC):
        folder = tmp_path_factory.mktemp("whole") / preset
        found[preset] = (folder, whole(folder, preset, overrides))
    return found


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def assert_same_run(folder, expected, besides=()):
    """Digest, numbers and tables are those of a run that nobody disturbed; `besides` are keys that may differ."""
    ours, theirs = result_of(folder), result_of(expected)
    repeatable = ours.keys() - {"seconds", "peak_rss_mb", *besides}
    assert {key: ours[key] for key in repeatable} == {key: theirs[key] for key in repeatable}
    for name in ("ledger", "rounds"):
        assert pq.read_table(folder / f"{name}.parquet").equals(pq.read_table(expected / f"{name}.parquet")), name
    assert (folder / "report.html").exists()
    assert not (folder / "parts").exists()


@pytest.mark.parametrize(
    "where",
    [
        ("step", 0, "make_generator", 4),  # while generators are made
        ("step", 0, "train", 7),  # while clients train, before any checkpoint
        ("step", 1, "train", 10),  # all have trained, in the round of the distillation
        ("stage", 1, "teacher"),  # the meta model has learned
        ("stage", 1, "distilled"),  # the student has learned
        ("round", 1),  # the rows of a round are written, its checkpoint is not
        ("step", 2, "keep_generators", 3),  # while clients come to remember something
        ("step", 3, "fine_tune", 9),
    ],
    ids=str,
)
def test_mosaic_killed_at_any_stage_ends_as_if_nothing_had_happened(tmp_path, undisturbed, where):
    killed(tmp_path / "run", *MOSAIC, where)
    assert gone_on(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", undisturbed["mosaic-lean-digits"][0])


def test_a_run_killed_before_any_one_of_its_files_got_its_name_ends_as_if_nothing_had_happened(tmp_path):
    """The partition, two files of the start; of each round 2 outcomes, 3 parts, the confusion matrix, a
    checkpoint; the model and what it is, the clients' figures, 3 tables, the result, the report."""
    expected, short = tmp_path / "whole", (FEDAVG[0], (*FEDAVG[1], "rounds=2", "clients.cohort=2"))
    files = whole(expected, *short)
    assert files == 1 + 2 + 2 * (2 + 3 + 1 + 1) + 2 + 1 + 3 + 1 + 1
    for number in range(files):
        folder = tmp_path / f"before-{number}"
        killed(folder, *short, ("file", number))
        if not (folder / "config.yaml").exists():
            with pytest.raises(FolderError, match="holds no run that has begun"):
                RunFolder.of_run(folder)
            continue
        assert gone_on(folder) == 0
        assert_same_run(folder, expected)


def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path, undisturbed):
    folder = tmp_path / "run"
    killed(folder, *MOSAIC, ("step", 0, "train", 2))
    for where in [("step", 0, "train", 9), ("stage", 1, "distilled"), ("step", 2, "fine_tune", 1), ("round", 3)]:
        assert gone_on(folder, where=where) == -signal.SIGKILL
    assert gone_on(folder) == 0
    assert_same_run(folder, undisturbed["mosaic-lean-digits"][0])


def checkpoints(folder):
    return sorted((folder / "checkpoints").glob("*.safetensors"))


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_taken(tmp_path, undisturbed):
    folder = tmp_path / "run"
    killed(folder, FEDAVG[0], (*FEDAVG[1], "checkpoint.every=1"), ("step", 2, "train", 2))
    newest = checkpoints(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert gone_on(folder) == 0
    assert_same_run(folder, undisturbed["fedavg-digits"][0])
    facts = json.loads((folder / "start.json").read_text())["facts"]
    assert f"{newest.name} was cut short or changed" in facts["checkpoints refused"]


def test_where_no_checkpoint_can_be_trusted_the_run_is_left_as_it_is(tmp_path):
    folder = tmp_path / "run"
    killed(folder, *FEDAVG, ("step", 2, "train", 2))
    for path in checkpoints(folder):
        path.write_bytes(b"")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match="start the run anew"):
        resume(folder, (), Killer(None))
    assert sorted(folder.rglob("*")) == before


def test_the_policy_says_which_checkpoints_stay(tmp_path):
    whole(tmp_path / "run", FEDAVG[0], (*FEDAVG[1], "rounds=7", "checkpoint.last=1", "checkpoint.every=3"))
    assert [int(path.name.split("-")[0]) for path in checkpoints(tmp_path / "run")] == [3, 6, 7]
    assert not list((tmp_path / "run" / "checkpoints").glob("round-*"))


def test_a_finished_run_says_so(tmp_path, undisturbed):
    folder, _ = undisturbed["fedavg-digits"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said = CliRunner().invoke(cli, ["resume", str(folder)])
    assert said.exit_code == 0
    assert "is finished" in said.output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_finished_run_goes_on_for_more_rounds(tmp_path, undisturbed):
    """All rounds are evaluated and FedAvg knows of no last one, so that 2 + 1 rounds are 3."""
    folder = tmp_path / "run"
    whole(folder, FEDAVG[0], (*FEDAVG[1], "rounds=2"))
    assert gone_on(folder, ("rounds=3",)) == 0
    assert_same_run(folder, undisturbed["fedavg-digits"][0])
    assert json.loads((folder / "start.json").read_text())["facts"]["changed: rounds"] == "2 -> 3"


def test_a_run_whose_rate_falls_over_its_rounds_has_no_more_of_them(tmp_path):
    falling = load(FEDAVG[0], (*FEDAVG[1], "clients.schedule.name=cosine"))
    (tmp_path / "config.yaml").write_text(to_yaml(falling))
    with pytest.raises(ConfigError, match=r"rounds = 5: was 3 when the run began, over which the cosine"):
        apply_overrides(RunFolder(tmp_path), ("rounds=5",))


def test_what_the_result_depends_on_may_not_differ_and_is_named(tmp_path):
    folder = tmp_path / "run"
    killed(folder, *FEDAVG, ("step", 1, "train", 2))
    text = (folder / "config.yaml").read_text()
    with pytest.raises(ConfigError) as refused:
        resume(folder, ("seed=5", "clients.lr=1", "rounds=2", "runner.device=cuda", "checkpoint.last=4"), Killer(None))
    places = {problem.place: problem for problem in refused.value.problems}
    assert places.keys() == {"seed", "clients.lr", "rounds", "runner.device"}
    assert "was 0 when the run began" in places["seed"].reason
    assert "runner.*" in places["seed"].reason
    assert (folder / "config.yaml").read_text() == text


def test_a_run_of_other_data_is_refused(tmp_path):
    folder = tmp_path / "run"
    killed(folder, *FEDAVG, ("step", 1, "train", 2))
    path = RunFolder(folder).partition
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"data": b"another"}), path)
    with pytest.raises(UserError, match=r"the training data of .* had the fingerprint another when the run began"):
        resume(folder, (), Killer(None))


def test_one_process_at_a_time_works_on_a_run(tmp_path):
    folder = tmp_path / "run"
    killed(folder, *FEDAVG, ("step", 1, "train", 2))
    with RunFolder(folder).lock(), pytest.raises(FolderError, match="another process is at work"):
        resume(folder, (), Killer(None))


def test_a_folder_without_a_run_is_refused(tmp_path):
    said = CliRunner().invoke(cli, ["resume", str(tmp_path)])
    assert said.exit_code == 2
    assert "config.yaml is missing" in said.output


def test_the_run_goes_on_in_the_same_run_of_mlflow(tmp_path):
    """Killed after MLflow has heard of round 1 and before its checkpoint is written, so that round 1 is done again."""
    folder = tmp_path / "run"
    killed(folder, FEDAVG[0], (*FEDAVG[1], "mlflow.enabled=true"), ("round", 1))
    assert gone_on(folder) == 0
    watcher = connect(None, folder)
    runs = watcher._client.search_runs([watcher._experiment])
    assert [run.info.status for run in runs] == ["FINISHED"]
    heard = watcher._client.get_metric_history(runs[0].info.run_id, "bytes/up")
    assert [metric.step for metric in heard] == [0, 1, 2]


class Forgetful(InlineRunner):
    """Loses what clients 1 and 3 remember, once, in the third round."""

    lost = False

    def run(self, request):
        if request.seed.round == 2 and not Forgetful.lost:
            Forgetful.lost = True
            raise MemoryLostError([3, 1])
        return super().run(request)


def test_a_run_whose_clients_memories_are_lost_goes_on_from_its_last_checkpoint(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr("engine.planning.federation.InlineRunner", Forgetful)
    monkeypatch.setattr(Forgetful, "lost", False)
    preset, overrides = FEDAVG
    expected = undisturbed[preset][0]
    launch(load(preset, overrides), preset, tmp_path / "run", Killer(None))
    assert Forgetful.lost
    assert result_of(tmp_path / "run")["digest"] == result_of(expected)["digest"]
    ledgers = [pq.read_table(folder / "ledger.parquet") for folder in (tmp_path / "run", expected)]
    assert ledgers[0].equals(ledgers[1])
    rounds = pq.read_table(tmp_path / "run" / "rounds.parquet")
    assert [(f.client, f.fault, f.action) for f in faults_of(rounds)] == [
        (1, "memory_lost", "retry"),
        (3, "memory_lost", "retry"),
    ]
    assert "the memory of clients 1, 3 was lost" in (tmp_path / "run" / "run.log").read_text()


def test_where_the_policy_stops_at_lost_hosts_it_stops_at_lost_memories_too(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.planning.federation.InlineRunner", Forgetful)
    monkeypatch.setattr(Forgetful, "lost", False)
    preset, overrides = FEDAVG
    with pytest.raises(MemoryLostError, match="the memory of clients 1, 3 was lost with the node that held it"):
        launch(load(preset, (*overrides, "failures.on_host_lost=stop")), preset, tmp_path / "run", Killer(None))


def test_the_preset_is_remembered(tmp_path):
    folder = tmp_path / "run"
    killed(folder, *FEDAVG, ("step", 1, "train", 2))
    assert gone_on(folder) == 0
    assert result_of(folder)["preset"] == "fedavg-digits"
