"""FedAdam: three rounds by hand."""

import pytest

from tests.algorithms.support_methods import regression, sgd, weight_of
from tests.support import play

CONFIG = {"server_lr": 0.2, "beta1": 0.5, "tau": 0.1, "beta2": 0.9}


def test_three_rounds_by_hand():
    """f = (w - 4)^2 / 2, one local step of 0.1, so Delta = 0.1 (4 - w); m starts at 0 and v at tau^2."""
    setup, shards = regression("fedadam", [[(1, 4)]], sgd(steps=1, lr=0.1), **CONFIG)
    w, m, v, expected = 0.0, 0.0, 0.1**2, []
    for _ in range(3):
        d = 0.1 * (4 - w)
        m = 0.5 * m + 0.5 * d
        v = 0.9 * v + (1 - 0.9) * d * d
        w += 0.2 * m / (v**0.5 + 0.1)
        expected.append(w)
    found = [weight_of(state) for state in play(setup, shards=shards, rounds=3).states]
    assert found == pytest.approx(expected, rel=1e-5)
