"""The DCGAN of a client: what it sees, what it leaves alone, and what its loss does."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from algorithms.core.contract import Client, ClientSpec
from algorithms.core.kit import Kit
from algorithms.core.payload import EMPTY
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.states import snapshot
from algorithms.core.task import Shard
from algorithms.core.training import Work
from algorithms.methods.mosaic.generators import dcgan
from algorithms.methods.mosaic.generators.dcgan import DCGan, GanConfig
from algorithms.nets.dcgan import DCGenerator
from algorithms.parts.losses import NormGap, diversity, entropy
from algorithms.tasks.images import ImageTask
from tests.support import tiny_shards, tiny_task

SMALL = {"latent": 6, "gan_width": 4, "gan_steps": 3, "gan_batch": 8, "classifier_steps": 2}


def kit() -> Kit:
    return Kit(task=tiny_task(), work=Work(steps=3, epochs=None, batch=8, lr=0.1), seed=Seed(3))


def client(shard: Shard | None = None) -> Client:
    return Client(
        spec=ClientSpec(0, "small_cnn"),
        shard=tiny_shards(2)(0) if shard is None else shard,
        received=EMPTY,
        memory={},
        seed=Seed(3, 0, "make_generator", 0),
    )


def only(label: int, most: int = 60) -> Shard:
    """A client whose examples are all of one class."""
    shard = tiny_shards(2)(0)
    return replace(shard, rows=shard.rows[shard.own_labels == label][:most])


def family(*released: str, **config) -> DCGan:
    return DCGan(GanConfig(**{**SMALL, **config}), kit(), released)


@pytest.fixture
def games(monkeypatch):
    """The games that were played, as they were before and after."""
    seen = []
    play = dcgan._Game.play

    def watched(game, seed):
        before = snapshot(game.classifier)
        play(game, seed)
        seen.append((game, before, snapshot(game.classifier)))

    monkeypatch.setattr(dcgan._Game, "play", watched)
    return seen


@pytest.fixture
def reals(monkeypatch):
    """Labels of the real images that the discriminator saw."""
    seen = []
    real = dcgan._Game._real

    def watched(game, picks, draws):
        images, labels = real(game, picks, draws)
        seen.extend(labels.tolist())
        return images, labels

    monkeypatch.setattr(dcgan._Game, "_real", watched)
    return seen


def test_a_generator_makes_images_of_the_tasks_shape_between_minus_one_and_one():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = DCGenerator((3, 32, 32), width=4)(torch.randn(5, 100))
    assert images.shape == (5, 3, 32, 32)
    assert images.detach().abs().max() <= 1


def test_mapped_to_inputs_the_ends_of_the_range_are_those_of_normalised_real_images():
    task = ImageTask(("a", "b"), (3, 8, 8), mean=(0.2, 0.5, 0.8), std=(0.1, 0.2, 0.3))
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    assert torch.allclose(task.from_signed(task.to_signed(ends)), task.normalise(ends), atol=1e-6)
    generated = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    assert torch.allclose(task.from_signed(generated), task.normalise(ends), atol=1e-6)


def test_by_the_released_rule_the_range_of_tanh_is_taken_for_normalised_inputs():
    made = torch.tensor([-1.0, 1.0])
    assert torch.equal(family("tanh_range").to_inputs()(made), made)


def test_real_batches_hold_every_class_of_the_client(reals):
    family(gan_steps=8).fit(client())
    assert set(reals) == {0, 1, 2}


def test_by_the_released_rule_no_image_of_class_zero_is_seen(reals):
    _, counts = family("no_class_zero", gan_steps=8).fit(client())
    assert set(reals) == {1, 2}
    assert counts[0] == 0


def test_by_the_released_rule_class_zero_leaves_batches_smaller_and_their_number_as_it_is(reals, monkeypatch):
    """Of 40 examples, 20 are of class 0: 3 passes of 5 batches of 8 are 15 steps, in which the 20 others are seen."""
    steps, step = [], dcgan._step
    monkeypatch.setattr(dcgan, "_step", lambda optimiser, loss: steps.append(1) or step(optimiser, loss))
    whole = tiny_shards(2)(0)
    shard = replace(whole, rows=torch.cat([only(0, 20).rows, only(1, 10).rows, only(2, 10).rows]))
    _, counts = family("no_class_zero", gan_steps=None, gan_epochs=3).fit(client(shard))
    assert len(steps) == 2 * 3 * 5  # one of the discriminator and one of the generator
    assert sorted(reals) == 3 * 10 * [1] + 3 * 10 * [2]
    assert counts.tolist() == [0, 10, 10]


def test_by_the_released_rule_a_client_of_class_zero_alone_sends_a_generator_that_has_learnt_nothing(reals):
    taught = family("no_class_zero")
    tensors, counts = taught.fit(client(only(0)))
    with torch_seeded(client().seed.number("gan networks")):
        fresh = snapshot(taught._generator())
    assert reals == []
    assert all(torch.equal(tensors[name], value) for name, value in fresh.items())
    assert counts.tolist() == [0, 0, 0]


def test_where_a_class_is_asked_a_client_without_any_to_ask_for_has_no_generator():
    assert family("no_class_zero", conditional=True).fit(client(only(0)))[0] == {}


@pytest.mark.parametrize("conditional", [False, True])
def test_the_classifier_is_the_same_after_the_game_as_before(games, conditional):
    family(conditional=conditional, entropy=1.0, classify=float(conditional), inversion_below=1000).fit(client())
    ((_, before, after),) = games
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_by_the_released_rule_the_classifiers_statistics_follow_the_fakes(games):
    family("live_classifier").fit(client())
    ((_, before, after),) = games
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "running" in name or "num_batches" in name}


def test_a_client_with_too_few_examples_sends_no_generator():
    tensors, counts = family(least_examples=61).fit(client())
    assert tensors == {}
    assert counts.sum() == 0


def test_a_client_with_a_single_example_can_have_a_generator():
    tensors, counts = family(least_examples=1).fit(client(only(1, most=1)))
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert counts.tolist() == [0, 1, 0]


def test_a_client_of_one_class_is_not_pushed_to_others(games):
    family().fit(client(only(1)))
    assert games[0][0]._present().tolist() == [False, True, False]
    family("diversity_over_all").fit(client(only(1)))
    assert games[1][0]._present().tolist() == [True, True, True]


def test_only_small_clients_use_inversion_and_by_the_released_rule_none(games):
    family(inversion_below=61).fit(client())
    family(inversion_below=60).fit(client())
    family("dead_inversion", inversion_below=61).fit(client())
    assert [game.config.inversion for game, _, _ in games] == [10.0, 0.0, 0.0]


def test_inversion_alone_has_a_gradient_and_falls_when_it_is_minimised():
    net, shard = kit().new_network("small_cnn").train(), client().shard
    for _ in range(20):
        net(tiny_task().normalise(shard.columns["image"][shard.rows]))
    net.eval().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator, z = DCGenerator((1, 8, 8), 6, 4), torch.randn(16, 6)
    optimiser, gap, values = torch.optim.Adam(generator.parameters(), lr=1e-2), NormGap(net), []
    for _ in range(30):
        optimiser.zero_grad()
        with gap.watching():
            net(tiny_task().from_signed(generator(z)))
        gap.value().backward()
        values.append(gap.value().item())
        assert any(float(p.grad.abs().sum()) > 0 for p in generator.parameters())
        optimiser.step()
    assert values[-1] < 0.7 * values[0]


def test_the_generators_loss_is_the_weighted_sum_of_its_terms(games):
    names = ("entropy", "diversity", "classify", "inversion")
    family(conditional=True, classify=1.0, inversion_below=1000).fit(client())
    game, gap = games[0][0], NormGap(games[0][0].classifier)
    asked = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        fake = game.generator.eval()(torch.ones(4, 6), asked)
        with gap.watching():
            logits = game.classifier(tiny_task().from_signed(fake))
        terms = {
            "adversarial": F.softplus(-game.judge.eval()(fake, asked)).mean(),
            "entropy": entropy(logits),
            "diversity": diversity(logits, torch.ones(3, dtype=torch.bool)),
            "classify": F.cross_entropy(logits, asked),
            "inversion": gap.value(),
        }
        for weighted in ({"adversarial": 2.0}, *({"adversarial": 1.0, name: 3.0} for name in names)):
            weights = {name: weighted.get(name, 0.0) for name in terms}
            loss = replace(game, config=replace(game.config, **weights))._generator_loss(fake, asked, gap)
            expected = sum(weight * terms[name].item() for name, weight in weights.items())
            assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_conditional_generator_learns_to_make_the_class_it_is_asked_for():
    learner = family(conditional=True, gan_steps=120, gan_lr=2e-3, classifier_steps=60, classify=1.0, diversity=0.0)
    who = client()
    part = learner.part(*learner.fit(who))
    images, labels = part.samples(part.latents(90, Seed(5).torch("draws")))
    columns = images.mean((1, 2))
    brightness = torch.stack([columns[:, 3 * c : 3 * c + 2].mean(1) for c in range(3)], 1)
    assert (brightness.argmax(1) == labels).float().mean() > 0.8


def test_classes_are_asked_as_often_as_the_client_holds_them():
    learner = family(conditional=True)
    part = learner.part({}, torch.tensor([30, 0, 10]))
    labels = part.latents(1000, Seed(5).torch("draws"))["label"]
    assert torch.bincount(labels, minlength=3).tolist() == pytest.approx([750, 0, 250], abs=50)


def test_an_unconditional_generator_says_that_no_class_was_asked():
    learner = family()
    part = learner.part(*learner.fit(client()))
    images, labels = part.samples(part.latents(4, Seed(5).torch("draws")))
    assert images.shape == (4, 1, 8, 8)
    assert labels.tolist() == [-1] * 4


def test_a_generator_repeats_to_the_bit_whatever_was_drawn_before():
    first, _ = family().fit(client())
    torch.rand(5)
    second, _ = family().fit(client())
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_drawing_from_a_generator_in_eval_mode_does_not_change_it():
    learner = family()
    tensors, counts = learner.fit(client())
    before = {name: value.clone() for name, value in tensors.items()}
    part = learner.part(tensors, counts)
    part.samples(part.latents(8, Seed(5).torch("draws")))
    assert all(torch.equal(before[name], value) for name, value in tensors.items())


def test_each_image_depends_on_its_own_noise_and_not_on_its_batch():
    learner = family()
    part = learner.part(*learner.fit(client()))
    latents = part.latents(8, Seed(5).torch("draws"))
    whole, _ = part.samples(latents)
    half, _ = part.samples({name: value[:3] for name, value in latents.items()})
    assert torch.allclose(half, whole[:3], atol=1e-6)


def test_epochs_are_passes_over_the_clients_examples(monkeypatch):
    steps = []
    monkeypatch.setattr(dcgan, "_step", lambda optimiser, loss: steps.append(loss.item()))
    family(gan_steps=None, gan_epochs=2, gan_batch=20).fit(client())
    assert len(steps) == 2 * 2 * 3
