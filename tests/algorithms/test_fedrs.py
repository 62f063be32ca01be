"""FedRS: the scaled softmax by hand, and its reductions to FedAvg."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.steps.shards import ShardArrays
from algorithms.core.training import Work
from algorithms.tasks.images import ImageTask
from tests.algorithms.support_methods import LINEAR, by_class, method_of
from tests.support import play, tiny_setup, tiny_shards

COUNTS = st.lists(st.integers(0, 30), min_size=3, max_size=3).filter(any)


def one_pixel(alpha):
    """One client with one image of one pixel x = 2 of class 0 of three, zero weights; its head after a step of lr 1."""
    task = ImageTask(("a", "b", "c"), (1, 1, 1), mean=(0.0,), std=(1 / 255,))
    setup = tiny_setup("fedrs", clients=1, nets=(LINEAR,), alpha=alpha)
    setup = dataclasses.replace(setup, task=task, work=Work(steps=1, epochs=None, batch=4, lr=1.0))
    shards = ShardArrays.of({"image": np.full((1, 1, 1, 1), 2, np.uint8), "label": np.array([0])}, [np.arange(1)])
    return play(setup, rounds=1, shards=shards).state.model


def factors(counts, **config):
    return method_of(tiny_setup("fedrs", **config)).factors(torch.tensor(counts))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_a_missing_classs_row_moves_by_alpha_p_h(alpha):
    """Zero weights: p_c = 1/3. h = 2. Held class: (1 - 1/3) h; missing ones: -alpha / 3 h; for biases h = 1."""
    model = one_pixel(alpha)
    assert model["head.weight"][:, 0].tolist() == pytest.approx([4 / 3, -2 / 3 * alpha, -2 / 3 * alpha])
    assert model["head.bias"].tolist() == pytest.approx([2 / 3, -alpha / 3, -alpha / 3])


@pytest.mark.parametrize("scale", ["paper", "released"])
def test_alpha_1_is_fedavg_to_the_bit(scale):
    fedrs = play(tiny_setup("fedrs", nets=("small_cnn",), alpha=1.0, scale=scale), shards=by_class(), rounds=3)
    assert fedrs.digest == play(tiny_setup("fedavg", nets=("small_cnn",)), shards=by_class(), rounds=3).digest


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_clients_that_hold_every_class_are_fedavgs(alpha):
    fedrs = play(tiny_setup("fedrs", alpha=alpha), rounds=3)
    assert fedrs.digest == play(tiny_setup("fedavg"), rounds=3).digest


def head_moves(alpha):
    """Norm of the move of each class's row after one round of one client that holds class 0 alone."""
    setup = tiny_setup("fedrs", clients=1, alpha=alpha)
    before = method_of(setup).start(setup.clients).model["head.weight"]
    after = play(setup, rounds=1, shards=by_class()).state.model["head.weight"]
    return (after - before).norm(dim=1).tolist()


def test_alpha_0_leaves_missing_classes_exactly_where_they_were():
    moves = head_moves(0.0)
    assert moves[0] > 0
    assert moves[1:] == [0.0, 0.0]


def test_missing_classes_move_more_the_larger_alpha():
    moves = [sum(head_moves(alpha)[1:]) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert moves == sorted(moves)


def test_evaluation_uses_plain_logits():
    setup = tiny_setup("fedrs", alpha=0.1)
    run = play(setup, shards=by_class())
    inputs, _ = setup.task.batch(tiny_shards()(0), torch.arange(5))
    net = run.method.kit.new_network("mlp")
    net.load_state_dict(run.state.model)
    assert torch.equal(run.method.predictor(run.state)(inputs), net(inputs))


def test_few_examples_can_count_as_none():
    assert factors([0, 2, 3], alpha=0.5, missing=2).tolist() == [0.5, 0.5, 1.0]
    assert factors([0, 2, 3], alpha=0.5).tolist() == [0.5, 1.0, 1.0]


def test_the_released_rule_grades_by_the_classs_examples():
    """0.2 + 0.8 n / 10."""
    assert factors([10, 5, 0], alpha=0.2, scale="released").tolist() == pytest.approx([1.0, 0.6, 0.2])


def test_the_released_rule_with_equal_counts_scales_nothing():
    assert factors([7, 7, 7], alpha=0.2, scale="released").tolist() == [1.0, 1.0, 1.0]


@given(COUNTS, st.floats(0, 1), st.sampled_from(["paper", "released"]))
def test_factors_lie_between_alpha_and_1(counts, alpha, scale):
    found = factors(counts, alpha=alpha, scale=scale)
    assert found.dtype == torch.float32
    assert alpha - 1e-6 <= found.min()
    assert found.max() == 1
