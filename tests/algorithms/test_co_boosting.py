"""Co-Boosting: hard images, signed steps of the ensemble's weights, moved images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.core.schedules import cosine
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.methods.co_boosting import CoBoosting, hard, signed_step
from algorithms.methods.dense import Dense
from algorithms.methods.fedavg import FedAvg
from algorithms.parts.bank import Expert
from algorithms.parts.ensembles import Ensemble, WeightedLogits, equal_weights
from algorithms.parts.losses import kl
from algorithms.parts.synthesis import Pool
from tests.algorithms.support_ensembles import ensemble_of, tiny_inputs, tiny_kit, tiny_net
from tests.support import needs_of, play, tiny_images, tiny_setup, tiny_shards

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
    return tiny_setup("co_boosting", nets=nets, **{**SMALLEST, **changes})


def boosting(**changes) -> CoBoosting:
    return CoBoosting(CoBoosting.Config(**{**SMALLEST, **changes}), tiny_kit())


def pool_of_real_images(count: int = 60) -> Pool:
    """The tiny images, whose labels can be learnt, in the place of synthesised ones."""
    pixels, labels = tiny_images(count)
    pool = Pool()
    pool.add(torch.from_numpy(pixels) / 255, torch.from_numpy(labels))
    return pool


# --- The generator's loss -----------------------------------------------------------------------------------------


def test_an_image_weighs_by_how_unsure_the_ensemble_is_of_its_label():
    errors = -torch.tensor([0.75, 0.25, 1.0]).log()
    assert hard(errors, 1.0).tolist() == pytest.approx([0.25, 0.75, 0.0], abs=1e-6)
    assert hard(errors, 2.0).tolist() == pytest.approx([0.0625, 0.5625, 0.0], abs=1e-6)
    assert hard(errors, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_no_gradient_passes_through_the_weight_of_an_image():
    logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    errors = F.cross_entropy(logits, torch.tensor([0]), reduction="none")
    (hard(errors, 1.0) * errors).sum().backward()
    assert logits.grad.tolist() == [[-0.25, 0.25]]


def test_the_image_loss_is_hard_cross_entropy_and_minus_the_divergence_at_temperature_3():
    ensemble, student, labels = ensemble_of("mlp", "mlp"), tiny_net("mlp", 9), torch.arange(12) % 3
    weights = torch.tensor([0.3, 0.1])
    teacher = ensemble.logits(tiny_inputs()) @ torch.eye(3)
    teacher = 0.75 * teacher[:, 0] + 0.25 * teacher[:, 1]
    p = F.softmax(teacher, 1)[torch.arange(12), labels]
    expected = ((1 - p) * -p.log()).mean() - 2.0 * 9 * kl(teacher / 3, student(tiny_inputs()) / 3)
    loss = boosting(adversarial=2.0).image_loss(ensemble, ensemble.norm_gap(), weights, student)
    assert float(loss(tiny_inputs(), labels).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_without_hardness_the_images_loss_is_that_of_dense_without_its_choice_of_images():
    ensemble, student, labels = ensemble_of("small_cnn", "mlp"), tiny_net(seed=9), torch.arange(12) % 3
    terms = {"norm": 1.0, "adversarial": 0.0}
    ours = boosting(hardness=0.0, **terms).image_loss(ensemble, ensemble.norm_gap(), torch.ones(2), student)
    dense = Dense(Dense.Config(**terms), tiny_kit()).image_loss(ensemble, ensemble.norm_gap(), student)
    assert ours(tiny_inputs(), labels).item() == pytest.approx(dense(tiny_inputs(), labels).item(), rel=1e-5)


# --- The ensemble's weights ---------------------------------------------------------------------------------------


def test_a_step_moves_every_weight_by_the_same_size_towards_who_is_right():
    logits, labels = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]]), torch.tensor([0])
    after = signed_step(torch.tensor([0.5, 0.5, 0.5]), logits, labels, 0.1)
    assert after.tolist() == pytest.approx([0.6, 0.4, 0.6])


@given(st.lists(st.integers(0, 20), min_size=2, max_size=4), st.floats(0, 2), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_weights_stay_between_0_and_1(weights, size, seed):
    logits = torch.randn(5, len(weights), 3, generator=torch.Generator().manual_seed(seed))
    after = signed_step(torch.tensor(weights) / 20, logits, torch.arange(5) % 3, size)
    assert ((after >= 0) & (after <= 1)).all()


def test_weights_that_have_all_fallen_to_0_begin_again_alike():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
    assert signed_step(torch.zeros(2), logits, torch.tensor([0]), 0.1).tolist() == pytest.approx([0.6, 0.4])


def test_the_weights_are_fitted_to_the_images_of_the_epochs_before_and_the_student_to_all(monkeypatch):
    """As in the released code: with batches of 12 images, epoch e fits weights to 12 e of them, the student to all."""
    seen: dict[str, list[int]] = {"boost_weights": [], "train_epoch": []}

    def watch(name, place):
        function = getattr(CoBoosting, name)

        def watched(self, *arguments):
            seen[name].append(len(arguments[place]))
            return function(self, *arguments)

        monkeypatch.setattr(CoBoosting, name, watched)

    watch("boost_weights", 2)
    watch("train_epoch", 4)
    play(small(epochs=3), rounds=1)
    assert seen == {"boost_weights": [12, 24], "train_epoch": [12, 24, 36]}


def test_one_client_keeps_its_weight():
    logits = torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(0))
    assert signed_step(torch.tensor([1.0]), logits, torch.arange(5) % 3, 0.1).tolist() == [1.0]


def test_a_client_that_answers_at_random_loses_weight():
    trained = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=4).state.model
    two = [Expert("small_cnn", trained), Expert("small_cnn", snapshot(tiny_net(seed=11)))]
    method, weights = boosting(), torch.tensor([0.5, 0.5])
    for epoch in range(1, 6):
        weights = method.boost_weights(weights, Ensemble.of(two, method.kit), pool_of_real_images(), Seed(0), epoch)
    assert weights[0] > 0.6
    assert weights[1] < 0.4


def test_a_step_is_smaller_in_every_epoch_and_there_is_one_for_each_batch_and_pass():
    trained = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=4).state.model
    two = [Expert("small_cnn", trained), Expert("small_cnn", snapshot(tiny_net(seed=11)))]
    method = boosting(weight_passes=2, weight_decay=0.5)
    # 60 images in batches of 12 are 5 steps in each of 2 passes.
    moved = method.boost_weights(
        torch.tensor([0.5, 0.5]), Ensemble.of(two, method.kit), pool_of_real_images(), Seed(0), 3
    )
    assert moved.tolist() == pytest.approx([0.5 + 10 * 0.01 * 0.125, 0.5 - 10 * 0.01 * 0.125])


def test_the_weights_stay_alike_until_the_second_epoch():
    told = [play(small(epochs=epochs), rounds=1).metrics[0] for epochs in (1, 2)]
    assert told[0]["least_weight"] == pytest.approx(1 / 6)
    assert told[0]["largest_weight"] == pytest.approx(1 / 6)
    assert told[1]["least_weight"] < 1 / 6 < told[1]["largest_weight"]


# --- The student --------------------------------------------------------------------------------------------------


def test_pixels_are_moved_by_eta_at_most_and_in_their_own_unit():
    method, images = boosting(eta=0.03), pool_of_real_images(12).images
    teacher = WeightedLogits(ensemble_of("mlp", "small_cnn"), equal_weights(2))
    moved = method.move_images(images.clone(), teacher, torch.Generator().manual_seed(0))
    assert (moved - images).abs().max().item() == pytest.approx(0.03, abs=1e-6)
    still = boosting(eta=0.0).move_images(images.clone(), teacher, torch.Generator().manual_seed(0))
    assert torch.equal(still, images)


def test_images_are_moved_up_the_gradient_of_a_drawn_direction():
    method, images = boosting(eta=0.01), pool_of_real_images(12).images
    teacher = WeightedLogits(ensemble_of("mlp"), equal_weights(1))

    def answer(shown: torch.Tensor) -> torch.Tensor:
        direction = 2 * torch.rand(12, 3, generator=torch.Generator().manual_seed(4)) - 1
        return (direction * F.softmax(teacher((shown - 0.25) / 0.25) / 4, 1)).sum(1)

    moved = method.move_images(images.clone(), teacher, torch.Generator().manual_seed(4))
    assert (answer(moved) > answer(images)).all()


def test_passes_over_a_fixed_pool_bring_the_student_nearer_to_the_ensemble():
    method, student, ensemble = boosting(), tiny_net(seed=9), ensemble_of("small_cnn", "mlp")
    optimiser = torch.optim.SGD(student.parameters(), lr=0.05)
    losses = [
        method.train_epoch(student, optimiser, ensemble, torch.ones(2), pool_of_real_images(), Seed(0), epoch)
        for epoch in range(8)
    ]
    assert losses[-1] < losses[0] / 2


def test_the_students_batch_statistics_follow_the_images_of_its_own_steps_alone():
    assert play(small(epochs=2), rounds=1).state.model["body.1.num_batches_tracked"] == 1 + 2


def test_the_students_rate_falls_along_a_cosine_over_the_epochs(monkeypatch):
    rates, taught = [], CoBoosting.train_epoch

    def watched(self, student, optimiser, *rest):
        rates.append(optimiser.param_groups[0]["lr"])
        return taught(self, student, optimiser, *rest)

    monkeypatch.setattr(CoBoosting, "train_epoch", watched)
    play(small(epochs=4), rounds=1)
    assert rates == pytest.approx([0.01 * cosine(epoch, 4) for epoch in range(4)])


# --- Rounds -------------------------------------------------------------------------------------------------------


def test_the_clients_step_is_that_of_fedavg_itself():
    assert CoBoosting.train is FedAvg.train


def test_without_epochs_it_is_fedavg_to_the_bit():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=2).state.model
    same = play(small(epochs=0, start="average"), rounds=2).state.model
    assert all(torch.equal(value, same[name]) for name, value in plain.items())


def test_a_student_of_its_own_architecture_is_taught_by_clients_of_two_others():
    played = play(small(nets=("mlp", "small_cnn"), student="cnn2"), rounds=1, shards=tiny_shards(6))
    assert played.state.net == "cnn2"
    assert played.metrics[0]["pool"] == 2 * 12


def test_batch_normalisation_is_needed_only_where_its_term_has_a_weight():
    for norm, count in ((0.0, 0), (1.0, 1)):
        setup = small(nets=("mlp",), norm=norm)
        assert len(needs_of(setup).refusals) == count
