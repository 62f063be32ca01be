"""FedNova: normalisers against their closed forms, unequal work by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.schedules import RateSchedule
from algorithms.core.training import Work
from algorithms.methods.fednova import normaliser
from tests.algorithms.support_methods import NORMED_SCALAR, Federation, Sizes, Travel, regression, sgd, weight_of
from tests.support import needs_of, play, tiny_setup, tiny_shards

EPOCH = Work(steps=None, epochs=1, batch=1, lr=0.1)
"""As many steps as a client has points."""


def travels(size: Sizes) -> Travel:
    """FedAvg's bytes, those of the trainable entries as a direction, and one number."""
    model, trainable = size.rounds * size.model, size.rounds * size.trainable
    numbers = {("up", "examples"): 8 * size.rounds, ("up", "steps"): 8 * size.rounds}
    return {("down", "weights"): model, ("up", "weights"): model - trainable, ("up", "gradients"): trainable, **numbers}


@given(st.integers(0, 60), st.sampled_from([0.0, 0.5, 0.9]))
def test_the_normaliser_with_momentum_has_the_papers_closed_form(tau, rho):
    closed = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    assert normaliser(tau, rho, pull=0.0) == pytest.approx(closed)


@given(st.integers(0, 60), st.floats(0, 0.9))
def test_the_normaliser_with_a_proximal_term_is_the_papers_recursion(tau, pull):
    n = 0.0
    for _ in range(tau):
        n = n * (1 - pull) + 1
    assert normaliser(tau, 0.0, pull) == pytest.approx(n)


@pytest.mark.parametrize(("momentum", "mu"), [(0.9, 0.0), (0.0, 2.0), (0.5, 2.0)])
def test_the_normaliser_is_what_gradients_of_1_move_a_weight_by(momentum, mu):
    """f with gradient 1 everywhere: torch's SGD with momentum and the proximal term moves w by -lr |a|."""
    w = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([w], lr=0.1, momentum=momentum)
    for _ in range(7):
        w.grad = torch.ones(1) + mu * w.detach()
        optimiser.step()
    assert -w.item() / 0.1 == pytest.approx(normaliser(7, momentum, 0.1 * mu), rel=1e-5)


def test_equal_steps_are_fedavg():
    nova = play(tiny_setup("fednova", nets=("small_cnn",)), rounds=3).state.model
    fedavg = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=3).state.model
    assert all(torch.allclose(nova[name].double(), fedavg[name].double(), atol=1e-6) for name in fedavg)


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}])
def test_one_client_is_local_sgd(changes):
    work = Work(steps=4, epochs=None, batch=8, lr=0.05, **changes)
    nova, fedavg = (
        play(tiny_setup(name, clients=1, work=work), rounds=3, shards=tiny_shards(1)).state.model
        for name in ("fednova", "fedavg")
    )
    assert all(torch.allclose(nova[name], fedavg[name], atol=1e-5) for name in fedavg)


def test_one_client_with_a_proximal_term_is_fedprox():
    nova, fedprox = (
        play(tiny_setup(name, clients=1, mu=2.0), rounds=3, shards=tiny_shards(1)).state.model
        for name in ("fednova", "fedprox")
    )
    assert all(torch.allclose(nova[name], fedprox[name], atol=1e-5) for name in fedprox)


def test_one_and_three_steps_by_hand():
    """f_0 = (w - 4)^2 / 2, one step: w_0 = 0.4, d_0 = -0.4. f_1 = (w - 1)^2 / 2, three: w_1 = 1 - 0.9^3 = 0.271,
    d_1 = -0.271 / 3. n = 1 and 3: p = 1/4, 3/4; tau_eff = (1 + 9) / 4 = 2.5."""
    setup, shards = regression("fednova", [[(1, 4)], [(1, 1)] * 3], EPOCH)
    run = play(setup, shards=shards, rounds=1)
    assert weight_of(run.state) == pytest.approx(2.5 * (0.25 * 0.4 + 0.75 * 0.271 / 3))
    assert run.metrics[0]["effective steps"] == 2.5


def test_the_proximal_term_is_allowed_for_at_the_rate_of_the_round():
    """mu 1, lr 0.1, a half of it in the second round: |a| of three steps is 1 + 0.95 + 0.95^2 then; p = 1/4, 3/4."""
    work = Work(steps=None, epochs=1, batch=1, lr=0.1, schedule=RateSchedule("step", every=1, factor=0.5))
    setup, shards = regression("fednova", [[(1, 4)], [(1, 1)] * 3], work, mu=1.0)
    first, second = (metrics["effective steps"] for metrics in play(setup, shards=shards, rounds=2).metrics)
    assert first == pytest.approx(0.25 * 1 + 0.75 * (1 + 0.9 + 0.81))
    assert second == pytest.approx(0.25 * 1 + 0.75 * (1 + 0.95 + 0.9025))


def test_one_client_under_a_schedule_is_fedprox():
    work = Work(steps=4, epochs=None, batch=8, lr=0.1, schedule=RateSchedule("cosine", rounds=3, warmup=1))
    nova, fedprox = (
        play(tiny_setup(name, clients=1, work=work, mu=2.0), rounds=3, shards=tiny_shards(1)).state.model
        for name in ("fednova", "fedprox")
    )
    assert all(torch.allclose(nova[name], fedprox[name], atol=1e-5) for name in fedprox)


def test_steps_that_are_not_sgds_are_refused():
    setup = tiny_setup("fednova", work=sgd(1, 0.1, optimiser="adamw"))
    (reason,) = needs_of(setup).refusals
    assert reason == "weighs steps of SGD, but the clients' optimiser is adamw"


def test_the_released_rule_counts_steps_where_there_is_a_proximal_term():
    """mu 1, lr 0.1: |a| = 1 for one step, 1 + 0.9 + 0.81 for three; p = 1/4, 3/4."""
    points = [[(1, 4)], [(1, 1)] * 3]

    def effective(**config):
        setup, shards = regression("fednova", points, EPOCH, **config)
        return play(setup, shards=shards, rounds=1).metrics[0]["effective steps"]

    assert effective(mu=1.0) == pytest.approx(0.25 * 1 + 0.75 * 2.71)
    assert effective(mu=1.0, effective_steps="released") == pytest.approx(0.25 * 1 + 0.75 * 3)
    assert effective(effective_steps="released") == effective()


def test_unequal_steps_do_not_move_the_minimum_as_they_do_with_fedavg():
    """f_0 = (w - 4)^2 / 2 in 1 step, f_1 = (2 w - 2)^2 / 2 in 10; uniform weights: minimum 8 / 5 = 1.6. FedAvg settles
    where steps times gradients sum to 0: (4 - w) + 10 * 4 (1 - w) = 0, w = 44 / 41."""
    points = [[(1, 4)], [(2, 2)] * 10]
    work = Work(steps=None, epochs=1, batch=1, lr=0.004)
    nova, fedavg = (
        weight_of(play(setup, shards=shards, rounds=100).state)
        for setup, shards in (regression(name, points, work, weights="uniform") for name in ("fednova", "fedavg"))
    )
    assert nova == pytest.approx(1.6, abs=0.05)
    assert fedavg == pytest.approx(44 / 41, abs=0.05)


def test_buffers_are_the_plain_weighted_average():
    points = [[(2, 1), (4, 1)], [(3, 1), (5, 2), (10, 1), (6, 1)]]
    nova, fedavg = (
        play(setup, shards=shards, rounds=1).state.model
        for setup, shards in (
            regression(name, points, Work(steps=None, epochs=3, batch=2, lr=0.1), net=NORMED_SCALAR)
            for name in ("fednova", "fedavg")
        )
    )
    buffers = [name for name in fedavg if name.startswith("body.1.")]
    assert len(buffers) == 3
    assert all(torch.equal(nova[name], fedavg[name]) for name in buffers)


def test_server_momentum_repeats_a_part_of_the_last_change():
    """One client, f = (w - 4)^2 / 2, one step of 0.1: w = 0.4; then 0.4 + 0.36 + 0.5 * 0.4 = 0.96."""
    setup, shards = regression("fednova", [[(1, 4)]], sgd(steps=1, lr=0.1), server_momentum=0.5)
    states = play(setup, shards=shards, rounds=2).states
    assert [weight_of(state) for state in states] == pytest.approx([0.4, 0.96])


def test_server_momentum_under_a_schedule_repeats_gradients_and_not_changes():
    """As above at 0.1, 0.05: w = 0.4 by a gradient of 4; then 0.05 (3.6 + 0.5 * 4) = 0.28 on top."""
    work = sgd(steps=1, lr=0.1, schedule=RateSchedule("step", every=1, factor=0.5))
    setup, shards = regression("fednova", [[(1, 4)]], work, server_momentum=0.5)
    states = play(setup, shards=shards, rounds=2).states
    assert [weight_of(state) for state in states] == pytest.approx([0.4, 0.68])


def test_fedavgs_bytes_and_one_number_travel():
    def total(name):
        setup = tiny_setup(name, clients=1, nets=("small_cnn",))
        return sum(entry.bytes for entry in play(setup, rounds=1, shards=tiny_shards(1)).book.entries)

    assert total("fednova") == total("fedavg") + 8


def test_no_steps_change_nothing():
    still = Work(steps=0, epochs=None, batch=8, lr=0.1)
    federation = Federation.inline(tiny_setup("fednova", work=still), tiny_shards())
    before = federation.state.model
    after = federation.play(0).state.model
    assert all(torch.equal(before[name], after[name]) for name in before)
