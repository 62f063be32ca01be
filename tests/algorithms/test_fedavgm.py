"""FedAvgM: momentum by hand."""

import pytest
import torch

from tests.algorithms.support_methods import regression, sgd, weight_of
from tests.support import play, tiny_setup


def test_no_momentum_and_a_step_of_1_are_fedavg_to_the_bit():
    ours = play(tiny_setup("fedavgm", nets=("small_cnn",), server_momentum=0.0, server_lr=1.0), rounds=3)
    fedavg = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=3)
    assert all(torch.equal(ours.state.model[name], value) for name, value in fedavg.state.model.items())


def test_three_rounds_by_hand():
    """f = (w - 4)^2 / 2, one local step of 0.1, so Delta = 0.1 (4 - w). v <- 0.5 v + Delta, w <- w + 2 v."""
    setup, shards = regression("fedavgm", [[(1, 4)]], sgd(1, 0.1), server_momentum=0.5, server_lr=2.0)
    w, v, expected = 0.0, 0.0, []
    for _ in range(3):
        v = 0.5 * v + 0.1 * (4 - w)
        w += 2 * v
        expected.append(w)
    assert expected[0] == pytest.approx(0.8)
    assert [weight_of(state) for state in play(setup, shards=shards, rounds=3).states] == pytest.approx(expected)


def test_buffers_are_averaged_and_have_no_momentum():
    ours = play(tiny_setup("fedavgm", nets=("small_cnn",)), rounds=1).state
    fedavg = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=1).state
    buffers = ours.model.keys() - ours.velocity.keys()
    assert {name.rpartition(".")[2] for name in buffers} == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(torch.equal(ours.model[name], fedavg.model[name]) for name in buffers)


def test_a_round_without_clients_does_not_roll_on():
    run = play(tiny_setup("fedavgm"), rounds=2, cohort=lambda number: [] if number else range(6))
    assert run.digests[0] == run.digests[1]
