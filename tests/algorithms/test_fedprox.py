"""FedProx: exact reductions to FedAvg, and the proximal point by hand."""

import pytest
import torch

from actors.steps.worker import one_thread
from algorithms.core.payload import Payload
from algorithms.core.training import Work
from tests.algorithms.support_methods import client_of, method_of, regression, sgd, train, weight_of
from tests.support import play, tiny_setup, tiny_shards


def test_mu_0_is_fedavg_to_the_bit():
    fedprox = play(tiny_setup("fedprox", nets=("small_cnn",), mu=0.0), rounds=3)
    assert fedprox.digest == play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=3).digest


def test_the_first_step_is_fedavgs_whatever_mu():
    once = Work(steps=1, epochs=None, batch=8, lr=0.1)
    fedprox = play(tiny_setup("fedprox", nets=("small_cnn",), work=once, mu=50.0), rounds=1)
    assert fedprox.digest == play(tiny_setup("fedavg", nets=("small_cnn",), work=once), rounds=1).digest


def test_two_steps_by_hand():
    """f = (w - 4)^2 / 2, lr 0.1, mu 3: w_1 = 0.4; gradient -3.6 + 3 * 0.4 = -2.4, so w_2 = 0.64."""
    setup, shards = regression("fedprox", [[(1, 4)]], sgd(steps=2, lr=0.1), mu=3.0)
    assert weight_of(play(setup, shards=shards, rounds=1).state) == pytest.approx(0.64)


@pytest.mark.parametrize(("a", "b", "mu"), [(1, 4, 3.0), (2, 3, 1.0), (3, -1, 0.5)])
def test_the_solution_of_a_quadratic_lies_between_its_minimum_and_the_received_weights(a, b, mu):
    """f = a^2 / 2 (w - b)^2 around theta = 0 (point x = a, y = a b): (a^2 b + mu theta) / (a^2 + mu)."""
    setup, shards = regression("fedprox", [[(a, a * b)]], sgd(steps=300, lr=0.05), mu=mu)
    assert weight_of(play(setup, shards=shards, rounds=1).state) == pytest.approx(a * a * b / (a * a + mu), rel=1e-5)


def test_a_larger_mu_keeps_clients_nearer():
    work = Work(steps=10, epochs=None, batch=8, lr=0.001)

    def distance(mu):
        setup = tiny_setup("fedprox", clients=1, work=work, mu=mu)
        start = method_of(setup).start(setup.clients).model
        end = play(setup, rounds=1, shards=tiny_shards(1)).state.model
        return sum(float((end[name] - start[name]).square().sum()) for name in start) ** 0.5

    distances = [distance(mu) for mu in (0.0, 10.0, 100.0, 900.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.2 * distances[0]


def test_the_penalty_in_the_loss_gives_the_same_weights():
    setup = tiny_setup("fedprox", nets=("small_cnn",), mu=0.7)
    method = method_of(setup)
    state = method.start(setup.clients)
    client = client_of(setup, tiny_shards(), 0, Payload.of(weights=state.model))
    theta = [state.model[name] for name, _ in method.kit.new_network("small_cnn").named_parameters()]

    def penalised(net, inputs, labels):
        squares = sum((w - t).square().sum() for w, t in zip(net.parameters(), theta, strict=True))
        return setup.task.loss(net(inputs), labels) + 0.7 / 2 * squares

    with one_thread():
        net = method.received_network(client)
        method.fit(client, net, objective=penalised)
        expected = {name: value.clone() for name, value in net.state_dict().items()}
    weights = train(method, client).payload.tensors("weights")
    assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in weights)
    assert not torch.equal(weights["head.weight"], state.model["head.weight"])


def test_statistics_are_no_part_of_the_penalty():
    still = Work(steps=3, epochs=None, batch=8, lr=0.0)
    fedprox = play(tiny_setup("fedprox", nets=("small_cnn",), work=still, mu=100.0), rounds=2)
    assert fedprox.digest == play(tiny_setup("fedavg", nets=("small_cnn",), work=still), rounds=2).digest


def test_a_client_with_one_step_counts_beside_one_with_many():
    """An epoch at batch 1: client 0 takes 1 step to 0.4, client 1 with f = (w - 4)^2 / 2 takes 5 around theta = 0."""
    work = Work(steps=None, epochs=1, batch=1, lr=0.1)
    setup, shards = regression("fedprox", [[(1, 4)], [(1, 4)] * 5], work, mu=1.0)
    w = 0.0
    for _ in range(5):
        w -= 0.1 * ((w - 4) + 1.0 * (w - 0))
    assert weight_of(play(setup, shards=shards, rounds=1).state) == pytest.approx((1 * 0.4 + 5 * w) / 6)


def test_the_loss_told_is_without_the_penalty():
    setup, shards = regression("fedprox", [[(1, 4)]], sgd(steps=2, lr=0.1), mu=3.0)
    (loss,) = [m.value for m in play(setup, shards=shards, rounds=1).book.metrics if m.name == "loss"]
    assert loss == pytest.approx(((0 - 4) ** 2 / 2 + (0.4 - 4) ** 2 / 2) / 2)
