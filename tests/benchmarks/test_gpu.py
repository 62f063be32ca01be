"""The benchmark on a card, without one: that both sides do the same work, and what is said of it."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors.runner import InlineRunner
from algorithms.core.seeds import Seed
from benchmarks import gpu
from benchmarks.figures import Figure
from benchmarks.gpu import Row, failed_row, page, side_by_side
from benchmarks.gpu_loop import TASK, VARIANTS, PlainLoop, Problem, Variant, tf32
from benchmarks.gpu_rounds import PlainRounds, gets, setup_of, verdict
from benchmarks.on_ray import needs_of
from engine.records import Evaluation
from engine.run.rounds import Rounds, Schedule

SMALL = Problem("small_cnn", steps=5, batch=8, clients=2, examples=24)
ON_CPU = {name: way for name, way in VARIANTS.items() if not way.needs_card}


def plainly_trained(problem, variant):
    """Loss and state after the plain loop, on the batches that Tessera's own loop draws."""
    net, shard = problem.kit("cpu").new_network(problem.net), problem.shards()(1)
    picks = problem.picks(shard, Seed(0, client=1), range(problem.steps))
    return PlainLoop(net, shard.columns["image"], shard.columns["label"], variant).train(picks), net.state_dict()


def fitted(problem):
    """The same after Tessera's own loop."""
    kit = problem.kit("cpu")
    net = kit.new_network(problem.net)
    done = kit.fit(net, TASK, problem.shards()(1), kit.work, Seed(0, client=1))
    return done.loss, net.state_dict()


# --- The same work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [SMALL, Problem("resnet18", steps=2, batch=2, clients=2, examples=4)])
def test_the_plain_loop_gives_the_bits_of_tesseras_own(problem):
    """Five steps on three batches, so over the end of an epoch."""
    (loss, state), (own_loss, own_state) = plainly_trained(problem, Variant()), fitted(problem)

    assert loss == own_loss
    assert state.keys() == own_state.keys()
    assert all(torch.equal(state[name], own_state[name]) for name in state)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("normalised on the processor, copied as floats", 0.0), ("channels_last", 1e-4), ("bf16 autocast", 0.05)],
)
def test_a_variant_computes_the_same_but_for_its_rounding(name, tolerance):
    loss, state = plainly_trained(SMALL, ON_CPU[name])
    plain_loss, plain = plainly_trained(SMALL, Variant())

    assert loss == pytest.approx(plain_loss, rel=tolerance)
    assert all(torch.allclose(state[key], plain[key], rtol=0, atol=tolerance) for key in plain)


def test_what_a_processor_can_do_is_tried_there():
    assert list(ON_CPU) == ["normalised on the processor, copied as floats", "channels_last", "bf16 autocast"]


def test_the_plain_rounds_are_those_of_fedavg():
    setup, plain = setup_of(SMALL, "cpu"), PlainRounds(SMALL, "cpu", SMALL.shards())
    unseen = Evaluation({"accuracy": 0.0, "loss": 0.0}, {"accuracy": np.zeros(TASK.classes)})
    ours = Rounds(setup, needs_of(setup), Schedule(2, 2, 2), InlineRunner(setup, SMALL.shards()), lambda _: unseen, [])
    ours.play()
    for number in range(2):
        plain.play(number)

    found = ours.method.predictor(ours.state).state_dict()
    for name, value in plain.weights.items():
        assert torch.allclose(found[name].float(), value, rtol=0, atol=1e-5), name


def test_tf32_is_set_for_a_block_alone():
    def allowed():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = allowed()
    for wanted in (True, False):
        with tf32(wanted):
            assert allowed() == (wanted, wanted)
        assert allowed() == before
    with tf32(None):
        assert allowed() == before


# --- Shares of a card -----------------------------------------------------------------------------------------------


class Card:
    """A card of 1,000 bytes as torch shows it, that keeps a process to its fraction."""

    def __init__(self, monkeypatch):
        self.fraction = 1.0
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.keep)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1000))
        monkeypatch.setattr(torch, "empty", self.allocate)

    def keep(self, fraction):
        self.fraction = fraction

    def allocate(self, count, **_):
        if count > 1000 * self.fraction:
            raise torch.OutOfMemoryError


@pytest.mark.parametrize(("share", "wanted", "got"), [(0.25, 0.5, False), (0.25, 0.1, True), (1.0, 0.5, True)])
def test_a_host_gets_what_is_within_its_share(monkeypatch, share, wanted, got):
    Card(monkeypatch)

    assert gets(SMALL, share, wanted) is got


@pytest.mark.parametrize(
    ("unbound", "much", "little", "said"),
    [
        (True, False, True, "yes: with 0.25 of the card it was given 0.1 and refused 0.5"),
        (True, True, True, "no: with 0.25 of the card it was given 0.5"),
        (True, False, False, "no: with 0.25 of the card it was refused 0.1"),
        (False, False, True, "cannot be told: 0.5 of the card is not free"),
    ],
)
def test_a_host_is_held_to_its_share_where_others_get_what_it_is_refused(unbound, much, little, said):
    assert verdict(unbound, much, little) == said


# --- What is said ---------------------------------------------------------------------------------------------------


def test_the_table_names_the_card_and_has_medians_and_ratios_to_the_plain_loop():
    rows = [
        Row("small_cnn", "plain loop", (1.0, 2.0, 4.0), (1.0, 2.0, 4.0)),
        Row("small_cnn", "bf16", (0.5, 1.5, 2.0), (1.0, 2.0, 4.0)),
        Row("small_cnn", "graph", remark="needs a card"),
    ]

    said = page({"card": "Abacus with 8.0 GiB", "torch": "2.9"}, rows).splitlines()

    assert "card Abacus with 8.0 GiB, torch 2.9" in said
    assert said[4:9] == [
        "| work | case | seconds | ratio to the plain loop | |",
        "| --- | --- | ---: | ---: | --- |",
        "| small_cnn | plain loop | 2 (1 to 4) | 1 (1 to 1) |  |",
        "| small_cnn | bf16 | 1.5 (0.5 to 2) | 0.5 (0.5 to 0.75) |  |",
        "| small_cnn | graph |  |  | needs a card |",
    ]


def test_what_was_timed_is_figures_beside_the_plain_loop():
    row = Row("small_cnn", "bf16", (0.5, 1.5), (1.0, 2.0))

    assert list(row.figures()) == [
        Figure("small_cnn, bf16", "s", (0.5, 1.5), loops=(1.0, 2.0)),
        Figure("small_cnn, bf16 against the plain loop", "times", (0.5, 0.75)),
    ]
    assert list(Row("small_cnn", "graph", remark="needs a card").figures()) == []


def test_a_case_that_fails_is_told_in_its_row_and_the_others_go_on():
    def refuse():
        raise RuntimeError("no kernel | at all\nand more")

    done = []
    rows = side_by_side("w", lambda: done.append("plain"), {"bad": refuse, "good": lambda: lambda: None}, times=2)

    assert [(row.case, len(row.seconds), row.remark) for row in rows] == [
        ("plain loop", 2, ""),
        ("bad", 0, "did not run: RuntimeError: no kernel / at all"),
        ("good", 2, ""),
    ]
    assert done == ["plain"] * 3  # the first time does not count


@pytest.mark.parametrize(("error", "code"), [(None, 0), (ValueError("no room"), 1)])
def test_the_command_writes_its_table_and_fails_where_a_case_did(tmp_path, monkeypatch, capsys, error, code):
    row = Row("small_cnn", "bf16", (1.0,), (2.0,))
    monkeypatch.setattr(gpu, "measure_all", lambda device, times: iter([failed_row(row, error) if error else row]))
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--out", str(tmp_path / "table.md")])

    assert gpu.main() == code

    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    assert "card none, the processor, torch" in (tmp_path / "table.md").read_text()


def test_without_a_card_the_command_says_what_can_be_done(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])

    assert gpu.main() == 2

    assert capsys.readouterr() == (
        "",
        "torch finds no GPU here; --device cpu tries out this benchmark's own code on the processor, where its ratios "
        "mean little\n",
    )
