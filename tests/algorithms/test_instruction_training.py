"""Training on instructions in pieces, in half the precision, and with activations that are computed twice."""

import dataclasses

import pytest
import torch

from actors.steps.worker import one_thread
from algorithms.core.seeds import Seed, torch_seeded
from algorithms.core.states import snapshot
from algorithms.core.training import Work, _gradients_of, _in_pieces, fit
from algorithms.tasks._next_token import NO_TARGET
from tests.algorithms.support_language import base, language_shards, prepared

STEP = Work(steps=1, epochs=None, batch=12, lr=0.5)


def network(**task):
    """The model with random adapters, the same for all tasks."""
    learnt = prepared(**task).task
    net = learnt.network(base())
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return learnt, net


def trained(work=STEP, **task):
    """The loss of a step, and the adapters after it."""
    learnt, net = network(**task)
    with one_thread(), torch_seeded(1):
        fitted = fit(net, learnt, language_shards(3)(0), work, Seed(3, round=0, phase="train", client=0))
    return fitted.loss, snapshot(net)


@pytest.mark.parametrize("most", [1, 5, 11])
def test_pieces_count_by_their_tokens(most):
    """Answers are of different lengths: by examples alone the gradient would be another."""
    (loss, whole), (again, pieces) = trained(), trained(dataclasses.replace(STEP, micro_batch=most))
    assert again == pytest.approx(loss, rel=1e-5)
    start = snapshot(network()[1])
    for name in whole:
        torch.testing.assert_close(pieces[name] - start[name], whole[name] - start[name], atol=1e-6, rtol=1e-4)


def test_the_amount_of_a_batch_is_its_tokens_that_are_learnt():
    task = prepared().task
    targets = torch.tensor([[NO_TARGET, 5, 6], [NO_TARGET, NO_TARGET, 7]])
    assert task.amount(targets) == 3


def test_a_piece_in_which_nothing_is_learnt_changes_nothing():
    task, net = network()
    parameters = list(net.parameters())
    inputs, targets = task.batch(language_shards(3)(0), torch.arange(2))
    none = torch.full_like(targets, NO_TARGET)
    whole = _gradients_of(net, parameters, task, task.loss, None)
    pieces = _in_pieces(whole, parameters, task, 2)
    with one_thread():
        loss = pieces(torch.cat([inputs, inputs]), torch.cat([targets, none]))
        found = [parameter.grad.clone() for parameter in parameters]
        assert loss.item() == pytest.approx(whole(inputs, targets).item(), rel=1e-6)
    assert all(torch.equal(gradient, p.grad) for gradient, p in zip(found, parameters, strict=True))


def test_activations_that_are_computed_twice_change_no_gradient():
    (loss, whole), (again, twice) = trained(), trained(checkpointing=True)
    assert again == loss
    for name in whole:
        torch.testing.assert_close(twice[name], whole[name], atol=1e-6, rtol=0)


def test_with_checkpointing_layers_are_computed_twice_in_training_and_once_in_evaluation():
    counts = {}
    for checkpointing in (False, True):
        task, net = network(checkpointing=checkpointing)
        calls = []
        net.base.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        inputs, targets = task.batch(language_shards(3)(0), torch.arange(4))
        with one_thread():
            task.loss(net.train()(inputs), targets).backward()
            in_training = len(calls)
            with torch.no_grad():
                net.eval()(inputs)
        counts[checkpointing] = in_training, len(calls) - in_training
    assert counts == {False: (1, 1), True: (2, 1)}


def test_a_frozen_model_of_16_bits_takes_a_step_near_that_of_32_and_keeps_its_adapters_in_32():
    (loss, whole), (again, half) = trained(), trained(precision="bfloat16")
    net = network(precision="bfloat16")[1]
    assert {parameter.dtype for parameter in net.base.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert again == pytest.approx(loss, rel=0.003)
    assert again != loss
    start = snapshot(net)
    moves = [torch.cat([(state[n] - start[n]).flatten() for n in state]) for state in (whole, half)]
    assert torch.cosine_similarity(*moves, dim=0) > 0.99
