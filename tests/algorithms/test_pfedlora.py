"""pFedLoRA: networks that stay, a small adapter that travels, and which of them learns when."""

import dataclasses

import pytest
import torch

from actors.steps.worker import one_thread
from algorithms.core.payload import Payload, memory_tensors
from algorithms.core.training import Work
from algorithms.methods.pfedlora import FeatureAdapter
from algorithms.nets.classifier import require_head
from tests.algorithms.support_methods import Federation, Sizes, Travel, client_of, method_of, train
from tests.support import needs_of, play, tiny_setup, tiny_shards

MIXED = ("mlp", "small_cnn", "cnn2", "resnet8")


def travels(size: Sizes) -> Travel:
    """4 r (d_in + C) each way: r = 8, 128 features of `small_cnn`, 3 classes."""
    adapter = size.rounds * 4 * 8 * (128 + 3)
    return {("down", "adapters"): adapter, ("up", "adapters"): adapter, ("up", "examples"): 8 * size.rounds}


def own_of(federation, client):
    return memory_tensors("own", federation.runner.memories()[client])


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def one_client(net="small_cnn", work=None, **config):
    """A method, its setup and its first state; and what client 0 remembers and sends after a round."""
    setup = tiny_setup("pfedlora", clients=1, nets=(net,), work=work, **config)
    method = method_of(setup)
    with one_thread():
        state = method.start(setup.clients)
    reply = train(method, client_of(setup, tiny_shards(1), 0, Payload.of(adapters=state.adapter)))
    return method, setup, state, reply


def initial(method, net):
    return method.kit.initial(net)


# --- Which part learns ------------------------------------------------------------------------------------------------


def test_without_work_of_its_own_the_adapter_stays_as_it_was_to_the_bit():
    """The training of the network leaves it alone."""
    method, _, state, reply = one_client(adapter_work=0)
    assert equal(reply.payload.tensors("adapters"), state.adapter)
    assert not equal(memory_tensors("own", reply.memory), initial(method, "small_cnn"))


def test_the_training_of_the_adapter_leaves_the_network_and_its_buffers_as_they_were_to_the_bit():
    *_, short = one_client(adapter_work=0)
    *_, state, long = one_client(adapter_work=5)
    assert equal(memory_tensors("own", long.memory), memory_tensors("own", short.memory))
    assert not equal(long.payload.tensors("adapters"), state.adapter)


def test_with_mu_0_networks_learn_as_alone_and_the_adapter_nothing():
    _, setup, state, reply = one_client(mu=0.0)
    assert equal(reply.payload.tensors("adapters"), state.adapter)
    fedavg = dataclasses.replace(tiny_setup("fedavg", clients=1, nets=("small_cnn",)), work=setup.work)
    alone = play(fedavg, rounds=1, shards=tiny_shards(1)).state.model
    assert equal(memory_tensors("own", reply.memory), alone)


def test_a_step_of_either_part_follows_the_gradient_of_its_formula():
    """mu CE(z_A, y) + (1 - mu) CE(z_F, y), z_A = B D x of the features x, one SGD step each."""
    work, mu = Work(steps=1, epochs=None, batch=200, lr=0.3), 0.3
    method, setup, state, reply = one_client("mlp", work, mu=mu, rank=4)
    inputs, labels = setup.task.batch(tiny_shards(1)(0), torch.arange(120))
    net = require_head(method.kit.new_network("mlp"))
    down, up = (state.adapter[f"{name}.weight"].clone().requires_grad_() for name in ("down", "up"))

    def loss():
        features = net.features(inputs)
        cross = torch.nn.functional.cross_entropy
        return mu * cross(features @ down.T @ up.T, labels) + (1 - mu) * cross(net.head(features), labels)

    loss().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 0.3 * parameter.grad
    down.grad = up.grad = None
    for name, value in memory_tensors("own", reply.memory).items():
        torch.testing.assert_close(value, net.state_dict()[name], atol=1e-5, rtol=1e-4)
    loss().backward()
    sent = reply.payload.tensors("adapters")
    torch.testing.assert_close(sent["down.weight"], (down - 0.3 * down.grad).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sent["up.weight"], (up - 0.3 * up.grad).detach(), atol=1e-5, rtol=1e-4)


def test_one_client_alone_gives_the_server_its_own_adapter():
    _, setup, _, reply = one_client()
    played = play(setup, rounds=1, shards=tiny_shards(1))
    assert equal(played.state.adapter, reply.payload.tensors("adapters"))


def test_networks_go_on_from_round_to_round_and_one_of_an_absent_client_stays():
    federation = Federation.inline(tiny_setup("pfedlora", nets=MIXED), tiny_shards()).play(0)
    first = [own_of(federation, client) for client in range(6)]
    federation.play(1, asked=[0, 1])
    assert [equal(own_of(federation, client), first[client]) for client in range(6)] == [False] * 2 + [True] * 4


# --- The adapter ------------------------------------------------------------------------------------------------------


def test_an_adapter_of_the_rank_of_a_head_can_be_any_linear_head():
    """r = min(d_in, C): the product of least squares is the head itself."""
    torch.manual_seed(0)
    features, head = torch.randn(50, 12), torch.randn(3, 12)
    adapter = FeatureAdapter(12, 3, rank=3)
    with torch.no_grad():
        down = torch.linalg.lstsq(features, features @ head.T).solution.T
        adapter.down.weight.copy_(down)
        adapter.up.weight.copy_(torch.eye(3))
        torch.testing.assert_close(adapter(features), features @ head.T, atol=1e-5, rtol=1e-5)


def test_features_of_any_number_are_averaged_over_windows_to_the_common_number():
    adapter = FeatureAdapter(2, 2, rank=2)
    with torch.no_grad():
        adapter.down.weight.copy_(torch.eye(2))
        adapter.up.weight.copy_(torch.eye(2))
        assert adapter(torch.tensor([[1.0, 3, 5, 7, 9, 11]])).tolist() == [[3, 9]]
        assert adapter(torch.tensor([[1.0, 3, 5, 7]])).tolist() == [[2, 6]]


def test_both_factors_are_random_at_first_and_the_first_training_of_networks_hears_of_them():
    _, _, state, _ = one_client()
    assert all((value != 0).all() for value in state.adapter.values())
    *_, zero = one_client(mu=0.0, adapter_work=0)
    *_, half = one_client(mu=0.5, adapter_work=0)
    assert not equal(memory_tensors("own", zero.memory), memory_tensors("own", half.memory))


@pytest.mark.parametrize(("features", "expected"), [(None, 64), (16, 16)])
def test_the_common_number_is_the_least_of_the_clients_unless_it_is_given(features, expected):
    """The perceptron has 64 features, the residual network as many, the others more."""
    setup = tiny_setup("pfedlora", nets=MIXED, features=features, rank=5)
    shapes = {name: tuple(value.shape) for name, value in play(setup, rounds=1).state.adapter.items()}
    assert shapes == {"down.weight": (5, expected), "up.weight": (3, 5)}
    assert needs_of(setup).up["adapters"].bytes == 4 * 5 * (expected + 3)


# --- Predictions ------------------------------------------------------------------------------------------------------


def predictor_of(federation, client):
    message, memory = federation.method.own_message(federation.state), federation.runner.memories().get(client)
    asked = client_of(federation.setup, tiny_shards(), client, message, memory)
    return federation.method.own_predictor(asked)


def test_a_client_predicts_with_its_own_network_or_with_the_mixture_of_both_heads():
    inputs, _ = tiny_setup().task.batch(tiny_shards()(1), torch.arange(5))
    config = {"nets": MIXED, "mu": 0.25}
    own, mixed = (
        Federation.inline(tiny_setup("pfedlora", predict=predict, **config), tiny_shards()).play_all()
        for predict in ("own", "mixed")
    )
    with one_thread(), torch.no_grad():
        net = require_head(predictor_of(own, 1))
        assert equal(dict(net.state_dict()), own_of(own, 1))
        features = net.features(inputs)
        adapter = own.state.adapter
        pooled = torch.nn.functional.adaptive_avg_pool1d(features, 64)
        z_a = pooled @ adapter["down.weight"].T @ adapter["up.weight"].T
        expected = 0.25 * z_a.softmax(1) + 0.75 * net.head(features).softmax(1)
        found = predictor_of(mixed, 1)(inputs).softmax(1)
    torch.testing.assert_close(found, expected)


def test_a_client_that_never_trained_predicts_with_the_initial_network():
    federation = Federation.inline(tiny_setup("pfedlora"), tiny_shards()).play(0, asked=[0])
    net = predictor_of(federation, 3)
    assert equal(dict(net.state_dict()), initial(federation.method, "mlp"))
    assert not net.training


def test_the_server_has_no_predictor_and_says_whom_to_ask():
    federation = Federation.inline(tiny_setup("pfedlora"), tiny_shards()).play(0)
    with pytest.raises(NotImplementedError, match="evaluate_own"):
        federation.method.predictor(federation.state)


def test_widths_that_are_drawn_anew_are_refused_with_the_way_out():
    setup = tiny_setup("pfedlora", clients=2, nets=("small_cnn",))
    twice = (*setup.clients, dataclasses.replace(setup.clients[0], width=0.5))
    reasons = needs_of(dataclasses.replace(setup, clients=twice)).refusals
    assert any("drawn anew; draw them once" in reason for reason in reasons)
