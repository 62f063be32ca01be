"""FedAvg, on problems whose answers are a few lines of arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.steps.worker import one_thread
from algorithms.core.contract import Update
from algorithms.core.payload import Payload
from algorithms.core.seeds import Seed
from algorithms.core.states import WeightedMean
from algorithms.core.training import Work, fit
from tests.algorithms.support_methods import Federation, method_of, regression, sgd, weight_of
from tests.support import needs_of, play, tiny_setup, tiny_shards


def update(client, weight, n, count=1):
    state = {"w": torch.tensor([weight]), "counter": torch.tensor(count)}
    return Update(client, Payload.of(weights=state, examples={"n": n}))


def averaged(*updates, **config):
    mean = WeightedMean()
    for one in updates:
        mean.add(*method_of(tiny_setup("fedavg", **config)).terms(one)["weights"])
    return mean.result(otherwise={"w": torch.tensor([9.0])})


def test_one_round_by_hand():
    """f_0 = (w - 4)^2 / 2 and f_1 = (3 w - 1)^2 / 2, at w = 0: gradients -4 and -3, so w_0 = 0.4 and w_1 = 0.3."""
    setup, shards = regression("fedavg", [[(1, 4)], [(3, 1)] * 2], sgd(steps=1, lr=0.1))
    state = Federation.inline(setup, shards).play(0).state
    assert weight_of(state) == pytest.approx((1 * 0.4 + 2 * 0.3) / 3)


def test_uniform_weights_ignore_the_numbers_of_examples():
    setup, shards = regression("fedavg", [[(1, 4)], [(3, 1)] * 2], sgd(steps=1, lr=0.1), weights="uniform")
    assert weight_of(Federation.inline(setup, shards).play(0).state) == pytest.approx((0.4 + 0.3) / 2)


def test_one_client_is_local_sgd_to_the_bit():
    setup = tiny_setup("fedavg", clients=1, nets=("small_cnn",))
    net = method_of(setup).kit.new_network("small_cnn")
    position = 0
    with one_thread():
        for number in range(3):
            seed = Seed(setup.seed, round=number, phase="train", client=0)
            position = fit(net, setup.task, tiny_shards(1)(0), setup.work, seed, position=position).position
    model = play(setup, rounds=3, shards=tiny_shards(1)).state.model
    assert all(torch.equal(model[name], value) for name, value in net.state_dict().items())


def test_clients_with_the_same_data_agree_with_their_average():
    one, alone = regression("fedavg", [[(3, 5)]], sgd(steps=4, lr=0.01))
    three, together = regression("fedavg", [[(3, 5)]] * 3, sgd(steps=4, lr=0.01))
    assert play(three, shards=together).digest == play(one, shards=alone).digest


def test_no_steps_change_nothing():
    setup = tiny_setup("fedavg", nets=("small_cnn",), work=Work(steps=0, epochs=None, batch=8, lr=0.1))
    federation = Federation.inline(setup, tiny_shards())
    before = federation.state.model
    after = federation.play(0).state.model
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_learning_rate_of_0_changes_nothing_but_the_statistics():
    setup = tiny_setup("fedavg", nets=("small_cnn",), work=Work(steps=2, epochs=None, batch=8, lr=0.0))
    federation = Federation.inline(setup, tiny_shards())
    before = federation.state.model
    after = federation.play(0).state.model
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


def test_one_full_batch_step_of_all_clients_is_one_step_on_the_union():
    points = [[(1, 4), (2, 7), (5, 1)], [(3, 1)], [(4, 4), (2, 2)]]
    clients, shards = regression("fedavg", points, sgd(steps=1, lr=0.02))
    union, pooled = regression("fedavg", [[point for own in points for point in own]], sgd(steps=1, lr=0.02))
    apart, together = play(clients, shards=shards, rounds=5), play(union, shards=pooled, rounds=5)
    assert weight_of(apart.state) == pytest.approx(weight_of(together.state), rel=1e-6)


def test_linear_regression_converges_to_the_pooled_solution():
    """Pooled least squares: w = sum x y / sum x^2. One local step a round, so that clients do not drift."""
    points = [[(1, 4), (2, 7)], [(3, 1)], [(1, 2), (2, 2)]]
    setup, shards = regression("fedavg", points, sgd(steps=1, lr=0.1))
    pooled = sum(x * y for own in points for x, y in own) / sum(x * x for own in points for x, y in own)
    assert weight_of(play(setup, shards=shards, rounds=60).state) == pytest.approx(pooled, rel=1e-5)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-10, 10, width=32), st.integers(1, 50)), min_size=1, max_size=6), st.randoms())
def test_the_order_of_clients_does_not_matter_and_their_shares_sum_to_one(pairs, random):
    updates = [update(k, weight, n) for k, (weight, n) in enumerate(pairs)]
    shuffled = random.sample(updates, len(updates))
    expected = sum(weight * n for weight, n in pairs) / sum(n for _, n in pairs)
    assert averaged(*updates)["w"].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert averaged(*shuffled)["w"].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_counters_stay_integers():
    setup = tiny_setup("fedavg", nets=("small_cnn",))
    counters = [v for name, v in play(setup, rounds=3).state.model.items() if name.endswith("num_batches_tracked")]
    assert [(c.dtype, c.item()) for c in counters] == [(torch.int64, 3 * 3)] * 3


def test_a_client_with_no_examples_is_ignored_even_where_its_weights_are_nan():
    assert averaged(update(0, float("nan"), n=0), update(1, 2.0, n=5))["w"].tolist() == [2.0]


def test_a_round_in_which_nobody_has_examples_keeps_the_previous_weights():
    assert averaged(update(0, 2.0, n=0))["w"].tolist() == [9.0]
    assert averaged()["w"].tolist() == [9.0]


def test_a_model_and_a_number_of_examples_travel():
    """ResNet-18 for 10 classes in the spec: 44,734,408 bytes. Here: 8-16-32 channels, by the same formula."""
    setup = tiny_setup("fedavg", clients=2, nets=("small_cnn",))
    weights = 9 * (1 * 8 + 8 * 16 + 16 * 32) + 128 * 3 + 3
    norm, counters = 4 * (8 + 16 + 32), 3
    model = 4 * (weights + norm) + 8 * counters
    sent = {(e.client, e.direction, e.kind): e.bytes for e in play(setup, rounds=1).book.entries}
    one = {("down", "weights"): model, ("up", "weights"): model, ("up", "examples"): 8}
    assert sent == {(client, *key): count for client in range(2) for key, count in one.items()}


def test_numbers_of_examples_stay_with_clients_where_all_count_the_same():
    setup = tiny_setup("fedavg", weights="uniform")
    run = play(setup, rounds=1)
    assert {entry.kind for entry in run.book.entries} == needs_of(setup).up.keys() == {"weights"}


def test_the_models_bytes_are_those_of_the_spec_for_resnet18():
    setup = tiny_setup("fedavg", nets=("resnet18",))
    net = method_of(setup).kit.new_network("resnet18")
    here = Payload.of(weights=net.state_dict()).nbytes()["weights"]
    colour, classes = 64 * 9 * (3 - 1), (512 + 1) * (10 - 3)
    assert here + 4 * (colour + classes) == 44_734_408
