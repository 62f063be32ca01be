"""FedSDR: two branches, of which one stays at home. The numbers are those of the specification's invariants."""

import dataclasses

import pytest
import torch

from actors.runner import InlineRunner
from algorithms.core.states import snapshot
from algorithms.core.training import Work
from algorithms.methods import fedsdr
from algorithms.methods.fedsdr import FedSDR
from tests.algorithms.support_language import language_setup, language_shards
from tests.algorithms.support_methods import Federation, WatchfulRunner
from tests.support import play

SMALLEST = {"rewrites_at_once": 5, "reset_s": True, "steps_s": 1}


def model_of(name, rounds=3, clients=6, setup=None, **config):
    setup = setup or language_setup(name, clients=clients, **config)
    return play(setup, rounds=rounds, shards=language_shards(clients)).state.model


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_1_without_s_in_the_forward_pass_r_is_fedits_to_the_bit(monkeypatch):
    monkeypatch.setattr(FedSDR, "local_weight", 0.0)
    # Nothing that S is trained on reaches a loss, so that its gradient is none.
    monkeypatch.setattr(FedSDR, "_smooth", lambda self, *args: fedsdr.Fit(0.0, 0, 0))
    assert same(model_of("fedsdr"), model_of("fedit"))


def test_2_without_steps_of_s_and_with_b_0_it_is_fedit_to_the_bit():
    assert same(model_of("fedsdr", steps_s=0, reset_s=True), model_of("fedit"))


def test_with_steps_of_s_it_is_another_method():
    assert not same(model_of("fedsdr"), model_of("fedit"))


@pytest.mark.parametrize("rank", [None, 2, 7])
def test_4_no_tensor_of_s_is_sent_whatever_its_rank(rank):
    sent = []
    for name, config in (("fedsdr", {"rank_s": rank}), ("fedit", {})):
        runner = WatchfulRunner(language_setup(name, **config), language_shards())
        played = play(language_setup(name, **config), runner, rounds=2)
        sent.append(
            {
                "bytes": [e.bytes for e in played.book.entries if e.kind == "adapters"],
                "names": played.state.model.keys(),
            }
        )
    assert sent[0] == sent[1]


def test_5_each_stage_changes_its_own_branch_alone(monkeypatch):
    changes, fit = [], fedsdr.FedSDR._smooth

    def watched(stage):
        through = getattr(FedSDR, stage)

        def run(self, client, net, local, *rest):
            before = snapshot(net), snapshot(local)
            result = through(self, client, net, local, *rest)
            changes.append((stage, not same(before[0], snapshot(net)), not same(before[1], snapshot(local))))
            return result

        monkeypatch.setattr(FedSDR, stage, run)

    watched("_smooth")
    watched("_rectify")
    model_of("fedsdr", rounds=2, cycles=2)
    assert fit
    assert {change for change in changes if change[0] == "_smooth"} == {("_smooth", False, True)}
    assert {change for change in changes if change[0] == "_rectify"} == {("_rectify", True, False)}
    assert len(changes) == 2 * 6 * 2 * 2


def test_8_one_client_alone_gives_the_server_its_own_r():
    """With one client, weights by examples and weights alike are one."""
    assert same(model_of("fedsdr", clients=1), model_of("fedsdr", clients=1, weights="uniform"))


def test_10_without_steps_of_r_nothing_that_is_sent_depends_on_the_rewrites(monkeypatch):
    monkeypatch.setattr(FedSDR, "_rectify", lambda self, *args: fedsdr.Fit(0.0, 0, 0))
    start = Federation.inline(language_setup("fedsdr"), language_shards(), 2)
    before = dict(start.state.model)
    after = start.play_all().state.model
    assert same(before, after)


def test_s_stays_as_it_is_from_round_to_round_unless_it_is_reset():
    setup = language_setup("fedsdr")
    runner = InlineRunner(setup, language_shards())
    federation = Federation(setup, runner, 3)
    federation.play(0, [0, 1])
    first = local_of(runner, 0)
    federation.play(1, [1, 2])
    assert same(local_of(runner, 0), first)
    assert all(bool(value.any()) for name, value in first.items() if name.endswith("lora_B"))
    federation.play(2, [0, 1])
    assert not same(local_of(runner, 0), first)


def local_of(runner, client):
    memory = runner.memories((client,))[client]
    return {name: value for name, value in memory.items() if name.startswith("local/")}


def test_every_client_has_an_a_of_its_own_for_s():
    setup = language_setup("fedsdr", steps_s=0)
    runner = InlineRunner(setup, language_shards())
    Federation(setup, runner, 1).play(0)
    one, other = (local_of(runner, client) for client in (0, 1))
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("lora_A"))


def test_an_equal_total_takes_half_the_steps_in_each_stage():
    work = Work(steps=4, epochs=None, batch=4, lr=0.05)
    steps = {}
    for budget in ("equal_steps", "equal_total"):
        setup = dataclasses.replace(language_setup("fedsdr", budget=budget), work=work)
        metrics = play(setup, rounds=1, shards=language_shards()).book.metrics
        steps[budget] = {m.value for m in metrics if m.name == "steps"}
    assert steps == {"equal_steps": {4}, "equal_total": {2}}


def test_the_gap_between_training_and_use_is_told_by_client():
    metrics = play(language_setup("fedsdr", steps_s=3), rounds=2, shards=language_shards()).book.metrics
    last = {(m.client, m.name): m.value for m in metrics if m.round == 1}
    assert all(last[client, "loss_personal"] < last[client, "loss_global"] for client in range(6))


def test_s_is_averaged_too_where_that_is_asked_for():
    played = play(language_setup("fedsdr", share_s=True), rounds=2, shards=language_shards())
    plain = play(language_setup("fedit"), rounds=1, shards=language_shards())
    model = played.state.model
    assert {name for name in model if not name.startswith("S/")} == plain.state.model.keys()
    assert {name.removeprefix("S/") for name in model if name.startswith("S/")} == plain.state.model.keys()
    ids = torch.tensor([[5, 9, 77, 300, 8]])
    with torch.no_grad():
        both = played.method.predictor(played.state)(ids)
        net = played.method.kit.network(played.state.net)
        alone = net(ids)
    assert not torch.equal(both, alone)
