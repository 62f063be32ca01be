"""Clients whose steps meet in their training: the same run for every number of them, and no method knows."""

from dataclasses import replace

import pytest
import torch

from actors.runner import InlineRunner
from actors.steps.orders import Failure, Order
from actors.steps.stacking import Crew
from algorithms.core.payload import Payload
from algorithms.core.schedules import RateSchedule
from algorithms.core.seeds import Seed
from algorithms.core.training import Work
from algorithms.tasks.images import Augment
from tests.support import play, tiny_setup, tiny_shards

CLIENTS = 7
SHARDS = tiny_shards(CLIENTS)
METHODS = {"fedavg": {}, "fedprox": {"mu": 0.5}, "scaffold": {}, "fednova": {}, "feddyn": {}, "fedrs": {}}


def setup(stack, method="fedavg", **config):
    return replace(tiny_setup(method, clients=CLIENTS, **config), stack=stack)


def digest(setup, group):
    """The digest of a run whose clients meet in groups of this size."""
    runner = InlineRunner(setup, SHARDS)
    runner._crew.size = group
    return play(setup, runner).digest


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_however_many_clients_meet(method):
    """One to all at once: one digest. Without stacking: the same weights but for rounding."""
    config = METHODS[method]
    assert len({digest(setup(True, method, **config), group) for group in (1, 2, 3, CLIENTS)}) == 1
    alone, together = (play(setup(stack, method, **config), shards=SHARDS).state.model for stack in (False, True))
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-5)


def test_a_step_may_send_its_networks_own_tensors(monkeypatch):
    """Nobody's later step reaches what has been sent."""
    copied = digest(setup(True), CLIENTS)
    monkeypatch.setattr("algorithms.parts.averaging.snapshot", lambda net: net.state_dict())
    assert digest(setup(True), CLIENTS) == copied


def test_networks_that_are_faster_alone_are_trained_alone_with_the_bits_of_training_alone():
    alone, together = (play(setup(stack, nets=("small_cnn",)), shards=SHARDS).digest for stack in (False, True))
    assert alone == together


def test_networks_with_convolutions_are_stacked_where_they_are_asked_for():
    narrow = tuple(replace(c, net="cnn2", width=0.25) for c in setup(False).clients)

    def with_convolutions(stack):
        return replace(setup(stack), clients=narrow)

    alone, plain = (play(with_convolutions(stack), shards=SHARDS) for stack in (False, True))
    assert plain.digest == alone.digest
    together = play(with_convolutions("convolutions"), shards=SHARDS)
    assert together.digest == digest(with_convolutions("convolutions"), 2) != alone.digest
    for name, value in alone.state.model.items():
        torch.testing.assert_close(together.state.model[name], value, rtol=1e-3, atol=1e-5)


def test_an_objective_that_asks_for_more_than_outputs_is_trained_alone(monkeypatch):
    monkeypatch.setattr("algorithms.methods.fedrs.OutputsObjective", lambda loss: lambda n, x, y: loss(n(x), y))
    alone, together = (play(setup(stack, "fedrs"), shards=SHARDS).digest for stack in (False, True))
    assert alone == together


def test_clients_that_augment_their_images_are_stacked_and_draw_what_they_draw_alone():
    def augmented(stack):
        asked = setup(stack)
        return replace(asked, task=replace(asked.task, augment=Augment(crop=1, flip=True)))

    assert len({digest(augmented(True), group) for group in (1, 3, CLIENTS)}) == 1
    alone, together = (play(augmented(stack), shards=SHARDS) for stack in (False, True))
    assert alone.digest != together.digest
    for name, value in alone.state.model.items():
        torch.testing.assert_close(together.state.model[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("change", [{"optimiser": "adam"}, {"label_smoothing": 0.2}], ids=str)
def test_clients_that_do_not_take_plain_steps_are_trained_alone(change):
    work = Work(steps=3, epochs=None, batch=8, lr=0.1, **change)
    alone, together = (play(setup(stack, work=work), shards=SHARDS).digest for stack in (False, True))
    assert alone == together


def test_clients_of_different_networks_and_widths_are_stacked_with_their_likes():
    mixed = tiny_setup("heterofl", clients=CLIENTS, nets=("mlp",))
    narrow = tuple(replace(c, width=0.5) if c.id % 2 else c for c in mixed.clients)
    assert len({digest(replace(mixed, clients=narrow, stack=True), group) for group in (1, 2, CLIENTS)}) == 1


def orders(*clients):
    received = Payload.of(weights=Crew(setup(False), SHARDS)._worker._method.kit.initial("mlp"))
    return [Order("train", c, Seed(3, 0, "train", c), received, {}) for c in clients]


def weights(outcome):
    return [t.numpy().tobytes() for t in outcome.payload.tensors("weights").values()]


def test_clients_that_are_trained_together_have_the_rate_of_their_round():
    falling = Work(steps=3, epochs=None, batch=8, lr=0.4, schedule=RateSchedule("step", every=2, factor=0.5))

    def ends(work):
        of_round = [replace(order, seed=order.seed.at(round=2)) for order in orders(0, 1, 2)]
        return [weights(outcome) for outcome in Crew(setup(True, work=work), SHARDS).perform(of_round)]

    assert ends(falling) == ends(falling.at(2))
    assert ends(falling) != ends(falling.at(0))


def test_a_client_that_fails_fails_alone():
    """The third has a memory that names no place in its order of examples."""
    crew = Crew(setup(True), SHARDS)
    whole = list(crew.perform(orders(0, 1, 2, 3)))
    broken = orders(0, 1, 2, 3)
    broken[2] = replace(broken[2], memory={"position": "nowhere"})
    found = list(crew.perform(broken))
    assert isinstance(found[2], Failure)
    assert [weights(found[i]) for i in (0, 1, 3)] == [weights(whole[i]) for i in (0, 1, 3)]


def test_a_correction_that_raises_fails_its_own_client_alone(monkeypatch):
    """Its exception comes out of the training of all; then each trains alone, and meets its own."""
    crew = Crew(setup(True, "fedprox", mu=0.5), SHARDS)
    whole = list(crew.perform(orders(0, 1, 2, 3)))
    method = crew._worker._method
    given = type(method).fit

    def fit(self, client, net, objective=None, correct=None):
        def stumble(parameters):
            raise ArithmeticError("two is one too many")

        return given(self, client, net, objective, stumble if client.spec.id == 2 else correct)

    monkeypatch.setattr(type(method), "fit", fit)
    found = list(crew.perform(orders(0, 1, 2, 3)))
    assert isinstance(found[2], Failure)
    assert found[2].error == "ArithmeticError: two is one too many"
    assert [weights(found[i]) for i in (0, 1, 3)] == [weights(whole[i]) for i in (0, 1, 3)]


def test_a_step_that_trains_nothing_is_performed_once():
    """Each walk counts its calls in its client's memory."""
    toy = replace(tiny_setup("tests.toys:Toy", clients=CLIENTS), stack=True)
    runner = InlineRunner(toy, SHARDS)
    play(toy, runner, rounds=3)
    assert {memory["calls"] for memory in runner.memories().values()} == {3}


def test_the_seconds_of_training_together_are_shared_by_those_who_trained(monkeypatch):
    """A clock that moves by one second at every look: gathering and training lie between two looks of the crew."""
    ticks = iter(range(10**6))
    crew = Crew(setup(True), SHARDS)
    crew._worker.clock = lambda: float(next(ticks))
    outcomes = list(crew.perform(orders(0, 1, 2, 3)))
    assert len({outcome.seconds for outcome in outcomes}) == 1
    looks_together = 4 + 1  # each of the four steps began once, and the crew looked at its end
    assert outcomes[0].seconds == looks_together / 4 + 1


@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("hosts", [1, 2])
def test_on_ray_the_run_is_that_of_the_inline_runner(ray_cluster, hosts):
    from actors.hosts.placement import Placement
    from actors.hosts.ray import RayRunner

    of_work = Work(steps=None, epochs=1, batch=8, lr=0.1)
    asked = replace(setup(True, work=of_work))
    inline = play(asked, shards=SHARDS).digest
    runner = RayRunner(asked, SHARDS, Placement("pooled", hosts, cpus=0.1, gpus=0, reason=""))
    try:
        assert play(asked, runner).digest == inline
    finally:
        runner.close()
