"""Early stopping: judged on validation rows that nobody trains on, never on test rows, and the same on every runner."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine as tessera
from algorithms.core.seeds import Seed
from algorithms.core.task import Figure
from engine.config import load
from engine.partition import Partition, hold_out
from engine.planning.checking import check
from engine.planning.federation import Federation
from engine.run.stopping import Stopping

UP, DOWN = Figure("accuracy", "higher", "%"), Figure("loss", "lower")
QUICK = {
    "rounds": 30,
    "clients": {"steps": 4, "lr": 0.2},
    "data": {"limit": 400},
    "runner": {"kind": "inline"},
    "mlflow": {"enabled": False},
    "stop": {"patience": 2, "share": 0.25},
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop") / "run"
    return tessera.run("fedavg-digits", out=folder, progress=False, **QUICK)


# --- The rule -----------------------------------------------------------------------------------------------------


def judge(values, figure=UP, **settings):
    """The rule after each of some values, until it ends the run."""
    rule, seen = Stopping(figure, **settings), []
    for round, value in enumerate(values):
        rule = rule.learn(round, value, {"loss": float(round)})
        seen.append(rule)
        if rule.is_over:
            break
    return seen


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 4))
def test_a_run_ends_where_so_many_rounds_in_a_row_are_no_better_than_the_best_before(values, patience):
    played = len(judge(values, patience=patience))
    best = values.index(max(values[:played]))
    ends = [n for n in range(patience, len(values)) if max(values[: n + 1 - patience]) >= max(values[: n + 1])]
    assert played == (ends[0] + 1 if ends else len(values))
    assert judge(values, patience=patience)[-1].best.round == best


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 4))
def test_of_a_figure_where_less_is_better_the_same_with_the_sign_turned(values, patience):
    ups, downs = judge(values, patience=patience), judge([-v for v in values], figure=DOWN, patience=patience)
    assert [rule.best.round for rule in ups] == [rule.best.round for rule in downs]


def test_a_change_that_is_too_small_is_none():
    assert [rule.best.round for rule in judge([0.50, 0.505, 0.52, 0.525], patience=4, change=0.01)] == [0, 0, 2, 2]


def test_what_is_no_number_is_no_better_and_everything_is_better_than_it():
    assert [rule.best.round for rule in judge([math.nan, 0.1, math.nan, 0.2], patience=4)] == [0, 1, 1, 3]


def test_rounds_before_the_first_that_counts_are_not_judged():
    seen = judge([0.9, 0.8, 0.1, 0.2, 0.1, 0.1], patience=2, first=2)
    assert [rule.best and rule.best.round for rule in seen] == [None, None, 2, 3, 3, 3]
    assert len(seen) == 6


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_what_was_seen_comes_back_from_json(values):
    rule = judge(values, patience=3)[-1]
    assert Stopping(UP, 3).restore(json.loads(json.dumps(rule.tree()))) == rule


def test_the_reason_names_the_figure_its_best_value_and_the_rounds():
    rule = judge([0.5, 0.75, 0.7, 0.7], patience=2)[-1]
    assert rule.summary(4, 1) == {
        "early": True,
        "reason": "stopped after round 4: accuracy on validation rows was best after round 2 (75.0 %, whose model is "
        "kept) and not better in the 2 after it",
        "metric": "accuracy",
        "best_round": 1,
        "best_value": 0.75,
        "best_figures": {"loss": 1.0},
        "model_round": 1,
    }
    assert judge([0.5, 0.75], patience=2)[-1].summary(2, 0)["reason"] == (
        "all 2 rounds were played: accuracy on validation rows was best after round 2 (75.0 %)"
    )


# --- The rows -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0.01, 0.99), st.integers(0, 3))
def test_each_client_gives_its_share_of_rows_and_keeps_one_at_least(sizes, share, seed):
    ends = np.cumsum(sizes)
    rows = tuple(np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True))
    left, held = hold_out(Partition(rows, "iid"), share, Seed(seed))
    for own, kept, taken in zip(rows, left.rows, held, strict=True):
        assert sorted([*kept, *taken]) == own.tolist()
        assert len(taken) == min(round(share * len(own)), len(own) - 1)
        assert taken.tolist() == sorted(taken)


def test_what_a_client_gives_follows_from_the_seed_and_its_number_alone():
    rows = (np.arange(10), np.arange(10, 30))
    _, held = hold_out(Partition(rows, "iid"), 0.5, Seed(1))
    _, alone = hold_out(Partition((rows[0], np.arange(40, 50)), "iid"), 0.5, Seed(1))
    _, other = hold_out(Partition(rows, "iid"), 0.5, Seed(2))
    assert held[0].tolist() == alone[0].tolist() != other[0].tolist()


def gathered(*more):
    return Federation.gather(load("fedavg-digits", ["data.limit=400", "runner.kind=inline", *more]))


def test_nobody_trains_on_validation_rows_and_together_they_are_all_that_was_dealt():
    whole, split = gathered(), gathered("stop.share=0.25")
    trained = np.concatenate(split.partition.rows)
    assert set(trained).isdisjoint(np.concatenate(split.validation_rows))
    assert sorted([*trained, *np.concatenate(split.validation_rows)]) == sorted(np.concatenate(whole.partition.rows))
    assert [len(split.shards(k)) for k in range(10)] == [len(rows) for rows in split.partition.rows]
    assert split.setup.needs is not None


def test_of_a_personal_method_each_client_has_its_own_validation_rows():
    split = gathered("stop.share=0.25", "method.name=fedbn")
    assert [split.shards.validation(k).rows.tolist() for k in range(10)] == [
        rows.tolist() for rows in split.validation_rows
    ]
    assert gathered("stop.share=0.25").shards.validation(0) is None


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["stop.metric=acuracy"], 'stop.metric = "acuracy": image classification has no such figure; did you mean'),
        (["stop.share=0.001"], "stop.share = 0.001: leaves no client a validation row"),
        (["stop.patience=0"], "stop.patience = 0: must be at least 1"),
        (["stop=5"], "stop = 5: must be a mapping"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_the_start(more, told):
    with pytest.raises(tessera.ConfigError) as error:
        check(gathered(*more))
    assert told in str(error.value)


# --- Runs ---------------------------------------------------------------------------------------------------------


def test_the_result_says_when_and_why_it_ended_and_which_round_was_best(stopped):
    judged = stopped.rounds["validation/accuracy"].to_pylist()
    stop = stopped.result["stop"]
    best = judged.index(max(judged))
    assert stop["early"]
    assert (stop["metric"], stop["best_round"], stop["best_value"]) == ("accuracy", best, judged[best])
    assert stopped.result["rounds"] == len(judged) == best + 2 + 1 < 30
    tested = stopped.rounds.slice(best, 1).to_pylist()[0]
    assert stop["best_figures"] == {name: tested[name] for name in stopped.result["figures"]}
    assert "validation" not in stopped.result["stages"]
    assert stop["reason"] in stopped.report.read_text().replace("&#39;", "'")


def models_of(folder):
    """The bytes of the models that a run's folder holds, by file."""
    folder = Path(folder)
    files = [*folder.glob("model.safetensors"), *folder.glob("models/*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_folder_keeps_the_model_of_the_best_round_whichever_was_the_last(stopped):
    best = stopped.result["stop"]["best_round"]
    until = tessera.run("fedavg-digits", out="until", progress=False, **{**QUICK, "rounds": best + 1})
    assert models_of(stopped.folder) == models_of(until.folder)
    assert until.result["digest"] != stopped.result["digest"]
    assert stopped.result["stop"]["model_round"] == best == stopped.model().facts["round"]
    assert "whose model is kept" in stopped.report.read_text()


def test_the_best_rounds_checkpoint_is_written_where_none_is_due_and_stays(monkeypatch):
    monkeypatch.setattr("engine.run.keeping.SHARE", -1.0)
    few = {**QUICK, "stop": {"patience": 3, "share": 0.25}, "checkpoint": {"last": 1}}
    run = tessera.run("fedavg-digits", out="run", progress=False, **few)
    stop, rounds = run.result["stop"], run.result["rounds"]
    assert stop["model_round"] == stop["best_round"] == rounds - 1 - 3
    assert [int(path.name.split("-")[0]) for path in sorted(Path("run/checkpoints").glob("*.safetensors"))] == [
        stop["best_round"] + 1,
        rounds,
    ]


def test_of_personal_models_those_of_the_best_round_are_kept():
    own = {**QUICK, "method": {"name": "fedbn"}}
    run = tessera.run("fedavg-digits", out="all", progress=False, **own)
    best = run.result["stop"]["best_round"]
    assert best < run.result["rounds"] - 1
    until = tessera.run("fedavg-digits", out="until", progress=False, **{**own, "rounds": best + 1})
    assert models_of(run.folder) == models_of(until.folder)
    assert len(models_of(run.folder)) == 10


def test_where_the_best_rounds_checkpoint_is_damaged_the_last_model_is_kept_and_that_is_said():
    def damage(done):
        for path in Path("run/checkpoints").glob("*.safetensors"):
            if int(path.name.split("-")[0]) < done.number:
                path.write_bytes(b"")

    run = tessera.run("fedavg-digits", out="run", progress=False, on_round=damage, **QUICK)
    stop = run.result["stop"]
    assert stop["model_round"] == run.result["rounds"] - 1 == run.model().facts["round"] > stop["best_round"]
    assert "whose model is kept" not in stop["reason"]
    assert "was cut short or changed" in Path("run/run.log").read_text()


def test_test_rows_have_no_part_in_it(stopped):
    fewer = {**QUICK, "data": {"limit": 400, "test_limit": 3}}
    again = tessera.run("fedavg-digits", out="fewer", progress=False, **fewer)
    assert again.result["figures"] != stopped.result["figures"]
    assert again.result["digest"] == stopped.result["digest"]
    assert models_of(again.folder) == models_of(stopped.folder)
    assert again.measurements.filter(pc_phase("validation")).equals(stopped.measurements.filter(pc_phase("validation")))


def pc_phase(name):
    import pyarrow.compute as pc

    return pc.field("phase") == name


@pytest.mark.parametrize("ends", [0, 1, 2])
def test_a_run_that_ended_in_between_stops_after_the_same_round(stopped, ends):
    def interrupt(done):
        if done.number == stopped.result["rounds"] - 1 - ends:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tessera.run("fedavg-digits", out="cut", progress=False, on_round=interrupt, **QUICK)
    resumed = tessera.resume("cut", progress=False)
    for key in ("stop", "digest", "rounds", "figures"):
        assert resumed.result[key] == stopped.result[key], key
    assert models_of(resumed.folder) == models_of(stopped.folder)
    assert resumed.measurements.equals(stopped.measurements)


def test_a_stopped_run_is_finished(stopped):
    assert tessera.resume(stopped.folder, progress=False).result == stopped.result
    assert tessera.resume(stopped.folder, rounds=40, progress=False).result == stopped.result


def test_of_personal_models_the_mean_over_the_clients_is_judged():
    run = tessera.run("fedavg-digits", out="own", progress=False, **{**QUICK, "method": {"name": "fedbn"}, "rounds": 2})
    rows = run.measurements.filter(pc_phase("validate_own")).to_pylist()
    last = {(row["client"], row["name"]): row["value"] for row in rows if row["round"] == 1}
    sizes = {client: value for (client, name), value in last.items() if name == "examples"}
    mean = sum(last[client, "accuracy"] * size for client, size in sizes.items()) / sum(sizes.values())
    assert run.rounds["validation/accuracy"].to_pylist()[1] == pytest.approx(mean)
    assert not [entry for entry in run.ledger.to_pylist() if entry["phase"] == "validate_own"]


def test_a_method_that_distils_is_judged_from_the_round_of_its_distillation_on():
    lean = {"warmup": 3, "meta_images": 50, "meta_steps": 2, "distil_steps": 2, "distil_batch": 8, "distinct": 1}
    quick = {**QUICK, "rounds": 8, "stop": {"patience": 1, "share": 0.25}, "clients": {"steps": 1, "lr": 1e-6}}
    run = tessera.run("mosaic-lean-digits", method=lean, out="lean", progress=False, **quick)
    assert "teacher" in run.result["stages"]
    assert run.result["stop"]["best_round"] >= 2


def test_on_ray_it_stops_after_the_same_round_of_personal_models_too(stopped, ray_cluster):
    there = tessera.run("fedavg-digits", out="ray", progress=False, **{**QUICK, "runner": {"kind": "ray", "hosts": 2}})
    assert (there.result["stop"], there.result["digest"]) == (stopped.result["stop"], stopped.result["digest"])
    assert models_of(there.folder) == models_of(stopped.folder)
    own = {**QUICK, "method": {"name": "fedbn"}, "rounds": 2}
    here, there = (
        tessera.run("fedavg-digits", out=f"own-{kind}", progress=False, **{**own, "runner": {"kind": kind}})
        for kind in ("inline", "ray")
    )
    assert there.result["stop"] == here.result["stop"]
    assert models_of(there.folder) == models_of(here.folder) != {}


def test_the_terminal_says_why(capfd):
    tessera.run("fedavg-digits", out="said", **{**QUICK, "rounds": 1})
    said = capfd.readouterr().err
    assert "validation  accuracy" in said
    assert "stop: all 1 rounds were played: accuracy on validation rows was best after round 1" in said
    assert Path("said/result.json").exists()
