"""FedAdagrad: three rounds by hand."""

import pytest
import torch

from tests.algorithms.support_methods import regression, sgd, weight_of
from tests.support import play, tiny_setup

CONFIG = {"server_lr": 0.2, "beta1": 0.5, "tau": 0.1}


def test_three_rounds_by_hand():
    """f = (w - 4)^2 / 2, one local step of 0.1, so Delta = 0.1 (4 - w); m starts at 0 and v at tau^2."""
    setup, shards = regression("fedadagrad", [[(1, 4)]], sgd(steps=1, lr=0.1), **CONFIG)
    w, m, v, expected = 0.0, 0.0, 0.1**2, []
    for _ in range(3):
        d = 0.1 * (4 - w)
        m = 0.5 * m + 0.5 * d
        v = v + d * d
        w += 0.2 * m / (v**0.5 + 0.1)
        expected.append(w)
    found = [weight_of(state) for state in play(setup, shards=shards, rounds=3).states]
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_memory_and_with_a_large_tau_it_is_fedavg():
    """sqrt(v) + tau = 2 tau to rounding, so that eta = 2 tau gives theta + Delta."""
    ours = play(tiny_setup("fedadagrad", nets=("small_cnn",), server_lr=2e4, tau=1e4, beta1=0.0), rounds=2)
    fedavg = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=2)
    for name, value in fedavg.state.model.items():
        assert torch.allclose(ours.state.model[name].double(), value.double(), atol=1e-6), name


def test_buffers_are_averaged():
    ours = play(tiny_setup("fedadagrad", nets=("small_cnn",)), rounds=1).state
    fedavg = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=1).state
    buffers = ours.model.keys() - ours.first.keys()
    assert len(buffers) == 3 * 3
    assert all(torch.equal(ours.model[name], fedavg.model[name]) for name in buffers)


def test_a_round_without_clients_changes_nothing():
    run = play(tiny_setup("fedadagrad", beta1=0.9), rounds=2, cohort=lambda number: [] if number else range(6))
    assert run.digests[0] == run.digests[1]
