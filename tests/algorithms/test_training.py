"""Local training: the order of batches, and SGD by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from algorithms.core.schedules import RateSchedule
from algorithms.core.seeds import Seed
from algorithms.core.task import Shard
from algorithms.core.training import Batches, Work, draw_batches, fit, pair_if_single, training_loss
from algorithms.tasks.images import Augment, ImageTask

SEED = Seed(3, round=0, phase="train", client=1)
CPU = torch.device("cpu")
TASK = ImageTask(names=("a", "b"), shape=(1, 2, 2), mean=(0.0,), std=(1.0,))


def shard(count):
    images = torch.arange(count * 4).to(torch.uint8).reshape(count, 1, 2, 2)
    return Shard({"image": images, "label": torch.arange(count) % 2}, rows=torch.arange(count))


def linear():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    return net


def work(**changes):
    return Work(**{"steps": 1, "epochs": None, "batch": 2, "lr": 0.5, **changes})


@given(st.integers(1, 40), st.integers(1, 12))
def test_an_epoch_shows_every_example_once_and_no_batch_of_one_where_there_are_more(examples, batch):
    batches = Batches(examples, batch, SEED)
    epoch = [batches[i] for i in range(batches.per_epoch)]
    assert sorted(torch.cat(epoch).tolist()) == list(range(examples))
    if examples > 1 and batch > 1:
        assert min(map(len, epoch)) > 1
    assert max(map(len, epoch)) <= batch + 1


def test_the_order_depends_on_run_and_client_but_not_on_the_round():
    def first(seed):
        return Batches(20, 20, seed)[0].tolist()

    assert first(SEED) == first(SEED.at(round=9, phase="fine_tune"))
    assert first(SEED) != first(SEED.at(client=2))
    assert first(SEED) != Batches(20, 20, SEED)[1].tolist()


def test_steps_go_on_where_the_last_round_ended():
    seen = []

    def spy(net, inputs, labels):
        seen.append(inputs.flatten().tolist())
        return net(inputs).sum() * 0

    data = shard(8)
    first = fit(linear(), TASK, data, work(steps=3), SEED, objective=spy)
    fit(linear(), TASK, data, work(steps=1), SEED, position=first.position, objective=spy)
    assert first.position == 3
    everything = [value for batch in seen for value in batch]
    assert sorted(everything) == pytest.approx([v / 255 for v in range(32)])


def test_one_step_is_gradient_descent_on_cross_entropy():
    """Zero weights give p = 1/2 for both classes, so d loss / d logit_c = mean over the batch of (1/2 - [y = c])."""
    images = torch.tensor([[255, 0, 0, 0], [0, 255, 0, 0]], dtype=torch.uint8).reshape(2, 1, 2, 2)
    data = Shard({"image": images, "label": torch.tensor([0, 1])}, rows=torch.arange(2))
    net = linear()
    done = fit(net, TASK, data, work(lr=0.5), SEED)
    expected = -0.5 * torch.tensor([[-0.5, 0.5, 0, 0], [0.5, -0.5, 0, 0]]) / 2
    assert torch.allclose(net[1].weight.detach(), expected)
    assert done.loss == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_batches_made_ready_together_are_those_made_ready_alone():
    """2,000 examples in batches of 7, more than are made ready at once: the bits of each batch, in its place."""
    data, batches = shard(2000), Batches(2000, 7, SEED)
    together = list(draw_batches(TASK, data, batches, range(3, 300), torch.Generator()))
    assert len(together) == 297
    for position, (inputs, labels) in enumerate(together, start=3):
        alone = TASK.batch(data, batches[position])
        assert torch.equal(inputs, alone[0])
        assert torch.equal(labels, alone[1])


class ToDevice(TorchFunctionMode):
    """Notes of which type the images are that are sent to a device."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to and args[1:] == (CPU,) and args[0].shape[1:] == TASK.shape:
            self.sent.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_images_go_to_the_networks_device_as_bytes_and_not_as_floats():
    with ToDevice() as images:
        fit(linear(), TASK, shard(600), work(steps=300), SEED)

    assert images.sent == [torch.uint8, torch.uint8]  # 512 at once, then the others


def test_epochs_are_counted_in_batches():
    assert fit(linear(), TASK, shard(7), work(steps=None, epochs=2, batch=3), SEED).steps == 2 * 2


def test_no_steps_leave_the_network_as_it_was():
    net = linear()
    assert fit(net, TASK, shard(4), work(steps=0), SEED).steps == 0
    assert not net[1].weight.any()


def test_a_correction_changes_gradients_before_the_step():
    net = linear()

    def ones(parameters):
        for p in parameters:
            p.grad.fill_(1.0)

    fit(net, TASK, shard(4), work(lr=0.25), SEED, correct=ones)
    assert torch.equal(net[1].weight.detach(), torch.full((2, 4), -0.25))


def test_the_gradients_norm_is_clipped():
    net = linear()

    def ones(parameters):
        for p in parameters:
            p.grad.fill_(1.0)

    fit(net, TASK, shard(4), work(lr=1.0, clip=0.1), SEED, correct=ones)
    moved = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert moved.norm().item() == pytest.approx(0.1, rel=1e-4)


def moved(gradients, start=1.0, **changes):
    """The end of a weight that starts at 1, after steps with these gradients."""
    net, coming = linear(), iter(gradients)
    nn.init.constant_(net[1].weight, start)

    def given(parameters):
        gradient = next(coming)
        for p in parameters:
            p.grad.fill_(gradient)

    fit(net, TASK, shard(4), work(steps=len(gradients), **changes), SEED, correct=given)
    return net[1].weight[0, 0].item()


def test_one_step_of_adam_by_hand():
    """Its moments are corrected for their start at 0, so that after one step they are g and g^2."""
    assert moved([2.0], optimiser="adam", lr=0.5, eps=0.5) == pytest.approx(1 - 0.5 * 2 / (2 + 0.5))


def test_two_steps_of_adam_by_hand():
    """beta 0.5 and 0.75: m = 0.5 * 1 - 0.5 = 0, v = 0.75 * 1 + 0.25 = 1 with g = 2, then -1."""
    first = 0.1 * 2 / 2
    m, v = 0.5 * (0.5 * 2) + 0.5 * -1, 0.75 * (0.25 * 4) + 0.25 * 1
    second = 0.1 * (m / (1 - 0.5**2)) / (v / (1 - 0.75**2)) ** 0.5
    assert moved([2.0, -1.0], optimiser="adam", lr=0.1, betas=(0.5, 0.75)) == pytest.approx(1 - first - second)
    assert moved([2.0, -3.0], optimiser="adam", lr=0.1, betas=(0.5, 0.75)) == pytest.approx(
        1 - first + 0.1 * (1 / 0.75) / ((0.75 * 1 + 0.25 * 9) / (1 - 0.75**2)) ** 0.5
    )


def test_weight_decay_is_a_part_of_adams_gradient_and_apart_from_adamws():
    """w = 1, g = -1: with decay 3 Adam's gradient is 2, where AdamW's stays -1 and the weight loses 0.1 * 3 of 1."""
    assert moved([-1.0], optimiser="adam", lr=0.1, weight_decay=3.0) == pytest.approx(1 - 0.1)
    assert moved([-1.0], optimiser="adamw", lr=0.1, weight_decay=3.0) == pytest.approx(1 - 0.1 * 3 + 0.1)


def test_the_optimiser_of_a_round_remembers_nothing_of_the_last():
    """Going on, Adam's second step of a gradient of 0 would still move the weight."""
    assert moved([2.0, 0.0], optimiser="adam", lr=0.1) < moved([2.0], optimiser="adam", lr=0.1)
    assert moved([0.0], start=moved([2.0], optimiser="adam", lr=0.1), optimiser="adam", lr=0.1) == pytest.approx(0.9)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_training_has_the_rate_of_the_seeds_round(optimiser):
    falling = work(lr=0.8, optimiser=optimiser, steps=3, schedule=RateSchedule("step", every=2, factor=0.25))
    scheduled, plain = linear(), linear()
    fit(scheduled, TASK, shard(8), falling, SEED.at(round=2))
    fit(plain, TASK, shard(8), work(lr=0.2, optimiser=optimiser, steps=3), SEED.at(round=2))
    assert torch.equal(scheduled[1].weight, plain[1].weight)


@given(st.floats(0.0, 0.99))
def test_the_loss_of_smoothed_labels_is_torchs(share):
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    found = training_loss(TASK, work(label_smoothing=share))(logits, labels)
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits, labels, label_smoothing=share))


def test_smoothed_labels_are_what_is_learnt_and_not_what_is_evaluated():
    """Logits ln 3 and 0 are probabilities 3/4 and 1/4; the labels are 0 and a share of 0.4, half of it for each."""
    net = linear()
    with torch.no_grad():
        net[1].bias[0] = torch.log(torch.tensor(3.0))
    data = replace(shard(2), columns={**shard(2).columns, "label": torch.zeros(2, dtype=torch.int64)})
    done = fit(net, TASK, data, work(lr=1.0, label_smoothing=0.4), SEED)
    three, four = torch.tensor([3.0, 4.0]).log().tolist()
    assert done.loss == pytest.approx(0.8 * (four - three) + 0.2 * four)
    # The gradient by the logits is what is predicted less what is asked: 3/4 - 0.8.
    assert net[1].bias.tolist() == pytest.approx([three + 0.05, -0.05])
    assert TASK.loss(torch.tensor([[three, 0.0]]), torch.tensor([0])).item() == pytest.approx(four - three)


def test_a_client_with_one_example_trains_a_network_with_batch_normalisation():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    done = fit(net, TASK, shard(1), work(), SEED)
    assert done.steps == 1
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_lone_example_shown_twice_has_the_same_mean_loss():
    inputs, labels = torch.randn(1, 1, 2, 2), torch.tensor([1])
    net = linear()
    assert TASK.loss(net(inputs), labels) == TASK.loss(*(lambda x, y: (net(x), y))(*pair_if_single(inputs, labels)))


def test_a_client_without_examples_is_refused():
    with pytest.raises(ValueError, match="without examples"):
        fit(linear(), TASK, shard(0), work(), SEED)


def test_augmentation_is_drawn_from_the_steps_seed_and_keeps_the_shape():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    change = Augment(crop=2, flip=True)
    one, again = (change(images, SEED.torch("augment")) for _ in range(2))
    other = change(images, SEED.at(round=1).torch("augment"))
    assert one.shape == images.shape
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_random_crop_is_a_window_of_the_padded_image():
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    padded = nn.functional.pad(image, (1,) * 4)[0, 0]
    windows = {tuple(padded[i : i + 3, j : j + 3].flatten().tolist()) for i in range(3) for j in range(3)}
    generator = SEED.torch("augment")
    drawn = {tuple(Augment(crop=1)(image, generator).flatten().tolist()) for _ in range(200)}
    assert drawn == windows


@pytest.mark.parametrize("most", [1, 3, 4, 7, 50])
@pytest.mark.parametrize("objective", [None, lambda net, inputs, targets: net(inputs).square().mean()])
def test_pieces_of_a_batch_add_up_to_its_gradient_and_its_loss(most, objective):
    """Batches of 7, 7 and 6; a piece counts by its examples."""
    nets, fits, data = [linear(), linear()], [], shard(20)
    for net, micro_batch in zip(nets, (None, most), strict=True):
        todo = work(steps=3, batch=7, lr=0.01, momentum=0.5, micro_batch=micro_batch)
        fits.append(fit(net, TASK, data, todo, SEED, objective=objective))
    torch.testing.assert_close(nets[1][1].weight, nets[0][1].weight, atol=1e-5, rtol=1e-5)
    assert nets[0][1].weight.abs().max() > 0 or objective
    assert fits[1].loss == pytest.approx(fits[0].loss, rel=1e-5)


def test_no_more_examples_than_asked_go_through_the_network_at_once():
    seen, net = [], linear()
    net.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    fit(net, TASK, shard(20), work(steps=1, batch=10, micro_batch=4), SEED)
    assert seen == [4, 4, 2]


def test_a_lone_example_of_a_piece_is_shown_twice_so_that_batch_normalisation_has_two():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    fit(net, TASK, shard(3), work(batch=3, micro_batch=2), SEED)
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())


def test_training_in_pieces_is_not_stacked():
    assert work().is_plain
    assert not work(micro_batch=2).is_plain
