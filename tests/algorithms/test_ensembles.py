"""Networks side by side, and images made by training a generator against them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from algorithms.core.distillation import Distillation, Learner, labelled_batch
from algorithms.core.schedules import cosine
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.methods.co_boosting import CoBoosting
from algorithms.methods.dense import Dense
from algorithms.nets import NetworkError
from algorithms.nets.server_generators import ConditionalGenerator, MergedGenerator, UpsamplingGenerator
from algorithms.parts.ensembles import Ensemble, WeightedLogits, equal_weights, normalise, weighted_sum
from algorithms.parts.losses import kl, kl_each
from algorithms.parts.synthesis import Pool, SynthesisConfig, as_inputs, image_refusals, synthesise_batch
from algorithms.tasks.images import Augment, ImageTask
from tests.algorithms.support_ensembles import ensemble_of, members, tiny_inputs, tiny_kit, tiny_net
from tests.support import tiny_task

SMALL = SynthesisConfig(latent=4, generator_width=4, generator_steps=3, synthesis_batch=10)


# --- The ensemble -------------------------------------------------------------------------------------------------


def test_an_ensemble_answers_with_every_networks_own_logits():
    logits = ensemble_of("mlp", "small_cnn").logits(tiny_inputs())
    for position, (name, seed) in enumerate([("mlp", 0), ("small_cnn", 1)]):
        assert torch.equal(logits[:, position], tiny_net(name, seed)(tiny_inputs()))


def test_the_mean_of_logits_does_not_know_the_order_of_the_clients():
    first, second, third = members("small_cnn", "mlp", "small_cnn")
    means = [
        Ensemble.of(order, tiny_kit()).logits(tiny_inputs()).mean(1)
        for order in ([first, second, third], [third, first, second])
    ]
    assert torch.allclose(*means, atol=1e-6)


def test_the_teacher_of_one_client_is_that_client():
    assert torch.allclose(
        WeightedLogits(ensemble_of("mlp"), equal_weights(1))(tiny_inputs()), tiny_net("mlp")(tiny_inputs())
    )


def test_weights_of_a_teacher_count_relative_to_their_sum():
    ensemble, weights = ensemble_of("mlp", "mlp"), torch.tensor([0.3, 0.1])
    logits = ensemble.logits(tiny_inputs())
    expected = 0.75 * logits[:, 0] + 0.25 * logits[:, 1]
    for scale in (1.0, 2.5):
        teacher = WeightedLogits(ensemble, normalise(scale * weights))
        assert torch.allclose(teacher(tiny_inputs()), expected, atol=1e-6)


def test_weights_that_are_all_0_count_alike():
    assert normalise(torch.zeros(4)).tolist() == [0.25] * 4


def test_values_are_mixed_by_one_weight_for_all_images_or_one_for_each():
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    assert weighted_sum(values, torch.tensor([1.0, 10.0])).tolist() == [[31.0, 42.0], [75.0, 86.0]]
    assert weighted_sum(values, torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [[1.0, 2.0], [7.0, 8.0]]


def test_gradients_reach_the_images_and_not_the_networks():
    ensemble, images = ensemble_of("small_cnn", "mlp"), tiny_inputs().requires_grad_()
    ensemble.logits(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in ensemble._nets.parameters())


def test_a_teacher_put_in_train_mode_leaves_its_networks_in_eval_mode():
    teacher = WeightedLogits(ensemble_of("small_cnn"), equal_weights(1))
    before = snapshot(teacher.voters._nets)
    teacher.train()(tiny_inputs())
    assert list(teacher.parameters()) == []
    assert all(torch.equal(value, before[name]) for name, value in snapshot(teacher.voters._nets).items())


def gap_on(ensemble: Ensemble, images: torch.Tensor) -> float:
    gap = ensemble.norm_gap()
    with gap.watching():
        ensemble.logits(images)
    return float(gap.value())


def test_the_norm_gap_of_an_ensemble_is_the_mean_over_the_networks_that_have_batch_normalisation():
    one, other, bare = members("small_cnn", "small_cnn", "mlp")
    alone = [gap_on(Ensemble.of([member], tiny_kit()), tiny_inputs()) for member in (one, other)]
    together = gap_on(Ensemble.of([one, bare, other], tiny_kit()), tiny_inputs())
    assert together == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_the_norm_gap_is_0_where_the_batch_has_the_statistics_that_are_remembered():
    (member,) = members("small_cnn")
    ensemble = Ensemble.of([member], tiny_kit())
    for layer in ensemble._nets.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(remember)
    ensemble.logits(tiny_inputs())
    assert gap_on(ensemble, tiny_inputs()) == pytest.approx(0, abs=1e-6)


def remember(layer: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
    """Take the batch's own statistics for those that are remembered."""
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
    layer.running_var.copy_(variance)
    layer.running_mean.copy_(mean)


def test_the_divergence_of_each_image_has_the_divergence_of_the_batch_as_mean():
    teacher, student = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    assert kl_each(teacher, student).mean().item() == pytest.approx(kl(teacher, student).item(), rel=1e-5)


# --- Synthesis ----------------------------------------------------------------------------------------------------


def towards(value: float):
    """A loss that is smallest for images whose network inputs all have one value."""
    return lambda inputs, labels: (inputs - value).square().mean()


def test_synthesised_images_lie_between_0_and_1_and_have_labels_of_the_task():
    images, labels = synthesise_batch(SMALL, tiny_kit(), Seed(0), 0, towards(0.0))
    assert images.shape == (10, 1, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1
    assert set(labels.tolist()) <= {0, 1, 2}
    assert not images.requires_grad


def test_synthesis_follows_the_seed_and_the_number_of_the_batch_alone():
    def images(index: int, seed: int) -> torch.Tensor:
        torch.rand(1)
        return synthesise_batch(SMALL, tiny_kit(), Seed(seed), index, towards(0.0))[0]

    assert torch.equal(images(0, 1), images(0, 1))
    assert not torch.equal(images(0, 1), images(1, 1))
    assert not torch.equal(images(0, 1), images(0, 2))


def test_the_images_of_the_step_with_the_smallest_loss_are_kept():
    seen = []

    def loss(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(inputs.detach())
        return 1e-3 * inputs.mean() + [3.0, 1.0, 2.0][len(seen) - 1]

    images, _ = synthesise_batch(SMALL, tiny_kit(), Seed(0), 0, loss)
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(as_inputs(tiny_task(), images, None), seen[1])


@pytest.mark.parametrize(("method", "augments"), [(Dense, True), (CoBoosting, False)])
def test_the_generator_of_dense_is_judged_by_augmented_images_and_that_of_co_boosting_by_its_own(
    method, augments, monkeypatch
):
    """As in their released codes. Flipped at random, twelve images are as they were in one of 4,096 draws."""
    kit, seen, pools = replace(tiny_kit(), task=replace(tiny_task(), augment=Augment(flip=True))), [], []
    one_shot = method(method.Config(epochs=1, latent=4, generator_width=4, generator_steps=3, synthesis_batch=12), kit)
    loss_of, add = method.image_loss, Pool.add

    def image_loss(self, *judges):
        loss = loss_of(self, *judges)
        return lambda inputs, labels: seen.append(inputs.detach()) or loss(inputs, labels)

    monkeypatch.setattr(method, "image_loss", image_loss)
    monkeypatch.setattr(Pool, "add", lambda pool, images, labels: pools.append(images) or add(pool, images, labels))
    one_shot.teach(tiny_net(seed=9), ensemble_of("small_cnn"), Seed(0))

    (images,) = pools
    own = [torch.equal(as_inputs(kit.task, images, None), inputs) for inputs in seen]
    assert (len(seen), any(own)) == (3, not augments)


def test_training_the_generator_makes_the_loss_smaller():
    losses = []

    def loss(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses.append(float(towards(0.5)(inputs, labels).detach()))
        return towards(0.5)(inputs, labels)

    synthesise_batch(
        SynthesisConfig(latent=4, generator_width=4, generator_steps=40, generator_lr=1e-2),
        tiny_kit(),
        Seed(0),
        0,
        loss,
    )
    assert losses[-1] < losses[0] / 2


def test_generated_images_become_inputs_as_pixels_do():
    task = tiny_task()
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, *task.shape)
    assert torch.allclose(as_inputs(task, pixels / 255, None), task.normalise(pixels), atol=1e-6)


def test_what_judges_sees_images_augmented_as_training_images_are():
    task = ImageTask(("a", "b"), (1, 8, 8), (0.5,), (0.5,), Augment(crop=2))
    images, draws = torch.ones(20, 1, 8, 8), torch.Generator().manual_seed(0)
    seen = as_inputs(task, images, draws)
    assert set(seen.unique().tolist()) == {-1.0, 1.0}


# --- The pool -----------------------------------------------------------------------------------------------------


def pool_of(*values: float) -> Pool:
    pool = Pool()
    for number, value in enumerate(values):
        pool.add(torch.full((1, 1, 2, 2), value), torch.tensor([number]))
    return pool


def test_one_pass_over_the_pool_shows_every_image_once_with_its_label():
    pool = pool_of(0.1, 0.2, 0.3, 0.4, 0.5)
    parts = list(pool.batches(2, torch.Generator().manual_seed(0)))
    assert [len(labels) for _, labels in parts] == [2, 3]
    shown = {
        int(label): float(image.mean()) for images, labels in parts for image, label in zip(images, labels, strict=True)
    }
    assert shown == pytest.approx({0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5})


def test_images_are_kept_as_they_are_and_not_rounded_to_8_bits():
    assert pool_of(0.12345).images.unique().tolist() == pytest.approx([0.12345], abs=1e-8)


# --- The generators -----------------------------------------------------------------------------------------------


def test_the_generator_of_dense_has_the_layers_of_its_paper():
    net = UpsamplingGenerator((3, 32, 32))
    linear, convolutions = 256 * 128 * 64 + 128 * 64, 9 * (128 * 128 + 128 * 64 + 64 * 3) + 3
    norms = 2 * (128 + 128 + 64)
    assert sum(p.numel() for p in net.parameters()) == linear + convolutions + norms
    assert net(torch.randn(2, 256)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 16, 32)])
def test_generators_make_images_of_any_sides_that_are_multiples_of_4(shape):
    z, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 2])
    merged = MergedGenerator(shape, 3, latent=6, width=4)
    made = [
        UpsamplingGenerator(shape, latent=6, width=4)(z),
        ConditionalGenerator(shape, 3, latent=6, width=4)(z, labels),
        merged(merged.merge_noise(z, labels)),
    ]
    assert [images.shape for images in made] == [(4, *shape)] * 3


def test_other_sides_are_refused():
    (reason,) = image_refusals(ImageTask(("a", "b"), (1, 30, 28), (0.5,), (0.5,)))
    assert "30x28" in reason
    with pytest.raises(NetworkError, match="multiples of 4"):
        UpsamplingGenerator((1, 30, 28))


def test_conditional_images_have_the_mean_and_variance_of_normalised_inputs():
    torch.manual_seed(0)
    images = ConditionalGenerator((2, 8, 8), 3, latent=6, width=4)(torch.randn(50, 6), torch.arange(50) % 3)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-2


def test_noise_and_label_are_merged_as_asked():
    z, labels = torch.tensor([[2.0, 3.0]]), torch.tensor([1])
    merged = {}
    for merge in ("multiply", "add", "concatenate", "none"):
        net = MergedGenerator((1, 8, 8), 2, latent=2, width=4, merge=merge)
        net.embedding.weight.data.copy_(torch.tensor([[9.0, 9.0], [10.0, 20.0]]))
        merged[merge] = net.merge_noise(z, labels).tolist()
        assert net(net.merge_noise(z, labels)).shape == (1, 1, 8, 8)
    assert merged == {
        "multiply": [[20.0, 60.0]],
        "add": [[12.0, 23.0]],
        "concatenate": [[2.0, 3.0, 10.0, 20.0]],
        "none": [[2.0, 3.0]],
    }


# --- What the distillation job gained -----------------------------------------------------------------------------


class Even:
    """A source of one batch."""

    def latents(self, index):
        return {"label": torch.full((12,), -1)}

    def inputs(self, latents):
        return tiny_inputs(), latents["label"]


def job(**changes):
    """A distillation of one network into another."""
    fields = {"steps": 4, "distinct": 4, "lr": 0.1}
    return Distillation(
        Even(), tiny_net("mlp", 1), tiny_net("mlp", 2), lambda s, t, labels: kl(t, s), **{**fields, **changes}
    )


def test_a_cosine_falls_from_1_over_one_half_to_0():
    assert [cosine(step, 4) for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])


def test_the_rate_of_a_distillation_follows_the_cosine_where_it_is_asked():
    for asked, expected in ((True, [0.1, 0.05 * (1 + 0.5**0.5), 0.05, 0.05 * (1 - 0.5**0.5)]), (False, [0.1] * 4)):
        learner, rates = Learner(job(cosine=asked), tiny_net("mlp", 2)), []
        for _ in range(4):
            rates.append(learner.rate())
            learner.step(labelled_batch(learner.job, 0))
            assert learner.optimiser.param_groups[0]["lr"] == rates[-1]
        assert rates == pytest.approx(expected)


def test_the_students_gradient_is_clipped_where_it_is_asked():
    student = tiny_net("mlp", 2)
    Learner(job(clip=1e-3), student).step(labelled_batch(job(), 0))
    norm = torch.stack([p.grad.square().sum() for p in student.parameters()]).sum().sqrt()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
