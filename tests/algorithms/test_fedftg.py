"""FedFTG: what the generator seeks, what the student learns, and the deviations of the released code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import algorithms.methods.fedftg as module
from algorithms.core.states import snapshot
from algorithms.methods.fedftg import FedFTG, image_loss, student_loss
from algorithms.nets.server_generators import ConditionalGenerator
from algorithms.parts.bank import Expert
from algorithms.parts.ensembles import Ensemble
from algorithms.parts.losses import kl_each
from tests.algorithms.support_ensembles import members, tiny_kit, tiny_net
from tests.algorithms.support_methods import Federation, Sizes, Travel, as_fedavg, by_class
from tests.support import needs_of, play, tiny_setup

SMALLEST = {"server_steps": 2, "student_steps": 2, "batch": 12, "latent": 4, "generator_width": 4}
ON_DIGITS = {"server_steps": 5, "batch": 32, "student_lr": 0.01}


def travels(size: Sizes) -> Travel:
    """FedAvg's bytes and three counts of 8 bytes."""
    return {**as_fedavg(size), ("up", "label_counts"): size.rounds * 8 * 3}


def small(**changes):
    return tiny_setup("fedftg", nets=("small_cnn",), **{**SMALLEST, **changes})


def config(**changes) -> FedFTG.Config:
    return FedFTG.Config(**{**SMALLEST, **changes})


STUDENT = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
TEACHER = torch.tensor([[math.log(3), 0.0], [0.0, 2.0]])
LABELS, WEIGHTS = torch.tensor([0, 1]), torch.tensor([0.25, 1.0])


# --- Losses -------------------------------------------------------------------------------------------------------


def test_the_images_loss_is_the_weighted_cross_entropy_less_the_weighted_divergence():
    cross = [-math.log(0.75), math.log(1 + math.exp(-2))]
    apart = kl_each(TEACHER, STUDENT).tolist()
    for weight in (1.0, 3.0):
        expected = sum(a * (weight * c - d) for a, c, d in zip(WEIGHTS.tolist(), cross, apart, strict=True)) / 2
        found = image_loss(STUDENT, TEACHER, LABELS, WEIGHTS, config(cls=weight))
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_a_student_like_its_teacher_leaves_only_the_cross_entropy():
    assert image_loss(TEACHER, TEACHER, LABELS, WEIGHTS, config(cls=0.0)).item() == pytest.approx(0, abs=1e-7)


def test_the_released_discrepancy_is_the_mean_distance_of_logits_and_constant_in_the_teacher():
    teacher = TEACHER.clone().requires_grad_()
    loss = image_loss(STUDENT, teacher, LABELS, WEIGHTS, config(cls=0.0, deviations=("l1_discrepancy",)))
    assert loss.item() == pytest.approx(-(0.25 * math.log(3) / 2 + 1.0 * (1 + 3) / 2) / 2)
    (gradient,) = torch.autograd.grad(loss, teacher)
    assert not gradient.any()


def test_the_released_weights_of_the_cross_entropy_act_through_their_mean():
    each = F.cross_entropy(TEACHER, LABELS, reduction="none")
    plain, released = (
        image_loss(TEACHER, TEACHER, LABELS, WEIGHTS, config(deviations=deviations)).item()
        for deviations in ((), ("averaged_weights",))
    )
    assert plain == pytest.approx(((each * WEIGHTS).sum() / 2).item())
    assert released == pytest.approx((each.mean() * 0.625).item())


def test_the_students_loss_is_the_cross_entropy_with_the_teachers_probabilities():
    target = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    expected = (math.log(2) + 2 + math.log(1 + math.exp(-2))) / 2
    assert student_loss(STUDENT, target).item() == pytest.approx(expected)
    assert student_loss(STUDENT, target, ("divided_by_classes",)).item() == pytest.approx(expected / 2)


def test_the_students_loss_has_the_gradient_of_the_divergence_from_the_teacher():
    student = STUDENT.clone().requires_grad_()
    (ours,) = torch.autograd.grad(student_loss(student, F.softmax(TEACHER, 1)), student)
    (divergence,) = torch.autograd.grad(kl_each(TEACHER, student).mean(), student)
    assert torch.allclose(ours, divergence, atol=1e-6)


# --- The server's phase -------------------------------------------------------------------------------------------


def contest(experts: list[Expert], **changes) -> module._Contest:
    torch.manual_seed(0)
    generator = ConditionalGenerator((1, 8, 8), 3, latent=4, width=4)
    return module._Contest(config(**changes), generator, tiny_net(seed=9), Ensemble.of(experts, tiny_kit()), fade=1.0)


def batch(clients: int, size: int = 12) -> module._Batch:
    z = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    return module._Batch(z, torch.arange(size) % 3, torch.full((size, clients), 1 / clients))


def test_seeking_moves_the_generator_and_learning_the_student_and_neither_the_other_or_the_clients():
    game = contest(members("small_cnn", "small_cnn"))
    nets = {"generator": game.generator, "student": game.student, "clients": game.ensemble._nets}

    def moved(act) -> set[str]:
        before = {name: snapshot(net) for name, net in nets.items()}
        act(batch(2))
        return {
            name
            for name, net in nets.items()
            if not all(torch.equal(value, before[name][entry]) for entry, value in snapshot(net).items())
        }

    assert moved(game.seek) == {"generator"}
    assert moved(game.learn) == {"student"}


def test_the_generator_takes_one_step_for_each_client_and_round():
    for rounds, expected in ((1, 2), (3, 6)):
        game, steps = contest(members("mlp", "mlp"), generator_steps=rounds), []
        game._by_generator.register_step_post_hook(lambda *_, steps=steps: steps.append(1))
        game.seek(batch(2))
        assert len(steps) == expected


def test_a_student_learns_from_one_client_the_clients_own_softmax(monkeypatch):
    targets = []

    def watched(student, target, deviations):
        targets.append(target)
        return student_loss(student, target, deviations)

    monkeypatch.setattr(module, "student_loss", watched)
    game = contest(members("mlp"))
    game.learn(batch(1))
    images = game.generator.eval()(batch(1).z, batch(1).labels)
    assert torch.allclose(targets[0], F.softmax(tiny_net("mlp", 0)(images), 1), atol=1e-6)


def test_clients_teach_each_image_by_their_share_of_its_class(monkeypatch):
    targets = []
    monkeypatch.setattr(
        module, "student_loss", lambda s, target, d: targets.append(target) or student_loss(s, target, d)
    )
    game, asked = contest(members("mlp", "mlp")), batch(2)
    asked.weights[:] = torch.tensor([1.0, 0.0])
    asked.weights[asked.labels == 2] = torch.tensor([0.0, 1.0])
    game.learn(asked)
    images = game.generator.eval()(asked.z, asked.labels)
    first, second = (F.softmax(tiny_net("mlp", seed)(images), 1) for seed in (0, 1))
    assert torch.allclose(targets[0], torch.where((asked.labels == 2)[:, None], second, first), atol=1e-6)


def test_learning_on_a_fixed_batch_brings_the_student_nearer_to_its_teachers():
    game = contest(members("small_cnn", "mlp"), student_steps=30, student_lr=0.02)
    losses = [game.learn(batch(2)) for _ in range(3)]
    assert losses[-1] < losses[0]


def test_the_students_batch_statistics_stay_those_of_the_average_unless_as_released():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=1).state.model
    for deviations in ((), ("trained_norm",)):
        model = play(small(deviations=deviations), rounds=1).state.model
        same = all(torch.equal(model[name], plain[name]) for name in model if "running" in name)
        assert same == (not deviations)


# --- Rounds -------------------------------------------------------------------------------------------------------


def test_without_server_steps_it_is_fedavg_to_the_bit():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=2).state.model
    same = play(small(server_steps=0), rounds=2).state.model
    assert all(torch.equal(value, same[name]) for name, value in plain.items())


def test_labels_are_asked_as_often_as_the_clients_hold_them_and_no_others(monkeypatch):
    asked = []
    sought = module._Contest.seek
    monkeypatch.setattr(module._Contest, "seek", lambda self, b: asked.append(b) or sought(self, b))
    # Clients 0 and 3 hold class 0 alone, clients 1 and 4 class 1: nobody who is asked has class 2.
    Federation.inline(small(), by_class(), 1).play(0, asked=[0, 1, 3])
    labels = torch.cat([one.labels for one in asked])
    held = sum(by_class()(k).label_counts(3) for k in (0, 1, 3))
    assert torch.bincount(labels, minlength=3).tolist() == pytest.approx((held / held.sum() * 24).tolist(), abs=1)
    assert (labels < 2).all()


def test_clients_weigh_in_a_batch_by_their_share_of_its_labels(monkeypatch):
    asked, sought = [], module._Contest.seek
    monkeypatch.setattr(module._Contest, "seek", lambda self, b: asked.append(b) or sought(self, b))
    # The first client asked holds class 0 alone, the second class 1.
    Federation.inline(small(), by_class(), 1).play(0, asked=[0, 1])
    assert all(torch.equal(one.weights, F.one_hot(one.labels, 2).float()) for one in asked)


def test_what_a_client_sends_up_is_the_model_its_size_and_eight_bytes_for_each_class():
    book = play(small(), rounds=1).book
    up = {entry.kind: entry.bytes for entry in book.entries if entry.direction == "up" and entry.client == 0}
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=1).book
    model = next(entry.bytes for entry in plain.entries if entry.kind == "weights")
    assert up == {"weights": model, "examples": 8, "label_counts": 8 * 3}


def test_both_rates_fall_from_round_to_round(monkeypatch):
    fades = []

    class Watched(module._Contest):
        def __init__(self, *arguments):
            fades.append(arguments[-1])
            super().__init__(*arguments)

    monkeypatch.setattr(module, "_Contest", Watched)
    play(small(decay=0.5), rounds=3)
    assert fades == [1.0, 0.5, 0.25]
    rates = [optimiser.param_groups[0]["lr"] for optimiser in rates_of(fade=0.5)]
    assert rates == [0.01 * 0.5, 0.1 * 0.5]


def rates_of(fade: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    game = module._Contest(
        config(), ConditionalGenerator((1, 8, 8), 3), tiny_net(), Ensemble.of(members("mlp"), tiny_kit()), fade
    )
    return game._by_generator, game._by_student


def test_the_generator_goes_on_from_round_to_round():
    first, second = play(small(), rounds=2).states
    assert not torch.equal(first.generator["from_noise.weight"], second.generator["from_noise.weight"])
    assert second.generator["layers.1.num_batches_tracked"] == 2 * first.generator["layers.1.num_batches_tracked"]


def test_clients_of_several_networks_are_refused():
    setup = tiny_setup("fedftg", nets=("mlp", "small_cnn"), **SMALLEST)
    (reason,) = needs_of(setup).refusals
    assert "mlp, small_cnn" in reason
