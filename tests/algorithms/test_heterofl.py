"""HeteroFL: nested parts, masked losses, static batch normalisation, by hand and by reduction to FedAvg."""

import dataclasses

import numpy as np
import pytest
import torch

from actors.steps.shards import ShardArrays
from algorithms.core.payload import Payload
from algorithms.core.training import Work
from algorithms.parts.submodels import part_of
from algorithms.tasks.images import ImageTask
from tests.algorithms.support_methods import (
    LINEAR,
    NORMED_SCALAR,
    Federation,
    Sizes,
    Travel,
    by_class,
    client_of,
    regression,
    sgd,
    train,
)
from tests.support import needs_of, play, tiny_setup, tiny_shards

OFF = {"scaler": False, "mask": False}


def travels(size: Sizes) -> Travel:
    """Each way the trainable entries, up with a byte for each class; for the measurement the model down, statistics and
    a number of batches up."""
    return {
        ("down", "weights"): size.rounds * (size.trainable + size.model),
        ("up", "weights"): size.rounds * size.trainable,
        ("up", "label_counts"): size.rounds * 3,
        ("up", "statistics"): size.rounds * (size.statistics + 8),
    }


def wide_and_narrow(*widths, name="heterofl", net="mlp", **config):
    """A setup whose clients have these widths."""
    setup = tiny_setup(name, clients=len(widths), nets=(net,), **config)
    clients = tuple(dataclasses.replace(c, width=width) for c, width in zip(setup.clients, widths, strict=True))
    return dataclasses.replace(setup, clients=clients)


def equal(one, other, names=None):
    return all(torch.equal(one[name], other[name]) for name in names or one)


def test_full_widths_without_scaler_and_mask_are_fedavg_to_the_bit():
    ours = play(tiny_setup("heterofl", nets=("small_cnn",), norm="running", **OFF), rounds=3)
    assert ours.digest == play(tiny_setup("fedavg", nets=("small_cnn",), weights="uniform"), rounds=3).digest


def test_static_normalisation_trains_the_same_weights():
    ours = play(tiny_setup("heterofl", nets=("small_cnn",), **OFF), rounds=3)
    fedavg = play(tiny_setup("fedavg", nets=("small_cnn",), weights="uniform"), rounds=3)
    weights = dict(ours.method.kit.network("small_cnn").named_parameters())
    assert equal(ours.state.model, fedavg.state.model, weights)
    assert not equal(ours.state.model, fedavg.state.model)


def test_at_width_1_the_scaler_does_nothing_and_with_all_classes_the_mask_neither():
    plain, both = (play(tiny_setup("heterofl", nets=("small_cnn",), **config)) for config in (OFF, {}))
    assert plain.digest == both.digest


def test_entries_are_averaged_over_those_who_have_them():
    """64 hidden units: numbers 0..15 are held by all three, 16..31 by two, 32..63 by one."""
    setup = wide_and_narrow(1.0, 0.5, 0.25)
    federation = Federation.inline(setup, tiny_shards(3))
    method, before = federation.method, federation.state.model
    sent = []
    for k, width in enumerate((1.0, 0.5, 0.25)):
        message = Payload.of(weights=part_of(method.kit, "mlp", width, 0).extract(before))
        sent.append(train(method, client_of(setup, tiny_shards(3), k, message)).payload.tensors("weights"))
    after = federation.play(0).state.model
    hidden, head = "body.1.weight", "head.weight"
    assert [update[hidden].shape[0] for update in sent] == [64, 32, 16]
    means = [sum(u[hidden][:16] for u in sent) / 3, sum(u[hidden][16:32] for u in sent[:2]) / 2, sent[0][hidden][32:]]
    assert torch.allclose(after[hidden], torch.cat(means), atol=1e-6)
    means = [
        sum(u[head][:, :16] for u in sent) / 3,
        sum(u[head][:, 16:32] for u in sent[:2]) / 2,
        sent[0][head][:, 32:],
    ]
    assert torch.allclose(after[head], torch.cat(means, dim=1), atol=1e-6)
    assert torch.allclose(after["head.bias"], sum(u["head.bias"] for u in sent) / 3, atol=1e-6)


def test_entries_that_nobody_has_keep_their_value_in_every_round():
    federation = Federation.inline(wide_and_narrow(0.5, 0.25), tiny_shards(2), rounds=3)
    before = federation.state.model["body.1.weight"]
    after = federation.play_all().state.model["body.1.weight"]
    assert torch.equal(after[32:], before[32:])
    assert not torch.isclose(after[:32], before[:32]).all(dim=1).any()


def test_a_class_that_nobody_holds_keeps_its_row():
    """Clients 0 and 1 of `by_class` hold classes 0 and 1 of three."""
    setup = tiny_setup("heterofl", clients=6)
    federation = Federation.inline(setup, by_class())
    before = federation.state.model
    after = federation.play(0, asked=[0, 1]).state.model
    moved = (after["head.weight"] != before["head.weight"]).any(dim=1)
    assert moved.tolist() == [True, True, False]
    assert after["head.bias"][2] == before["head.bias"][2]


def one_pixel(**config):
    """Two clients with a pixel x = 2 each, of class 0 and of class 1 of three; one step of lr 1 from zero weights."""
    task = ImageTask(("a", "b", "c"), (1, 1, 1), mean=(0.0,), std=(1 / 255,))
    setup = tiny_setup("heterofl", clients=2, nets=(LINEAR,), **config)
    setup = dataclasses.replace(setup, task=task, work=Work(steps=1, epochs=None, batch=4, lr=1.0))
    shards = ShardArrays.of(
        {"image": np.full((2, 1, 1, 1), 2, np.uint8), "label": np.array([0, 1])}, [np.arange(1), np.arange(1, 2)]
    )
    return play(setup, rounds=1, shards=shards).state.model["head.weight"][:, 0].tolist()


def test_masked_rows_do_not_move_and_are_not_averaged():
    """p = 1/3 for all classes, h = 2. Unmasked: a held row moves (1 - 1/3) 2, a missing one -2/3; means over clients.
    Masked: a class's row is its own client's alone."""
    assert one_pixel(mask=False) == pytest.approx([(4 / 3 - 2 / 3) / 2, (4 / 3 - 2 / 3) / 2, -2 / 3])
    assert one_pixel() == pytest.approx([4 / 3, 4 / 3, 0])


@pytest.mark.parametrize(("scaler", "factor"), [(True, 1 / 0.25), (False, 1.0)])
def test_a_narrow_client_trains_on_scaled_features(scaler, factor):
    """One hidden layer with ReLU: dividing what it gives by the width multiplies the features by 4."""
    setup = wide_and_narrow(0.25, work=Work(steps=1, epochs=None, batch=200, lr=0.1), scaler=scaler)
    federation = Federation.inline(setup, tiny_shards(1))
    net = federation.method.kit.new_network("mlp", 0.25)
    net.load_state_dict(part_of(federation.method.kit, "mlp", 0.25, 0).extract(federation.state.model))
    inputs, labels = setup.task.batch(tiny_shards(1)(0), torch.arange(120))
    expected = torch.nn.functional.cross_entropy(net.head(factor * net.features(inputs)), labels).item()
    (told,) = [metric.value for metric in federation.play(0).book.metrics if metric.name == "loss"]
    assert told == pytest.approx(expected, rel=1e-5)


def test_statistics_are_those_of_one_pass_over_everybodys_examples():
    """x = 2, 4, 6: mean 4, variance 4. x = 10, 20: mean 15, variance 50. One batch each."""
    points = [[(2, 1), (4, 1), (6, 1)], [(10, 1), (20, 1)]]
    setup, shards = regression("heterofl", points, sgd(steps=1, lr=0.0), net=NORMED_SCALAR, mask=False)
    model = play(setup, shards=shards, rounds=1).state.model
    assert model["body.1.running_mean"].item() == pytest.approx((4 + 15) / 2)
    assert model["body.1.running_var"].item() == pytest.approx((4 + 50) / 2)


def test_statistics_count_by_batches():
    """Batches of two: x = 4 four times is two batches, x = 10 twice is one."""
    points = [[(4, 1)] * 4, [(10, 1)] * 2]
    setup, shards = regression("heterofl", points, sgd(1, 0.0, batch=2), net=NORMED_SCALAR, mask=False)
    model = play(setup, shards=shards, rounds=1).state.model
    assert model["body.1.running_mean"].item() == pytest.approx((2 * 4 + 1 * 10) / 3)


@pytest.mark.parametrize(("every", "rounds"), [(1, [0, 1, 2]), (2, [1, 2]), (9, [2])])
def test_statistics_are_measured_when_due_and_after_the_last_round(every, rounds):
    run = play(tiny_setup("heterofl", nets=("small_cnn",), measure_every=every), rounds=3)
    assert sorted({e.round for e in run.book.entries if e.phase == "measure"}) == rounds


def test_a_network_without_batch_normalisation_is_not_measured():
    assert {entry.phase for entry in play(tiny_setup("heterofl", nets=("mlp",))).book.entries} == {"train"}


@pytest.mark.parametrize(("width", "a", "b", "c"), [(1.0, 8, 16, 32), (0.5, 4, 8, 16), (1 / 16, 1, 1, 2)])
def test_a_clients_bytes_are_those_of_its_width(width, a, b, c):
    """Convolutions 1-a-b-c of 3x3, weights and biases of their norms, a head of 4 c features and 3 classes; statistics
    of the full network's 8 + 16 + 32 channels, twice; its state dict has three counters of 8 bytes."""
    run = play(wide_and_narrow(width, net="small_cnn"), rounds=1, shards=tiny_shards(1))
    own = 4 * (9 * (a + a * b + b * c) + 2 * (a + b + c) + (4 * c + 1) * 3)
    whole = 4 * (9 * (8 + 8 * 16 + 16 * 32) + 4 * 56 + (128 + 1) * 3) + 3 * 8
    sent = {(e.phase, e.direction, e.kind): e.bytes for e in run.book.entries}
    assert sent == {
        ("train", "down", "weights"): own,
        ("train", "up", "weights"): own,
        ("train", "up", "label_counts"): 3,
        ("measure", "down", "weights"): whole,
        ("measure", "up", "statistics"): 4 * 2 * 56 + 8,
    }


def test_widths_are_drawn_anew_every_round_from_those_given():
    setup = dataclasses.replace(tiny_setup("heterofl"), widths=(1.0, 0.5, 0.25))
    run = play(setup, rounds=4)
    size = {4 * (65 * n + 3 * (n + 1)): n / 64 for n in (64, 32, 16)}
    drawn = [size[e.bytes] for e in run.book.entries if e.direction == "down"]
    assert len(drawn) == 4 * 6
    assert set(drawn) == {1.0, 0.5, 0.25}
    assert len({tuple(drawn[k::6]) for k in range(6)}) > 1
    assert play(setup, rounds=4).digest == run.digest


def refusals(*widths, nets=("mlp",), **config):
    setup = tiny_setup("heterofl", clients=len(widths), nets=nets, **config)
    clients = [dataclasses.replace(c, width=width) for c, width in zip(setup.clients, widths, strict=True)]
    return list(needs_of(dataclasses.replace(setup, clients=tuple(clients))).refusals)


def test_widths_of_one_network_are_served():
    assert refusals(1.0, 0.5, 1 / 16) == []


def test_networks_of_one_width_only_are_refused_with_the_width():
    (reason,) = refusals(1.0, 0.5, nets=(LINEAR,))
    assert "width 0.5" in reason


def test_a_mask_over_rows_of_a_head_needs_a_network_that_has_one():
    headless = ("tests.algorithms.test_nets:without_bias",)
    (reason,) = refusals(1.0, 1.0, nets=headless)
    assert "mask: true needs the last linear layer" in reason
    assert reason.endswith("or set mask: false")
    assert refusals(1.0, 1.0, nets=headless, mask=False) == []


def test_unrelated_networks_are_refused():
    (reason,) = refusals(1.0, 1.0, nets=("mlp", "cnn2"))
    assert "cnn2, mlp" in reason


def test_narrow_clients_train_batch_normalisation_with_the_scaler():
    run = play(wide_and_narrow(1.0, 0.5, 0.25, 1 / 16, net="resnet8"), rounds=2, shards=tiny_shards(4))
    assert all(torch.isfinite(value).all() for value in run.state.model.values() if value.is_floating_point())
