"""FedDyn: the paper's and the code's form against one another, and the joint minimum."""

import pytest
import torch

from algorithms.core.payload import Payload, memory_tensors
from algorithms.core.schedules import RateSchedule
from tests.algorithms.support_methods import (
    Federation,
    Sizes,
    Travel,
    client_of,
    method_of,
    regression,
    sgd,
    train,
    weight_of,
)
from tests.support import play, tiny_setup, tiny_shards

TWO = [[(1, 4)], [(2, 2)]]
"""f_0 = (w - 4)^2 / 2 and f_1 = (2 w - 2)^2 / 2; minimum of their sum at (4 + 4) / (1 + 4) = 1.6."""

GRADIENTS = [lambda w: w - 4, lambda w: 2 * (2 * w - 2)]


def travels(size: Sizes) -> Travel:
    """The model each way."""
    return {(way, "weights"): size.rounds * size.model for way in ("down", "up")}


def two(steps=3, lr=0.05, alpha=0.5, points=TWO, **config):
    return Federation.inline(*regression("feddyn", points, sgd(steps, lr), alpha=alpha, **config), rounds=9)


def moves(federation):
    """h_i by client, of the one weight."""
    memories = federation.runner.memories()
    return {k: memory_tensors("moves", memory)["head.weight"].item() for k, memory in memories.items()}


def plainly(seen, lr):
    """The step against the last of these gradients, by SGD."""
    return lr * seen[-1]


def paper(rounds, alpha=0.5, lr=0.05, steps=3, fall=1.0, step=plainly):
    """Algorithm 1 as printed: g_i at the clients, h at the server; `lr` falls by a factor from round to round."""
    theta, h, g = 0.0, 0.0, [0.0, 0.0]
    for number in range(rounds):
        ends = []
        for i, gradient in enumerate(GRADIENTS):
            w, seen = theta, []
            for _ in range(steps):
                seen.append(gradient(w) - g[i] + alpha * (w - theta))
                w -= step(seen, lr * fall**number)
            ends.append(w)
            g[i] -= alpha * (w - theta)
        h -= alpha / 2 * sum(w - theta for w in ends)
        theta = sum(ends) / 2 - h / alpha
    return theta, sum(ends) / 2


def adam(seen, lr):
    """The step against the last of these gradients, by Adam with its usual settings."""
    m = sum(0.1 * 0.9 ** (len(seen) - 1 - k) * g for k, g in enumerate(seen)) / (1 - 0.9 ** len(seen))
    v = sum(0.001 * 0.999 ** (len(seen) - 1 - k) * g * g for k, g in enumerate(seen)) / (1 - 0.999 ** len(seen))
    return lr * m / (v**0.5 + 1e-8)


def code(rounds, alpha=0.5, lr=0.05, steps=3):
    """The authors' code: a linear loss, and the quadratic one as weight decay."""
    theta, h = 0.0, [0.0, 0.0]
    for _ in range(rounds):
        ends = []
        for i, gradient in enumerate(GRADIENTS):
            w = theta
            for _ in range(steps):
                w -= lr * (gradient(w) + alpha * (h[i] - theta) + alpha * w)
            ends.append(w)
            h[i] += w - theta
        theta = sum(ends) / 2 + sum(h) / 2
    return theta, sum(ends) / 2


@pytest.mark.parametrize("form", [paper, code])
def test_three_rounds_of_both_forms(form):
    federation = two()
    for number in range(3):
        state = federation.play(number).state
        theta, average = form(number + 1)
        assert weight_of(state) == pytest.approx(theta, rel=1e-5)
        assert state.average["head.weight"].item() == pytest.approx(average, rel=1e-5)


@pytest.mark.parametrize(("optimiser", "step"), [("sgd", plainly), ("adam", adam)])
def test_any_optimiser_at_any_rate_is_a_solver_of_the_papers_local_problem(optimiser, step):
    work = sgd(3, 0.05, optimiser=optimiser, schedule=RateSchedule("step", every=1, factor=0.5))
    federation = Federation.inline(*regression("feddyn", TWO, work, alpha=0.5))
    for number in range(3):
        theta, _ = paper(number + 1, fall=0.5, step=step)
        assert weight_of(federation.play(number).state) == pytest.approx(theta, rel=1e-4)


def test_the_first_rounds_clients_are_fedproxs_with_mu_alpha():
    setups = (
        tiny_setup("feddyn", nets=("small_cnn",), alpha=0.3),
        tiny_setup("fedprox", nets=("small_cnn",), mu=0.3),
    )
    message = Payload.of(weights=method_of(setups[0]).start(setups[0].clients).model)
    dyn, prox = (train(method_of(setup), client_of(setup, tiny_shards(), 2, message)) for setup in setups)
    ours, theirs = (reply.payload.tensors("weights") for reply in (dyn, prox))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_large_alpha_keeps_clients_at_theta():
    near, far = (two(steps=20, lr=0.001, alpha=alpha).play(0) for alpha in (900.0, 0.01))
    assert abs(near.state.average["head.weight"].item()) < 0.1 * abs(far.state.average["head.weight"].item())


def test_a_fixed_point_is_the_joint_minimum():
    """Clients solved nearly exactly (FedAvg would settle near 2.5). At a fixed point no client moves its h_i any more,
    so theta_i = theta for all, and g_i = -alpha h_i is the client's gradient there; both sum to 0."""
    federation = Federation.inline(*regression("feddyn", TWO, sgd(15, 0.2), alpha=1.0), rounds=30).play_all()
    assert weight_of(federation.state) == pytest.approx(1.6, abs=1e-3)
    assert federation.state.average["head.weight"].item() == pytest.approx(1.6, abs=1e-3)
    assert [-h for h in moves(federation).values()] == pytest.approx([g(1.6) for g in GRADIENTS], abs=1e-2)


def test_an_absent_client_keeps_its_memory_and_its_part_of_the_mean():
    federation = two().play(0)
    before = moves(federation)
    federation.play(1, asked=[1])
    assert moves(federation)[0] == before[0]
    assert moves(federation)[1] != before[1]


def test_the_mean_kept_by_the_server_is_the_mean_of_the_clients():
    federation = two()
    for number, asked in enumerate([None, [1], [0], [0, 1]]):
        federation.play(number, asked)
        mean = sum(moves(federation).get(k, 0.0) for k in range(2)) / 2
        assert federation.state.moves["head.weight"].item() == pytest.approx(mean, rel=1e-5)


def test_what_is_evaluated_is_the_average_or_what_is_sent():
    pixel = torch.ones(1, 1, 1, 1)
    for evaluated, number in (("average", code(2)[1]), ("sent", code(2)[0])):
        federation = two(evaluated=evaluated).play(0).play(1)
        assert federation.method.predictor(federation.state)(pixel).item() == pytest.approx(number, rel=1e-5)


def test_buffers_are_averaged():
    setup = tiny_setup("feddyn", nets=("small_cnn",))
    state = play(setup, rounds=2).state
    buffers = [name for name in state.model if name not in state.moves]
    assert buffers
    assert all(torch.equal(state.model[name], state.average[name]) for name in buffers)


def test_the_released_rule_regularises_clients_with_many_examples_less():
    """n = 1 and 3, mean 2: alpha_i = 2 alpha and 2/3 alpha. Two steps of 0.1 from 0, alpha 0.5."""
    points = [[(1, 4)], [(1, 1)] * 3]
    federation = two(steps=2, lr=0.1, points=points, scale="released").play(0)
    expected = []
    for target, strength in ((4, 1.0), (1, 1 / 3)):
        w = 0.1 * target
        w -= 0.1 * ((w - target) + strength * w)
        expected.append(w)
    assert list(moves(federation).values()) == pytest.approx(expected, rel=1e-5)


def test_the_released_rule_asks_everyone_for_its_examples_once():
    federation = two(scale="released").play(0, asked=[1]).play(1)
    asked = [(e.round, e.client, e.bytes) for e in federation.book.entries if e.phase == "count"]
    assert asked == [(0, 0, 8), (0, 1, 8)]
    assert federation.state.examples == 1
