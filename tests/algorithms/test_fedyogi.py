"""FedYogi: three rounds by hand."""

import pytest
import torch

from tests.algorithms.support_methods import method_of, regression, sgd, weight_of
from tests.support import play, tiny_setup

CONFIG = {"server_lr": 0.2, "beta1": 0.5, "tau": 0.1, "beta2": 0.9}


def test_three_rounds_by_hand():
    """f = (w - 4)^2 / 2, one local step of 0.1, so Delta = 0.1 (4 - w); m starts at 0 and v at tau^2."""
    setup, shards = regression("fedyogi", [[(1, 4)]], sgd(steps=1, lr=0.1), **CONFIG)
    w, m, v, expected = 0.0, 0.0, 0.1**2, []
    for _ in range(3):
        d = 0.1 * (4 - w)
        m = 0.5 * m + 0.5 * d
        v = v - (1 - 0.9) * d * d * (1 if v > d * d else -1)
        w += 0.2 * m / (v**0.5 + 0.1)
        expected.append(w)
    found = [weight_of(state) for state in play(setup, shards=shards, rounds=3).states]
    assert found == pytest.approx(expected, rel=1e-5)


def test_v_moves_by_the_squared_change_towards_it_from_either_side():
    method = method_of(tiny_setup("fedyogi", beta2=0.9))
    v, squared = torch.tensor([4.0, 1.0, 2.0]).double(), torch.tensor([1.0, 4.0, 2.0]).double()
    assert method.next_second(v, squared).tolist() == pytest.approx([4 - 0.1 * 1, 1 + 0.1 * 4, 2])
