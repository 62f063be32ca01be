"""FedSA-LoRA: A is averaged, B stays at home."""

import pytest
import torch

from algorithms.core.payload import memory_tensors
from tests.algorithms.support_language import language_setup, language_shards
from tests.algorithms.support_methods import Federation, client_of, method_of
from tests.support import play


def own_factors(federation):
    """B_k by client."""
    return {k: memory_tensors("own", memory) for k, memory in federation.runner.memories().items()}


def test_what_is_sent_is_a_alone_and_its_bytes_are_those_of_the_formula():
    """4 r d_in for queries and values (64 inputs each) of two layers."""
    played = play(language_setup("fedsa_lora"), rounds=2, shards=language_shards())
    assert played.state.model
    assert all(name.endswith(".lora_A") for name in played.state.model)
    assert {e.bytes for e in played.book.entries if e.kind == "adapters"} == {4 * 4 * 2 * (64 + 64)}


def test_with_b_shared_too_it_is_fedit_to_the_bit():
    ours = play(language_setup("fedsa_lora", keeps="nothing"), rounds=3, shards=language_shards())
    assert ours.digest == play(language_setup("fedit"), rounds=3, shards=language_shards()).digest


def test_one_client_alone_learns_what_it_learns_under_fedit():
    """Nobody else's A comes in, so that what stays and what travels make one model."""
    setup, shards = language_setup("fedsa_lora", clients=1), language_shards(1)
    federation = Federation.inline(setup, shards, 3).play_all()
    fedit = play(language_setup("fedit", clients=1), rounds=3, shards=shards)
    found = {**federation.state.model, **own_factors(federation)[0]}
    assert found.keys() == fedit.state.model.keys()
    assert all(torch.equal(value, found[name]) for name, value in fedit.state.model.items())


def test_every_client_keeps_a_factor_of_its_own_and_an_absent_one_keeps_it_to_the_bit():
    federation = Federation.inline(language_setup("fedsa_lora", clients=3), language_shards(3), 2)
    before = own_factors(federation.play(0))
    assert not torch.equal(*(torch.cat([v.flatten() for v in before[k].values()]) for k in (0, 1)))
    after = own_factors(federation.play(1, asked=[0, 2]))
    same = [all(torch.equal(before[k][name], after[k][name]) for name in before[k]) for k in range(3)]
    assert same == [False, True, False]


def test_a_client_predicts_with_the_shared_factor_and_its_own():
    setup = language_setup("fedsa_lora", clients=2)
    federation = Federation.inline(setup, language_shards(2), 1).play(0)
    memory = federation.runner.memories()[1]
    client = client_of(setup, language_shards(2), 1, federation.method.own_message(federation.state), memory)
    net = federation.method.own_predictor(client)
    assert not net.training
    expected = {**federation.state.model, **own_factors(federation)[1]}
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


def test_a_client_that_never_trained_predicts_with_the_frozen_model():
    setup = language_setup("fedsa_lora", clients=2)
    method = method_of(setup)
    federation = Federation.inline(setup, language_shards(2), 1).play(0, asked=[0])
    client = client_of(setup, language_shards(2), 1, method.own_message(federation.state))
    net = method.own_predictor(client)
    inputs, _ = setup.task.batch(client.shard, torch.arange(3))
    with torch.no_grad():
        answers = net(inputs)
        with net.alone():
            assert torch.equal(net(inputs), answers)


def test_the_server_has_no_network_and_says_how_to_evaluate():
    setup = language_setup("fedsa_lora")
    method = method_of(setup)
    with pytest.raises(NotImplementedError, match="evaluate_own"):
        method.predictor(method.start(setup.clients))
