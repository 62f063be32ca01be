"""SCAFFOLD: controls by hand, and what they are for."""

import pytest
import torch

from actors.runner import InlineRunner
from algorithms.core.payload import memory_tensors
from algorithms.core.schedules import CONSTANT, RateSchedule
from algorithms.core.states import clip_norm
from algorithms.core.training import Work
from tests.algorithms.support_methods import Federation, Sizes, Travel, regression, sgd, weight_of
from tests.support import needs_of, play, tiny_setup, tiny_shards

TWO = [[(1, 4)], [(2, 2)]]
"""f_0 = (w - 4)^2 / 2 and f_1 = (2 w - 2)^2 / 2 = 4 (w - 1)^2 / 2; minimum of their sum at (4 + 4) / (1 + 4) = 1.6."""


def travels(size: Sizes) -> Travel:
    """Model and control both ways."""
    sizes = {"weights": size.rounds * size.model, "control": size.rounds * size.trainable}
    return {(way, kind): count for way in ("down", "up") for kind, count in sizes.items()}


def controls(federation):
    """c_i by client, of the one weight."""
    memories = federation.runner.memories()
    return {k: memory_tensors("control", memory)["head.weight"].item() for k, memory in memories.items()}


def control(federation):
    return federation.state.control["head.weight"].item()


def two(steps=2, lr=0.1, work=None, **config):
    return Federation.inline(*regression("scaffold", TWO, work or sgd(steps, lr), **config), rounds=9)


def test_the_first_round_is_fedavg_to_the_bit():
    scaffold = play(tiny_setup("scaffold", nets=("small_cnn",)), rounds=1).state.model
    fedavg = play(tiny_setup("fedavg", nets=("small_cnn",), weights="uniform"), rounds=1).state.model
    assert all(torch.equal(scaffold[name], fedavg[name]) for name in fedavg)


@pytest.mark.parametrize(("schedule", "fall"), [(CONSTANT, 1.0), (RateSchedule("step", every=1, factor=0.5), 0.5)])
def test_three_rounds_by_hand(schedule, fall):
    """A client's new control is the mean of its uncorrected gradients, whatever the rate of the round; the next round's
    steps use g - c_i + c."""
    federation = two(work=sgd(2, 0.1, schedule=schedule))
    w, c, own = 0.0, 0.0, [0.0, 0.0]
    gradients = [lambda w: w - 4, lambda w: 2 * (2 * w - 2)]
    for number in range(3):
        ends = []
        for i, gradient in enumerate(gradients):
            y, seen = w, []
            for _ in range(2):
                seen.append(gradient(y))
                y -= 0.1 * fall**number * (seen[-1] - own[i] + c)
            ends.append(y)
            own[i] = sum(seen) / 2
        w, c = sum(ends) / 2, sum(own) / 2
        federation.play(number)
        assert weight_of(federation.state) == pytest.approx(w, rel=1e-5)
        assert control(federation) == pytest.approx(c, rel=1e-5)
        assert list(controls(federation).values()) == pytest.approx(own, rel=1e-5)


def test_the_servers_control_is_the_mean_of_the_clients():
    federation = Federation.inline(tiny_setup("scaffold", nets=("small_cnn",)), tiny_shards(), 2).play_all()
    memories = federation.runner.memories().values()
    for name, c in federation.state.control.items():
        mean = torch.stack([memory_tensors("control", memory)[name] for memory in memories]).mean(dim=0)
        assert torch.allclose(c, mean, atol=1e-6)


def test_clients_that_are_not_asked_stay_in_the_mean():
    federation = two().play(0)
    before = controls(federation)
    federation.play(1, asked=[1])
    assert controls(federation)[0] == before[0]
    assert control(federation) == pytest.approx(sum(controls(federation).values()) / 2, rel=1e-5)


def test_one_client_is_local_sgd():
    scaffold = play(tiny_setup("scaffold", clients=1), rounds=3, shards=tiny_shards(1)).state.model
    fedavg = play(tiny_setup("fedavg", clients=1), rounds=3, shards=tiny_shards(1)).state.model
    assert all(torch.allclose(scaffold[name], fedavg[name], atol=1e-6) for name in fedavg)


def test_many_local_steps_reach_the_joint_minimum_which_fedavg_misses():
    """8 steps of 0.2 leave 0.8^8 and 0.2^8 of the way to a client's minimum, at 4 and at 1; FedAvg settles where the
    mean of the clients' ends is where they started: w = ((4 - (4 - w) 0.8^8) + (1 - (1 - w) 0.2^8)) / 2."""
    left = 0.8**8, 0.2**8
    settled = (4 * (1 - left[0]) + (1 - left[1])) / (2 - left[0] - left[1])
    scaffold, fedavg = (play(*regressed(name), rounds=20) for name in ("scaffold", "fedavg"))
    assert weight_of(scaffold.state) == pytest.approx(1.6, abs=1e-3)
    assert weight_of(fedavg.state) == pytest.approx(settled, abs=1e-3)
    assert settled > 2.3


def regressed(name):
    setup, shards = regression(name, TWO, sgd(steps=8, lr=0.2))
    return setup, InlineRunner(setup, shards)


def test_buffers_have_no_control():
    federation = Federation.inline(tiny_setup("scaffold", nets=("small_cnn",)), tiny_shards())
    net = federation.method.kit.network("small_cnn")
    assert federation.state.control.keys() == dict(net.named_parameters()).keys()


def test_weights_and_controls_travel_both_ways():
    setup = tiny_setup("scaffold", clients=1, nets=("mlp",))
    weights = 4 * ((64 + 1) * 64 + (64 + 1) * 3)
    sent = {(e.direction, e.kind): e.bytes for e in play(setup, rounds=1, shards=tiny_shards(1)).book.entries}
    assert sent == {(way, kind): weights for way in ("up", "down") for kind in ("weights", "control")}


def test_a_server_step_of_a_half_goes_half_the_way():
    assert weight_of(two(server_lr=0.5).play(0).state) == pytest.approx(weight_of(two().play(0).state) / 2)


def test_steps_are_those_a_client_took():
    """An epoch at batch 1 of 1 and of 3 points: 1 and 3 steps, by which the mean of the gradients is taken."""
    work = Work(steps=None, epochs=1, batch=1, lr=0.1)
    setup, shards = regression("scaffold", [[(1, 4)], [(1, 4)] * 3], work)
    found = controls(Federation.inline(setup, shards).play(0))
    seen, w = [], 0.0
    for _ in range(3):
        seen.append(w - 4)
        w -= 0.1 * seen[-1]
    assert list(found.values()) == pytest.approx([-4, sum(seen) / 3], rel=1e-5)


def test_a_control_keeps_within_its_bound():
    assert controls(two(control_clip=0.5).play(0)) == pytest.approx({0: -0.5, 1: -0.5})
    assert control(two(control_clip=0.5).play(0)) == pytest.approx(-0.5)


def test_a_bound_is_on_all_entries_together():
    state = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    assert {k: v.item() for k, v in clip_norm(state, 2.5).items()} == pytest.approx({"a": 1.5, "b": 2.0})
    assert clip_norm(state, 5.0)["a"] is state["a"]


def test_no_step_leaves_the_control():
    federation = two().play(0)
    still = two(work=Work(steps=2, epochs=None, batch=9, lr=0.0))
    assert controls(still.play(0)) == {0: 0.0, 1: 0.0}
    assert controls(federation)[0] != 0


@pytest.mark.parametrize(
    ("change", "found"), [({"momentum": 0.9}, "momentum is 0.9"), ({"optimiser": "adam"}, "optimiser is adam")]
)
def test_anything_but_plain_sgd_is_refused(change, found):
    setup = tiny_setup("scaffold", work=sgd(1, 0.1, **change))
    (reason,) = needs_of(setup).refusals
    assert reason == f"needs plain SGD, but the clients' {found}"
