"""DENSE: the generator's loss, the growing pool, the student, and what a run of several rounds is."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.methods.dense import Dense, disagreement
from algorithms.methods.fedavg import FedAvg
from algorithms.parts import one_shot
from algorithms.parts.bank import Expert
from algorithms.parts.losses import kl
from algorithms.parts.synthesis import Pool, synthesise_batch
from tests.algorithms.support_ensembles import ensemble_of, hooks_on, tiny_inputs, tiny_kit, tiny_net
from tests.algorithms.support_methods import Federation
from tests.support import needs_of, play, tiny_setup, tiny_shards

SMALLEST = {
    "epochs": 2,
    "latent": 4,
    "generator_width": 4,
    "generator_steps": 2,
    "synthesis_batch": 12,
    "student_batch": 12,
}
ON_DIGITS = {"start": "average", "epochs": 4, "generator_steps": 10, "synthesis_batch": 64, "student_batch": 64}


def small(nets: tuple[str, ...] = ("small_cnn",), **changes):
    return tiny_setup("dense", nets=nets, **{**SMALLEST, **changes})


def dense(**changes) -> Dense:
    return Dense(Dense.Config(**{**SMALLEST, **changes}), tiny_kit())


# --- The generator's loss -----------------------------------------------------------------------------------------


def test_the_disagreement_counts_images_that_student_and_ensemble_classify_otherwise():
    even, sure = [0.0, 0.0], [0.0, math.log(3)]
    teacher = torch.tensor([sure, [math.log(3), 0.0], sure, sure])
    student = torch.tensor([[1e-6, 0.0], [math.log(9), 0.0], even, sure])
    of_first = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    # The third student is undecided, and torch's argmax takes the first of equals: it counts as well.
    assert disagreement(teacher, student).item() == pytest.approx(-2 * of_first / 4, abs=1e-5)


def test_there_is_no_disagreement_where_all_answers_are_alike():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert disagreement(logits, 2 * logits).item() == 0


def test_no_gradient_passes_through_the_choice_of_images():
    student = torch.tensor([[1.0, 0.0]], requires_grad=True)
    disagreement(torch.tensor([[2.0, 0.0]]), student).backward()
    assert student.grad.tolist() == [[0.0, 0.0]]


def test_the_image_loss_is_the_sum_of_its_three_terms():
    ensemble, student, labels = ensemble_of("small_cnn", "small_cnn"), tiny_net(seed=9), torch.arange(12) % 3

    def value(**weights) -> float:
        off = {"label": 0.0, "norm": 0.0, "adversarial": 0.0}
        method = dense(**{**off, **weights})
        return float(method.image_loss(ensemble, ensemble.norm_gap(), student)(tiny_inputs(), labels).detach())

    logits, gap = ensemble.logits(tiny_inputs()).mean(1), ensemble.norm_gap()
    with gap.watching():
        ensemble.logits(tiny_inputs())
    parts = [F.cross_entropy(logits, labels), gap.value(), disagreement(logits, student(tiny_inputs()))]
    assert value(label=1.0) == pytest.approx(parts[0].item(), rel=1e-5)
    assert value(norm=1.0) == pytest.approx(parts[1].item(), rel=1e-5)
    assert value(adversarial=1.0) == pytest.approx(parts[2].item(), rel=1e-5)
    assert value(label=2.0, norm=3.0, adversarial=4.0) == pytest.approx(
        (2 * parts[0] + 3 * parts[1] + 4 * parts[2]).item(), rel=1e-5
    )


# --- The server's phase -------------------------------------------------------------------------------------------


def test_the_pool_holds_one_batch_for_each_epoch():
    assert play(small(epochs=3), rounds=1).metrics[0]["pool"] == 3 * 12


def test_hooks_are_taken_away_after_every_step(monkeypatch):
    ensembles = []

    class Seen(one_shot.Ensemble):
        def __init__(self, *args):
            super().__init__(*args)
            ensembles.append(self)

    monkeypatch.setattr(one_shot, "Ensemble", Seen)
    play(small(), rounds=1)
    assert [hooks_on(net) for net in ensembles[0]._nets] == [0] * 6


def test_the_clients_networks_stay_as_they_were_sent():
    method, sent = dense(), [Expert("small_cnn", snapshot(tiny_net(seed=seed))) for seed in range(2)]
    before = [{name: value.clone() for name, value in member.state.items()} for member in sent]
    seen = []
    method.kit.show = lambda stage, predictor: seen.append(predictor)
    state = method.start(tiny_setup("dense", nets=("small_cnn",)).clients)
    method.distil_ensemble(state, sent, Seed(0))
    held = [snapshot(net) for net in seen[1].voters._nets]
    for states in (held, [member.state for member in sent]):
        assert all(torch.equal(states[k][name], before[k][name]) for k in range(2) for name in before[k])


def test_synthesis_leaves_the_student_as_it_was():
    method, student = dense(), tiny_net(seed=9)
    ensemble, before = ensemble_of("small_cnn"), snapshot(student)
    loss = method.image_loss(ensemble, ensemble.norm_gap(), student.eval())
    synthesise_batch(method.config, method.kit, Seed(0), 0, loss)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(student).items())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_students_batch_statistics_follow_the_images_of_its_own_steps_alone():
    # A pass of one batch of 12 in the first epoch and of two in the second; the generators' steps are not among them.
    assert play(small(epochs=2), rounds=1).state.model["body.1.num_batches_tracked"] == 1 + 2


def filled_pool() -> Pool:
    pool = Pool()
    pool.add(torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(24, dtype=torch.int64))
    return pool


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_passes_over_a_fixed_pool_bring_the_student_nearer_to_the_ensemble(temperature):
    method = dense(temperature=temperature, student_lr=0.02)
    ensemble, student, pool = ensemble_of("small_cnn", "mlp"), tiny_net(seed=9), filled_pool()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.02)
    losses = [method.train_epoch(student, optimiser, ensemble, pool, Seed(0), epoch) for epoch in range(8)]
    assert losses[-1] < losses[0] / 2


def test_the_students_loss_is_the_divergence_at_its_temperature_times_its_square():
    ensemble, pool = ensemble_of("mlp", "mlp"), filled_pool()
    inputs = tiny_kit().task.from_signed(2 * pool.images - 1)
    teacher, student = ensemble.logits(inputs).mean(1), tiny_net("mlp", 9)
    for tau in (1.0, 5.0):
        optimiser = torch.optim.SGD(student.parameters(), lr=0.0)
        loss = dense(temperature=tau, student_batch=24).train_epoch(student, optimiser, ensemble, pool, Seed(0), 0)
        assert loss == pytest.approx((tau**2 * kl(teacher / tau, student(inputs) / tau)).item(), rel=1e-4)


# --- Rounds -------------------------------------------------------------------------------------------------------


def test_the_clients_step_is_that_of_fedavg_itself():
    assert Dense.train is FedAvg.train


def test_without_epochs_it_is_fedavg_to_the_bit():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=3)
    same = play(small(epochs=0, start="average"), rounds=3)
    for one, other in zip(plain.states, same.states, strict=True):
        assert all(torch.equal(value, other.model[name]) for name, value in one.model.items())


def test_rounds_before_the_last_are_fedavg_and_the_last_ends_in_a_distillation():
    plain, played = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=3), play(small(), rounds=3)
    same = [
        all(torch.equal(value, other.model[name]) for name, value in one.model.items())
        for one, other in zip(plain.states, played.states, strict=True)
    ]
    assert same == [True, True, False]
    assert [bool(metrics) for metrics in played.metrics] == [False, False, True]


def test_every_round_can_end_in_a_distillation():
    assert all(play(small(when="every round"), rounds=2).metrics)


def test_the_student_starts_from_fresh_weights_or_from_the_average():
    fresh, average = (
        play(small(epochs=1, student_lr=1e-12, start=start), rounds=1) for start in ("initial", "average")
    )
    initial = fresh.method.kit.initial("small_cnn")
    assert torch.allclose(fresh.state.model["head.weight"], initial["head.weight"])
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=1)
    assert torch.allclose(average.state.model["head.weight"], plain.state.model["head.weight"])


def test_a_student_of_its_own_architecture_is_taught_by_clients_of_two_others():
    played = play(small(nets=("mlp", "small_cnn"), student="cnn2"), rounds=2)
    assert played.state.net == "cnn2"
    assert sorted(played.state.others) == ["mlp", "small_cnn"]
    assert played.method.predictor(played.state)(tiny_inputs()).shape == (12, 3)


def test_networks_of_one_kind_are_averaged_apart_from_the_others():
    mixed = play(small(nets=("mlp", "small_cnn"), student="cnn2"), rounds=1).state.others["mlp"]
    federation = Federation.inline(tiny_setup("fedavg", nets=("mlp",)), tiny_shards(), rounds=1)
    alone = federation.play(0, asked=[0, 2, 4]).state.model
    assert all(torch.equal(value, alone[name]) for name, value in mixed.items())


# --- Refusals -----------------------------------------------------------------------------------------------------


def reasons(nets: tuple[str, ...], **changes) -> str:
    setup = small(nets, **changes)
    task = dataclasses.replace(setup.task, shape=changes.pop("shape", setup.task.shape))
    return "; ".join(needs_of(dataclasses.replace(setup, task=task)).refusals)


def test_a_loss_over_batch_normalisation_is_refused_where_no_client_has_any():
    assert "mlp" in reasons(("mlp",))
    assert "norm: 0" in reasons(("mlp",))
    assert reasons(("mlp",), norm=0.0) == ""
    assert reasons(("mlp", "small_cnn"), student="mlp") == ""


def test_an_unknown_student_is_refused_by_name():
    assert "small_cnm" in reasons(("small_cnn",), student="small_cnm")


def test_what_the_server_holds_is_said_beforehand():
    setup = small(("mlp", "small_cnn"), student="mlp")
    found = {stored.name: stored.count for stored in needs_of(setup).storage}
    assert found == {"networks mlp of clients": 3, "networks small_cnn of clients": 3}
