"""FedDAT: two adapters that teach each other, of which one is shared."""

import dataclasses

import pytest
import torch

from actors.steps.worker import one_thread
from algorithms.core.payload import memory_tensors
from algorithms.core.training import Work
from algorithms.methods.feddat import gate, kl_divergence
from algorithms.tasks._next_token import NO_TARGET
from tests.algorithms.support_language import language_setup, language_shards, prepared
from tests.algorithms.support_methods import Federation, client_of
from tests.support import needs_of, play

ONE_STEP = Work(steps=1, epochs=None, batch=100, lr=0.5)


def memory_of(federation, label, client=0):
    return memory_tensors(label, federation.runner.memories()[client])


def adapted(state):
    net = prepared().task.network(language_setup("feddat").clients[0].net)
    net.load_state_dict(dict(state))
    return net.eval()


def branch(net, state):
    found = net.new_branch()
    found.load_state_dict(dict(state))
    return found.eval()


def logits(net, ids):
    with one_thread(), torch.no_grad():
        return net(ids)


def inputs_of(count=4):
    return prepared().task.batch(language_shards(3)(0), torch.arange(count))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- The distance -----------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_its_formula_over_the_tokens_that_are_learnt():
    torch.manual_seed(0)
    z, t = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    targets = torch.tensor([[NO_TARGET, 1, 2], [NO_TARGET, NO_TARGET, 4]])
    expected = 0.0
    for row, place in ((0, 1), (0, 2), (1, 2)):
        p, q = (t[row, place] / 3).softmax(0), (z[row, place] / 3).softmax(0)
        expected += float((p * (p / q).log()).sum())
    assert kl_divergence(z, t, targets, 3.0).item() == pytest.approx(9 * expected / 3, rel=1e-4)


def test_equal_logits_have_no_divergence_and_no_gradient_of_it():
    z = torch.randn(1, 4, 6, requires_grad=True)
    found = kl_divergence(z, z.detach(), torch.ones(1, 4, dtype=torch.int64), 3.0)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-7)
    torch.testing.assert_close(z.grad, torch.zeros_like(z), atol=1e-7, rtol=0)


def test_the_gradient_at_small_differences_depends_little_on_the_temperature():
    torch.manual_seed(0)
    t, norms = 0.1 * torch.randn(1, 8, 20), []
    for temperature in (1.0, 3.0, 9.0):
        z = (t + 0.01 * torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(1))).requires_grad_()
        kl_divergence(z, t, torch.ones(1, 8, dtype=torch.int64), temperature).backward()
        norms.append(z.grad.norm().item())
    assert max(norms) < 1.1 * min(norms)


# --- Training ---------------------------------------------------------------------------------------------------------


def test_without_the_divergence_the_shared_adapter_is_that_of_fedavg_to_the_bit():
    """Of half the loss, which is half the rate."""
    work = Work(steps=2, epochs=None, batch=4, lr=0.5)
    ours = play(language_setup("feddat", kl=0.0, work=work), rounds=3, shards=language_shards())
    halved = dataclasses.replace(work, lr=0.25)
    fedavg = language_setup("fedavg", weights="uniform", work=halved)
    assert ours.digest == play(fedavg, rounds=3, shards=language_shards()).digest


def test_the_copy_is_the_adapter_that_was_received_to_the_bit():
    federation = Federation.inline(language_setup("feddat"), language_shards(), 3).play(0).play(1)
    received = federation.state.model
    federation.play(2)
    assert equal(memory_of(federation, "copy"), received)
    assert not equal(federation.state.model, received)


def test_both_adapters_take_the_steps_of_their_formulas():
    """One SGD step of a client that has an adapter of its own already."""
    setup, shards = language_setup("feddat", clients=1, work=ONE_STEP), language_shards(1)
    federation = Federation.inline(setup, shards, 3).play(0).play(1)
    received, local = federation.state.model, memory_of(federation, "local")
    federation.play(2)
    inputs, targets = setup.task.batch(shards(0), torch.arange(72))
    net = adapted(received)
    own, copied = branch(net, local), branch(net, received)
    with one_thread():
        z_1 = net(inputs)
        with gate(net, own, copied):
            z_0 = net(inputs)
        half = [
            (setup.task.loss(z, targets) + kl_divergence(z, t.detach(), targets, 3.0)) / 2
            for z, t in ((z_1, z_0), (z_0, z_1))
        ]
        shared_gradients = torch.autograd.grad(half[0], list(net.parameters()))
        own_gradients = torch.autograd.grad(half[1], list(own.parameters()))
    for start, gradients, found in (
        (received, shared_gradients, federation.state.model),
        (local, own_gradients, memory_of(federation, "local")),
    ):
        for name, gradient in zip(start, gradients, strict=True):
            torch.testing.assert_close(found[name], start[name] - 0.5 * gradient, atol=1e-6, rtol=1e-4)
            assert not torch.equal(found[name], start[name])


def test_with_the_divergence_the_shared_adapter_learns_from_the_clients_own():
    models = [play(language_setup("feddat", kl=kl), rounds=3, shards=language_shards()).state.model for kl in (0, 1)]
    assert not equal(*models)


def test_what_clients_send_is_the_shared_adapter_alone():
    books = [
        play(language_setup(name, weights="uniform"), rounds=2, shards=language_shards()).book.entries
        for name in ("feddat", "fedit")
    ]
    ours, theirs = ([(e.round, e.client, e.direction, e.kind, e.bytes) for e in book] for book in books)
    assert ours == theirs
    assert needs_of(language_setup("feddat")).up.keys() == {"adapters"}


# --- Predictions ------------------------------------------------------------------------------------------------------


def test_half_of_each_of_two_equal_adapters_is_the_adapter_itself():
    state = play(language_setup("fedit"), rounds=2, shards=language_shards()).state.model
    net, ids = adapted(state), inputs_of()[0]
    alone = logits(net, ids)
    with gate(net, branch(net, state), branch(net, state)):
        torch.testing.assert_close(logits(net, ids), alone, atol=1e-5, rtol=0)


def own_predictor(federation, client=0):
    message, memory = federation.method.own_message(federation.state), federation.runner.memories().get(client)
    with one_thread():
        return federation.method.own_predictor(client_of(federation.setup, language_shards(), client, message, memory))


@pytest.mark.parametrize("predict", ["gated", "local", "shared"])
def test_a_client_predicts_with_the_adapters_that_are_asked_for(predict):
    setup = language_setup("feddat", predict=predict, work=Work(steps=4, epochs=None, batch=8, lr=1.0))
    federation, ids = Federation.inline(setup, language_shards(), 2).play_all(), inputs_of()[0]
    net = adapted(federation.state.model)
    local, copied = (branch(net, memory_of(federation, label)) for label in ("local", "copy"))
    if predict == "gated":
        with net.beside(local, weight=0.5, own=0.0), net.beside(copied, weight=0.5, own=0.0):
            expected = logits(net, ids)
    elif predict == "local":
        with net.beside(local, own=0.0):
            expected = logits(net, ids)
    else:
        expected = logits(net, ids)
    predictor = own_predictor(federation)
    assert torch.equal(logits(predictor, ids), expected)
    assert not predictor.training


def test_free_answers_are_of_the_gated_mode():
    from algorithms.nets.generation import generate

    setup = language_setup("feddat", work=Work(steps=8, epochs=None, batch=8, lr=2.0))
    federation, task = Federation.inline(setup, language_shards(), 2).play_all(), prepared().task
    predictor, shard = own_predictor(federation), language_shards()(0)
    prompts = task.prompts(shard, shard.rows[:4])
    with one_thread():
        answers = generate(predictor, prompts, [1] * 4)
    for prompt, answer in zip(prompts, answers, strict=True):
        likeliest = logits(predictor, torch.tensor([prompt]))[0, -1].argmax().item()
        assert list(answer.ids) == ([likeliest] if likeliest != predictor.tokenizer.eos_token_id else [])


def test_a_client_that_never_trained_predicts_with_the_shared_adapter():
    federation, ids = Federation.inline(language_setup("feddat"), language_shards()).play(0, asked=[1]), inputs_of()[0]
    assert torch.equal(logits(own_predictor(federation), ids), logits(adapted(federation.state.model), ids))


def test_the_server_has_no_predictor_and_says_whom_to_ask():
    federation = Federation.inline(language_setup("feddat"), language_shards()).play(0)
    with pytest.raises(NotImplementedError, match="evaluate_own"):
        federation.method.predictor(federation.state)
